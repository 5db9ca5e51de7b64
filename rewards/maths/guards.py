"""Size guards on text: what is cheap to write and endless to evaluate is refused before anything reads it."""

from __future__ import annotations

import math
import re

from rewards.maths.expression import MAX_DEPTH, MAX_DIGITS, MAX_LENGTH

MAX_EXPONENT = 4000
MAX_SYMBOLIC_LENGTH = 400
MAX_SYMBOLIC_DEPTH = 15
HUGE_COUNT = re.compile(  # factorials and binomials of large numbers, of powers, of factorials
    r"\d{5,}[\s})]*!|\^\s*\{?\d+[\s})]*!|![\s})]*!|factorial\D{0,9}\d{5,}|binom\W{0,9}(?:\d{6,}|\d+\s*\^)|binom.{0,20}!"
)


def too_large(text: str) -> bool:
    """Cheap to write, endless to evaluate."""
    if len(text) > MAX_LENGTH or re.search(rf"\d{{{MAX_DIGITS}}}", text) or HUGE_COUNT.search(text):
        return True
    depth = deepest = 0
    for character in text:
        depth += (character in "{([") - (character in "})]")
        deepest = max(deepest, depth)
    return deepest > MAX_DEPTH or _exponent(text) > MAX_EXPONENT


def symbolic_worth(text: str) -> bool:
    """Short, flat and balanced enough for a general parser to be asked."""
    depth = 0
    for character in text:
        depth += (character in "{([") - (character in "})]")
        if depth > MAX_SYMBOLIC_DEPTH:
            return False
    return len(text) <= MAX_SYMBOLIC_LENGTH and text.count("{") == text.count("}")


def _exponent(text: str) -> float:
    """The largest numeric exponent in `text`; infinite for towers of three and more."""
    return max((_size(_operand(text, power.end())) for power in re.finditer(r"\^\s*", text)), default=0.0)


def _operand(text: str, start: int) -> str:
    if text[start : start + 1] in ("{", "("):
        end = _closing(text, start)
        return text[start + 1 : end]
    number = re.compile(r"-?\d+(?:\s*\^.*)?", re.DOTALL).match(text, start)
    return number[0] if number else ""


def _closing(text: str, opened: int) -> int | None:
    left, right = text[opened], {"{": "}", "(": ")"}[text[opened]]
    depth = 0
    for at in range(opened, len(text)):
        depth += (text[at] == left) - (text[at] == right)
        if depth == 0:
            return at
    return None


def _size(exponent: str) -> float:
    exponent = exponent.strip()
    if re.fullmatch(r"-?\d+", exponent):
        return abs(float(exponent)) if len(exponent) < 10 else math.inf
    if tower := re.fullmatch(r"\(?(\d+)\)?\s*\^\s*\{?\(?(\d+)\)?\}?", exponent):
        base, power = float(tower[1][:9]), float(tower[2][:9])
        return base**power if power * math.log10(max(base, 1)) < 6 else math.inf
    tall = any("^" in _operand(exponent, power.end()) for power in re.finditer(r"\^\s*", exponent))
    return math.inf if tall or re.search(r"\d\s*\^\s*\{?\(?\d", exponent) else 0.0
