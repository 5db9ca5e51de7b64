"""Queries made to hang, to flood, to write or to fool: each is wrong, and the next honest one is right."""

from __future__ import annotations

import os
import random
import sqlite3
import sys

import pytest

from rewards import sql
from tests.faults.descriptors import more_than, settled

ROWS = 300


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    path = tmp_path_factory.mktemp("sql") / "data.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, amount REAL)")
    connection.executemany("INSERT INTO t VALUES (?, ?, ?)", [(i, f"name {i}", i / 7) for i in range(ROWS)])
    connection.execute("CREATE TABLE secret (answer TEXT)")
    connection.execute("INSERT INTO secret VALUES ('x')")
    connection.commit()
    connection.close()
    return path


def score(database, query, reference="SELECT name FROM t"):
    verdict = sql.verify(f"```sql\n{query}\n```", reference, database=str(database), seconds=0.5)
    return verdict["score"], verdict["reason"]


def cross(n):
    return ", ".join(f"t AS t{i}" for i in range(n))


HOSTILE = {
    "a recursion without end": (
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT COUNT(*) FROM c, t",
        {"candidate_timeout"},
    ),
    "a recursion that keeps all its rows": (
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION SELECT x + 1 FROM c) SELECT MAX(x) FROM c, t",
        {"candidate_timeout", "memory"},
    ),
    "a product of tables": (f"SELECT COUNT(*) FROM {cross(7)}", {"candidate_timeout"}),
    "a product of tables, sorted": (
        f"SELECT t0.name FROM {cross(5)} ORDER BY t0.name || t1.name || t2.name",
        {"candidate_timeout", "memory"},
    ),
    "rows without end": ("SELECT t0.name FROM " + cross(6), {"too_many_rows"}),
    "one call that takes minutes": (
        "SELECT length(replace(printf('%.*c', 1000000, 'a'), printf('%.*c', 500000, 'a') || 'b', '')), name FROM t",
        {"candidate_timeout"},
    ),
    "a pattern that takes long": (f"SELECT printf('%.*c', 9999, 'a') LIKE '{'%a' * 40}%b' FROM t", {"mismatch"}),
    "a huge value": ("SELECT zeroblob(2000000000) FROM t", {"output_limit"}),
    "a value that doubles": (
        "WITH RECURSIVE c(x) AS (SELECT 'ab' UNION ALL SELECT x || x FROM c) SELECT MAX(LENGTH(x)) FROM c, t",
        {"output_limit"},
    ),
    "many large values": ("SELECT printf('%.*c', 1000000, 'a') FROM t", {"output_limit", "memory"}),
    "one aggregate of all": (
        "SELECT group_concat(a.name || b.name || c.name) FROM t a, t b, t c",
        {"output_limit", "candidate_timeout", "memory"},
    ),
    "attach": ("ATTACH DATABASE '/tmp/x.sqlite' AS x", {"forbidden"}),
    "attach in memory": ("ATTACH DATABASE ':memory:' AS x", {"forbidden"}),
    "pragma": ("PRAGMA writable_schema = ON", {"forbidden"}),
    "a pragma that changes what LIKE means": ("PRAGMA case_sensitive_like = ON", {"forbidden"}),
    "a pragma that lets write": ("PRAGMA query_only = OFF", {"forbidden"}),
    "a pragma that lifts the limit on memory": ("PRAGMA hard_heap_limit = 0", {"forbidden"}),
    "a pragma as a table": ("SELECT * FROM pragma_database_list", {"forbidden"}),
    "drop": ("DROP TABLE t", {"forbidden"}),
    "delete": ("DELETE FROM t", {"forbidden"}),
    "insert behind a common table expression": ("WITH c AS (SELECT 1) INSERT INTO t (id) SELECT 9999", {"forbidden"}),
    "update with returning": ("UPDATE t SET name = 'x' RETURNING name", {"forbidden"}),
    "a temporary table": ("CREATE TEMP TABLE x AS SELECT 1", {"forbidden"}),
    "a temporary view by the name of a table": ("CREATE TEMP VIEW t AS SELECT 1 AS name", {"forbidden"}),
    "a trigger": ("CREATE TEMP TRIGGER x AFTER INSERT ON t BEGIN SELECT 1; END", {"forbidden"}),
    "the schema": ("UPDATE sqlite_master SET sql = 'x'", {"forbidden", "runtime_error"}),
    "statistics": ("ANALYZE", {"forbidden"}),
    "an index made anew": ("REINDEX", {"forbidden", "syntax_error"}),
    "detach": ("DETACH DATABASE main", {"forbidden"}),
    "a virtual table": ("CREATE VIRTUAL TABLE x USING fts5(y)", {"forbidden"}),
    "vacuum into a file": ("VACUUM INTO '/tmp/x.sqlite'", {"forbidden"}),
    "a transaction": ("BEGIN EXCLUSIVE", {"forbidden"}),
    "a savepoint": ("SAVEPOINT x", {"forbidden"}),
    "loading a library": ("SELECT load_extension('/lib/x.so') FROM t", {"forbidden", "runtime_error"}),
    "reading a file": ("SELECT readfile('/etc/passwd') FROM t", {"runtime_error"}),
    "a pointer as a tokenizer": ("SELECT fts3_tokenizer('simple', x'4141414141414141') FROM t", {"forbidden", "runtime_error"}),
    "chance": ("SELECT name FROM t ORDER BY random()", {"forbidden"}),
    "two statements": ("SELECT name FROM t; DROP TABLE t", {"several_statements"}),
    "parentheses": ("SELECT " + "(" * 5000 + "1" + ")" * 5000, {"syntax_error", "runtime_error", "memory"}),
    "terms": ("SELECT " + "+".join(["1"] * 5000) + " FROM t", {"runtime_error", "syntax_error"}),
    "unions": (" UNION ALL ".join(["SELECT name FROM t"] * 200), {"runtime_error", "syntax_error"}),
    "columns": ("SELECT " + ", ".join(["1"] * 3000) + " FROM t", {"runtime_error", "syntax_error"}),
    "a long query": ("SELECT name FROM t -- " + "x" * 1_000_000, {"too_long"}),
    "a null character": ("SELECT name\0 FROM t", {"syntax_error"}),
    "half a character": ("SELECT '\ud800' FROM t", {"syntax_error"}),
    "a name from the schema": ("SELECT sql FROM sqlite_master, t", {"mismatch", "too_many_rows"}),
    "how it would be run": ("EXPLAIN SELECT name FROM t", {"mismatch", "too_many_rows"}),
    "other text for SQLite": (".shell id", {"syntax_error"}),
    "a parameter": ("SELECT ?1 FROM t", {"syntax_error", "runtime_error", "mismatch"}),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_query_is_wrong_and_leaves_nothing_behind(database, name):
    query, reasons = HOSTILE[name]
    before = database.read_bytes(), sorted(os.listdir(database.parent))
    got, reason = score(database, query)
    assert got == 0.0
    assert reason in reasons
    assert (database.read_bytes(), sorted(os.listdir(database.parent))) == before
    assert score(database, "SELECT name FROM t") == (1.0, "")


def test_honest_verdicts_between_hostile_ones_are_what_they_are_alone(database):
    honest = {
        "SELECT name FROM t WHERE name LIKE 'NAME 1%'": (1.0, ""),
        "SELECT name FROM t WHERE name LIKE 'name 2%'": (0.0, "mismatch"),
        "SELECT name FROM t WHERE NOT name NOT LIKE 'name 1%' ORDER BY id DESC": (1.0, ""),
    }
    reference, draw = "SELECT name FROM t WHERE name LIKE 'name 1%'", random.Random(0)
    slow = {name for name, (_, reasons) in HOSTILE.items() if reasons & {"candidate_timeout", "memory"}}
    for name in draw.choices(sorted(set(HOSTILE) - slow), k=60):
        assert score(database, HOSTILE[name][0])[0] == 0.0, name
        query = draw.choice(sorted(honest))
        assert score(database, query, reference) == honest[query], (name, query)


@pytest.mark.parametrize(
    ("cheat", "reference"),
    [
        (f"SELECT {ROWS}", "SELECT COUNT(*) FROM t"),
        (f"SELECT {ROWS} FROM secret", "SELECT COUNT(*) FROM t"),
        (f"SELECT {ROWS} FROM t LIMIT 1", "SELECT COUNT(*) FROM t"),
        (f"SELECT MAX(id) + 1 FROM t WHERE id = {ROWS - 1} OR id >= 0", "SELECT COUNT(*) FROM t"),
        ("SELECT 'name 3' FROM t WHERE id = 0", "SELECT name FROM t WHERE id = 3"),
        ("SELECT 1 WHERE 0", "SELECT name FROM t"),
        ("SELECT NULL FROM t", "SELECT name FROM t"),
        ("SELECT DISTINCT 1e999 FROM t", "SELECT SUM(amount) FROM t"),
        ("SELECT 1e999 - 1e999 FROM t LIMIT 1", "SELECT SUM(amount) FROM t"),
        ("SELECT * FROM t UNION SELECT * FROM t", "SELECT name FROM t"),
        ("SELECT name FROM t UNION ALL SELECT name FROM t", "SELECT name FROM t"),
        ("SELECT CAST(name AS BLOB) FROM t", "SELECT name FROM t"),
        ("SELECT upper(name) FROM t", "SELECT name FROM t"),
        ("SELECT DISTINCT name FROM t LIMIT 299", "SELECT name FROM t"),
    ],
)
def test_a_cheat_scores_nothing(database, cheat, reference):
    assert score(database, cheat, reference)[0] == 0.0
    assert score(database, reference, reference) == (1.0, "")


def test_the_process_that_grades_holds_no_file_or_process_more_after_many_queries(database):
    score(database, "SELECT name FROM t")
    before = settled()
    for _ in range(20):
        assert score(database, "SELECT nope FROM t") == (0.0, "runtime_error")
    assert not more_than(before)


def test_output_that_is_no_result_is_wrong_and_no_output_at_all_is_the_sandboxs_fault(database, monkeypatch):
    import rlpost.verify.sandbox as sandboxes

    def returns(stdout, status="ok"):
        class Stub:
            def __init__(self, url=None):
                assert url is None

            def run(self, *_, **__):
                return sandboxes.Outcome(status, 0, stdout, b"", 0.0)

        monkeypatch.setattr(sandboxes, "sandbox", Stub)
        return score(database, "SELECT name FROM t")

    deep = b"[" * 100_000
    huge = b'{"columns": 1, "rows": [[' + b"9" * 4000 + b']], "reads": true}'
    for forged in (
        b"",
        b"{}",
        b"[]",
        deep,
        b'{"rows": 1}',
        b"1" * 5000,
        b'{"columns": 1, "rows": [[[1]]], "reads": true}',
        b'{"columns": 1e999, "rows": [], "reads": true}',
        huge,
    ):
        assert returns(b"ready\n" + forged) == (0.0, "runtime_error")
    assert returns(b"ready\n", "timeout") == (0.0, "candidate_timeout")
    assert returns(b"ready\n", "killed") == (0.0, "runtime_error")
    assert returns(b"ready\n", "output") == (0.0, "output_limit")
    for early in (b"", b"Traceback"):
        with pytest.raises(sandboxes.SandboxError, match="did not start"):
            returns(early, "nonzero")


def test_a_megabyte_of_anything_finishes(database):
    for text in ("```", "```sql\n", "<answer>", "(", "-- \n", "/*", " ", "\0", "SELECT ", "'", "\ud800"):
        response = text * (2**20 // len(text))
        assert sql.verify(response, "SELECT name FROM t", database=str(database))["score"] == 0.0


def test_references_by_deep_or_strange_text_do_not_end_the_process(database):
    for reference in (
        "(" * 100_000,
        "SELECT '\0'",
        "SELECT '\ud800'",
        "SELECT " + "x" * 10**6,
        "ORDER BY",
        "SELECT 1 ORDER BY",
    ):
        verdict = sql.verify("SELECT name FROM t", reference, database=str(database))
        assert (verdict["score"], verdict["reason"]) == (None, "bad_reference")
    assert sys.getrecursionlimit() < 10_000
