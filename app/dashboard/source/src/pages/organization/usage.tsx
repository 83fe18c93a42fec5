import { bytes, duration, moment, number, whole } from "../../lib/format";
import { useLoaded } from "../../lib/hooks";
import { useApi } from "../../lib/session";
import type { Limits, Usage } from "../../lib/types";
import { Failure } from "../../ui/notice";
import { Bar } from "../../ui/progress";

export function UsageView({ admin }: { admin: boolean }) {
  const api = useApi();
  const usage = useLoaded((signal) => api.get<Usage>("/organization/usage", {}, signal), []);
  const limits = useLoaded(
    admin ? (signal) => api.get<Limits>("/organization/limits", {}, signal) : null,
    [],
  );
  return (
    <section class="card">
      <h2>Usage{usage.data && ` in ${usage.data.month}`}</h2>
      <Failure error={usage.error ?? limits.error} doing="The usage cannot be read" />
      {usage.data && (
        <dl class="facts">
          <div>
            <dt>Jobs</dt>
            <dd>
              {whole(Object.values(usage.data.jobs).reduce((sum, each) => sum + each, 0))}
              <span class="sub">
                {Object.entries(usage.data.jobs)
                  .map(([status, jobs]) => `${jobs} ${status}`)
                  .join(", ")}
              </span>
            </dd>
          </div>
          <div>
            <dt>GPU time</dt>
            <dd>{duration(usage.data.gpu_seconds)}</dd>
          </div>
          <div>
            <dt>Trained tokens</dt>
            <dd>{whole(usage.data.trained_tokens)}</dd>
          </div>
          <div>
            <dt>Stored</dt>
            <dd>{bytes(usage.data.stored_bytes)}</dd>
          </div>
        </dl>
      )}
      {limits.data && <LimitList limits={limits.data} />}
    </section>
  );
}

function LimitList({ limits }: { limits: Limits }) {
  const { used } = limits;
  const hours = (seconds: number) => `${number(seconds / 3600, 3)} h`;
  return (
    <>
      <h3>Limits</h3>
      <dl class="limits">
        <Limit name="Jobs at once" used={used.running} most={limits.max_running} words={whole} />
        <Limit name="Jobs that wait" used={used.queued} most={limits.max_queued} words={whole} />
        <Limit
          name="GPU time a month"
          used={used.gpu_seconds}
          most={limits.gpu_seconds_per_month}
          words={hours}
        />
        <Limit name="Stored" used={used.stored_bytes} most={limits.max_stored_bytes} words={bytes} />
      </dl>
      <p class="hint">
        The month begins anew on {moment(limits.resets_at)}. The operator sets limits with{" "}
        <code>basin orgs set</code>.
      </p>
    </>
  );
}

interface LimitProps {
  name: string;
  used: number;
  most: number | null;
  words: (value: number) => string;
}

function Limit({ name, used, most, words }: LimitProps) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>
        {most !== null && <Bar share={Math.min(most ? used / most : 1, 1)} label={name} />}
        {words(used)} {most === null ? "used, no limit" : `of ${words(most)}`}
      </dd>
    </div>
  );
}
