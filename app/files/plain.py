"""Knows rows of the commonest shapes, many at once: good by every rule, and nothing to doubt."""

from collections.abc import Sequence
from operator import add, eq

from app.files.columns import are, are_telling, column, full_column, keys_of, shapes_of
from app.files.formats import RowFormat, format_of
from app.files.parse import BadRow, Row
from app.files.plain_chats import are_plain_chats, have_good_tools


def are_plain(rows: Sequence[Row], row_format: RowFormat, label_type: type | None) -> bool:
    """Return whether `check_row` would find this format in each row, and `Lint` nothing in it.

    Of repeats and damaged characters it says nothing: they are seen in the bytes. False may be
    said of good rows: those are then looked at one by one.
    """
    shapes = shapes_of(rows)
    try:
        if {*map(format_of, shapes)} != {row_format}:
            return False
    except BadRow:
        return False
    match row_format:
        case "chat":
            return have_good_tools(rows) and are_plain_chats(full_column(rows, "messages"))
        case "prompt_completion":
            return are(full_column(rows, "prompt"), str) and are_telling(
                full_column(rows, "completion")
            )
        case "text":
            texts = full_column(rows, "text")
            return are(texts, str) and all(texts) and "text_pair" not in keys_of(shapes)
        case "classification":
            return _are_plain_labelled(rows, label_type)
        case "preference":
            return all(map(_OUTPUTS.issubset, shapes)) and _are_plain_preferences(rows)
    return False  # prompts and episodes are looked at one by one


def _are_plain_labelled(rows: Sequence[Row], label_type: type | None) -> bool:
    labels = full_column(rows, "label")
    if not are(full_column(rows, "text"), str) or not are(column(rows, "text_pair", ""), str):
        return False
    return are(labels, label_type) and (label_type is int or all(labels))


_OUTPUTS = {"preferred_output", "non_preferred_output"}


def _are_plain_preferences(rows: Sequence[Row]) -> bool:
    """Return whether each output is one message, which makes a plain chat of the input."""
    inputs = column(rows, "input")
    one, other = column(rows, "preferred_output"), column(rows, "non_preferred_output")
    if not are(inputs, dict) or not have_good_tools(inputs):
        return False
    asked = column(inputs, "messages")
    if not are(asked + one + other, list) or {*map(len, one + other)} != {1}:
        return False
    return are_plain_chats([*map(add, asked, one), *map(add, asked, other)]) and not any(
        map(eq, one, other)
    )
