// Saves what a browser cannot ask for by a link alone: our bytes need the key in a header.
import type { Api } from "./api";

/** Fetch bytes with the key and save them; `progress` hears the share that has come. */
export async function download(
  api: Api,
  path: string,
  filename: string,
  progress: (share: number) => void = () => undefined,
): Promise<void> {
  const response = await api.request(path);
  const size = Number(response.headers.get("Content-Length"));
  const parts: BlobPart[] = [];
  let received = 0;
  const reader = response.body?.getReader();
  for (let piece = await reader?.read(); piece && !piece.done; piece = await reader?.read()) {
    parts.push(piece.value);
    received += piece.value.length;
    if (size) progress(received / size);
  }
  save(new Blob(parts), filename);
}

export function saveText(text: string, filename: string): void {
  save(new Blob([text], { type: "text/csv;charset=utf-8" }), filename);
}

export function save(blob: Blob, filename: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = filename;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
