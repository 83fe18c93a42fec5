import { useEffect, useState } from "preact/hooks";

import { words } from "../charts/catalog";
import { LogAxis, useLossView } from "../charts/tools";
import { Panel } from "../charts/panel";
import type { Trace } from "../charts/traces";
import { bytes, count, duration, number, signed } from "../lib/format";
import { useAction, useLoaded } from "../lib/hooks";
import { isOver } from "../lib/jobs";
import { href } from "../lib/router";
import { useApi, useRefusal } from "../lib/session";
import type { ComparedMethod, Comparison, Spread } from "../lib/types";
import { ConfirmButton } from "../ui/buttons";
import { Failure, Notice } from "../ui/notice";
import { Loading, Page } from "../ui/page";
import { Bar } from "../ui/progress";
import { StatusBadge } from "../ui/status";

const POLL_MS = 4000;

/** Methods over several seeds: the mean curves with their bands, what they cost, and the verdict. */
export function ComparisonPage({ id }: { id: string }) {
  const api = useApi();
  const [polling, setPolling] = useState(true);
  const { data, error, reload } = useLoaded(
    (signal) => api.get<Comparison>(`/comparisons/${encodeURIComponent(id)}`, {}, signal),
    [id],
    { every: polling ? POLL_MS : 0 },
  );
  useEffect(() => {
    if (data) setPolling(data.status === "running" || !data.jobs.every(isOver));
  }, [data]);
  if (!data)
    return (
      <Page title="Comparison">
        {error ? <Failure error={error} doing="The comparison cannot be read" /> : <Loading />}
      </Page>
    );
  const done = data.progress.jobs ? data.progress.finished / data.progress.jobs : 0;
  return (
    <Page
      title={data.name ?? "Comparison"}
      above={
        <>
          <a href="#/compare">Compare</a> / <code>{data.id}</code>
        </>
      }
      beside={<StatusBadge status={data.status} />}
      actions={data.status === "running" && <Cancel id={id} onDone={reload} />}
    >
      <Failure error={error} doing="The comparison is not up to date" />
      {data.verdict && (
        <Notice kind="info" title="Verdict">
          <p>{data.verdict}</p>
        </Notice>
      )}
      {data.status === "running" && (
        <div class="progress">
          <Bar share={done} label="Progress of the comparison" />
          <span>
            {data.progress.finished} of {count(data.progress.jobs, "job")} over
          </span>
        </div>
      )}
      <Curve methods={data.methods} />
      <Numbers methods={data.methods} />
      <section class="card">
        <h2>Jobs</h2>
        <ul class="list">
          {data.jobs.map((job) => (
            <li key={job.id}>
              <a href={href(`/jobs/${job.id}`)}>
                {job.method}, seed {job.seed}
              </a>{" "}
              <StatusBadge status={job.status} />
            </li>
          ))}
        </ul>
        <p>
          <a href={href("/compare", { jobs: data.jobs.map((job) => job.id).join(",") })}>
            Lay all their curves over each other
          </a>
        </p>
      </section>
    </Page>
  );
}

function Cancel({ id, onDone }: { id: string; onDone: () => void }) {
  const api = useApi();
  const refusal = useRefusal("write");
  const { busy, error, run } = useAction();
  const cancel = () =>
    run(async () => {
      await api.post(`/comparisons/${id}/cancel`);
      onDone();
    });
  return (
    <>
      <ConfirmButton
        kind="danger"
        refusal={refusal}
        busy={busy}
        onClick={cancel}
        question="Cancel the comparison and its jobs that are not over?"
        answer="Cancel it"
      >
        Cancel
      </ConfirmButton>
      <Failure error={error} />
    </>
  );
}

function Curve({ methods }: { methods: ComparedMethod[] }) {
  const view = useLossView();
  const traces = methods
    .filter(({ curve }) => curve?.length)
    .map(({ name, curve }, index): Trace => ({
      label: name,
      hue: index + 1,
      kind: "curve",
      line: {
        steps: curve.map(({ step }) => step),
        values: curve.map(({ mean }) => mean),
        low: curve.map(({ low }) => low),
        high: curve.map(({ high }) => high),
      },
    }));
  if (!traces.length) return null;
  return (
    <Panel
      title="Validation loss"
      hint="The mean over seeds at the clean weights, and its 95 % interval."
      traces={traces}
      log={view.log}
      height={340}
      together="comparison"
      filename="comparison"
      tools={<LogAxis view={view} />}
    />
  );
}

type Column = [name: string, cell: (method: ComparedMethod) => string];

const OUTCOME: Column[] = [
  ["Seeds", ({ seeds }) => `${seeds.length}`],
  ["Validation loss", ({ valid_loss }) => spread(valid_loss)],
  [
    "Against the first",
    ({ against_first: found }) => (found ? signed(found.difference) + interval(found) : "–"),
  ],
  [
    "p, corrected",
    ({ against_first: found }) =>
      found ? number(found.adjusted_p_value, 2) + (found.significant ? ", significant" : "") : "–",
  ],
];
const COST: Column[] = [
  ["Time", ({ cost }) => duration(cost?.seconds)],
  ["GPU time", ({ cost }) => duration(cost?.gpu_seconds)],
  ["Time for 0.01 of loss", ({ cost }) => seconds(cost?.seconds_per_point)],
  ["Passes", ({ cost }) => number(cost?.forward_backward_passes)],
  ["Peak memory", ({ cost }) => bytes(cost?.peak_memory_bytes)],
];

function Numbers({ methods }: { methods: ComparedMethod[] }) {
  const columns = [
    ...OUTCOME,
    ...namesIn(methods, ({ metrics }) => metrics).map((name): Column => [
      words(name),
      ({ metrics }) => spread(metrics[name]),
    ]),
    ...namesIn(methods, ({ sharpness }) => sharpness).map((name): Column => [
      `Sharpness, ${name}`,
      ({ sharpness }) => spread(sharpness?.[name]),
    ]),
    ...COST,
  ];
  return (
    <section class="card">
      <h2>Numbers</h2>
      <div class="scroll" tabIndex={0} role="region" aria-label="Table of methods">
        <table class="matrix">
          <thead>
            <tr>
              {["Method", ...columns.map(([name]) => name)].map((name) => (
                <th key={name} scope="col">
                  {name}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {methods.map((method) => (
              <tr key={method.name}>
                <th scope="row">{method.name}</th>
                {columns.map(([name, cell]) => (
                  <td key={name}>{cell(method)}</td>
                ))}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      <p class="hint">
        Means over seeds, with their 95 % intervals. Sharpness is how much the loss rises in a ball around the
        adapter; time for 0.01 of loss is what it takes to get that much below the base.
      </p>
    </section>
  );
}

function namesIn(
  methods: ComparedMethod[],
  of: (method: ComparedMethod) => Record<string, Spread> | null,
): string[] {
  return [...new Set(methods.flatMap((method) => Object.keys(of(method) ?? {})))];
}

/** A duration that may be far below a second. */
function seconds(value: number | null | undefined): string {
  return value !== null && value !== undefined && value < 60 ? `${number(value, 3)} s` : duration(value);
}

function spread(value: Spread | null | undefined): string {
  return value ? number(value.mean) + interval(value) : "–";
}

function interval({ low, high }: { low: number | null; high: number | null }): string {
  return low === null || high === null ? "" : ` (${number(low)} to ${number(high)})`;
}
