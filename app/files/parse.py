"""One line → one JSON object, without what JSON lets through and training must not see."""

import json
import math
import re
import secrets
from collections.abc import Sequence
from typing import Any

from jiter import from_json

Row = dict[str, Any]

MAX_DEPTH = 200  # jiter stops at 201
MAX_DIGITS = 20
SMALL = 10**15
MAX_BLOCK_BYTES = 256 << 10  # of lines that are read at once; their objects take thirty times that

_MARK = (
    secrets.randbelow(9 * 10**17) + 10**17
)  # stands between rows; nobody who writes them knows it
_BETWEEN = b",%d," % _MARK
_DIGITS_AND_E = bytes.maketrans(b"123456789E", b"000000000e")
_EXPONENT, _LONG = b"0e", b"0" * (MAX_DIGITS + 1)
# As a number begins outside strings; a key or an id such as "call_9e3" does not.
_NUMBER = re.compile(rb"[\s:,\[]-?(?:[0-9.]+[eE]|[0-9]{%d})" % (MAX_DIGITS + 1))

MAGIC = {
    b"\x1f\x8b": "compressed (gzip); send the plain file",
    b"PK\x03\x04": "compressed (zip); send the plain file",
    b"BZh": "compressed (bzip2); send the plain file",
    b"\xfd7zXZ": "compressed (xz); send the plain file",
    b"(\xb5/\xfd": "compressed (zstd); send the plain file",
    b"PAR1": "a Parquet file; send JSON Lines",
    b"\xff\xfe": "UTF-16, not UTF-8; save the file as UTF-8",
    b"\xfe\xff": "UTF-16, not UTF-8; save the file as UTF-8",
}


class BadRow(ValueError):
    """Why a row cannot be trained on."""


def parse_row(line: bytes) -> Row:
    """Read one line as a JSON object.

    Raises:
        BadRow: not UTF-8, not JSON, not an object, a number that is not finite, half a character,
            a key that stands twice, or nested deeper than 200.
    """
    try:
        row = from_json(line, allow_inf_nan=False, catch_duplicate_keys=True)
    except ValueError:
        return parse_exactly(line)
    if type(row) is not dict:
        raise BadRow("not a JSON object")
    if not _is_plain(row) and _is_suspicious(line):
        del row  # not held twice: a line of 2 MiB may be 60 MiB of objects
        return parse_exactly(line)
    return row


def parse_many(lines: Sequence[bytes]) -> list[Row] | None:
    """Read lines at once, each as `parse_row` does; None where one is refused, or might be."""
    rows = values_of(lines)
    if rows is None or {*map(type, rows)} != {dict}:
        return None
    # The array is one level more, at which jiter stops: these rows are not too deep.
    text = b",".join(lines)
    suspicious = _may_have_suspicious_number(text) and not all(map(_is_plain, rows))
    return None if suspicious and _NUMBER.search(text) else rows


def values_of(texts: Sequence[bytes]) -> list[Any] | None:
    """Read texts at once, each one JSON value; None where one is not, or might not be.

    As elements of one array, with a secret number between every two. Only if each text is one whole
    value does the number come back in every second place, so none can lean on its neighbour.
    """
    block = b"[%b]" % _BETWEEN.join(texts)
    if len(block) > MAX_BLOCK_BYTES:
        return None
    try:
        found = from_json(block, allow_inf_nan=False, catch_duplicate_keys=True, cache_mode="keys")
    except ValueError:
        return None
    alternate = len(found) == 2 * len(texts) - 1 and found[1::2].count(_MARK) == len(texts) - 1
    return found[::2] if alternate else None


def parse_exactly(line: bytes) -> Row:
    """Read one line slowly, to say what is wrong with it.

    Raises:
        BadRow: as `parse_row`.
    """
    try:
        row = json.loads(
            line.decode(),
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_integer,
            object_pairs_hook=_no_duplicates,
        )
    except UnicodeDecodeError as error:
        raise BadRow(
            f"not UTF-8 (byte 0x{line[error.start]:02x} at column {error.start + 1})"
        ) from None
    except json.JSONDecodeError as error:
        if b"\0" in line:
            raise BadRow(f"a NUL byte at column {line.index(0) + 1}; is it UTF-16?") from None
        raise BadRow(f"not JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise BadRow(_TOO_DEEP) from None
    if not isinstance(row, dict):
        raise BadRow("not a JSON object")
    if _is_deep(row):
        raise BadRow(_TOO_DEEP)
    if b"\\u" in line:
        _refuse_half_characters(row)
    return row


def foreign(start: bytes) -> str | None:
    """Say what a file is that begins so and is no text in UTF-8."""
    return next((name for magic, name in MAGIC.items() if start.startswith(magic)), None)


def _is_plain(row: Row) -> bool:
    """Return whether a row holds text and small integers alone, or lists of objects of text."""
    for value in row.values():
        kind = type(value)
        if kind is list:
            for item in value:
                if type(item) is not dict:
                    return False
                for inner in item.values():
                    if type(inner) is not str:
                        return False
        elif kind is not str and not (kind is int and -SMALL < value < SMALL):
            return False
    return True


def _is_suspicious(line: bytes) -> bool:
    """Return whether a line may hold what jiter reads and we refuse, be it only inside a string.

    jiter reads 1e400 as infinity, integers of any length, and one level more.
    """
    deep = line.count(b"[") + line.count(b"{") > MAX_DEPTH
    return deep or (_may_have_suspicious_number(line) and _NUMBER.search(line) is not None)


def _may_have_suspicious_number(text: bytes) -> bool:
    """Return whether `_NUMBER`, which is slow, may find something."""
    digits = text.translate(_DIGITS_AND_E)
    return _EXPONENT in digits or _LONG in digits


_TOO_DEEP = f"nested too deeply, more than {MAX_DEPTH} levels"


def _is_deep(row: Row) -> bool:
    level: list[Any] = [row]
    for _ in range(MAX_DEPTH):
        inner = [value.values() if isinstance(value, dict) else value for value in level]
        level = [child for values in inner for child in values if isinstance(child, dict | list)]
        if not level:
            return False
    return True


def _refuse_constant(name: str) -> None:
    raise BadRow(f"{name} is not JSON")


def _finite(number: str) -> float:
    if math.isinf(value := float(number)):
        raise BadRow(f"{_start(number)} is too large a number")
    return value


def _integer(number: str) -> int:
    if len(number.removeprefix("-")) > MAX_DIGITS:
        raise BadRow(f"{_start(number)} is too large a number")
    return int(number)


def _start(number: str) -> str:
    return number if len(number) <= MAX_DIGITS else number[:MAX_DIGITS] + "…"


def _refuse_half_characters(row: Row) -> None:
    """An escape such as \\ud800 alone is half of a surrogate pair: no text that UTF-8 can hold."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])[1:-1]
        raise BadRow(f"{half} alone is half a character") from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # adds
        raise BadRow(f"the key {twice[:40]!a} stands twice in one object")
    return row
