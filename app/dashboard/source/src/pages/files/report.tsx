import { useEffect } from "preact/hooks";

import { count, whole } from "../../lib/format";
import { useLoaded } from "../../lib/hooks";
import { useApi } from "../../lib/session";
import type { FileReport } from "../../lib/types";
import { Failure, Notice } from "../../ui/notice";

interface Props {
  id: string;
  model?: string;
  validation?: string | null;
  /** Told of what kind the rows are, once that is known. */
  onFormat?: (format: string | null) => void;
}

/** What a training file is like: its lengths, its labels, and what is doubtful in it. */
export function FileReportView({ id, model, validation, onFormat }: Props) {
  const api = useApi();
  const { data, error } = useLoaded(
    (signal) =>
      api.get<FileReport>(
        `/files/${id}/report`,
        { model: model || null, validation_file: validation || null },
        signal,
      ),
    [id, model, validation],
  );
  useEffect(() => {
    if (data) onFormat?.(data.format);
  }, [data]);
  return (
    <div class="report" aria-live="polite">
      <Failure error={error} doing="The file cannot be judged" />
      {!data && !error && <p class="muted">Looking at the rows…</p>}
      {data && <Facts report={data} />}
      {data?.findings.map((each) => (
        <Notice
          key={each.code}
          kind={each.severity}
          title={`${each.code.replaceAll("_", " ")} (${whole(each.count)})`}
        >
          <p>
            {each.message}
            {each.lines.length > 0 &&
              ` Lines ${each.lines.join(", ")}${each.count > each.lines.length ? ", …" : ""}.`}
          </p>
        </Notice>
      ))}
      {data && !data.findings.length && (
        <Notice kind="good" title="Nothing doubtful was found">
          {data.tokens?.max_length && (
            <p>
              No row is longer than {whole(data.tokens.max_length)} tokens, where this model cuts unless the
              job’s max_length is lower.
            </p>
          )}
        </Notice>
      )}
    </div>
  );
}

function Facts({ report }: { report: FileReport }) {
  const { tokens } = report;
  const about = tokens?.estimated ? "about " : "";
  return (
    <p class="muted">
      {count(report.rows, "row")} of the format {report.format ?? "unknown"}.
      {tokens &&
        ` Tokens of a row: ${about}${whole(tokens.median)} in the median, up to ${whole(tokens.p95)} in 95 % of them, ${whole(tokens.max)} at most.`}
      {!!report.labels.length &&
        ` Labels: ${report.labels.map(({ label, rows }) => `${label} (${whole(rows)})`).join(", ")}.`}
    </p>
  );
}
