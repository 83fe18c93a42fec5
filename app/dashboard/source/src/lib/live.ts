// Follows a job while it lives: by the stream, or by asking every two seconds where there is none.
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
  how: "connecting" | "streaming" | "polling" | "over";
}

type Tell = (change: Partial<Live>) => void;

const POLL_MS = 2000;
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
  tell({ job, error: undefined });
  if (!isOver(job) && (await stream(api, id, tell, signal))) return;
  await poll(api, id, tell, signal);
}

/** Follow the stream to the job's end; false where the server has none. */
async function stream(api: Api, id: string, tell: Tell, signal: AbortSignal): Promise<boolean> {
  const seen = new Seen(tell);
  let after = "";
  for (let tries = 0; !signal.aborted; tries++) {
    try {
      for await (const message of messages(api, `${path(id)}/stream`, after, signal)) {
        after = message.id || after;
        tries = 0;
        if (message.event === "done") {
          seen.draw({ how: "over" });
          return true;
        }
        seen.take(message.event, JSON.parse(message.data));
      }
    } catch (error) {
      if (signal.aborted) return true;
      if (isMissing(error)) return false;
      tell({ how: "connecting" });
    }
    await pause(Math.min(1000 * 2 ** tries, 15_000));
  }
  return true;
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
      error: undefined,
      ...change,
    });
  }
}

async function poll(api: Api, id: string, tell: Tell, signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    try {
      const job = await look(api, id, tell, signal);
      if (isOver(job)) return tell({ how: "over" });
    } catch (error) {
      if (isMissing(error)) throw error;
      tell({ error, how: "connecting" });
    }
    await pause(POLL_MS);
    while (document.hidden && !signal.aborted) await pause(POLL_MS);
  }
}

async function look(api: Api, id: string, tell: Tell, signal: AbortSignal): Promise<Job> {
  const job = await api.get<Job>(path(id), {}, signal);
  const long = job.progress.total_steps > LONG_STEPS;
  const [metrics, events] = await Promise.all([
    api.get<Page<SeriesOut>>(
      `${path(id)}/metrics`,
      long ? { agg: "minmax", points: SHOWN_POINTS } : {},
      signal,
    ),
    api.get<Page<JobEvent>>(`${path(id)}/events`, { limit: 100, type: "message" }, signal),
  ]);
  tell({ job, lines: linesOf(metrics.data), events: events.data, error: undefined, how: "polling" });
  return job;
}

function path(id: string): string {
  return `/fine_tuning/jobs/${encodeURIComponent(id)}`;
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
