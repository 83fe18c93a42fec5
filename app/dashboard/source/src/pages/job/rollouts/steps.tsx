import { count } from "../../../lib/format";
import { mean, reward } from "../../../lib/rollouts";
import type { Rollouts } from "../../../lib/types";
import { Field } from "../../../ui/field";

interface Props {
  /** The oldest first. */
  steps: Rollouts["steps"];
  step: number;
  onChoose: (step: number) => void;
}

/** Choose a step: over the slider, how high the mean reward of each was. */
export function Steps({ steps, step, onChoose }: Props) {
  const place = steps.findIndex((each) => each.step === step);
  const { rewards } = steps[place]!;
  const means = steps.map((each) => mean(each.rewards));
  const finite = means.filter(Number.isFinite);
  const [low, high] = [Math.min(0, ...finite), Math.max(...finite)];
  const told = `step ${step}: mean reward ${reward(means[place]!)} of ${count(rewards.length, "rollout")}`;
  return (
    <div class="rollout-steps">
      <ol aria-hidden="true">
        {steps.map((each, index) => (
          <li
            key={each.step}
            class={index === place ? "chosen" : ""}
            title={`step ${each.step}: ${reward(means[index]!)}`}
            onClick={() => onChoose(each.step)}
          >
            <span style={{ height: `${heightOf(means[index]!, low, high)}%` }} />
          </li>
        ))}
      </ol>
      <Field label="Step" hint={told}>
        {(ties) => (
          <input
            {...ties}
            type="range"
            min={0}
            max={steps.length - 1}
            value={place}
            disabled={steps.length === 1}
            aria-valuetext={told}
            onInput={(event) => onChoose(steps[Number(event.currentTarget.value)]!.step)}
          />
        )}
      </Field>
    </div>
  );
}

function heightOf(value: number, low: number, high: number): number {
  if (!Number.isFinite(value) || high <= low) return 4;
  return 4 + (96 * (value - low)) / (high - low);
}
