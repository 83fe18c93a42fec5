"""Draws curves in the terminal, two by four dots to a character."""

from collections.abc import Sequence
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
    """Points (x, y) by rising x, and how they look."""

    label: str
    style: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Frame:
    """The rectangle of the plane that is shown."""

    left: float
    right: float
    bottom: float
    top: float


def plot(curves: Sequence[Curve], *, width: int, height: int, right: float | None = None) -> Text:
    """Draw the curves in one frame, with the range on the axes and a legend below.

    Args:
        curves: later ones lie on top.
        width: of the drawing in characters, without the axis.
        height: of the drawing in lines.
        right: where x ends, when the curves are still growing.
    """
    frame = _frame([point for curve in curves for point in curve.points], right)
    canvas: Canvas = {}
    for number, curve in enumerate(curves):
        _draw(canvas, curve.points, frame, width=width, height=height, number=number)
    text = Text()
    for row in range(height):
        text.append(_y_label(row, height, frame).rjust(AXIS_WIDTH - 2) + " ┤", style="dim")
        for column in range(width):
            dots, number = canvas.get((row, column), (0, 0))
            text.append(chr(BRAILLE + dots), style=curves[number].style if dots else "")
        text.append("\n")
    text.append(_x_axis(width, frame), style="dim")
    for curve in curves:
        text.append("━━ ", style=curve.style)
        text.append(f"{curve.label}   ")
    return text


def smooth(points: Sequence[Point], *, weight: float = 0.9) -> list[Point]:
    """Return a running mean that forgets by `weight` a point, without its bias to the start."""
    mean = share = 0.0
    smoothed = []
    for x, y in points:
        mean = weight * mean + (1 - weight) * y
        share = weight * share + (1 - weight)
        smoothed.append((x, mean / share))
    return smoothed


def _frame(points: Sequence[Point], right: float | None) -> Frame:
    xs = [x for x, _ in points] or [0.0]
    ys = [y for _, y in points] or [0.0, 1.0]
    widest = max(xs) if right is None else max(right, *xs)
    margin = (max(ys) - min(ys)) * 0.05 or 0.5
    return Frame(min(xs), max(widest, min(xs) + 1), min(ys) - margin, max(ys) + margin)


def _draw(
    canvas: Canvas, points: Sequence[Point], frame: Frame, *, width: int, height: int, number: int
) -> None:
    """Set the dots of one curve, and of the straight lines between its points."""
    across, down = 2 * width - 1, 4 * height - 1
    placed = [
        (
            round((x - frame.left) / (frame.right - frame.left) * across),
            round((frame.top - y) / (frame.top - frame.bottom) * down),
        )
        for x, y in points
    ]
    for (x, y), (next_x, next_y) in zip(placed, placed[1:] or placed, strict=False):
        steps = max(abs(next_x - x), abs(next_y - y), 1)
        for step in range(steps + 1):
            _set(
                canvas,
                x + round((next_x - x) * step / steps),
                y + round((next_y - y) * step / steps),
                number,
            )


def _set(canvas: Canvas, x: int, y: int, number: int) -> None:
    cell = y // 4, x // 2
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
