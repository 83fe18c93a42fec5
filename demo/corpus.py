"""Real text that needs no download: the documentation inside Python's standard library."""

import ast
import hashlib
import random
import re
import sysconfig
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, TypeVar

VERSION = 1  # part of the base model's cache key
SEED = 7
Row = dict[str, Any]
T = TypeVar("T")

MIN_ANSWER, MAX_ANSWER = 20, 240  # characters
MIN_HELD_OUT = 64
HELD_OUT_SHARE = 0.10
LARGEST_HELD_OUT_SHARE = 0.03  # of one package: none of them alone is the validation file
MAX_TRAIN, MAX_HELD_OUT = 1600, 128
SKIPPED = frozenset(
    {"__pycache__", "dist-packages", "idle_test", "idlelib", "lib-dynload", "site-packages"}
    | {"test", "tests", "turtledemo", "_bundled", "this.py", "antigravity.py"}
)
NOT_PROSE = re.compile(r">>>|^[=\-*~]{3}|[{}\\]|Copyright", re.MULTILINE)


@dataclass(frozen=True)
class Entry:
    """A module, class or function that documents itself; `name` is dotted and starts with it."""

    name: str
    kind: str
    doc: str

    @property
    def package(self) -> str:
        return self.name.partition(".")[0]


@dataclass(frozen=True)
class Corpus:
    """What the base reads, what the adapters learn, and what neither has seen."""

    text: tuple[str, ...]
    train: tuple[Row, ...]
    valid: tuple[Row, ...]


@cache
def read_corpus() -> Corpus:
    """Read the standard library's documentation; the same Python gives the same corpus."""
    entries = sorted(set(read_entries()), key=lambda entry: (entry.name, entry.doc))
    pairs = _pairs(entries)
    held_out = _held_out_packages(pairs)
    valid = [pair for pair in pairs if pair[0].package in held_out]
    train = [pair for pair in pairs if pair[0].package not in held_out]
    unseen = [answer for _, answer in valid]
    docs = [f"{entry.name}\n{entry.doc}" for entry in entries if entry.package not in held_out]
    paragraphs = [part for name in sorted(topics) for part in topics[name].split("\n\n")]
    text = [*docs, *_gather(paragraphs)]
    rows = [chat_row(question(entry), answer) for entry, answer in train]
    return Corpus(
        text=tuple(_shuffled(_without(text, unseen))),
        train=tuple(_shuffled(rows)[:MAX_TRAIN]),
        valid=tuple(
            _shuffled([chat_row(question(entry), answer) for entry, answer in valid])[:MAX_HELD_OUT]
        ),
    )


def read_entries() -> Iterator[Entry]:
    """Yield all that carries a docstring in the standard library's source files."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if SKIPPED.isdisjoint(parts) and not any(part.startswith("config-") for part in parts):
            yield from _entries_of(path, _module_name(parts))


def question(entry: Entry) -> str:
    """Ask what the entry is for."""
    if entry.kind == "function":
        return f"What does {entry.name} do?"
    return f"What is the {entry.kind} {entry.name} for?"


def chat_row(asked: str, answer: str) -> Row:
    """Return one example in OpenAI's chat format."""
    return {
        "messages": [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": answer},
        ]
    }


def first_paragraph(doc: str) -> str:
    """Return a docstring's first paragraph on one line, or "" for one that is not prose."""
    paragraph = doc.strip().partition("\n\n")[0]
    line = " ".join(paragraph.split())
    fits = MIN_ANSWER <= len(line) <= MAX_ANSWER
    return line if fits and not NOT_PROSE.search(paragraph) and " " in line else ""


def squeezed(text: str) -> str:
    """Return the text with every run of whitespace as one space."""
    return " ".join(text.split())


def _module_name(parts: Sequence[str]) -> str:
    names = [*parts[:-1], parts[-1].removesuffix(".py")]
    return ".".join(names[:-1] if names[-1] == "__init__" and len(names) > 1 else names)


def _entries_of(path: Path, module: str) -> Iterator[Entry]:
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:  # the library keeps a few broken files on purpose
        return
    if doc := ast.get_docstring(tree):
        yield Entry(module, "module", doc)
    yield from _documented(tree.body, module)


def _documented(body: Sequence[ast.stmt], prefix: str) -> Iterator[Entry]:
    """Yield the classes and functions of a body, then of the classes in it."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{prefix}.{node.name}"
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            if doc := ast.get_docstring(node):
                yield Entry(name, kind, doc)
            if isinstance(node, ast.ClassDef):
                yield from _documented(node.body, name)


def _pairs(entries: Sequence[Entry]) -> list[tuple[Entry, str]]:
    """Return public entries with their answers; each question and each answer stands once."""
    pairs: dict[str, tuple[Entry, str]] = {}
    names: set[str] = set()
    for entry in entries:
        answer = first_paragraph(entry.doc)
        public = not any(part.startswith("_") for part in entry.name.split("."))
        if answer and public and entry.name not in names and answer not in pairs:
            names.add(entry.name)
            pairs[answer] = entry, answer
    return list(pairs.values())


def _held_out_packages(pairs: Sequence[tuple[Entry, str]]) -> frozenset[str]:
    """Choose whole packages, in an order of their hashes, until enough rows are held out."""
    sizes: dict[str, int] = {}
    for entry, _ in pairs:
        sizes[entry.package] = sizes.get(entry.package, 0) + 1
    wanted = max(MIN_HELD_OUT, round(HELD_OUT_SHARE * len(pairs)))
    chosen: set[str] = set()
    rows = 0
    for package in sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if rows >= wanted:
            break
        if sizes[package] <= LARGEST_HELD_OUT_SHARE * len(pairs):
            chosen.add(package)
            rows += sizes[package]
    return frozenset(chosen)


def _without(texts: Sequence[str], unseen: Sequence[str]) -> list[str]:
    """Leave out every text that says what a held-out answer says."""
    lines = [squeezed(text) for text in texts]
    return [
        text
        for text, line in zip(texts, lines, strict=True)
        if not any(answer in line for answer in unseen)
    ]


def _gather(paragraphs: Sequence[str]) -> Iterator[str]:
    """Join the topics' paragraphs to texts of some length, without their indents."""
    for start in range(0, len(paragraphs), 8):
        yield "\n\n".join(textwrap.dedent(part) for part in paragraphs[start : start + 8])


def _shuffled(items: Sequence[T]) -> list[T]:
    copy = list(items)
    random.Random(SEED).shuffle(copy)
    return copy
