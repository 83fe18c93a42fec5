"""A job's stream: whoever comes back with the last id misses nothing and hears nothing twice."""

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from app import web
from app.db import Database, connected
from app.jobs import events, lease
from app.jobs.lease import Claim, Failure
from app.jobs.spec import EvalDone, StepDone, TrainEvent
from app.jobs.stream import Live, Position, read
from app.keys.service import Scope
from app.web import EventStream
from tests.app.racing import commit, somebody_waits
from tests.app.watching import JOBS, Watch
from tests.chaos.cluster import Cluster, running
from tests.conftest import Api

pytestmark = pytest.mark.usefixtures("empty_queue")
LONG_S = 60


@pytest.fixture
def job_id(http: httpx.Client, training_file: str, empty_queue: None) -> str:
    body = {"model": "tiny-llama", "training_file": training_file}
    found: str = http.post(JOBS, json=body).json()["id"]
    return found


@pytest.fixture
async def held(db: Database, job_id: str) -> Claim:
    found = await commit(db, lambda tx: lease.claim(tx, "w1", free=1))
    assert found is not None and found.job_id == job_id
    return found


@pytest.fixture
async def watch(api: Api, organization: str, job_id: str) -> AsyncIterator[Watch]:
    async with client_of(api.url, await asyncio.to_thread(api.key, organization)) as client:
        yield Watch(client, job_id)


@asynccontextmanager
async def client_of(url: str, key: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=f"{url}/v1",
        headers={"Authorization": f"Bearer {key}"},
        timeout=LONG_S,
        limits=httpx.Limits(max_connections=None),
    ) as client:
        yield client


def step(number: int, **metrics: float) -> StepDone:
    return StepDone(
        at=time.time(), step=number, epoch=0.1, metrics=metrics or {"train_loss": 1 / number}
    )


async def tell(db: Database, held: Claim, *said: TrainEvent) -> None:
    await commit(db, lambda tx: lease.record(tx, held, said))


async def end(db: Database, held: Claim) -> None:
    await commit(db, lambda tx: lease.cancel(tx, held))


async def test_a_job_that_is_over_is_told_from_its_beginning_and_done(
    db: Database, http: httpx.Client, held: Claim, watch: Watch
):
    await tell(db, held, step(1, train_loss=math.nan, lr=0.1), step(2, train_loss=-math.inf))
    await end(db, held)

    await watch.read()

    story = http.get(f"{JOBS}/{held.job_id}/events").json()["data"]
    assert watch.messages[0].event == "status"
    assert watch.of("status") == [http.get(f"{JOBS}/{held.job_id}").json()]
    assert watch.of("metrics") == [
        {"step": 1, "attempt": 1, "values": {"lr": 0.1, "train_loss": "NaN"}},
        {"step": 2, "attempt": 1, "values": {"train_loss": "-Infinity"}},
    ]
    assert watch.of("event") == story[::-1]
    assert watch.of("done") == [{"status": "cancelled"}] and watch.is_done


async def test_what_happens_is_told_while_it_happens(db: Database, held: Claim, watch: Watch):
    watching = asyncio.create_task(watch.read())
    for number in range(1, 4):
        await tell(db, held, step(number))
        await within(lambda number=number: watch.steps()[-1:] == [(1, number)])
    await end(db, held)
    await watching

    progress = [job["progress"]["step"] for job in watch.of("status")]
    assert progress == sorted(progress) and progress[-1] == 3
    assert watch.of("status")[-1]["status"] == "cancelled"


@pytest.mark.parametrize("seed", range(3))
async def test_wherever_the_line_is_cut_nothing_is_missing_and_nothing_comes_twice(
    db: Database, http: httpx.Client, held: Claim, watch: Watch, seed: int
):
    rng, steps = random.Random(seed), 400
    writing = asyncio.create_task(write(db, held, steps, random.Random(seed + 100)))

    while not watch.is_done:
        await watch.read(cut_after_bytes=rng.choice((0, 90, 2_500, 4_000, 9_000)))
        assert watch.connections < 2_000
    await writing

    told = [message["id"] for message in watch.of("event")]
    assert watch.connections > 20
    assert watch.steps() == [(1, number) for number in range(1, steps + 1)]
    assert told == ids_of_events(http, held.job_id)


async def write(db: Database, held: Claim, steps: int, rng: random.Random) -> None:
    """Tell of a run in batches of any size, then end it."""
    number = 1
    while number <= steps:
        batch = range(number, min(number + rng.randint(1, 12), steps + 1))
        await tell(db, held, *map(step, batch))
        number = batch.stop
        await asyncio.sleep(rng.random() * 0.05)
    await end(db, held)


def ids_of_events(http: httpx.Client, job_id: str) -> list[str]:
    """The ids of all events, the oldest first."""
    found: list[str] = []
    more: dict[str, Any] = {"has_more": True}
    while more["has_more"]:
        after = {"after": found[-1]} if found else {}
        more = http.get(f"{JOBS}/{job_id}/events", params={"limit": 100, **after}).json()
        found += [event["id"] for event in more["data"]]
    return found[::-1]


async def test_steps_that_a_later_attempt_takes_again_are_told_again(
    db: Database, held: Claim, watch: Watch
):
    await tell(db, held, *map(step, range(1, 7)))
    await watch.read_until(lambda: len(watch.steps()) == 6)
    late = Watch(watch.http, held.job_id)

    await commit(db, lambda tx: lease.give_back(tx, held, "bye"))
    second = await commit(db, lambda tx: lease.claim(tx, "w2", free=1))
    await tell(db, second, *map(step, range(4, 9)))
    await end(db, second)
    await watch.read()
    await late.read()

    first_steps = [(1, number) for number in range(1, 7)]
    again = [(2, number) for number in range(4, 9)]
    assert watch.steps() == first_steps + again
    assert late.steps() == first_steps[:3] + again


async def test_an_evaluation_that_is_told_later_than_its_step_is_a_message_of_its_own(
    db: Database, held: Claim, watch: Watch
):
    await tell(db, held, step(1))
    await watch.read_until(lambda: watch.steps() == [(1, 1)])
    await tell(db, held, EvalDone(at=time.time(), step=1, metrics={"valid_loss": 0.5}))
    await end(db, held)

    await watch.read()

    assert watch.of("metrics")[1:] == [{"step": 1, "attempt": 1, "values": {"valid_loss": 0.5}}]


async def test_what_is_stored_again_because_the_answer_was_lost_is_told_once(
    db: Database, held: Claim, watch: Watch
):
    said = step(1), step(2, train_loss=math.nan)
    await tell(db, held, *said)
    await watch.read_until(lambda: len(watch.steps()) == 2)

    await tell(db, held, *said)
    await end(db, held)
    await watch.read()

    assert watch.steps() == [(1, 1), (1, 2)]


async def test_more_than_a_page_is_told_to_its_end(db: Database, held: Claim, watch: Watch):
    await tell(db, held, *map(step, range(1, 1001)))
    await end(db, held)

    await watch.read()

    assert watch.steps() == [(1, number) for number in range(1, 1001)]
    assert watch.is_done


async def test_who_looks_between_two_commits_misses_neither_event(db: Database, held: Claim):
    def say(message: str) -> Any:
        async def add(tx: AsyncSession) -> None:
            events.add(tx, held.job_id, message)
            await tx.flush()

        return add

    def page(position: Position) -> Any:
        return commit(db, lambda tx: read(tx, held.organization_id, held.job_id, position))

    async with db.transaction() as tx:
        await say("begun first")(tx)
        late = asyncio.create_task(commit(db, say("begun second")))
        while not late.done() and not await commit(db, somebody_waits):
            await asyncio.sleep(0.001)
        between = await page(Position())
    await late
    after = await page(between.end)

    told = between.body + after.body
    assert 0 < told.index(b"begun first") < told.index(b"begun second")


async def test_five_hundred_watchers_of_one_process_are_told_all(
    db: Database, held: Claim, watch: Watch
):
    watches = [Watch(watch.http, held.job_id) for _ in range(500)]
    watching = asyncio.gather(*(each.read() for each in watches))
    await within(lambda: all(each.messages for each in watches))

    for number in range(1, 6):
        await tell(db, held, step(number))
    await end(db, held)
    await watching

    assert all(each.is_done for each in watches)
    assert {tuple(each.steps()) for each in watches} == {tuple((1, n) for n in range(1, 6))}


class Counting(Database):
    """Counts its transactions."""

    begun = 0

    def transaction(self) -> Any:
        self.begun += 1
        return super().transaction()


async def test_a_hundred_watchers_look_once(db: Database, api: Api, held: Claim):
    counted = Counting(api.settings.database_url)
    live = Live(counted)
    organization_id = held.organization_id
    streams = [live.watch(organization_id, held.job_id, Position()) for _ in range(100)]
    for _ in range(2):  # the greeting, and what there is
        await asyncio.gather(*(anext(stream) for stream in streams))
    told = [asyncio.create_task(anext(stream)) for stream in streams]
    await asyncio.sleep(0)
    begun = counted.begun

    await tell(db, held, step(1))
    live.heard(held.job_id)
    pieces = await asyncio.gather(*told)

    assert len(set(pieces)) == 1 and b'"step":1' in pieces[0]
    assert (begun, counted.begun) == (1, 2)
    for stream in streams:
        await stream.aclose()
    assert live.watchers == 0
    await counted.close()


async def test_a_place_in_the_queue_that_changes_is_told(
    http: httpx.Client, training_file: str, job_id: str, watch: Watch
):
    body = {"model": "tiny-llama", "training_file": training_file}
    watch.job_id = http.post(JOBS, json=body).json()["id"]
    watching = asyncio.create_task(
        watch.read_until(lambda: any(job["queue"]["position"] == 1 for job in watch.of("status")))
    )
    await within(lambda: bool(watch.messages))

    await asyncio.to_thread(http.post, f"{JOBS}/{job_id}/cancel")
    await watching

    assert watch.of("status")[0]["queue"]["position"] == 2


async def test_who_takes_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(web, "SEND_TIMEOUT_S", 0.05)
    left = asyncio.Event()

    async def news() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b": news\n\n"
        finally:
            left.set()

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    await asyncio.wait_for(EventStream(news()).stream_response(send), LONG_S)

    assert left.is_set()


async def test_a_stream_of_a_job_that_goes_on_ends_and_its_watcher_comes_back(
    db: Database, held: Claim, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("app.jobs.stream.LONGEST_S", 0.5)
    monkeypatch.setattr("app.jobs.stream.KEEP_ALIVE_S", 0.1)
    live = Live(db)

    async with asyncio.timeout(LONG_S):
        told = [each async for each in live.watch(held.organization_id, held.job_id, Position())]

    assert b"event: status" in b"".join(told) and b"event: done" not in b"".join(told)
    assert live.watchers == 0


async def test_a_stream_ends_soon_after_its_key(api: Api, organization: str, job_id: str):
    key = await asyncio.to_thread(api.key, organization)
    admin = await asyncio.to_thread(api.key, organization, Scope.ADMIN)
    async with (
        client_of(api.url, key) as client,
        client_of(api.url, admin) as other,
        client.stream("GET", f"{JOBS}/{job_id}/stream") as answer,
    ):
        pieces = answer.aiter_text()
        first = await anext(pieces)
        revoked = await other.delete(f"/organization/keys/{key[3:15]}")
        rest = "".join([piece async for piece in pieces])

    assert answer.status_code == 200 and revoked.status_code == 200
    assert "event: done" not in first + rest


def test_a_strangers_job_has_no_stream(stranger: httpx.Client, job_id: str):
    assert stranger.get(f"{JOBS}/{job_id}/stream").status_code == 404


@pytest.mark.parametrize("cursor", ["abc", "1", "1.2.3", "-1.2", "1." + "9" * 30, "1.2\x85"])
def test_an_id_that_is_none_is_refused(http: httpx.Client, job_id: str, cursor: str):
    answer = http.get(f"{JOBS}/{job_id}/stream", params={"after": cursor})

    assert answer.status_code == 400 and answer.json()["error"]["param"] == "after"


@pytest.fixture
def cluster(models_dir: Path) -> Iterator[Cluster]:
    with running(models_dir) as found:
        yield found


async def test_a_watcher_stays_while_postgresql_is_away_and_hears_what_follows(cluster: Cluster):
    job_id = await asyncio.to_thread(cluster.submit)
    url = f"http://127.0.0.1:{cluster.port}"
    async with (
        client_of(url, cluster.key) as client,
        connected(cluster.services.database_url) as db,
    ):
        watch = Watch(client, job_id)
        watching = asyncio.create_task(watch.read())
        held = await commit(db, lambda tx: lease.claim(tx, "w1", free=1))
        await tell(db, held, step(1))
        await within(lambda: watch.steps() == [(1, 1)])

        await asyncio.to_thread(cluster.kill_server, "postgres")
        await asyncio.sleep(1.5)
        await asyncio.to_thread(cluster.start_postgres)
        await tell(db, held, step(2))
        await commit(db, lambda tx: lease.fail(tx, held, Failure("diverged", "Lower it.")))
        await watching

    assert watch.connections == 1
    assert watch.steps() == [(1, 1), (1, 2)]
    assert watch.of("done") == [{"status": "failed"}]


async def within(ready: Any, timeout_s: float = LONG_S) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(timeout_s):
        while not ready():
            await asyncio.sleep(0.01)
