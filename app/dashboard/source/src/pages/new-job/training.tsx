import { TextField } from "../../ui/field";
import type { StepProps } from "./draft";
import { Setting } from "./setting";

export function TrainingStep(props: StepProps) {
  const { draft, change } = props;
  return (
    <fieldset class="card">
      <legend>4. Training</legend>
      <div class="grid">
        <Setting {...props} group="hyperparameters" name="n_epochs" label="Epochs" standard="auto" />
        <Setting {...props} group="hyperparameters" name="batch_size" label="Batch size" standard="auto" />
        <Setting {...props} group="training" name="learning_rate" label="Learning rate" standard="0.0002" />
        <Setting
          {...props}
          group="training"
          name="scheduler"
          label="Schedule"
          standard="cosine"
          options={[
            ["linear", "linear"],
            ["constant", "constant"],
          ]}
        />
        <Setting
          {...props}
          group="training"
          name="max_length"
          label="Longest row"
          standard="auto"
          hint="In tokens; what is longer is cut."
        />
        <TextField
          label="Seed"
          value={draft.seed}
          onChange={(seed) => change({ seed })}
          placeholder="random"
          numeric
        />
      </div>
      <details>
        <summary>More settings</summary>
        <div class="grid">
          <Setting
            {...props}
            group="training"
            name="warmup_ratio"
            label="Warm-up"
            standard="0.03"
            hint="Share of the run."
          />
          <Setting {...props} group="training" name="weight_decay" label="Weight decay" standard="0" />
          <Setting
            {...props}
            group="training"
            name="max_grad_norm"
            label="Largest gradient norm"
            standard="1"
          />
          <Setting
            {...props}
            group="training"
            name="micro_batch_size"
            label="Micro-batch"
            standard="auto"
            hint="Rows of a forward."
          />
          <Setting
            {...props}
            group="training"
            name="max_steps"
            label="Most steps"
            standard="as the epochs say"
          />
          <Setting
            {...props}
            group="training"
            name="eval_steps"
            label="Evaluate every"
            standard="auto"
            hint="In steps."
          />
          <Setting
            {...props}
            group="training"
            name="checkpoint_steps"
            label="Checkpoint every"
            standard="auto"
            hint="In steps."
          />
          <Setting
            {...props}
            group="training"
            name="patience"
            label="Early stopping"
            standard="off"
            hint="Evaluations without a better loss."
          />
          <Setting
            {...props}
            group="training"
            name="precision"
            label="Precision"
            standard="auto"
            options={[
              ["bf16", "bf16"],
              ["fp32", "fp32"],
            ]}
          />
          <Setting
            {...props}
            group="training"
            name="gradient_checkpointing"
            label="Gradient checkpointing"
            standard="off"
            options={[["true", "on: less memory, more time"]]}
          />
          <Setting {...props} group="resources" name="gpus" label="GPUs" standard="1" />
          <Setting
            {...props}
            group="resources"
            name="zero_stage"
            label="ZeRO stage"
            standard="none"
            options={[
              ["0", "0"],
              ["1", "1"],
              ["2", "2"],
            ]}
          />
          <Setting
            {...props}
            group="budget"
            name="max_duration_s"
            label="Most seconds"
            standard="no limit"
            hint="Then it delivers what it has."
          />
          <TextField
            label="Priority"
            value={draft.priority}
            onChange={(priority) => change({ priority })}
            placeholder="0"
            hint="−100 to 100; higher runs first."
            numeric
          />
        </div>
      </details>
    </fieldset>
  );
}
