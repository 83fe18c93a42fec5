import { useEffect, useRef, useState } from "preact/hooks";

import { count } from "../lib/format";
import { useAction } from "../lib/hooks";
import { useModels } from "../lib/models";
import { go } from "../lib/router";
import { useApi, useRefusal } from "../lib/session";
import type { Comparison, Fields } from "../lib/types";
import { Button } from "../ui/buttons";
import { TextField } from "../ui/field";
import { Failure, Notice } from "../ui/notice";
import { Page } from "../ui/page";
import { BudgetStep } from "./new-comparison/budget";
import { type Draft, bodyOf, emptyDraft, runsOf } from "./new-comparison/draft";
import { MethodsStep } from "./new-comparison/methods";
import { AsCall } from "./new-job/as-call";
import { DataStep } from "./new-job/data";
import { type Wrong, errorAt, learnFrom, problemOf } from "./new-job/draft";
import { BaseField } from "./new-job/model";

export function NewComparison() {
  const refusal = useRefusal("write");
  return (
    <Page title="New comparison" above={<a href="#/compare">Compare</a>}>
      <p class="muted">
        Each method is trained with each seed, on one order of the rows a seed and for the same budget. In the
        end it says whether the difference is more than noise.
      </p>
      {refusal ? (
        <Notice kind="info" title="This key cannot submit">
          <p>{refusal}</p>
        </Notice>
      ) : (
        <Form />
      )}
    </Page>
  );
}

function Form() {
  const api = useApi();
  const [draft, setDraft] = useState(emptyDraft);
  const { busy, error, run, forget } = useAction();
  const wrong = problemOf(error);
  const form = useFocusOnFault(error);
  const change = (to: Partial<Draft>) => {
    if (to.methods && to.methods.length !== draft.methods.length) forget(); // it names methods by their place
    setDraft((before) => ({ ...before, ...to }));
  };
  const body = bodyOf(draft);
  const submit = () =>
    run(async () => {
      const made = await api.post<Comparison>("/comparisons", body);
      go(`/compare/${made.id}`);
    });
  return (
    <div class="new-job">
      <form ref={form} onSubmit={(event) => event.preventDefault()} aria-label="New comparison">
        <DataStep
          draft={draft}
          change={change}
          wrong={wrong}
          unvalidated={false}
          onFormat={(format) => change({ learn: learnFrom(format) })}
        />
        <ModelStep draft={draft} change={change} wrong={wrong} />
        <MethodsStep methods={draft.methods} onChange={(methods) => change({ methods })} wrong={wrong} />
        <BudgetStep draft={draft} change={change} wrong={wrong} />
      </form>
      <Start draft={draft} body={body} busy={busy} error={error} onStart={submit} />
    </div>
  );
}

interface ModelProps {
  draft: Draft;
  change: (to: Partial<Draft>) => void;
  wrong: Wrong;
}

function ModelStep({ draft, change, wrong }: ModelProps) {
  const { data, error } = useModels();
  return (
    <fieldset class="card">
      <legend>2. Model</legend>
      <Failure error={error} doing="The models cannot be read" />
      <div class="pair">
        <BaseField
          models={data?.data}
          value={draft.model}
          onChange={(model) => change({ model })}
          wrong={wrong}
        />
        <TextField
          label="Name"
          value={draft.name}
          onChange={(name) => change({ name })}
          placeholder="does MGPO help here?"
          error={errorAt(wrong, "name")}
        />
      </div>
    </fieldset>
  );
}

interface StartProps {
  draft: Draft;
  body: Fields;
  busy: boolean;
  error: unknown;
  onStart: () => void;
}

function Start({ draft, body, busy, error, onStart }: StartProps) {
  const filled = draft.model && draft.training_file && draft.validation_file;
  const missing = filled ? null : "Choose a model, a training and a validation file first.";
  const runs = runsOf(draft);
  return (
    <aside aria-label="Before it starts">
      <p>
        {count(draft.methods.length, "method")}
        {runs !== null && `, ${count(runs, "job")} in all`}. They are queued behind your single jobs.
      </p>
      <Failure error={error} doing="The comparison was not taken" />
      <Button kind="main" refusal={missing} busy={busy} onClick={onStart}>
        Start the comparison
      </Button>
      {missing && <p class="hint">{missing}</p>}
      <AsCall path="/comparisons" body={body} />
    </aside>
  );
}

/** Bring who submits to the field that was refused. */
function useFocusOnFault(error: unknown) {
  const form = useRef<HTMLFormElement>(null);
  useEffect(() => {
    if (error) form.current?.querySelector<HTMLElement>('[aria-invalid="true"]')?.focus();
  }, [error]);
  return form;
}
