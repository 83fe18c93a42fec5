import type { Line } from "./series";

/** Write several lines as one table: a row for each step, a column for each line. */
export function csv(lines: Map<string, Line>): string {
  const steps = [...new Set([...lines.values()].flatMap((line) => line.steps))].sort((a, b) => a - b);
  const columns = [...lines.values()].map(
    (line) => new Map(line.steps.map((step, index) => [step, line.values[index]])),
  );
  const head = ["step", ...lines.keys()].map(quoted).join(",");
  const rows = steps.map((step) => [step, ...columns.map((column) => column.get(step) ?? "")].join(","));
  return [head, ...rows, ""].join("\n");
}

function quoted(text: string): string {
  return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
