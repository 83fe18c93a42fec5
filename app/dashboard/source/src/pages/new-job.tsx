import { useMemo, useState } from "preact/hooks";

import { useAction, useLoaded, useSettled } from "../lib/hooks";
import { nameOf } from "../lib/jobs";
import { go } from "../lib/router";
import { useApi, useRefusal } from "../lib/session";
import type { Job } from "../lib/types";
import { Button } from "../ui/buttons";
import { Failure, Notice } from "../ui/notice";
import { Loading, Page } from "../ui/page";
import { AsCall } from "./new-job/as-call";
import { DataStep } from "./new-job/data";
import { EstimatePanel, useEstimate } from "./new-job/estimate";
import {
  type Draft,
  bodyOf,
  changed,
  draftOf,
  emptyDraft,
  missing,
  problemOf,
  suited,
} from "./new-job/draft";
import { MethodStep } from "./new-job/method";
import { ModelStep } from "./new-job/model";
import { TrainingStep } from "./new-job/training";

interface Props {
  clone: string | null;
  file: string | null;
  model: string | null;
}

export function NewJob({ clone, file, model }: Props) {
  const api = useApi();
  const { data, error } = useLoaded(
    clone ? (signal) => api.get<Job>(`/fine_tuning/jobs/${clone}`, {}, signal) : null,
    [clone],
  );
  const refusal = useRefusal("write");
  const start = useMemo(
    () => (data ? draftOf(data) : { ...emptyDraft(), training_file: file ?? "", model: model ?? "" }),
    [data, file, model],
  );
  return (
    <Page
      title={clone ? `Clone of ${data ? nameOf(data) : "a job"}` : "New job"}
      above={<a href="#/jobs">Jobs</a>}
    >
      {refusal ? (
        <Notice kind="info" title="This key cannot submit">
          <p>{refusal}</p>
        </Notice>
      ) : null}
      <Failure error={error} doing="The job to clone cannot be read" />
      {clone && !data && !error && <Loading />}
      {!refusal && (!clone || data) && <Form start={start} />}
    </Page>
  );
}

function Form({ start }: { start: Draft }) {
  const api = useApi();
  const [draft, setDraft] = useState(start);
  const { busy, error, run } = useAction();
  const change = (to: Partial<Draft>) => setDraft((before) => ({ ...before, ...to }));
  const refusal = missing(draft);
  const body = bodyOf(draft);
  const estimate = useEstimate(useSettled(refusal ? null : body, 500));
  const wrong = problemOf(error) ?? problemOf(estimate.error);
  const step = { draft, change, wrong, resolved: estimate.data?.spec };
  const submit = () =>
    run(async () => {
      const job = await api.post<Job>("/fine_tuning/jobs", body);
      go(`/jobs/${job.id}`);
    });
  return (
    <div class="new-job">
      <form onSubmit={(event) => event.preventDefault()} aria-label="New job">
        <DataStep {...step} onFormat={(format) => setDraft((before) => suited(before, format))} />
        <ModelStep {...step} />
        <MethodStep {...step} />
        <TrainingStep {...step} />
      </form>
      <aside aria-label="Before it starts">
        <EstimatePanel
          estimate={estimate}
          refusal={refusal}
          onAdvice={(change) => setDraft(changed(draft, change))}
        />
        <Failure error={error} doing="The job was not taken" />
        <Button kind="main" refusal={refusal} busy={busy} onClick={submit}>
          Start training
        </Button>
        {refusal && <p class="hint">{refusal}</p>}
        <AsCall path="/fine_tuning/jobs" body={body} />
      </aside>
    </div>
  );
}
