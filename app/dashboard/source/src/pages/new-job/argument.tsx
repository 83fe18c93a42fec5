// A field for an argument of an environment, made from its JSON schema; its value is JSON as text.
import type { Json, Schema } from "../../lib/types";
import { SelectField, TextField } from "../../ui/field";
import { parsed } from "./rewards";

interface Props {
  name: string;
  schema: Schema;
  value: string;
  onChange: (value: string) => void;
  error: string | undefined;
}

export function ArgumentField({ name, schema, value, onChange, error }: Props) {
  const label = labelOf(name);
  const standard = schema.default === undefined ? null : wordsOf(schema.default);
  const choices = choicesOf(schema);
  if (choices) {
    const empty = standard === null ? "Choose one…" : `${standard} (default)`;
    const options = choices
      .filter((each) => each !== schema.default)
      .map((each): [string, string] => [JSON.stringify(each), wordsOf(each)]);
    return (
      <SelectField
        label={label}
        value={value === JSON.stringify(schema.default) ? "" : value}
        onChange={onChange}
        options={[["", empty], ...options]}
        hint={schema.description}
        error={error}
      />
    );
  }
  const quoted = isText(schema);
  const written = quoted && value ? `${parsed(value) ?? value}` : value;
  return (
    <TextField
      label={label}
      value={written}
      onChange={(text) => onChange(quoted && text ? JSON.stringify(text) : text)}
      hint={schema.description ?? boundsOf(schema)}
      error={error}
      numeric={!quoted}
      {...(standard === null ? {} : { placeholder: standard })}
    />
  );
}

/** All that an argument can be, where these are few; null where it is written. */
function choicesOf(schema: Schema): Json[] | null {
  if (schema.anyOf) {
    const each = schema.anyOf.map(choicesOf);
    return each.includes(null) ? null : each.flatMap((choices) => choices ?? []);
  }
  if (schema.enum) return schema.enum;
  if (schema.const !== undefined) return [schema.const];
  if (schema.type === "boolean") return [true, false];
  return schema.type === "null" ? [null] : null;
}

function isText(schema: Schema): boolean {
  return schema.type === "string" || !!schema.anyOf?.some(isText);
}

function labelOf(name: string): string {
  const words = name.replaceAll("_", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}

function wordsOf(value: Json): string {
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (value === null) return "not set";
  return typeof value === "object" ? JSON.stringify(value) : `${value}`;
}

function boundsOf({ minimum, maximum }: Schema): string | undefined {
  if (minimum === undefined && maximum === undefined) return undefined;
  if (maximum === undefined) return `At least ${minimum}.`;
  return minimum === undefined ? `At most ${maximum}.` : `${minimum} to ${maximum}.`;
}
