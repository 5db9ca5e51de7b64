"""Answers with a free parameter or a modulus: x = \\pi/2 + k\\pi with k in Z, sets by a condition, x = 2 mod 5, cases.

Readers take the function that reads their parts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from fractions import Fraction

from rewards.maths.answers import AND, COMMA, MAX_ITEMS, NAME, Answer, relations, split
from rewards.maths.evaluate import exact, linear, multiple, same, substituted, symbols
from rewards.maths.expression import NotRead, Tree, parse
from rewards.maths.regions import INFINITY, MINUS_INFINITY, complement, integers, interval_or_none, read_region, united

Read = Callable[[str], Answer]
WHOLE = ("Z", "N", "R")  # a domain that is often left out
LETTER = r"(?:[a-zA-Z]|\\(?:alpha|beta|lambda|mu|theta|phi|tau|rho|sigma))(?:_\{?\w\}?)?"
INTEGER_LETTERS = "ijklmnpq"
COUNTED = {
    r"(?:positive integers?|natural numbers? greater than 0)": "Z>=1",
    r"(?:non-?negative integers?|whole numbers?)": "Z>=0",
    r"natural(?: numbers?)?": "N",
    r"integers?(?: numbers?)?": "Z",
    r"(?:(?:arbitrary|free) )?real(?: numbers?)?": "R",
}
KNOWN_SETS = {
    r"\\mathbbZ": "Z",
    r"\\mathbbR": "R",
    r"\\mathbbN": "N",
    r"\\mathbb(?:Z(?:\^\+|_\+|_>0|\^>0|_\\ge1|\^\\ge1)|N\^\+|N\^\*)": "Z>=1",
    r"\\mathbb(?:Z(?:_\\ge0|\^\\ge0|_0\^\+|\^\+_0|\^\+\\cup\\0\\)|N_0|N\\cup\\0\\)": "Z>=0",
}
ENDLESS = re.compile(
    rf"({LETTER})\s*(?:=|\\in(?![a-z])\s*\\\{{)\s*(?:(?P<first>[01])\s*,\s*(?P<rest>\d+(?:\s*,\s*\d+)*)|0\s*,\s*\\pm\s*1(?:\s*,\s*\\pm\s*\d)*)"
    r"\s*,\s*(?:\\[lc]?dots|\.\.\.)\s*(?:\\\})?\s*$"
)


def _spelled_out(match: re.Match[str]) -> str:
    """k = 0, 1, 2, ... as k in Z."""
    if match["first"] is None:
        return rf"{match[1]} \in \mathbb{{Z}}"
    terms = [int(match["first"]), *(int(term) for term in match["rest"].split(","))]
    whole = terms == list(range(terms[0], terms[0] + len(terms)))
    return rf"{match[1]} \in \mathbb{{Z}}_{{\ge {terms[0]}}}" if whole else match[0]


def domain(text: str) -> tuple[list[str], str, Answer | None] | None:
    """Letters and what they range over, of `\\text{where } k \\in \\mathbb{Z}`, `k \\ge 0`, `k an integer`."""
    plain = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text).replace("\\forall", " ").strip(" ,.")
    plain = re.sub(
        r"^(?:(?:where|for|with|and|when|if|,)(?![a-z])\s*)*(?:(?:all|any|every|each|some)\b\s*)?", "", plain
    )
    while plain.startswith("(") and plain.endswith(")") and "," not in plain:
        plain = plain[1:-1].strip()
    for words, name in COUNTED.items():
        named = re.fullmatch(rf"{words}\s+({LETTER})", plain) or re.fullmatch(
            rf"({LETTER})\s+(?:(?:is|are|be)\s+)?(?:(?:any|an?|arbitrary)\s+)*{words}", plain
        )
        if named is not None:
            return [named[1]], name, None
    member = re.fullmatch(rf"({LETTER}(?:\s*,\s*{LETTER})*)\s*\\in(?![a-z])\s*(.+)", plain)
    if member is not None:
        letters = [letter.strip() for letter in member[1].split(",")]
        body = re.sub(r"[{}\s]", "", member[2])
        for pattern, name in KNOWN_SETS.items():
            if re.fullmatch(pattern, body):
                return letters, name, None
        region = interval_or_none(member[2])
        return (letters, "region", replace(region, name="")) if region is not None else None
    return _bounded(plain)


def _bounded(plain: str) -> tuple[list[str], str, Answer | None] | None:
    region = read_region(plain)
    if region is None or region.brackets != "relation":
        return None
    letters = [side for side in relations(plain)[0] if re.fullmatch(LETTER, side)]
    if len(letters) != 1:
        return None
    if letters[0] in INTEGER_LETTERS and len(region.pieces) == 1 and region.pieces[0][1] == INFINITY:
        low = exact(region.pieces[0][0])
        if low is not None and low.denominator == 1:
            return letters, f"Z>={low + (not region.pieces[0][2])}", None
    return letters, "region", replace(region, name="")


def family(text: str, read: Read) -> Answer | None:
    """A formula, a tuple or several with parameters, and what these range over."""
    text = ENDLESS.sub(_spelled_out, text)
    text = re.sub(r"(?<=[\w})])\s*(\\text\s*\{\s*,?\s*(?:where|for|with)\b|\\forall)", r", \1", text)
    text = re.sub(r"(?<=[\w})])\s*(\(\s*[a-zA-Z]\s*\\in(?![a-z])\s*\\mathbb[^()]*\))$", r", \1", text)
    parts = split(text, COMMA)
    if not 2 <= len(parts) <= MAX_ITEMS:
        return None
    found = domain(parts[-1])
    if found is None:
        return None
    letters, name, region = found
    parts.pop()
    while len(parts) > 1 and re.fullmatch(LETTER, parts[-1]):  # s, t in R
        letters.insert(0, parts.pop())
    head = text[: _end_of(text, parts[-1])].strip(" ,;")
    if name in ("R", "region") and set(letters) & set("xyz"):
        return None  # a function and where it is defined
    return _made(head, letters, name, region, text, read)


def _end_of(text: str, part: str) -> int:
    return text.rindex(part) + len(part)


def _made(head: str, letters: list[str], name: str, region: Answer | None, text: str, read: Read) -> Answer | None:
    scaled = re.fullmatch(rf"({LETTER})\s*(\(.+\)|\\langle.+\\rangle)", head)
    if scaled is not None and scaled[1] in letters and (point := read(scaled[2])).kind == "tuple":
        factor = parse(scaled[1])
        items = tuple(replace(item, tree=("mul", factor, item.tree)) for item in point.items if item.tree is not None)
        body = replace(point, items=items)
    else:
        body = read(head)
    known = {parse(letter)[1] for letter in letters}
    if not known <= free(body):
        return replace(body, relation=name) if name in ("Z", "N") and not known & free(body) else None
    if body.kind not in ("scalar", "list", "tuple", "matrix", "set"):
        return body if name in ("Z", "N") else None
    items = (body,) if region is None else (body, region)
    return Answer(
        "family", text, items=items, sides=tuple(parse(letter)[1] for letter in letters), relation=name, name=body.name
    )


def free(answer: Answer) -> set[str]:
    """Names of the variables in all of an answer."""
    return {name for tree in _trees(answer) for name in symbols(tree)}


def _trees(answer: Answer) -> Iterator[Tree]:
    if answer.tree is not None:
        yield answer.tree
    for row in answer.rows:
        yield from row
    for piece in answer.pieces:
        yield from piece[:2]
    for item in answer.items:
        yield from _trees(item)


def renamed(answer: Answer, names: Mapping[str, str]) -> Answer | None:
    """With other letters; None when a new letter already means something else in it."""
    if set(names.values()) & (free(answer) - set(names)):
        return None
    changed = {old: new for old, new in names.items() if old != new}
    return _changed(answer, {old: ("sym", new) for old, new in changed.items()}) if changed else answer


def _changed(answer: Answer, trees: Mapping[str, Tree]) -> Answer:
    return replace(
        answer,
        tree=substituted(answer.tree, trees),
        rows=substituted(answer.rows, trees),
        pieces=substituted(answer.pieces, trees),
        items=tuple(_changed(item, trees) for item in answer.items),
        sides=(),
        name=answer.name if answer.name not in trees else "",
    )


def same_progression(a: Tree, b: Tree, letter: str, domains: tuple[str, str]) -> bool:
    """Whether two formulas linear in `letter` have the same values over the integers, or from a first one on."""
    p, q = linear(a, letter), linear(b, letter)
    if p is None or q is None:
        return False
    if domains == ("Z", "Z"):
        alike = same(p[1], q[1]) or same(p[1], ("neg", q[1]))
        return alike and multiple(("add", p[0], ("neg", q[0])), p[1])
    if all(name.startswith("Z>=") for name in domains):
        first = [
            substituted(tree, {letter: ("num", Fraction(name.removeprefix("Z>=")))})
            for tree, name in zip((a, b), domains, strict=True)
        ]
        return same(p[1], q[1]) and same(*first)
    return False


# ------------------------------------------------------------------------------------------------------- congruences

MODULUS = re.compile(
    r"\s*,?\s*(?:\(\s*)?(?:\\[pb]?mod(?![a-z])|\\text\s*\{\s*\(?\s*mod(?:ulo)?\s*\}|\bmod(?:ulo)?\b)\s*\{?\s*(?P<modulus>(?:[^{}()]|\{[^{}]*\})+?)\s*\}?\s*\)?\s*$"
    r"|\s*,?\s*\(?\s*\\text\s*\{\s*\(?\s*mod(?:ulo)?\s+(?P<worded>[^{}()]+?)\s*\)?\s*\}\s*\)?\s*$"
)


def congruence(text: str, read: Read) -> Answer | None:
    """x \\equiv 2 \\pmod 5, of one residue or several."""
    if "mod" not in text or len(re.findall(r"\\equiv(?![a-z])", text)) > 1:
        return None
    end = MODULUS.search(text)
    sides = re.split(r"\\equiv(?![a-z])|=", text[: end.start()]) if end is not None else []
    if end is None or len(sides) != 2 or not all(side.strip() for side in sides):
        return None
    residues = read(sides[1].strip())
    items = residues.items if residues.kind in ("list", "set") else (residues,)
    if any(item.kind != "scalar" or item.tree is None or item.unit for item in items):
        return None
    modulus = parse((end["modulus"] or end["worded"]).strip())
    if (value := exact(modulus)) is not None and (value.denominator != 1 or value < 1):
        return None
    return Answer("congruence", text, tree=parse(sides[0].strip()), items=items, rows=((modulus,),))


def same_congruence(a: Answer, b: Answer) -> bool:
    modulus = a.rows[0][0]
    if not same(modulus, b.rows[0][0]) or a.tree is None or b.tree is None:
        return False
    if len(a.items) == len(b.items) == 1:  # all on one side, so that a term may have changed sides
        p, q = (("add", one.tree, ("neg", one.items[0].tree)) for one in (a, b))
        return multiple(("add", p, ("neg", q)), modulus)
    if not same(a.tree, b.tree):
        return False

    def within(items: tuple[Answer, ...], others: tuple[Answer, ...]) -> bool:
        return all(any(multiple(("add", i.tree, ("neg", o.tree)), modulus) for o in others) for i in items)

    return within(a.items, b.items) and within(b.items, a.items)


def as_congruence(answer: Answer) -> Answer | None:
    """x = 5k + 2 over the integers as x = 2 mod 5."""
    if answer.kind == "congruence":
        return answer
    if answer.kind != "family" or answer.relation != "Z" or not answer.name or len(answer.sides) != 1:
        return None
    body = answer.items[0]
    found = linear(body.tree, answer.sides[0]) if body.kind == "scalar" and body.tree is not None else None
    if found is None or any(exact(tree) is None for tree in found) or not NAME.fullmatch(answer.name):
        return None
    step = abs(exact(found[1]) or 0)
    if not step:
        return None
    residue = Answer("scalar", "", tree=found[0])
    return Answer("congruence", "", tree=parse(answer.name), items=(residue,), rows=((("num", step),),))


# ----------------------------------------------------------------------------------------------- sets by a condition


def set_builder(inner: str, text: str, read: Read, related: Callable[[str], Answer | None]) -> Answer | None:
    """What stands in the braces of {x | condition}; None when there is no condition."""
    parts = re.split(r"\||:", inner, maxsplit=1)
    if len(parts) != 2 or not parts[1].strip():
        return None
    head, condition = (part.strip() for part in parts)
    match = re.fullmatch(
        rf"(?P<one>{LETTER})(?:\s*\\in(?![a-zA-Z])\s*(?P<domain>.+))?"
        rf"|\(\s*(?P<many>{LETTER}(?:\s*,\s*{LETTER})+)\s*\)(?:\s*\\in(?![a-zA-Z])\s*(?P<space>.+))?",
        head,
    )
    if match is None:
        made = family(f"{head}, {condition}", read)
        if made is None:
            raise NotRead("set builder")
        return made
    letters = [match["one"]] if match["one"] else [letter.strip() for letter in match["many"].split(",")]
    space = re.sub(r"[{}\s]", "", match["domain"] or match["space"] or "")
    if len(letters) == 1 and space in ("", r"\mathbbR"):
        found = read(condition)
        if found.kind == "region":
            return found
        if found.kind in ("scalar", "list") and found.name:
            return Answer("set", text, items=found.items or (found,))
        if found.kind != "relation":
            raise NotRead("set builder")
    if len(letters) == 1 and (kind := domain(f"{letters[0]} \\in {match['domain']}")) and kind[1][0] in "ZN":
        found = read(condition)
        if found.kind != "region":
            raise NotRead("set builder")
        low = 0 if kind[1] == "N" else int(kind[1][3:]) if ">=" in kind[1] else None
        if kind[1] != "N" or _above_one(found):  # of N it is not known whether 0 belongs to it
            numbers = integers(found, low)
            if numbers is not None:
                return Answer("set", text, items=tuple(Answer("scalar", "", tree=("num", n)) for n in numbers))
        return Answer("builder", text, items=(replace(found, name=""),), relation=kind[1])
    conditions = tuple(related(part) for part in split(condition, re.compile(rf"\s*(?:,|;|{AND.pattern})\s*")))
    if any(one is None or one.kind != "relation" for one in conditions):
        raise NotRead("set builder")
    names = tuple(parse(letter)[1] for letter in letters)
    items = tuple(one for one in conditions if one is not None)
    return Answer("builder", text, items=items, relation=space, sides=names)


def _above_one(region: Answer) -> bool:
    low = exact(region.pieces[0][0]) if region.pieces and region.pieces[0][0] != MINUS_INFINITY else None
    return low is not None and low >= 1


# ------------------------------------------------------------------------------------------------------------- cases

CASES = re.compile(
    rf"(?:(?P<name>{NAME.pattern})\s*=\s*)?\\begin\{{cases\}}(?P<rows>.*)\\end\{{cases\}}\s*\.?", re.DOTALL
)
CONDITION = re.compile(r"^[\s,]*(?:\\text\s*\{\s*,?\s*(?:if|when|for|where|on|whenever)\s*,?\s*\}|\bif\b|\bfor\b)?\s*")
OTHERS = re.compile(r"[\s,]*\\text\s*\{[\s,]*(?:otherwise|else|elsewhere)[\s.,]*\}[\s.,]*")


def cases(text: str, read: Read) -> Answer | None:
    """Values, each with the condition under which it holds."""
    match = CASES.fullmatch(text)
    if match is None or "&" not in match["rows"]:
        return None
    lines = [line.strip() for line in re.split(r"\\\\", match["rows"]) if line.strip()]
    if len(lines) > 20 or any(line.count("&") != 1 for line in lines):
        return None
    values, regions = [], []
    for line in lines:
        value, condition = line.split("&")
        values.append(read(value.strip(" ,;")))
        regions.append(None if OTHERS.fullmatch(condition) else _condition(condition, read))
    if any(value.kind != "scalar" or value.tree is None or value.name for value in values) or None in regions[:-1]:
        return None
    known = [region for region in regions if region is not None]
    names = {region.name for region in known if region.name}
    if len(names) > 1 or not known:
        return None
    if regions[-1] is None:
        known.append(complement(united(known, "", ""), ""))
    rows = tuple(Answer("case", "", items=pair) for pair in zip(values, known, strict=True))
    return Answer("cases", text, items=rows, name=match["name"] or "", sides=tuple(names))


def _condition(text: str, read: Read) -> Answer:
    text = CONDITION.sub("", text, count=1).strip(" ,.;")
    found = read(text)
    if found.kind == "scalar" and found.name and found.tree is not None and not symbols(found.tree):  # x = 0
        return Answer("region", text, pieces=((found.tree, found.tree, True, True),), name=found.name)
    if found.kind != "region" or not found.pieces:
        raise NotRead("condition")
    return replace(found, brackets="")
