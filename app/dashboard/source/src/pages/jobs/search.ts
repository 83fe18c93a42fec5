// Finds jobs by words and status. The API lists them by age alone, so older pages are looked through.
import { methodOf, nameOf } from "../../lib/jobs";
import type { Job, Page as Listing, Status } from "../../lib/types";

export interface Filter {
  words: string;
  status: Status | "all";
}

export const NO_FILTER: Filter = { words: "", status: "all" };
const PAGE = 50;
const LARGEST_PAGE = 100;
const LOOKED_THROUGH = 1000;

export function isOn({ words, status }: Filter): boolean {
  return words.trim() !== "" || status !== "all";
}

export function matches(job: Job, { words, status }: Filter): boolean {
  return (status === "all" || job.status === status) && says(job, words);
}

/** Read the newest jobs until enough match or, with a filter, so many were looked through.
 * `times` is how often more were asked for. */
export async function find(
  filter: Filter,
  times: number,
  ask: (query: { limit: number; after?: string }) => Promise<Listing<Job>>,
): Promise<Listing<Job>> {
  const wanted = PAGE * times;
  const most = isOn(filter) ? LOOKED_THROUGH * times : wanted;
  const data: Job[] = [];
  for (let matching = 0; ;) {
    const after = data.at(-1)?.id;
    const limit = Math.min(most - data.length, LARGEST_PAGE);
    const page = await ask({ limit, ...(after ? { after } : {}) });
    data.push(...page.data);
    matching += page.data.filter((job) => matches(job, filter)).length;
    if (!page.has_more || matching >= wanted || data.length >= most) {
      return { data, has_more: page.has_more };
    }
  }
}

function says(job: Job, words: string): boolean {
  const text = [
    nameOf(job),
    job.id,
    job.model,
    methodOf(job),
    job.fine_tuned_model,
    job.training_file,
    ...Object.entries(job.metadata ?? {}).flat(),
  ]
    .join(" ")
    .toLowerCase();
  return words
    .toLowerCase()
    .split(/\s+/)
    .every((word) => text.includes(word));
}
