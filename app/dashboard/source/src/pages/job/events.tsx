import { clock, moment } from "../../lib/format";
import type { JobEvent } from "../../lib/types";

export function Events({ events }: { events: JobEvent[] }) {
  return (
    <section class="card">
      <h2>Events</h2>
      <div class="events" role="log" aria-label="Events, newest first" tabIndex={0}>
        <ol>
          {events.map((event) => (
            <li key={event.id} class={event.level}>
              <time title={moment(event.created_at)}>{clock(event.created_at)}</time>
              <span>
                {event.level !== "info" && <b>{event.level} </b>}
                {event.message}
              </span>
            </li>
          ))}
        </ol>
      </div>
      {!events.length && <p class="muted">Nothing has happened yet.</p>}
    </section>
  );
}
