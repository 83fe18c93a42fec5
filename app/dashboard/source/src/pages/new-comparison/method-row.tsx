import { Button } from "../../ui/buttons";
import { SelectField, TextField } from "../../ui/field";
import { type Wrong, errorAt } from "../new-job/draft";
import { PERTURBATIONS, PeftSettings, PerturbationSettings } from "../new-job/method-settings";
import { Setting } from "../new-job/setting";
import type { Method } from "./draft";

interface Props {
  /** Its place, from 1 on. */
  place: number;
  method: Method;
  change: (to: Partial<Method>) => void;
  wrong: Wrong;
  onRemove: () => void;
  /** Why it cannot be removed; null when it can. */
  kept: string | null;
}

/** One of the methods that are compared: its name, its adapter, its perturbation. */
export function MethodRow({ place, method, change, wrong, onRemove, kept }: Props) {
  const settings = { draft: { ...method }, change, wrong };
  const { type = "mgpo" } = method.perturbation;
  return (
    <fieldset class="method">
      <legend>
        Method {place}
        {place === 1 && <span class="sub">The others are compared with this one.</span>}
      </legend>
      <div class="pair">
        <TextField
          label="Method’s name"
          value={method.name}
          onChange={(name) => change({ name })}
          error={errorAt(wrong, "name")}
        />
        <SelectField
          label="Perturbation"
          value={type}
          onChange={(type) => change({ perturbation: { type } })}
          options={PERTURBATIONS.map(([each, name]) => [each, name])}
          error={errorAt(wrong, "perturbation.type") ?? errorAt(wrong, "perturbation")}
        />
      </div>
      <PerturbationSettings {...settings} />
      <PeftSettings {...settings} />
      <div class="grid">
        <Setting
          {...settings}
          group="training"
          name="learning_rate"
          label="Own learning rate"
          standard="as all"
        />
      </div>
      <p>
        <Button kind="quiet" label={`Remove method ${place}`} refusal={kept} onClick={onRemove}>
          Remove
        </Button>
      </p>
    </fieldset>
  );
}
