"""Draws curves in the terminal, two by four dots to a character."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.text import Text

Point = tuple[float, float]
Canvas = dict[tuple[int, int], tuple[int, int]]  # (row, column) → the dots, the topmost curve

BRAILLE = 0x2800
# Bit of each dot by (row, column) in its character.
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
AXIS_WIDTH = 7


@dataclass(frozen=True)
class Curve:
    """Points (x, y) by rising x, and how they look; a dashed one is told apart without colours."""

    label: str
    style: str
    points: Sequence[Point]
    dashed: bool = False


@dataclass(frozen=True)
class Frame:
    """The rectangle of the plane that is shown."""

    left: float
    right: float
    bottom: float
    top: float


def plot(curves: Sequence[Curve], *, width: int, height: int, right: float | None = None) -> Text:
    """Draw the curves in one frame, with the range on the axes and a legend below.

    A value that is not finite is a gap.

    Args:
        curves: later ones lie on top.
        width: of the drawing in characters, without the axis.
        height: of the drawing in lines.
        right: where x ends, when the curves are still growing.
    """
    frame = _frame([point for curve in curves for point in curve.points], right)
    canvas: Canvas = {}
    for number, curve in enumerate(curves):
        for dot in _dots(curve.points, frame, width=width, height=height):
            _set(canvas, dot, number, dashed=curve.dashed)
    text = Text()
    for row in range(height):
        text.append(_y_label(row, height, frame).rjust(AXIS_WIDTH - 2) + " ┤", style="dim")
        for column in range(width):
            dots, number = canvas.get((row, column), (0, 0))
            text.append(chr(BRAILLE + dots), style=curves[number].style if dots else "")
        text.append("\n")
    text.append(_x_axis(width, frame), style="dim")
    text.append(" " * AXIS_WIDTH)
    for curve in curves:
        text.append("╺╺ " if curve.dashed else "━━ ", style=curve.style)
        text.append(f"{curve.label}   ")
    return text


def smooth(points: Sequence[Point], *, weight: float = 0.9) -> list[Point]:
    """Return a running mean that forgets by `weight` a point, without its bias to the start.

    A value that is not finite stays as it is and does not spoil the mean after it.
    """
    mean = share = 0.0
    smoothed = []
    for x, y in points:
        if not math.isfinite(y):
            smoothed.append((x, y))
            continue
        mean = weight * mean + (1 - weight) * y
        share = weight * share + (1 - weight)
        smoothed.append((x, mean / share))
    return smoothed


def _frame(points: Sequence[Point], right: float | None) -> Frame:
    xs = [x for x, _ in points] or [0.0]
    ys = [y for _, y in points if math.isfinite(y)] or [0.0, 1.0]
    widest = max(xs) if right is None else max(right, *xs)
    margin = (max(ys) - min(ys)) * 0.05 or 0.5
    return Frame(min(xs), max(widest, min(xs) + 1), min(ys) - margin, max(ys) + margin)


def _dots(
    points: Sequence[Point], frame: Frame, *, width: int, height: int
) -> Iterator[tuple[int, int]]:
    """Yield the dots (x, y) of a curve: its points, and the straight lines between them."""
    across, down = 2 * width - 1, 4 * height - 1
    before: tuple[int, int] | None = None
    for x, y in points:
        if not math.isfinite(y):
            before = None
            continue
        dot = (
            round((x - frame.left) / (frame.right - frame.left) * across),
            round((frame.top - y) / (frame.top - frame.bottom) * down),
        )
        yield from _line(before or dot, dot)
        before = dot


def _line(start: tuple[int, int], end: tuple[int, int]) -> Iterator[tuple[int, int]]:
    across, down = end[0] - start[0], end[1] - start[1]
    steps = max(abs(across), abs(down), 1)
    for step in range(steps + 1):
        yield start[0] + round(across * step / steps), start[1] + round(down * step / steps)


def _set(canvas: Canvas, dot: tuple[int, int], number: int, *, dashed: bool) -> None:
    x, y = dot
    cell = y // 4, x // 2
    if dashed and cell[1] % 2:
        return
    dots, owner = canvas.get(cell, (0, number))
    canvas[cell] = dots | DOTS[y % 4][x % 2], max(owner, number)


def _y_label(row: int, height: int, frame: Frame) -> str:
    if row not in (0, height // 2, height - 1):
        return ""
    return f"{frame.top - (frame.top - frame.bottom) * (row + 0.5) / height:.2f}"


def _x_axis(width: int, frame: Frame) -> str:
    left, right = f"{frame.left:g}", f"step {frame.right:g}"
    corner = " " * (AXIS_WIDTH - 1) + "└"
    return f"{corner}{'─' * width}\n{' ' * AXIS_WIDTH}{left}{right.rjust(width - len(left))}\n"
