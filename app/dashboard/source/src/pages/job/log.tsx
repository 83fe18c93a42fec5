import { useState } from "preact/hooks";

import { saveText } from "../../lib/download";
import { useLoaded } from "../../lib/hooks";
import { isOver } from "../../lib/jobs";
import { useApi } from "../../lib/session";
import type { Job } from "../../lib/types";
import { Button } from "../../ui/buttons";
import { Failure } from "../../ui/notice";

const LINES = 200;
const POLL_MS = 4000;

/** The end of what the run printed; read once it is opened. */
export function LogTail({ job }: { job: Job }) {
  const [open, setOpen] = useState(false);
  const api = useApi();
  const { data, error } = useLoaded(
    open ? () => api.text(`/fine_tuning/jobs/${job.id}/logs`) : null,
    [job.id, job.status],
    { every: isOver(job) ? 0 : POLL_MS },
  );
  const lines = (data ?? "").trimEnd().split("\n");
  return (
    <details class="card" onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>
        <h2>Log</h2>
      </summary>
      <Failure error={error} doing="The log cannot be read" />
      {data !== undefined && (
        <>
          <pre class="log" tabIndex={0} aria-label="The last lines of the log">
            {lines.slice(-LINES).join("\n") || "Nothing was printed yet."}
          </pre>
          <Button kind="quiet" onClick={() => saveText(data, `${job.id}.log`)}>
            Save the whole log ({lines.length} lines)
          </Button>
        </>
      )}
    </details>
  );
}
