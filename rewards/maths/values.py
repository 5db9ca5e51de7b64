"""Numbers and formulas as one value: equal, rounded, in another unit, apart by a constant."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from rewards.maths.answers import Answer
from rewards.maths.evaluate import Undefined, differ_by_constant, evaluate, exact, mentions, same, substituted, symbols
from rewards.maths.expression import NotRead, TooLarge, Tree
from rewards.maths.reading import read
from rewards.maths.units import conversion


@dataclass(frozen=True)
class Policy:
    """Conventions on which graders may differ; see `rewards.math_equivalence.verify`."""

    units: str = "lenient"
    percent: bool = False
    ordered_lists: bool = False
    decimals: bool = True
    simplified: bool = False
    intervals: bool = True
    rename: bool = False
    case: bool = False


class Undecided(Exception):
    """Neither equal nor different by what can be computed here."""


def consistent(answer: Answer) -> bool:
    """A chain of equal constants holds; 3 = 4 does not."""
    values: list[Any] = []
    for side in answer.sides:
        try:
            item = read(side)
        except NotRead:
            continue
        if item.kind == "scalar" and item.tree is not None and not symbols(item.tree):
            values.append(item)
    try:
        return all(trees_equal(values[0].tree, v.tree, Policy()) or _rounded(values[0].tree, v) for v in values[1:])
    except Undecided:
        return True


def numbers_equal(gold: Answer, answer: Answer, a: Tree, b: Tree, policy: Policy) -> bool:
    """The same of what the two answers say, a and b, where a decimal may be a rounding of the other.

    Raises:
        Undecided: one of them cannot be valued.
    """
    x, y = exact(a), exact(b)
    if x is not None and y is not None:
        if x == y:
            return not policy.simplified or _lowest_terms(b)
        if not policy.decimals:
            return False
        return (gold.decimals is not None and _is_rounding(gold, x, y)) or (
            answer.decimals is not None and gold.decimals is None and x.denominator != 1 and _rounded(a, answer, y)
        )
    if trees_equal(a, b, policy):
        return True
    if not policy.decimals or symbols(a) or symbols(b):
        return False
    if gold.decimals is not None:
        try:
            value = evaluate(b)
        except (NotRead, Undefined):
            return False
        real = value if isinstance(value, Fraction) else _fraction(value)
        return real is not None and x is not None and _is_rounding(gold, x, real)
    return answer.decimals is not None and _rounded(a, answer, y)


def _fraction(value: Any) -> Fraction | None:
    """A real number of mpmath, to 40 digits."""
    if getattr(value, "imag", 0) != 0:
        return None
    real = value.real
    sign, man, exp, _ = real._mpf_
    if not man and exp:
        return None
    if abs(exp) > 4000:
        return None
    return (-1) ** sign * Fraction(int(man)) * Fraction(2) ** exp


MIN_DIGITS = 3  # significant ones, of a decimal that is not said to be rounded


def _is_rounding(gold: Answer, written: Fraction, value: Fraction) -> bool:
    """A decimal reference is `value` rounded: not when value is itself a decimal hardly longer.

    With fewer than three significant digits too many values round to it, unless it says that it is near: 0.2 is no
    sixth, 33.3 is a third of 100, \\approx 0.2 is a sixth, and 0.66... two thirds, cut off.
    """
    if gold.decimals is None or (gold.digits < MIN_DIGITS and not gold.rounded):
        return False
    unit = Fraction(1, 10**gold.decimals)
    cut_off = gold.rounded and 0 <= (value - written) * (1 if written > 0 else -1) < unit
    if abs(written - value) * 2 > unit and not cut_off:
        return False
    return (value * 10 ** (gold.decimals + 2)).denominator != 1


def _rounded(exact_tree: Tree, answer: Answer, value: Fraction | None = None) -> bool:
    """The answer is a decimal of at least 6 significant digits: the exact number rounded or cut off."""
    if answer.decimals is None or max(answer.digits, answer.decimals) < 6 or answer.digits < 4 or answer.tree is None:
        return False
    value = exact(answer.tree) if value is None else value
    try:
        target = evaluate(exact_tree)
    except (NotRead, Undefined):
        return False
    number = target if isinstance(target, Fraction) else _fraction(target)
    if number is None or value is None:
        return False
    unit = Fraction(1, 10**answer.decimals)
    return abs(number - value) * 2 <= unit or 0 <= (number - value) * (1 if number > 0 else -1) < unit


def _lowest_terms(tree: Tree) -> bool:
    if tree[0] == "neg":
        return _lowest_terms(tree[1])
    if tree[0] == "num":
        return True
    if tree[0] != "div":
        return False
    a, b = exact(tree[1]), exact(tree[2])
    return a is not None and b is not None and math.gcd(a.numerator, b.numerator) == 1 and b.denominator == 1 and b != 1


def trees_equal(a: Tree | None, b: Tree | None, policy: Policy) -> bool:
    """Whether two formulas have the same value, for all values of their variables.

    Raises:
        Undecided: one of them cannot be valued.
    """
    if a is None or b is None:
        return False
    try:
        if same(a, b):
            return True
    except Undefined:
        return False
    except TooLarge:
        raise
    except NotRead as error:
        raise Undecided from error
    if policy.rename and len(symbols(a)) == len(symbols(b)) == 1:
        (name,), (other,) = symbols(a), symbols(b)
        return same(a, substituted(b, {other: ("sym", name)}))
    return False


def decimal_comma(gold: Answer, answer: Answer) -> bool | None:
    """5,5 for 5.5: only where the reference is a decimal with as many digits."""
    match = re.fullmatch(r"([-+]?\d+)\s?,(\d+)", answer.text.strip())
    if gold.decimals is None or match is None or len(match[2]) != gold.decimals:
        return None
    return exact(gold.tree) == Fraction(f"{match[1]}.{match[2]}") if gold.tree else None


CONSTANT = re.compile(r"[CcKk](?:_\d)?")


def antiderivatives(a: Tree, b: Tree) -> bool:
    """f + C and g + C with f - g a constant."""
    one, two = _constant_apart(a), _constant_apart(b)
    if one is None or two is None:
        return False
    (rest, name), (other, _) = one, two
    names = symbols(rest) | symbols(other)
    if not symbols(rest) or any(CONSTANT.fullmatch(one) or one[:1].isupper() for one in names):
        return False  # the C of A + B + C is no constant of integration
    # A polynomial plus a small c is as often one with a parameter, whose value matters.
    if name[0].islower() and not all(any(mentions(tree, f) for f in TRANSCENDENTAL) for tree in (rest, other)):
        return False
    try:
        return differ_by_constant(rest, other)
    except TooLarge:
        raise
    except NotRead as error:
        raise Undecided from error


TRANSCENDENTAL = (
    "sin",
    "cos",
    "tan",
    "cot",
    "sec",
    "csc",
    "ln",
    "log",
    "arctan",
    "arcsin",
    "arccos",
    "sinh",
    "cosh",
    "tanh",
    "exp",
)


def _constant_apart(tree: Tree) -> tuple[Tree, str] | None:
    """A sum without the constant of integration in it, and its name."""
    terms = list(tree[1:]) if tree[0] == "add" else []
    found = [term for term in terms if term[0] == "sym" and CONSTANT.fullmatch(term[1])]
    if len(found) != 1:
        return None
    terms.remove(found[0])
    rest: Tree = ("add", *terms)
    return None if found[0][1] in symbols(rest) else (rest, found[0][1])


def units_agree(gold: Answer, answer: Answer, policy: Policy) -> bool:
    """The same unit, or one of them left out; words that name none are no unit."""
    if not answer.counted and gold.unit != answer.unit:
        return False
    if policy.units == "strict":
        return gold.unit == answer.unit and gold.percent == answer.percent
    if not gold.unit or not answer.unit or gold.unit == answer.unit:
        return True
    if {gold.unit, answer.unit} == {"degree", "rad"}:
        return (
            gold.tree is not None
            and answer.tree is not None
            and (mentions(gold.tree, "pi") or mentions(answer.tree, "pi"))
        )
    a, b = gold.unit.split("^"), answer.unit.split("^")
    if (a[1:] or ["1"]) != (b[1:] or ["1"]) and a[0] == b[0]:
        return False
    if a[0] == b[0]:
        return True
    if "unit" in (a[0], b[0]):
        return a[1:] == b[1:]
    return bool(set(a[0].split()) & set(b[0].split())) and (a[1:] == b[1:])  # "dollars", "dollars per hour"


def converted(gold: Answer, answer: Answer, policy: Policy) -> bool:
    """25 km is 25000 m: the same quantity in another unit of its kind, both written out."""
    if policy.units == "strict" or gold.tree is None or answer.tree is None:
        return False
    found = conversion(gold.unit, answer.unit)
    return found is not None and trees_equal(gold.tree, ("mul", ("num", found), answer.tree), policy)
