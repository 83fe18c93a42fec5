"""Progress without a terminal: a line when something is new, and not more often."""

import io

from rich.console import Console

from demo.board import Board, Track, clock


def plain() -> Console:
    return Console(file=io.StringIO(), width=80, highlight=False)


def lines(console: Console) -> list[str]:
    return console.file.getvalue().splitlines()


def test_a_new_status_is_said_at_once_and_a_step_later():
    console, track = plain(), Track("LoRA", "cyan")
    board = Board(console, [track])

    with board.showing():
        board.refresh()
        assert lines(console) == []
        track.status, track.total = "running", 10
        board.refresh()
        track.step = 1
        board.refresh()
        assert [line.split() for line in lines(console)] == [["LoRA", "running", "0/10"]]
        track.step, track.losses = 10, [(10, 2.5)]

    assert lines(console)[-1].split() == ["LoRA", "running", "10/10", "loss", "2.500"]


def test_what_stands_still_is_not_said_twice():
    console = plain()
    board = Board(console, [Track("LoRA", "cyan", status="queued")])

    with board.showing():
        board.refresh()

    assert len(lines(console)) == 1


def test_a_terminal_shows_bars_and_the_curve():
    console = Console(file=io.StringIO(), width=90, force_terminal=True, legacy_windows=False)
    track = Track("LoRA", "cyan", "running", 5, 10, 0.5, [(1, 3.0), (5, 2.0)], 1234.5, 65)
    board = Board(console, [track])

    with board.showing():
        board.refresh()

    shown = console.file.getvalue()
    assert "1,235 tokens/s" in shown or "1,234 tokens/s" in shown
    assert "1:05 left" in shown
    assert "step 10" in shown


def test_time_is_minutes_and_seconds():
    assert [clock(seconds) for seconds in (0, 59.6, 605, -3)] == ["0:00", "1:00", "10:05", "0:00"]
