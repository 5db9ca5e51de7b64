"""What kind of answer a text is: a number, a formula, text, an interval, a tuple, a list, a matrix, an equation, ...

`read` gives one `Answer` for a normalised text. Formulas in it are trees of `expression`.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from rewards.maths.evaluate import ordered
from rewards.maths.expression import NotRead, TooLarge, Tree, guarded, parse
from rewards.maths.normalise import words
from rewards.maths.units import split_unit

Kind = Literal["scalar", "text", "based", "list", "set", "tuple", "region", "matrix", "relation", "unread"]
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
    items: tuple[Answer, ...] = ()
    brackets: str = ""
    pieces: tuple[tuple[Tree, Tree, bool, bool], ...] = ()  # of a region: low, high, whether each end belongs to it
    rows: tuple[tuple[Tree, ...], ...] = ()
    relation: str = ""
    name: str = ""  # what it is said to be the value of: x in x = 5
    sides: tuple[str, ...] = field(default=())
    hedge: bool = False  # several answers offered as alternatives


HEDGE = re.compile(
    r"\b(?:but|maybe|perhaps|either|possibly|not|isn't|probably|could be|might|unless|instead|nor|neither)\b", re.I
)
OR = re.compile(r"\\text\{\s*,?\s*(?:or)\s*\}|\\lor(?![a-z])|(?<![a-zA-Z\\])or(?![a-zA-Z])")
AND = re.compile(r"\\text\{\s*,?\s*(?:and|&|,|;)\s*,?\s*\}|\\land(?![a-z])|(?<![a-zA-Z\\])and(?![a-zA-Z])")
RELATION = re.compile(r"\\(?:le|ge|ne|approx|equiv|in|notin|sim|cong|to|Rightarrow|implies)(?![a-zA-Z])|[<>]=?|!=|==?")
SPELL = {"<": "<", ">": ">", "\\le": "<=", "\\ge": ">=", "<=": "<=", ">=": ">=", "\\ne": "!=", "!=": "!=", "=": "=", "==": "=",
         "\\approx": "~", "\\sim": "~", "\\equiv": "equiv", "\\cong": "equiv", "\\in": "in", "\\notin": "notin"}  # fmt: skip
FLIP = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
INFINITY: Tree = ("inf",)
MINUS_INFINITY: Tree = ("neg", ("inf",))
NUMBER = re.compile(r"[-+]?\s*(?:\d+(\.\d*)?|(\.\d+))", re.ASCII)
BASE = re.compile(
    r"[({]?\s*(?:\\text\s*\{\s*)?(?P<digits>-?[0-9A-Za-z.]+)\s*[})]{0,2}\s*_\s*\{?\s*\(?\s*(?:\\text\s*\{\s*)?\(?(?:base\s*)?\}?\s*(?P<base>[0-9a-z]+)"
    r"\s*\)?\s*\}{0,2}\s*\)?\}?"
    r"|(?P<digits2>[0-9A-Z]+)\s*(?:\\text\s*\{)?\s*(?:\(?in\s+)?\(?base\s*\}?\s*(?P<base2>\w+)\)?\s*\}?"
)
NUMERALS = {name: k for k, name in enumerate(
    ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"]
)} | {"binary": 2, "octal": 8, "decimal": 10, "hex": 16, "hexadecimal": 16}  # fmt: skip
MATRIX = re.compile(
    r"\\begin\{(?:[pb]|small)?(?:matrix|array)\}(?:\s*\{[clr|\s]*\})?(.*?)\\end\{(?:[pb]|small)?(?:matrix|array)\}",
    re.DOTALL,
)
NAME = re.compile(
    r"\\text\{[^{}]*\}|[A-Za-z]'*(?:_(?:\{[^{}]*\}|\w))?(?:\([^()=]*\))?|\\(?:angle|triangle|measuredangle)?\s*[A-Z]{1,4}(?:\^)?|[A-Z]{2,4}"
    r"|\|?[A-Z]{1,3}\|?|\\[a-zA-Z]+(?:_\{?\w+\}?)?(?:\([^()=]*\))?|m\s*\\angle\s*[A-Z]+|S_\{[A-Z]+\}:S"
    r"|\{[A-Za-z]{1,4}'?\}|[A-Z][a-z]?\[[A-Za-z]\]|[fghFGH](?:\^\{\s*-1\s*\}|'+)?\((?:[^()=]|\([^()=]*\))*\)|(?:\\#|#)\s*[A-Z]"
    r"|\([a-zA-Z](?:_\{?\w+\}?)?(?:\s*,\s*[a-zA-Z](?:_\{?\w+\}?)?)+\)|\\frac\{d[yx]\}\{d[xy]\}|P\([^()]*\)|y'+"
)


@functools.lru_cache(8192)
def read(text: str) -> Answer:
    """The answer written in normalised `text`.

    Raises:
        TooLarge: it is longer or deeper than what is ever read.
    """
    guarded(text)
    try:
        return _read(text.strip())
    except TooLarge:
        raise
    except NotRead:
        return Answer("unread", text)
    except (RecursionError, MemoryError) as error:
        raise TooLarge("depth") from error


def _read(text: str, inside: bool = False) -> Answer:
    if not text:
        raise NotRead("empty")
    text = _plain_form(text)
    text = _french(text)
    if (worded := _as_words(text)) is not None:
        return worded
    based = BASE.fullmatch(text)
    if based is not None and (not inside or text[0].isdigit()) and (answer := _based(text, based)) is not None:
        return answer
    if CLOCK.fullmatch(text):
        return Answer("text", words(text))
    if (prefixed := re.fullmatch(r"0([box])([0-9a-fA-F]+)", text)) is not None:
        return Answer(
            "based", prefixed[2].upper().lstrip("0") or "0", name={"b": "2", "o": "8", "x": "16"}[prefixed[1]]
        )
    if (
        (point := re.fullmatch(r"[A-Z]'?(?:_\{?\w\}?)?\s*(\(.*\))", text))
        and _closed(point[1][1:-1])
        and not _is_formula(text)
    ):
        return _read(point[1])
    for way in (_union, _several, _matrix, _region, _related, _bracketed, _ratio):
        found = way(text)
        if found is not None:
            return found
    return _scalar(text)


# Words in front of an answer that only say what it is; a denial or a doubt among them is part of it.
LEAD = re.compile(
    r"\\text\s*\{\s*((?:[^{}]*?(?::|=|\b(?:is|are|be|equals?|becomes)))|(?:thus|therefore|hence|so|then|exactly|only|both|answer"
    r"|(?:the )?(?:interval|points?|vector|set|domain|range|area|value|equation|number|solutions?|answer)),?)\s*\}\s*(?=\S)",
    re.IGNORECASE,
)
DOUBT = re.compile(
    r"\b(?:not|no|never|neither|nor|except|but|least|most|than|about|approximately|roughly|maybe|perhaps|if|or|cannot|wrong|half|twice)\b|n't\b",
    re.IGNORECASE,
)
MATRIX_CALL = re.compile(r"(?:np\.|numpy\.|sympy\.)?(?:Matrix|array)\s*\(\s*(\[.*\])\s*\)", re.DOTALL)
ROWS = re.compile(
    r"\\begin\{(?:cases|aligned|align\*?|gathered|array\}\{[lcr]+)\}(.*)\\end\{(?:cases|aligned|align\*?|gathered|array)\}",
    re.DOTALL,
)
NEGATIVE = re.compile(r"(?:\\text\s*\{\s*(?:negative|minus)\s*\}|(?:negative|minus)\b)\s*(?=[\d.\\(])", re.IGNORECASE)


def _plain_form(text: str) -> str:
    """Without braces around all of it, words that only introduce it, and rows instead of commas."""
    text = text[1:].strip() if re.match(r"=(?!=)", text) else text
    while text.startswith("{") and text.endswith("}") and _closed(text[1:-1]) and len(split(text[1:-1], COMMA)) == 1:
        text = text[1:-1].strip()
    if "text" in text:
        if (
            sentence := re.fullmatch(r"\\text\s*\{([^{}]*?(?::|\bis|\bare|=))\s*([^{}\s][^{}]*)\}", text)
        ) and re.search(r"[a-z].*\d", sentence[0][5:], re.IGNORECASE):
            text = f"\\text{{{sentence[1]}}} {sentence[2]}"
        lead = LEAD.match(text)
        if lead is not None and re.search("[A-Za-z]", lead[1]) and not DOUBT.search(lead[1]):
            text = text[lead.end() :]
        text = re.sub(rf"^({NAME.pattern})\s*\\text\s*\{{\s*(?:is|equals)\s*\}}", r"\1 = ", text)
        text = re.sub(r"\\text\s*\{\s*in\s*\}", r"\\in ", text)
    if (called := MATRIX_CALL.fullmatch(text)) is not None:
        text = called[1]
    if (rows := ROWS.fullmatch(text)) is not None and "matrix" not in text:
        text = rows[1].replace("&", " ") if not re.search(r"&\s*(?!=)\S", rows[1]) else text
    if "\\\\" in text and "\\begin" not in text:
        text = ", ".join(part.strip(" ,") for part in text.split("\\\\") if part.strip(" ,"))
    if text.startswith("<") and text.endswith(">") and text.count("<") == text.count(">") == 1 and "," in text:
        text = rf"\langle {text[1:-1]} \rangle"
    text = NEGATIVE.sub("-", text, count=1) if NEGATIVE.match(text) else text
    return re.sub(r"(?<=\d\.)(\d{4,})\s*(?:\.{3}|\\[lc]?dots\s*)$", r"\1", text).strip()


def _as_words(text: str) -> Answer | None:
    """Text that is words only; a number or formula inside \\text{} is what it is without."""
    if (region := _worded_region(text)) is not None:
        return region
    if re.fullmatch(r"[A-Z](?:\s*(?:,|\\text\{\s*and\s*\}|\band\b)+\s*[A-Z])+", text):
        return None  # a list of letters
    wrapped = re.fullmatch(r"\(?\\text\{([^{}]*)\}\)?", text)
    if wrapped:
        inner = wrapped[1].strip()
        if re.search(r"\d", inner) and (re.fullmatch(r"[-+\d.,/\s%\\^{}()]*", inner) or NUMBER.match(inner)):
            return _read(inner)
        if not inner:
            raise NotRead("empty")
        if inner.lower() in ("infinity", "-infinity"):
            return _read(inner)
        return Answer("text", words(text), hedge=bool(OR.search(inner) or HEDGE.search(inner)))
    if re.fullmatch(r"\(?\s*(?:\\text\{[^{}]*\}|[A-Za-z][A-Za-z'-]*+|[\s().-])++", text) and "\\text" in text:
        return Answer("text", words(text), hedge=bool(OR.search(text) or HEDGE.search(text)))
    if re.fullmatch(r"[A-Za-z][A-Za-z'’-]*(?:[\s,.]+[A-Za-z][A-Za-z'’-]*)*[.!]?", text):
        if len(text) <= 3 and not re.search(r"\s", text):
            return None
        if re.search(r"[a-z]{3}|[A-Z]{4}", text) or " " in text.strip():
            if (
                re.fullmatch(r"[a-zA-Z](?:\s+[a-zA-Z])*", text)
                or text.lower() in ("infinity",)
                or re.fullmatch(r"[A-Z](?:\s*,\s*[A-Z])+|[a-z](?:\s*,\s*[a-z])+", text)
            ):
                return None
            return Answer("text", words(text), hedge=bool(OR.search(text) or HEDGE.search(text)))
    return None


REALS = re.compile(
    r"(?:the )?(?:set of )?(?:all )?(?P<sign>(?:strictly )?(?:positive|negative)|non-?negative|non-?positive)? ?real(?: number)?s?(?: [a-z])?"
    r"(?:,? (?P<how>except(?: for)?|other than|excluding|not equal to|greater than or equal to|less than or equal to|greater than|more than|less than"
    r"|at least|at most)\s*(?P<what>.+))?"
)
HOW = {"greater than": ">", "more than": ">", "less than": "<", "at least": ">=", "at most": "<=", "greater than or equal to": ">=",
       "less than or equal to": "<="}  # fmt: skip
SIGNS = {"positive": "x > 0", "negative": "x < 0", "nonnegative": "x >= 0", "nonpositive": "x <= 0"}


def _worded_region(text: str) -> Answer | None:
    """All real numbers except 5; the empty set."""
    if "real" not in text.lower() and "empty" not in text.lower():
        return None
    plain = re.sub(r"\s+", " ", re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text)).strip()
    if re.fullmatch(r"(?:the )?empty set", plain, re.IGNORECASE):
        return Answer("region", text)
    match = REALS.fullmatch(plain[:1].lower() + plain[1:])
    if match is None:
        return None
    sign = (match["sign"] or "").replace("-", "").removeprefix("strictly ")
    if sign or not match["what"]:
        return None if match["what"] else _region(SIGNS[sign]) if sign else _region_or_none("\\mathbb{R}")
    if match["how"] in HOW:
        return _region(f"x {HOW[match['how']]} {match['what']}")
    return _union(rf"\mathbb{{R}} \setminus \{{{match['what']}\}}")


CLOCK = re.compile(r"(?:\\text\s*\{\s*)?\d{1,2}\s*:\s*[0-5]\d(?:\s*(?:\\text\s*\{)?\s*[aApP]\.?\s*[mM]\.?)?\s*\}?")


def _ratio(text: str) -> Answer | None:
    """3:1, 8:7:3, or 3 \\text{ to } 1."""
    parts = split(text, re.compile(r":|\\text\s*\{\s*to\s*\}|\s+to\s+"))
    if not 2 <= len(parts) <= 5:
        return None
    items = tuple(_read(part) for part in parts)
    if any(item.kind != "scalar" or item.tree is None for item in items):
        return None
    return Answer("tuple", text, items=items, brackets=":")


def _based(text: str, match: re.Match[str]) -> Answer | None:
    digits, base = match["digits"] or match["digits2"], match["base"] or match["base2"]
    number = NUMERALS.get(base.lower(), int(base) if base.isdigit() and len(base) < 3 else 0)
    if not re.search(r"\d", digits) or not 2 <= number <= 36:
        return None
    return Answer("based", digits.upper().lstrip("0") or "0", name=str(number))


# ------------------------------------------------------------------------------------------------ lists and brackets


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


COMMA = re.compile(rf"\s*(?:[,;](?:\s*(?:{AND.pattern}|{OR.pattern}))?|{AND.pattern}|{OR.pattern})\s*")
CUP = re.compile(r"\\cup(?![a-zA-Z])")
CAP = re.compile(r"\\cap(?![a-zA-Z])")
MINUS = re.compile(r"\\setminus(?![a-zA-Z])")


def _union(text: str) -> Answer | None:
    body, name = text, ""
    if (member := re.match(rf"({NAME.pattern})\s*\\in(?![a-zA-Z])\s*", text)) is not None:
        body, name = text[member.end() :], member[1]
        if any(RELATION.search(part) for part in split(body, COMMA)[1:]):  # x in R, x != 5
            return None
        if re.fullmatch(r"\\mathbb\{?[A-Z]\}?|\\mathbf\{?[A-Z]\}?", body.strip()) is None and not name:
            return None
    if "=" in text and member is None:
        return None
    parts = split(body, CUP)
    if len(parts) > 1:
        return _merged([_must_region(part) for part in parts], text, name)
    parts = split(body, CAP)
    if len(parts) > 1:
        region = _must_region(parts[0])
        for part in parts[1:]:
            region = _intersected(region, _must_region(part), text)
        return region
    parts = split(body, MINUS)
    if len(parts) == 1 and (less := re.fullmatch(r"(\\mathbb\s*\{?R\}?)\s*-\s*(\\\{.*\\\})", body)) is not None:
        parts = [less[1], less[2]]
    if len(parts) == 2:
        whole, removed = _must_region(parts[0]), read(parts[1])
        points = removed.items if removed.kind in ("set", "list") else (removed,)
        if not all(p.kind == "scalar" and p.tree for p in points):
            raise NotRead("set difference")
        for point in points:
            assert point.tree is not None
            whole = _without(whole, point.tree, text)
        return whole
    if member is not None:
        return _region_or_none(body) or _read(body)
    return None


def _french(text: str) -> str:
    """]a, b[ as (a, b)."""
    if text.count("[") == text.count("]") and not text.startswith("]"):
        return text

    def pieces(match: re.Match[str]) -> str:
        left, inside, right = match.groups()
        return ("(" if left == "]" else left) + inside + (")" if right == "[" else right)

    return re.sub(r"([\[\](])([^\[\](),;]*[,;][^\[\](),;]*)([\[\])])", pieces, text)


def _must_region(text: str) -> Answer:
    found = _region_or_none(text) or _region_of(read(text))
    if found is None:
        raise NotRead(f"{text!r} is no interval")
    return found


def _region_of(answer: Answer) -> Answer | None:
    """Points as a region, as in (0,1) \\cup \\{2\\}."""
    if answer.kind == "region":
        return answer
    points = answer.items if answer.kind in ("set", "list") else ()
    if points and all(p.kind == "scalar" and p.tree is not None for p in points):
        return _merged(
            [Answer("region", "", pieces=((p.tree, p.tree, True, True),)) for p in points if p.tree], answer.text, ""
        )
    return None


INTERVAL = re.compile(r"([\[(])\s*(.*?)\s*([\])])", re.DOTALL)
ALL_REAL = re.compile(r"\\mathbb\s*\{?R\}?|\(?\\text\{\s*(?:all )?reals?(?: numbers?)?\s*\}\)?|\\mathbf\s*\{?R\}?")


def _region_or_none(text: str) -> Answer | None:
    """An interval in brackets that can only be one, or that stands where one must."""
    text = text.strip()
    while text.startswith("{") and text.endswith("}") and len(split(text, re.compile(r"\}"))) == 1:
        text = text[1:-1].strip()
    if ALL_REAL.fullmatch(text):
        return Answer("region", text, pieces=((MINUS_INFINITY, INFINITY, False, False),))
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
    return _interval(text, low, high, match[1] == "[", match[3] == "]")


def _interval(
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


def _merged(regions: list[Answer], text: str, name: str) -> Answer:
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


def _intersected(a: Answer, b: Answer, text: str) -> Answer:
    pieces = []
    for p in a.pieces:
        for q in b.pieces:
            low, closed_low = _larger(p, q)
            high, closed_high = _smaller(p, q)
            x, y = ordered(low), ordered(high)
            if x < y or (x == y and closed_low and closed_high):
                pieces.append((low, high, closed_low, closed_high))
    return _merged([Answer("region", "", pieces=tuple(pieces))], text, "")


def _larger(p: tuple[Tree, Tree, bool, bool], q: tuple[Tree, Tree, bool, bool]) -> tuple[Tree, bool]:
    x, y = ordered(p[0]), ordered(q[0])
    return (p[0], p[2] and q[2]) if x == y else (p[0], p[2]) if x > y else (q[0], q[2])


def _smaller(p: tuple[Tree, Tree, bool, bool], q: tuple[Tree, Tree, bool, bool]) -> tuple[Tree, bool]:
    x, y = ordered(p[1]), ordered(q[1])
    return (p[1], p[3] and q[3]) if x == y else (p[1], p[3]) if x < y else (q[1], q[3])


def _without(region: Answer, point: Tree, text: str) -> Answer:
    rest = Answer("region", "", pieces=((MINUS_INFINITY, point, False, False), (point, INFINITY, False, False)))
    return _intersected(region, rest, text)


def _several(text: str) -> Answer | None:
    """A list without brackets: a, b and c; a or b; 3 \\pm 2."""
    if (systems := _systems(text)) is not None:
        return systems
    parts = [part for part in split(text, COMMA)]
    alternatives = len(split(text, re.compile(OR.pattern))) > 1
    if len(parts) == 1:
        spread = _spread(text)
        return None if spread is None else Answer("list", text, items=spread)
    if parts and not parts[-1]:
        parts.pop()
    if len(parts) > MAX_ITEMS:
        raise TooLarge("items")
    if any(not part for part in parts) or HEDGE.search(text):
        if HEDGE.search(text):
            return Answer("unread", text, hedge=True)
        raise NotRead("empty item")
    if len(parts) == 1:
        return _read(parts[0])
    if any(part in ("...", "\\ldots", "\\dots", "\\cdots", "\\ldots ", "..") for part in parts):
        raise NotRead("continued list")
    regions = [_relational_region(part) for part in parts]
    if all(regions):
        found = [region for region in regions if region is not None]
        if not alternatives:
            both = found[0]
            for region in found[1:]:
                both = _intersected(both, region, text)
            if both.pieces:
                return both
        return _merged(found, text, "")
    items: list[Answer] = []
    name = ""
    for part in parts:
        item = _read(part)
        if item.kind == "list":
            items.extend(item.items)
        else:
            items.append(item)
        name = name or item.name
    if all(item.kind == "region" for item in items) and (alternatives or any(_only_interval(item) for item in items)):
        return _merged(list(items), text, "")
    return Answer("list", text, items=tuple(items), hedge=alternatives, name=name)


def _systems(text: str) -> Answer | None:
    """x = 1, y = 2 or x = 3, y = 4, as (1, 2), (3, 4)."""
    parts = split(text, re.compile(rf"\s*(?:;\s*(?:{AND.pattern}|{OR.pattern})?|{OR.pattern}|{AND.pattern})\s*"))
    if len(parts) < 2 or not all(part.count("=") > 1 and "," in part for part in parts):
        return None
    points = []
    for part in parts:
        found = [_read(item) for item in split(part, re.compile(r"\s*,\s*")) if item]
        if len({item.name for item in found}) != len(found) or not all(item.name for item in found):
            return None
        points.append(Answer("tuple", part, items=tuple(sorted(found, key=lambda item: item.name)), brackets="("))
    return Answer("list", text, items=tuple(points))


def _only_interval(item: Answer) -> bool:
    """Cannot be a point in the plane."""
    return len(item.pieces) != 1 or item.pieces[0][2] != item.pieces[0][3] or any(
        "inf" in str(end) for end in item.pieces[0][:2]
    )  # fmt: skip


def _relational_region(text: str) -> Answer | None:
    if "=" in text.replace("<=", "").replace(">=", "").replace("!=", "") or not RELATION.search(text):
        return None
    if (member := re.fullmatch(rf"(?:{NAME.pattern})\s*\\in(?![a-zA-Z])\s*(.+)", text)) and ALL_REAL.fullmatch(
        member[1]
    ):
        return _region_or_none(member[1])
    found = _region(text)
    return found if found is not None and found.kind == "region" else None


def _spread(text: str) -> tuple[Answer, ...] | None:
    """Both values of a \\pm b."""
    if not re.search(r"\\(?:pm|mp)(?![a-zA-Z])", text):
        return None
    if len(re.findall(r"\\(?:pm|mp)(?![a-zA-Z])", text)) > 1:
        raise NotRead("several plus or minus")
    plus, minus = (re.sub(r"\\(?:pm|mp)(?![a-zA-Z])\s*", sign + " ", text) for sign in "+-")
    a, b = _read(plus), _read(minus)
    return (a, b)


def _bracketed(text: str) -> Answer | None:
    """A set, a tuple, a vector, a list in brackets."""
    for left, right, kind in (
        ("\\{", "\\}", "set"),
        ("\\langle", "\\rangle", "tuple"),
        ("(", ")", "tuple"),
        ("[", "]", "tuple"),
        ("{", "}", "set"),
    ):
        if not (text.startswith(left) and text.endswith(right) and len(text) >= len(left + right)):
            continue
        inner = text[len(left) : -len(right)]
        if not _closed(inner):
            continue
        if kind == "set" and (built := _set_builder(inner, text)) is not None:
            return built
        parts = split(inner, COMMA if kind == "set" else re.compile(r"\s*[,;]\s*"))
        if kind == "set" and not inner.strip():
            return Answer("region", text)
        if len(parts) > MAX_ITEMS:
            raise TooLarge("items")
        if len(parts) == 1:
            if kind == "set" and left == "\\{":
                item = _read(parts[0])
                return Answer("set", text, items=item.items if item.kind == "list" else (item,))
            return _read(inner.strip()) if left != "(" or not _is_formula(text) else None
        if any(not part for part in parts):
            raise NotRead("empty item")
        items = tuple(_read(part) for part in parts)
        if kind == "set":
            return Answer(
                "set", text, items=tuple(i for item in items for i in (item.items if item.kind == "list" else (item,)))
            )
        if left == "[" and all(item.kind == "tuple" for item in items):
            rows = [item.items for item in items]
            if len({len(row) for row in rows}) == 1 and all(c.kind == "scalar" and c.tree for row in rows for c in row):
                return Answer("matrix", text, rows=tuple(tuple(c.tree for c in row if c.tree) for row in rows))
        if left == "[" and all(item.brackets == "[" and item.kind == "scalar" for item in items):
            return Answer("matrix", text, rows=tuple((item.tree,) for item in items if item.tree))
        return Answer("tuple", text, items=items, brackets=left)
    if (text.startswith("[") and text.endswith(")")) or (text.startswith("(") and text.endswith("]")):
        region = _region_or_none(text)
        if region is None and _closed(text[1:-1]):  # an interval from the larger to the smaller
            items = tuple(_read(part) for part in split(text[1:-1], re.compile(r"\s*[,;]\s*")))
            return Answer("tuple", text, items=items, brackets="[")
        return region
    return None


def _is_formula(text: str) -> bool:
    try:
        parse(text)
    except NotRead:
        return False
    return True


def _closed(inner: str) -> bool:
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


def _set_builder(inner: str, text: str) -> Answer | None:
    parts = re.split(r"\||:", inner, maxsplit=1)
    if len(parts) != 2:
        return None
    head = parts[0].strip()
    if not re.fullmatch(r"[a-zA-Z](?:_\w)?(?:\s*\\in(?![a-zA-Z])\s*\\mathbb\{?R\}?)?", head):
        return None
    found = _read(parts[1].strip())
    if found.kind == "region":
        return found
    if found.kind in ("scalar", "list") and found.name:
        return Answer("set", text, items=found.items or (found,))
    raise NotRead("set builder")


def _matrix(text: str) -> Answer | None:
    if "\\begin" not in text:
        return None
    if "vmatrix" in text:
        raise NotRead("determinant")
    inner = text
    if (named := re.match(rf"({NAME.pattern})\s*=\s*", text)) is not None:
        inner = text[named.end() :]
    while (
        inner[:1] in ("(", "[")
        and inner[-1:] in (")", "]")
        and inner[1:].lstrip().startswith("\\begin")
        and inner[:-1].rstrip().endswith("}")
    ):
        inner = inner[1:-1].strip()
    product: tuple[tuple[Tree, ...], ...] | None = None
    factor: Tree | None = None
    at = 0
    for match in MATRIX.finditer(inner):
        between = inner[at : match.start()].strip()
        if between and between not in ("\\cdot", "\\times"):
            if product is not None or at:
                raise NotRead("matrix expression")
            factor = parse(between.removesuffix("\\cdot").strip() if between != "-" else "-1")
        rows = tuple(
            tuple(parse(cell.strip()) for cell in row.split("&"))
            for row in re.split(r"\\\\|\\cr(?![a-z])", re.sub(r"\\hline", "", match[1]))
            if row.strip()
        )
        if not rows or len({len(row) for row in rows}) != 1 or len(rows) * len(rows[0]) > MAX_ITEMS:
            raise NotRead("rows of different lengths")
        at = match.end()
        if (power := re.match(r"\s*\^\s*\{?\s*(?:T|\\top|\\text\{T\}|\\intercal)\s*\}?", inner[at:])) is not None:
            rows = tuple(zip(*rows, strict=True))
            at += power.end()
        product = rows if product is None else _multiplied(product, rows)
    if product is None or inner[at:].strip(" .,)"):
        raise NotRead("matrix expression")
    if factor is not None:
        product = tuple(tuple(("mul", factor, cell) for cell in row) for row in product)
    return Answer("matrix", text, rows=product)


def _multiplied(a: tuple[tuple[Tree, ...], ...], b: tuple[tuple[Tree, ...], ...]) -> tuple[tuple[Tree, ...], ...]:
    if len(a[0]) != len(b):
        raise NotRead("shapes")
    return tuple(
        tuple(("add", *(("mul", row[k], b[k][j]) for k in range(len(b)))) for j in range(len(b[0]))) for row in a
    )


# ------------------------------------------------------------------------------------------- equations, inequalities


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


def _region(text: str) -> Answer | None:
    """An interval, or what an inequality in one variable says."""
    if re.fullmatch(r"\s*\\mathbb\{?R\}?\s*|\\emptyset|\\\{\s*\\\}|\\text\{all reals?(?: numbers)?\}", text):
        return _region_or_none(text)
    found = INTERVAL.fullmatch(text)
    if found and (found[1] == "[") != (found[3] == "]") and (region := _region_or_none(text)):
        return region
    if found and re.search(r"\\infty|\binf(?:inity)?\b|\boo\b", text) and (region := _region_or_none(text)):
        return region
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
        if signs[0] in ("<", "<=") and signs[1] in ("<", "<="):
            return _interval(text, first, last, signs[0] == "<=", signs[1] == "<=", "relation")
        if signs[0] in (">", ">=") and signs[1] in (">", ">="):
            return _interval(text, last, first, signs[1] == ">=", signs[0] == ">=", "relation")
    return None


def _related(text: str) -> Answer | None:
    sides, signs = relations(text)
    if not signs:
        return None
    if any(not side for side in sides):
        if sides[0] == "" and signs == ["="]:
            return _read(sides[1])
        if sides[0] == "" and len(sides) == 2 and signs[0] == "~":
            return _read(sides[1])
        if sides[0] == "" and len(sides) == 2 and signs[0] in FLIP:  # a bound of something not named
            return Answer("relation", text, relation=f"? {signs[0]}", sides=tuple(sides), rows=((parse(sides[1]),),))
        raise NotRead("a sign without a side")
    if all(sign in ("=", "~") for sign in signs):
        if signs[0] == "=" and "~" in signs:
            cut = signs.index("~")
            sides, signs = sides[: cut + 1], signs[:cut]
        elif signs == ["~"] and not NAME.fullmatch(sides[0]) and _near(sides[0], sides[1]):
            return _read(sides[0])
        named = _named(sides, text)
        if named is not None:
            return named
    if len(sides) == 2 and signs[0] in FLIP:
        left, right = parse(sides[0]), parse(sides[1])
        return Answer("relation", text, tree=("add", left, ("neg", right)), relation=signs[0], sides=tuple(sides))
    if all(sign in FLIP for sign in signs):
        trees = [parse(side) for side in sides]
        return Answer("relation", text, relation=" ".join(signs), sides=tuple(sides), rows=(tuple(trees),))
    raise NotRead("relation")


def _named(sides: list[str], text: str) -> Answer | None:
    """`x = 5`, or a chain of equal values, is the value at its end; None when it is an equation."""
    names = [
        k for k, side in enumerate(sides) if NAME.fullmatch(side) and not re.fullmatch(r"\\(?:pi|infty|emptyset)", side)
    ]
    if len(sides) == 2 and names == [1]:
        sides = [sides[1], sides[0]]
        names = [0]
    rest = sides[1:] if 0 in names else sides
    if 0 not in names and len(sides) == 2 and not _computation(sides[0]):
        return None
    values = [_read(side, inside=True) for side in rest[-1 if 0 not in names else 0 :]]
    if 0 in names and len(names) == 1 and len(values) == 1:
        value = values[0]
        return _renamed(value, text, sides)
    last = values[-1]
    if last.kind != "scalar" or last.tree is None:
        return _renamed(last, text, sides) if 0 in names else None
    return _renamed(last, text, sides)


def _near(left: str, right: str) -> bool:
    """The right side is the left one rounded, however roughly."""
    try:
        a, b = ordered(parse(left)), ordered(parse(right))
        return bool(abs(a - b) <= abs(a) / 20)
    except TooLarge:
        raise
    except NotRead:
        return False


def _renamed(value: Answer, text: str, sides: list[str]) -> Answer:
    if value.kind == "based":  # its name is its base
        return value
    fields = {
        **value.__dict__,
        "name": sides[0],
        "sides": tuple(sides),
        "text": text if value.kind != "text" else value.text,
    }
    return Answer(**fields)


def _computation(side: str) -> bool:
    """A left side that computes something: constants only, or what only a computation is written with."""
    from rewards.maths.evaluate import symbols

    if re.search(r"\\(?:lim|int|sum|prod|bmod|det|max|min|Pr|text|operatorname)(?![a-zA-Z])", side):
        return True
    try:
        return not symbols(parse(side))
    except TooLarge:
        raise
    except NotRead:
        return True


# ---------------------------------------------------------------------------------------------------------- scalars


def _scalar(text: str) -> Answer:
    text = re.sub(r"^(?:\\text\{[^{}]*(?::|\bis)\s*\})\s*", "", text)
    body, unit, percent = split_unit(text)
    if not body:
        raise NotRead("a unit only")
    literal = NUMBER.fullmatch(body)
    decimals = digits = None
    if literal and (literal[1] or literal[2]):
        point = (literal[1] or literal[2]).lstrip(".")
        decimals = len(point)
        digits = len(re.sub(r"\D", "", body).lstrip("0"))
    tree = parse(body)
    return Answer("scalar", text, tree=tree, unit=unit, percent=percent, decimals=decimals, digits=digits or 0)


def hundredth(tree: Tree) -> Tree:
    return ("div", tree, ("num", Fraction(100)))
