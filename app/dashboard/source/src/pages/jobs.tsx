import { useRef, useState } from "preact/hooks";

import { count, whole } from "../lib/format";
import { useLoaded, useSettled } from "../lib/hooks";
import { useApi, useRefusal } from "../lib/session";
import type { Job, Page as Listing } from "../lib/types";
import { Failure } from "../ui/notice";
import { Empty, Loading, Page } from "../ui/page";
import { Filters } from "./jobs/filters";
import { FirstJob } from "./jobs/first";
import { type Filter, NO_FILTER, find, isOn, matches } from "./jobs/search";
import { JobsTable } from "./jobs/table";

const POLL_MS = 3000;
const RARE_POLL_MS = 15_000; // where each look reads many pages
const MANY = 100;
const TYPING_MS = 300;

export function Jobs() {
  const [filter, setFilter] = useState(NO_FILTER);
  const [times, setTimes] = useState(1);
  const { listing, searching, error } = useJobs(filter, times);
  const refusal = useRefusal("write");
  const action = refusal ? (
    <span class="hint">{refusal}</span>
  ) : (
    <a class="button main" href="#/new">
      New job
    </a>
  );
  const change = (to: Filter) => {
    setFilter(to);
    setTimes(1);
  };
  return (
    <Page title="Jobs" actions={action}>
      <Failure error={error} doing="The jobs cannot be read" />
      {!listing && !error && <Loading />}
      {listing?.data.length === 0 && <FirstJob />}
      {listing && listing.data.length > 0 && (
        <List
          listing={listing}
          searching={searching}
          filter={filter}
          onFilter={change}
          onMore={() => setTimes(times + 1)}
        />
      )}
    </Page>
  );
}

/** Load what a filter needs, and show what was loaded before meanwhile. */
function useJobs(filter: Filter, times: number) {
  const api = useApi();
  const settled = useSettled(filter, TYPING_MS);
  const before = useRef<Listing<Job> | undefined>(undefined);
  const many = (before.current?.data.length ?? 0) > MANY;
  const { data, error } = useLoaded(
    (signal) => find(settled, times, (query) => api.get<Listing<Job>>("/fine_tuning/jobs", query, signal)),
    [settled, times],
    { every: many ? RARE_POLL_MS : POLL_MS },
  );
  before.current = data ?? before.current;
  const typing = JSON.stringify(settled) !== JSON.stringify(filter);
  return { listing: before.current, searching: typing || (!data && !error), error };
}

interface ListProps {
  listing: Listing<Job>;
  searching: boolean;
  filter: Filter;
  onFilter: (filter: Filter) => void;
  onMore: () => void;
}

function List({ listing, searching, filter, onFilter, onMore }: ListProps) {
  const [picked, setPicked] = useState<string[]>([]);
  const shown = listing.data.filter((job) => matches(job, filter));
  const pick = (id: string) =>
    setPicked(picked.includes(id) ? picked.filter((each) => each !== id) : [...picked, id]);
  return (
    <>
      <Filters filter={filter} onChange={onFilter} picked={picked} />
      <p class={isOn(filter) ? "hint" : "unseen"} role="status">
        {foundIn(listing, shown.length, searching)}
      </p>
      {shown.length > 0 && <JobsTable jobs={shown} picked={picked} onPick={pick} />}
      {!shown.length && !searching && (
        <Empty title="No job is like that">
          <p>Change the words or the status{listing.has_more ? ", or look through older jobs" : ""}.</p>
        </Empty>
      )}
      {listing.has_more && (
        <p class="more">
          <button type="button" onClick={onMore} disabled={searching}>
            {isOn(filter) ? "Look through older jobs" : "Load older jobs"}
          </button>
        </p>
      )}
    </>
  );
}

function foundIn({ data, has_more }: Listing<Job>, found: number, searching: boolean): string {
  if (searching) return "Looking through older jobs…";
  const among = has_more
    ? `the newest ${whole(data.length)}; there are older ones`
    : `all ${whole(data.length)}`;
  return `${count(found, "job")} shown of ${among}.`;
}
