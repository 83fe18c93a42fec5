import type { Fields } from "../../lib/types";
import { SelectField, TextField } from "../../ui/field";
import { type Groups, type Group, type Wrong, errorAt } from "./draft";

export interface SettingsProps {
  draft: Groups;
  change: (to: Groups) => void;
  wrong: Wrong;
  /** What the server would choose for what is left empty. */
  resolved?: Record<string, Fields> | undefined;
}

/** Where groups stand that are not sent under their own names. */
const SENT: Partial<Record<Group, string>> = {
  policy: "method.reinforcement",
  environment: "method.reinforcement.environment",
};

interface Props extends SettingsProps {
  group: Group;
  name: string;
  label: string;
  hint?: string;
  /** What it is when it is left empty and the server has not said yet. */
  standard?: string;
  options?: [value: string, words: string][];
}

/** One setting of a group: what it is by default stands in it, greyed. */
export function Setting({
  draft,
  change,
  wrong,
  resolved,
  group,
  name,
  label,
  hint,
  standard,
  options,
}: Props) {
  const value = draft[group]?.[name] ?? "";
  const set = (text: string) => change({ [group]: { ...draft[group], [name]: text } });
  const error = errorAt(wrong, `${SENT[group] ?? group}.${name}`);
  if (options) {
    const empty: [string, string][] = standard ? [["", `${standard} (default)`]] : [];
    return (
      <SelectField
        label={label}
        value={value}
        onChange={set}
        options={[...empty, ...options]}
        hint={hint}
        error={error}
      />
    );
  }
  const chosen = (resolved && fieldsOf(resolved, group))?.[name];
  const shown = chosen === undefined || chosen === null || value ? standard : `${chosen}`;
  return (
    <TextField
      label={label}
      value={value}
      onChange={set}
      hint={hint}
      error={error}
      numeric
      {...(shown ? { placeholder: shown } : {})}
    />
  );
}

/** What the server would choose for a group. */
function fieldsOf(resolved: Record<string, Fields>, group: Group): Fields | undefined {
  if (group === "policy") return resolved.method?.reinforcement as Fields | undefined;
  return resolved[group === "hyperparameters" ? "training" : group];
}
