import type { StepProps, Texts } from "./draft";
import { Setting } from "./setting";

const METHODS: [string, string][] = [
  ["lora", "LoRA"],
  ["rslora", "rsLoRA: scaled by √r"],
  ["dora", "DoRA: direction and length apart"],
  ["adalora", "AdaLoRA: ranks where they matter"],
  ["pissa", "PiSSA: from the main directions"],
  ["lora_plus", "LoRA+: B learns faster"],
  ["lora_ga", "LoRA-GA: from the first gradient"],
  ["lora_pro", "LoRA-Pro: closer to full training"],
  ["full", "Full: every weight, no adapter"],
];

const PERTURBATIONS: [type: string, name: string, words: string][] = [
  ["mgpo", "MGPO", "Looks ahead along the optimizer’s momentum. The default here."],
  ["none", "None", "Plain training, to compare with."],
  ["random", "Random", "Flat-LoRA’s noise on the merged weights."],
  ["ggpo", "GGPO", "Noise guided by the gradients."],
];

export function MethodStep(props: StepProps) {
  const { draft, change } = props;
  const { type = "mgpo" } = draft.perturbation;
  const goesOn = !!draft.peft.from;
  const choose = (to: string) => change({ perturbation: { type: to } as Texts });
  return (
    <fieldset class="card">
      <legend>3. Method</legend>
      {!goesOn && (
        <div class="grid">
          <Setting {...props} group="peft" name="method" label="Adapter" options={METHODS} />
          <Setting {...props} group="peft" name="r" label="Rank r" standard="8" />
          <Setting
            {...props}
            group="peft"
            name="alpha"
            label="Alpha"
            standard="2 r"
            hint="Scale: alpha / r."
          />
          <Setting {...props} group="peft" name="dropout" label="Dropout" standard="0" />
          <Setting
            {...props}
            group="peft"
            name="target_modules"
            label="Layers"
            standard="all-linear"
            hint="Or names, with commas."
          />
          {draft.peft.method === "lora_plus" && (
            <Setting {...props} group="peft" name="lr_ratio" label="Ratio of B’s rate" standard="16" />
          )}
        </div>
      )}
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
      {type !== "none" && (
        <div class="grid">
          <Setting
            {...props}
            group="perturbation"
            name="rho"
            label={type === "ggpo" ? "σ (rho)" : "ρ (rho)"}
            standard={type === "ggpo" ? "0.03" : "0.05"}
            hint="How far from the clean weights."
          />
          {type !== "random" && (
            <Setting
              {...props}
              group="perturbation"
              name="beta"
              label="β (beta)"
              standard={type === "ggpo" ? "0.01" : "0.9"}
            />
          )}
          {type === "mgpo" && (
            <Setting
              {...props}
              group="perturbation"
              name="apn"
              label="Scale per module"
              standard="relative"
              options={[
                ["paper", "paper"],
                ["off", "off"],
              ]}
            />
          )}
          {type === "mgpo" && (
            <Setting
              {...props}
              group="perturbation"
              name="norm"
              label="Length"
              standard="per module"
              options={[["global", "of all together"]]}
            />
          )}
          {type === "mgpo" && (
            <Setting
              {...props}
              group="perturbation"
              name="rho_schedule"
              label="ρ over the run"
              standard="constant"
              options={[
                ["linear", "falls linearly"],
                ["cosine", "falls as a cosine"],
              ]}
            />
          )}
          <Setting {...props} group="perturbation" name="start_step" label="Plain steps first" standard="0" />
        </div>
      )}
    </fieldset>
  );
}
