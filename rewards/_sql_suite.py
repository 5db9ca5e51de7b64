"""The further databases of a reference: instances that together tell the most one-step mutants from it.

Test-suite accuracy (Zhong et al. 2020, "Semantic Evaluation for Text-to-SQL with Distilled Test Suites"): many instances
are drawn, and the few are kept that tell apart what the many do. One is of use only where every reference returns
something and leaves nothing open: a LIMIT between equals, or what hangs on the order in which rows are stored.

All is counted and nothing timed, so that a row has the same instances wherever it is graded.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlglot import exp

from rewards._sql_databases import BadReferenceError, Schema, image_with, opened, schema_of
from rewards._sql_instances import Instances, Rows
from rewards._sql_mutants import mutants
from rewards._sql_reading import asked
from rewards._sql_reference import asking, cuts_between_ties, expected
from rewards._sql_rows import Expected, same

TRIED = 96  # instances drawn
PATIENCE = 24  # draws that may add nothing
KEPT = 8
MAX_WORK = 20_000  # thousands of SQLite's steps that mutants may take, after which drawing ends
TWICE = 2  # how many instances shall tell each mutant, where there is room


@dataclass(frozen=True)
class Instance:
    image: bytes
    expected: tuple[Expected, ...]  # one a reference


@dataclass(frozen=True)
class Suite:
    """`told`: of so many `mutants` of the references, how many the instances tell apart; `missed`: the others."""

    instances: tuple[Instance, ...]
    mutants: int
    told: int
    missed: tuple[tuple[str, str], ...]


def suite(
    image: bytes,
    golds: Sequence[str],
    trees: Sequence[exp.Query | None],
    tables: Sequence[str],
    order: str | bool,
    seconds: float,
    max_rows: int,
) -> Suite:
    """The instances for references that read these tables, named in lower case."""
    schema = schema_of(image)
    read = [tree for tree in trees if tree is not None]
    known = list(dict.fromkeys(tables))
    # No rows can be made for a virtual table, and none that are asked for in the order in which they are stored.
    stored_order = order is True and not all(tree and tree.args.get("order") for tree in trees)
    if not known or stored_order or not all(name in schema.tables for name in known):
        return Suite((), 0, 0, ())
    source = Instances(schema, asked(read, schema, known), known)
    first = opened(image)
    wrong = mutants(read[0], schema, known, asking(first)) if read else []

    def judged(rows: Rows) -> Instance | None:
        drawn = image_with(schema, rows)
        try:
            results = tuple(
                expected(drawn, gold, tree, order, seconds, max_rows) for gold, tree in zip(golds, trees, strict=True)
            )
        except BadReferenceError:
            return None
        # Right ways of asking differ where there is nothing: a maximum of no rows is NULL, the first of none is no row.
        if not all(any(cell is not None for row in result.rows for cell in row) for result in results):
            return None
        return Instance(drawn, results)

    found: list[tuple[Instance, frozenset[int]]] = []
    times: Counter[int] = Counter()
    last = 0  # draw that told something
    work: Counter[str] = Counter()
    for seed in range(TRIED):
        left = [i for i in range(len(wrong)) if times[i] < TWICE]
        if seed >= last + PATIENCE or work["steps"] > MAX_WORK:
            break
        rows = source.rows(seed)
        instance = judged(rows)
        if instance is None:
            continue
        told = _told(instance, {i: wrong[i][1] for i in left}, work)
        if (wrong and not told) or _left_open(instance, schema, rows, golds, read):
            continue
        last = seed
        found.append((instance, told))
        times.update(told)
    kept = _distilled(found)
    all_told = frozenset[int]().union(*(told for _, told in kept))
    missed = tuple(wrong[i] for i in range(len(wrong)) if i not in all_told)
    return Suite(tuple(instance for instance, _ in kept), len(wrong), len(all_told), missed)


def _told(instance: Instance, queries: Mapping[int, str], work: Counter[str]) -> frozenset[int]:
    """Which of the queries return something else there than every reference."""
    ask = asking(opened(instance.image), work)
    told = set()
    for i, query in queries.items():
        result = ask(query)
        if "error" in result:
            continue
        rows, columns = result["rows"], result["columns"]
        if not any(rows == one.rows or same(one, columns, rows, 1e-6) for one in instance.expected):
            told.add(i)
    return frozenset(told)


def _left_open(
    instance: Instance,
    schema: Schema,
    rows: Rows,
    golds: Sequence[str],
    trees: Sequence[exp.Query],
) -> bool:
    """Whether a reference returns there what hangs on more than the data."""
    connection = opened(instance.image)
    if any(cuts_between_ties(connection, tree) for tree in trees):
        return True
    for turn in (_reversed, _shuffled):
        ask = asking(opened(image_with(schema, turn(rows))))
        for gold, one in zip(golds, instance.expected, strict=True):
            result = ask(gold)
            if "error" in result or not same(one, result["columns"], result["rows"], 1e-6):
                return True
    return False


def _reversed(rows: Rows) -> Rows:
    return {name: some[::-1] for name, some in rows.items()}


def _shuffled(rows: Rows) -> Rows:
    draw = random.Random(0)
    return {name: draw.sample(some, len(some)) for name, some in rows.items()}


def _distilled(found: Sequence[tuple[Instance, frozenset[int]]]) -> list[tuple[Instance, frozenset[int]]]:
    """The instance that tells most of what is not told yet, then the next; then again, so that most are told twice."""
    kept: list[tuple[Instance, frozenset[int]]] = []
    left = list(found)
    times: Counter[int] = Counter()
    while left and len(kept) < KEPT:
        best = max(left, key=lambda one: sum(100 if times[i] == 0 else 1 for i in one[1]))
        kept.append(best)
        left.remove(best)
        times.update(best[1])
    return kept
