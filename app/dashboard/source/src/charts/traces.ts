// From a job's lines to what a chart draws.
import type uPlot from "uplot";

import { type Line, smooth } from "../lib/series";
import { colour } from "../lib/theme";

export interface Trace {
  label: string;
  line: Line;
  /** Which of the page's series colours, from 1. */
  hue: number;
  /** Curves are smoothed over their faint raw values; points are few and shown as they are. */
  kind: "curve" | "points";
  /** Tells apart what has one colour. */
  dash?: number[];
}

/** A column of the chart: a trace, its raw values behind it, or an edge of its band. */
interface Column {
  trace: Trace;
  role: "shown" | "raw" | "low" | "high";
  line: Line;
}

export interface Drawing {
  data: uPlot.AlignedData;
  series: uPlot.Series[];
  bands: uPlot.Band[];
  /** What the legend calls each trace: what is smoothed says so. */
  names: string[];
  /** The index in `data` of what stands for each trace in the legend. */
  shown: number[];
}

export const SERIES_COLOURS = 8;

/** The page's name for a hue; they come round again. */
export function seriesName(hue: number): string {
  return `--series-${((hue - 1) % SERIES_COLOURS) + 1}`;
}

export function draw(traces: Trace[], weight: number, log: boolean): Drawing {
  const columns = traces.flatMap((trace) => columnsOf(trace, weight));
  const steps = [...new Set(columns.flatMap(({ line }) => line.steps))].sort((a, b) => a - b);
  const rows = new Map(steps.map((step, row) => [step, row]));
  return {
    data: [steps, ...columns.map(({ line }) => aligned(line, rows, log))],
    series: [{ label: "step" }, ...columns.map(seriesOf)],
    bands: bandsOf(columns),
    names: traces.map((trace) => (isSmoothed(trace, weight) ? `${trace.label}, smoothed` : trace.label)),
    shown: traces.map(
      (trace) => 1 + columns.findIndex((each) => each.trace === trace && each.role === "shown"),
    ),
  };
}

export function hueOf(trace: Trace, opacity = 1): string {
  return colour(seriesName(trace.hue), opacity);
}

function isSmoothed(trace: Trace, weight: number): boolean {
  return trace.kind === "curve" && weight > 0;
}

function columnsOf(trace: Trace, weight: number): Column[] {
  const { line } = trace;
  const shown: Column = { trace, role: "shown", line };
  if (trace.kind === "points") return [shown];
  const columns: Column[] = [];
  if (line.low && line.high) {
    columns.push({ trace, role: "high", line: { steps: line.steps, values: line.high } });
    columns.push({ trace, role: "low", line: { steps: line.steps, values: line.low } });
  }
  if (isSmoothed(trace, weight)) {
    if (!columns.length) columns.push({ trace, role: "raw", line });
    shown.line = { steps: line.steps, values: smooth(line.values, weight) };
  }
  return [...columns, shown];
}

function aligned(line: Line, rows: Map<number, number>, log: boolean): (number | null)[] {
  const values: (number | null)[] = new Array(rows.size).fill(null);
  line.steps.forEach((step, index) => {
    const value = line.values[index] ?? null;
    values[rows.get(step)!] = log && value !== null && value <= 0 ? null : value;
  });
  return values;
}

function seriesOf({ trace, role }: Column): uPlot.Series {
  const points = trace.kind === "points" && role === "shown";
  return {
    label: trace.label,
    stroke: role === "shown" ? hueOf(trace) : role === "raw" ? hueOf(trace, 0.38) : "transparent",
    width: role === "shown" ? 2 : 1,
    ...(trace.dash ? { dash: trace.dash } : {}),
    spanGaps: true,
    points: { show: points, size: 7, fill: colour("--surface"), width: 2 },
  };
}

function bandsOf(columns: Column[]): uPlot.Band[] {
  return columns.flatMap((column, index) =>
    column.role === "high"
      ? [{ series: [index + 1, index + 2] as [number, number], fill: hueOf(column.trace, 0.16) }]
      : [],
  );
}
