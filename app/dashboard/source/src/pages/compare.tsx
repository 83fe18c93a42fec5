import { useEffect, useState } from "preact/hooks";

import { words } from "../charts/catalog";
import { LossTools, useLossView } from "../charts/tools";
import { Panel } from "../charts/panel";
import { SERIES_COLOURS, type Trace } from "../charts/traces";
import type { Api } from "../lib/api";
import { bytes, number } from "../lib/format";
import { useLoaded } from "../lib/hooks";
import { isOver, nameOf, shortId } from "../lib/jobs";
import { replaceQuery } from "../lib/router";
import { linesOf } from "../lib/series";
import { useApi, useRefusal } from "../lib/session";
import type { Attempt, Job, Page as Listing, SeriesOut } from "../lib/types";
import { SelectField } from "../ui/field";
import { Failure } from "../ui/notice";
import { Empty, Page } from "../ui/page";
import { Comparisons } from "./compare/comparisons";
import { Differences } from "./compare/differences";
import type { Compared } from "./compare/numbers";
import { Picker } from "./compare/picker";

const POLL_MS = 3000;
const POINTS = "1000";

export function CompareJobs({ asked }: { asked: string[] }) {
  const api = useApi();
  const [ids, setIds] = useState(asked);
  const [polling, setPolling] = useState(true);
  const { data, error } = useLoaded((signal) => Promise.all(ids.map((id) => look(api, id, signal))), [ids], {
    every: polling ? POLL_MS : 0,
  });
  const choose = (chosen: string[]) => {
    setIds(chosen);
    setPolling(true);
    replaceQuery({ jobs: chosen.join(",") || null });
  };
  useEffect(() => {
    if (data?.every(({ job }) => isOver(job))) setPolling(false);
  }, [data]);
  return (
    <Page title="Compare" actions={<NewComparisonLink />}>
      <Failure error={error} doing="The jobs cannot be read" />
      <Picker picked={ids} onPick={choose} />
      {data && data.length > 0 ? (
        <Overlay compared={data} />
      ) : (
        !ids.length && (
          <Empty title="Pick two jobs or more">
            <p>Their curves are laid over each other, and their numbers side by side.</p>
          </Empty>
        )
      )}
      <Comparisons />
    </Page>
  );
}

function NewComparisonLink() {
  const refusal = useRefusal("write");
  if (refusal) return <span class="hint">{refusal}</span>;
  return (
    <a class="button main" href="#/compare/new">
      New comparison
    </a>
  );
}

async function look(api: Api, id: string, signal: AbortSignal): Promise<Compared> {
  const path = `/fine_tuning/jobs/${encodeURIComponent(id)}`;
  const job = await api.get<Job>(path, {}, signal);
  const long = job.progress.total_steps > 4000;
  const [metrics, attempts] = await Promise.all([
    api.get<Listing<SeriesOut>>(`${path}/metrics`, long ? { agg: "minmax", points: POINTS } : {}, signal),
    api.get<{ data: Attempt[] }>(`${path}/attempts`, {}, signal),
  ]);
  return { job, lines: linesOf(metrics.data), attempts: attempts.data };
}

function Overlay({ compared }: { compared: Compared[] }) {
  const view = useLossView();
  const names = [...new Set(compared.flatMap(({ lines }) => [...lines.keys()]))].sort();
  const [chosen, setChosen] = useState<string | null>(null);
  const metric = chosen ?? (names.includes("valid_loss") ? "valid_loss" : "train_loss");
  return (
    <>
      <Panel
        title={words(metric)}
        traces={tracesOf(compared, metric)}
        weight={view.weight}
        log={view.log}
        height={340}
        format={metric === "memory_bytes" ? bytes : number}
        together="compare"
        filename={`compare-${metric}`}
        tools={
          <>
            <SelectField
              label="Metric"
              value={metric}
              onChange={setChosen}
              options={names.map((name) => [name, words(name)])}
            />
            <LossTools view={view} />
          </>
        }
      />
      <Differences compared={compared} />
    </>
  );
}

function tracesOf(compared: Compared[], metric: string): Trace[] {
  return compared.flatMap(({ job, lines }, index): Trace[] => {
    const line = lines.get(metric);
    if (!line) return [];
    const few = metric.startsWith("valid_");
    return [
      {
        label: `${nameOf(job)} · ${shortId(job.id)}`,
        line,
        hue: index + 1,
        kind: few ? "points" : "curve",
        ...(index >= SERIES_COLOURS ? { dash: [6, 4] } : {}),
      },
    ];
  });
}
