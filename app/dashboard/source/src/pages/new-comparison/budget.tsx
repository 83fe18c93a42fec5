import { SelectField, TextField } from "../../ui/field";
import { type Wrong, errorAt } from "../new-job/draft";
import { Setting } from "../new-job/setting";
import type { Draft } from "./draft";

interface Props {
  draft: Draft;
  change: (to: Partial<Draft>) => void;
  wrong: Wrong;
}

/** The seeds, how long the runs are, and what is set for all of them. */
export function BudgetStep({ draft, change, wrong }: Props) {
  const { hyperparameters, training } = draft;
  const settings = { draft: { hyperparameters, training }, change, wrong };
  return (
    <fieldset class="card">
      <legend>4. Runs</legend>
      <div class="grid">
        <TextField
          label="Seeds"
          value={draft.seeds}
          onChange={(seeds) => change({ seeds })}
          hint="How many, or which: 1, 5, 9."
          error={/^seeds\b/.test(wrong?.param ?? "") ? wrong?.message : undefined}
          numeric
        />
        <SelectField
          label="Equal"
          value={draft.equal}
          onChange={(equal) => change({ equal: equal as Draft["equal"] })}
          options={[
            ["steps", "optimizer steps"],
            ["passes", "forward-backward passes"],
          ]}
          error={errorAt(wrong, "budget.equal")}
        />
        <TextField
          label="Steps of each run"
          value={draft.max_steps}
          onChange={(max_steps) => change({ max_steps })}
          placeholder="as the epochs say"
          error={errorAt(wrong, "budget.max_steps")}
          numeric
        />
        <Setting {...settings} group="hyperparameters" name="n_epochs" label="Epochs" standard="auto" />
        <Setting {...settings} group="hyperparameters" name="batch_size" label="Batch size" standard="auto" />
        <Setting
          {...settings}
          group="training"
          name="learning_rate"
          label="Learning rate"
          standard="0.0002"
        />
        <Setting {...settings} group="training" name="eval_steps" label="Evaluate every" standard="auto" />
        <Setting {...settings} group="training" name="max_length" label="Longest row" standard="auto" />
      </div>
      <label class="check">
        <input
          type="checkbox"
          checked={draft.sharpness}
          onChange={(event) => change({ sharpness: event.currentTarget.checked })}
        />
        Measure sharpness too, which makes evaluations longer
      </label>
    </fieldset>
  );
}
