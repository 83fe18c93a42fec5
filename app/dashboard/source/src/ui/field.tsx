import type { ComponentChildren, JSX } from "preact";
import { useId } from "preact/hooks";

interface Props {
  label: string;
  hint?: ComponentChildren;
  error?: string | undefined;
  /** Is given what ties the control to its label. */
  children: (ties: { id: string; "aria-describedby": string }) => JSX.Element;
}

export function Field({ label, hint, error, children }: Props) {
  const id = useId();
  return (
    <div class="field">
      <label for={id}>{label}</label>
      {children({ id, "aria-describedby": `${id}-hint` })}
      <p id={`${id}-hint`} class={error ? "hint bad" : "hint"}>
        {error ?? hint}
      </p>
    </div>
  );
}

interface TextProps {
  label: string;
  value: string;
  onChange: (value: string) => void;
  hint?: ComponentChildren;
  error?: string | undefined;
  placeholder?: string;
  numeric?: boolean;
}

/** A line of text; what it is when nothing is written stands in it, greyed. */
export function TextField({ label, value, onChange, hint, error, placeholder, numeric }: TextProps) {
  return (
    <Field label={label} hint={hint} error={error}>
      {(ties) => (
        <input
          {...ties}
          value={value}
          placeholder={placeholder}
          inputMode={numeric ? "decimal" : "text"}
          autoComplete="off"
          spellcheck={false}
          aria-invalid={!!error}
          onInput={(event) => onChange(event.currentTarget.value)}
        />
      )}
    </Field>
  );
}

/** Several lines of text, such as a template or JSON. */
export function AreaField({
  label,
  value,
  onChange,
  hint,
  error,
  rows,
}: Omit<TextProps, "placeholder" | "numeric"> & { rows: number }) {
  return (
    <Field label={label} hint={hint} error={error}>
      {(ties) => (
        <textarea
          {...ties}
          class="mono"
          rows={rows}
          value={value}
          autoComplete="off"
          spellcheck={false}
          aria-invalid={!!error}
          onInput={(event) => onChange(event.currentTarget.value)}
        />
      )}
    </Field>
  );
}

interface SelectProps {
  label: string;
  value: string;
  onChange: (value: string) => void;
  options: [value: string, words: string][];
  hint?: ComponentChildren;
  error?: string | undefined;
}

export function SelectField({ label, value, onChange, options, hint, error }: SelectProps) {
  return (
    <Field label={label} hint={hint} error={error}>
      {(ties) => (
        <select
          {...ties}
          value={value}
          aria-invalid={!!error}
          onChange={(event) => onChange(event.currentTarget.value)}
        >
          {options.map(([each, words]) => (
            <option key={each} value={each}>
              {words}
            </option>
          ))}
        </select>
      )}
    </Field>
  );
}
