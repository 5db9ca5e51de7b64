"""Running one query on SQLite: a reference here, a response's in the sandbox."""

from __future__ import annotations

import binascii
import inspect
import io
import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

from rewards._sql_databases import Cell

HEAP_MB = 256  # what SQLite may allocate in the sandbox beyond the database
OUTPUT_KB = 64 * 1024  # six bytes of JSON for a character, at worst, on each database

# The functions up to `_rehearsed` are also the text of the sandbox's program, so they use nothing but their imports.


def _limited() -> sqlite3.Connection:
    """A connection without data, under SQLite's own limits."""
    connection = sqlite3.connect(":memory:", isolation_level=None, cached_statements=0)
    connection.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
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
    return connection


def run(
    image: bytes, query: str, seconds: float, max_rows: int, on: sqlite3.Connection | None = None
) -> dict[str, Any]:
    """{"columns", "names", "rows", "reads"}, or {"error": reason, "message"}; `reads`: tables read, and which columns
    of them, as pairs. `on`: a connection of `_limited`, whose data the image replaces; after an error it is of no use."""
    connection = on or _limited()
    connection.deserialize(image)
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
    finally:  # they are asked about what `deserialize` does, too
        connection.set_authorizer(None)
        connection.set_progress_handler(None, 0)
    names = [column[0] for column in cursor.description]
    return {"columns": len(names), "names": names, "rows": rows, "reads": sorted(reads)}


def _answer(connection: sqlite3.Connection, source: BinaryIO, sink: BinaryIO) -> None:
    """From the source one line of JSON, then the databases; to the sink "ready", then a result a line.

    For a service, which takes text alone, the databases are in the JSON.
    """
    task = json.loads(source.readline())
    images = [binascii.a2b_base64(text) for text in task["images"]] or [source.read(size) for size in task["sizes"]]
    connection.execute(f"PRAGMA hard_heap_limit = {task['heap']}")
    connection.deserialize(images[0])
    sink.write(b"ready\n")
    sink.flush()
    for image, max_rows in zip(images, task["max_rows"]):  # noqa: B905
        try:
            result = run(image, task["query"], task["seconds"], max_rows, connection)
            text = json.dumps(result, default=lambda blob: {"hex": blob.hex()})
        except MemoryError:
            result, text = {"error": "memory"}, '{"error": "memory"}'
        sink.write(text.encode() + b"\n")
        if "error" in result:
            break
    sink.flush()


def _rehearsed() -> sqlite3.Connection:
    """A connection for `_answer`, after some requests: what SQLite and the interpreter make and learn at first is there
    before the fork that has the query, which would have to do it anew each time."""
    other = sqlite3.connect(":memory:")
    other.execute("CREATE TABLE t AS SELECT 1 AS x, 'a' AS y, 0.5 AS z")
    image = other.serialize()
    query = (
        "SELECT x, y, z FROM t AS a JOIN (SELECT max(x) AS m FROM t GROUP BY y) ON x = m WHERE y LIKE '%a' ORDER BY z"
    )
    task = {"query": query, "sizes": [len(image)] * 2, "images": [], "heap": 0, "seconds": 1, "max_rows": [1, 1]}
    connection = _limited()
    for _ in range(16):
        _answer(connection, io.BytesIO(json.dumps(task).encode() + b"\n" + image * 2), io.BytesIO())
    return connection


PROGRAM = "\n\n".join(
    [
        "from __future__ import annotations",
        "import binascii, io, json, sqlite3, sys, time",
        *(inspect.getsource(part) for part in (_limited, run, _answer, _rehearsed)),
        "connection = _rehearsed()",
        "def main():\n    _answer(connection, sys.stdin.buffer, sys.stdout.buffer)",
    ]
)


def run_sandboxed(
    query: str, images: Sequence[bytes], seconds: float, max_rows: Sequence[int], service: str | None = None
) -> list[dict[str, Any]]:
    """The result on each database, up to the first error.

    Raises:
        SandboxError: the sandbox, or what runs the query in it, failed before the query began.
    """
    # Not needed, and so not there, for who only reads this file or compares rows.
    from rlpost.verify.sandbox import Limits, Sandbox, SandboxError, sandbox

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
    # This machine's own sandbox loads it once; a service, each time.
    place = sandbox(service)
    if isinstance(place, Sandbox):
        outcome = place.ask(PROGRAM, stdin, limits=limits)
    else:
        outcome = place.run(f"{PROGRAM}\n\nmain()\n", stdin=stdin, limits=limits)
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
