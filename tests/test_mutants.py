"""The tests of the mathematics notice mistakes in it."""

import pytest

from tests.mutants import CONTROLS, MUTANTS, ROOT, killed

QUICK = ["sign flipped", "restore skipped", "backward without the noise"]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_is_about_the_code_as_it_is(mutant):
    assert (ROOT / mutant.path).read_text().count(mutant.old) == 1


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m.name in QUICK], ids=lambda m: m.name)
def test_a_mistake_makes_the_tests_fail(mutant):
    """The quick ones; `python -m tests.mutants` tries them all."""
    assert killed(mutant)


def test_without_a_mistake_they_pass():
    assert not killed(CONTROLS[0])
