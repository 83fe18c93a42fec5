import { useLoaded } from "../../lib/hooks";
import { isOver } from "../../lib/jobs";
import { useApi } from "../../lib/session";
import type { Finding, Job, Report } from "../../lib/types";
import { Failure, Notice } from "../../ui/notice";

/** What the curves say about how the run went, and which knob to turn. */
export function StabilityReport({ job }: { job: Job }) {
  const api = useApi();
  const { data, error } = useLoaded(
    (signal) => api.get<Report>(`/fine_tuning/jobs/${job.id}/report`, {}, signal),
    [job.id, job.status],
    { every: isOver(job) ? 0 : 15_000 },
  );
  return (
    <section aria-label="Stability" class="findings">
      <Failure error={error} doing="The stability report cannot be read" />
      {data && (
        <Notice
          kind={data.healthy ? "good" : "warn"}
          title={data.healthy ? "The training looks healthy" : "The training shows something"}
        >
          <p>{data.summary}</p>
          {!!data.findings.length && (
            <ul>
              {data.findings.map((each) => (
                <Item key={`${each.kind}${each.first_step}`} finding={each} />
              ))}
            </ul>
          )}
        </Notice>
      )}
    </section>
  );
}

function Item({ finding }: { finding: Finding }) {
  const { kind, severity, first_step, last_step, metric, evidence, advice } = finding;
  const where = first_step === last_step ? `step ${first_step}` : `steps ${first_step} to ${last_step}`;
  return (
    <li>
      <b>{kind.replaceAll("_", " ")}</b> ({severity}) in {metric.replaceAll("_", " ")}, {where}: {evidence}{" "}
      <span class="advice">{advice}</span>
    </li>
  );
}
