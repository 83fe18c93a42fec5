"""What a run's end means."""

import signal

import pytest

from app.jobs.spec import Failed, Finished, Stopped, TrainEvent
from worker.outcome import (
    Cancelled,
    FailedRun,
    Interrupted,
    Lost,
    Paused,
    Succeeded,
    outcome,
)

FINISHED = Finished(at=0, step=9, trained_tokens=100, metrics={})
FAILED = Failed(at=0, code="diverged", message="Lower the learning rate.")
STOPPED = Stopped(at=0, step=4)
KILL = -signal.SIGKILL


def test_finished_and_zero_is_success():
    assert outcome(0, FINISHED, stop=None) == Succeeded(FINISHED)


def test_finished_counts_even_when_the_stop_came_late():
    assert outcome(0, FINISHED, stop="cancel") == Succeeded(FINISHED)


def test_a_named_failure_is_passed_on():
    result = outcome(1, FAILED, stop=None)

    assert isinstance(result, FailedRun) and result.failure.code == "diverged"


@pytest.mark.parametrize("last", [None, STOPPED, FAILED])
def test_a_cancelled_run_is_cancelled_however_it_ended(last: TrainEvent | None):
    assert outcome(KILL, last, stop="cancel") == Cancelled()


@pytest.mark.parametrize(("code", "last"), [(0, STOPPED), (KILL, None), (1, None)])
def test_a_shutdown_interrupts(code: int, last: TrainEvent | None):
    assert outcome(code, last, stop="shutdown") == Interrupted()


@pytest.mark.parametrize("signal_name", ["SIGKILL", "SIGSEGV", "SIGBUS"])
def test_a_run_that_was_killed_is_tried_again(signal_name: str):
    result = outcome(-signal.Signals[signal_name], None, stop=None)

    assert isinstance(result, Lost) and signal_name in result.failure.message


def test_a_run_that_was_killed_for_memory_says_so():
    result = outcome(KILL, None, stop=None, out_of_memory="Lower it.")

    assert isinstance(result, Lost)
    assert (result.failure.code, result.failure.message) == ("out_of_memory", "Lower it.")


@pytest.mark.parametrize("code", ["disk_full", "rank_lost"])
def test_a_failure_of_the_machine_is_tried_again(code: str):
    assert isinstance(outcome(1, Failed(at=0, code=code, message="…"), stop=None), Lost)


def test_a_run_that_could_not_even_say_that_the_disk_is_full_is_tried_again():
    result = outcome(1, None, stop=None, disk_full=True)

    assert isinstance(result, Lost) and result.failure.code == "disk_full"


def test_a_run_that_outlives_its_budget_has_failed():
    result = outcome(KILL, None, stop="budget")

    assert isinstance(result, FailedRun) and result.failure.code == "budget_exceeded"


def test_a_run_that_ended_without_a_word_points_to_its_log():
    result = outcome(3, None, stop=None)

    assert isinstance(result, FailedRun) and "logs" in result.failure.message


def test_success_without_exit_code_zero_is_no_success():
    assert isinstance(outcome(1, FINISHED, stop=None), FailedRun)


@pytest.mark.parametrize("last", [STOPPED, None])
def test_what_its_owner_paused_is_held(last: TrainEvent | None):
    assert outcome(0 if last else KILL, last, stop="pause") == Paused()


def test_a_failure_while_it_was_being_paused_is_a_failure():
    assert isinstance(outcome(1, FAILED, stop="pause"), FailedRun)
