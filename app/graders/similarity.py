"""How alike two texts are, from 0 to 1; exact, and in the standard library alone."""

import re
from collections import Counter
from collections.abc import Hashable, Sequence

GLEU_ORDERS = (1, 2, 3, 4)


def fuzzy_match(text: str, reference: str) -> float:
    """Return the normalized indel similarity 2·LCS / (|a| + |b|) of the characters."""
    return _f1(common_subsequence(text, reference), len(text), len(reference))


def rouge_n(text: str, reference: str, order: int) -> float:
    """Return the F1 of the n-grams of words that both have (Lin 2004, ROUGE-N)."""
    found, wanted = (_ngrams(_words(each), order) for each in (text, reference))
    return _f1((found & wanted).total(), found.total(), wanted.total())


def rouge_l(text: str, reference: str) -> float:
    """Return the F1 of the longest common subsequence of words (Lin 2004, ROUGE-L)."""
    found, wanted = _words(text), _words(reference)
    return _f1(common_subsequence(found, wanted), len(found), len(wanted))


def gleu(text: str, reference: str) -> float:
    """Return the smaller of precision and recall of all 1- to 4-grams (Wu et al. 2016, GLEU).

    Words are what stands between spaces.
    """
    found, wanted = (
        [_ngrams(each.split(), order) for order in GLEU_ORDERS] for each in (text, reference)
    )
    common = sum((a & b).total() for a, b in zip(found, wanted, strict=True))
    longer = max(sum(map(Counter.total, found)), sum(map(Counter.total, wanted)))
    return common / longer if longer else 1.0


def common_subsequence(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Return the length of the longest common subsequence, by Hyyrö's bit-parallel algorithm.

    Bit i of `row` is 0 where the best length grows at a[i]; integers have as many bits as `a`.
    """
    places: dict[Hashable, int] = {}
    for index, item in enumerate(a):
        places[item] = places.get(item, 0) | 1 << index
    full = (1 << len(a)) - 1
    row = full
    for item in b:
        matches = row & places.get(item, 0)
        row = (row + matches | row - matches) & full
    return len(a) - row.bit_count()


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _ngrams(words: list[str], order: int) -> "Counter[tuple[str, ...]]":
    return Counter(zip(*(words[start:] for start in range(order)), strict=False))


def _f1(common: int, found: int, wanted: int) -> float:
    return 2 * common / (found + wanted) if found + wanted else 1.0
