import type { Api } from "./api";
import type { StoredFile } from "./types";

const PART_BYTES = 32 << 20;
export const WHOLE_BYTES = 128 << 20;

/** Upload a training file: whole, or in parts where it is large. `progress` hears the share sent. */
export async function upload(api: Api, file: File, progress: (share: number) => void): Promise<StoredFile> {
  const sent = (bytes: number) => progress(file.size ? Math.min(bytes / file.size, 1) : 1);
  if (file.size > WHOLE_BYTES) return uploadInParts(api, file, sent);
  const form = new FormData();
  form.append("purpose", "fine-tune"); // before the file: rows are checked while they arrive
  form.append("file", file, file.name);
  return api.form<StoredFile>("/files", form, sent);
}

async function uploadInParts(api: Api, file: File, sent: (bytes: number) => void): Promise<StoredFile> {
  const about = { filename: file.name, bytes: file.size, mime_type: "text/jsonl", purpose: "fine-tune" };
  const { id } = await api.post<{ id: string }>("/uploads", about);
  const parts: string[] = [];
  for (let start = 0; start < file.size; start += PART_BYTES) {
    const form = new FormData();
    form.append("data", file.slice(start, start + PART_BYTES), "part");
    const part = await api.form<{ id: string }>(`/uploads/${id}/parts`, form, (bytes) => sent(start + bytes));
    parts.push(part.id);
  }
  const done = await api.post<{ file: StoredFile }>(`/uploads/${id}/complete`, { part_ids: parts });
  return done.file;
}
