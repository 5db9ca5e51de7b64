"""What a reference returns on a database, in which order, and what of it the reference leaves open."""

from __future__ import annotations

import collections
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlglot import exp

from rewards._sql_databases import BadReferenceError, Cell
from rewards._sql_reading import text
from rewards._sql_rows import Expected, Row
from rewards._sql_run import run

MAX_STEPS = 300  # thousands, of a query that is only tried
MAX_ROWS = 2000  # that it may return

Ask = Callable[[str], Mapping[str, Any]]  # a query to what `run` returns for it


def expected(image: bytes, gold: str, tree: exp.Query | None, order: str | bool, seconds: float, most: int) -> Expected:
    """What the reference returns on this database.

    Raises:
        BadReferenceError: it fails.
    """
    result = run(image, gold, seconds, most)
    if "error" in result:
        raise BadReferenceError(f"{result['error']}: {result['message']} in {gold[:300]!r}")
    rows = result["rows"]
    clause = tree.args.get("order") if tree is not None else None
    if tree is not None and _sorts_what_is_gone(tree, result["names"]):
        clause = None
    ordered = clause is not None or (tree is None and "order by" in " ".join(gold.lower().split()))
    if order is False or (order == "auto" and not ordered):
        return Expected(result["columns"], rows, [0] * len(rows))
    keys = None
    if tree is not None and clause is not None:
        found = sorted_by(tree, result["names"], lambda query: run(image, query, seconds, most))
        # The tree may have been read in another way than SQLite reads the text.
        keys = found[1] if found and found[0] == rows else None
    if keys is None:
        return Expected(result["columns"], rows, range(len(rows)))
    group = [0] * len(rows)
    for i in range(1, len(rows)):
        group[i] = group[i - 1] + (keys[i] != keys[i - 1])
    return Expected(result["columns"], rows, group)


def sorted_by(tree: exp.Query, names: Sequence[str], ask: Ask) -> tuple[list[Row], list[Row]] | None:
    """A query's rows and what each is sorted by; None when it cannot be told, and then every row has its place."""
    lowered = [name.lower() for name in names]
    found: list[int] = []
    added: list[exp.Expression] = []
    for term in tree.args["order"].expressions:
        key = term.this
        if term.find(exp.Collate):
            return None
        if isinstance(key, exp.Literal) and not key.is_string and 0 < int(float(key.this)) <= len(lowered):
            found.append(int(key.this) - 1)
        elif isinstance(key, exp.Column) and not key.table and lowered.count(key.name.lower()) == 1:
            found.append(lowered.index(key.name.lower()))
        else:
            found.append(len(lowered) + len(added))
            added.append(key.copy())
    wider = tree.copy()
    if added:
        if not isinstance(wider, exp.Select) or wider.args.get("distinct"):
            return None
        wider.select(*added, copy=False)
    again = ask(text(wider))
    if "error" in again:
        return None
    rows = again["rows"]
    return [tuple(row[: len(lowered)]) for row in rows], [tuple(row[i] for i in found) for row in rows]


def cuts_between_ties(connection: sqlite3.Connection, tree: exp.Query) -> bool:
    """Whether a LIMIT in the query, or an OFFSET, falls between rows that its ORDER BY does not part."""
    for node in tree.find_all(exp.Select, exp.SetOperation):
        bounds = [_number(node.args.get(part)) for part in ("offset", "limit")]
        if node.args.get("limit") is None or None in bounds:
            continue
        offset, limit = bounds[0] or 0, bounds[1] or 0
        whole = node.copy()
        whole.set("limit", None)
        whole.set("offset", None)
        for part in ("with_", "with"):
            outer = tree.args.get(part)
            if node is not tree and outer is not None and not whole.args.get(part):
                whole.set(part, outer.copy())
        ask = asking(connection)
        plain = ask(text(whole))
        if "error" in plain:  # it speaks of the query around it
            continue
        rows: list[Row] = plain["rows"]
        keys: list[Row] = [()] * len(rows)
        if whole.args.get("order") is not None:
            found = sorted_by(whole, plain["names"], ask)
            if found is not None:
                rows, keys = found
        for cut in (offset, offset + limit):
            if 0 < cut < len(rows) and keys[cut - 1] == keys[cut]:
                return True
    return False


def _sorts_what_is_gone(tree: exp.Query, names: Sequence[str]) -> bool:
    """Whether a SELECT DISTINCT sorts by what it does not return: then equal rows that became one had several places."""
    order = tree.args.get("order")
    if order is None or not tree.args.get("distinct") or not isinstance(tree, exp.Select):
        return False
    returned = {name.lower() for name in names} | {text(chosen.unalias()).lower() for chosen in tree.selects}
    keys = [term.this for term in order.expressions]
    return any(
        not isinstance(key, exp.Literal) and key.name.lower() not in returned and text(key).lower() not in returned
        for key in keys
    )


def _number(clause: exp.Expression | None) -> int | None:
    if clause is None:
        return 0
    value = clause.args.get("expression")
    return int(value.this) if isinstance(value, exp.Literal) and str(value.this).isdecimal() else None


def asking(connection: sqlite3.Connection, work: collections.Counter[str] | None = None) -> Ask:
    """Trusted queries on an open database, each of at most so many steps of SQLite's and so many rows.

    Steps and not seconds, so that what is found out does not hang on how busy the machine is. Thousands of them are added
    to `work["steps"]`.
    """

    def ask(query: str) -> Mapping[str, Any]:
        used = 0

        def tick() -> bool:
            nonlocal used
            used += 1
            return used > MAX_STEPS

        connection.set_progress_handler(tick, 1000)
        try:
            cursor = connection.execute(query)
            rows: list[tuple[Cell, ...]] = cursor.fetchmany(MAX_ROWS + 1)
        except (sqlite3.Error, sqlite3.Warning, ValueError, UnicodeError) as error:
            return {"error": str(error)}
        finally:
            if work is not None:
                work["steps"] += used
        if cursor.description is None or len(rows) > MAX_ROWS:
            return {"error": "too many rows"}
        return {"rows": rows, "columns": len(cursor.description), "names": [name for name, *_ in cursor.description]}

    return ask
