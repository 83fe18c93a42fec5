// What a model acts in: one of those that are installed, and its arguments.
import { count } from "../../lib/format";
import { useLoaded } from "../../lib/hooks";
import { useApi } from "../../lib/session";
import type { Environment, Page } from "../../lib/types";
import { SelectField } from "../../ui/field";
import { Failure } from "../../ui/notice";
import { ArgumentField } from "./argument";
import { type StepProps, type Texts, errorAt } from "./draft";

const WHERE = "method.reinforcement.environment";

export function EnvironmentSettings({ draft, change, wrong }: Pick<StepProps, "draft" | "change" | "wrong">) {
  const api = useApi();
  const { data, error } = useLoaded((signal) => api.get<Page<Environment>>("/environments", {}, signal), []);
  const { name = "" } = draft.environment;
  const chosen = data?.data.find(({ id }) => id === name);
  const choose = (to: string) => change({ environment: { ...draft.environment, name: to }, args: {} });
  const set = (argument: Texts) => change({ args: { ...draft.args, ...argument } });
  return (
    <>
      <Failure error={error} doing="The environments cannot be read" />
      <SelectField
        label="Environment"
        value={name}
        onChange={choose}
        options={[
          ["", "Choose one…"],
          ...(data?.data ?? []).map(({ id, summary }): [string, string] => [id, `${id} · ${summary}`]),
        ]}
        hint={chosen && offeredBy(chosen)}
        error={errorAt(wrong, `${WHERE}.name`)}
      />
      {chosen && (
        <div class="grid">
          {Object.entries(chosen.arguments.properties ?? {}).map(([argument, schema]) => (
            <ArgumentField
              key={`${name}.${argument}`}
              name={argument}
              schema={schema}
              value={draft.args[argument] ?? ""}
              onChange={(text) => set({ [argument]: text })}
              error={errorAt(wrong, `${WHERE}.args.${argument}`)}
            />
          ))}
        </div>
      )}
    </>
  );
}

function offeredBy({ workers }: Environment): string {
  if (!workers.length) return "No worker that is there now offers it; the job waits for one.";
  return `${count(workers.length, "worker")} offer${workers.length === 1 ? "s" : ""} it now.`;
}
