// The settings of an adapter and of its perturbation, as jobs and the methods of comparisons have them.
import { Setting, type SettingsProps } from "./setting";

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

export const PERTURBATIONS: [type: string, name: string, words: string][] = [
  ["mgpo", "MGPO", "Looks ahead along the optimizer’s momentum. The default here."],
  ["none", "None", "Plain training, to compare with."],
  ["random", "Random", "Flat-LoRA’s noise on the merged weights."],
  ["ggpo", "GGPO", "Noise guided by the gradients."],
];

export function PeftSettings(props: SettingsProps) {
  return (
    <div class="grid">
      <Setting {...props} group="peft" name="method" label="Adapter" options={METHODS} />
      <Setting {...props} group="peft" name="r" label="Rank r" standard="8" />
      <Setting {...props} group="peft" name="alpha" label="Alpha" standard="2 r" hint="Scale: alpha / r." />
      <Setting {...props} group="peft" name="dropout" label="Dropout" standard="0" />
      <Setting
        {...props}
        group="peft"
        name="target_modules"
        label="Layers"
        standard="all-linear"
        hint="Or names, with commas."
      />
      {props.draft.peft?.method === "lora_plus" && (
        <Setting {...props} group="peft" name="lr_ratio" label="Ratio of B’s rate" standard="16" />
      )}
    </div>
  );
}

export function PerturbationSettings(props: SettingsProps) {
  const { type = "mgpo" } = props.draft.perturbation ?? {};
  if (type === "none") return null;
  return (
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
  );
}
