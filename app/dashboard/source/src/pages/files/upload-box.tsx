import { useId, useState } from "preact/hooks";

import { percent } from "../../lib/format";
import { useAction } from "../../lib/hooks";
import { useApi, useRefusal } from "../../lib/session";
import type { StoredFile } from "../../lib/types";
import { upload } from "../../lib/upload";
import { Icon } from "../../ui/icons";
import { Failure } from "../../ui/notice";
import { Bar } from "../../ui/progress";

/** A place to drop a file on, or to choose one: it is checked while it arrives. */
export function UploadBox({
  onFile,
  label = "Upload a training file",
}: {
  onFile: (file: StoredFile) => void;
  label?: string;
}) {
  const api = useApi();
  const refusal = useRefusal("write");
  const { busy, error, run } = useAction();
  const [share, setShare] = useState(0);
  const [over, setOver] = useState(false);
  const id = useId();
  const take = (files: FileList | null | undefined) => {
    const file = files?.[0];
    setOver(false);
    if (!file || refusal || busy) return;
    setShare(0);
    run(async () => onFile(await upload(api, file, setShare)));
  };
  if (refusal) return <p class="hint">{refusal}</p>;
  return (
    <div
      class={over ? "drop over" : "drop"}
      onDragOver={(event) => {
        event.preventDefault();
        setOver(true);
      }}
      onDragLeave={() => setOver(false)}
      onDrop={(event) => {
        event.preventDefault();
        take(event.dataTransfer?.files);
      }}
    >
      <input
        id={id}
        class="unseen"
        type="file"
        accept=".jsonl,.json,.ndjson"
        disabled={busy}
        onChange={(event) => {
          take(event.currentTarget.files);
          event.currentTarget.value = "";
        }}
      />
      <label for={id}>
        <Icon name="upload" />
        <b>{label}</b>
        <span class="sub">Drop a .jsonl here, or press to choose</span>
      </label>
      {busy && (
        <div class="uploading">
          <Bar share={share} label="Upload" />
          <span role="status">{share < 1 ? `Sent ${percent(share)}` : "Checking the rows…"}</span>
        </div>
      )}
      <Failure error={error} doing="The file was not taken" />
    </div>
  );
}
