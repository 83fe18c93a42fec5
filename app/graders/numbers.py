"""The number that a text comes to: the last it says, as answers to problems in words end."""

import re
from collections import deque
from decimal import Decimal

ANSWER = "####"  # what GSM8K's answers put before their number (arXiv 2110.14168)
# A sign is one where no number, name or parenthesis ends before it: 5-3 has no -3.
_NUMBER = re.compile(
    r"(?:(?<![\w.)])[-+\u2212])?[$€£¥]?"
    r"((?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+)(?:[eE][-+]?\d{1,3}(?!\w))?"
)


def last_number(text: str) -> Decimal | None:
    """Return the last number of a text, of what follows the last "####" where there is one.

    A sign, thousands separators, decimals, an exponent and a currency's sign may be part of it.
    """
    last = deque(_NUMBER.finditer(text.rpartition(ANSWER)[2]), maxlen=1)
    if not last:
        return None
    written = last[0][0].replace(",", "").replace("\u2212", "-")
    return Decimal(re.sub("[$€£¥]", "", written))


def same_number(text: str, reference: str, *, tolerance: float) -> bool:
    """Return whether two texts come to the same number, within an absolute tolerance."""
    found, wanted = last_number(text), last_number(reference)
    if found is None or wanted is None:
        return False
    return found == wanted or abs(found - wanted) <= Decimal(repr(tolerance))
