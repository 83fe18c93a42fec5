import { SelectField } from "../../ui/field";
import { type Learn, type StepProps, waysOf } from "./draft";
import { PERTURBATIONS, PeftSettings, PerturbationSettings } from "./method-settings";
import { Reinforcement } from "./reinforcement";
import { Setting } from "./setting";

const WAYS: Record<Learn, string> = {
  supervised: "the answers in the file",
  dpo: "preferences",
  reinforcement: "rewards for its own answers",
};

export function MethodStep(props: StepProps) {
  const { draft, change } = props;
  const { type = "mgpo" } = draft.perturbation;
  const goesOn = !!draft.peft.from;
  const choose = (to: string) => change({ perturbation: { type: to } });
  return (
    <fieldset class="card">
      <legend>3. Method</legend>
      {waysOf(draft.format).length > 1 && <Ways {...props} />}
      {draft.learn === "dpo" && <Preferences {...props} />}
      {draft.learn === "reinforcement" && <Reinforcement {...props} />}
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

/** What to learn from, where the rows leave a choice. */
function Ways({ draft, change }: StepProps) {
  return (
    <SelectField
      label="Learn from"
      value={draft.learn}
      onChange={(learn) => change({ learn: learn as Learn })}
      options={waysOf(draft.format).map((way): [string, string] => [way, WAYS[way]])}
    />
  );
}

/** What the file's rows ask for: pairs of answers are learned from by DPO. */
function Preferences(props: StepProps) {
  return (
    <>
      <p class="hint">
        The file holds preferences: the job learns by direct preference optimization (DPO), to write the
        preferred answer rather than the other.
      </p>
      <div class="grid">
        <Setting
          {...props}
          group="hyperparameters"
          name="beta"
          label="β of DPO"
          standard="0.1"
          hint="Higher keeps closer to the model it starts from."
        />
      </div>
    </>
  );
}
