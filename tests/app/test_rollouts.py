"""Rollouts of runs by reinforcement: told by a run, kept for some steps, shown to their owner."""

from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, select

from app.db import Database
from app.jobs import lease
from app.jobs.lease import Claim, LeaseLostError
from app.jobs.rollouts import NEWEST_STEPS, OLDER_STEPS, kept
from app.jobs.spec import RolloutSampled, train_event
from app.tables import Job, Rollout
from tests.app.basin import Basin, basin_of
from tests.app.test_lease import claimed, expire, sweep
from tests.conftest import Api
from tests.e2e.jobs import create
from tests.factories import rollout, turn

pytestmark = pytest.mark.usefixtures("empty_queue")
NAN = float("nan")


@pytest.fixture
def job_id(client: openai.OpenAI, training_file: str, empty_queue: None) -> str:
    return create(client, training_file).id


@pytest.fixture
async def held(db: Database, job_id: str) -> Claim:
    return await claimed(db)


@pytest.fixture(scope="module")
def basin(api: Api, organization: str) -> Basin:
    return basin_of(api, api.key(organization))


async def tell(db: Database, held: Claim, *said: RolloutSampled) -> None:
    async with db.transaction() as tx:
        await lease.renew(tx, held)
        await lease.record(tx, held, said)


def listed(http: httpx.Client, job_id: str, **query: Any) -> Any:
    answer = http.get(f"/fine_tuning/jobs/{job_id}/rollouts", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def places(page: Any) -> list[tuple[int, int]]:
    return [(each["step"], each["index"]) for each in page["data"]]


async def test_what_a_run_tells_is_shown_as_it_was_told(
    db: Database, http: httpx.Client, held: Claim
):
    turns = (turn(1, shared=2), turn(2, valid=False, reward=-0.1))
    told = rollout(3, 1, reward=0.9, success=None, failure="It hung.", turns=turns)

    await tell(db, held, told)
    page = listed(http, held.job_id)

    (shown,) = page["data"]
    said = told.model_dump(mode="json", exclude={"at", "type"})
    assert shown.items() >= said.items()
    assert shown["object"] == "fine_tuning.job.rollout" and shown["created_at"] == int(told.at)
    assert shown["fine_tuning_job_id"] == held.job_id
    assert page["steps"] == [{"step": 3, "rewards": [0.9]}]


async def test_the_newest_step_comes_first_and_pages_go_on_where_one_ended(
    db: Database, http: httpx.Client, held: Claim
):
    await tell(db, held, *(rollout(step, index) for step in (1, 2) for index in (1, 0, 2)))

    whole = listed(http, held.job_id)
    first = listed(http, held.job_id, limit=2)
    rest = listed(http, held.job_id, limit=10, after=first["last_id"])
    of_one = listed(http, held.job_id, step=1, limit=2)
    then = listed(http, held.job_id, step=1, after=of_one["last_id"])

    assert places(whole) == [(2, 0), (2, 1), (2, 2), (1, 0), (1, 1), (1, 2)]
    assert first["has_more"] and not rest["has_more"]
    assert places(first) + places(rest) == places(whole)
    assert places(of_one) + places(then) == [(1, 0), (1, 1), (1, 2)]
    assert [group["step"] for group in first["steps"]] == [2, 1]
    assert first["steps"][0]["rewards"] == [0.0, 1.0, 2.0]


async def test_a_step_without_rollouts_and_an_unknown_cursor_show_nothing(
    db: Database, http: httpx.Client, held: Claim
):
    await tell(db, held, rollout(1))

    assert listed(http, held.job_id, step=7)["data"] == []
    assert listed(http, held.job_id, after="ftrollout-none")["data"] == []
    refused = http.get(f"/fine_tuning/jobs/{held.job_id}/rollouts", params={"step": -1})
    assert refused.status_code == 400


async def test_what_is_told_again_by_the_same_attempt_stays_as_it_was(
    db: Database, http: httpx.Client, held: Claim
):
    await tell(db, held, rollout(1), rollout(1, 1))
    before = listed(http, held.job_id)

    await tell(db, held, rollout(1), rollout(1, 1), rollout(1, 1))

    assert listed(http, held.job_id) == before


async def test_a_step_that_a_later_attempt_takes_again_is_shown_as_that_one_told_it(
    db: Database, http: httpx.Client, held: Claim
):
    await tell(db, held, rollout(1, reward=0.25), rollout(2, reward=0.25))
    (_, first) = listed(http, held.job_id)["data"]
    await expire(db, held.job_id)
    assert await sweep(db) == [held.job_id]

    await tell(db, await claimed(db), rollout(1, reward=0.75))

    newest, again = listed(http, held.job_id)["data"]
    assert (newest["reward"], again["reward"]) == (0.25, 0.75)
    assert again["id"] == first["id"]


async def test_who_lost_the_job_tells_nothing(db: Database, http: httpx.Client, held: Claim):
    await expire(db, held.job_id)
    await sweep(db)

    with pytest.raises(LeaseLostError):
        await tell(db, held, rollout(1))
    assert listed(http, held.job_id)["data"] == []


async def test_what_json_and_the_database_do_not_hold_is_told_in_words(
    db: Database, http: httpx.Client, held: Claim
):
    odd = turn(observation="a\0b", action="\0", step_advantage=NAN, returned=float("-inf"))
    line = rollout(1, reward=NAN, failure="\0", turns=(odd,)).model_dump_json()
    told = train_event.validate_json(line)  # as a run writes it
    assert isinstance(told, RolloutSampled)

    await tell(db, held, told)
    page = listed(http, held.job_id)

    (shown,) = page["data"]
    assert (shown["reward"], shown["failure"]) == ("NaN", "\ufffd")
    assert page["steps"] == [{"step": 1, "rewards": ["NaN"]}]
    (seen,) = shown["turns"]
    assert (seen["observation"], seen["action"]) == ("a\ufffdb", "\ufffd")
    assert (seen["step_advantage"], seen["returned"]) == ("NaN", "-Infinity")


async def test_of_a_long_run_the_first_and_the_newest_steps_are_kept_and_some_between(
    db: Database, http: httpx.Client, held: Claim
):
    last = 10 * NEWEST_STEPS
    for start in range(1, last, 20):
        await tell(db, held, *(rollout(step) for step in range(start, start + 20)))

    steps = [group["step"] for group in listed(http, held.job_id)["steps"]]

    assert steps[:NEWEST_STEPS] == list(range(last, last - NEWEST_STEPS, -1))
    assert steps[-1] == 1 and len(steps) <= NEWEST_STEPS + OLDER_STEPS
    assert any(last / 4 < step < last / 2 for step in steps)


@given(st.sets(st.integers(0, 100_000), max_size=400), st.integers(1, 40))
def test_few_steps_are_kept_however_a_run_comes_to_them(steps: set[int], at_once: int):
    ordered, found = sorted(steps), set[int]()
    for start in range(0, len(ordered), at_once):
        found = kept(found | {*ordered[start : start + at_once]})

    assert found <= steps and len(found) <= NEWEST_STEPS + OLDER_STEPS
    assert found >= {*ordered[-NEWEST_STEPS:], *ordered[:1]}


async def test_a_cursor_of_another_job_shows_nothing(
    db: Database, http: httpx.Client, client: openai.OpenAI, training_file: str, held: Claim
):
    other = create(client, training_file).id
    await tell(db, held, rollout(1), rollout(1, 1))
    await tell(db, await claimed(db), rollout(2), rollout(2, 1))
    first = listed(http, held.job_id)["first_id"]

    assert listed(http, other)["data"] != []
    assert listed(http, other, after=first)["data"] == []


async def test_rollouts_go_with_their_job(db: Database, held: Claim):
    await tell(db, held, rollout(1), rollout(1, 1))

    async with db.transaction() as tx:
        await tx.delete(await tx.get_one(Job, held.job_id))

    async with db.transaction() as tx:
        left = select(func.count()).where(Rollout.job_id == held.job_id)
        assert await tx.scalar(left) == 0


async def test_another_organization_finds_no_rollouts_of_a_job(
    db: Database, stranger: httpx.Client, held: Claim
):
    await tell(db, held, rollout(1))

    answer = stranger.get(f"/fine_tuning/jobs/{held.job_id}/rollouts")

    assert answer.status_code == 404


async def test_the_command_line_shows_a_step_and_reads_one_rollout_turn_by_turn(
    db: Database, basin: Basin, held: Claim
):
    turns = (turn(1, shared=2), turn(2, valid=False, reward=-0.1, step_advantage=None))
    await tell(db, held, rollout(4, 0), rollout(4, 1, turns=turns), rollout(3, 0))

    newest = basin("jobs", "rollouts", held.job_id).stdout
    older = basin("jobs", "rollouts", held.job_id, "--step", "3").stdout
    read = basin("jobs", "rollouts", held.job_id, "--step", "4", "--open", "1").stdout
    document = basin.json("jobs", "rollouts", held.job_id)

    assert "step 4" in newest and "step 3" not in newest and "0.5" in newest
    assert "step 3" in older
    assert "You stand at door 1." in read and "open door 2" in read and "invalid" in read
    assert places(document) == [(4, 0), (4, 1)]
