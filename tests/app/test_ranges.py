"""Byte ranges of a download (RFC 9110 §14.2)."""

import pytest

from app.errors import RangeNotSatisfiable
from app.web import parse_range


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, (0, 100)),
        ("bytes=0-9", (0, 10)),
        ("bytes=90-", (90, 100)),
        ("bytes=-5", (95, 100)),
        ("bytes=-500", (0, 100)),
        ("bytes=50-5000", (50, 100)),
        ("bytes=0-0", (0, 1)),
        ("bytes=0-1,5-6", (0, 100)),
        ("lines=0-1", (0, 100)),
        ("bytes=abc", (0, 100)),
        ("bytes=-", (0, 100)),
        (f"bytes={'9' * 5000}-", (0, 100)),
        (f"bytes=0-{'9' * 5000}", (0, 100)),
        (f"bytes=-{'9' * 5000}", (0, 100)),
    ],
)
def test_a_range_is_read_or_ignored(header: str | None, expected: tuple[int, int]):
    assert parse_range(header, 100) == expected


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=9-3", "bytes=-0"])
def test_a_range_outside_is_a_416(header: str):
    with pytest.raises(RangeNotSatisfiable):
        parse_range(header, 100)
