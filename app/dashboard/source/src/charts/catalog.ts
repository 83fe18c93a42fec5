// Which metrics make which panel of a job, and how their values read.
import { bytes, number } from "../lib/format";
import type { Line } from "../lib/series";
import type { Trace } from "./traces";

export interface PanelSpec {
  id: string;
  title: string;
  hint?: string;
  traces: Trace[];
  format?: (value: number) => string;
}

interface Known {
  id: string;
  title: string;
  hint?: string;
  names: [name: string, label: string, hue: number][];
  format?: (value: number) => string;
}

const KNOWN: Known[] = [
  { id: "learning_rate", title: "Learning rate", names: [["learning_rate", "learning rate", 3]] },
  { id: "grad_norm", title: "Gradient norm", names: [["grad_norm", "gradient norm", 4]] },
  {
    id: "perturbation",
    title: "Perturbation size",
    hint: "The longest step away from the clean weights, of any module.",
    names: [["perturbation_norm_max", "largest norm", 5]],
  },
  {
    id: "perturbation_scale",
    title: "Perturbation scale",
    names: [
      ["perturbation_scale_mean", "mean scale", 5],
      ["perturbation_clamped_share", "clamped share", 2],
      ["perturbation_noise_ratio", "noise / weight", 5],
    ],
  },
  { id: "tokens_per_second", title: "Tokens per second", names: [["tokens_per_second", "tokens/s", 6]] },
  { id: "memory", title: "Memory", names: [["memory_bytes", "memory", 7]], format: bytes },
];

const LOSSES = ["train_loss", "valid_loss"];
const FIRST = ["reward_mean", "success_rate"]; // what a policy learns for

/** The panel that matters most: both losses on one axis. */
export function lossTraces(lines: Map<string, Line>): Trace[] {
  const traces: Trace[] = [];
  const train = lines.get("train_loss");
  const valid = lines.get("valid_loss");
  if (train) traces.push({ label: "train loss", line: train, hue: 1, kind: "curve" });
  if (valid) traces.push({ label: "clean validation loss", line: valid, hue: 2, kind: "points" });
  return traces;
}

/** The panels beside the losses that this job has values for; what is not known gets its own. */
export function otherPanels(lines: Map<string, Line>): PanelSpec[] {
  const known = KNOWN.flatMap(({ names, ...spec }): PanelSpec[] => {
    const traces = names.flatMap(([name, label, hue]): Trace[] => {
      const line = lines.get(name);
      return line ? [{ label, line, hue, kind: "curve" }] : [];
    });
    return traces.length ? [{ ...spec, traces }] : [];
  });
  const taken = new Set([...LOSSES, ...KNOWN.flatMap(({ names }) => names.map(([name]) => name))]);
  return [...pairs(lines, taken), ...known];
}

/** Metrics of the task: what is measured in training and in validation shares a panel. */
function pairs(lines: Map<string, Line>, taken: Set<string>): PanelSpec[] {
  const groups = new Map<string, Trace[]>();
  for (const [name, line] of [...lines].sort(([a], [b]) => a.localeCompare(b))) {
    if (taken.has(name)) continue;
    const [, side, of] = /^(train|valid)_(.+)$/.exec(name) ?? [null, "", name];
    const traces = groups.get(of!) ?? [];
    traces.push({
      label: phrase(name),
      line,
      hue: side === "valid" ? 2 : 1,
      kind: side === "valid" ? "points" : "curve",
    });
    groups.set(of!, traces);
  }
  const place = (of: string) => (FIRST.includes(of) ? FIRST.indexOf(of) : FIRST.length);
  const ordered = [...groups].sort(([a], [b]) => place(a) - place(b));
  return ordered.map(([of, traces]) => ({ id: of, title: words(of), traces, format: number }));
}

/** Name a metric for people, as it stands within a sentence or a legend. */
export function phrase(name: string): string {
  if (name === "valid_loss") return "clean validation loss";
  return name
    .replace(/^valid_/, "validation ")
    .replace(/^grad_/, "gradient ")
    .replaceAll("_", " ")
    .replace("mean token accuracy", "token accuracy");
}

/** Name a metric for people, as a title. */
export function words(name: string): string {
  const text = phrase(name);
  return text.charAt(0).toUpperCase() + text.slice(1);
}
