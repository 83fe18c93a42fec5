import { useLoaded } from "../../lib/hooks";
import { useApi } from "../../lib/session";
import type { Model } from "../../lib/types";
import { SelectField, TextField } from "../../ui/field";
import { Failure } from "../../ui/notice";
import { isBase } from "../models";
import type { StepProps } from "./draft";

export function ModelStep({ draft, change, wrong }: StepProps) {
  const api = useApi();
  const { data, error } = useLoaded((signal) => api.get<{ data: Model[] }>("/models", {}, signal), []);
  const bases = (data?.data ?? []).filter(isBase);
  const tuned = (data?.data ?? []).filter((model) => !isBase(model));
  const known = (name: string) => (wrong?.param === name ? wrong.message : undefined);
  const goOn = (from: string) => change({ peft: from ? { from } : { method: "lora" } });
  return (
    <fieldset class="card">
      <legend>2. Model</legend>
      <Failure error={error} doing="The models cannot be read" />
      {data && !bases.length && (
        <p class="muted">
          This server offers no base model: start it with <code>basin up --models DIR</code>.
        </p>
      )}
      <div class="pair">
        <SelectField
          label="Base model"
          value={draft.model}
          onChange={(model) => change({ model })}
          hint={known("model")}
          options={[
            ["", "Choose one…"],
            ...bases.map((model): [string, string] => [model.id, `${model.id} · ${model.task}`]),
          ]}
        />
        <TextField
          label="Name"
          value={draft.suffix}
          onChange={(suffix) => change({ suffix })}
          placeholder="support-bot"
          hint="Stands in the name of what comes out."
          error={known("suffix")}
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
