// A job's metrics by optimizer step, as they come in one by one or all at once.
import type { SeriesOut, Value } from "./types";

export interface Line {
  steps: number[];
  values: (number | null)[];
  /** The smallest and largest of each bucket, where the server has put steps together. */
  low?: (number | null)[];
  high?: (number | null)[];
}

export class Metrics {
  private readonly byName = new Map<string, Map<number, number>>();
  private attempt = 0;

  /** Take one step's values; a later attempt that goes back replaces what the one before it did. */
  add(step: number, attempt: number, values: Record<string, Value>): void {
    if (attempt > this.attempt) {
      this.forget(step);
      this.attempt = attempt;
    }
    for (const [name, value] of Object.entries(values)) {
      const series = this.byName.get(name) ?? new Map<number, number>();
      series.set(step, Number(value));
      this.byName.set(name, series);
    }
  }

  lines(): Map<string, Line> {
    return new Map([...this.byName].map(([name, series]) => [name, lineOf(series)]));
  }

  private forget(from: number): void {
    for (const series of this.byName.values()) {
      for (const step of series.keys()) if (step >= from) series.delete(step);
    }
  }
}

export function linesOf(series: SeriesOut[]): Map<string, Line> {
  return new Map(series.map((each) => [each.name, each.agg === "raw" ? rawLine(each) : bucketLine(each)]));
}

/** Smooth like an exponential moving average that starts at its first value without a bias. */
export function smooth(values: (number | null)[], weight: number): (number | null)[] {
  if (weight <= 0) return values;
  let sum = 0;
  let norm = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    norm = weight * norm + (1 - weight);
    return sum / norm;
  });
}

export function last(line: Line | undefined): number | null {
  return line?.values.findLast((value) => value !== null) ?? null;
}

type Point = { step: number; value: number };

/** Return the smallest value and where it was first. */
export function lowest(line: Line | undefined): Point | null {
  return bestOf(line, (value, best) => value < best);
}

/** Return the largest value and where it was first. */
export function highest(line: Line | undefined): Point | null {
  return bestOf(line, (value, best) => value > best);
}

function bestOf(line: Line | undefined, better: (value: number, best: number) => boolean): Point | null {
  let best: Point | null = null;
  line?.values.forEach((value, index) => {
    if (value !== null && (best === null || better(value, best.value)))
      best = { step: line.steps[index]!, value };
  });
  return best;
}

function lineOf(series: Map<number, number>): Line {
  const steps = [...series.keys()].sort((a, b) => a - b);
  return { steps, values: steps.map((step) => finite(series.get(step)!)) };
}

function rawLine({ points }: SeriesOut): Line {
  return { steps: column(points, 0).map(Number), values: column(points, 1).map(finite) };
}

function bucketLine({ points }: SeriesOut): Line {
  return {
    steps: column(points, 0).map(Number),
    values: column(points, 3).map(finite),
    low: column(points, 1).map(finite),
    high: column(points, 2).map(finite),
  };
}

function column(points: Value[][], index: number): Value[] {
  return points.map((point) => point[index]!);
}

function finite(value: Value): number | null {
  const read = Number(value);
  return Number.isFinite(read) ? read : null;
}
