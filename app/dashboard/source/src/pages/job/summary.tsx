import { duration, number, whole } from "../../lib/format";
import { methodOf } from "../../lib/jobs";
import { type Line, last, lowest } from "../../lib/series";
import type { Job } from "../../lib/types";
import { Progress } from "../../ui/progress";

/** The few numbers that tell how it goes. */
export function Summary({ job, lines }: { job: Job; lines: Map<string, Line> }) {
  const best = lowest(lines.get("valid_loss"));
  const facts: [string, string, string?][] = [
    ["Method", methodOf(job), `${job.model}`],
    ["Train loss", number(last(lines.get("train_loss")))],
    [
      "Validation loss",
      number(last(lines.get("valid_loss"))),
      best ? `best ${number(best.value)} at step ${whole(best.step)}` : undefined,
    ],
    ["Tokens per second", number(last(lines.get("tokens_per_second")), 3)],
    [
      "Time",
      duration((job.finished_at ?? Date.now() / 1000) - job.created_at),
      job.finished_at ? "from submission to end" : "since it was submitted",
    ],
  ].map(([name, value, more]) => [name!, value!, more]);
  return (
    <section class="card summary" aria-label="Summary">
      {job.status !== "queued" && <Progress job={job} />}
      <dl class="facts">
        {facts.map(([name, value, more]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>
              {value}
              {more && <span class="sub">{more}</span>}
            </dd>
          </div>
        ))}
      </dl>
    </section>
  );
}
