import { useEffect, useRef, useState } from "preact/hooks";

import { answerOf } from "../../lib/preview";
import { useApi, useRefusal } from "../../lib/session";
import type { Job } from "../../lib/types";
import { Button } from "../../ui/buttons";
import { Field } from "../../ui/field";
import { Failure } from "../../ui/notice";

interface Answer {
  text: string;
  state: "asked" | "answering" | "answered";
}

/** Ask the base and what the job made of it the same question. */
export function Try({ job, tuned }: { job: Job; tuned: string }) {
  const api = useApi();
  const refusal = useRefusal("write");
  const asking = useRef<AbortController | null>(null);
  const [question, setQuestion] = useState("");
  const [answers, setAnswers] = useState<Record<string, Answer>>({});
  const [error, setError] = useState<unknown>(null);
  const [busy, setBusy] = useState(false);
  useEffect(() => () => asking.current?.abort(), []);

  const ask = async () => {
    const stop = new AbortController();
    asking.current = stop;
    setBusy(true);
    setError(null);
    setAnswers({});
    try {
      for (const model of [job.model, tuned]) {
        let text = "";
        const show = (state: Answer["state"]) => setAnswers((all) => ({ ...all, [model]: { text, state } }));
        show("asked");
        for await (const piece of answerOf(api, model, question, stop.signal)) {
          text += piece;
          show("answering");
        }
        show("answered");
      }
    } catch (problem) {
      if (!stop.signal.aborted) setError(problem);
    } finally {
      setBusy(false);
    }
  };
  return (
    <section class="card" aria-label="Before and after">
      <h2>Before and after</h2>
      <Field
        label="Ask both models"
        hint="A preview: one after the other, short, and always the most likely words. The first one takes a while to load."
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
        {busy && <Button onClick={() => asking.current?.abort()}>Stop</Button>}
        <Button
          kind="main"
          onClick={() => void ask()}
          busy={busy}
          refusal={refusal ?? (question.trim() ? null : "Write a question first.")}
        >
          Ask
        </Button>
      </div>
      <Failure error={error} doing="There is no answer" />
      <div class="columns">
        <Said title="Before" model={job.model} answer={answers[job.model]} />
        <Said title="After" model={tuned} answer={answers[tuned]} />
      </div>
    </section>
  );
}

function Said({ title, model, answer }: { title: string; model: string; answer: Answer | undefined }) {
  if (!answer) return null;
  const empty = answer.state === "answered" ? "It said nothing." : "…";
  return (
    <div role="group" aria-label={title} aria-busy={answer.state !== "answered"}>
      <h3>
        {title} <small class="muted">{model}</small>
      </h3>
      <pre class="wrapped">{answer.text || empty}</pre>
    </div>
  );
}
