// Asks a model for a preview, and passes its words on as they come.
import { type Api, ApiProblem } from "./api";
import { read } from "./stream";

interface Chunk {
  choices?: { delta: { content?: string }; finish_reason: string | null }[];
  error?: { message: string; code: string | null; param: string | null };
}

/** Yield the pieces of a model's answer, always the most likely words, so that two compare. */
export async function* answerOf(
  api: Api,
  model: string,
  question: string,
  signal: AbortSignal,
): AsyncGenerator<string> {
  const messages = [{ role: "user", content: question }];
  const response = await api.request("/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ model, messages, temperature: 0, stream: true }),
    signal,
  });
  for await (const { data } of read(response)) {
    if (data === "[DONE]") return;
    const { choices, error } = JSON.parse(data) as Chunk;
    if (error) throw new ApiProblem(500, error.code, error.param, error.message);
    const piece = choices?.[0]?.delta.content;
    if (piece) yield piece;
  }
}
