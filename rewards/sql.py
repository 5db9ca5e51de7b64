"""Queries by what they return: the response's SQL and the reference's are both run on SQLite and the rows compared.

The response's query runs in the sandbox, on a copy of the database in that process's memory: there is no file to
change. Before it come an authorizer that lets through nothing but reading, SQLite's own limits, a CPU deadline and a
cap on rows; the sandbox is for what is left, an error in SQLite's C code or a statement none of these see. The
reference comes from the data, is trusted, and runs here.

Rows are compared here, so nothing the query does can reach the comparison:
    - bags: the order of rows counts only where the reference orders, and rows equal in what it orders by are in no order;
    - columns by content: their names are free, and their order too;
    - integers and text exactly, other numbers within a tolerance; the text '1' is not the number 1;
    - on a second database as well, or a query that spells out the result would be right (test-suite accuracy: Zhong et
      al. 2020, "Semantic Evaluation for Text-to-SQL with Distilled Test Suites").
"""

from __future__ import annotations

import binascii
import collections
import functools
import inspect
import json
import math
import os
import re
import sqlite3
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards._sql_databases import BadReferenceError, Cell, copies, find, image_of, opened, sort_key

MAX_QUERY = 20_000  # characters
MAX_PERTURBED = 16 * 2**20  # bytes; above it no perturbed copy is made
MAX_CHECKS = 2000  # comparisons of partial rows while columns are paired
HEAP_MB = 256  # what SQLite may allocate in the sandbox beyond the database
OUTPUT_KB = 64 * 1024  # six bytes of JSON for a character, at worst, on each of two databases
CLOCK = re.compile(
    r"'now'|\bcurrent_(?:date|time|timestamp)\b|\b(?:date|time|datetime|julianday)\s*\(\s*\)", re.IGNORECASE
)

Row = Sequence[Cell]


@dataclass(frozen=True)
class _Expected:
    """What one reference returns on one database. `group[i]` numbers the rows among which row `i` may stand anywhere."""

    columns: int
    rows: Sequence[Row]
    group: Sequence[int]


@dataclass(frozen=True)
class _Task:
    """The databases, and for each reference what it returns on each of them."""

    images: tuple[bytes, ...]
    expected: tuple[tuple[_Expected, ...], ...]
    reads: bool  # whether every reference reads a table
    telling: bool  # whether a reference returns different rows on different databases


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
    sandbox: str | None = None,
) -> dict[str, Any]:
    """Correct when the response's query returns what the reference, or one of its variants, returns.

    The query is what stands in the last code block marked `sql`, `sqlite` or not at all, or in the last `<sql>` or
    `<answer>`, or else the whole text when it is a query; only what follows `</think>` counts. Reasons of a wrong
    verdict: no_answer, too_long, syntax_error, several_statements, forbidden (anything but reading), runtime_error,
    candidate_timeout, memory, output_limit, too_many_rows (more than any reference returns, where fetching stops),
    constant (reads no table), mismatch, mismatch_perturbed (right on the first database only).

    A reference that fails is unverified, and so is one that returns no rows, or the same on every perturbed database:
    every query that returns none would pass, or one that spells out the rows.

    Args:
        reference: the query, or several of which any may be matched.
        database: a file of SQLite's, a file with a SQL script, or such a script itself.
        variants: more references.
        order: whether the order of rows counts: "auto" where the reference has an ORDER BY of its own, true, false.
        float_tolerance: relative, where one of two numbers is not an integer.
        seconds: CPU time of a query on one database. The sandbox may take twice the sum over the databases, and 1 s
            more, on a busy machine: the verifier's `timeout` must be above that.
        max_rows: a reference that returns more is unverified.
        perturbed: further databases on which the same reference must be matched too. "auto" makes one: the same with
            some of the rows gone, keys and references between tables kept, drawn so that the reference's result
            changes: rows at random, or by the values of a column that the reference reads; none above 16 MB. None: the
            one database only.
        directory: where files named by `database` and `perturbed` are, `name`, `name.sqlite`, `.db`, `.sql` or, as
            Spider has it, `name/name.sqlite`.
        allow_empty: grade references that return no rows as well.
        allow_constant: grade references too whose result is the same on every perturbed database.
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
        empty = not any(result.rows for results in task.expected for result in results)
        if empty and not allow_empty:
            raise BadReferenceError("it returns no rows; allow_empty: true grades it all the same")
        if not (empty or allow_constant or task.telling) and len(task.images) > 1:
            raise BadReferenceError(
                "it returns the same on every perturbed database, so a query that spells this out would pass; "
                "allow_constant: true grades it all the same"
            )
    except BadReferenceError as error:
        return {
            "score": None,
            "reason": "bad_reference",
            "details": {"error": f"the reference cannot be used: {error}"},
        }
    query = extract(response)
    if not query:
        return {"score": 0.0, "reason": "no_answer"}
    reason, message = _judge(query, task, seconds, float_tolerance, sandbox)
    details = {"databases": len(task.images), "telling": task.telling, **({"error": message} if message else {})}
    return {"score": float(not reason), "reason": reason, "extracted": query, "details": details}


verify.check = True  # type: ignore[attr-defined]
verify.programs = True  # type: ignore[attr-defined]


def _judge(query: str, task: _Task, seconds: float, tolerance: float, service: str | None) -> tuple[str, str]:
    """Why the query is wrong, "" when it is right, and SQLite's message if there is one."""
    if len(query) > MAX_QUERY:
        return "too_long", ""
    most = [max(len(results[i].rows) for results in task.expected) for i in range(len(task.images))]
    answers = _sandboxed(query, task.images, seconds, most, service)
    if "error" in answers[-1]:
        return answers[-1]["error"], answers[-1].get("message", "")
    if task.reads and not answers[0]["reads"]:
        return "constant", ""
    first = False
    for results in task.expected:
        same = [
            _same(expected, answer["columns"], answer["rows"], tolerance)
            for expected, answer in zip(results, answers, strict=True)
        ]
        if all(same):
            return "", ""
        first = first or same[0]
    return ("mismatch_perturbed" if first else "mismatch"), ""


# ------------------------------------------------------------------------------------------------ finding the query


FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
START = re.compile(r"(?:\s|--[^\n]*\n|/\*.*?\*/|\()*+(?:select|with|values)\b", re.DOTALL | re.IGNORECASE)


def extract(response: str) -> str | None:
    """The query in a response, None when there is none. A block or tag that is never closed holds none."""
    _, closed, text = response.rpartition("</think>")
    if not closed and "<think>" in response:  # still thinking
        return None
    tag = max(("sql", "answer"), key=lambda name: text.rfind(f"<{name}>"))
    if (start := text.rfind(f"<{tag}>")) >= 0:
        end = text.find(f"</{tag}>", start)
        if end < 0:
            return None
        text = text[start + len(tag) + 2 : end]
    blocks = [block for block in FENCE.finditer(text) if block[1].lower() in ("", "sql", "sqlite")]
    if blocks:
        return blocks[-1][2].strip() if blocks[-1][0].rstrip().endswith("```") else None
    if "```" in text:
        inline = re.fullmatch(r"\s*```(?:sqlite|sql)?\s(.*?)```\s*", text, re.DOTALL | re.IGNORECASE)
        return inline[1].strip() if inline and "```" not in inline[1] else None
    return text.strip() if START.match(text) else None


# ----------------------------------------------------------------------------------------------- running one query
# The functions up to `_program` are also the text of the sandbox's program, so they use nothing but their imports.


def _query(image: bytes, query: str, seconds: float, max_rows: int) -> dict[str, Any]:
    """{"columns", "names", "rows", "reads"}, or {"error": reason, "message"}; `reads`: the tables read, and which columns
    of them, as pairs."""
    connection = opened(image)
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("PRAGMA query_only = ON")
    for limit, value in (
        (sqlite3.SQLITE_LIMIT_LENGTH, 2**20),
        (sqlite3.SQLITE_LIMIT_SQL_LENGTH, 2**17),
        (sqlite3.SQLITE_LIMIT_COLUMN, 500),
        (sqlite3.SQLITE_LIMIT_EXPR_DEPTH, 300),
        (sqlite3.SQLITE_LIMIT_COMPOUND_SELECT, 100),
        (sqlite3.SQLITE_LIMIT_VDBE_OP, 250_000),
        (sqlite3.SQLITE_LIMIT_FUNCTION_ARG, 100),
        (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
        (sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1000),
        (sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH, 1),
        (sqlite3.SQLITE_LIMIT_WORKER_THREADS, 0),
    ):
        connection.setlimit(limit, value)
    actions = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
    # A verdict must not be drawn by lot, and what is not a question to the data is not needed.
    tables = {row[0].lower() for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    denied = {"random", "randomblob", "load_extension", "fts3_tokenizer", "sqlite_log", "sqlite_compileoption_get"}
    reads = set()

    def authorize(action: int, first: str | None, second: str | None, schema: str | None, trigger: str | None) -> int:
        if action not in actions or (action == sqlite3.SQLITE_FUNCTION and str(second).lower() in denied):
            return sqlite3.SQLITE_DENY
        if action == sqlite3.SQLITE_READ and str(first).lower() in tables:  # not a subquery
            reads.add((first, second))
        return sqlite3.SQLITE_OK

    connection.set_authorizer(authorize)
    # CPU time: a machine busy with other things must not make a query wrong.
    deadline = time.thread_time() + seconds
    connection.set_progress_handler(lambda: time.thread_time() > deadline, 1000)
    try:
        cursor = connection.execute(query)
        if cursor.description is None:
            return {"error": "syntax_error", "message": "not a query"}
        rows, size = [], 0
        for row in cursor:
            rows.append(row)
            size += sum(len(cell) for cell in row if isinstance(cell, str | bytes))
            if size > 2**22:
                return {"error": "output_limit", "message": "more than 4 MB of text"}
            if len(rows) > max_rows:
                return {"error": "too_many_rows", "message": f"more than {max_rows} rows"}
    except sqlite3.Warning as error:
        return {"error": "several_statements", "message": str(error)[:300]}
    except MemoryError:
        return {"error": "memory", "message": ""}
    except (sqlite3.Error, ValueError) as error:
        message = str(error)[:300]
        code = getattr(error, "sqlite_errorcode", None)
        if code == sqlite3.SQLITE_INTERRUPT:
            reason = "candidate_timeout"
        elif code == sqlite3.SQLITE_AUTH or "not authorized" in message or "prohibited" in message:
            reason = "forbidden"
        elif code == sqlite3.SQLITE_TOOBIG:
            reason = "output_limit"
        elif "one statement at a time" in message:
            reason = "several_statements"
        elif code is None or "syntax error" in message or "unrecognized token" in message or "incomplete" in message:
            reason = "syntax_error"
        else:
            reason = "runtime_error"
        return {"error": reason, "message": message}
    names = [column[0] for column in cursor.description]
    return {"columns": len(names), "names": names, "rows": rows, "reads": sorted(reads)}


def _program() -> None:
    """On standard input one line of JSON, then the databases; on standard output "ready", then a result a line.

    For a service, which takes text alone, the databases are in the JSON.
    """
    source = sys.stdin.buffer
    task = json.loads(source.readline())
    images = [binascii.a2b_base64(text) for text in task["images"]] or [source.read(size) for size in task["sizes"]]
    sqlite3.connect(":memory:").execute(f"PRAGMA hard_heap_limit = {task['heap']}")
    opened(images[0]).close()
    os.write(1, b"ready\n")
    for image, max_rows in zip(images, task["max_rows"]):  # noqa: B905
        try:
            result = _query(image, task["query"], task["seconds"], max_rows)
            text = json.dumps(result, default=lambda blob: {"hex": blob.hex()})
        except MemoryError:
            result, text = {"error": "memory"}, '{"error": "memory"}'
        sys.stdout.write(text + "\n")
        if "error" in result:
            break
    sys.stdout.flush()


PROGRAM = "\n\n".join(
    [
        "from __future__ import annotations",
        "import binascii, json, os, sqlite3, sys, time",
        *(inspect.getsource(part) for part in (opened, _query, _program)),
        "_program()",
    ]
)


def _sandboxed(
    query: str, images: Sequence[bytes], seconds: float, max_rows: Sequence[int], service: str | None = None
) -> list[dict[str, Any]]:
    """The result on each database, up to the first error.

    Raises:
        SandboxError: the sandbox, or what runs the query in it, failed before the query began.
    """
    # Not needed, and so not there, for who only reads this file or compares rows.
    from rlpost.verify.sandbox import Limits, SandboxError, sandbox

    try:
        query.encode()
    except UnicodeEncodeError:
        return [{"error": "syntax_error", "message": "not Unicode text"}]
    if "\0" in query:
        return [{"error": "syntax_error", "message": "a null character"}]
    size = sum(map(len, images))
    heap = HEAP_MB * 2**20 + 2 * max(map(len, images))
    task = {
        "query": query,
        "sizes": list(map(len, images)),
        "images": [] if service is None else [binascii.b2a_base64(image).decode() for image in images],
        "heap": heap,
        "seconds": seconds,
        "max_rows": list(max_rows),
    }
    limits = Limits(
        # Wall time, for what the CPU deadline cannot interrupt, such as one call of LIKE.
        seconds=seconds * len(images) + 0.5,
        memory_mb=2 * HEAP_MB + (2 * size + heap) // 2**20,
        output_kb=OUTPUT_KB,
    )
    stdin = json.dumps(task).encode() + b"\n" + (b"".join(images) if service is None else b"")
    outcome = sandbox(service).run(PROGRAM, stdin=stdin, limits=limits)
    ready, _, output = outcome.stdout.partition(b"\n")
    if ready != b"ready":
        raise SandboxError(
            f"the program that runs SQL queries did not start: {outcome.status}, exit code {outcome.exit_code}, "
            f"{outcome.stderr[-500:].decode(errors='replace')}"
        )
    if outcome.status != "ok":
        reasons = {"timeout": "candidate_timeout", "memory": "memory", "output": "output_limit"}
        return [
            {"error": reasons.get(outcome.status, "runtime_error"), "message": f"the process ended: {outcome.status}"}
        ]
    try:
        answers = [_result(json.loads(line)) for line in output.splitlines()]
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        answers = []
    # The program writes nothing else by itself, so this is a query that got hold of it.
    whole = len(answers) == len(images) or (answers and "error" in answers[-1])
    return answers if whole else [{"error": "runtime_error", "message": "no result came back"}]


def _result(raw: Mapping[str, Any]) -> dict[str, Any]:
    if "error" in raw:
        return {"error": str(raw["error"]), "message": str(raw.get("message", ""))}
    rows = [[_cell(cell) for cell in row] for row in raw["rows"]]
    columns = int(raw["columns"])
    if any(len(row) != columns for row in rows):
        raise ValueError("rows of different length")
    return {"columns": columns, "rows": rows, "reads": bool(raw["reads"])}


def _cell(cell: Any) -> Cell:
    if isinstance(cell, dict):
        return bytes.fromhex(cell["hex"])
    if isinstance(cell, list | bool) or (isinstance(cell, int) and not -(2**63) <= cell < 2**63):
        raise ValueError("not a value of SQLite's")
    return cell


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
    def run(image: bytes) -> list[_Expected]:
        return [_expected(image, gold, order, seconds, max_rows) for gold in golds]

    image = image_of(source)
    images, results = [image], [run(image)]
    reads = [_query(image, gold, seconds, max_rows)["reads"] for gold in golds]
    for other in others:
        if other != "auto":
            images.append(image_of(other))
            results.append(run(images[-1]))
        elif len(image) <= MAX_PERTURBED:
            best = -1
            for tried in copies(image, [pair for pairs in reads for pair in pairs]):
                ran = run(tried)
                if (told := _told(results[0], ran)) > best:
                    best, chosen = told, (tried, ran)
                if told == 2:
                    break
            images.append(chosen[0])
            results.append(chosen[1])
    return _Task(
        images=tuple(images),
        expected=tuple(zip(*results, strict=True)),
        reads=all(reads),
        telling=any(_told(results[0], result) for result in results[1:]),
    )


def _told(first: Sequence[_Expected], second: Sequence[_Expected]) -> int:
    """How well the second database tells the references from a query that spells out what they return on the first:
    2 when each returns something else there, 1 when some of it is nothing, 0 when one returns the same.

    Nothing: no row, or nothing but NULL, as the maximum of no rows is. Other right queries may return no row instead.
    """
    pairs = list(zip(first, second, strict=True))
    if any(collections.Counter(a.rows) == collections.Counter(b.rows) for a, b in pairs):
        return 0
    return 2 if all(any(cell is not None for row in b.rows for cell in row) for _, b in pairs) else 1


def _expected(image: bytes, gold: str, order: str | bool, seconds: float, max_rows: int) -> _Expected:
    result = _query(image, gold, seconds, max_rows)
    if "error" in result:
        raise BadReferenceError(f"{result['error']}: {result['message']} in {gold[:300]!r}")
    rows = result["rows"]
    clause = _order_by(gold)
    if order is False or (order == "auto" and clause is None):
        return _Expected(result["columns"], rows, [0] * len(rows))
    keys = _sort_keys(image, gold, clause, result, seconds, max_rows) if clause else None
    if keys is None:
        return _Expected(result["columns"], rows, range(len(rows)))
    group = [0] * len(rows)
    for i in range(1, len(rows)):
        group[i] = group[i - 1] + (keys[i] != keys[i - 1])
    return _Expected(result["columns"], rows, group)


@dataclass(frozen=True)
class _OrderBy:
    """The ORDER BY of the outermost SELECT: its terms, and where more columns could be added to that SELECT, if any."""

    terms: tuple[str, ...]
    insert: int | None


WORDS = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?\*/|\w+|[^\w\s]", re.DOTALL)


def _order_by(query: str) -> _OrderBy | None:
    depth = 0
    outer = []  # (word in lower case, start, end) outside of parentheses, text and comments
    for word in WORDS.finditer(query):
        depth += (word[0] == "(") - (word[0] == ")")
        if depth == 0 and not word[0].startswith(("--", "/*")):
            outer.append((word[0].lower(), word.start(), word.end()))
    words = [word for word, _, _ in outer]
    starts = [i for i in range(len(words) - 1) if words[i : i + 2] == ["order", "by"]]
    if not starts:
        return None
    begin = starts[-1] + 2
    end = next((i for i in range(begin, len(words)) if words[i] in ("limit", "offset", ";")), len(words))
    if begin >= end:
        return None
    cuts = [i for i in range(begin, end) if words[i] == ","]
    stop = outer[end][1] if end < len(outer) else len(query)
    edges = [outer[begin - 1][2], *(outer[i][2] for i in cuts)]
    terms = tuple(query[a:b] for a, b in zip(edges, [*(outer[i][1] for i in cuts), stop], strict=True))
    simple = words.count("select") == 1 and not {"distinct", "union", "except", "intersect"} & set(words)
    insert = outer[words.index("from")][1] if simple and "from" in words else None
    return _OrderBy(terms, insert)


def _sort_keys(
    image: bytes, gold: str, clause: _OrderBy, result: Mapping[str, Any], seconds: float, max_rows: int
) -> list[Row] | None:
    """What each row of the reference is ordered by; None when it cannot be told, and then every row has its place."""
    names = [name.lower() for name in result["names"]]
    places: list[int] = []
    added: list[str] = []
    for term in clause.terms:
        bare = re.sub(r"\s+(?:asc|desc)\b|\s+nulls\s+(?:first|last)\b", "", term, flags=re.IGNORECASE).strip()
        if re.search(r"\bcollate\b", bare, re.IGNORECASE):
            return None
        name = bare.strip('"`[]').lower()
        if bare.isdecimal() and 0 < int(bare) <= len(names):
            places.append(int(bare) - 1)
        elif names.count(name) == 1:
            places.append(names.index(name))
        else:
            places.append(len(names) + len(added))
            added.append(f"({bare})")
    rows = result["rows"]
    if added:
        if clause.insert is None:
            return None
        wider = f"{gold[: clause.insert]}, {', '.join(added)} {gold[clause.insert :]}"
        again = _query(image, wider, seconds, max_rows)
        if "error" in again or [row[: len(names)] for row in again["rows"]] != rows:
            return None
        rows = again["rows"]
    return [tuple(row[place] for place in places) for row in rows]


# ----------------------------------------------------------------------------------------------------- comparing


def _same(expected: _Expected, columns: int, rows: Sequence[Row], tolerance: float) -> bool:
    """Whether the rows are the expected ones under some pairing of the columns.

    Columns are paired one after the other: two may be paired when they hold the same values, and when the rows cut to
    the columns paired so far are the same. Trying each permutation would take n! comparisons; here a wrong pairing is
    left at its first column, and rows of `MAX_CHECKS` equally plausible pairings are taken to be different.
    """
    if columns != expected.columns or len(rows) != len(expected.rows):
        return False
    wanted = [_Column(row[i] for row in expected.rows) for i in range(columns)]
    given = [_Column(row[i] for row in rows) for i in range(columns)]
    checks = 0

    @functools.cache
    def snapped(i: int, j: int) -> list[int] | None:
        return wanted[i].snap(given[j], tolerance)

    def pair(i: int, free: frozenset[int], left: list[int], right: list[int]) -> bool:
        nonlocal checks
        if i == columns:
            return True
        for j in sorted(free, key=lambda j: (j != i, j)):
            checks += 1
            if checks > MAX_CHECKS:
                return False
            theirs = snapped(i, j)
            if theirs is None:
                continue
            numbers: dict[tuple[int, int], int] = {}
            longer = [
                [numbers.setdefault(cell, len(numbers)) for cell in zip(before, column, strict=True)]
                for before, column in ((left, wanted[i].classes(tolerance)), (right, theirs))
            ]
            if collections.Counter(longer[0]) == collections.Counter(longer[1]) and pair(i + 1, free - {j}, *longer):
                return True
        return False

    # Where order counts, the place is the first column of both.
    return pair(0, frozenset(range(columns)), list(expected.group), list(expected.group))


class _Column:
    """The values of a column, and the order that sorts them."""

    def __init__(self, values: Any) -> None:
        self.values: list[Cell] = list(values)
        keys = [sort_key(value) for value in self.values]
        self.order = sorted(range(len(keys)), key=keys.__getitem__)
        self._classes: list[int] | None = None

    def classes(self, tolerance: float) -> list[int]:
        """For each row a number that rows of (nearly) the same value share."""
        if self._classes is None:
            self._classes = [0] * len(self.values)
            first, number = None, -1
            for i in self.order:
                if number < 0 or not _close(first, self.values[i], tolerance):
                    first, number = self.values[i], number + 1
                self._classes[i] = number
        return self._classes

    def snap(self, other: _Column, tolerance: float) -> list[int] | None:
        """For each row of `other` the class here of its value; None unless both hold the same values."""
        classes = self.classes(tolerance)
        found = [0] * len(self.values)
        for i, j in zip(self.order, other.order, strict=True):
            if not _close(self.values[i], other.values[j], tolerance):
                return None
            found[j] = classes[i]
        return found


def _close(a: Cell, b: Cell, tolerance: float) -> bool:
    if isinstance(a, float) or isinstance(b, float):
        if not isinstance(a, int | float) or not isinstance(b, int | float):
            return False
        # The absolute part is for sums that cancel.
        return a == b or math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance * 1e-6)
    return type(a) is type(b) and a == b
