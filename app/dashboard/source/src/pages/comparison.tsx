import { words } from "../charts/catalog";
import { LogAxis, useLossView } from "../charts/tools";
import { Panel } from "../charts/panel";
import type { Trace } from "../charts/traces";
import { bytes, count, duration, number, signed } from "../lib/format";
import { useAction, useLoaded } from "../lib/hooks";
import { href } from "../lib/router";
import { useApi, useRefusal } from "../lib/session";
import type { ComparedMethod, Comparison, Spread } from "../lib/types";
import { ConfirmButton } from "../ui/buttons";
import { Failure, Notice } from "../ui/notice";
import { Loading, Page } from "../ui/page";
import { Bar } from "../ui/progress";
import { StatusBadge } from "../ui/status";

/** Methods over several seeds: the mean curves with their bands, what they cost, and the verdict. */
export function ComparisonPage({ id }: { id: string }) {
  const api = useApi();
  const { data, error, reload } = useLoaded(
    (signal) => api.get<Comparison>(`/comparisons/${encodeURIComponent(id)}`, {}, signal),
    [id],
    { every: 4000 },
  );
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

function Numbers({ methods }: { methods: ComparedMethod[] }) {
  const metrics = [...new Set(methods.flatMap(({ metrics }) => Object.keys(metrics ?? {})))];
  return (
    <section class="card">
      <h2>Numbers</h2>
      <div class="scroll" tabIndex={0} role="region" aria-label="Table of methods">
        <table class="matrix">
          <thead>
            <tr>
              {[
                "Method",
                "Seeds",
                "Validation loss",
                "Against the first",
                "p, corrected",
                ...metrics.map(words),
                "Time",
                "GPU time",
                "Passes",
                "Peak memory",
              ].map((name) => (
                <th key={name} scope="col">
                  {name}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {methods.map(({ name, seeds, valid_loss, metrics: measured, against_first, cost }) => (
              <tr key={name}>
                <th scope="row">{name}</th>
                <td>{seeds.length}</td>
                <td>{spread(valid_loss)}</td>
                <td>{against_first ? signed(against_first.difference) + interval(against_first) : "–"}</td>
                <td>
                  {against_first
                    ? `${number(against_first.adjusted_p_value, 2)}${against_first.significant ? ", significant" : ""}`
                    : "–"}
                </td>
                {metrics.map((metric) => (
                  <td key={metric}>{spread(measured[metric])}</td>
                ))}
                <td>{duration(cost?.seconds)}</td>
                <td>{duration(cost?.gpu_seconds)}</td>
                <td>{number(cost?.forward_backward_passes)}</td>
                <td>{bytes(cost?.peak_memory_bytes)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </section>
  );
}

function spread(value: Spread | null | undefined): string {
  return value ? number(value.mean) + interval(value) : "–";
}

function interval({ low, high }: { low: number | null; high: number | null }): string {
  return low === null ? "" : ` (${number(low)} to ${number(high)})`;
}
