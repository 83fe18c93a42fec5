import { useState } from "preact/hooks";

import { ago, bytes, whole } from "../lib/format";
import { useAction, useLoaded } from "../lib/hooks";
import { href } from "../lib/router";
import { useApi, useRefusal } from "../lib/session";
import type { Page as Listing, StoredFile } from "../lib/types";
import { Button, ConfirmButton } from "../ui/buttons";
import { Failure } from "../ui/notice";
import { Empty, Loading, Page } from "../ui/page";
import { FileReportView } from "./files/report";
import { UploadBox } from "./files/upload-box";
import { DownloadButton } from "./job/actions";
import { Rows } from "../ui/rows";

export function Files() {
  const api = useApi();
  const { data, error, reload } = useLoaded(
    (signal) => api.get<Listing<StoredFile>>("/files", { limit: 500 }, signal),
    [],
  );
  return (
    <Page title="Files">
      <UploadBox onFile={reload} />
      <Failure error={error} doing="The files cannot be read" />
      {!data && !error && <Loading />}
      {data && !data.data.length && (
        <Empty title="No file yet">
          <p>
            Upload rows as JSON Lines: <code>{'{"messages": [ … ]}'}</code>,{" "}
            <code>{'{"prompt": …, "completion": …}'}</code>, <code>{'{"text": …}'}</code> or{" "}
            <code>{'{"text": …, "label": …}'}</code>; ten at least.
          </p>
        </Empty>
      )}
      {!!data?.data.length && <Table files={data.data} onChange={reload} />}
    </Page>
  );
}

function Table({ files, onChange }: { files: StoredFile[]; onChange: () => void }) {
  return (
    <Rows columns={["File", "Rows", "Size", "Uploaded"]} last="Actions">
      {files.map((file) => (
        <Row key={file.id} file={file} onChange={onChange} />
      ))}
    </Rows>
  );
}

function Row({ file, onChange }: { file: StoredFile; onChange: () => void }) {
  const api = useApi();
  const refusal = useRefusal("write");
  const { busy, error, run } = useAction();
  const [open, setOpen] = useState(false);
  const training = file.purpose === "fine-tune";
  const remove = () =>
    run(async () => {
      await api.delete(`/files/${file.id}`);
      onChange();
    });
  return (
    <>
      <tr>
        <th scope="row">
          <span class="name">{file.filename}</span>
          <span class="sub">
            {file.purpose} · <code>{file.id}</code>
          </span>
        </th>
        <td data-label="Rows">{file.rows === null ? "–" : whole(file.rows)}</td>
        <td data-label="Size">{bytes(file.bytes)}</td>
        <td data-label="Uploaded">{ago(file.created_at)}</td>
        <td class="end">
          <span class="actions">
            {training && (
              <Button
                kind="quiet"
                label={`${open ? "Hide" : "Show"} the report of ${file.filename}`}
                onClick={() => setOpen(!open)}
              >
                {open ? "Hide report" : "Report"}
              </Button>
            )}
            {training && !refusal && (
              <a
                class="button"
                href={href("/new", { file: file.id })}
                aria-label={`Train on ${file.filename}`}
              >
                Train
              </a>
            )}
            <DownloadButton
              path={`/files/${file.id}/content`}
              filename={file.filename}
              words="Save"
              label={`Download ${file.filename}`}
            />
            <ConfirmButton
              kind="quiet"
              refusal={refusal}
              busy={busy}
              label={`Delete ${file.filename}`}
              onClick={remove}
              question={`Delete ${file.filename}?`}
              answer="Delete it"
            >
              Delete
            </ConfirmButton>
          </span>
          <Failure error={error} doing="It was not deleted" />
        </td>
      </tr>
      {open && (
        <tr>
          <td colSpan={5}>
            <FileReportView id={file.id} />
          </td>
        </tr>
      )}
    </>
  );
}
