"""The formula of a `multi` grader: arithmetic over named rewards, by a whitelist, never run."""

import ast
import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache

MAX_CHARACTERS = 1000
MAX_DEPTH = 64  # of operations in each other; a sum of as many terms is as deep

_OPERATIONS: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: math.pow,  # of floats alone: no integer grows, and nothing becomes complex
}
_SIGNS: Mapping[type[ast.unaryop], Callable[[float], float]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
_OF_ONE: Mapping[str, Callable[[float], float]] = {
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}
_OF_MANY: Mapping[str, Callable[[Sequence[float]], float]] = {"min": min, "max": max}
FUNCTIONS = (*_OF_MANY, *_OF_ONE)


class BadFormula(ValueError):
    """Why a text is no formula."""


class NotCalculable(ArithmeticError):
    """A formula has no finite value for these rewards, such as a division by zero."""


def check(text: str, names: Collection[str]) -> None:
    """Check that a formula is one, over these names.

    Raises:
        BadFormula: it is too long or too deep, cannot be read, or holds what is not known.
    """
    unknown = sorted(_names(_parse(text)) - {*names})
    if unknown:
        known = ", ".join(sorted(names))
        raise BadFormula(f"the name {unknown[0]!r} is none of its graders': {known}")


def calculate(text: str, rewards: Mapping[str, float]) -> float:
    """Return the value of a formula that was checked; logarithms are natural.

    Raises:
        NotCalculable: it has none, or none that is finite.
    """
    try:
        return _value(_parse(text), rewards)
    except (ArithmeticError, ValueError) as error:
        raise NotCalculable(str(error)) from error


@lru_cache(maxsize=256)
def _parse(text: str) -> ast.expr:
    if len(text) > MAX_CHARACTERS:
        raise BadFormula(f"it is longer than {MAX_CHARACTERS} characters")
    try:
        tree = ast.parse(text.strip().replace("^", "**"), mode="eval").body
    except SyntaxError as error:
        raise BadFormula(f"it cannot be read ({error.msg})") from None
    except (ValueError, RecursionError, MemoryError):  # a NUL; what is nested beyond the parser
        raise BadFormula("it cannot be read") from None
    _check(tree, MAX_DEPTH)
    return tree


def _check(node: ast.expr, depth: int) -> None:
    if depth == 0:
        raise BadFormula(f"it nests more than {MAX_DEPTH} operations in each other")
    match node:
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
            inner = [left, right]
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _SIGNS:
            inner = [operand]
        case ast.Call(func=ast.Name(id=name), args=[_, *_] as args, keywords=[]):
            _check_call(name, args)
            inner = args
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            _check_number(number)
            inner = []
        case ast.Name():
            inner = []
        case _:
            raise BadFormula(
                f"{ast.unparse(node)[:40]!r} is not offered: there are numbers, names, + - * / ^,"
                f" parentheses and {', '.join(FUNCTIONS)}"
            )
    for each in inner:
        _check(each, depth - 1)


def _check_call(name: str, args: Sequence[ast.expr]) -> None:
    if name not in FUNCTIONS:
        raise BadFormula(f"there is no function {name!r}; there are {', '.join(FUNCTIONS)}")
    if name in _OF_ONE and len(args) != 1:
        raise BadFormula(f"{name} takes one value, not {len(args)}")


def _check_number(number: float) -> None:
    try:
        finite = math.isfinite(number)
    except OverflowError:  # an integer beyond every float
        finite = False
    if not finite:
        raise BadFormula("it holds a number that is too large")


def _names(tree: ast.expr) -> set[str]:
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return {
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in called
    }


def _value(node: ast.expr, rewards: Mapping[str, float]) -> float:
    match node:
        case ast.BinOp(left=left, op=op, right=right):
            value = _OPERATIONS[type(op)](_value(left, rewards), _value(right, rewards))
        case ast.UnaryOp(op=sign, operand=operand):
            value = _SIGNS[type(sign)](_value(operand, rewards))
        case ast.Call(func=ast.Name(id=name), args=args):
            values = [_value(each, rewards) for each in args]
            value = _OF_MANY[name](values) if name in _OF_MANY else _OF_ONE[name](values[0])
        case ast.Name(id=name):
            value = rewards[name]
        case _:
            assert isinstance(node, ast.Constant) and isinstance(node.value, int | float)
            value = node.value
    if not math.isfinite(value):
        raise OverflowError("a value is not finite")
    return float(value)
