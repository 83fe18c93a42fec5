// A comparison as it is filled in; what is left empty is not sent, and the server chooses it.
import type { Fields, Json } from "../../lib/types";
import { type Learn, type Texts, methodBody as learning, sent } from "../new-job/draft";

export interface Method {
  name: string;
  peft: Texts;
  perturbation: Texts;
  training: Texts;
}

export interface Draft {
  name: string;
  model: string;
  training_file: string;
  validation_file: string;
  methods: Method[];
  seeds: string;
  equal: "steps" | "passes";
  max_steps: string;
  learn: Learn;
  hyperparameters: Texts;
  /** Of all runs; a method may set some of it for itself. */
  training: Texts;
  sharpness: boolean;
}

const SEEDS = "3"; // what the server takes when it is told nothing

export function emptyDraft(): Draft {
  return {
    name: "",
    model: "",
    training_file: "",
    validation_file: "",
    methods: [plain("LoRA", "none"), plain("LoRA-MGPO", "mgpo")],
    seeds: SEEDS,
    equal: "steps",
    max_steps: "",
    learn: "supervised",
    hyperparameters: {},
    training: {},
    sharpness: true,
  };
}

function plain(name: string, perturbation: string): Method {
  return { name, peft: { method: "lora" }, perturbation: { type: perturbation }, training: {} };
}

/** Copy the last method, to change one thing in it, under a name that is not taken. */
export function another(methods: Method[]): Method {
  const last = methods.at(-1) ?? plain("LoRA", "none");
  const stem = last.name.replace(/ \d+$/, "");
  let number = 2;
  while (methods.some(({ name }) => name === `${stem} ${number}`)) number++;
  return { ...structuredClone(last), name: `${stem} ${number}` };
}

/** Read how many seeds there are, or which; what is neither is sent as it stands, and refused. */
export function seedsOf(text: string): Json {
  const parts = text.split(/[\s,]+/).filter(Boolean);
  const seeds = parts.map((part) => (/^\d+$/.test(part) ? Number(part) : part));
  return seeds.length === 1 && !text.includes(",") ? seeds[0]! : seeds;
}

/** Count the runs; null while the seeds cannot be counted. */
export function runsOf({ methods, seeds }: Draft): number | null {
  const told = seedsOf(seeds);
  const each = Array.isArray(told) ? told.length : told;
  return typeof each === "number" && each > 0 ? methods.length * each : null;
}

/** Write the comparison as it is submitted. */
export function bodyOf(draft: Draft): Fields {
  const training = sent(draft.training);
  return {
    ...(draft.name ? { name: draft.name } : {}),
    model: draft.model,
    training_file: draft.training_file,
    validation_file: draft.validation_file,
    methods: draft.methods.map(methodBody),
    ...(draft.seeds.trim() ? { seeds: seedsOf(draft.seeds) } : {}),
    budget: { equal: draft.equal, ...sent({ max_steps: draft.max_steps }) },
    ...learning(draft),
    ...(Object.keys(training).length ? { training } : {}),
    ...(draft.sharpness ? {} : { evaluation: { sharpness: null } }),
  };
}

function methodBody({ name, peft, perturbation, training }: Method): Fields {
  const own = sent(training);
  return {
    name,
    peft: sent(peft),
    perturbation: sent(perturbation),
    ...(Object.keys(own).length ? { training: own } : {}),
  };
}
