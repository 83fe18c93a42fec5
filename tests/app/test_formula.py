"""Formulas over graders: arithmetic as Python does it, and nothing else of Python."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.graders.formula import (
    MAX_CHARACTERS,
    MAX_DEPTH,
    BadFormula,
    NotCalculable,
    calculate,
    check,
)

NAMES = ("a", "b", "long_name")
# The functions that a formula has, as Python calls them.
PYTHON = {
    "__builtins__": {},
    **{name: getattr(math, name) for name in ("floor", "ceil", "exp", "sqrt", "log")},
    "min": lambda *each: min(each),
    "max": lambda *each: max(each),
    "abs": abs,
}
NUMBERS = st.floats(0, 100, width=16).map(repr)
REWARDS = st.fixed_dictionaries({name: st.floats(0, 1) for name in NAMES})


def operations(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", " ** "]), inner).map("".join),
        inner.map("({})".format),
        inner.map("-{}".format),
        st.tuples(st.sampled_from(["abs", "floor", "ceil", "exp", "sqrt", "log"]), inner).map(
            "{0[0]}({0[1]})".format
        ),
        st.tuples(st.sampled_from(["min", "max"]), st.lists(inner, min_size=1, max_size=3)).map(
            lambda each: f"{each[0]}({', '.join(each[1])})"
        ),
    )


FORMULAS = st.recursive(st.sampled_from(NAMES) | NUMBERS, operations, max_leaves=12)


def of_python(formula: str, rewards: dict[str, float]) -> float | None:
    try:
        value = eval(formula, PYTHON, dict(rewards))
    except (ArithmeticError, ValueError, TypeError):  # a TypeError where a number became complex
        return None
    return value if isinstance(value, int | float) and math.isfinite(value) else None


@given(FORMULAS, REWARDS)
def test_a_formula_is_worth_what_python_says(formula: str, rewards: dict[str, float]):
    check(formula, NAMES)
    try:
        value = calculate(formula, rewards)
    except NotCalculable:
        return  # that Python goes on with infinity, or a complex number, is no value
    assert value == pytest.approx(of_python(formula, rewards), rel=1e-9)


@given(FORMULAS, REWARDS)
def test_a_hat_raises_to_a_power(formula: str, rewards: dict[str, float]):
    def outcome(text: str) -> float | str:
        try:
            return calculate(text, rewards)
        except NotCalculable as error:
            return str(error)

    assert outcome(formula.replace(" ** ", "^")) == outcome(formula)


@given(
    st.text(max_size=60)
    | st.lists(st.sampled_from([*"ab+-*/^()., 19e", "min", "log"])).map("".join)
)
def test_whatever_is_no_formula_is_refused_with_a_sentence(text: str):
    try:
        check(text, NAMES)
    except BadFormula as error:
        assert str(error)
    else:
        try:
            assert math.isfinite(calculate(text, dict.fromkeys(NAMES, 0.5)))
        except NotCalculable as error:
            assert str(error)


@pytest.mark.parametrize(
    ("formula", "reason"),
    [
        ("", "cannot be read"),
        ("a b", "cannot be read"),
        ("a\0", "cannot be read"),
        ("c + 1", "the name 'c' is none of its graders': a, b, long_name"),
        ("__import__('os')", "no function '__import__'"),
        ("a.__class__", "not offered"),
        ("a[0]", "not offered"),
        ("'a' * 9", "not offered"),
        ("True", "not offered"),
        ("1j", "not offered"),
        ("a if b else 0", "not offered"),
        ("a < b", "not offered"),
        ("a // b", "not offered"),
        ("a % b", "not offered"),
        ("~a", "not offered"),
        ("[a for a in b]", "not offered"),
        ("(lambda: a)()", "not offered"),
        ("(a := 1)", "not offered"),
        ("min(*a)", "not offered"),
        ("min()", "not offered"),
        ("max(a, key=b)", "not offered"),
        ("sqrt(a, b)", "sqrt takes one value, not 2"),
        ("min", "the name 'min' is none"),
        ("1e999", "too large"),
        ("9" * 400, "too large"),
        ("a+" * MAX_CHARACTERS + "a", "longer than 1000 characters"),
        ("+".join("a" * (MAX_DEPTH + 1)), "nests more than 64"),
        ("-" * 900 + "a", "nests more than 64|cannot be read"),
        ("(" * 490 + "a" + ")" * 490, "cannot be read"),
    ],
)
def test_nothing_else_of_python_is_a_formula(formula: str, reason: str):
    with pytest.raises(BadFormula, match=reason):
        check(formula, NAMES)


@pytest.mark.parametrize(
    "formula",
    [
        "1 / a",
        "log(a)",
        "sqrt(a - 1)",
        "(a - 8) ^ (1/3)",
        "9 ^ 9 ^ 9 ^ 9",
        "exp(1000)",
        "1e300 * 1e300",
    ],
)
def test_a_formula_without_a_finite_value_says_so(formula: str):
    check(formula, NAMES)

    with pytest.raises(NotCalculable):
        calculate(formula, {"a": 0.0})


def test_as_many_terms_as_are_allowed_are_added():
    formula = "+".join("a" * MAX_DEPTH)

    check(formula, NAMES)

    assert calculate(formula, {"a": 0.5}) == MAX_DEPTH / 2
