"""Moves what a run says into the database."""

from app.jobs import lease
from app.jobs.spec import CheckpointSaved, StepDone
from worker.run import DATABASE_AWAY, Run
from worker.rundir import parse_events


async def relay(run: Run) -> bool:
    """Move whole new lines into the database: one transaction with the lease's renewal.

    Returns whether there were any. When the database is away, they are moved next time.
    """
    events_mark, printed_mark = run.events.mark(), run.printed.mark()
    said = list(parse_events(run.events.read()))
    printed = run.printed.read().decode(errors="replace").replace("\0", "")
    try:
        async with run.db.transaction() as tx:
            stop = await lease.renew(tx, run.claim)
            await lease.record(tx, run.claim, said)
            if printed:
                await lease.add_log(tx, run.claim, printed)
    except DATABASE_AWAY:
        run.events.back_to(events_mark)
        run.printed.back_to(printed_mark)
        raise
    run.renewed(stop)
    run.spans.take(said)
    for event in said:
        run.last = event
        if isinstance(event, StepDone):
            run.last_step = event
        elif isinstance(event, CheckpointSaved):
            run.saved_step = event.step
            if event.folder is not None:
                run.exports.append(event)
    return bool(said or printed)
