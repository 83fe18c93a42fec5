// What is filled in, as text; what is left empty is not sent, and the server chooses it.
import { ApiProblem } from "../../lib/api";
import type { Fields, Job, Json } from "../../lib/types";

/** How a job learns: the rows of its file decide. */
export type Learn = "supervised" | "dpo";

export interface Draft {
  model: string;
  training_file: string;
  validation_file: string;
  suffix: string;
  seed: string;
  priority: string;
  learn: Learn;
  hyperparameters: Texts;
  peft: Texts;
  perturbation: Texts;
  training: Texts;
  resources: Texts;
  budget: Texts;
  /** What the form has no field for: kept from a job that was cloned. */
  rest: Fields;
}

export type Texts = Record<string, string>;
export type Group = "hyperparameters" | "peft" | "perturbation" | "training" | "resources" | "budget";
export type Groups = Partial<Record<Group, Texts>>;

/** What the server does not take, and which field it is about. */
export type Wrong = { param: string | null; message: string } | null;

export interface StepProps {
  draft: Draft;
  change: (to: Partial<Draft>) => void;
  wrong: Wrong;
  /** What the server would choose for what is left empty. */
  resolved: Record<string, Fields> | undefined;
}

export function problemOf(error: unknown): ApiProblem | null {
  return error instanceof ApiProblem && error.param ? error : null;
}

export function errorAt(wrong: Wrong, name: string): string | undefined {
  return wrong?.param === name ? wrong.message : undefined;
}

export function emptyDraft(): Draft {
  return {
    model: "",
    training_file: "",
    validation_file: "",
    suffix: "",
    seed: "",
    priority: "",
    learn: "supervised",
    hyperparameters: {},
    peft: { method: "lora" },
    perturbation: { type: "mgpo" },
    training: {},
    resources: {},
    budget: {},
    rest: {},
  };
}

/** Fill the form with what a job was told, resolved as it was. */
export function draftOf(job: Job): Draft {
  const { n_epochs, batch_size, early_stopping, ...training } = job.training;
  const { target_modules, ...peft } = job.peft;
  if (peft.from) for (const name of Object.keys(peft)) if (name !== "from") delete peft[name]; // it brings them along
  return {
    ...emptyDraft(),
    model: job.model,
    training_file: job.training_file,
    validation_file: job.validation_file ?? "",
    suffix: job.suffix ?? "",
    seed: `${job.seed}`,
    priority: job.priority ? `${job.priority}` : "",
    learn: job.method.type === "dpo" ? "dpo" : "supervised",
    hyperparameters: texts({
      n_epochs: n_epochs ?? null,
      batch_size: batch_size ?? null,
      beta: job.hyperparameters.beta ?? null,
    }),
    peft: {
      ...texts(peft),
      ...(peft.from
        ? {}
        : { target_modules: Array.isArray(target_modules) ? target_modules.join(", ") : "" }),
    },
    perturbation: texts(withoutDefaults(job.perturbation)),
    training: { ...texts(training), ...earlyStopping(early_stopping) },
    resources: texts(job.resources),
    budget: texts(job.budget),
    rest: {
      ...(job.evaluation.sharpness ? { evaluation: job.evaluation } : {}),
      ...(job.metadata ? { metadata: job.metadata } : {}),
      ...(job.integrations.length ? { integrations: job.integrations } : {}),
      ...(job.method.type === "reinforcement" ? { method: job.method as Fields } : {}),
    },
  };
}

/** What `perturbation.type` none does not know is 0 in the resolved spec, and refused when sent. */
function withoutDefaults(perturbation: Fields): Fields {
  return perturbation.type === "none" ? { type: "none" } : perturbation;
}

/** Write the job as it is submitted. */
export function bodyOf(draft: Draft): Fields {
  const { patience, ...training } = draft.training;
  const { method, ...rest } = draft.rest;
  const stop: Fields = patience ? { early_stopping: { patience: Number(patience) } } : {};
  const groups: Record<string, Fields> = {
    peft: sent(draft.peft),
    perturbation: sent(draft.perturbation),
    training: { ...sent(training), ...stop },
    resources: sent(draft.resources),
    budget: sent(draft.budget),
  };
  return {
    ...sent({
      model: draft.model,
      training_file: draft.training_file,
      validation_file: draft.validation_file,
      suffix: draft.suffix,
      seed: draft.seed,
      priority: draft.priority,
    }),
    model: draft.model,
    ...(draft.suffix ? { suffix: draft.suffix } : {}),
    ...(method ? reinforcementBody(method as Fields, draft.hyperparameters) : methodBody(draft)),
    ...Object.fromEntries(Object.entries(groups).filter(([, fields]) => Object.keys(fields).length)),
    ...rest,
  };
}

/** Write how a reinforcement job that was cloned learns: as it did, but for what the form has fields for. */
function reinforcementBody(method: Fields, { beta: _, ...filled }: Texts): Fields {
  const asked = (method.reinforcement ?? {}) as Fields;
  const reinforcement = {
    ...asked,
    hyperparameters: { ...((asked.hyperparameters ?? {}) as Fields), ...sent(filled) },
  };
  return { method: { type: "reinforcement", reinforcement } };
}

export function learnFrom(format: string | null): Learn {
  return format === "preference" ? "dpo" : "supervised";
}

/** Write how a job learns, where that is not what is done by default. */
export function methodBody({ learn, hyperparameters }: Pick<Draft, "learn" | "hyperparameters">): Fields {
  const { beta, ...others } = hyperparameters;
  const filled = sent(learn === "dpo" && beta ? { ...others, beta } : others);
  if (learn === "supervised" && !Object.keys(filled).length) return {};
  return { method: { type: learn, [learn]: { hyperparameters: filled } } };
}

/** Take over a change that is named by dotted names, such as training.micro_batch_size. */
export function changed(draft: Draft, change: Fields): Draft {
  const groups = { ...draft };
  for (const [dotted, value] of Object.entries(change)) {
    const [asked, name] = dotted.split(".") as [Group, string];
    const group = ["n_epochs", "batch_size"].includes(name) ? "hyperparameters" : asked; // as they are sent
    if (name) groups[group] = { ...groups[group], [name]: value === null ? "" : `${value}` };
  }
  return groups;
}

function texts(fields: Fields): Texts {
  return Object.fromEntries(
    Object.entries(fields)
      .filter(([, value]) => value !== null)
      .map(([name, value]) => [name, `${value}`]),
  );
}

function earlyStopping(value: Json | undefined): Texts {
  return value && typeof value === "object" && !Array.isArray(value) ? { patience: `${value.patience}` } : {};
}

export function sent(written: Texts): Fields {
  const filled = Object.entries(written).filter(([, text]) => text.trim() !== "");
  return Object.fromEntries(filled.map(([name, text]) => [name, valueOf(name, text.trim())]));
}

function valueOf(name: string, text: string): Json {
  if (name === "target_modules") return text === "all-linear" ? text : text.split(/[\s,]+/);
  if (text === "true" || text === "false") return text === "true";
  return text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
}
