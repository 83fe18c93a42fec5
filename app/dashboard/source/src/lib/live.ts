// Follows a job by its stream while it lives, and reads one that is over at once.
import { useEffect, useState } from "preact/hooks";

import { type Api, isMissing } from "./api";
import { isOver } from "./jobs";
import { type Line, Metrics, linesOf } from "./series";
import { messages } from "./stream";
import type { Job, JobEvent, Page, SeriesOut, Value } from "./types";

export interface Live {
  job?: Job;
  lines: Map<string, Line>;
  /** Newest first. */
  events: JobEvent[];
  error?: unknown;
  how: "connecting" | "streaming" | "over";
}

type Tell = (change: Partial<Live>) => void;

const DRAW_MS = 250;
const LONG_STEPS = 4000;
const SHOWN_POINTS = "1500";

export function useLiveJob(api: Api, id: string): Live & { show: (job: Job) => void } {
  const [live, setLive] = useState<Live & { of: string }>({ of: id, ...NOTHING });
  useEffect(() => {
    const stop = new AbortController();
    const tell: Tell = (change) => {
      if (!stop.signal.aborted)
        setLive((before) => ({ ...(before.of === id ? before : NOTHING), ...change, of: id }));
    };
    follow(api, id, tell, stop.signal).catch((error: unknown) => tell({ error }));
    return () => stop.abort();
  }, [api, id]);
  const show = (job: Job) => setLive((before) => ({ ...before, job }));
  return { ...(live.of === id ? live : { ...NOTHING }), show };
}

const NOTHING: Live = { lines: new Map(), events: [], how: "connecting" };

async function follow(api: Api, id: string, tell: Tell, signal: AbortSignal): Promise<void> {
  const job = await api.get<Job>(path(id), {}, signal);
  tell({ job });
  if (isOver(job)) await readWhole(api, job, tell, signal);
  else await stream(api, id, tell, signal);
}

/** Follow the stream to the job's end; a connection that breaks goes on after the last message. */
async function stream(api: Api, id: string, tell: Tell, signal: AbortSignal): Promise<void> {
  const seen = new Seen(tell);
  let after = "";
  for (let tries = 0; !signal.aborted; tries++) {
    const connection = await whileSeen(signal);
    try {
      for await (const message of messages(api, `${path(id)}/stream`, after, connection)) {
        after = message.id || after;
        tries = 0;
        if (message.event === "done") return seen.draw({ how: "over" });
        seen.take(message.event, JSON.parse(message.data));
      }
    } catch (error) {
      if (isMissing(error)) throw error;
      if (connection.aborted) continue;
      tell({ how: "connecting" });
    }
    await pause(Math.min(1000 * 2 ** tries, 15_000));
  }
}

/** Wait until the page is seen; the signal says when it is not any more. A browser has few
 * connections for a server, which tabs in the background must not hold. */
async function whileSeen(signal: AbortSignal): Promise<AbortSignal> {
  const hidden = new AbortController();
  const changed = (seen: () => void) =>
    document.addEventListener("visibilitychange", seen, { once: true, signal });
  if (document.hidden) await new Promise<void>((resolve) => changed(resolve));
  changed(() => hidden.abort());
  return AbortSignal.any([signal, hidden.signal]);
}

/** What the stream has told so far; it is drawn a few times a second, however fast it comes. */
class Seen {
  private readonly metrics = new Metrics();
  private events: JobEvent[] = [];
  private job: Job | undefined;
  private timer = 0;

  constructor(private readonly tell: Tell) {}

  take(event: string, data: unknown): void {
    if (event === "metrics") {
      const { step, attempt, values } = data as {
        step: number;
        attempt: number;
        values: Record<string, Value>;
      };
      this.metrics.add(step, attempt, values);
    } else if (event === "event") {
      const told = data as JobEvent;
      if (told.type === "message") this.events = [told, ...this.events]; // steps come as metrics too
    } else if (event === "status") {
      this.job = data as Job;
    }
    this.timer ||= window.setTimeout(() => this.draw({ how: "streaming" }), DRAW_MS);
  }

  draw(change: Partial<Live>): void {
    clearTimeout(this.timer);
    this.timer = 0;
    this.tell({
      lines: this.metrics.lines(),
      events: this.events,
      ...(this.job ? { job: this.job } : {}),
      ...change,
    });
  }
}

/** Read all that was measured; of a long run in buckets, which keep their extremes. */
async function readWhole(api: Api, job: Job, tell: Tell, signal: AbortSignal): Promise<void> {
  const long = job.progress.total_steps > LONG_STEPS;
  const [metrics, events] = await Promise.all([
    api.get<Page<SeriesOut>>(
      `${path(job.id)}/metrics`,
      long ? { agg: "minmax", points: SHOWN_POINTS } : {},
      signal,
    ),
    api.get<Page<JobEvent>>(`${path(job.id)}/events`, { limit: 100, type: "message" }, signal),
  ]);
  tell({ lines: linesOf(metrics.data), events: events.data, how: "over" });
}

function path(id: string): string {
  return `/fine_tuning/jobs/${encodeURIComponent(id)}`;
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
