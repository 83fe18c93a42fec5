"""Curves land where their values are, and gaps stay gaps."""

import math

import pytest

from demo.plot import Curve, plot, smooth

BLANK = chr(0x2800)


def drawn(*curves: Curve, width: int = 20, height: int = 5, right: float | None = None):
    """Return the drawing's lines without their axis, and what is below them."""
    lines = plot(curves, width=width, height=height, right=right).plain.split("\n")
    return [line.partition("┤")[2] for line in lines[:height]], "\n".join(lines[height:])


def curve(points, *, dashed: bool = False) -> Curve:
    return Curve("loss", "cyan", points, dashed=dashed)


def test_a_falling_curve_goes_from_the_top_left_to_the_bottom_right():
    rows, below = drawn(curve([(0, 4.0), (100, 2.0)]))

    assert rows[0][0] != BLANK
    assert rows[-1][-1] != BLANK
    assert rows[0][-1] == rows[-1][0] == BLANK
    assert "step 100" in below
    assert "loss" in below


def test_every_line_has_the_width_that_was_asked_for():
    rows, _ = drawn(curve([(x, math.sin(x)) for x in range(50)]), width=33, height=7)

    assert [len(row) for row in rows] == [33] * 7


def test_the_axis_is_labelled_with_the_range():
    text = plot([curve([(0, 4.0), (10, 2.0)])], width=20, height=9).plain

    labels = [
        float(line.split("┤")[0]) for line in text.split("\n")[:9] if line.split("┤")[0].strip()
    ]

    assert labels == sorted(labels, reverse=True)
    assert labels[0] == pytest.approx(4.0, abs=0.2)
    assert labels[-1] == pytest.approx(2.0, abs=0.2)


def test_a_growing_curve_leaves_room_to_the_right():
    rows, _ = drawn(curve([(0, 1.0), (50, 2.0)]), right=100)

    assert all(set(row[11:]) == {BLANK} for row in rows)
    assert any(set(row[:10]) != {BLANK} for row in rows)


def test_values_that_are_not_finite_are_gaps():
    rows, _ = drawn(curve([(0, 1.0), (4, 1.0), (5, math.nan), (6, math.inf), (10, 1.0), (19, 1.0)]))

    [line] = [row for row in rows if set(row) != {BLANK}]
    assert line[5] == BLANK
    assert BLANK not in line[:4] + line[11:]


def test_a_dashed_curve_leaves_out_every_other_character():
    points = [(x, 1.0) for x in range(20)]

    solid, dashed = (drawn(curve(points, dashed=yes))[0] for yes in (False, True))

    def filled(rows):
        return sum(character != BLANK for row in rows for character in row)

    assert filled(solid) == 2 * filled(dashed) == 20


@pytest.mark.parametrize("points", [[], [(3, 2.5)], [(0, math.nan)], [(0, 1.0), (1, 1.0)]])
def test_little_to_draw_is_no_error(points):
    rows, _ = drawn(curve(points))

    assert [len(row) for row in rows] == [20] * 5


def test_the_later_curve_lies_on_top():
    points = [(0, 1.0), (10, 1.0)]
    text = plot([Curve("a", "cyan", points), Curve("b", "magenta", points)], width=4, height=1)

    styles = {span.style for span in text.spans if text.plain[span.start] == text.plain[7]}

    assert styles == {"magenta"}


def test_a_smoothed_constant_is_the_constant():
    assert [y for _, y in smooth([(x, 3.0) for x in range(9)])] == pytest.approx([3.0] * 9)


def test_one_nan_does_not_spoil_the_mean_after_it():
    smoothed = smooth([(0, 1.0), (1, math.nan), (2, 1.0)])

    assert smoothed[0] == (0, 1.0)
    assert math.isnan(smoothed[1][1])
    assert smoothed[2][1] == pytest.approx(1.0)
