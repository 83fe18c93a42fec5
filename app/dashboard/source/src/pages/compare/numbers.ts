// The numbers of compared jobs, ready for a table.
import { phrase } from "../../charts/catalog";
import { duration, number, signed, whole } from "../../lib/format";
import { methodOf, settingsOf } from "../../lib/jobs";
import { type Line, last, lowest } from "../../lib/series";
import type { Attempt, Job } from "../../lib/types";

export interface Compared {
  job: Job;
  lines: Map<string, Line>;
  attempts: Attempt[];
}

export interface Row {
  name: string;
  cells: string[];
}

/** Outcomes first: losses with their difference to the first job, then what they cost. */
export function outcomes(compared: Compared[]): Row[] {
  return [
    row("Method", compared, ({ job }) => methodOf(job)),
    row("Final validation loss", compared, ({ lines }) => number(last(lines.get("valid_loss")))),
    row("Best validation loss", compared, ({ lines }) => bestOf(lines)),
    { name: "Best, against the first", cells: againstFirst(compared) },
    row("Final train loss", compared, ({ lines }) => number(last(lines.get("train_loss")))),
    ...taskMetrics(compared),
    row("Steps", compared, ({ job }) => `${whole(job.progress.step)} of ${whole(job.progress.total_steps)}`),
    row("Trained tokens", compared, ({ job }) =>
      job.trained_tokens === null ? "–" : whole(job.trained_tokens),
    ),
    row("Time running", compared, ({ attempts }) => duration(runningTime(attempts))),
  ];
}

/** The settings in which the jobs differ. */
export function differingSettings(compared: Compared[]): Row[] {
  const settings = compared.map(({ job }) => new Map(settingsOf(job)));
  const names = [...new Set(settings.flatMap((each) => [...each.keys()]))];
  return names
    .map((name) => ({ name, cells: settings.map((each) => each.get(name) ?? "–") }))
    .filter(({ cells }) => new Set(cells).size > 1);
}

function row(name: string, compared: Compared[], cell: (each: Compared) => string): Row {
  return { name, cells: compared.map(cell) };
}

function bestOf(lines: Map<string, Line>): string {
  const best = lowest(lines.get("valid_loss"));
  return best ? `${number(best.value)} at step ${whole(best.step)}` : "–";
}

function againstFirst(compared: Compared[]): string[] {
  const best = compared.map(({ lines }) => lowest(lines.get("valid_loss"))?.value);
  const [first] = best;
  return best.map((value, index) => {
    if (value === undefined || first === undefined) return "–";
    return index ? `${signed(value - first)} (${signed((100 * (value - first)) / first)} %)` : "the first";
  });
}

function taskMetrics(compared: Compared[]): Row[] {
  const names = new Set(compared.flatMap(({ lines }) => [...lines.keys()]));
  names.delete("valid_loss");
  return [...names]
    .filter((name) => name.startsWith("valid_"))
    .map((name) => row(`Final ${phrase(name)}`, compared, ({ lines }) => number(last(lines.get(name)))));
}

function runningTime(attempts: Attempt[]): number | null {
  if (!attempts.length) return null;
  return attempts.reduce(
    (sum, { started_at, ended_at }) => sum + (ended_at ?? Date.now() / 1000) - started_at,
    0,
  );
}
