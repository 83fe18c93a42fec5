// What rollouts come to, as they are coloured and named.
import { number } from "./format";
import type { Rollout, Turn, Value } from "./types";

const DIGITS = 3;
const FAINTEST = 8;
const STRONGEST = 40; // percent of a colour, over which text can still be read

export interface Tint {
  class: string;
  style: { "--share": string };
}

/** Colour a value by its sign, the stronger the nearer it is to the largest there is. */
export function tint(value: Value | null, largest: number): Tint {
  const of = Number(value ?? 0);
  const share = largest > 0 && Number.isFinite(of) ? Math.min(Math.abs(of) / largest, 1) : 0;
  const strength = of ? FAINTEST + (STRONGEST - FAINTEST) * share : 0;
  return { class: of > 0 ? "up" : of < 0 ? "down" : "even", style: { "--share": `${strength.toFixed(1)}%` } };
}

/** What a turn was worth beside the others: by its step where the algorithm tells, or by its episode. */
export function worth(turn: Turn): Value {
  return turn.step_advantage ?? turn.episode_advantage;
}

export function largestOf(values: Value[]): number {
  return Math.max(0, ...values.map((each) => Math.abs(Number(each))).filter(Number.isFinite));
}

export function mean(values: Value[]): number {
  return values.reduce<number>((sum, each) => sum + Number(each), 0) / Math.max(values.length, 1);
}

export function advantage(value: Value): string {
  return `${Number(value) > 0 ? "+" : ""}${reward(value)}`;
}

export function reward(value: Value): string {
  return number(Number(value), DIGITS);
}

/** How an episode ended; a single answer just ends. */
export function endingOf({ failure, success }: Rollout): string | null {
  if (failure !== null) return "broken off";
  return success === null ? null : success ? "success" : "no success";
}

/** Whether the rollouts are single answers to a prompt, not episodes. */
export function areAnswers(group: Rollout[]): boolean {
  return group.every(({ turns }) => turns.length <= 1 && turns.every(({ state }) => state === null));
}
