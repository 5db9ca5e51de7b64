"""The numbers game: an arithmetic expression over given numbers, each used once, that makes the target."""

from __future__ import annotations

import ast
import operator
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from rewards._response import answer_tag, visible

MAX_LENGTH = 300
ALLOWED = re.compile(r"[0-9+\-*/() ]+")
BINARY: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
UNARY: dict[type[ast.unaryop], Callable[[Fraction], Fraction]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


class _NotArithmetic(ValueError):
    """The expression holds more than numbers and the four operations."""


def verify(
    response: str,
    entry: Mapping[str, Any] | None = None,
    numbers: Sequence[int] | None = None,
    target: int | None = None,
) -> dict[str, Any]:
    """Correct when the expression uses exactly the given numbers, each as often as it is given, and equals the target.

    The rule of reasoning-gym's countdown, but exact, and only with `+ - * / ( )`: `**`, `//`, decimals and text are
    wrong. The expression is what follows the thought, or what stands there in the last `<answer>`. Reasons: no_answer,
    too_long, not_arithmetic, division_by_zero, wrong_numbers, wrong_value.

    Args:
        entry: a row of reasoning-gym's countdown; or else
        numbers, target: the task itself, for other data.
    """
    if entry is not None:
        numbers, target = entry["metadata"]["numbers"], entry["metadata"]["target"]
    if numbers is None or target is None:
        return {
            "score": None,
            "reason": "bad_reference",
            "details": {"error": "needs `entry`, or `numbers` and `target`"},
        }
    text = visible(response) or ""
    tagged = answer_tag(text)
    expression = (text if tagged is None else tagged).strip()
    reason = _why_wrong(expression, numbers, target)
    return {"score": float(not reason), "reason": reason, "extracted": expression}


verify.check = True  # type: ignore[attr-defined]


def _why_wrong(expression: str, numbers: Sequence[int], target: int) -> str:
    if not expression:
        return "no_answer"
    if len(expression) > MAX_LENGTH:
        return "too_long"
    if not ALLOWED.fullmatch(expression):
        return "not_arithmetic"
    try:
        tree = ast.parse(expression, mode="eval")
        value = _value(tree.body)
    except (SyntaxError, _NotArithmetic, RecursionError, MemoryError):  # the last two: the parser on deep nesting
        return "not_arithmetic"
    except ZeroDivisionError:
        return "division_by_zero"
    used = Counter(node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    if used != Counter(numbers):
        return "wrong_numbers"
    return "" if value == target else "wrong_value"


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int(number)):
            return Fraction(number)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in BINARY:
            return BINARY[type(op)](_value(left), _value(right))
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in UNARY:
            return UNARY[type(sign)](_value(operand))
    raise _NotArithmetic(type(node).__name__)
