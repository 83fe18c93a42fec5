import { roughly } from "../../lib/format";
import type { Job } from "../../lib/types";
import { Notice } from "../../ui/notice";

/** Say why a job failed, or why it does not run yet. */
export function Diagnosis({ job }: { job: Job }) {
  if (job.error) {
    return (
      <Notice kind="error" title={`It failed: ${job.error.code}`}>
        <p>{job.error.message}</p>
        {job.error.param && (
          <p class="hint">
            About the field <code>{job.error.param}</code>.
          </p>
        )}
      </Notice>
    );
  }
  if (job.status === "paused") {
    return (
      <Notice kind="info" title="It is paused">
        <p>It goes on from its last checkpoint once it is resumed.</p>
      </Notice>
    );
  }
  if (!job.queue) return null;
  const { position, eta_s, reason } = job.queue;
  return (
    <Notice
      kind="info"
      title={position === 1 ? "It is next in the queue" : `It is number ${position} in the queue`}
    >
      <p>
        {reason}
        {eta_s === null ? "" : ` It is likely to start in about ${roughly(eta_s)}.`}
      </p>
    </Notice>
  );
}
