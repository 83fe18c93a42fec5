"""The corpus is the same every time, and keeps what is held out away from what is learned."""

import subprocess
import sys

import pytest

from demo.corpus import Corpus, first_paragraph, read_corpus, squeezed

DIGEST = "import hashlib; from demo.corpus import read_corpus;" + (
    "print(hashlib.sha256(repr(read_corpus()).encode()).hexdigest())"
)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return read_corpus()


def answers(rows) -> list[str]:
    return [row["messages"][-1]["content"] for row in rows]


def questions(rows) -> list[str]:
    return [row["messages"][0]["content"] for row in rows]


def test_two_processes_read_the_same_corpus():
    runs = [
        subprocess.Popen([sys.executable, "-c", DIGEST], stdout=subprocess.PIPE) for _ in range(2)
    ]

    first, second = (run.communicate()[0] for run in runs)

    assert first == second != b""


def test_there_is_enough_to_learn_and_to_hold_out(corpus):
    assert sum(map(len, corpus.text)) > 1_000_000
    assert len(corpus.train) > 1000
    assert len(corpus.valid) >= 64


def test_held_out_answers_are_in_no_text_of_the_base(corpus):
    text = "\n".join(squeezed(part) for part in corpus.text)

    assert [answer for answer in answers(corpus.valid) if answer in text] == []


def test_held_out_questions_and_answers_are_in_no_train_row(corpus):
    assert set(answers(corpus.valid)).isdisjoint(answers(corpus.train))
    assert set(questions(corpus.valid)).isdisjoint(questions(corpus.train))


def test_held_out_packages_are_not_trained_on(corpus):
    def packages(rows):
        return {question.split()[-2].partition(".")[0] for question in questions(rows)}

    assert packages(corpus.valid).isdisjoint(packages(corpus.train))


@pytest.mark.parametrize(
    ("doc", "paragraph"),
    [
        ("Return the name\n    of a thing.\n\nAnd more.", "Return the name of a thing."),
        ("Too short.", ""),
        (">>> 1 + 1\n2 is what this would print", ""),
        ("word" * 100, ""),
    ],
)
def test_only_a_paragraph_of_prose_is_an_answer(doc, paragraph):
    assert first_paragraph(doc) == paragraph
