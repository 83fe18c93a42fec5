// Server-sent events over fetch: EventSource cannot send the key in a header.
import type { Api } from "./api";

export interface Message {
  id: string;
  event: string;
  data: string;
}

/** Yield messages until the server closes; `after` is the id of the last one that was seen. */
export async function* messages(
  api: Api,
  path: string,
  after: string,
  signal: AbortSignal,
): AsyncGenerator<Message> {
  const headers = { Accept: "text/event-stream", ...(after ? { "Last-Event-ID": after } : {}) };
  yield* read(await api.request(path, { headers, signal }));
}

/** Yield the messages that a request is answered with. */
export async function* read(response: Response): AsyncGenerator<Message> {
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
    text += piece.value.replaceAll("\r", "");
    const blocks = text.split("\n\n");
    text = blocks.pop() ?? "";
    for (const block of blocks) {
      const message = parsed(block);
      if (message) yield message;
    }
  }
}

function parsed(block: string): Message | null {
  const message: Message = { id: "", event: "message", data: "" };
  for (const line of block.split("\n")) {
    const colon = line.indexOf(":");
    if (colon < 1) continue; // a comment keeps the line warm
    const value = line.slice(colon + 1).replace(/^ /, "");
    const field = line.slice(0, colon);
    if (field === "data") message.data += value;
    else if (field === "event") message.event = value;
    else if (field === "id") message.id = value;
  }
  return message.data ? message : null;
}
