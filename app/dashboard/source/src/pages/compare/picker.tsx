import { useState } from "preact/hooks";

import { ago } from "../../lib/format";
import { useLoaded } from "../../lib/hooks";
import { methodOf, nameOf, shortId } from "../../lib/jobs";
import { newest } from "../../lib/listing";
import { useApi } from "../../lib/session";
import type { Job, Page } from "../../lib/types";
import { Failure } from "../../ui/notice";

const PAGE = 100;

interface Props {
  picked: string[];
  onPick: (ids: string[]) => void;
}

export function Picker({ picked, onPick }: Props) {
  const api = useApi();
  const [words, setWords] = useState("");
  const [wanted, setWanted] = useState(PAGE);
  const { data, error } = useLoaded(
    (signal) => newest(wanted, (query) => api.get<Page<Job>>("/fine_tuning/jobs", query, signal)),
    [wanted],
    { keep: true },
  );
  const shown =
    data?.data.filter((job) =>
      `${nameOf(job)} ${job.id} ${methodOf(job)} ${job.model}`.toLowerCase().includes(words.toLowerCase()),
    ) ?? [];
  const toggle = (id: string) =>
    onPick(picked.includes(id) ? picked.filter((each) => each !== id) : [...picked, id]);
  return (
    <details class="card picker" open={!picked.length}>
      <summary>
        <h2>Jobs ({picked.length} picked)</h2>
      </summary>
      <Failure error={error} doing="The jobs cannot be read" />
      <input
        type="search"
        aria-label="Search jobs"
        placeholder="Search"
        value={words}
        onInput={(event) => setWords(event.currentTarget.value)}
      />
      <ul class="ticks">
        {shown.map((job) => (
          <li key={job.id}>
            <label class="check">
              <input type="checkbox" checked={picked.includes(job.id)} onChange={() => toggle(job.id)} />
              <span>
                {nameOf(job)}{" "}
                <span class="sub">
                  {shortId(job.id)}
                  {job.suffix ? ` · ${methodOf(job)}` : ""} · seed {job.seed} · {job.model} · {job.status} ·{" "}
                  {ago(job.created_at)}
                </span>
              </span>
            </label>
          </li>
        ))}
      </ul>
      {data && !shown.length && (
        <p class="muted">{words ? "No job is like that." : "There is no job yet."}</p>
      )}
      {data?.has_more && (
        <p class="more">
          <button type="button" onClick={() => setWanted(wanted + PAGE)}>
            Load older jobs
          </button>
        </p>
      )}
    </details>
  );
}
