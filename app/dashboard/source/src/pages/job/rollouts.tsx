import { useState } from "preact/hooks";

import { useLoaded } from "../../lib/hooks";
import { isOver } from "../../lib/jobs";
import { useApi } from "../../lib/session";
import type { Job, Rollouts as Page } from "../../lib/types";
import { Failure } from "../../ui/notice";
import { Group } from "./rollouts/group";
import { Steps } from "./rollouts/steps";

/** What the policy sampled for a step: its group at a glance, and one rollout turn by turn. */
export function Rollouts({ job }: { job: Job }) {
  const api = useApi();
  const path = `/fine_tuning/jobs/${job.id}/rollouts`;
  const [chosen, choose] = useState<number | null>(null);
  const known = useLoaded(
    (signal) => api.get<Page>(path, { limit: 0 }, signal),
    [job.id, job.status, job.attempt],
    { every: isOver(job) ? 0 : 5000, keep: true },
  );
  const steps = known.data?.steps ?? [];
  const step = steps.some((each) => each.step === chosen) ? chosen : (steps[0]?.step ?? null);
  const group = useLoaded(
    step === null ? null : (signal) => api.get<Page>(path, { step, limit: 100 }, signal),
    [job.id, job.attempt, step],
  );
  return (
    <section class="card rollouts" aria-label="Rollouts">
      <h2>Rollouts</h2>
      <Failure error={known.error ?? group.error} doing="The rollouts cannot be read" />
      {known.data && step === null && <p class="muted">None yet: they are shown once a step is done.</p>}
      {step !== null && <Steps steps={[...steps].reverse()} step={step} onChoose={choose} />}
      {step !== null && group.data && <Group key={step} group={group.data.data} />}
      {group.data?.has_more && <p class="hint">The first {group.data.data.length} of the group are shown.</p>}
    </section>
  );
}
