"""One answer as far as it could be read, and the cuts at commas, signs and words that every reader makes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from rewards.maths.expression import Tree

Kind = Literal[
    "scalar", "text", "based", "list", "set", "tuple", "region", "matrix", "relation", "congruence", "family", "builder", "cases", "case",
    "unread",
]  # fmt: skip
MAX_ITEMS = 200


@dataclass(frozen=True)
class Answer:
    """One answer, as far as it could be read."""

    kind: Kind
    text: str
    tree: Tree | None = None  # scalar; the difference of the sides of a relation
    unit: str = ""
    percent: bool = False
    decimals: int | None = None  # digits after the point, for a decimal literal
    digits: int = 0  # significant digits, for a decimal literal
    rounded: bool = False  # a decimal that is written as near the value: \approx 0.2, 0.33...
    counted: bool = True  # the words after a number name a unit or what is counted
    items: tuple[Answer, ...] = ()
    brackets: str = ""
    pieces: tuple[tuple[Tree, Tree, bool, bool], ...] = ()  # of a region: low, high, whether each end belongs to it
    rows: tuple[tuple[Tree, ...], ...] = ()
    relation: str = ""
    name: str = ""  # what it is said to be the value of: x in x = 5
    sides: tuple[str, ...] = field(default=())  # of a relation; of a text, the sentence it was
    hedge: bool = False  # several answers offered as alternatives


HEDGE = re.compile(
    r"\b(?:but|maybe|perhaps|either|possibly|not|isn't|probably|could be|might|unless|instead|nor|neither|rather than|such as|something like"
    r"|(?:one|any|some) of|in the (?:list|set|range)|(?:element|member)s? of|among)\b",
    re.IGNORECASE,
)
OR = re.compile(r"\\text\{\s*,?\s*(?:or)\s*\}|\\lor(?![a-z])|(?<![a-zA-Z\\])or(?![a-zA-Z])")
AND = re.compile(r"\\text\{\s*,?\s*(?:and|&|,|;)\s*,?\s*\}|\\land(?![a-z])|(?<![a-zA-Z\\])and(?![a-zA-Z])")
RELATION = re.compile(r"\\(?:le|ge|ne|approx|equiv|in|notin|sim|cong|to|Rightarrow|implies)(?![a-zA-Z])|[<>]=?|!=|==?")
SPELL = {"<": "<", ">": ">", "\\le": "<=", "\\ge": ">=", "<=": "<=", ">=": ">=", "\\ne": "!=", "!=": "!=", "=": "=", "==": "=",
         "\\approx": "~", "\\sim": "~", "\\equiv": "equiv", "\\cong": "equiv", "\\in": "in", "\\notin": "notin"}  # fmt: skip
FLIP = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
COMMA = re.compile(rf"\s*(?:[,;](?:\s*(?:{AND.pattern}|{OR.pattern}))?|{AND.pattern}|{OR.pattern})\s*")
NAME = re.compile(
    r"\\text\{[^{}]*\}|[A-Za-z]'*(?:_(?:\{[^{}]*\}|\w))?(?:\([^()=]*\))?|\\(?:angle|triangle|measuredangle)?\s*[A-Z]{1,4}(?:\^)?|[A-Z]{2,4}"
    r"|\|?[A-Z]{1,3}\|?|\\[a-zA-Z]+(?:_\{?\w+\}?)?(?:\([^()=]*\))?|m\s*\\angle\s*[A-Z]+|S_\{[A-Z]+\}:S"
    r"|\{[A-Za-z]{1,4}'?\}|[A-Z][a-z]?\[[A-Za-z]\]|[fghFGH](?:\^\{\s*-1\s*\}|'+)?\((?:[^()=]|\([^()=]*\))*\)|(?:\\#|#)\s*[A-Z]"
    r"|\((?:[a-zA-Z]|\\[a-z]{2,7})(?:_\{?\w+\}?)?(?:\s*,\s*(?:[a-zA-Z]|\\[a-z]{2,7})\s*(?:_\{?\w+\}?)?)+\)|\\frac\{d[yx]\}\{d[xy]\}|P\([^()]*\)|y'+"
)


def split(text: str, separators: re.Pattern[str]) -> list[str]:
    """Parts of `text` between separators that stand outside all brackets."""
    parts, depth, start, at = [], 0, 0, 0
    while at < len(text):
        if depth == 0 and (match := separators.match(text, at)) and match.end() > at:
            parts.append(text[start:at])
            start = at = match.end()
            continue
        if text.startswith(("\\{", "\\}"), at):
            depth += 1 if text[at + 1] == "{" else -1
            at += 2
            continue
        if text.startswith("\\begin{", at):
            depth += 1
            at += 7
            continue
        if text.startswith("\\end{", at):
            depth -= 1
            at += 5
            continue
        if text.startswith(("\\langle", "\\lfloor", "\\lceil"), at):
            depth += 1
        elif text.startswith(("\\rangle", "\\rfloor", "\\rceil"), at):
            depth -= 1
        elif text[at] in "([{":
            depth += 1
        elif text[at] in ")]}":
            depth -= 1
        at += 1
    parts.append(text[start:])
    return [part.strip() for part in parts]


def closed(inner: str) -> bool:
    """Whether no bracket is closed before it was opened, so that the outer pair belongs together."""
    depth = 0
    for character in inner:
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        if depth < 0:
            return False
    return depth == 0


def relations(text: str) -> tuple[list[str], list[str]]:
    """Sides and signs of a chain such as a < b = c, outside brackets."""
    sides, signs, start = [], [], 0
    depth = at = 0
    while at < len(text):
        if depth == 0 and (match := RELATION.match(text, at)):
            sides.append(text[start:at].strip())
            signs.append(SPELL.get(match[0], match[0]))
            start = at = match.end()
            continue
        if text[at] == "\\" and at + 1 < len(text) and text[at + 1] in "{}":
            depth += 1 if text[at + 1] == "{" else -1
            at += 2
            continue
        if text[at] in "([{":
            depth += 1
        elif text[at] in ")]}":
            depth -= 1
        at += 1
    sides.append(text[start:].strip())
    return sides, signs
