"""Graders: a number for a model's answer, as reinforcement fine-tuning would use it."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from app.errors import InvalidRequest
from app.graders import similarity
from app.graders.schemas import Grader, StringCheck, TextSimilarity

MAX_RENDERED = 100_000  # characters that are compared
VARIABLE = re.compile(r"\{\{([^{}]*)\}\}")  # read in one go, whatever the template
PATH = re.compile(r"(item|sample)((?:\.\w+|\[\d+\])*)")
STEP = re.compile(r"\.(\w+)|\[(\d+)\]")

NOT_RUN = {
    "python": "it would run a stranger's program on this server",
    "score_model": "it asks a model for a score, and none is served here",
    "multi": "formulas over several graders are not there yet; run them one by one",
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


@dataclass(frozen=True)
class Grade:
    """A reward from 0 to 1; it is 0 when the templates could not be filled in."""

    reward: float
    unknown_variable: bool = False
    no_json: bool = False


def validate(grader: Grader) -> Grader:
    """Return a grader that can run here.

    Raises:
        InvalidRequest: it cannot, and why; or a template names what there never is.
    """
    if not isinstance(grader, StringCheck | TextSimilarity):
        raise InvalidRequest(
            f"A {grader.type} grader is not offered: {NOT_RUN[grader.type]}.", param="grader.type"
        )
    if isinstance(grader, TextSimilarity) and grader.evaluation_metric in NOT_MEASURED:
        metric = grader.evaluation_metric
        raise InvalidRequest(
            f"The metric {metric} is not offered: {NOT_MEASURED[metric]}.",
            param="grader.evaluation_metric",
        )
    for name, template in (("input", grader.input), ("reference", grader.reference)):
        for variable in map(str.strip, VARIABLE.findall(template)):
            if PATH.fullmatch(variable) is None:
                raise InvalidRequest(
                    f"The template variable {variable[:80]!r} starts with neither item nor sample.",
                    param=f"grader.{name}",
                )
    return grader


def run(grader: Grader, *, sample: str, item: Any) -> Grade:
    """Grade a sample. CPU work of up to a second: call it off the event loop.

    Raises:
        InvalidRequest: what `validate` raises; or texts that are too long to compare.
    """
    grader = validate(grader)
    assert isinstance(grader, StringCheck | TextSimilarity)
    values = {"item": item, "sample": _sample(sample)}
    try:
        text, reference = (_render(each, values) for each in (grader.input, grader.reference))
    except UnknownVariable:
        return Grade(0.0, unknown_variable=True)
    except SampleIsNoJson:
        return Grade(0.0, no_json=True)
    if isinstance(grader, StringCheck):
        return Grade(float(_checks(grader.operation, text, reference)))
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
