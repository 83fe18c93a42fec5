"""How rollouts of a run by reinforcement read in a terminal: a group, or one turn by turn."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from app.client import words

Json = Mapping[str, Any]


def described(
    shown: Sequence[Json], steps: Sequence[Json], *, step: int, opened: bool
) -> RenderableType:
    """Return the rollouts of a step, whole if `opened`; `steps` are those that there are."""
    if not shown:
        known = f"; there are those of {_range(steps)}" if steps else ""
        return Text(f"No such rollouts of step {step}{known}.")
    if opened:
        return Group(*(part for rollout in shown for part in _read(rollout)))
    return Group(_table(shown, step), Text(f"There are rollouts of {_range(steps)}.", style="dim"))


def _table(group: Sequence[Json], step: int) -> RenderableType:
    made = words.table(
        ("rollout", "reward", "episode advantage", "turns", "ended", "last action"),
        (
            (
                rollout["index"],
                words.number(rollout["reward"]),
                _advantage(_last(rollout).get("episode_advantage")),
                len(rollout["turns"]),
                _ending(rollout),
                _line(_last(rollout).get("action", "")),
            )
            for rollout in group
        ),
    )
    made.title = f"step {step}"
    return made


def _read(rollout: Json) -> Iterator[RenderableType]:
    """Yield what was seen and done, turn by turn."""
    facts = [
        ("step", rollout["step"]),
        ("rollout", rollout["index"]),
        ("reward", words.number(rollout["reward"])),
        ("ended", _ending(rollout)),
    ]
    yield words.pairs(facts)
    for number, turn in enumerate(rollout["turns"], 1):
        yield Panel(Text(turn["observation"]), title=f"turn {number}: seen", title_align="left")
        how = "action" if turn["valid"] else "invalid action"
        style = "" if turn["valid"] else "red"
        yield Panel(Text(turn["action"]), title=how, title_align="left", border_style=style)
        yield _worth(turn)


def _worth(turn: Json) -> Text:
    told = Text.assemble("reward ", words.number(turn["reward"]), "  episode advantage ")
    told.append_text(_advantage(turn["episode_advantage"]))
    if turn["step_advantage"] is not None:
        told.append("  step advantage ").append_text(_advantage(turn["step_advantage"]))
    if turn["shared"] is not None:
        told.append(f"  turns of the group from this state: {turn['shared']}")
    return told


def _advantage(value: Any) -> Text:
    """Return an advantage in the colour of its sign."""
    if not isinstance(value, int | float):
        return Text("–" if value is None else str(value))
    return Text(f"{value:+.3g}", style="green" if value > 0 else "red" if value < 0 else "")


def _ending(rollout: Json) -> Text:
    if rollout["failure"] is not None:
        return Text(f"broken off: {rollout['failure']}", style="red")
    if rollout["success"] is None:
        return Text("–")
    return Text("success", style="green") if rollout["success"] else Text("no success")


def _last(rollout: Json) -> Json:
    turns: list[Json] = rollout["turns"]
    return turns[-1] if turns else {}


def _line(text: str, longest: int = 60) -> str:
    """Return the beginning of a text in one line."""
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[:longest]}…"


def _range(steps: Sequence[Json]) -> str:
    newest, oldest = steps[0]["step"], steps[-1]["step"]
    return f"step {newest}" if len(steps) == 1 else f"{len(steps)} steps, {oldest} to {newest}"
