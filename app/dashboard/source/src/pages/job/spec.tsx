import type { ComponentChildren } from "preact";

import { moment } from "../../lib/format";
import { settingsOf } from "../../lib/jobs";
import { href } from "../../lib/router";
import type { Job } from "../../lib/types";
import { CopyButton } from "../../ui/buttons";

/** All settings, every “auto” resolved. */
export function Spec({ job }: { job: Job }) {
  return (
    <details class="card">
      <summary>
        <h2>Resolved spec</h2>
      </summary>
      <dl class="spec">
        <Row name="submitted">{moment(job.created_at)}</Row>
        <Row name="training_file">
          <a href={href("/files")}>{job.training_file}</a>
        </Row>
        <Row name="validation_file">{job.validation_file ?? "–"}</Row>
        {settingsOf(job).map(([name, value]) => (
          <Row key={name} name={name}>
            {value}
          </Row>
        ))}
        {Object.entries(job.metadata ?? {}).map(([name, value]) => (
          <Row key={name} name={`metadata.${name}`}>
            {value}
          </Row>
        ))}
      </dl>
      <CopyButton text={JSON.stringify(job, null, 2)} what="the job as JSON" />
    </details>
  );
}

function Row({ name, children }: { name: string; children: ComponentChildren }) {
  return (
    <div>
      <dt>
        <code>{name}</code>
      </dt>
      <dd>{children}</dd>
    </div>
  );
}
