import type { Page } from "./types";

const LARGEST = 100;

/** Walk the pages of a list until so many are there. */
export async function newest<Item extends { id: string }>(
  wanted: number,
  ask: (query: { limit: number; after?: string }) => Promise<Page<Item>>,
): Promise<Page<Item>> {
  const found: Item[] = [];
  for (;;) {
    const after = found.at(-1)?.id;
    const page = await ask({ limit: Math.min(wanted - found.length, LARGEST), ...(after ? { after } : {}) });
    found.push(...page.data);
    if (!page.has_more || found.length >= wanted) return { data: found, has_more: page.has_more };
  }
}
