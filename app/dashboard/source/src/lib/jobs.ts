// What a job is called and what it is, in a few words.
import type { Fields, Job, Status } from "./types";

export const OVER: Status[] = ["succeeded", "failed", "cancelled"];
const PERTURBATIONS: Record<string, string> = { mgpo: "MGPO", random: "Flat", ggpo: "GGPO" };
const METHODS: Record<string, string> = {
  lora: "LoRA",
  rslora: "rsLoRA",
  dora: "DoRA",
  adalora: "AdaLoRA",
  pissa: "PiSSA",
  lora_plus: "LoRA+",
  lora_ga: "LoRA-GA",
  lora_pro: "LoRA-Pro",
  full: "Full",
};

export function isOver({ status }: { status: Status }): boolean {
  return OVER.includes(status);
}

const POLICIES: Record<string, string> = { grpo: "GRPO", gigpo: "GiGPO" };

/** Name the method as the papers do: LoRA, LoRA-MGPO, DoRA-GGPO; LoRA-MGPO by DPO. */
export function methodOf(job: { peft: Fields; perturbation: Fields; method?: Job["method"] }): string {
  const method = `${job.peft.method}`;
  const perturbation = PERTURBATIONS[`${job.perturbation.type}`];
  const name = [METHODS[method] ?? method, perturbation].filter(Boolean).join("-");
  const learns = learnsBy(job.method);
  return learns ? `${name} by ${learns}` : name;
}

function learnsBy(method: Job["method"] | undefined): string | undefined {
  if (method?.type === "dpo") return "DPO";
  return method?.type === "reinforcement" ? POLICIES[`${method.reinforcement?.algorithm}`] : undefined;
}

export function nameOf(job: Job): string {
  return job.suffix ?? methodOf(job);
}

/** The end of an id is enough to tell jobs apart. */
export function shortId(id: string): string {
  return id.slice(-6);
}

export function progressOf(job: Job): number {
  if (job.status === "succeeded") return 1;
  return job.progress.total_steps ? job.progress.step / job.progress.total_steps : 0;
}

/** Settings by their dotted names, as a flat list. */
export function settingsOf(job: Job): [string, string][] {
  const groups: Record<string, Fields> = {
    peft: job.peft,
    perturbation: job.perturbation,
    training: job.training,
    evaluation: job.evaluation,
    resources: job.resources,
    budget: job.budget,
  };
  const settings = Object.entries(groups).flatMap(([group, fields]) =>
    Object.entries(fields).map(([name, value]): [string, string] => [`${group}.${name}`, shown(value)]),
  );
  return [
    ["model", job.model],
    ["task", job.task],
    ["method", job.method.type],
    ...(job.method.type === "dpo" ? [["beta", shown(job.hyperparameters.beta)] as [string, string]] : []),
    ...Object.entries(job.method.reinforcement ?? {})
      .filter(([name]) => name !== "hyperparameters")
      .map(([name, value]): [string, string] => [`reinforcement.${name}`, shown(value)]),
    ["seed", `${job.seed}`],
    ["priority", `${job.priority}`],
    ...settings,
  ];
}

function shown(value: unknown): string {
  if (value === null || value === undefined) return "–";
  return typeof value === "object" ? JSON.stringify(value) : `${value}`;
}
