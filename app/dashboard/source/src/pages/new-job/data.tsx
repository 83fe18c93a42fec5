import { count } from "../../lib/format";
import { useLoaded } from "../../lib/hooks";
import { useApi } from "../../lib/session";
import type { Page, StoredFile } from "../../lib/types";
import { SelectField } from "../../ui/field";
import { Failure } from "../../ui/notice";
import { FileReportView } from "../files/report";
import { UploadBox } from "../files/upload-box";
import { type Draft, type Wrong, errorAt } from "./draft";

type Chosen = Pick<Draft, "model" | "training_file" | "validation_file">;

interface Props {
  draft: Chosen;
  change: (to: Partial<Chosen>) => void;
  wrong: Wrong;
  /** Whether it goes without a validation file. */
  unvalidated?: boolean;
  onFormat: (format: string | null) => void;
}

export function DataStep({ draft, change, wrong, unvalidated = true, onFormat }: Props) {
  const api = useApi();
  const { data, error, reload } = useLoaded(
    (signal) => api.get<Page<StoredFile>>("/files", { purpose: "fine-tune", limit: 500 }, signal),
    [],
  );
  const options = (data?.data ?? []).map((file): [string, string] => [
    file.id,
    `${file.filename} · ${count(file.rows ?? 0, "row")} · ${file.id.slice(-6)}`,
  ]);
  const take = (name: "training_file" | "validation_file") => (file: StoredFile) => {
    reload();
    change({ [name]: file.id });
  };
  return (
    <fieldset class="card">
      <legend>1. Data</legend>
      <Failure error={error} doing="The files cannot be read" />
      <div class="pair">
        <div>
          <SelectField
            label="Training file"
            value={draft.training_file}
            onChange={(id) => change({ training_file: id })}
            options={[["", "Choose one…"], ...options]}
            error={errorAt(wrong, "training_file")}
          />
          <UploadBox label="Upload a training file" onFile={take("training_file")} />
        </div>
        <div>
          <SelectField
            label="Validation file"
            value={draft.validation_file}
            onChange={(id) => change({ validation_file: id })}
            options={[["", unvalidated ? "None" : "Choose one…"], ...options]}
            error={errorAt(wrong, "validation_file")}
          />
          <UploadBox label="Upload a validation file" onFile={take("validation_file")} />
        </div>
      </div>
      {draft.training_file && (
        <FileReportView
          id={draft.training_file}
          model={draft.model}
          validation={draft.validation_file}
          onFormat={onFormat}
        />
      )}
    </fieldset>
  );
}
