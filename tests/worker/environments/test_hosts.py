"""What an environment does in its process is no matter of the run."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.waiting import wait_until
from worker.environments.base import EnvironmentUnavailable, Failure, Outcome
from worker.environments.hosts import Hosts
from worker.environments.key_door import KeyDoorArguments, expert

EPISODE: dict[str, object] = {"seed": 1}


def hosts(name: str = "misbehaving", *, slots: int = 1, timeout_s: float = 20) -> Hosts:
    return Hosts(name, {}, slots=slots, timeout_s=timeout_s)


def failure(said: Outcome | Failure) -> str:
    assert isinstance(said, Failure), said
    return said.reason


def seen(said: Outcome | Failure) -> str:
    assert isinstance(said, Outcome), said
    return said.observation


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_an_episode_is_played_in_each_slot():
    seeds = (1, 2, 3)
    with Hosts("key-door", {"width": 4}, slots=3, timeout_s=20) as rooms:
        began = rooms.reset([{"seed": seed} for seed in seeds])
        plans = {
            slot: expert(KeyDoorArguments(width=4), {"seed": seeds[slot]}) for slot in range(3)
        }
        ended = {}
        while plans:
            said = rooms.step({slot: plan.pop(0) for slot, plan in plans.items()})
            ended |= said
            plans = {slot: plan for slot, plan in plans.items() if plan}

    assert "key" in rooms.instructions
    assert len({seen(each) for each in began}) == 3
    assert all(isinstance(each, Outcome) and each.success and each.done for each in ended.values())


def test_all_are_asked_before_one_is_waited_for():
    with hosts(slots=4) as slow:
        slow.reset([EPISODE] * 4)
        began = time.monotonic()

        slow.step(dict.fromkeys(range(4), "sleep 1"))

        assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("raise", "KeyError: 'lamp'"),
        ("exit", "exit code 1: I am leaving"),
        ("segfault", "SIGSEGV"),
        ("garble", "no answer: b'garbage"),
        ("garble endlessly", "a line without an end"),
        ("eat", "MemoryError"),
        ("flood", "File too large"),
    ],
)
def test_what_goes_wrong_fails_one_episode_and_its_slot_is_used_again(action: str, reason: str):
    with hosts(slots=2) as two:
        two.reset([EPISODE] * 2)

        said = two.step({0: action, 1: "go on"})
        later = two.step({1: "go on"})
        again = two.reset([EPISODE] * 2)

    assert reason in failure(said[0])
    assert (seen(said[1]), seen(later[1])) == ("2", "3")
    assert [seen(each) for each in again] == ["1", "1"]


def test_of_a_long_failure_the_beginning_is_told():
    with hosts() as one:
        one.reset([EPISODE])
        said = one.step({0: "lament"})

    assert failure(said[0]).startswith("ValueError: no luck")
    assert len(failure(said[0])) <= 2000


def test_a_reset_can_fail_too():
    with hosts(slots=2) as two:
        said = two.reset([{"do": "raise"}, EPISODE])

    assert "lamp" in failure(said[0]) and seen(said[1]) == "1"


def test_one_that_hangs_is_killed_with_whatever_it_started():
    with hosts(timeout_s=1) as one:
        one.reset([EPISODE])
        child = int(seen(one.step({0: "fork"})[0]).split()[-1])

        said = one.step({0: "sleep 600"})[0]

        assert "longer than" in failure(said)
        wait_until(lambda: is_gone(child), timeout_s=5)
        assert seen(one.reset([EPISODE])[0]) == "1"


def test_the_time_of_an_episode_is_what_it_was_waited_for_in_all():
    with hosts(timeout_s=3) as one:
        one.reset([EPISODE])
        time.sleep(1.5)  # the model's own time

        said = [one.step({0: "sleep 1"})[0] for _ in range(2)]

        assert [seen(each) for each in said] == ["2 slept", "3 slept"]
        assert "longer than" in failure(one.step({0: "sleep 2"})[0])


@pytest.mark.parametrize("reward", ["nan", "inf", "-inf"])
def test_a_reward_is_a_number(reward: str):
    with hosts("not-a-number") as one:
        one.reset([EPISODE])

        assert failure(one.step({0: reward})[0])
        assert isinstance(one.reset([EPISODE])[0], Outcome)


def test_what_is_printed_is_no_answer():
    with hosts() as one:
        one.reset([EPISODE])

        assert seen(one.step({0: "print"})[0]) == "2 read ''"


def test_a_process_that_was_killed_between_two_actions_fails_its_episode():
    with hosts() as one:
        pid = int(seen(one.reset([{"do": "pid"}])[0]).split()[-1])
        os.kill(pid, signal.SIGKILL)

        assert "SIGKILL" in failure(one.step({0: "go on"})[0])


def test_no_secret_and_no_setting_is_told_but_where_games_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BASIN_GAMES_DIR", "/games")
    monkeypatch.setenv("BASIN_KEY_PEPPER", "a secret")
    monkeypatch.setenv("WANDB_API_KEY", "a secret")

    with hosts() as one:
        told = seen(one.reset([{"do": "secrets"}])[0])

    assert "PATH" in told and "BASIN_GAMES_DIR" in told
    assert "PEPPER" not in told and "WANDB" not in told


def test_an_action_longer_than_a_pipe_is_heard_in_whole():
    with hosts() as one:
        one.reset([EPISODE])

        assert seen(one.step({0: "x" * (1 << 20)})[0]) == "2"


def test_slots_that_are_not_needed_are_left_out():
    with hosts(slots=2) as two:
        assert len(two.reset([EPISODE])) == 1
        with pytest.raises(ValueError, match="3 episodes do not fit into 2 slots"):
            two.reset([EPISODE] * 3)


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("nowhere", {}, "'nowhere' is installed here, but .*key-door"),
        ("missing", {}, "No module named 'not_installed_here'"),
        ("misbehaving", {"start": "unavailable"}, "Set BASIN_GAMES_DIR"),
        ("misbehaving", {"start": "crash"}, "no luck"),
        ("misbehaving", {"begin": "well"}, "unexpected keyword argument"),
    ],
)
def test_one_that_cannot_be_made_says_why(name: str, arguments: dict[str, object], reason: str):
    with pytest.raises(EnvironmentUnavailable, match=reason):
        Hosts(name, arguments, slots=2, timeout_s=20)


def test_closing_ends_every_process_and_deletes_what_they_wrote():
    with hosts(slots=2) as two:
        said = two.reset([{"do": "pid"}, {"do": "fork"}])
        pids = [int(seen(each).split()[-1]) for each in said]
        scratch = Path(psutil.Process(pids[0]).environ()["TMPDIR"])
        assert scratch.is_dir()

    wait_until(lambda: all(map(is_gone, pids)), timeout_s=5)
    assert not scratch.exists()


def test_no_process_outlives_a_trainer_that_was_killed(registered: Path):
    code = (
        "import sys, time\n"
        "from worker.environments.hosts import Hosts\n"
        f"sys.path.insert(0, {str(registered)!r})\n"
        "hosts = Hosts('misbehaving', {}, slots=2, timeout_s=600)\n"
        "print(*(each.observation for each in hosts.reset([{'do': 'pid'}] * 2)), flush=True)\n"
        "hosts.step({0: 'sleep 600', 1: 'sleep 600'})"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as trainer:
        assert trainer.stdout is not None
        pids = [int(pid) for pid in re.findall(r"pid (\d+)", trainer.stdout.readline())]
        time.sleep(0.3)  # each is busy by now, and looks at no pipe
        trainer.kill()

    assert len(pids) == 2
    wait_until(lambda: all(map(is_gone, pids)), timeout_s=5)
