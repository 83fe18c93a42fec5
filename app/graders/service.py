"""Graders: a number for a model's answer, as reinforcement fine-tuning would use it."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pydantic import ValidationError

from app.errors import InvalidRequest
from app.graders import formula, similarity
from app.graders.formula import BadFormula, NotCalculable
from app.graders.numbers import same_number
from app.graders.schemas import (
    Grader,
    Multi,
    NumberMatch,
    StringCheck,
    TextSimilarity,
    grader_adapter,
)

MAX_RENDERED = 100_000  # characters that are compared
VARIABLE = re.compile(r"\{\{([^{}]*)\}\}")  # read in one go, whatever the template
PATH = re.compile(r"(item|sample)((?:\.\w+|\[-?\d+\])*)")
STEP = re.compile(r"\.(\w+)|\[(-?\d+)\]")

NOT_RUN = {
    "python": "it would run a stranger's program on this server",
    "score_model": "it asks a model for a score, and none is served here",
    "label_model": "it asks a model for a label, and none is served here",
}
NOT_MEASURED = {
    "cosine": "it needs an embedding model; use fuzzy_match or rouge_l",
    "bleu": "it has no one definition for a single sentence; use gleu, which was made for those",
    "meteor": "it needs a dictionary of synonyms; use rouge_l",
}
METRICS: dict[str, Callable[[str, str], float]] = {
    "fuzzy_match": similarity.fuzzy_match,
    "gleu": similarity.gleu,
    "rouge_l": similarity.rouge_l,
    **{f"rouge_{order}": partial(similarity.rouge_n, order=order) for order in range(1, 6)},
}


class UnknownVariable(Exception):
    """A template names what neither the item nor the sample has."""


class SampleIsNoJson(Exception):
    """A template reads output_json, and the sample is not JSON."""


Runs = StringCheck | TextSimilarity | NumberMatch


@dataclass(frozen=True)
class Grade:
    """A reward, from 0 to 1 but for a formula's; those of a formula's graders by their names.

    It is 0 when a template could not be filled in, or the formula has no value.
    """

    reward: float
    unknown_variable: bool = False
    no_json: bool = False
    not_calculable: bool = False
    sub_rewards: Mapping[str, float] = field(default_factory=dict)


def check_grader(raw: Mapping[str, Any], *, param: str = "method.reinforcement.grader") -> Grader:
    """Return the grader that a job names, if it can run here.

    Raises:
        InvalidRequest: it is none, or what `validate` raises; `param` says where it stands.
    """
    try:
        grader = grader_adapter.validate_python(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join([param, *_path(raw, first["loc"])])
        message = f"Invalid value for '{where}': {first['msg']}."
        raise InvalidRequest(message, param=where) from error
    return validate(grader, param=param)


def validate(grader: Grader, *, param: str = "grader") -> Grader:
    """Return a grader that can run here.

    Raises:
        InvalidRequest: it cannot, and why; a template names what there never is; or a formula is
            none.
    """
    if isinstance(grader, Multi):
        for name, each in grader.graders.items():
            validate(each, param=f"{param}.graders.{name}")
        _validate_formula(grader, param)
        return grader
    if not isinstance(grader, Runs):
        raise InvalidRequest(
            f"A {grader.type} grader is not offered: {NOT_RUN[grader.type]}.", param=f"{param}.type"
        )
    if isinstance(grader, TextSimilarity) and grader.evaluation_metric in NOT_MEASURED:
        metric = grader.evaluation_metric
        raise InvalidRequest(
            f"The metric {metric} is not offered: {NOT_MEASURED[metric]}.",
            param=f"{param}.evaluation_metric",
        )
    for name, template in (("input", grader.input), ("reference", grader.reference)):
        for variable in map(str.strip, VARIABLE.findall(template)):
            if PATH.fullmatch(variable) is None:
                raise InvalidRequest(
                    f"The template variable {variable[:80]!r} starts with neither item nor sample.",
                    param=f"{param}.{name}",
                )
    return grader


def grade(grader: Grader, *, sample: str, item: Any) -> Grade:
    """Grade a sample. CPU work of up to a second a grader: call it off the event loop.

    Raises:
        InvalidRequest: what `validate` raises; or texts that are too long to compare.
    """
    validate(grader)
    values = {"item": item, "sample": _sample(sample)}
    if not isinstance(grader, Multi):
        return _grade(grader, values)
    grades = {name: _grade(each, values) for name, each in grader.graders.items()}
    rewards = {name: each.reward for name, each in grades.items()}
    unknown = any(each.unknown_variable for each in grades.values())
    no_json = any(each.no_json for each in grades.values())
    if unknown or no_json:
        return Grade(0.0, unknown_variable=unknown, no_json=no_json, sub_rewards=rewards)
    try:
        return Grade(formula.calculate(grader.calculate_output, rewards), sub_rewards=rewards)
    except NotCalculable:
        return Grade(0.0, not_calculable=True, sub_rewards=rewards)


def _path(raw: Any, location: tuple[int | str, ...]) -> list[str]:
    """Return where an error is in what was sent: pydantic also names the type of each grader."""
    path = []
    for step in location[:-1]:
        if isinstance(raw, Mapping) and step in raw:
            path.append(str(step))
            raw = raw[step]
    return [*path, *map(str, location[-1:])]


def _validate_formula(grader: Multi, param: str) -> None:
    taken = grader.graders.keys() & formula.FUNCTIONS
    if taken:
        raise InvalidRequest(
            f"A grader cannot be called {min(taken)}: formulas have a function of that name.",
            param=f"{param}.graders",
        )
    try:
        formula.check(grader.calculate_output, grader.graders.keys())
    except BadFormula as error:
        raise InvalidRequest(
            f"calculate_output is no formula: {error}.", param=f"{param}.calculate_output"
        ) from None


def _grade(grader: Grader, values: dict[str, Any]) -> Grade:
    assert isinstance(grader, Runs)
    try:
        text, reference = (_render(each, values) for each in (grader.input, grader.reference))
    except UnknownVariable:
        return Grade(0.0, unknown_variable=True)
    except SampleIsNoJson:
        return Grade(0.0, no_json=True)
    match grader:
        case StringCheck():
            return Grade(float(_checks(grader.operation, text, reference)))
        case NumberMatch():
            return Grade(float(same_number(text, reference, tolerance=grader.tolerance)))
        case _:
            return Grade(METRICS[grader.evaluation_metric](text, reference))


def _sample(text: str) -> dict[str, Any]:
    try:
        return {"output_text": text, "output_json": json.loads(text)}
    except (ValueError, RecursionError):
        return {"output_text": text}


def _checks(operation: str, text: str, reference: str) -> bool:
    match operation:
        case "eq":
            return text == reference
        case "ne":
            return text != reference
        case "like":
            return reference in text
        case _:
            return reference.casefold() in text.casefold()


def _render(template: str, values: dict[str, Any]) -> str:
    """Fill a template in; it is given up at the first piece too many, before all is joined."""
    pieces: list[str] = []
    length = end = 0
    for match in VARIABLE.finditer(template):
        for piece in (
            template[end : match.start()],
            _text(_look_up(match[1].strip(), values)),
        ):
            length = _within(length + len(piece))
            pieces.append(piece)
        end = match.end()
    _within(length + len(template) - end)
    return "".join([*pieces, template[end:]])


def _within(length: int) -> int:
    if length > MAX_RENDERED:
        raise InvalidRequest(
            f"A text of more than {MAX_RENDERED} characters is too long to grade.",
            param="model_sample",
        )
    return length


def _look_up(path: str, values: dict[str, Any]) -> Any:
    found: Any = values
    if path.startswith("sample.output_json") and "output_json" not in values["sample"]:
        raise SampleIsNoJson
    for name, index in STEP.findall(f".{path}"):
        try:
            found = found[int(index)] if index else found[name]
        except (KeyError, IndexError, TypeError, ValueError):  # the last of an endless number
            raise UnknownVariable(path) from None
    return found


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        message = "A value that a template names is nested too deeply to be written out."
        raise InvalidRequest(message, param="grader.input") from None
