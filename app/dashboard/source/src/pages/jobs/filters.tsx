import { href } from "../../lib/router";
import type { Status } from "../../lib/types";
import type { Filter } from "./search";

const STATUSES: Status[] = ["running", "queued", "paused", "succeeded", "failed", "cancelled"];

interface Props {
  filter: Filter;
  onChange: (filter: Filter) => void;
  picked: string[];
}

export function Filters({ filter, onChange, picked }: Props) {
  return (
    <div class="filters">
      <input
        type="search"
        aria-label="Search jobs"
        placeholder="Search name, id, model, method, metadata…"
        value={filter.words}
        onInput={(event) => onChange({ ...filter, words: event.currentTarget.value })}
      />
      <select
        aria-label="Status"
        value={filter.status}
        onChange={(event) => onChange({ ...filter, status: event.currentTarget.value as Filter["status"] })}
      >
        <option value="all">All statuses</option>
        {STATUSES.map((each) => (
          <option key={each} value={each}>
            {each}
          </option>
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
  );
}
