// What is filled in, as text; what is left empty is not sent, and the server chooses it.
import { ApiProblem } from "../../lib/api";
import type { Fields, Job, Json } from "../../lib/types";
import { rewardsBody, rewardsOf, unrewarded } from "./rewards";

/** How a job learns: the rows of its file decide what it can be. */
export type Learn = "supervised" | "dpo" | "reinforcement";

export interface Draft {
  model: string;
  training_file: string;
  validation_file: string;
  suffix: string;
  seed: string;
  priority: string;
  /** Of the rows to train on, once it is known. */
  format: string | null;
  learn: Learn;
  policy: Texts;
  grader: Texts;
  environment: Texts;
  /** Arguments of the environment, in JSON. */
  args: Texts;
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
export type Group =
  | "policy"
  | "environment"
  | "hyperparameters"
  | "peft"
  | "perturbation"
  | "training"
  | "resources"
  | "budget";
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
    format: null,
    learn: "supervised",
    policy: {},
    grader: {},
    environment: {},
    args: {},
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
    },
    ...rewardsOf(job),
  };
}

/** What `perturbation.type` none does not know is 0 in the resolved spec, and refused when sent. */
function withoutDefaults(perturbation: Fields): Fields {
  return perturbation.type === "none" ? { type: "none" } : perturbation;
}

/** Write the job as it is submitted. */
export function bodyOf(draft: Draft): Fields {
  const { patience, ...training } = draft.training;
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
    ...methodBody(draft, draft.learn === "reinforcement" ? rewardsBody(draft) : {}),
    ...Object.fromEntries(Object.entries(groups).filter(([, fields]) => Object.keys(fields).length)),
    ...draft.rest,
  };
}

/** How a job can learn from rows of a format: what it does unless told otherwise comes first. */
export function waysOf(format: string | null): [Learn, ...Learn[]] {
  if (format === "prompt_only" || format === "episode") return ["reinforcement"];
  return format === "chat" ? ["supervised", "reinforcement"] : [learnFrom(format)];
}

/** Let a draft learn as its rows allow; rows of another format than before begin with what they do by default. */
export function suited(draft: Draft, format: string | null): Draft {
  const ways = waysOf(format);
  const stays = ways.includes(draft.learn) && [null, format].includes(draft.format);
  return { ...draft, format, learn: stays ? draft.learn : ways[0] };
}

/** How a job learns from rows that have answers. */
export function learnFrom(format: string | null): Learn {
  return format === "preference" ? "dpo" : "supervised";
}

/** Say what has to be filled in before the server can be asked. */
export function missing(draft: Draft): string | null {
  if (!draft.training_file || !draft.model) return "Choose a training file and a model first.";
  return draft.learn === "reinforcement" ? unrewarded(draft) : null;
}

/** Write how a job learns, where that is not what is done by default; `more` stands beside the hyperparameters. */
export function methodBody(
  { learn, hyperparameters }: Pick<Draft, "learn" | "hyperparameters">,
  more: Fields = {},
): Fields {
  const { beta, ...others } = hyperparameters;
  const filled = sent(learn === "dpo" && beta ? { ...others, beta } : others);
  if (learn === "supervised" && !Object.keys(filled).length) return {};
  return { method: { type: learn, [learn]: { ...more, hyperparameters: filled } } };
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

export function texts(fields: Fields): Texts {
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
