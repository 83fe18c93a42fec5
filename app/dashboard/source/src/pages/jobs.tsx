import { useMemo, useState } from "preact/hooks";

import { ago, count } from "../lib/format";
import { useLoaded } from "../lib/hooks";
import { methodOf, nameOf } from "../lib/jobs";
import { href } from "../lib/router";
import { useApi, useRefusal } from "../lib/session";
import type { Job, Page as Listing, Status } from "../lib/types";
import { Code } from "../ui/code";
import { Failure } from "../ui/notice";
import { Empty, Loading, Page } from "../ui/page";
import { Progress } from "../ui/progress";
import { StatusBadge } from "../ui/status";

const PAGE = 50;
const POLL_MS = 3000;
const STATUSES: Status[] = ["running", "queued", "paused", "succeeded", "failed", "cancelled"];

export function Jobs() {
  const api = useApi();
  const [wanted, setWanted] = useState(PAGE);
  const { data, error } = useLoaded(
    (signal) => newest(wanted, (query) => api.get<Listing<Job>>("/fine_tuning/jobs", query, signal)),
    [wanted],
    { every: POLL_MS },
  );
  const refusal = useRefusal("write");
  const action = refusal ? (
    <span class="hint">{refusal}</span>
  ) : (
    <a class="button main" href="#/new">
      New job
    </a>
  );
  return (
    <Page title="Jobs" actions={action}>
      <Failure error={error} doing="The jobs cannot be read" />
      {!data && !error && <Loading />}
      {data &&
        (data.data.length ? <List listing={data} onMore={() => setWanted(wanted + PAGE)} /> : <FirstJob />)}
    </Page>
  );
}

/** Walk the pages until so many are there. */
async function newest(
  wanted: number,
  ask: (query: { limit: number; after?: string }) => Promise<Listing<Job>>,
): Promise<Listing<Job>> {
  const found: Job[] = [];
  for (;;) {
    const after = found.at(-1)?.id;
    const page = await ask({ limit: Math.min(wanted - found.length, 100), ...(after ? { after } : {}) });
    found.push(...page.data);
    if (!page.has_more || found.length >= wanted) return { data: found, has_more: page.has_more };
  }
}

function List({ listing, onMore }: { listing: Listing<Job>; onMore: () => void }) {
  const [status, setStatus] = useState<Status | "all">("all");
  const [words, setWords] = useState("");
  const [picked, setPicked] = useState<string[]>([]);
  const shown = useMemo(
    () => listing.data.filter((job) => (status === "all" || job.status === status) && matches(job, words)),
    [listing, status, words],
  );
  const pick = (id: string) =>
    setPicked(picked.includes(id) ? picked.filter((each) => each !== id) : [...picked, id]);
  return (
    <>
      <div class="filters">
        <input
          type="search"
          aria-label="Search jobs"
          placeholder="Search name, id, model, method, metadata…"
          value={words}
          onInput={(event) => setWords(event.currentTarget.value)}
        />
        <select
          aria-label="Status"
          value={status}
          onChange={(event) => setStatus(event.currentTarget.value as Status | "all")}
        >
          <option value="all">All statuses</option>
          {STATUSES.map((each) => (
            <option
              key={each}
              value={each}
            >{`${each} (${listing.data.filter((job) => job.status === each).length})`}</option>
          ))}
        </select>
        <a
          class={picked.length ? "button" : "button off"}
          aria-disabled={!picked.length}
          href={picked.length ? href("/compare", { jobs: picked.join(",") }) : "#/jobs"}
        >
          {picked.length ? `Compare ${picked.length}` : "Tick jobs to compare"}
        </a>
      </div>
      <p class="unseen" role="status">
        {count(shown.length, "job")} shown
      </p>
      {shown.length ? (
        <Table jobs={shown} picked={picked} onPick={pick} />
      ) : (
        <Empty title="No job is like that">
          <p>Change the words or the status{listing.has_more ? ", or load older jobs" : ""}.</p>
        </Empty>
      )}
      {listing.has_more && (
        <p class="more">
          <button type="button" onClick={onMore}>
            Load older jobs
          </button>
        </p>
      )}
    </>
  );
}

function Table({ jobs, picked, onPick }: { jobs: Job[]; picked: string[]; onPick: (id: string) => void }) {
  return (
    <table class="rows">
      <thead>
        <tr>
          <th scope="col">
            <span class="unseen">Compare</span>
          </th>
          <th scope="col">Job</th>
          <th scope="col">Status</th>
          <th scope="col" class="wide">
            Progress
          </th>
          <th scope="col">Method</th>
          <th scope="col">Submitted</th>
        </tr>
      </thead>
      <tbody>
        {jobs.map((job) => (
          <tr key={job.id}>
            <td class="tick">
              <input
                type="checkbox"
                aria-label={`Compare ${nameOf(job)} ${job.id}`}
                checked={picked.includes(job.id)}
                onChange={() => onPick(job.id)}
              />
            </td>
            <th scope="row">
              <a class="name" href={href(`/jobs/${job.id}`)}>
                {nameOf(job)}
              </a>
              <span class="sub">
                {job.model} · <code>{job.id}</code>
              </span>
            </th>
            <td data-label="Status">
              <StatusBadge status={job.status} />
            </td>
            <td data-label="Progress">
              {job.status === "failed" && job.error ? (
                <span class="bad">{job.error.message}</span>
              ) : (
                <Progress job={job} />
              )}
            </td>
            <td data-label="Method">{methodOf(job)}</td>
            <td data-label="Submitted">
              <time dateTime={new Date(job.created_at * 1000).toISOString()}>{ago(job.created_at)}</time>
            </td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

function matches(job: Job, words: string): boolean {
  const text = [
    nameOf(job),
    job.id,
    job.model,
    methodOf(job),
    job.fine_tuned_model,
    job.training_file,
    ...Object.entries(job.metadata ?? {}).flat(),
  ]
    .join(" ")
    .toLowerCase();
  return words
    .toLowerCase()
    .split(/\s+/)
    .every((word) => text.includes(word));
}

function FirstJob() {
  const snippet = `import openai

client = openai.OpenAI(base_url="${location.origin}/v1", api_key="sk-…")
train = client.files.create(file=open("train.jsonl", "rb"), purpose="fine-tune")
client.fine_tuning.jobs.create(model="my-llama", training_file=train.id)`;
  return (
    <Empty title="No job yet">
      <p>
        <a href="#/new">Start one here</a>, or from Python:
      </p>
      <Code text={snippet} what="Example in Python" />
    </Empty>
  );
}
