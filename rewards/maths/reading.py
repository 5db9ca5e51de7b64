"""What kind of answer a text is: a number, a formula, text, an interval, a tuple, a list, a matrix, an equation, ...

`read` gives one `Answer` for a normalised text. Formulas in it are trees of `expression`.
"""

from __future__ import annotations

import functools
import re
from dataclasses import replace
from fractions import Fraction

from rewards.maths.answers import (
    AND,
    COMMA,
    FLIP,
    HEDGE,
    MAX_ITEMS,
    NAME,
    OR,
    RELATION,
    Answer,
    closed,
    relations,
    split,
)
from rewards.maths.evaluate import exact, ordered, same, substituted, symbols
from rewards.maths.expression import CLOSE, NotRead, TooLarge, Tree, guarded, parse
from rewards.maths.families import cases, congruence, family, set_builder
from rewards.maths.normalise import words
from rewards.maths.regions import (
    ALL_REAL,
    as_region,
    intersection,
    interval_or_none,
    only_interval,
    read_region,
    united,
    without,
)
from rewards.maths.units import compound, names_unit, split_unit
from rewards.maths.wordings import CLOCK, SMALL, date, fraction, number

NUMBER = re.compile(r"[-+]?\s*(?:\d+(\.\d*)?|(\.\d+))", re.ASCII)
BASE = re.compile(
    r"[({]?\s*(?:\\text\s*\{\s*)?(?P<digits>-?[0-9A-Za-z.]+)\s*[})]{0,2}\s*_\s*\{?\s*\(?\s*(?:\\text\s*\{\s*)?\(?(?:base\s*)?\}?\s*(?P<base>[0-9a-z]+)"
    r"\s*\)?\s*\}{0,2}\s*\)?\}?"
    r"|(?P<digits2>[0-9A-Z]+)\s*(?:\\text\s*\{)?\s*(?:\(?in\s+)?\(?base\s*\}?\s*(?P<base2>\w+)\)?\s*\}?"
)
NUMERALS = SMALL | {"binary": 2, "octal": 8, "decimal": 10, "hex": 16, "hexadecimal": 16}
MATRIX = re.compile(
    r"\\begin\{(?:[pb]|small)?(?:matrix|array)\}(?:\s*\{[clr|\s]*\})?(.*?)\\end\{(?:[pb]|small)?(?:matrix|array)\}",
    re.DOTALL,
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


# A decimal that is said to be near: \approx 0.2, about 0.2, 0.33...
NEAR = re.compile(
    r"(?:\\approx(?![a-zA-Z])|\\sim(?![a-zA-Z])|\\text\s*\{\s*(?:about|approximately|roughly|around)\s*\}|(?:about|approximately|roughly|around)\b)"
    r"\s*([-+]?\s*\d*\.\d+[^,;]*)|([-+]?\d*\.\d{1,3})\s*(?:\.{3}|\\(?:[lc]?dots|dotsc)(?![a-zA-Z]))\s*"
)


def _read(text: str, inside: bool = False) -> Answer:
    if not text:
        raise NotRead("empty")
    if (near := NEAR.fullmatch(text)) is not None:
        return replace(_read(near[1] or near[2]), rounded=True)
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
        and closed(point[1][1:-1])
        and not _is_formula(text)
    ):
        return _read(point[1])
    if text[:1].isdigit() and (whole := compound(text)) is not None:
        return Answer("scalar", text, tree=("num", whole[0]), unit=whole[1], brackets="compound")
    for reader in (congruence, cases, family):
        if (parameters := reader(text, _read)) is not None:
            return parameters
    for way in (_objects, _union, _several, _matrix, read_region, _related, _bracketed, _ratio):
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
    while text.startswith("{") and text.endswith("}") and closed(text[1:-1]) and len(split(text[1:-1], COMMA)) == 1:
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
    plain = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text).strip()
    if (day := date(plain)) is not None:
        return Answer("text", day)
    spelled = number(plain)
    if (value := fraction(plain) if spelled is None else Fraction(spelled)) is not None:
        return Answer("scalar", text, tree=("num", value))
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
        return _text(text)
    if re.fullmatch(r"\(?\s*(?:\\text\{[^{}]*\}|[A-Za-z][A-Za-z'-]*+|[\s().-])++", text) and "\\text" in text:
        return _text(text)
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
            return _text(text)
    return None


def _text(text: str) -> Answer:
    written = re.sub(r"\\text|[{}]", " ", text).casefold()
    return Answer(
        "text", words(text), sides=(" ".join(written.split()),), hedge=bool(OR.search(text) or HEDGE.search(text))
    )


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
        return None if match["what"] else read_region(SIGNS[sign]) if sign else interval_or_none("\\mathbb{R}")
    if match["how"] in HOW:
        return read_region(f"x {HOW[match['how']]} {match['what']}")
    return _union(rf"\mathbb{{R}} \setminus \{{{match['what']}\}}")


PAIR = re.compile(
    r"(?:\\text\s*\{\s*(?:line|segment)s?\s*\})?\s*(\\?[A-Z]{2}|[a-z]|\\ell(?:_\{?\d\}?)?|[a-z]_\{?\d\}?)\s*"
)


def _objects(text: str) -> Answer | None:
    """Lines that are parallel or perpendicular, groups and fields: in one spelling."""
    if (between := re.fullmatch(r"(.+?)(\\(?:parallel|perp)(?![a-zA-Z]))(.+)", text)) is not None:
        ends = [PAIR.fullmatch(side) for side in (between[1], between[3])]
        if ends[0] is None or ends[1] is None:
            return None
        first, second = sorted("".join(sorted(end[1])) if end[1].isupper() else end[1] for end in ends if end)
        return Answer("text", f"{first} {between[2][1:]} {second}")
    if "\\mathbb" not in text and "GF" not in text:
        return None
    factors = [_algebra(part) for part in split(text, re.compile(r"\s*\\(?:times|oplus)(?![a-zA-Z])\s*"))]
    if any(not factor for factor in factors) or not any("Z" in f or "F" in f for factor in factors for f in factor):
        return None
    return Answer("text", " x ".join(sorted(one for factor in factors for one in factor)))


ALGEBRA = re.compile(
    r"\\mathbb\{?(?P<ring>[ZQRC])\}?(?:\^\{?(?P<power>\d{1,2})\}?)?"
    r"|\\mathbb\{?Z\}?(?:_\{?(?P<order>\d{1,9})\}?|/(?P<quotient>\d{1,9})(?:\\mathbb\{?Z\}?)?|/\((?P<ideal>\d{1,9})\))"
    r"|(?:\\mathbb\{?F\}?_|(?:\\text\{GF\}|GF)(?=\())(?:\{(?P<field>[\d^{}]+)\}|(?P<digit>\d)|\((?P<galois>[\d^{}]+)\))"
    r"|(?P<named>[SADQ]_\{?\d{1,2}\}?)"
)


def _algebra(text: str) -> list[str]:
    """The factors of a product of groups, each in one spelling; none when it is none."""
    match = ALGEBRA.fullmatch(text.replace(" ", ""))
    if match is None:
        return []
    if match["ring"]:
        return [match["ring"]] * int(match["power"] or 1)
    if match["named"]:
        return [re.sub(r"[{}]", "", match["named"])]
    if size := match["field"] or match["digit"] or match["galois"]:
        return [f"F{exact(parse(size))}"]
    return [f"Z/{match['order'] or match['quotient'] or match['ideal']}"]


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
        return united([_must_region(part) for part in parts], text, name)
    parts = split(body, CAP)
    if len(parts) > 1:
        region = _must_region(parts[0])
        for part in parts[1:]:
            region = intersection(region, _must_region(part), text)
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
            whole = without(whole, point.tree, text)
        return whole
    if member is not None:
        return interval_or_none(body) or _read(body)
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
    found = interval_or_none(text) or as_region(read(text))
    if found is None:
        raise NotRead(f"{text!r} is no interval")
    return found


def _several(text: str) -> Answer | None:
    """A list without brackets: a, b and c; a or b; 3 \\pm 2."""
    if (systems := _systems(text)) is not None:
        return systems
    parts = [part for part in split(text, COMMA)]
    alternatives = len(split(text, re.compile(OR.pattern))) > 1
    if len(parts) == 1:
        spread = None if text.startswith("\\{") else _spread(text)
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
    parts = _continued(parts)
    regions = [_relational_region(part) for part in parts]
    if all(regions):
        found = [region for region in regions if region is not None]
        if not alternatives:
            both = found[0]
            for region in found[1:]:
                both = intersection(both, region, text)
            if both.pieces or AND.search(text):  # of x < -1, x > 2 only alternatives can be meant
                return both
        return united(found, text, "")
    items: list[Answer] = []
    name = ""
    for part in parts:
        item = _read(part)
        if item.kind == "list":
            items.extend(item.items)
        else:
            items.append(item)
        name = name or item.name
    if all(item.kind == "region" for item in items) and (alternatives or any(only_interval(item) for item in items)):
        return united(list(items), text, "")
    return Answer("list", text, items=tuple(items), hedge=alternatives, name=name)


DOTS = re.compile(r"\.{2,3}|\\(?:[lc]?dots|dotsc)\s*")
WHOLE = re.compile(r"-?\s*\d{1,9}", re.ASCII)


def _continued(parts: list[str]) -> list[str]:
    """1, 2, ..., 10 with all its terms: of integers, of which the first ones show the step."""
    gaps = [k for k, part in enumerate(parts) if DOTS.fullmatch(part)]
    if not gaps:
        return parts
    before, after = parts[: gaps[0]], parts[gaps[0] + 1 :]
    if len(gaps) > 1 or not before or not after or not all(WHOLE.fullmatch(part) for part in before + after):
        raise NotRead("continued list")
    terms = [int(part.replace(" ", "")) for part in before]
    ends = [int(part.replace(" ", "")) for part in after]
    if len(terms) == 1 and terms[0] not in (0, 1):  # 2, ..., 10 may be all or every other
        raise NotRead("continued list")
    step = terms[1] - terms[0] if len(terms) > 1 else 1
    if step == 0 or (ends[-1] - terms[0]) % step or not 0 < (ends[-1] - terms[0]) // step < MAX_ITEMS:
        raise NotRead("continued list")
    whole = list(range(terms[0], ends[-1] + step // abs(step), step))
    if whole[: len(terms)] != terms or whole[-len(ends) :] != ends:
        raise NotRead("continued list")
    return [str(term) for term in whole]


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


def _relational_region(text: str) -> Answer | None:
    if "=" in text.replace("<=", "").replace(">=", "").replace("!=", "") or not RELATION.search(text):
        return None
    if (member := re.fullmatch(rf"(?:{NAME.pattern})\s*\\in(?![a-zA-Z])\s*(.+)", text)) and ALL_REAL.fullmatch(
        member[1]
    ):
        return interval_or_none(member[1])
    found = read_region(text)
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
        if not closed(inner):
            continue
        if kind == "set" and (built := set_builder(inner, text, _read, _related)) is not None:
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
        parts = _continued(parts)
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
        region = interval_or_none(text)
        if region is None and closed(text[1:-1]):  # an interval from the larger to the smaller
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


TRANSPOSED = re.compile(r"([(\[])(.+)([)\]])\s*\^\s*T", re.DOTALL)
BASIS = ("unit vector i", "unit vector j", "unit vector k")


def _vector(text: str) -> Answer | None:
    """(1, 2)^T, or a sum of multiples of unit vectors, as a column."""
    if (row := TRANSPOSED.fullmatch(text)) is not None and closed(row[2]) and CLOSE[row[1]] == row[3]:
        parts = split(row[2], re.compile(r"\s*[,;]\s*"))
        return Answer("matrix", text, rows=tuple((parse(part),) for part in parts)) if len(parts) > 1 else None
    if "\\basis" not in text:
        return None
    _, _, formula = text.rpartition("=")
    tree = parse(formula.strip())
    used = symbols(tree)
    zero: dict[str, Tree] = {name: ("num", Fraction(0)) for name in BASIS}
    cells = [substituted(tree, zero | {name: ("num", Fraction(1))}) for name in BASIS[: 3 if BASIS[2] in used else 2]]
    total: Tree = ("add", *(("mul", cell, ("sym", name)) for cell, name in zip(cells, BASIS, strict=False)))
    if not same(tree, total):
        return None
    return Answer("matrix", text, rows=tuple((cell,) for cell in cells), brackets="basis")


def _matrix(text: str) -> Answer | None:
    if (vector := _vector(text)) is not None:
        return vector
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
            return replace(named, rounded=True) if "~" in signs else named
    if len(sides) == 2 and signs[0] in FLIP:
        left, right = parse(sides[0]), parse(sides[1])
        return Answer("relation", text, tree=("add", left, ("neg", right)), relation=signs[0], sides=tuple(sides))
    if all(sign in FLIP for sign in signs):
        if not any(sign.startswith("<") for sign in signs) and any(sign.startswith(">") for sign in signs):
            sides, signs = sides[::-1], [FLIP[sign] for sign in reversed(signs)]
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
    counted = not unit or names_unit(text[len(body) :], one=body in ("1", "-1"))
    return Answer(
        "scalar", text, tree=tree, unit=unit, percent=percent, decimals=decimals, digits=digits or 0, counted=counted
    )
