"""The run folder between a supervisor and its run."""

import math
from pathlib import Path

from app.jobs.spec import Failed, StepDone, Warned
from worker.rundir import LineTail, RunDir, parse_events, write_atomic


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
