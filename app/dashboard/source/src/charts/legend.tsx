import { whole } from "../lib/format";
import { type Drawing, type Trace, hueOf } from "./traces";

interface Props {
  traces: Trace[];
  drawing: Drawing;
  /** The row that is pointed at; null shows the newest values. */
  row: number | null;
  format: (value: number) => string;
}

/** Name each line and say its value where the cursor is, or the newest. */
export function Legend({ traces, drawing, row, format }: Props) {
  const [steps] = drawing.data;
  const at = row ?? steps.length - 1;
  return (
    <ul class="legend">
      {traces.map((trace, index) => (
        <li key={trace.label}>
          <Swatch trace={trace} />
          <span class="legend-label">{drawing.names[index]}</span>
          <b>{valueAt(drawing, index, at, format)}</b>
        </li>
      ))}
      <li class="legend-step">{row === null ? "" : `step ${whole(steps[row] ?? 0)}`}</li>
    </ul>
  );
}

function Swatch({ trace }: { trace: Trace }) {
  const stroke = hueOf(trace);
  return (
    <svg class="swatch" viewBox="0 0 18 8" aria-hidden="true">
      <path d="M0 4H18" stroke={stroke} stroke-width="2" stroke-dasharray={trace.dash?.join(" ") ?? ""} />
      {trace.kind === "points" && (
        <circle cx="9" cy="4" r="3" fill="var(--surface)" stroke={stroke} stroke-width="1.5" />
      )}
    </svg>
  );
}

function valueAt(drawing: Drawing, index: number, row: number, format: (value: number) => string): string {
  const column = drawing.data[drawing.shown[index] ?? 0];
  for (let at = row; column && at >= 0; at--) {
    const value = column[at];
    if (value !== null && value !== undefined) return format(value);
  }
  return "–";
}
