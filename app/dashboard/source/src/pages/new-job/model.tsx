import { isBase, useModels } from "../../lib/models";
import type { Model } from "../../lib/types";
import { SelectField, TextField } from "../../ui/field";
import { Failure } from "../../ui/notice";
import { type StepProps, type Wrong, errorAt } from "./draft";

export function ModelStep({ draft, change, wrong }: StepProps) {
  const { data, error } = useModels();
  const tuned = (data?.data ?? []).filter((model) => !isBase(model));
  const goOn = (from: string) => change({ peft: from ? { from } : { method: "lora" } });
  return (
    <fieldset class="card">
      <legend>2. Model</legend>
      <Failure error={error} doing="The models cannot be read" />
      <div class="pair">
        <BaseField
          models={data?.data}
          value={draft.model}
          onChange={(model) => change({ model })}
          wrong={wrong}
        />
        <TextField
          label="Name"
          value={draft.suffix}
          onChange={(suffix) => change({ suffix })}
          placeholder="support-bot"
          hint="Stands in the name of what comes out."
          error={errorAt(wrong, "suffix")}
        />
      </div>
      {tuned.length > 0 && (
        <SelectField
          label="Go on from"
          value={draft.peft.from ?? ""}
          onChange={goOn}
          options={[
            ["", "nothing: a new adapter"],
            ...tuned.map((model): [string, string] => [model.id, model.id]),
          ]}
          hint="An earlier model of the same base; it brings its method with it."
        />
      )}
    </fieldset>
  );
}

interface BaseProps {
  /** Those there are, once they are read. */
  models: Model[] | undefined;
  value: string;
  onChange: (model: string) => void;
  wrong: Wrong;
}

export function BaseField({ models, value, onChange, wrong }: BaseProps) {
  const bases = (models ?? []).filter(isBase);
  const none = models && !bases.length;
  return (
    <SelectField
      label="Base model"
      value={value}
      onChange={onChange}
      error={errorAt(wrong, "model")}
      hint={
        none && (
          <>
            This server offers no base model: start it with <code>basin up --models DIR</code>.
          </>
        )
      }
      options={[
        ["", "Choose one…"],
        ...bases.map((model): [string, string] => [model.id, `${model.id} · ${model.task}`]),
      ]}
    />
  );
}
