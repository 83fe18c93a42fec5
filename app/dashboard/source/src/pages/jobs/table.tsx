import { ago } from "../../lib/format";
import { methodOf, nameOf } from "../../lib/jobs";
import { href } from "../../lib/router";
import type { Job } from "../../lib/types";
import { Progress } from "../../ui/progress";
import { StatusBadge } from "../../ui/status";

interface Props {
  jobs: Job[];
  picked: string[];
  onPick: (id: string) => void;
}

export function JobsTable({ jobs, picked, onPick }: Props) {
  return (
    <table class="rows">
      <thead>
        <tr>
          <th scope="col">
            <span class="unseen">Compare</span>
          </th>
          <th scope="col">Job</th>
          <th scope="col">Status</th>
          <th scope="col" class="wide">
            Progress
          </th>
          <th scope="col">Method</th>
          <th scope="col">Submitted</th>
        </tr>
      </thead>
      <tbody>
        {jobs.map((job) => (
          <tr key={job.id}>
            <td class="tick">
              <input
                type="checkbox"
                aria-label={`Compare ${nameOf(job)} ${job.id}`}
                checked={picked.includes(job.id)}
                onChange={() => onPick(job.id)}
              />
            </td>
            <th scope="row">
              <a class="name" href={href(`/jobs/${job.id}`)}>
                {nameOf(job)}
              </a>
              <span class="sub">
                {job.model} · <code>{job.id}</code>
              </span>
            </th>
            <td data-label="Status">
              <StatusBadge status={job.status} />
            </td>
            <td data-label="Progress">
              {job.status === "failed" && job.error ? (
                <span class="bad">{job.error.message}</span>
              ) : (
                <Progress job={job} />
              )}
            </td>
            <td data-label="Method">{methodOf(job)}</td>
            <td data-label="Submitted">
              <time dateTime={new Date(job.created_at * 1000).toISOString()}>{ago(job.created_at)}</time>
            </td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}
