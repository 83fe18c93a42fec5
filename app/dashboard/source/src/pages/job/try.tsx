import { useEffect, useRef, useState } from "preact/hooks";

import { count, duration } from "../../lib/format";
import { type Answer, answer } from "../../lib/preview";
import { useApi, useRefusal } from "../../lib/session";
import type { Job } from "../../lib/types";
import { Button } from "../../ui/buttons";
import { Field } from "../../ui/field";
import { Failure } from "../../ui/notice";

type Answers = Record<string, Answer>;

/** Ask the base and what the job made of it the same question. */
export function Try({ job, tuned }: { job: Job; tuned: string }) {
  return (
    <section class="card" aria-label="Before and after">
      <h2>Before and after</h2>
      {job.task === "classification" ? (
        <p class="muted">
          This model chooses a label and writes no text, so it cannot be asked here. Download the adapter: its
          card says how to load it.
        </p>
      ) : (
        <Box base={job.model} tuned={tuned} />
      )}
    </section>
  );
}

function Box({ base, tuned }: { base: string; tuned: string }) {
  const refusal = useRefusal("write");
  const [question, setQuestion] = useState("");
  const { answers, busy, error, ask, stop } = useAnswers([base, tuned]);
  return (
    <>
      <Field
        label="Ask both models"
        hint={
          refusal ??
          "A preview: one after the other, short, and always the most likely words. The first one takes a while to load."
        }
      >
        {(ties) => (
          <textarea
            {...ties}
            rows={2}
            value={question}
            onInput={(event) => setQuestion(event.currentTarget.value)}
          />
        )}
      </Field>
      <div class="actions">
        <Button
          kind="main"
          onClick={() => void ask(question)}
          busy={busy}
          refusal={refusal ?? (question.trim() ? null : "Write a question first.")}
        >
          Ask
        </Button>
        {busy && <Button onClick={stop}>Stop</Button>}
      </div>
      <Failure error={error} doing="There is no answer" />
      <div class="pair">
        <Said title="Before" model={base} answer={answers[base]} />
        <Said title="After" model={tuned} answer={answers[tuned]} />
      </div>
    </>
  );
}

/** Ask models one after the other, as a worker answers; leaving the page stops it. */
function useAnswers(models: string[]) {
  const api = useApi();
  const asking = useRef<AbortController | null>(null);
  const [answers, setAnswers] = useState<Answers>({});
  const [error, setError] = useState<unknown>(null);
  const [busy, setBusy] = useState(false);
  const stop = () => asking.current?.abort();
  useEffect(() => stop, []);
  const ask = async (question: string) => {
    const { signal } = (asking.current = new AbortController());
    setBusy(true);
    setError(null);
    setAnswers({});
    try {
      for (const model of models) {
        await answer(api, model, question, signal, (now) => setAnswers((all) => ({ ...all, [model]: now })));
      }
    } catch (problem) {
      setAnswers(stopped);
      if (!signal.aborted) setError(problem);
    } finally {
      setBusy(false);
    }
  };
  return { answers, busy, error, ask, stop };
}

function stopped(answers: Answers): Answers {
  const end = (each: Answer): Answer =>
    ["waiting", "answering"].includes(each.state) ? { ...each, state: "stopped" } : each;
  return Object.fromEntries(Object.entries(answers).map(([model, each]) => [model, end(each)]));
}

function Said({ title, model, answer }: { title: string; model: string; answer: Answer | undefined }) {
  if (!answer) return null;
  return (
    <div role="group" aria-label={title} aria-busy={["waiting", "answering"].includes(answer.state)}>
      <h3>
        {title} <small class="muted">{model}</small>
      </h3>
      <pre class="wrapped">{answer.text}</pre>
      <p class="hint" role="status">
        {wordsFor(answer)}
      </p>
    </div>
  );
}

function wordsFor({ text, state, limits }: Answer): string {
  const most = limits ? `${count(limits.max_tokens, "token")} or ${duration(limits.timeout_s)}` : "its limit";
  switch (state) {
    case "waiting":
      return "Waiting for a worker and the model…";
    case "answering":
      return `Answering, with at most ${most}…`;
    case "cut":
      return `Cut here: a preview ends at ${most}, or where the model’s context does.`;
    case "stopped":
      return "Stopped before its end.";
    case "whole":
      return text ? "The whole answer." : "It said nothing.";
  }
}
