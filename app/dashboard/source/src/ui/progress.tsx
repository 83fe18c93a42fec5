import { ago, clock, percent, roughly, whole } from "../lib/format";
import { isOver, nameOf, progressOf } from "../lib/jobs";
import type { Job } from "../lib/types";

/** A bar with what is done in words: steps, and when it is likely to end. */
export function Progress({ job }: { job: Job }) {
  const share = progressOf(job);
  return (
    <div class="progress">
      <Bar share={share} label={`Progress of ${nameOf(job)}`} status={job.status} />
      <span class="progress-words">{wordsOf(job, share)}</span>
    </div>
  );
}

export function Bar({ share, label, status = "running" }: { share: number; label: string; status?: string }) {
  const now = Math.floor(share * 100);
  return (
    <div
      class={`bar ${status}`}
      role="progressbar"
      aria-label={label}
      aria-valuemin={0}
      aria-valuemax={100}
      aria-valuenow={now}
    >
      <div style={{ width: `${share * 100}%` }} />
    </div>
  );
}

function wordsOf(job: Job, share: number): string {
  const { step, total_steps } = job.progress;
  const steps = `${whole(step)} of ${whole(total_steps)} steps`;
  if (isOver(job)) return job.finished_at ? `${steps} · ended ${ago(job.finished_at)}` : steps;
  if (job.status === "queued") return job.queue ? queueWords(job.queue) : "waiting";
  if (job.status === "paused") return `${steps} · paused`;
  if (!job.estimated_finish) return step ? `${percent(share)} · ${steps}` : "starting";
  const left = roughly(job.estimated_finish - Date.now() / 1000);
  return `${percent(share)} · ${left} left, until about ${clock(job.estimated_finish).slice(0, 5)}`;
}

function queueWords({
  position,
  eta_s,
  reason,
}: {
  position: number;
  eta_s: number | null;
  reason: string;
}): string {
  const about = eta_s === null ? "" : ` · starts in about ${roughly(eta_s)}`;
  return `#${position} in the queue${about}. ${reason}`;
}
