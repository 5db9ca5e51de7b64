"""The value of a formula's tree: exact fractions as long as possible, then 60 digits; and equality by values.

Two formulas with variables are the same when they agree at several points: exactly, for polynomials and rational
functions of fractions (Schwartz 1980, Zippel 1979); to 40 digits otherwise. Everything costly is refused by size first.
"""

from __future__ import annotations

import functools
import hashlib
import math
import threading
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

import mpmath

from rewards.maths.expression import NotRead, TooLarge, Tree

Value = Any  # Fraction, or a number of mpmath
DIGITS = 60
MAX_BITS = 60_000
MAX_FACTORIAL = 3000
MAX_TERMS = 2000
MAX_MAGNITUDE = 10.0**7  # of the logarithm of a number
# One context for each precision, never changed: what one answer does cannot reach the next.
_CONTEXTS = {digits: mpmath.mp.clone() for digits in (DIGITS, 5 * DIGITS, 50 * DIGITS)}
for _digits, _context in _CONTEXTS.items():
    _context.dps = _digits
_LOCK = threading.RLock()  # mpmath's functions raise a context's precision while they run
POINTS = 7
CONSTANTS = ("pi", "e", "i", "degree")


class Undefined(ArithmeticError):
    """No value here: division by zero, a root of a negative number where variables are real."""


@functools.lru_cache(4096)
def symbols(tree: Tree) -> frozenset[str]:
    """Names of the variables."""
    if tree[0] == "sym":
        return frozenset() if tree[1] in CONSTANTS else frozenset({tree[1]})
    if tree[0] == "sum":
        return (symbols(tree[3]) | symbols(tree[4]) | symbols(tree[5])) - {tree[2]}
    # A function or a sequence nobody defined is as unknown as a variable.
    unknown = tree[0] == "index" or (tree[0] == "fn" and tree[1].startswith("any "))
    found: frozenset[str] = frozenset({tree[1]} if unknown else ())
    for part in tree[1:]:
        if isinstance(part, tuple):
            nested = (
                part if part and isinstance(part[0], tuple) else (part,) if part and isinstance(part[0], str) else ()
            )
            for one in nested:
                found |= symbols(one)
    return found


def mentions(tree: Any, name: str) -> bool:
    """Whether a node or constant called `name` is in the tree."""
    return isinstance(tree, tuple) and (name in tree[:2] or any(mentions(part, name) for part in tree))


class _Evaluation:
    def __init__(self, point: Mapping[str, Value], digits: int, complex_numbers: bool) -> None:
        self.point = point
        self.ctx = _CONTEXTS[digits]
        self.complex = complex_numbers
        self.work = 0

    def of(self, tree: Tree) -> Value:
        self.work += 1
        if self.work > 20_000:
            raise TooLarge("work")
        return getattr(self, "_" + tree[0])(*tree[1:])

    def real(self, value: Value) -> Any:
        if isinstance(value, Fraction):
            return self.ctx.mpf(value.numerator) / value.denominator
        return value

    def _num(self, value: Fraction) -> Value:
        return value

    def _inf(self) -> Value:
        return self.ctx.inf

    def _sym(self, name: str) -> Value:
        if name in self.point:
            return self.point[name]
        if name == "pi":
            return +self.ctx.pi
        if name == "e":
            return +self.ctx.e
        if name == "i":
            return self.ctx.mpc(0, 1)
        if name == "degree":
            return self.ctx.pi / 180
        raise NotRead(name)

    def _index(self, name: str, index: Tree) -> Value:
        return self._unknown(name, (self.of(index),))

    def _unknown(self, name: str, arguments: tuple[Value, ...]) -> Value:
        """A function nobody defined: some fixed value for each argument, so that equal arguments give equal values."""
        text = name + "|" + "|".join(
            str(a) if isinstance(a, Fraction) else self.ctx.nstr(a, DIGITS // 2) for a in arguments
        )  # fmt: skip
        return Fraction(int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) + 1, 2**31)

    def _neg(self, tree: Tree) -> Value:
        return -self.of(tree)

    def _add(self, *trees: Tree) -> Value:
        total: Value = Fraction(0)
        for tree in trees:
            value = self.of(tree)
            if not (isinstance(total, Fraction) and isinstance(value, Fraction)):
                total, value = self.real(total), self.real(value)
            total = total + value
        return self._checked(total)

    def _mul(self, left: Tree, right: Tree) -> Value:
        a, b = self.of(left), self.of(right)
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            return self._checked(a * b)
        return self._checked(self.real(a) * self.real(b))

    def _div(self, left: Tree, right: Tree) -> Value:
        a, b = self.of(left), self.of(right)
        if b == 0:
            raise Undefined("division by zero")
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            return self._checked(a / b)
        return self._checked(self.real(a) / self.real(b))

    def _checked(self, value: Value) -> Value:
        if isinstance(value, Fraction):
            if value.numerator.bit_length() + value.denominator.bit_length() > MAX_BITS:
                return self.real(value)
        elif self.ctx.isnan(value):
            raise Undefined("not a number")
        return value

    def _pow(self, base: Tree, exponent: Tree) -> Value:
        return self.power(self.of(base), self.of(exponent))

    def power(self, a: Value, b: Value) -> Value:
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            if a == 0 and b <= 0:
                raise Undefined("0 to a power that is not positive") if b < 0 else Undefined("0^0")
            if b.denominator == 1:
                if max(a.numerator.bit_length(), a.denominator.bit_length()) * abs(b.numerator) <= MAX_BITS:
                    return a**b.numerator
            elif (root := _exact_root(abs(a), b.denominator)) is not None and (a >= 0 or b.denominator % 2):
                if a >= 0:
                    return self.power(root, Fraction(b.numerator))
                if not self.complex:
                    return self.power(-root, Fraction(b.numerator))
        x, y = self.real(a), self.real(b)
        if x == 0:
            return Fraction(0)
        if not self.complex and not (isinstance(b, Fraction) and b.denominator == 1) and self._negative(x):
            raise Undefined("power of a negative number")
        if self.ctx.isinf(x) or self.ctx.isinf(y):
            raise Undefined("infinite power")
        size = abs(self.ctx.re(y)) * abs(self.ctx.log(abs(x)))
        if size > MAX_MAGNITUDE or abs(self.ctx.im(y)) > MAX_MAGNITUDE:
            raise TooLarge("power")
        if isinstance(b, Fraction) and b.denominator == 1:
            return x**b.numerator if abs(b.numerator) < 10**9 else self.ctx.power(x, y)
        return self.ctx.power(x, y)

    def _negative(self, x: Any) -> bool:
        return bool(self.ctx.im(x) == 0 and self.ctx.re(x) < 0)

    def _sum(self, kind: str, variable: str, low: Tree, high: Tree, body: Tree) -> Value:
        first, last = self.of(low), None if mentions(high, "inf") else self.of(high)
        whole = [v for v in (first, last) if isinstance(v, Fraction) and v.denominator == 1]
        outer = self.point
        try:
            if len(whole) == 2 and not symbols(low) and not symbols(high):
                if whole[1] - whole[0] > MAX_TERMS:
                    raise TooLarge("terms")
                product: Value = Fraction(int(kind == "prod"))
                total = product
                for k in range(int(whole[0]), int(whole[1]) + 1):
                    self.point = {**outer, variable: Fraction(k)}
                    value = self.of(body)
                    if not (isinstance(total, Fraction) and isinstance(value, Fraction)):
                        total, value = self.real(total), self.real(value)
                    total = self._checked(total * value if kind == "prod" else total + value)
                return total
            # Bounds that are not numbers: the same when bounds and terms are.
            terms = []
            for index in (Fraction(3), Fraction(7, 2)):
                self.point = {**outer, variable: index}
                terms.append(self.of(body))
            return self._unknown(kind, (first, self.ctx.inf if last is None else last, *terms))
        finally:
            self.point = outer

    def _fn(self, name: str, arguments: tuple[Tree, ...]) -> Value:
        values = tuple(self.of(argument) for argument in arguments)
        if name.startswith("any "):
            return self._unknown(name, values)
        if name in ("binom", "mod", "root", "log_base") and len(values) != 2:
            raise NotRead(name)
        if name not in ("min", "max", "gcd", "lcm", "binom", "mod", "root", "log_base") and len(values) != 1:
            raise NotRead(name)
        method = getattr(self, "f_" + name, None)
        if method is not None:
            return self._checked(method(*values))
        if any(abs(self.ctx.re(self.real(v))) > 10**6 and name not in ("ln", "log", "lg") for v in values):
            if name in ("sin", "cos", "tan", "cot", "sec", "csc") and abs(self.real(values[0])) < 10**12:
                pass
            else:
                raise TooLarge(name)
        x = self.real(values[0])
        if name in ("ln", "log", "lg"):
            if x == 0:
                raise Undefined("log 0")
            if not self.complex and self._negative(x):
                raise Undefined("log of a negative number")
            if isinstance(values[0], Fraction) and values[0] == 1:
                return Fraction(0)
            return self.ctx.log(x) / (self.ctx.log(10) if name == "lg" else 1)
        known = {
            "arcsin": "asin",
            "arccos": "acos",
            "arctan": "atan",
            "arccot": "acot",
            "arcsec": "asec",
            "arccsc": "acsc",
        }
        function = getattr(self.ctx, known.get(name, name))
        try:
            found = function(x)
        except (ZeroDivisionError, ValueError) as error:
            raise Undefined(name) from error
        if not self.complex and self.ctx.im(found) != 0:
            raise Undefined(name)
        return self._checked(found)

    def f_sqrt(self, x: Value) -> Value:
        return self.f_root(x, Fraction(2))

    def f_cbrt(self, x: Value) -> Value:
        return self.f_root(x, Fraction(3))

    def f_root(self, x: Value, order: Value) -> Value:
        if order == 0:
            raise Undefined("zeroth root")
        if (
            isinstance(order, Fraction)
            and order.denominator == 1
            and order.numerator % 2
            and self._negative(self.real(x))
        ):
            value = self.power(-x, 1 / order)  # an odd root of a negative number is meant to be real
            return -value
        if isinstance(order, Fraction):
            return self.power(x, 1 / order)
        return self.power(x, 1 / self.real(order))

    def f_abs(self, x: Value) -> Value:
        return abs(x)

    def f_floor(self, x: Value) -> Value:
        return Fraction(math.floor(x)) if isinstance(x, Fraction) else self._whole(self.ctx.floor(x))

    def f_ceil(self, x: Value) -> Value:
        return Fraction(math.ceil(x)) if isinstance(x, Fraction) else self._whole(self.ctx.ceil(x))

    def _whole(self, x: Any) -> Value:
        if self.ctx.im(x) != 0 or self.ctx.isinf(x) or abs(x) > 10**15:
            raise TooLarge("floor")
        return Fraction(int(x))

    def f_factorial(self, x: Value) -> Value:
        if isinstance(x, Fraction) and x.denominator == 1:
            if x < 0:
                raise Undefined("factorial")
            if x > MAX_FACTORIAL:
                raise TooLarge("factorial")
            return Fraction(math.factorial(x.numerator))
        if abs(self.real(x)) > MAX_FACTORIAL:
            raise TooLarge("factorial")
        return self.ctx.gamma(self.real(x) + 1)

    def f_binom(self, n: Value, k: Value) -> Value:
        if isinstance(n, Fraction) and isinstance(k, Fraction) and n.denominator == k.denominator == 1:
            if max(abs(n), abs(k)) > 10**5 or min(abs(k), abs(n - k)) > MAX_FACTORIAL:
                raise TooLarge("binomial")
            if n >= 0:
                return Fraction(math.comb(n.numerator, k.numerator)) if k >= 0 else Fraction(0)
        if max(abs(self.real(n)), abs(self.real(k))) > 10**5:
            raise TooLarge("binomial")
        return self.ctx.binomial(self.real(n), self.real(k))

    def f_mod(self, a: Value, b: Value) -> Value:
        if b == 0:
            raise Undefined("mod 0")
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            return a % b
        raise NotRead("mod")

    def f_log_base(self, x: Value, base: Value) -> Value:
        a, b = self.real(x), self.real(base)
        if a == 0 or b in (0, 1) or (not self.complex and (self._negative(a) or self._negative(b))):
            raise Undefined("log")
        return self.ctx.log(a) / self.ctx.log(b)

    def f_exp(self, x: Value) -> Value:
        return self.power(+self.ctx.e, x)

    def f_min(self, *values: Value) -> Value:
        return min(values, key=self.real)

    def f_max(self, *values: Value) -> Value:
        return max(values, key=self.real)

    def f_gcd(self, *values: Value) -> Value:
        return Fraction(math.gcd(*(self._int(v) for v in values)))

    def f_lcm(self, *values: Value) -> Value:
        return Fraction(math.lcm(*(self._int(v) for v in values)))

    def _int(self, value: Value) -> int:
        if not isinstance(value, Fraction) or value.denominator != 1:
            raise NotRead("gcd")
        return value.numerator


def _exact_root(value: Fraction, order: int) -> Fraction | None:
    """The exact root of a fraction, when it is one."""
    if order > 64 or value.numerator.bit_length() > 4000:
        return None
    parts = []
    for part in (value.numerator, value.denominator):
        root = math.isqrt(part) if order == 2 else round(math.exp(math.log(part) / order)) if part else 0
        if root**order != part:
            return None
        parts.append(root)
    return Fraction(*parts)


def evaluate(
    tree: Tree, point: Mapping[str, Value] | None = None, digits: int = DIGITS, complex_numbers: bool = True
) -> Value:
    """The value of `tree` with variables from `point`.

    Raises:
        NotRead, TooLarge: it has no value this module computes.
        Undefined: it has no value.
    """
    with _LOCK:
        try:
            return _Evaluation(point or {}, digits, complex_numbers).of(tree)
        except (ZeroDivisionError, ValueError, TypeError) as error:
            if isinstance(error, NotRead):
                raise
            raise Undefined(str(error)) from error
        except (OverflowError, MemoryError, RecursionError, mpmath.libmp.NoConvergence) as error:
            raise TooLarge(str(error)) from error


@functools.lru_cache(8192)
def exact(tree: Tree) -> Fraction | None:
    """The exact value of a constant, when it is a fraction."""
    if symbols(tree) or mentions(tree, "pm"):
        return None
    try:
        value = evaluate(tree)
    except (NotRead, Undefined):
        return None
    return value if isinstance(value, Fraction) else None


def ordered(tree: Tree) -> Any:
    """A real constant, to 60 digits, that can be compared; infinity included.

    Raises:
        NotRead: it is no real constant.
    """
    if tree == ("inf",):
        return _CONTEXTS[DIGITS].inf
    if tree == ("neg", ("inf",)):
        return -_CONTEXTS[DIGITS].inf
    if symbols(tree):
        raise NotRead("not constant")
    try:
        value = evaluate(tree)
    except Undefined as error:
        raise NotRead("undefined") from error
    ctx = _CONTEXTS[DIGITS]
    if isinstance(value, Fraction):
        return ctx.mpf(value.numerator) / value.denominator
    if ctx.im(value) != 0:
        raise NotRead("not real")
    return ctx.re(value)


def _mp(value: Value, digits: int) -> Any:
    """A fraction as a number of mpmath, to so many digits; what is one already is left as it is."""
    ctx = _CONTEXTS[digits]
    return ctx.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def values_equal(a: Value, b: Value, digits: int = DIGITS) -> bool:
    """Equal exactly, or to two thirds of the digits."""
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    ctx = _CONTEXTS[digits]
    x, y = _mp(a, digits), _mp(b, digits)
    if ctx.isinf(x) or ctx.isinf(y):
        return bool(x == y)
    return bool(abs(x - y) <= ctx.mpf(10) ** (-(2 * digits) // 3) * max(abs(x), abs(y)))


def _at_points(
    a: Tree, b: Tree, signed: int, positive: int, complex_numbers: bool = False
) -> Iterator[tuple[Value, Value]]:
    """The values of two formulas wherever both have one: at so many points, and at so many without a negative
    coordinate, where powers and logarithms have a value."""
    names = sorted(symbols(a) | symbols(b))
    for k in range(signed + positive):
        point = {name: _coordinate(name, k) for name in names}
        if k >= signed:
            point = {name: abs(value) for name, value in point.items()}
        try:
            left, right = (evaluate(tree, point, complex_numbers=complex_numbers) for tree in (a, b))
        except Undefined:
            continue
        yield left, right


@functools.lru_cache(8192)
def same(a: Tree, b: Tree) -> bool:
    """Whether two formulas are the same function, or the same constant.

    Raises:
        NotRead: it could not be decided.
    """
    if a == b:
        return True
    if not symbols(a) | symbols(b):
        return _constants_equal(a, b)
    complex_numbers = mentions(a, "i") or mentions(b, "i")
    agreed = 0
    for left, right in _at_points(a, b, 2 * POINTS, 2 * POINTS, complex_numbers):
        if not values_equal(left, right):
            return False
        agreed += 1
        if agreed == POINTS:
            break
    if agreed >= 3:
        return (isinstance(left, Fraction) and isinstance(right, Fraction)) or _closely_at_a_point(
            a, b, complex_numbers
        )
    raise NotRead("too few points to compare at")


def _coordinate(name: str, k: int) -> Fraction:
    """Fixed points, positive in the first half, of either sign later; below and above one, and of no special form."""
    bits = int(hashlib.sha256(f"{name}/{k}".encode()).hexdigest()[:8], 16)
    value = Fraction(bits % 997 + 3, 389 if k % 2 else 1061)
    return -value if k % 4 >= 2 and bits & 1024 else value


def _constants_equal(a: Tree, b: Tree) -> bool:
    try:
        x, y = evaluate(a), evaluate(b)
        if isinstance(x, Fraction) and isinstance(y, Fraction):
            return x == y
        if values_equal(x, y):
            return _equal_closely(a, b, {})
        tiny = _CONTEXTS[DIGITS].mpf(10) ** (-DIGITS // 2)
        if abs(_mp(x, 5 * DIGITS) - _mp(y, 5 * DIGITS)) > tiny:
            return False
        # Nearly equal: zero written with roots, or two numbers that only look alike.
        x, y = evaluate(a, digits=5 * DIGITS), evaluate(b, digits=5 * DIGITS)
        if values_equal(x, y, 5 * DIGITS):
            return True
        return bool(abs(_mp(x, 5 * DIGITS) - _mp(y, 5 * DIGITS)) < _CONTEXTS[5 * DIGITS].mpf(10) ** (-4 * DIGITS))
    except Undefined:
        return False


def _closely_at_a_point(a: Tree, b: Tree, complex_numbers: bool) -> bool:
    point = {name: abs(_coordinate(name, 0)) for name in symbols(a) | symbols(b)}
    try:
        return _equal_closely(a, b, point, complex_numbers)
    except Undefined:
        return True


def _equal_closely(a: Tree, b: Tree, point: Mapping[str, Value], complex_numbers: bool = True) -> bool:
    """Whether two values that agree to 40 digits do so to many more: e^200 is not e^200 + 1, for all its 87 digits."""
    for digits in (5 * DIGITS, 50 * DIGITS):
        ctx = _CONTEXTS[digits]
        x, y = (_mp(evaluate(tree, point, digits, complex_numbers), digits) for tree in (a, b))
        size = max(abs(x), abs(y))
        if ctx.isinf(size):
            return bool(x == y)
        if abs(x - y) > size * ctx.mpf(10) ** (20 - digits):
            return False
        if size < ctx.mpf(10) ** (digits // 2):
            return True
    return True


def proportional(a: Tree, b: Tree) -> Fraction | Any | None:
    """The constant c with a = c b at all points, or None."""
    ratio: Value | None = None
    agreed = 0
    for left, right in _at_points(a, b, 3 * POINTS, 0):
        if right == 0 or left == 0:
            if left == right:
                continue
            return None
        one = left / right if isinstance(left, Fraction) and isinstance(right, Fraction) else _ratio(left, right)
        if ratio is not None and not values_equal(ratio, one):
            return None
        ratio = one
        agreed += 1
        if agreed == POINTS:
            break
    return ratio if agreed >= 3 else None


def _ratio(left: Value, right: Value) -> Any:
    return _mp(left, DIGITS) / _mp(right, DIGITS)


# --------------------------------------------------------------------------------------------------- formulas in one name


def substituted(tree: Any, values: Mapping[str, Tree]) -> Any:
    """`tree` with formulas in place of variables, all at once."""
    if not isinstance(tree, tuple):
        return tree
    if len(tree) == 2 and tree[0] == "sym" and tree[1] in values:
        return values[tree[1]]
    return tuple(substituted(part, values) for part in tree)


def linear(tree: Tree, name: str) -> tuple[Tree, Tree] | None:
    """Offset and step of a formula that is offset + step * name; None when it is none."""
    at = [substituted(tree, {name: ("num", Fraction(value))}) for value in (0, 1)]
    step: Tree = ("add", at[1], ("neg", at[0]))
    try:
        straight = same(tree, ("add", at[0], ("mul", ("sym", name), step)))
    except TooLarge:
        raise
    except (NotRead, Undefined):
        return None
    return (at[0], step) if straight else None


def multiple(tree: Tree, of: Tree) -> bool:
    """Whether `tree` is a whole number of times `of`."""
    if symbols(tree) | symbols(of):
        counts: list[int] = list(range(-3, 4))
    else:
        try:
            ratio = evaluate(("div", tree, of))
        except Undefined:
            return False
        if isinstance(ratio, Fraction):
            return ratio.denominator == 1
        ctx = _CONTEXTS[DIGITS]
        if ctx.im(ratio) != 0 or ctx.isinf(ratio) or abs(ratio) > 10**6:
            return False
        counts = [int(ctx.nint(ratio))]
    return any(same(tree, ("mul", ("num", Fraction(count)), of)) for count in counts)


def differ_by_constant(a: Tree, b: Tree) -> bool:
    """Whether a - b has one value wherever both have one."""
    difference: Value | None = None
    agreed = 0
    for left, right in _at_points(a, b, 2 * POINTS, 2 * POINTS):
        x, y = _mp(left, 5 * DIGITS), _mp(right, 5 * DIGITS)
        if difference is None:
            difference = x - y
        elif not values_equal(x, y + difference):
            return False
        agreed += 1
    return agreed >= 3
