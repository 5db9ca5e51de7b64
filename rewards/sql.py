"""Queries by what they return: the response's SQL and the reference's are both run on SQLite and the rows compared.

The response's query runs in the sandbox, on a copy of the database in that process's memory: there is no file to
change. Before it come an authorizer that lets through nothing but reading, SQLite's own limits, a CPU deadline and a
cap on rows; the sandbox is for what is left, an error in SQLite's C code or a statement none of these see. The
reference comes from the data, is trusted, and runs here.

Rows are compared here, so nothing the query does can reach the comparison:
    - bags: the order of rows counts only where the reference orders, and rows equal in what it orders by are in no order;
    - columns by content: their names are free, and their order too;
    - integers and text exactly, other numbers within a tolerance; the text '1' is not the number 1;
    - on further databases with other rows as well, on which queries that are nearly right return something else
      (test-suite accuracy: Zhong et al. 2020, "Semantic Evaluation for Text-to-SQL with Distilled Test Suites").
"""

from __future__ import annotations

import collections
import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rewards._response import Fence, answer_tag, fences, visible
from rewards._sql_databases import BadReferenceError, find, image_of, opened, schema_of
from rewards._sql_reading import parse
from rewards._sql_reference import cuts_between_ties, expected
from rewards._sql_rows import Expected, same
from rewards._sql_run import run, run_sandboxed
from rewards._sql_suite import Suite, suite

MAX_QUERY = 20_000  # characters
CLOCK = re.compile(
    r"'now'|\bcurrent_(?:date|time|timestamp)\b|\b(?:date|time|datetime|julianday)\s*\(\s*\)", re.IGNORECASE
)


@dataclass(frozen=True)
class _Task:
    """The databases, and for each reference what it returns on each of them."""

    images: tuple[bytes, ...]
    expected: tuple[tuple[Expected, ...], ...]
    most: tuple[int, ...]  # rows that any reference returns, on each database
    reads: bool  # whether every reference reads a table
    empty: bool  # whether no reference returns a row on the databases that were given
    telling: bool  # whether a reference returns different rows on different databases
    suite: Suite | None


def verify(
    response: str,
    reference: str | Sequence[str],
    database: str,
    variants: Sequence[str] | None = None,
    order: str | bool = "auto",
    float_tolerance: float = 1e-6,
    seconds: float = 2.0,
    max_rows: int = 10_000,
    perturbed: str | Sequence[str] | None = "auto",
    directory: str = "",
    allow_empty: bool = False,
    allow_constant: bool = False,
    min_told_apart: float = 0.5,
    sandbox: str | None = None,
) -> dict[str, Any]:
    """Correct when the response's query returns what the reference, or one of its variants, returns.

    The query is what stands in the last code block that is marked as SQL, by this or a dialect's name, and is a query;
    without such blocks in the last unmarked one that is a query, or else the whole text when it is one. Where there is
    an `<sql>` or `<answer>` only the last of them is looked at, and of all only what is said after the thought. Reasons of a wrong
    verdict: no_answer, too_long, syntax_error, several_statements, forbidden (anything but reading), runtime_error,
    candidate_timeout, memory, output_limit, too_many_rows (more than any reference returns, where fetching stops),
    constant (reads no table), mismatch, mismatch_perturbed (right on the first database only).

    A reference that fails is unverified, and so is one that returns no rows, or the same on every database: every query
    that returns none would pass, or one that spells out the rows. So is one from which the databases tell too few of
    the queries that are one step away.

    Args:
        reference: the query, or several of which any may be matched.
        database: a file of SQLite's, a file with a SQL script, or such a script itself.
        variants: more references.
        order: whether the order of rows counts: "auto" where the reference has an ORDER BY of its own, true, false.
        float_tolerance: relative, where one of two numbers is not an integer.
        seconds: CPU time of a query on one database. The sandbox may take twice the sum over the databases, and 1 s
            more, on a busy machine: the verifier's `timeout` must be above that.
        max_rows: a reference that returns more is unverified.
        perturbed: further databases on which the same reference must be matched too. "auto" makes up to eight small ones
            for each reference: keys, foreign keys and NOT NULL kept, all else drawn from what the columns hold and from
            the reference's constants and their neighbours, and of many so drawn those kept that tell the most one-step
            mutants of the reference from it. None: the one database only.
        directory: where files named by `database` and `perturbed` are, `name`, `name.sqlite`, `.db`, `.sql` or, as
            Spider has it, `name/name.sqlite`.
        allow_empty: grade references that return no rows as well.
        allow_constant: grade references too whose result is the same on every perturbed database.
        min_told_apart: the share of one-step mutants of the reference that the databases made by "auto" must tell from
            it, or it is unverified; some mutants mean the same as the reference, so hardly any reference reaches 1.
        sandbox: the URL of a service that runs the query instead of this machine, by SandboxFusion's `/run_code`.

    Raises:
        ValueError: a parameter out of its range.
        SandboxError: the sandbox failed, not the query.
    """
    if not 0 <= float_tolerance < 1:
        raise ValueError(f"verifier sql: float_tolerance is {float_tolerance}; it must be in [0, 1)")
    if not 0 < seconds < math.inf or max_rows < 1:
        raise ValueError(f"verifier sql: seconds is {seconds} and max_rows {max_rows}; both must be above 0")
    if order not in ("auto", True, False):
        raise ValueError(f"verifier sql: order is {order!r}; it may be auto, true or false")
    others = (perturbed,) if isinstance(perturbed, str) else tuple(perturbed or ())
    try:
        golds = (*_texts(reference), *_texts(variants or ()))
        if not golds:
            raise BadReferenceError("there is none")
        # What the time of day changes must not be remembered.
        prepare = _task.__wrapped__ if any(map(CLOCK.search, golds)) else _task
        sources = tuple(other if other == "auto" else find(other, directory) for other in others)
        task = prepare(golds, find(database, directory), sources, order, seconds, max_rows)
        if task.empty and not allow_empty:
            raise BadReferenceError("it returns no rows; allow_empty: true grades it all the same")
        if not (task.empty or allow_constant or task.telling) and len(task.images) > 1:
            raise BadReferenceError(
                "it returns the same on every database, so a query that spells this out would pass; "
                "allow_constant: true grades it all the same"
            )
        if not task.empty and task.suite and (problem := _weak(task.suite, min_told_apart)):
            raise BadReferenceError(problem)
    except BadReferenceError as error:
        return {
            "score": None,
            "reason": "bad_reference",
            "details": {"error": f"the reference cannot be used: {error}"},
        }
    query = extract(response)
    details: dict[str, Any] = {"databases": len(task.images), "telling": task.telling}
    if task.suite and task.suite.mutants:
        details["measures"] = {"told_apart": round(task.suite.told / task.suite.mutants, 3)}
    if not query:
        return {"score": 0.0, "reason": "no_answer", "details": details}
    reason, message = _judge(query, task, seconds, float_tolerance, sandbox)
    if message:
        details["error"] = message
    return {"score": float(not reason), "reason": reason, "extracted": query, "details": details}


verify.check = True  # type: ignore[attr-defined]
verify.programs = True  # type: ignore[attr-defined]


def _weak(found: Suite, bound: float) -> str:
    """Why the instances are not good enough, or ""."""
    if found.mutants == 0 or found.told >= bound * found.mutants:
        return ""
    kind, query = found.missed[0]
    return (
        f"its databases tell only {found.told} of {found.mutants} wrong queries from it, and not this one ({kind}): "
        f"{query[:200]}; min_told_apart: {found.told / found.mutants:.2f} grades it all the same"
    )


def _judge(query: str, task: _Task, seconds: float, tolerance: float, service: str | None) -> tuple[str, str]:
    """Why the query is wrong, "" when it is right, and SQLite's message if there is one."""
    if len(query) > MAX_QUERY:
        return "too_long", ""
    answers = run_sandboxed(query, task.images, seconds, task.most, service)
    if "error" in answers[-1]:
        return answers[-1]["error"], answers[-1].get("message", "")
    if task.reads and not answers[0]["reads"]:
        return "constant", ""
    first = False
    for results in task.expected:
        right = [
            same(one, answer["columns"], answer["rows"], tolerance)
            for one, answer in zip(results, answers, strict=True)
        ]
        if all(right):
            return "", ""
        first = first or right[0]
    return ("mismatch_perturbed" if first else "mismatch"), ""


# ------------------------------------------------------------------------------------------------ finding the query


DIALECTS = frozenset(
    (
        *("sql", "sqlite", "sqlite3", "postgresql", "postgres", "pgsql", "psql", "plpgsql", "mysql", "mariadb"),
        *("tsql", "t-sql", "mssql", "sqlserver", "oracle", "plsql", "bigquery", "snowflake", "redshift", "duckdb"),
        *("hive", "hiveql", "spark", "sparksql", "spark-sql", "ansi-sql", "presto", "trino", "clickhouse", "db2"),
    )
)
UNMARKED = frozenset(("", "text", "txt", "plaintext", "code"))
START = re.compile(r"(?:\s|--[^\n]*\n|/\*.*?\*/|\()*+(?:select|with|values)\b", re.DOTALL | re.IGNORECASE)
ONE_LINE = re.compile(rf"(?:{'|'.join(map(re.escape, sorted(DIALECTS, key=len, reverse=True)))})\s+", re.IGNORECASE)


def extract(response: str) -> str | None:
    """The query in a response, None when there is none. A block or tag that is never closed holds none."""
    text = visible(response)
    if text is None:
        return None
    lowered = text.lower()
    start = lowered.rfind("<sql>")
    if start > lowered.rfind("<answer>"):
        end = lowered.find("</sql>", start)
        if end < 0:
            return None
        text = text[start + len("<sql>") : end]
    elif (answer := answer_tag(text)) is not None:
        text = answer
    blocks = fences(text)
    marked = [block for block in blocks if block.info in DIALECTS or ONE_LINE.match(block.body)]
    queries = [block for block in marked or blocks if START.match(_body(block))]
    unmarked = [block for block in queries if block.info in UNMARKED]
    # The last that is a query; without one, what is said to be SQL is at least looked at.
    chosen = queries[-1:] or marked[-1:] if marked else unmarked[-1:]
    if chosen:
        return _body(chosen[0]).strip() if chosen[0].closed else None
    return text.strip() if not blocks and START.match(text) else None


def _body(block: Fence) -> str:
    found = ONE_LINE.match(block.body) if block.info == "" else None
    return block.body[found.end() :] if found else block.body


# ------------------------------------------------------------------------------------------------- the reference


def _texts(queries: str | Sequence[str]) -> tuple[str, ...]:
    found = (queries,) if isinstance(queries, str) else tuple(queries or ())
    if not all(isinstance(query, str) and query.strip() for query in found):
        raise BadReferenceError("it must be a query, or a list of queries")
    return found


@functools.lru_cache(256)
def _task(
    golds: tuple[str, ...],
    source: tuple[str, int],
    others: tuple[Any, ...],
    order: str | bool,
    seconds: float,
    max_rows: int,
) -> _Task:
    image = image_of(source)
    images = [image, *(image_of(other) for other in others if other != "auto")]
    reads = [run(image, gold, seconds, max_rows) for gold in golds]
    trees = [parse(gold, schema_of(image)) for gold in golds]
    results: list[Sequence[Expected]] = [
        [expected(one, gold, tree, order, seconds, max_rows) for gold, tree in zip(golds, trees, strict=True)]
        for one in images
    ]
    empty = not any(result.rows for some in results for result in some)
    made = None
    if "auto" in others:
        tables = [table.lower() for result in reads for table, _ in result["reads"]]
        made = suite(image, golds, trees, tables, order, seconds, max_rows)
        images += [instance.image for instance in made.instances]
        results += [instance.expected for instance in made.instances]
    telling = any(_differ(results[0], some) for some in results[1:])
    most = tuple(max(len(result.rows) for result in some) for some in results)
    # What a LIMIT takes of rows that are equal is anybody's choice, and no reason to refuse another one.
    if made and made.instances and any(tree and cuts_between_ties(opened(image), tree) for tree in trees):
        results[0] = [replace(one, open=True) for one in results[0]]
    return _Task(
        images=tuple(images),
        expected=tuple(zip(*results, strict=True)),
        most=most,
        reads=all(result["reads"] for result in reads),
        empty=empty,
        telling=telling,
        suite=made,
    )


def _differ(first: Sequence[Expected], second: Sequence[Expected]) -> bool:
    pairs = list(zip(first, second, strict=True))
    return not any(collections.Counter(a.rows) == collections.Counter(b.rows) for a, b in pairs)
