"""Whatever dies, a policy learns from the same rollouts, and no environment outlives its run."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.chaos.cluster import Cluster, Worker, running
from tests.chaos.invariants import assert_all_is_well
from tests.chaos.test_kill_matrix import hurry, kill_run
from tests.environments import register
from tests.factories import to_jsonl
from tests.held import hold, let_go_once_asked_to_stop, processes_of
from tests.waiting import wait_until, within

slow = pytest.mark.slow
pytestmark = [pytest.mark.timeout(400), pytest.mark.usefixtures("no_workers_between")]
STEPS, HELD_AFTER, EVERY = 24, 8, 3
ROWS, GROUP = 12, 4
ROOMS = {
    "key-door-with-engine": "tests.chaos.rooms:KeyDoorWithEngine",
    "unruly": "tests.chaos.rooms:Unruly",
}
TRAINING = {
    "max_steps": STEPS,
    "checkpoint_steps": EVERY,
    "eval_steps": 10,
    "learning_rate": 1e-3,
    "max_length": 256,
}
SAME = ["train_loss", "train_reward_mean", "valid_reward_mean"]  # whatever was done to a run
GRADER = {
    "type": "text_similarity",
    "name": "close",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "evaluation_metric": "fuzzy_match",
}
WRONGS = {
    "sleep 600": "longer than an episode may be waited for",
    "segfault": "SIGSEGV",
    "garble": "what is no answer",
    "go on": None,
}


@dataclass(frozen=True)
class Task:
    """What a policy is to learn: rows, and the method's own part of a job."""

    rows: Sequence[dict[str, Any]]
    asked: dict[str, Any]

    def submit(self, cluster: Cluster, **training: Any) -> str:
        hyperparameters = {"batch_size": 1, "n_epochs": 1}
        common = {"group_size": GROUP, "max_completion_tokens": 6, "kl": 0.02}
        policy = common | {"hyperparameters": hyperparameters} | self.asked
        rows = to_jsonl(list(self.rows))
        return cluster.submit(
            rows=rows,
            validation_file=cluster.upload(rows),
            method={"type": "reinforcement", "reinforcement": policy},
            training=TRAINING | training,
            peft={"method": "lora", "r": 4},
        )


DOORS = Task(
    rows=[{"episode": {"seed": seed}} for seed in range(ROWS)],
    asked={
        "environment": {"name": "key-door-with-engine", "args": {"width": 3}, "max_turns": 4},
        "algorithm": "gigpo",
    },
)
SUMS = Task(
    rows=[
        {"messages": [{"role": "user", "content": f"{n} plus 1?"}], "answer": f"{n + 1}"}
        for n in range(ROWS)
    ],
    asked={"grader": GRADER},
)
MISHAPS = Task(
    rows=[{"episode": {"do": wrong}} for wrong in WRONGS] * (ROWS // len(WRONGS)),
    asked={"environment": {"name": "unruly", "timeout_s": 1.0, "max_turns": 3}},
)
HANGS = Task(
    rows=[{"episode": {"do": "sleep 600"}}] * ROWS,
    asked={"environment": {"name": "unruly", "timeout_s": 600}},
)
TASKS = {"doors": DOORS, "sums": SUMS}
STARTED = {"doors": 1 + 2 * GROUP, "sums": 1}  # processes: each room has an engine


@pytest.fixture(scope="module")
def cluster(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    registered = register(tmp_path_factory.mktemp("registered"), ROOMS)
    scratch = tmp_path_factory.mktemp("scratch")
    with running(models_dir, {"PYTHONPATH": str(registered), "TMPDIR": str(scratch)}) as found:
        yield found


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster) -> dict[str, str]:
    """By task, a job that was left alone."""
    worker = cluster.start_worker()
    jobs = {name: task.submit(cluster) for name, task in TASKS.items()}
    ended = [cluster.wait(job_id) for job_id in jobs.values()]
    cluster.kill_worker(worker)
    assert [job["status"] for job in ended] == ["succeeded"] * len(jobs), ended
    for job_id in jobs.values():  # there was something to learn
        turns = [turn for each in shown(cluster, job_id) for turn in each["turns"]]
        assert any(turn["episode_advantage"] for turn in turns)
    return jobs


def family(cluster: Cluster, job_id: str) -> list[psutil.Process]:
    """A run and whatever it started."""
    runs = processes_of(job_id)
    return [*runs, *(each for run in runs for each in run.children(recursive=True))]


def assert_gone(processes: Sequence[psutil.Process], *, at_least: int) -> None:
    assert len(processes) >= at_least
    assert within(10, lambda: not any(map(lives, processes))), list(filter(lives, processes))


def lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def assert_no_file_is_left(cluster: Cluster, worker: Worker) -> None:
    assert within(10, lambda: not list((worker.data / "runs").iterdir()))
    assert not list(Path(cluster.settings["TMPDIR"]).glob("basin-*"))


def assert_it_learned_from_the_same(cluster: Cluster, job_id: str, undisturbed: str) -> None:
    """The bits of a job that was left alone, its rollouts, each once, and what they came to."""
    assert_all_is_well(
        cluster, job_id, cluster.weights(undisturbed), steps=STEPS, checkpoint_steps=EVERY
    )
    assert rollouts(cluster, job_id) == rollouts(cluster, undisturbed)
    assert measured(cluster, job_id) == measured(cluster, undisturbed)


def measured(cluster: Cluster, job_id: str) -> list[tuple[Any, ...]]:
    query = (
        "SELECT name, step, value FROM metrics WHERE job_id = %s AND name = ANY(%s) ORDER BY 1, 2"
    )
    found = cluster.sql(query, job_id, SAME)
    assert {name for name, *_ in found} == set(SAME)
    return found


def rollouts(cluster: Cluster, job_id: str) -> list[dict[str, Any]]:
    """What is shown of a job's rollouts, without what each job has of its own."""
    own = ("step", "index", "reward", "success", "failure", "turns")
    return [{name: each[name] for name in own} for each in shown(cluster, job_id)]


def shown(cluster: Cluster, job_id: str) -> list[dict[str, Any]]:
    with cluster.http as http:
        page = http.get(f"/fine_tuning/jobs/{job_id}/rollouts", params={"limit": 100})
    found: list[dict[str, Any]] = page.json()["data"]
    return found


@pytest.mark.parametrize("name", ["doors", pytest.param("sums", marks=slow)])
def test_the_trainer_is_killed(cluster: Cluster, undisturbed: dict[str, str], name: str):
    worker = cluster.start_worker()
    job_id = TASKS[name].submit(cluster)
    hold(worker.data, job_id, after_step=HELD_AFTER)
    started = family(cluster, job_id)

    kill_run(cluster, job_id)
    hurry(cluster, job_id)
    cluster.wait(job_id)

    assert_it_learned_from_the_same(cluster, job_id, undisturbed[name])
    first, second = cluster.attempts(job_id)
    resumed_from = second["first_step"] - 1
    assert first["outcome"] == "killed" and resumed_from and resumed_from % EVERY == 0
    assert_gone(started, at_least=STARTED[name])
    assert_no_file_is_left(cluster, worker)


@pytest.mark.parametrize("name", [pytest.param(each, marks=slow) for each in TASKS])
def test_the_worker_is_killed(cluster: Cluster, undisturbed: dict[str, str], name: str):
    worker = cluster.start_worker()
    job_id = TASKS[name].submit(cluster)
    hold(worker.data, job_id, after_step=HELD_AFTER)
    started = family(cluster, job_id)

    worker.process.kill()
    cluster.expire(job_id)
    again = cluster.start_worker(data=worker.data)
    cluster.wait(job_id)

    assert_it_learned_from_the_same(cluster, job_id, undisturbed[name])
    assert_gone(started, at_least=STARTED[name])
    assert_no_file_is_left(cluster, again)


def test_a_pause_frees_the_machine_and_the_job_goes_on_exactly(
    cluster: Cluster, undisturbed: dict[str, str]
):
    worker = cluster.start_worker()
    job_id = DOORS.submit(cluster)
    hold(worker.data, job_id, after_step=HELD_AFTER)
    started = family(cluster, job_id)

    ask(cluster, job_id, "pause")
    let_go_once_asked_to_stop(job_id)
    cluster.wait(job_id, until=("paused",))
    assert_gone(started, at_least=STARTED["doors"])
    ask(cluster, job_id, "resume")
    cluster.wait(job_id)

    assert_it_learned_from_the_same(cluster, job_id, undisturbed["doors"])
    paused, succeeded = cluster.attempts(job_id)
    assert succeeded["first_step"] == paused["last_step"] + 1
    assert_no_file_is_left(cluster, worker)


@slow
def test_a_pause_ends_an_environment_that_hangs(cluster: Cluster):
    cluster.start_worker()
    job_id = HANGS.submit(cluster)
    wait_until(lambda: len(family(cluster, job_id)) > GROUP, timeout_s=120)
    started = family(cluster, job_id)

    ask(cluster, job_id, "pause")
    cluster.wait(job_id, until=("paused",), timeout_s=60)

    assert_gone(started, at_least=1 + GROUP)
    ask(cluster, job_id, "cancel")


def ask(cluster: Cluster, job_id: str, what: str) -> None:
    with cluster.http as http:
        http.post(f"/fine_tuning/jobs/{job_id}/{what}").raise_for_status()


def test_a_cancel_ends_every_environment_of_a_run_that_was_warm(cluster: Cluster):
    worker = cluster.start_worker()
    warm = cluster.wait_for_warm(worker)
    job_id = DOORS.submit(cluster, max_steps=10_000)
    cluster.wait_for_step(job_id, 1)
    started = family(cluster, job_id)

    ask(cluster, job_id, "cancel")
    cancelled = within(10, lambda: cluster.job(job_id)["status"] == "cancelled")

    assert cancelled and started[0] == warm
    assert_gone(started, at_least=STARTED["doors"])
    assert_no_file_is_left(cluster, worker)


def test_an_environment_that_hangs_or_crashes_fails_its_episodes_alone(cluster: Cluster):
    worker = cluster.start_worker()
    job_id = MISHAPS.submit(cluster, max_steps=ROWS)
    next_id = SUMS.submit(cluster, max_steps=1)
    job, following = cluster.wait(job_id), cluster.wait(next_id)

    assert (job["status"], following["status"]) == ("succeeded", "succeeded"), job["error"]
    assert [each["outcome"] for each in cluster.attempts(job_id)] == ["succeeded"]
    episodes = shown(cluster, job_id)
    assert Counter(why(each["failure"]) for each in episodes) == dict.fromkeys(
        WRONGS.values(), ROWS // len(WRONGS) * GROUP
    )
    broken_off = {each["step"] for each in episodes if each["failure"] is not None}
    counted = cluster.sql(
        "SELECT step FROM metrics WHERE job_id = %s AND name = 'train_failed_episodes'"
        " AND value = 1",
        job_id,
    )
    assert {step for (step,) in counted} == broken_off
    assert_no_file_is_left(cluster, worker)


def why(failure: str | None) -> str | None:
    """Which of the reasons a failure tells."""
    known = (reason for reason in WRONGS.values() if reason is not None)
    return next((reason for reason in known if failure and reason in failure), failure)
