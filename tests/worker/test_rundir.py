"""The run folder between a supervisor and its run."""

import math
import shutil
import threading
from pathlib import Path

import pytest

from app.jobs.spec import Failed, StepDone, Warned
from worker.rundir import COMPLETE, LineTail, RunDir, link_checkpoint, parse_events, write_atomic


def test_an_event_survives_the_way_through_the_file(tmp_path: Path):
    run = RunDir(tmp_path)
    said = [
        StepDone(at=1, step=1, epoch=0.5, metrics={"train_loss": math.inf}),
        Warned(at=2, code="x", message="zwei Zeilen\nund ü"),
    ]
    for event in said:
        run.append_event(event)

    assert list(parse_events(LineTail(run.events).read())) == said


def test_of_several_ranks_the_first_speaks_and_the_first_to_fail_says_why(tmp_path: Path):
    first, second = RunDir(tmp_path), RunDir(tmp_path, quiet=True)
    reason, echo = (Failed(at=1, code=code, message="m") for code in ("oom", "peer_gone"))

    second.append_event(Warned(at=1, code="x", message="m"))
    second.append_first_failure(reason)
    first.append_first_failure(echo)

    assert list(parse_events(LineTail(first.events).read())) == [reason]


def test_half_a_line_is_not_read_until_it_is_whole(tmp_path: Path):
    path = tmp_path / "log"
    tail = LineTail(path)
    assert tail.read() == b""

    path.write_bytes(b"one\ntw")
    first = tail.read()
    path.write_bytes(b"one\ntwo\n")

    assert (first, tail.read(), tail.read()) == (b"one\n", b"two\n", b"")


def test_a_line_longer_than_the_limit_comes_in_pieces(tmp_path: Path):
    path = tmp_path / "log"
    path.write_bytes(b"x" * 10 + b"\n")
    tail = LineTail(path)

    assert [tail.read(limit=4), tail.read(limit=4), tail.read(limit=4)] == [
        b"xxxx",
        b"xxxx",
        b"xx\n",
    ]


def test_what_could_not_be_passed_on_is_read_again(tmp_path: Path):
    path = tmp_path / "log"
    path.write_bytes(b"one\n")
    tail = LineTail(path)
    mark = tail.mark()
    tail.read()

    tail.back_to(mark)

    assert tail.read() == b"one\n"


def test_an_atomic_write_leaves_no_temporary_file(tmp_path: Path):
    write_atomic(tmp_path / "a", b"1")

    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_tail_knows_that_its_file_has_grown(tmp_path: Path):
    tail = LineTail(tmp_path / "events.jsonl")

    assert not tail.has_grown()
    (tmp_path / "events.jsonl").write_text("one\n")
    assert tail.has_grown()
    tail.read()
    assert not tail.has_grown()


FILES = [*(f"state-{number}" for number in range(40)), "rng/0", COMPLETE]


def make_checkpoint(run: RunDir, step: int) -> Path:
    folder = run.checkpoint(step)
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_of_many_checkpoints_the_newest_are_kept(tmp_path: Path):
    run = RunDir(tmp_path)
    for step in (2, 10, 9):
        make_checkpoint(run, step)

    run.remove_old_checkpoints(keep=2)

    assert sorted(run.checkpoints.iterdir()) == [run.checkpoint(10), run.checkpoint(9)]
    assert run.latest_checkpoint() == run.checkpoint(10)
    assert run.latest_checkpoint(upto=9) == run.checkpoint(9)


def test_a_checkpoint_counts_once_it_is_complete(tmp_path: Path):
    run = RunDir(tmp_path)
    for step in (1, 2, 3):
        make_checkpoint(run, step)
    (run.checkpoint(2) / COMPLETE).unlink()
    run.checkpoint(3).rename(run.checkpoint(3).with_suffix(".tmp"))  # being unpacked

    assert run.latest_checkpoint() == run.checkpoint(1)
    run.complete_checkpoint(2)
    assert run.latest_checkpoint() == run.checkpoint(2)


def test_no_checkpoint_counts_in_a_folder_that_is_half_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = RunDir(tmp_path)
    make_checkpoint(run, 1)
    monkeypatch.setattr(shutil, "rmtree", lambda _: (run.checkpoint(1) / "state-1").unlink())

    run.remove()

    assert (run.checkpoint(1) / "state-2").exists() and run.latest_checkpoint() is None


def test_a_checkpoint_that_is_deleted_while_it_is_copied_is_copied_whole_or_not(tmp_path: Path):
    run, whole, given_up = RunDir(tmp_path), 0, 0
    for step in range(1, 200):
        found, target = make_checkpoint(run, step), run.leaving / str(step)
        make_checkpoint(run, step + 1)
        deletion = threading.Timer(step * 1e-5, run.remove_old_checkpoints, kwargs={"keep": 1})
        deletion.start()
        try:
            link_checkpoint(found, target)
        except FileNotFoundError:
            given_up += 1
        else:
            whole += 1
            assert {name for name in FILES if (target / name).is_file()} == set(FILES)
        deletion.join()

    assert whole + given_up == 199


@pytest.mark.parametrize("lost", ["state-7", COMPLETE])
def test_a_checkpoint_whose_deletion_has_begun_is_not_copied(tmp_path: Path, lost: str):
    run = RunDir(tmp_path)
    found = make_checkpoint(run, 1)
    (found / COMPLETE).unlink()
    (found / lost).unlink(missing_ok=True)

    with pytest.raises(FileNotFoundError):
        link_checkpoint(found, run.leaving / "1")
