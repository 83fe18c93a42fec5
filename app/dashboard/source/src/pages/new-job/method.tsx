import { PERTURBATIONS, PeftSettings, PerturbationSettings } from "./method-settings";
import type { StepProps } from "./draft";

export function MethodStep(props: StepProps) {
  const { draft, change } = props;
  const { type = "mgpo" } = draft.perturbation;
  const goesOn = !!draft.peft.from;
  const choose = (to: string) => change({ perturbation: { type: to } });
  return (
    <fieldset class="card">
      <legend>3. Method</legend>
      {!goesOn && <PeftSettings {...props} />}
      <div role="radiogroup" aria-label="Perturbation" class="choices">
        {PERTURBATIONS.map(([each, name, words]) => (
          <label key={each} class={each === type ? "choice chosen" : "choice"}>
            <input
              type="radio"
              name="perturbation"
              value={each}
              checked={each === type}
              onChange={() => choose(each)}
            />
            <b>{name}</b>
            <span class="sub">{words}</span>
          </label>
        ))}
      </div>
      <PerturbationSettings {...props} />
    </fieldset>
  );
}
