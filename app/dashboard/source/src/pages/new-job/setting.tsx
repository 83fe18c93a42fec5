import { SelectField, TextField } from "../../ui/field";
import type { Draft, Group, StepProps } from "./draft";

interface Props extends StepProps {
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
  const value = draft[group][name] ?? "";
  const set = (text: string) => change({ [group]: { ...draft[group], [name]: text } } as Partial<Draft>);
  if (options) {
    const empty: [string, string][] = standard ? [["", `${standard} (default)`]] : [];
    return (
      <SelectField label={label} value={value} onChange={set} options={[...empty, ...options]} hint={hint} />
    );
  }
  const chosen = resolved?.[group === "hyperparameters" ? "training" : group]?.[name];
  const error = wrong?.param === `${group}.${name}` ? wrong.message : undefined;
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
