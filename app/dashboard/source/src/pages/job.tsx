import { href } from "../lib/router";
import { nameOf } from "../lib/jobs";
import { type Live, useLiveJob } from "../lib/live";
import { useApi } from "../lib/session";
import { Failure } from "../ui/notice";
import { Loading, Page } from "../ui/page";
import { StatusBadge } from "../ui/status";
import { JobActions } from "./job/actions";
import { Attempts } from "./job/attempts";
import { Checkpoints } from "./job/checkpoints";
import { Curves } from "./job/curves";
import { Diagnosis } from "./job/diagnosis";
import { Events } from "./job/events";
import { LogTail } from "./job/log";
import { Rollouts } from "./job/rollouts";
import { Spec } from "./job/spec";
import { StabilityReport } from "./job/report";
import { Summary } from "./job/summary";
import { Try } from "./job/try";

export function JobPage({ id }: { id: string }) {
  const live = useLiveJob(useApi(), id);
  const { job } = live;
  if (!job) {
    return (
      <Page title="Job" above={<a href="#/jobs">Jobs</a>}>
        {live.error ? <Failure error={live.error} doing="The job cannot be read" /> : <Loading />}
      </Page>
    );
  }
  return (
    <Page
      title={nameOf(job)}
      above={
        <>
          <a href="#/jobs">Jobs</a> / <code>{job.id}</code>
        </>
      }
      beside={
        <>
          <StatusBadge status={job.status} />
          <Connection how={live.how} />
        </>
      }
      actions={<JobActions job={job} onChange={live.show} />}
    >
      <Failure error={live.error} doing="The job is not up to date" />
      <Diagnosis job={job} />
      <Summary job={job} lines={live.lines} />
      <Curves job={job} lines={live.lines} />
      <StabilityReport job={job} />
      {job.method.type === "reinforcement" && <Rollouts job={job} />}
      {job.status === "succeeded" && job.fine_tuned_model && <Try job={job} tuned={job.fine_tuned_model} />}
      <div class="columns">
        <div>
          <Events events={live.events} />
          <LogTail job={job} />
        </div>
        <div>
          <Checkpoints job={job} />
          <Attempts job={job} />
          <Spec job={job} />
        </div>
      </div>
      {job.fine_tuned_model && (
        <p class="hint">
          Use it by its name <code>{job.fine_tuned_model}</code>, or{" "}
          <a href={href("/new", { clone: job.id })}>train another like it</a>.
        </p>
      )}
    </Page>
  );
}

function Connection({ how }: { how: Live["how"] }) {
  if (how === "over") return null;
  return (
    <span class={`connection ${how}`} role="status">
      {how === "streaming" ? "live" : "connecting…"}
    </span>
  );
}
