import { duration, moment } from "../../lib/format";
import { useLoaded } from "../../lib/hooks";
import { useApi } from "../../lib/session";
import type { Attempt, Job } from "../../lib/types";
import { Failure } from "../../ui/notice";

/** Every try at the job: where it ran, how far it came and how it ended. */
export function Attempts({ job }: { job: Job }) {
  const api = useApi();
  const { data, error } = useLoaded(
    (signal) => api.get<{ data: Attempt[] }>(`/fine_tuning/jobs/${job.id}/attempts`, {}, signal),
    [job.id, job.status, job.attempt],
  );
  return (
    <section class="card">
      <h2>Attempts</h2>
      <Failure error={error} doing="The attempts cannot be read" />
      {data && !data.data.length && <p class="muted">No worker has taken it yet.</p>}
      <ol class="attempts">
        {data?.data.map((each) => (
          <li key={each.number}>
            <b>
              #{each.number} {each.outcome ?? "running"}
            </b>{" "}
            on {each.worker}
            <span class="sub">{span(each)}</span>
            {each.reason && <span class="sub">{each.reason}</span>}
          </li>
        ))}
      </ol>
    </section>
  );
}

function span({ started_at, ended_at, first_step, last_step }: Attempt): string {
  const steps = first_step === null ? "no step" : `steps ${first_step} to ${last_step ?? "…"}`;
  const time = ended_at === null ? "" : `, ${duration(ended_at - started_at)}`;
  return `${steps} · from ${moment(started_at)}${time}`;
}
