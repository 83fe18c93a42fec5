import { useState } from "preact/hooks";

import { download } from "../../lib/download";
import { percent } from "../../lib/format";
import { useAction } from "../../lib/hooks";
import { isOver, nameOf } from "../../lib/jobs";
import { href } from "../../lib/router";
import { useApi, useRefusal } from "../../lib/session";
import type { Job } from "../../lib/types";
import { Button, ConfirmButton } from "../../ui/buttons";
import { Icon } from "../../ui/icons";
import { Failure } from "../../ui/notice";

export function JobActions({ job, onChange }: { job: Job; onChange: (job: Job) => void }) {
  const api = useApi();
  const refusal = useRefusal("write");
  const { busy, error, run } = useAction();
  const ask = (verb: "cancel" | "pause" | "resume") => () =>
    run(async () => onChange(await api.post<Job>(`/fine_tuning/jobs/${job.id}/${verb}`)));
  const over = isOver(job);
  return (
    <>
      {job.status === "succeeded" && (
        <DownloadButton
          path={`/fine_tuning/jobs/${job.id}/adapter`}
          filename={`${nameOf(job)}-${job.id}.tar`}
          words="Download adapter"
          main
        />
      )}
      {!over && job.status !== "paused" && (
        <Button refusal={refusal} busy={busy} onClick={ask("pause")}>
          Pause
        </Button>
      )}
      {job.status === "paused" && (
        <Button refusal={refusal} busy={busy} onClick={ask("resume")}>
          Resume
        </Button>
      )}
      {!over && (
        <ConfirmButton
          kind="danger"
          refusal={refusal}
          busy={busy}
          onClick={ask("cancel")}
          question={`Cancel ${nameOf(job)}? What it has learned so far is kept in its checkpoints alone.`}
          answer="Cancel the job"
        >
          Cancel
        </ConfirmButton>
      )}
      <a class="button" href={href("/compare", { jobs: job.id })}>
        Compare
      </a>
      {refusal ? (
        <Button refusal={refusal} onClick={() => undefined}>
          Clone
        </Button>
      ) : (
        <a class="button" href={href("/new", { clone: job.id })}>
          Clone
        </a>
      )}
      {refusal && <p class="hint">{refusal}</p>}
      <Failure error={error} />
    </>
  );
}

interface DownloadProps {
  path: string;
  filename: string;
  words: string;
  label?: string;
  main?: boolean;
}

export function DownloadButton({ path, filename, words, label, main }: DownloadProps) {
  const api = useApi();
  const { busy, error, run } = useAction();
  const [share, setShare] = useState(0);
  return (
    <>
      <Button
        kind={main ? "main" : "plain"}
        busy={busy}
        {...(label ? { label } : {})}
        onClick={() => run(() => download(api, path, filename, setShare))}
      >
        <Icon name="download" />
        {busy ? `${percent(share)}` : words}
      </Button>
      <Failure error={error} doing="The download failed" />
    </>
  );
}
