import { ago, number } from "../../lib/format";
import { useLoaded } from "../../lib/hooks";
import { isOver } from "../../lib/jobs";
import { useApi } from "../../lib/session";
import type { Checkpoint, Job, Page } from "../../lib/types";
import { Failure } from "../../ui/notice";
import { DownloadButton } from "./actions";
import { Rows } from "../../ui/rows";

export function Checkpoints({ job }: { job: Job }) {
  const api = useApi();
  const { data, error } = useLoaded(
    (signal) => api.get<Page<Checkpoint>>(`/fine_tuning/jobs/${job.id}/checkpoints`, { limit: 100 }, signal),
    [job.id, job.status],
    { every: isOver(job) ? 0 : 5000 },
  );
  return (
    <section class="card">
      <h2>Checkpoints</h2>
      <Failure error={error} doing="The checkpoints cannot be read" />
      {data && !data.data.length && (
        <p class="muted">None yet: one is kept every {`${job.training.checkpoint_steps}`} steps.</p>
      )}
      {!!data?.data.length && (
        <Rows columns={["Step", "Validation loss", "Saved"]} last="Download" compact>
          {data.data.map((each) => (
            <tr key={each.id}>
              <th scope="row">{each.step_number}</th>
              <td data-label="Validation loss">
                {number(each.metrics.full_valid_loss ?? each.metrics.valid_loss)}
              </td>
              <td data-label="Saved">{ago(each.created_at)}</td>
              <td class="end">
                <DownloadButton
                  path={`/fine_tuning/jobs/${job.id}/checkpoints/${each.id}/adapter`}
                  filename={`${job.id}-step-${each.step_number}.tar`}
                  words="Adapter"
                  label={`Download the adapter of step ${each.step_number}`}
                />
              </td>
            </tr>
          ))}
        </Rows>
      )}
    </section>
  );
}
