"""The formats of a row: which one it is of, and whether it keeps the rules of it."""

from collections.abc import Callable, Container
from typing import Literal

from app.files.conversation import check_chat, check_preference, check_prompt, is_prompt
from app.files.parse import BadRow, Row

RowFormat = Literal[
    "chat", "prompt_completion", "text", "classification", "preference", "prompt_only", "episode"
]


def check_row(row: Row) -> RowFormat:
    """Return the format of a row.

    Raises:
        BadRow: it is none of the formats, or breaks the rules of its own.
    """
    row_format = format_of(row)
    if row_format == "chat" and len(row) > 1 and is_prompt(row):
        row_format = "prompt_only"
    _CHECKS[row_format](row)
    return row_format


def format_of(keys: Container[str]) -> RowFormat:
    """Return the format of a row that has these keys; a chat may turn out to be a prompt only.

    Raises:
        BadRow: none has.
    """
    if "messages" in keys:
        return "chat"
    if "prompt" in keys and "completion" in keys:
        return "prompt_completion"
    if "text" in keys:
        return "classification" if "label" in keys else "text"
    if "input" in keys and ("preferred_output" in keys or "non_preferred_output" in keys):
        return "preference"
    if "episode" in keys:
        return "episode"
    raise BadRow(
        'needs "messages", or "prompt" and "completion", or "text", or "text" and "label",'
        ' or "input", "preferred_output" and "non_preferred_output", or "episode"'
    )


def _check_prompt_completion(row: Row) -> None:
    for key in ("prompt", "completion"):
        if type(row[key]) is not str:
            raise BadRow(f'"{key}" must be a string')
    if not row["completion"]:
        raise BadRow('"completion" is empty: there is nothing to learn')


def _check_text(row: Row) -> None:
    if "text_pair" in row:
        raise BadRow('"text_pair" needs a "label"')
    if not isinstance(row["text"], str) or not row["text"]:
        raise BadRow('"text" must be a string that is not empty')


def _check_classification(row: Row) -> None:
    if type(row["text"]) is not str:
        raise BadRow('"text" must be a string')
    if type(row.get("text_pair", "")) is not str:
        raise BadRow('"text_pair" must be a string')
    label = row["label"]
    if type(label) is not int and (type(label) is not str or not label):
        raise BadRow('"label" must be an integer, or a string that is not empty')


def _check_episode(row: Row) -> None:
    episode = row["episode"]
    if not isinstance(episode, dict) or not episode:
        raise BadRow('"episode" must be an object that is not empty, such as {"seed": 7}')
    if type(episode.get("seed", 0)) is not int:
        raise BadRow('"seed" must be an integer')


_CHECKS: dict[RowFormat, Callable[[Row], None]] = {
    "chat": check_chat,
    "prompt_completion": _check_prompt_completion,
    "text": _check_text,
    "classification": _check_classification,
    "preference": check_preference,
    "prompt_only": check_prompt,
    "episode": _check_episode,
}
