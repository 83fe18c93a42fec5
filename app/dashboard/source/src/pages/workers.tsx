import { ago, count, duration } from "../lib/format";
import { useLoaded } from "../lib/hooks";
import { href } from "../lib/router";
import { useApi } from "../lib/session";
import type { Page as Listing, Worker } from "../lib/types";
import { Code } from "../ui/code";
import { Failure } from "../ui/notice";
import { Empty, Loading, Page } from "../ui/page";

export function Workers() {
  const api = useApi();
  const { data, error } = useLoaded((signal) => api.get<Listing<Worker>>("/workers", {}, signal), [], {
    every: 5000,
  });
  return (
    <Page title="Workers">
      <Failure error={error} doing="The workers cannot be read" />
      {!data && !error && <Loading />}
      {data && !data.data.length && (
        <Empty title="No worker is alive">
          <p>Jobs wait until there is one. Start it on a machine with a GPU:</p>
          <Code text="basin worker" what="Command that starts a worker" />
        </Empty>
      )}
      <div class="cards">
        {data?.data.map((worker) => (
          <Card key={worker.id} worker={worker} />
        ))}
      </div>
    </Page>
  );
}

function Card({ worker }: { worker: Worker }) {
  const busy = worker.devices.length - worker.free;
  return (
    <section class="card">
      <h2>{worker.hostname}</h2>
      <p>
        <span class="devices" aria-hidden="true">
          {worker.devices.map((device, index) => (
            <i key={device + index} class={index < busy ? "taken" : ""} />
          ))}
        </span>
        {count(worker.devices.length, "device")} ({worker.devices.join(", ")}), {worker.free} free
      </p>
      <p class="sub">
        up {duration(Date.now() / 1000 - worker.started_at)} · heard of {ago(worker.seen_at)}
      </p>
      <ul>
        {worker.leases.map((lease, index) => (
          <li key={lease.job_id ?? index}>
            {lease.job_id ? (
              <a href={href(`/jobs/${lease.job_id}`)}>
                <code>{lease.job_id}</code>
              </a>
            ) : (
              "a job of another organization"
            )}{" "}
            on {count(lease.devices, "device")}
          </li>
        ))}
      </ul>
    </section>
  );
}
