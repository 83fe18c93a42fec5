import { lossTraces, otherPanels } from "../../charts/catalog";
import { LossTools, useLossView } from "../../charts/tools";
import { Panel } from "../../charts/panel";
import { isOver, nameOf, shortId } from "../../lib/jobs";
import type { Line } from "../../lib/series";
import type { Job } from "../../lib/types";

/** All that was measured, by step: the losses large, the rest in small panels that move together. */
export function Curves({ job, lines }: { job: Job; lines: Map<string, Line> }) {
  const view = useLossView();
  const losses = lossTraces(lines);
  if (!losses.length)
    return isOver(job) ? null : <p class="card muted">The curves begin with the first step.</p>;
  const together = job.id;
  const file = (id: string) => `${nameOf(job)}-${shortId(job.id)}-${id}`;
  return (
    <section aria-label="Curves" class="curves">
      <h2 class="unseen">Curves</h2>
      <Panel
        title="Loss"
        traces={losses}
        weight={view.weight}
        log={view.log}
        height={320}
        together={together}
        filename={file("loss")}
        tools={<LossTools view={view} />}
      />
      <div class="panels">
        {otherPanels(lines).map(({ id, ...panel }) => (
          <Panel
            key={id}
            {...panel}
            weight={id === "learning_rate" ? 0 : view.weight}
            together={together}
            filename={file(id)}
          />
        ))}
      </div>
    </section>
  );
}
