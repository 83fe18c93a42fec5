// Asks a model for a preview, and shows its words as they come.
import { type Api, ApiProblem } from "./api";
import { read } from "./stream";

interface Chunk {
  choices?: { delta: { content?: string }; finish_reason: "stop" | "length" | null }[];
  error?: { message: string; code: string | null; param: string | null };
}

export interface Answer {
  text: string;
  state: "waiting" | "answering" | "whole" | "cut" | "stopped";
  /** How long an answer may be, as the server puts it; null until it answers. */
  limits: { max_tokens: number; timeout_s: number } | null;
}

export const ASKED: Answer = { text: "", state: "waiting", limits: null };

/** Let a model answer, always with the most likely words, so that two compare. */
export async function answer(
  api: Api,
  model: string,
  question: string,
  signal: AbortSignal,
  show: (answer: Answer) => void,
): Promise<void> {
  show(ASKED);
  const messages = [{ role: "user", content: question }];
  const response = await api.request("/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ model, messages, temperature: 0, stream: true }),
    signal,
  });
  let now = { ...ASKED, limits: limitsOf(response.headers.get("x-basin-preview")) };
  for await (const { data } of read(response)) {
    if (data === "[DONE]") return;
    now = after(now, JSON.parse(data) as Chunk);
    show(now);
  }
  throw new ApiProblem(
    0,
    "unreachable",
    null,
    "The connection broke before the answer was whole; ask again.",
  );
}

function after(before: Answer, { choices, error }: Chunk): Answer {
  if (error) throw new ApiProblem(500, error.code, error.param, error.message);
  const [choice] = choices ?? [];
  const text = before.text + (choice?.delta.content ?? "");
  if (choice?.finish_reason)
    return { ...before, text, state: choice.finish_reason === "length" ? "cut" : "whole" };
  return { ...before, text, state: text ? "answering" : "waiting" };
}

/** Read what stands in a header such as max_tokens=256, timeout_s=120. */
function limitsOf(header: string | null): Answer["limits"] {
  const told = Object.fromEntries((header ?? "").split(/,\s*/).map((each) => each.split("=")));
  if (!told.max_tokens || !told.timeout_s) return null;
  return { max_tokens: Number(told.max_tokens), timeout_s: Number(told.timeout_s) };
}
