import { useEffect, useState } from "preact/hooks";

import { ago } from "../../lib/format";
import { useLoaded } from "../../lib/hooks";
import { newest } from "../../lib/listing";
import { href } from "../../lib/router";
import { useApi } from "../../lib/session";
import type { ComparisonSummary, Page } from "../../lib/types";
import { Failure } from "../../ui/notice";

const PAGE = 20;
const POLL_MS = 5000;

/** Comparisons over several seeds that were asked of the service. */
export function Comparisons() {
  const api = useApi();
  const [wanted, setWanted] = useState(PAGE);
  const [polling, setPolling] = useState(true);
  const { data, error } = useLoaded(
    (signal) => newest(wanted, (query) => api.get<Page<ComparisonSummary>>("/comparisons", query, signal)),
    [wanted],
    { every: polling ? POLL_MS : 0, keep: true },
  );
  useEffect(() => {
    if (data) setPolling(data.data.some(({ status }) => status === "running"));
  }, [data]);
  return (
    <section class="card">
      <h2>Comparisons over seeds</h2>
      <Failure error={error} doing="The comparisons cannot be read" />
      {data && !data.data.length && (
        <p class="muted">
          None yet: a <a href="#/compare/new">new comparison</a> trains each method with several seeds at one
          budget, and says what the difference is worth.
        </p>
      )}
      <ul class="list">
        {data?.data.map((each) => (
          <li key={each.id}>
            <a href={href(`/compare/${each.id}`)}>{each.name ?? each.id}</a>
            <span class="sub">
              {each.method_names.join(", ")} · {each.status} · {each.progress.finished} of{" "}
              {each.progress.jobs} jobs · {ago(each.created_at)}
            </span>
          </li>
        ))}
      </ul>
      {data?.has_more && (
        <p class="more">
          <button type="button" onClick={() => setWanted(wanted + PAGE)}>
            Load older comparisons
          </button>
        </p>
      )}
    </section>
  );
}
