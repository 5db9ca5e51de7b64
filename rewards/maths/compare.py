"""Whether an answer is the reference: by kind, exactly where that is possible."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction

from rewards.maths.answers import Answer
from rewards.maths.evaluate import exact, mentions, proportional, substituted, symbols, values_equal
from rewards.maths.expression import NotRead, TooLarge, Tree
from rewards.maths.families import WHOLE, as_congruence, free, renamed, same_congruence, same_progression
from rewards.maths.normalise import without_blanks, words
from rewards.maths.reading import read
from rewards.maths.regions import solution
from rewards.maths.values import (
    Policy,
    Undecided,
    antiderivatives,
    consistent,
    converted,
    decimal_comma,
    numbers_equal,
    trees_equal,
    units_agree,
)
from rewards.maths.wordings import CLOCK, same_time, sentence_says

NEVER: Tree = ("sym", "no such end")
HUNDRED: Tree = ("num", Fraction(100))


def equal(gold: Answer, answer: Answer, policy: Policy) -> bool:
    """Whether the answer is the reference.

    Raises:
        Undecided: when a formula in either cannot be read or valued.
    """
    if gold.kind == "text" or answer.kind == "text":
        return _texts(gold, answer, policy)
    if gold.kind == "based" or answer.kind == "based":
        return _based(gold, answer)
    if "unread" in (gold.kind, answer.kind):
        raise Undecided
    if "congruence" in (gold.kind, answer.kind):
        return _congruences(gold, answer)
    if "family" in (gold.kind, answer.kind):
        return _families(gold, answer, policy)
    return COMPARE[gold.kind](gold, answer, policy)


def _texts(gold: Answer, answer: Answer, policy: Policy) -> bool:
    if policy.case:
        strip = re.compile(r"\\text|[{}\s().,]")
        return strip.sub("", gold.text) == strip.sub("", answer.text)
    a, b = (NO_SOLUTION.sub("no solution", words(one.text)) for one in (gold, answer))
    if gold.kind != answer.kind and "region" in (gold.kind, answer.kind):
        region, other = (gold, b) if gold.kind == "region" else (answer, a)
        return not region.pieces and other == "no solution"
    if CLOCK.fullmatch(gold.text) and CLOCK.fullmatch(answer.text):
        return same_time(a, b)
    if a == b or without_blanks(a) == without_blanks(b) != "" or _named_together(a, b):
        return True
    return gold.kind == "text" and any(sentence_says(sentence, a) for sentence in answer.sides)


def _named_together(a: str, b: str) -> bool:
    """Bob and Alice are Alice, Bob."""
    both = [sorted(part for part in TOGETHER.split(text) if part) for text in (a, b)]
    return len(both[0]) > 1 and both[0] == both[1]


TOGETHER = re.compile(r"\s*(?:,\s*and|,|;|&|\band)\s+")
NO_SOLUTION = re.compile(r"^(?:there (?:is|are) )?no (?:real |integer )?solutions?$")


def _based(gold: Answer, answer: Answer) -> bool:
    if gold.kind != "based":
        return False
    if answer.kind == "based":
        return (gold.text, gold.name) == (answer.text, answer.name)
    return answer.text.strip().upper().lstrip("0") == gold.text


# ---------------------------------------------------------------------------------------------------------- scalars


def _scalars(gold: Answer, answer: Answer, policy: Policy) -> bool:
    if answer.kind in ("list", "set", "tuple") and len(answer.items) == 1:
        return _scalars(gold, answer.items[0], policy)
    if answer.kind == "list" and answer.items and all(_known_equal(gold, item, policy) for item in answer.items):
        return True  # one value in several forms
    if (
        answer.kind == "list"
        and answer.items
        and not answer.hedge
        and (pointed := decimal_comma(gold, answer)) is not None
    ):
        return pointed
    if answer.kind == "matrix" and len(answer.rows) == 1 == len(answer.rows[0]):
        return trees_equal(gold.tree, answer.rows[0][0], policy)
    if answer.kind == "relation" and gold.name and gold.sides and answer.tree is not None:
        return _equations(_as_relation(gold), answer)
    if answer.kind == "relation" and not gold.name and (quantity := _quantity(answer)) is not None:
        return gold.tree is not None and not symbols(gold.tree) and _scalars(gold, quantity, policy)
    if answer.kind == "list" and (mixed := _mixed(answer)) is not None:
        return trees_equal(gold.tree, mixed, policy)
    if answer.kind != "scalar" or gold.tree is None or answer.tree is None:
        return False
    if "compound" in (gold.brackets, answer.brackets) and not (gold.unit and answer.unit):
        return False  # how many of what it is depends on the unit
    if not units_agree(gold, answer, policy):
        return converted(gold, answer, policy)
    if len(answer.sides) > 1 and not consistent(answer):
        return False
    a, b = gold.tree, answer.tree
    if gold.name and answer.name and symbols(a) | symbols(b):
        if gold.name != answer.name and answer.name in symbols(a):  # y = 2x + 1 solved for x
            return _equations(_as_relation(gold), _as_relation(answer))
        f, g = (INDEXED.fullmatch(re.sub(r"[\s{}]", "", one.name)) for one in (gold, answer))
        if f and g and f[1] == g[1] and f[2] != g[2]:  # f(x) = ... and f(t) = ..., a_n = ... and a_k = ...
            if f[2] in symbols(b):
                return False
            b = substituted(b, {g[2]: ("sym", f[2])})
        elif (
            gold.name == answer.name and len(symbols(a)) == len(symbols(b)) == 1 and symbols(a) | symbols(b) <= COUNTERS
        ):
            b = substituted(b, {next(iter(symbols(b))): ("sym", next(iter(symbols(a))))})  # x = 5k + 2 and x = 5n + 2
    if (gold.unit == "degree") != (answer.unit == "degree") and (mentions(a, "pi") or mentions(b, "pi")):
        a, b = (
            ("mul", tree, ("sym", "degree")) if one.unit == "degree" else tree for one, tree in ((gold, a), (answer, b))
        )
    if gold.percent != answer.percent:
        if gold.unit:
            return False
        if policy.percent:
            a, b = (("div", a, HUNDRED) if gold.percent else a), (("div", b, HUNDRED) if answer.percent else b)
            return numbers_equal(gold, answer, a, b, policy) or (
                gold.percent and numbers_equal(gold, answer, gold.tree, b, policy)
            )
        value = exact(a)
        if answer.percent and (value is None or abs(value) <= 1 or value.denominator != 1):
            return False  # 0.5 is not 0.5 %; of 10 and 10 % the sign is only a unit left out
    return numbers_equal(gold, answer, a, b, policy) or antiderivatives(a, b)


COUNTERS = frozenset("jklmn")
INDEXED = re.compile(r"(\w)[(_]([a-z])\)?")


def _quantity(answer: Answer) -> Answer | None:
    """The value of several unknowns taken together, as in m + n = 7; an equation for one of them says something else."""
    if answer.relation != "=" or len(answer.sides) != 2:
        return None
    for side, other in (answer.sides, answer.sides[::-1]):
        left, right = read(side), read(other)
        if left.tree is None or right.tree is None or right.kind != "scalar" or symbols(right.tree):
            continue
        # With nothing on the right an equation is only written in another way.
        if (len(symbols(left.tree)) > 1 or ROUNDED.match(side)) and exact(right.tree) != 0:
            return right
    return None


ROUNDED = re.compile(r"\\[lr]?(?:floor|ceil)")


def _mixed(answer: Answer) -> Tree | None:
    """2 and 3/4, or 2 and a half, as the one number it is."""
    parts = re.fullmatch(r"(-?)\s*\d+\s*(?:\\text\{\s*and\s*\}|and)\s*\\?(?:frac|\d).*", answer.text)
    if parts is None or len(answer.items) != 2 or any(item.tree is None for item in answer.items):
        return None
    whole, part = (exact(item.tree) for item in answer.items if item.tree is not None)
    if whole is None or part is None or whole.denominator != 1 or not 0 < part < 1:
        return None
    return ("num", whole - part if parts[1] else whole + part)


# ------------------------------------------------------------------------------------------------------ collections


def _lists(gold: Answer, answer: Answer, policy: Policy) -> bool:
    if answer.kind == "scalar" and len(gold.items) == 1:
        return _scalars(gold.items[0], answer, policy)
    items = answer.items
    if answer.kind == "region" and len(answer.pieces) == 1:
        items = _ends(answer)
        if answer.pieces[0][0] == answer.pieces[0][1] or not (answer.pieces[0][2] and answer.pieces[0][3]):
            return False
        if gold.kind == "set":
            return False
    elif answer.kind == "region" and answer.pieces and all(piece[0] == piece[1] for piece in answer.pieces):
        items = tuple(Answer("scalar", "", tree=piece[0]) for piece in answer.pieces)
    elif answer.kind == "tuple":
        if answer.brackets == "(" and _coordinates(gold) is not None:  # x = 3, y = 4
            return _points(gold, answer, policy)
        if answer.brackets != "[" or gold.kind == "set":
            return False
    elif answer.kind not in ("list", "set"):
        return False
    if policy.ordered_lists and gold.kind == "list" and answer.kind == "list":
        return len(gold.items) == len(items) and all(
            equal(g, a, policy) for g, a in zip(gold.items, items, strict=True)
        )
    if (plain := (_plain_values(gold.items), _plain_values(items)))[0] is not None and plain[1] is not None:
        return plain[0] == plain[1]
    wanted, given = _distinct(gold.items, policy), _distinct(items, policy)
    return len(wanted) == len(given) and _matched(wanted, given, policy)


def _plain_values(items: Sequence[Answer]) -> set[Fraction] | None:
    """The values of many integers without units or names, for which comparing each with each would take long."""
    if len(items) < 20 or not all(
        item.kind == "scalar" and item.tree is not None and item.tree[0] in ("num", "neg") for item in items
    ):
        return None
    values = {exact(item.tree) for item in items if item.tree is not None}
    if any(item.unit or item.name or item.percent or item.decimals is not None for item in items):
        return None
    return {value for value in values if value is not None} if None not in values else None


def _distinct(items: Sequence[Answer], policy: Policy) -> list[Answer]:
    kept: list[Answer] = []
    for item in items:
        if not any(_known_equal(other, item, policy) for other in kept):
            kept.append(item)
    return kept


def _known_equal(a: Answer, b: Answer, policy: Policy) -> bool:
    try:
        return equal(a, b, policy)
    except Undecided:
        return False


def _matched(wanted: list[Answer], given: list[Answer], policy: Policy) -> bool:
    left = list(given)
    unsure = False
    for item in wanted:
        for other in left:
            try:
                if equal(item, other, policy) and _names_agree(item, other):
                    left.remove(other)
                    break
            except Undecided:
                unsure = True
        else:
            if unsure:
                raise Undecided
            return False
    return True


def _names_agree(a: Answer, b: Answer) -> bool:
    """x = 5, y = 6 is not y = 5, x = 6."""
    return not a.name or not b.name or a.name.replace(" ", "") == b.name.replace(" ", "")


def _ends(region: Answer) -> tuple[Answer, ...]:
    low, high, _, _ = region.pieces[0]
    return Answer("scalar", "", tree=low), Answer("scalar", "", tree=high)


def _tuples(gold: Answer, answer: Answer, policy: Policy) -> bool:
    if answer.kind in ("set", "list") and len(answer.items) == 1:
        answer = answer.items[0]
    items = answer.items
    if gold.brackets == ":" and len(gold.items) == 2 and answer.kind == "scalar":
        a, b = (item.tree for item in gold.items)
        return a is not None and b is not None and trees_equal(("div", a, b), answer.tree, policy)
    if ":" in (gold.brackets, answer.brackets):
        return gold.brackets == answer.brackets and len(gold.items) == len(items) and _ratios(gold, answer, policy)
    if answer.kind == "matrix":
        rows = answer.rows
        if len(rows) != 1 and len(rows[0]) != 1:
            return False
        items = tuple(Answer("scalar", "", tree=cell) for row in rows for cell in row)
    elif answer.kind == "region" and gold.brackets in ("(", "[") and len(answer.pieces) == 1:
        return _regions(_tuple_region(gold), answer, policy)
    elif answer.kind == "list":
        if _coordinates(answer) is not None:
            return _points(gold, answer, policy)
        if answer.hedge or any(i.name for i in items) or re.search("and", answer.text):
            return False
    elif answer.kind != "tuple":
        return False
    if (
        gold.brackets
        and answer.brackets
        and gold.brackets != answer.brackets
        and "[" in (gold.brackets, answer.brackets)
    ):
        return False
    if answer.kind == "tuple" and gold.name and answer.name:
        return _points(gold, answer, policy)
    return _in_order(gold.items, items, policy)


def _in_order(gold: Sequence[Answer], items: Sequence[Answer], policy: Policy) -> bool:
    return len(gold) == len(items) and all(equal(g, a, policy) for g, a in zip(gold, items, strict=True))


# Where the order of coordinates is not that of the alphabet.
SYSTEMS = (
    ("r", "theta"),
    ("r", "theta", "z"),
    ("r", "phi"),
    ("r", "phi", "z"),
    ("rho", "theta", "phi"),
    ("rho", "phi", "z"),
)


def _coordinates(answer: Answer) -> tuple[str, ...] | None:
    """What the items are the values of, when each has its own name: of (a, b) = (2, 13) and of a = 2, b = 13."""
    if answer.kind == "tuple":
        inside = re.fullmatch(r"\((.*)\)", answer.name)
        names = tuple(inside[1].split(",")) if inside else ()
    else:
        names = () if answer.hedge else tuple(item.name for item in answer.items)
    names = tuple(re.sub(r"[\s{}\\]", "", name) for name in names)
    return names if all(names) and len(set(names)) == len(names) == len(answer.items) > 1 else None


def _points(gold: Answer, answer: Answer, policy: Policy) -> bool:
    """Coordinates by name where both have names, in the usual order where one has."""
    a, b = _coordinates(gold), _coordinates(answer)
    if a is not None and b is not None and set(a) & set(b):
        if set(a) != set(b):
            return False
        return _in_order(gold.items, [answer.items[b.index(name)] for name in a], policy)

    return _in_order(_arranged(gold), _arranged(answer), policy)


def _arranged(answer: Answer) -> Sequence[Answer]:
    names = _coordinates(answer)
    if answer.kind == "tuple" or names is None:
        return answer.items
    order = next((system for system in SYSTEMS if set(system) == set(names)), tuple(sorted(names)))
    return [answer.items[names.index(name)] for name in order]


def _ratios(gold: Answer, answer: Answer, policy: Policy) -> bool:
    """a:b is c:d when a d = b c."""
    a, b = ([item.tree for item in ratio.items if item.tree is not None] for ratio in (gold, answer))
    return all(trees_equal(("mul", x, b[0]), ("mul", y, a[0]), policy) for x, y in zip(a, b, strict=True))


def _tuple_region(gold: Answer) -> Answer:
    if len(gold.items) != 2 or any(item.tree is None for item in gold.items):
        return Answer("region", gold.text, pieces=((NEVER, NEVER, False, False),))
    low, high = (item.tree for item in gold.items)
    assert low is not None
    assert high is not None
    return Answer("region", gold.text, pieces=((low, high, gold.brackets == "[", gold.brackets == "["),))


def _region_as_tuple(region: Answer) -> Answer | None:
    if len(region.pieces) != 1 or region.brackets == "relation" or region.pieces[0][2] or region.pieces[0][3]:
        return None
    return Answer("tuple", region.text, items=_ends(region), brackets="(")


INEQUALITY = re.compile(r"[<>]|\\[lg]e(?![a-z])")


def _regions(gold: Answer, answer: Answer, policy: Policy) -> bool:
    if (
        answer.kind == "relation"
        and INEQUALITY.search(gold.text)
        and (solved := solution(answer, gold.name)) is not None
    ):
        answer = solved
    if answer.kind != "region":
        if answer.kind == "tuple" and answer.brackets in ("(", "["):
            answer = _tuple_region(answer)
        elif answer.kind in ("set", "list") and not answer.items and not gold.pieces:
            return True
        elif answer.kind == "list" and all(item.kind in ("region", "tuple") for item in answer.items):
            pieces = tuple(p for i in answer.items for p in (i if i.kind == "region" else _tuple_region(i)).pieces)
            answer = Answer("region", answer.text, pieces=pieces)
        elif answer.kind in ("list", "set") and gold.pieces and all(p[0] == p[1] for p in gold.pieces):
            return _lists(
                Answer("set", "", items=tuple(Answer("scalar", "", tree=p[0]) for p in gold.pieces)), answer, policy
            )
        else:
            return False
    if not policy.intervals and (gold.brackets == "relation") != (answer.brackets == "relation"):
        return False
    if gold.name and answer.name and gold.brackets == answer.brackets == "relation" and gold.name != answer.name:
        return False
    if len(gold.pieces) != len(answer.pieces):
        return False
    for p, q in zip(gold.pieces, answer.pieces, strict=True):
        if p[2:] != q[2:] or not trees_equal(p[0], q[0], policy) or not trees_equal(p[1], q[1], policy):
            return False
    return True


def _matrices(gold: Answer, answer: Answer, policy: Policy) -> bool:
    rows = answer.rows
    if answer.kind == "tuple" and all(item.tree is not None for item in answer.items):
        cells = tuple(item.tree for item in answer.items if item.tree is not None)
        if len(gold.rows) > 1 and len(gold.rows[0]) > 1:
            return False
        rows = (cells,) if len(gold.rows) == 1 else tuple((cell,) for cell in cells)
    elif answer.kind == "region":
        as_tuple = _region_as_tuple(answer)
        return as_tuple is not None and _matrices(gold, as_tuple, policy)
    elif answer.kind != "matrix":
        return False
    if "basis" in (gold.brackets, answer.brackets) and {len(rows), len(gold.rows)} == {2, 3}:
        zero = (("num", Fraction(0)),)  # a sum of i and j only may stand in space
        rows, wanted = ((*one, zero) if len(one) == 2 else one for one in (rows, gold.rows))
        gold = replace(gold, rows=wanted)
    if len(rows) != len(gold.rows) or len(rows[0]) != len(gold.rows[0]):
        return False
    return all(
        trees_equal(g, a, policy)
        for line, other in zip(gold.rows, rows, strict=True)
        for g, a in zip(line, other, strict=True)
    )


# -------------------------------------------------------------------------------------------------------- relations


def _as_relation(answer: Answer) -> Answer:
    """`x = 5`, read as a value, as the equation it also is."""
    if answer.kind != "scalar" or len(answer.sides) != 2 or answer.tree is None:
        return answer
    left = read(answer.sides[0])
    if left.kind != "scalar" or left.tree is None:
        return answer
    return replace(answer, kind="relation", relation="=", tree=("add", left.tree, ("neg", answer.tree)))


def _relations(gold: Answer, answer: Answer, policy: Policy) -> bool:
    if answer.kind == "scalar":
        answer = _as_relation(answer)
    if answer.kind != "relation":
        return False
    return _equations(gold, answer)


def _equations(gold: Answer, answer: Answer) -> bool:
    if gold.kind != "relation" or answer.kind != "relation":
        return False
    if gold.tree is None or answer.tree is None:
        if gold.relation != answer.relation or not gold.rows or not answer.rows:
            return False
        return all(trees_equal(a, b, Policy()) for a, b in zip(gold.rows[0], answer.rows[0], strict=True))
    if gold.tree == answer.tree and gold.relation == answer.relation:
        return True
    flip = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
    try:
        factor = proportional(gold.tree, answer.tree)
    except TooLarge:
        raise
    except NotRead as error:
        raise Undecided from error
    if factor is None:
        return False
    if gold.relation in ("=", "!="):
        return gold.relation == answer.relation
    try:
        positive = factor > 0
    except TypeError:
        return False
    return gold.relation == (answer.relation if positive else flip.get(answer.relation))


# --------------------------------------------------------------------- parameters, moduli, conditions


def _congruences(gold: Answer, answer: Answer) -> bool:
    bare = _undeclared(answer, "Z") if answer.name else None
    a, b = as_congruence(gold), as_congruence(bare or answer)
    try:
        return a is not None and b is not None and same_congruence(a, b)
    except TooLarge:
        raise
    except NotRead as error:
        raise Undecided from error


def _families(gold: Answer, answer: Answer, policy: Policy) -> bool:
    """The same body for the same parameters, whatever these are called; over the integers, also counted from elsewhere."""
    if gold.kind == "family" and gold.relation in WHOLE and (bare := _undeclared(answer, gold.relation)) is not None:
        answer = bare
    if gold.kind != "family" or answer.kind != "family":
        one, other = (gold, answer) if gold.kind == "family" else (answer, gold)
        if one.relation not in WHOLE or other.kind in ("text", "cases"):
            return False
        return equal(gold.items[0], answer, policy) if one is gold else equal(gold, answer.items[0], policy)
    if len(gold.sides) != len(answer.sides) or len(gold.sides) > 3:
        return False
    body = gold.items[0]
    for names in itertools.permutations(gold.sides):
        given = renamed(answer.items[0], dict(zip(answer.sides, names, strict=True)))
        if given is None:
            continue
        if _same_domains(gold, answer, policy) and equal(body, given, policy):
            return True
        if len(names) == 1 and _progressions(body, given, names[0], (gold.relation, answer.relation)):
            return True
    return False


def _undeclared(answer: Answer, domain: str) -> Answer | None:
    """x = 5k + 2 as the family it is when k, which it does not introduce, is a whole number."""
    letters = free(answer)
    if (
        answer.kind not in ("scalar", "list", "tuple", "set")
        or answer.relation
        or len(letters) != 1
        or not letters <= set("jklmnpqrst")
    ):
        return None
    return Answer("family", answer.text, items=(answer,), sides=tuple(letters), relation=domain, name=answer.name)


def _same_domains(gold: Answer, answer: Answer, policy: Policy) -> bool:
    if gold.relation != answer.relation:
        return False
    return gold.relation != "region" or equal(gold.items[1], answer.items[1], policy)


def _progressions(gold: Answer, answer: Answer, letter: str, domains: tuple[str, str]) -> bool:
    """Each progression of the one is one of the other."""
    if any(re.search(rf"(?<![a-zA-Z]){re.escape(letter)}(?![a-zA-Z])", one.name) for one in (gold, answer)):
        return False  # of a_k it matters which term is which
    if domains != ("Z", "Z") and not (gold.name and answer.name):
        return False
    a, b = ((one,) if one.kind == "scalar" else one.items for one in (gold, answer))
    kinds = {one.kind for one in (gold, answer)}
    if not kinds <= {"scalar", "list", "set"} or len(a) != len(b):
        return False
    left = list(b)
    try:
        for item in a:
            found = next(
                one
                for one in left
                if item.tree is not None
                and one.tree is not None
                and _names_agree(item, one)
                and same_progression(item.tree, one.tree, letter, domains)
            )
            left.remove(found)
    except StopIteration:
        return False
    except TooLarge:
        raise
    except NotRead as error:
        raise Undecided from error
    return True


def _builders(gold: Answer, answer: Answer, policy: Policy) -> bool:
    """The same conditions on the same set, whatever its members are called."""
    if answer.kind != "builder" or len(gold.sides) != len(answer.sides) or len(gold.items) != len(answer.items):
        return False
    if gold.relation != answer.relation and gold.relation and answer.relation:
        return False
    items = [renamed(item, dict(zip(answer.sides, gold.sides, strict=True))) for item in answer.items]
    known = [item for item in items if item is not None]
    return len(known) == len(items) and _matched(list(gold.items), known, policy)


def _cases(gold: Answer, answer: Answer, policy: Policy) -> bool:
    if answer.kind != "cases" or len(gold.items) != len(answer.items) or gold.sides != answer.sides:
        return False
    return _matched(list(gold.items), list(answer.items), policy)


def _case(gold: Answer, answer: Answer, policy: Policy) -> bool:
    return answer.kind == "case" and _in_order(gold.items, answer.items, policy)


COMPARE: dict[str, Callable[[Answer, Answer, Policy], bool]] = {
    "scalar": _scalars,
    "list": _lists,
    "set": _lists,
    "tuple": _tuples,
    "region": _regions,
    "matrix": _matrices,
    "relation": _relations,
    "builder": _builders,
    "cases": _cases,
    "case": _case,
}
__all__ = ["Policy", "Undecided", "equal", "values_equal"]
