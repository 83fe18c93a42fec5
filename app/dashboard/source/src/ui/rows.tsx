import type { ComponentChildren } from "preact";

interface Props {
  columns: string[];
  /** What the last column holds, said to a screen reader alone. */
  last?: string;
  compact?: boolean;
  children: ComponentChildren;
}

/** A table whose rows become cards where the page is narrow. */
export function Rows({ columns, last, compact, children }: Props) {
  return (
    <table class={compact ? "rows compact" : "rows"}>
      <thead>
        <tr>
          {columns.map((column) => (
            <th key={column} scope="col">
              {column}
            </th>
          ))}
          {last && (
            <th scope="col">
              <span class="unseen">{last}</span>
            </th>
          )}
        </tr>
      </thead>
      <tbody>{children}</tbody>
    </table>
  );
}
