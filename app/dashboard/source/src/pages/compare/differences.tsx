import { seriesName } from "../../charts/traces";
import { saveText } from "../../lib/download";
import { nameOf, shortId } from "../../lib/jobs";
import { href } from "../../lib/router";
import { Button } from "../../ui/buttons";
import { StatusBadge } from "../../ui/status";
import { type Compared, type Row, differingSettings, outcomes } from "./numbers";

/** What came out of each job, and in which settings they differ. */
export function Differences({ compared }: { compared: Compared[] }) {
  const results = outcomes(compared);
  const settings = differingSettings(compared);
  return (
    <section class="card">
      <div class="panel-head">
        <h2>Differences</h2>
        <Button
          kind="quiet"
          label="Save the differences as CSV"
          onClick={() => saveText(asCsv(compared, [...results, ...settings]), "compare.csv")}
        >
          CSV
        </Button>
      </div>
      <div class="scroll" tabIndex={0} role="region" aria-label="Table of differences">
        <table class="matrix">
          <thead>
            <tr>
              <th scope="col">
                <span class="unseen">What</span>
              </th>
              {compared.map(({ job }, index) => (
                <th key={job.id} scope="col">
                  <i class="dot" style={{ background: `var(${seriesName(index + 1)})` }} />
                  <a href={href(`/jobs/${job.id}`)}>{nameOf(job)}</a>{" "}
                  <span class="sub">{shortId(job.id)}</span> <StatusBadge status={job.status} />
                </th>
              ))}
            </tr>
          </thead>
          <Rows rows={results} />
          {settings.length > 0 && (
            <tbody>
              <tr>
                <th scope="rowgroup" colSpan={compared.length + 1} class="group">
                  Settings that differ
                </th>
              </tr>
            </tbody>
          )}
          <Rows rows={settings} />
        </table>
      </div>
    </section>
  );
}

function Rows({ rows }: { rows: Row[] }) {
  return (
    <tbody>
      {rows.map(({ name, cells }) => (
        <tr key={name}>
          <th scope="row">{name}</th>
          {cells.map((cell, index) => (
            <td key={index}>{cell}</td>
          ))}
        </tr>
      ))}
    </tbody>
  );
}

function asCsv(compared: Compared[], rows: Row[]): string {
  const quoted = (text: string) => `"${text.replaceAll('"', '""')}"`;
  const head = ["", ...compared.map(({ job }) => `${nameOf(job)} ${job.id}`)];
  return (
    [head, ...rows.map(({ name, cells }) => [name, ...cells])]
      .map((each) => each.map(quoted).join(","))
      .join("\n") + "\n"
  );
}
