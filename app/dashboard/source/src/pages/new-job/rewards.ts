// What a job is rewarded for and how it learns from that, as text; and as it is sent.
import type { Fields, Job, Json } from "../../lib/types";
import { type Draft, type Texts, sent, texts } from "./draft";

export type Rewarded = Pick<Draft, "format" | "policy" | "grader" | "environment" | "args">;

const FIELDS: Record<string, string[]> = {
  string_check: ["input", "operation", "reference"],
  text_similarity: ["input", "reference", "evaluation_metric"],
  number_match: ["input", "reference"],
};
const OF_STEPS = ["step_discount", "step_weight", "episode_weight"];

/** Whether the model acts in an environment; else a grader judges its answers. */
export function acts({ format, environment }: Pick<Draft, "format" | "environment">): boolean {
  return format === null ? !!environment.name : format === "episode";
}

/** The grader as it is filled in, over what suits the rows. */
export function graderTexts({ format, grader }: Pick<Draft, "format" | "grader">): Texts {
  const answered = format === "chat"; // what the last assistant message says is hidden from the model
  const texts = {
    input: "{{ sample.output_text }}",
    reference: answered ? "{{ item.messages[-1].content }}" : "{{ item.reference_answer }}",
  };
  return {
    type: answered ? "text_similarity" : "string_check",
    operation: "ilike",
    evaluation_metric: "rouge_l",
    ...texts,
    json: JSON.stringify(severalOf(texts), null, 2),
    ...grader,
  };
}

function severalOf(texts: Texts): Fields {
  return {
    type: "multi",
    name: "reward",
    graders: {
      number: { type: "number_match", name: "number", ...texts },
      words: { type: "text_similarity", name: "words", ...texts, evaluation_metric: "rouge_l" },
    },
    calculate_output: "0.9 * number + 0.1 * words",
  };
}

/** Say why rewards cannot be sent yet. */
export function unrewarded(draft: Rewarded): string | null {
  if (acts(draft)) return draft.environment.name ? null : "Choose an environment first.";
  const { type, json = "" } = graderTexts(draft);
  return type === "multi" && parsed(json) === undefined ? "The grader is no JSON yet." : null;
}

/** Take over how a job by reinforcement learns. */
export function rewardsOf({ method }: Job): Partial<Draft> {
  if (method.type !== "reinforcement" || !method.reinforcement) return {};
  const { grader, environment, hyperparameters: _, ...policy } = method.reinforcement;
  const { args, ...acting } = (environment ?? {}) as Fields;
  return {
    learn: "reinforcement",
    policy: texts(policy),
    grader: grader ? graderDraft(grader as Fields) : {},
    environment: texts(acting),
    args: Object.fromEntries(
      Object.entries((args ?? {}) as Fields).map(([name, value]) => [name, JSON.stringify(value)]),
    ),
  };
}

function graderDraft(grader: Fields): Texts {
  if (grader.type !== "multi") return texts(grader);
  return { type: "multi", json: JSON.stringify(grader, null, 2) };
}

/** Write what is beside the hyperparameters of a job by reinforcement. */
export function rewardsBody(draft: Rewarded): Fields {
  const { algorithm, ...policy } = draft.policy;
  const bySteps = acts(draft) && algorithm === "gigpo";
  if (!bySteps) for (const name of OF_STEPS) delete policy[name];
  return {
    ...(acts(draft) ? { environment: environmentBody(draft) } : { grader: graderBody(draft) }),
    ...(bySteps ? { algorithm } : {}),
    ...sent(policy),
  };
}

function environmentBody({ environment: { name = "", ...more }, args }: Rewarded): Fields {
  const given = Object.entries(args).filter(([, text]) => text.trim() !== "");
  const values = given.map(([name, text]): [string, Json] => [name, parsed(text) ?? text]);
  return { name, ...sent(more), ...(given.length ? { args: Object.fromEntries(values) } : {}) };
}

function graderBody(draft: Rewarded): Json {
  const { type = "", name = type, json = "", tolerance = "", ...written } = graderTexts(draft);
  if (type === "multi") return parsed(json) ?? json;
  const fields = (FIELDS[type] ?? []).map((field): [string, Json] => [field, written[field] ?? ""]);
  return {
    type,
    name,
    ...Object.fromEntries(fields),
    ...(type === "number_match" ? sent({ tolerance }) : {}),
  };
}

/** Read JSON; undefined where it is none. */
export function parsed(text: string): Json | undefined {
  try {
    return JSON.parse(text) as Json;
  } catch {
    return undefined;
  }
}
