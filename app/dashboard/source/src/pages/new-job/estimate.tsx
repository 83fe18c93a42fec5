import { bytes, roughly, whole } from "../../lib/format";
import { type Loaded, useLoaded } from "../../lib/hooks";
import { useApi } from "../../lib/session";
import type { Advice, Estimate, Fields } from "../../lib/types";
import { Button } from "../../ui/buttons";
import { Failure, Notice } from "../../ui/notice";

/** Ask what a job would take, without submitting it. */
export function useEstimate(body: Fields | null): Loaded<Estimate> {
  const api = useApi();
  return useLoaded(body ? () => api.post<Estimate>("/fine_tuning/jobs", body, { dry_run: true }) : null, [
    body,
  ]);
}

interface Props {
  estimate: Loaded<Estimate>;
  /** Why there is none yet. */
  refusal: string | null;
  onAdvice: (change: Fields) => void;
}

export function EstimatePanel({ estimate, refusal, onAdvice }: Props) {
  const { data, error } = estimate;
  return (
    <section class="card estimate" aria-live="polite">
      <h2>Estimate</h2>
      {refusal && <p class="muted">{refusal} What the job would take stands here then.</p>}
      {!refusal && !data && !error && <p class="muted">Working it out…</p>}
      <Failure error={error} doing="The job would not be taken" />
      {data && <Numbers estimate={data} />}
      {data?.fits.advice.map((each) => (
        <Advised key={JSON.stringify(each.change)} advice={each} onTake={() => onAdvice(each.change)} />
      ))}
    </section>
  );
}

function Numbers({ estimate }: { estimate: Estimate }) {
  const { steps, tokens, memory, time, queue, basis, fits, warnings } = estimate;
  return (
    <>
      <dl class="facts narrow">
        {time && (
          <Fact
            name="Time"
            value={`≈ ${roughly(time.expected_s)}`}
            more={`${roughly(time.low_s)} to ${roughly(time.high_s)}`}
          />
        )}
        {memory && (
          <Fact
            name="Memory"
            value={`≈ ${bytes(memory.expected_bytes)}`}
            more={`${bytes(memory.low_bytes)} to ${bytes(memory.high_bytes)}`}
          />
        )}
        <Fact name="Steps" value={whole(steps)} more={`${whole(tokens.total)} tokens`} />
        <Fact
          name="Wait"
          value={queue.wait_expected_s === null ? "unknown" : `≈ ${roughly(queue.wait_expected_s)}`}
          more={queue.reason}
        />
      </dl>
      <Notice kind={fits.verdict ? "good" : "warn"} title={fits.words} />
      {warnings.map((each) => (
        <Notice key={each} kind="warn" title={each} />
      ))}
      <p class="hint">{basis.words.charAt(0).toUpperCase() + basis.words.slice(1)}.</p>
    </>
  );
}

function Fact({ name, value, more }: { name: string; value: string; more: string }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>
        {value}
        <span class="sub">{more}</span>
      </dd>
    </div>
  );
}

/** A change that needs less memory, to be taken over with a press. */
function Advised({ advice, onTake }: { advice: Advice; onTake: () => void }) {
  const change = Object.entries(advice.change)
    .map(([name, value]) => `${name} = ${value}`)
    .join(", ");
  return (
    <p class="advised">
      <code>{change}</code> needs about {bytes(advice.expected_bytes)}
      {advice.fits ? "" : ", still too much"}.
      <Button kind="quiet" label={`Take over ${change}`} onClick={onTake}>
        Take over
      </Button>
    </p>
  );
}
