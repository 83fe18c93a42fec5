import { duration, number, whole } from "../../lib/format";
import { methodOf } from "../../lib/jobs";
import { highest, type Line, last, lowest } from "../../lib/series";
import type { Job } from "../../lib/types";
import { Progress } from "../../ui/progress";

/** What evaluations say: a loss, or of a policy, which has none, what its rollouts are worth. */
function judged(job: Job, lines: Map<string, Line>) {
  if (job.method.type === "reinforcement") {
    const line = lines.get("valid_reward_mean");
    return { name: "Validation reward", line, best: highest(line) };
  }
  const line = lines.get("valid_loss");
  return { name: "Validation loss", line, best: lowest(line) };
}

/** The few numbers that tell how it goes. */
export function Summary({ job, lines }: { job: Job; lines: Map<string, Line> }) {
  const { name, line, best } = judged(job, lines);
  const facts: [string, string, string?][] = [
    ["Method", methodOf(job), `${job.model}`],
    ["Train loss", number(last(lines.get("train_loss")))],
    [name, number(last(line)), best ? `best ${number(best.value)} at step ${whole(best.step)}` : undefined],
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
