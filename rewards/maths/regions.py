"""Intervals and their unions: what is read as one, and the algebra of them."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from fractions import Fraction

from rewards.maths.answers import FLIP, MAX_ITEMS, NAME, Answer, relations, split
from rewards.maths.evaluate import exact, linear, ordered, symbols
from rewards.maths.expression import NotRead, TooLarge, Tree, parse

INFINITY: Tree = ("inf",)
MINUS_INFINITY: Tree = ("neg", ("inf",))
INTERVAL = re.compile(r"([\[(])\s*(.*?)\s*([\])])", re.DOTALL)
ALL_REAL = re.compile(r"\\mathbb\s*\{?R\}?|\(?\\text\{\s*(?:all )?reals?(?: numbers?)?\s*\}\)?|\\mathbf\s*\{?R\}?")


# The positive, negative, not negative and not positive real numbers.
HALF_LINE = re.compile(
    r"\\mathbb\s*\{?R\}?\s*[\^_]\s*\{?\s*(?P<sign>[+-]|(?:[<>]=?|\\[lg]e)(?=\s*\{?0))\s*\{?0?\}?\s*\}?"
)


def interval_or_none(text: str) -> Answer | None:
    """An interval in brackets that can only be one, or that stands where one must."""
    text = text.strip()
    while text.startswith("{") and text.endswith("}") and len(split(text, re.compile(r"\}"))) == 1:
        text = text[1:-1].strip()
    if ALL_REAL.fullmatch(text):
        return Answer("region", text, pieces=((MINUS_INFINITY, INFINITY, False, False),))
    if (half := HALF_LINE.fullmatch(text)) is not None:
        sign = half["sign"]
        zero: Tree = ("num", Fraction(0))
        closed = "e" in sign or "=" in sign
        piece = (
            (MINUS_INFINITY, zero, False, closed)
            if sign[0] in "-<" or sign.startswith("\\l")
            else (zero, INFINITY, closed, False)
        )
        return Answer("region", text, pieces=(piece,))
    if text in ("\\emptyset", "\\{\\}", "\\{ \\}"):
        return Answer("region", text)
    match = INTERVAL.fullmatch(text)
    if match is None or len(split(text, re.compile(r"(?<=[)\]])"))) > 2:
        return None
    ends = split(match[2], re.compile(r"[,;]"))
    if len(ends) != 2 or not all(ends):
        return None
    try:
        low, high = parse(ends[0]), parse(ends[1])
    except TooLarge:
        raise
    except NotRead:
        return None
    return interval_between(text, low, high, match[1] == "[", match[3] == "]")


def interval_between(
    text: str, low: Tree, high: Tree, closed_low: bool, closed_high: bool, brackets: str = ""
) -> Answer | None:
    try:
        if ordered(low) > ordered(high):
            return None
    except TooLarge:
        raise
    except NotRead:
        pass
    closed_low = closed_low and low != MINUS_INFINITY
    closed_high = closed_high and high not in (INFINITY, ("num", None))
    return Answer("region", text, pieces=((low, high, closed_low, closed_high),), brackets=brackets)


def united(regions: list[Answer], text: str, name: str) -> Answer:
    pieces = [piece for region in regions for piece in region.pieces]
    if len(pieces) > MAX_ITEMS:
        raise TooLarge("pieces")
    keyed = sorted(((ordered(p[0]), not p[2], p) for p in pieces), key=lambda k: (k[0], k[1]))
    merged: list[tuple[Tree, Tree, bool, bool]] = []
    for low, _, piece in keyed:
        if merged:
            before = merged[-1]
            end = ordered(before[1])
            if low < end or (low == end and (piece[2] or before[3])):
                high = ordered(piece[1])
                if high > end or (high == end and piece[3]):
                    merged[-1] = (before[0], piece[1], before[2], piece[3])
                continue
        merged.append(piece)
    return Answer("region", text, pieces=tuple(merged), name=name)


def intersection(a: Answer, b: Answer, text: str) -> Answer:
    pieces = []
    for p in a.pieces:
        for q in b.pieces:
            low, closed_low = _larger(p, q)
            high, closed_high = _smaller(p, q)
            x, y = ordered(low), ordered(high)
            if x < y or (x == y and closed_low and closed_high):
                pieces.append((low, high, closed_low, closed_high))
    return united([Answer("region", "", pieces=tuple(pieces))], text, "")


def _larger(p: tuple[Tree, Tree, bool, bool], q: tuple[Tree, Tree, bool, bool]) -> tuple[Tree, bool]:
    x, y = ordered(p[0]), ordered(q[0])
    return (p[0], p[2] and q[2]) if x == y else (p[0], p[2]) if x > y else (q[0], q[2])


def _smaller(p: tuple[Tree, Tree, bool, bool], q: tuple[Tree, Tree, bool, bool]) -> tuple[Tree, bool]:
    x, y = ordered(p[1]), ordered(q[1])
    return (p[1], p[3] and q[3]) if x == y else (p[1], p[3]) if x < y else (q[1], q[3])


def without(region: Answer, point: Tree, text: str) -> Answer:
    rest = Answer("region", "", pieces=((MINUS_INFINITY, point, False, False), (point, INFINITY, False, False)))
    return intersection(region, rest, text)


def as_region(answer: Answer) -> Answer | None:
    """Points as a region, as in (0,1) \\cup \\{2\\}."""
    if answer.kind == "region":
        return answer
    points = answer.items if answer.kind in ("set", "list") else ()
    if points and all(p.kind == "scalar" and p.tree is not None for p in points):
        return united(
            [Answer("region", "", pieces=((p.tree, p.tree, True, True),)) for p in points if p.tree], answer.text, ""
        )
    return None


def only_interval(item: Answer) -> bool:
    """Cannot be a point in the plane."""
    return len(item.pieces) != 1 or item.pieces[0][2] != item.pieces[0][3] or any(
        "inf" in str(end) for end in item.pieces[0][:2]
    )  # fmt: skip


def read_region(text: str) -> Answer | None:
    """An interval, or what an inequality in one variable says."""
    if re.fullmatch(r"\s*\\mathbb\{?R\}?\s*|\\emptyset|\\\{\s*\\\}|\\text\{all reals?(?: numbers)?\}", text):
        return interval_or_none(text)
    found = INTERVAL.fullmatch(text)
    if found and (found[1] == "[") != (found[3] == "]") and (region := interval_or_none(text)):
        return region
    if found and re.search(r"\\infty|\binf(?:inity)?\b|\boo\b", text) and (region := interval_or_none(text)):
        return region
    if HALF_LINE.fullmatch(text.strip()):
        return interval_or_none(text)
    sides, signs = relations(text)
    if not signs or any(sign not in ("<", ">", "<=", ">=", "!=") for sign in signs):
        return None
    variable = [
        k
        for k, side in enumerate(sides)
        if re.fullmatch(rf"{NAME.pattern}", side) and not re.match(r"\\(?:pi|infty)", side)
    ]
    if len(variable) != 1:
        return None
    try:
        ends = [None if k == variable[0] else parse(side) for k, side in enumerate(sides)]
        for end in ends:
            if end is not None:
                ordered(end)
    except TooLarge:
        raise
    except NotRead:
        return None
    name = sides[variable[0]]
    if len(sides) == 2:
        sign = signs[0] if variable[0] == 0 else FLIP[signs[0]]
        end = ends[1 - variable[0]]
        assert end is not None
        pieces = {
            "<": ((MINUS_INFINITY, end, False, False),),
            "<=": ((MINUS_INFINITY, end, False, True),),
            ">": ((end, INFINITY, False, False),),
            ">=": ((end, INFINITY, True, False),),
            "!=": ((MINUS_INFINITY, end, False, False), (end, INFINITY, False, False)),
        }[sign]
        return Answer("region", text, pieces=pieces, name=name, brackets="relation")
    if len(sides) == 3 and variable == [1]:
        first, last = ends[0], ends[2]
        assert first is not None
        assert last is not None
        if signs[0] in (">", ">=") and signs[1] in (">", ">="):
            first, last, signs = last, first, [FLIP[signs[1]], FLIP[signs[0]]]
        if signs[0] in ("<", "<=") and signs[1] in ("<", "<="):
            between = interval_between(text, first, last, signs[0] == "<=", signs[1] == "<=", "relation")
            return None if between is None else replace(between, name=name)
    return None


def solution(relation: Answer, name: str) -> Answer | None:
    """What a linear inequality in `name`, or a bound of its absolute value, says of it: 2x < 6, |x| < 3."""
    if relation.relation not in ("<", ">", "<=", ">=") or relation.tree is None or len(relation.sides) != 2:
        return None
    (left, right), sign = relation.sides, relation.relation
    names = symbols(relation.tree)
    if not name and len(names) == 1:
        name = next(iter(names))
    if re.fullmatch(rf"\|\s*{re.escape(name)}\s*\|", right):
        left, right, sign = right, left, FLIP[sign]
    if re.fullmatch(rf"\|\s*{re.escape(name)}\s*\|", left):
        if sign[0] == "<":
            return read_region(f"-({right}) {sign} {name} {sign} {right}")
        sides = [read_region(f"{name} {sign} {right}"), read_region(f"{name} {FLIP[sign]} -({right})")]
        return united([side for side in sides if side is not None], relation.text, name)
    parts = linear(relation.tree, name) if names == {name} else None
    offset, step = (exact(part) for part in parts) if parts else (None, None)
    if offset is None or not step:
        return None
    end = -offset / step
    return read_region(f"{name} {sign if step > 0 else FLIP[sign]} {end}")


def complement(region: Answer, text: str) -> Answer:
    """All real numbers outside a region."""
    rest = Answer("region", text, pieces=((MINUS_INFINITY, INFINITY, False, False),))
    for low, high, closed_low, closed_high in region.pieces:
        sides = []
        if low != MINUS_INFINITY:
            sides.append((MINUS_INFINITY, low, False, not closed_low))
        if high != INFINITY:
            sides.append((high, INFINITY, not closed_high, False))
        rest = intersection(rest, Answer("region", "", pieces=tuple(sides)), text)
    return rest


def integers(region: Answer, least: int | None) -> list[Fraction] | None:
    """The integers in a region, from `least` on; None when they are too many to list."""
    found: list[Fraction] = []
    for low, high, closed_low, closed_high in region.pieces:
        first, last = ordered(low), ordered(high)
        if least is not None and first < least:
            first, closed_low = least, True
        if abs(first) > 10**9 or abs(last) > 10**9 or last - first > MAX_ITEMS:
            return None
        begin, end = math.ceil(first), math.floor(last)
        begin += begin == first and not closed_low
        end -= end == last and not closed_high
        found.extend(Fraction(n) for n in range(begin, end + 1))
    return found
