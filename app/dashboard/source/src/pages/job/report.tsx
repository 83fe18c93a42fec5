import { phrase } from "../../charts/catalog";
import { useLoaded } from "../../lib/hooks";
import { isOver } from "../../lib/jobs";
import { useApi } from "../../lib/session";
import type { Finding, Job, Report } from "../../lib/types";
import { Failure, Notice } from "../../ui/notice";

const FEWEST_STEPS = 20; // the report judges a curve from there on
const ENDED = { failed: "failed", cancelled: "was cancelled" };

/** What the curves say about how the run went, and which knob to turn. */
export function StabilityReport({ job }: { job: Job }) {
  const api = useApi();
  const trained = job.progress.step > 0;
  const { data, error } = useLoaded(
    trained ? (signal) => api.get<Report>(`/fine_tuning/jobs/${job.id}/report`, {}, signal) : null,
    [job.id, job.status],
    { every: isOver(job) ? 0 : 15_000 },
  );
  if (!trained) return null;
  return (
    <section aria-label="Stability" class="findings">
      <Failure error={error} doing="The stability report cannot be read" />
      {data && (
        <Notice {...judgement(job, data)}>
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

/** Praise only what has trained long enough to be judged, and has not broken off. */
function judgement(
  job: Job,
  { healthy, findings }: Report,
): { kind: "good" | "warn" | "info"; title: string } {
  if (!healthy) return { kind: "warn", title: "The training shows something" };
  if (job.status === "failed" || job.status === "cancelled")
    return {
      kind: "info",
      title: findings.length ? "What its curves show" : `Nothing stood out before it ${ENDED[job.status]}`,
    };
  if (job.progress.step < FEWEST_STEPS) return { kind: "info", title: "Too short to be judged" };
  return { kind: "good", title: "The training looks healthy" };
}

function Item({ finding }: { finding: Finding }) {
  const { kind, severity, first_step, last_step, metric, evidence, advice } = finding;
  const where = first_step === last_step ? `step ${first_step}` : `steps ${first_step} to ${last_step}`;
  return (
    <li>
      <b>{kind.replaceAll("_", " ")}</b> ({severity}) in {phrase(metric)}, {where}: {evidence}{" "}
      <span class="advice">{advice}</span>
    </li>
  );
}
