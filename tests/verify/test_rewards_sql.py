from __future__ import annotations

import functools
import itertools
import json
import math
import os
import sqlite3
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import sql
from rewards._sql_databases import find, image_of, image_with, opened, schema_of
from rewards._sql_instances import Instances
from rewards._sql_reading import asked, parse
from rewards._sql_rows import Expected, close
from rewards._sql_rows import same as same_rows

SAMPLE = Path(__file__).parents[1] / "data" / "sql_sample"
QUESTIONS = [json.loads(line) for line in (SAMPLE / "questions.jsonl").read_text().splitlines()]
SHOP = """
CREATE TABLE customer (id INTEGER PRIMARY KEY, name TEXT NOT NULL, city TEXT);
CREATE TABLE purchase (id INTEGER PRIMARY KEY, customer_id INTEGER NOT NULL REFERENCES customer (id), amount REAL, day TEXT);
INSERT INTO customer VALUES (1, 'Ada', 'Bonn'), (2, 'Bo', 'Bonn'), (3, 'Cy', 'Ulm'), (4, 'Di', NULL), (5, 'Ed', 'Ulm');
INSERT INTO purchase VALUES (1, 1, 10.0, 'Mon'), (2, 1, 20.5, 'Tue'), (3, 2, 10.0, 'Mon'), (4, 3, 7.25, 'Wed'),
    (5, 5, 20.5, 'Mon'), (6, 5, 1.0, 'Tue');
"""


def score(answer, reference, **parameters):
    verdict = sql.verify(f"```sql\n{answer}\n```", reference, **{"database": SHOP, **parameters})
    return verdict["score"], verdict["reason"]


# ------------------------------------------------------------------------------------------------------------- sample


@pytest.mark.parametrize("database", ["academic", "geography", "restaurants"])
def test_every_reference_of_the_sample_is_right_in_any_form_that_means_the_same(database):
    for question in QUESTIONS:
        if question["db"] != database:
            continue
        for query in question["gold_sql"]:
            for form in (query, f"SELECT * FROM ({query})", f"{query} ;", f"-- so\n{query}"):
                verdict = sql.verify(form, question["gold_sql"], database=database, directory=str(SAMPLE))
                assert verdict["score"] == 1.0, (question["id"], form, verdict)


def test_spelling_out_what_the_reference_returns_is_wrong():
    caught = 0
    for question in QUESTIONS:
        references = question["gold_sql"]
        connection = sqlite3.connect(":memory:")
        connection.executescript((SAMPLE / f"{question['db']}.sql").read_text())
        rows = connection.execute(references[0]).fetchall()
        table = connection.execute("SELECT name FROM sqlite_master").fetchone()[0]
        if not rows:
            continue
        literal = " UNION ALL ".join(f"SELECT {', '.join(map(quoted, row))}" for row in rows)
        verdict = sql.verify(literal, references, database=question["db"], directory=str(SAMPLE))
        assert verdict["score"] == 0.0, question["id"]
        assert verdict["reason"] in ("constant", "too_many_rows"), question["id"]
        literal = f"SELECT * FROM ({literal}) WHERE (SELECT COUNT(*) FROM {table}) >= 0"
        verdict = sql.verify(literal, references, database=question["db"], directory=str(SAMPLE))
        assert verdict["details"]["telling"] == (verdict["score"] == 0.0), (question["id"], verdict)
        caught += verdict["score"] == 0.0
    assert caught >= 27


def quoted(cell):
    return "NULL" if cell is None else f"'{cell}'" if isinstance(cell, str) else repr(cell)


# ---------------------------------------------------------------------------------------------------------- comparing


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("SELECT name FROM customer ORDER BY name DESC", "SELECT name FROM customer"),
        ("SELECT city, name FROM customer", "SELECT name, city FROM customer"),
        ("SELECT name AS n, id + 0 AS x FROM customer", "SELECT id, name FROM customer"),
        ("SELECT COUNT(1) FROM purchase", "SELECT COUNT(*) FROM purchase"),
        ("SELECT SUM(amount) * 1.0000001 FROM purchase", "SELECT SUM(amount) FROM purchase"),
        ("SELECT SUM(amount) / COUNT(id) FROM purchase", "SELECT AVG(amount) FROM purchase"),
        (
            "SELECT name FROM customer WHERE id IN (SELECT customer_id FROM purchase WHERE day = 'Mon')",
            "SELECT DISTINCT name FROM customer JOIN purchase ON customer.id = customer_id WHERE day = 'Mon'",
        ),
        ("WITH p AS (SELECT * FROM purchase) SELECT MAX(amount) FROM p", "SELECT MAX(amount) FROM purchase"),
        # Every purchase has a customer: on the perturbed database too.
        ("SELECT COUNT(*) FROM purchase", "SELECT COUNT(*) FROM purchase JOIN customer ON customer.id = customer_id"),
        ("SELECT COUNT(DISTINCT id) FROM customer", "SELECT COUNT(*) FROM customer"),
    ],
)
def test_a_query_that_returns_the_same_is_right(answer, reference):
    assert score(answer, reference) == (1.0, "")


@pytest.mark.parametrize(
    ("answer", "reference", "reason"),
    [
        ("SELECT DISTINCT city FROM customer", "SELECT city FROM customer", "mismatch"),
        ("SELECT name FROM customer", "SELECT name, city FROM customer", "mismatch"),
        ("SELECT CAST(id AS TEXT) FROM customer", "SELECT id FROM customer", "mismatch"),
        ("SELECT COALESCE(city, '') FROM customer", "SELECT city FROM customer", "mismatch"),
        ("SELECT id + 1000001 FROM customer", "SELECT id + 1000000 FROM customer", "mismatch"),
        ("SELECT SUM(amount) * 1.001 FROM purchase", "SELECT SUM(amount) FROM purchase", "mismatch"),
        ("SELECT name FROM customer, purchase", "SELECT name FROM customer", "too_many_rows"),
        ("SELECT 6 FROM customer LIMIT 1", "SELECT COUNT(*) FROM purchase", "mismatch_perturbed"),
        ("SELECT SUM(amount) / 6 FROM purchase", "SELECT AVG(amount) FROM purchase", "mismatch_perturbed"),
        ("SELECT 6", "SELECT COUNT(*) FROM purchase", "constant"),
        ("VALUES (6)", "SELECT COUNT(*) FROM purchase", "constant"),
        ("SELECT random() FROM customer", "SELECT id FROM customer", "forbidden"),
        ("SELECT nope FROM customer", "SELECT id FROM customer", "runtime_error"),
        ("SELEC id FROM customer", "SELECT id FROM customer", "syntax_error"),
        ("SELECT id FROM", "SELECT id FROM customer", "syntax_error"),
        ("SELECT id FROM customer; SELECT 1", "SELECT id FROM customer", "several_statements"),
        ("-- nothing", "SELECT id FROM customer", "syntax_error"),
    ],
)
def test_a_query_that_returns_something_else_is_wrong_and_says_why(answer, reference, reason):
    assert score(answer, reference) == (0.0, reason)


def test_any_variant_may_be_matched_but_the_same_one_on_every_database():
    reference, variant = "SELECT COUNT(*) FROM customer", "SELECT COUNT(*), 'customers' FROM customer"
    assert score(variant, reference)[0] == 0.0
    assert score(variant, reference, variants=[variant])[0] == 1.0
    assert score(variant, [reference, variant])[0] == 1.0
    # 5 customers and 6 purchases: right by the second reference on one database, by the first on the other.
    other = SHOP + "DELETE FROM purchase WHERE id = 6; INSERT INTO customer VALUES (6, 'Fe', 'Ulm');"
    switching = "SELECT CASE COUNT(*) WHEN 5 THEN 6 ELSE 6 END FROM customer"
    golds = ["SELECT COUNT(*) FROM purchase", "SELECT COUNT(*) FROM customer"]
    assert score(switching, golds, perturbed=None)[0] == 1.0
    assert score(switching, golds, perturbed=other) == (0.0, "mismatch_perturbed")


SINGERS = "CREATE TABLE singer (id INTEGER PRIMARY KEY, country TEXT, age INTEGER, score INTEGER);" + "".join(
    f"INSERT INTO singer VALUES ({i}, '{('France', 'Italy', 'Peru')[i % 3]}', {20 + i % 5}, {i % 4});"
    for i in range(90)
)
LISTED = "SELECT column1 FROM (VALUES ('France'), ('Italy'), ('Peru')), (SELECT 1 FROM singer LIMIT 1)"


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("SELECT 3 FROM singer LIMIT 1", "SELECT count(DISTINCT country) FROM singer"),
        ("SELECT 24 FROM singer LIMIT 1", "SELECT max(age) FROM singer"),
        ("SELECT 20 FROM singer LIMIT 1", "SELECT min(age) FROM singer"),
        ("SELECT 24 FROM singer LIMIT 1", "SELECT max(age) FROM singer WHERE country = 'Peru'"),
        (LISTED, "SELECT DISTINCT country FROM singer"),
        (LISTED, "SELECT country FROM singer GROUP BY country"),
    ],
)
def test_a_result_that_any_few_rows_give_is_not_to_be_spelled_out_either(answer, reference):
    assert score(answer, reference, database=SINGERS, perturbed=None) == (1.0, "")
    assert score(answer, reference, database=SINGERS)[0] == 0.0
    assert score(reference, reference, database=SINGERS) == (1.0, "")


def test_right_queries_that_differ_where_there_is_no_row_are_not_compared_there():
    best = "SELECT max(score) FROM singer WHERE age > 22"
    first = "SELECT score FROM singer WHERE age > 22 ORDER BY score DESC LIMIT 1"
    assert score(first, best, database=SINGERS) == (1.0, "")


def test_a_reference_that_no_database_changes_is_named_unless_it_is_to_be_graded():
    reference = "SELECT count(*) > 0 FROM singer"
    verdict = sql.verify("", reference, SINGERS)
    assert (verdict["score"], verdict["reason"]) == (None, "bad_reference")
    assert "allow_constant: true" in verdict["details"]["error"]
    assert score(reference, reference, database=SINGERS, allow_constant=True, min_told_apart=0) == (1.0, "")
    assert score(reference, reference, database=SINGERS, perturbed=None) == (1.0, "")


# -------------------------------------------------------------------------------------------------------------- order


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("SELECT name FROM customer ORDER BY id", "SELECT name FROM customer ORDER BY name", True),
        ("SELECT name FROM customer ORDER BY id DESC", "SELECT name FROM customer ORDER BY name", False),
        # Ada and Ed have spent most on one purchase: between the two there is no order.
        (
            "SELECT name FROM customer JOIN purchase ON customer.id = customer_id ORDER BY amount DESC, name DESC",
            "SELECT name FROM customer JOIN purchase ON customer.id = customer_id ORDER BY amount DESC",
            True,
        ),
        (
            "SELECT name FROM customer JOIN purchase ON customer.id = customer_id ORDER BY amount, name",
            "SELECT name FROM customer JOIN purchase ON customer.id = customer_id ORDER BY amount DESC",
            False,
        ),
        (
            "SELECT city, COUNT(*) FROM customer GROUP BY city ORDER BY 2 DESC, 1 DESC",
            "SELECT city, COUNT(*) AS n FROM customer GROUP BY city ORDER BY n DESC",
            True,
        ),
        (
            "SELECT COUNT(*), city FROM customer GROUP BY city ORDER BY COUNT(*)",
            "SELECT city, COUNT(*) AS n FROM customer GROUP BY city ORDER BY n DESC",
            False,
        ),
        # An ORDER BY inside is none of the result.
        ("SELECT id FROM customer ORDER BY id DESC", "SELECT id FROM (SELECT id FROM customer ORDER BY id)", True),
        ("SELECT id FROM customer ORDER BY id DESC", "SELECT id FROM customer WHERE name <> 'a order by b'", True),
    ],
)
def test_order_counts_where_the_reference_orders_and_only_as_far(answer, reference, right):
    assert score(answer, reference, perturbed=None)[0] == float(right)


def test_order_can_be_asked_for_or_left_out():
    up, down = "SELECT id FROM customer ORDER BY id", "SELECT id FROM customer ORDER BY id DESC"
    assert score(down, up)[0] == 0.0
    assert score(down, up, order=False)[0] == 1.0
    assert score(down, "SELECT id FROM customer", order=True)[0] == 0.0
    with pytest.raises(ValueError, match="order is 'rows'"):
        score(down, up, order="rows")


# --------------------------------------------------------------------------------------------------- finding the query


@pytest.mark.parametrize(
    ("response", "query"),
    [
        ("SELECT 1", "SELECT 1"),
        ("  -- so\n(SELECT 1)", "-- so\n(SELECT 1)"),
        ("I think\n```sql\nSELECT 1;\n```\nThat is it.", "SELECT 1;"),
        ("```sql\nSELECT 1\n```\nno, better:\n```SQLite\nSELECT 2\n```", "SELECT 2"),
        ("```\nSELECT 1\n```\n```python\nprint(1)\n```", "SELECT 1"),
        ("```sql SELECT 1```", "SELECT 1"),
        ("<answer>SELECT 1</answer>", "SELECT 1"),
        ("<sql>\n```sql\nSELECT 1\n```\n</sql> as asked", "SELECT 1"),
        ("<think>```sql\nSELECT 1\n```</think>SELECT 2", "SELECT 2"),
        ("<think>```sql\nSELECT 1\n```", None),
        ("```sql\nSELECT 1", None),
        ("```sql\nSELECT 1\n```\n```sql\nSELECT 2", None),
        ("<answer>SELECT 1", None),
        ("The query is SELECT 1", None),
        ("", None),
    ],
)
def test_the_query_is_the_last_one_given_as_an_answer(response, query):
    assert sql.extract(response) == query


# --------------------------------------------------------------------------------------------- references, databases


@pytest.mark.parametrize(
    ("reference", "parameters", "error"),
    [
        ("SELECT nope FROM customer", {}, "no such column"),
        ("SELECT id FROM customer WHERE id > 9", {}, "no rows"),
        ("SELECT id FROM customer", {"max_rows": 3}, "more than 3 rows"),
        ("DROP TABLE customer", {}, "forbidden"),
        ("", {}, "must be a query"),
        (None, {}, "there is none"),
        ("SELECT 1", {"database": "nowhere"}, "no database"),
        ("SELECT 1", {"database": "CREATE TABEL x;"}, "syntax error"),
        ("SELECT 1", {"perturbed": "nowhere"}, "no database"),
    ],
)
def test_what_the_reference_does_wrong_is_never_the_responses_fault(reference, parameters, error):
    verdict = sql.verify("SELECT id FROM customer", reference, **{"database": SHOP, **parameters})
    assert (verdict["score"], verdict["reason"]) == (None, "bad_reference")
    assert error in verdict["details"]["error"]


def test_a_reference_without_rows_can_be_graded_when_asked():
    reference = "SELECT id FROM customer WHERE id > 9"
    assert score("SELECT id FROM customer WHERE id >= 10", reference, allow_empty=True)[0] == 1.0
    assert score("SELECT id FROM customer WHERE id > 10", reference, allow_empty=True)[0] == 0.0
    assert score("SELECT id FROM customer", reference, allow_empty=True)[0] == 0.0


def test_a_database_is_a_script_a_file_of_one_or_a_file_of_sqlites(tmp_path):
    (tmp_path / "script.sql").write_text(SHOP)
    for name, journal in (("plain.db", "delete"), ("wal.sqlite", "wal")):
        connection = sqlite3.connect(tmp_path / name)
        connection.execute(f"PRAGMA journal_mode = {journal}")
        connection.executescript(SHOP)
        connection.close()
    (tmp_path / "spider").mkdir()
    (tmp_path / "spider" / "spider.sqlite").write_bytes((tmp_path / "plain.db").read_bytes())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for name in ("script", "script.sql", "plain", "wal", "spider"):
        assert score("SELECT name FROM customer", "SELECT name FROM customer", database=name, directory=str(tmp_path))[
            0
        ]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_file_that_changes_is_read_again(tmp_path):
    path = tmp_path / "shop.sql"
    path.write_text(SHOP)
    cheat = "SELECT 5 FROM customer LIMIT 1"
    assert score(cheat, "SELECT COUNT(*) FROM customer", database=str(path), perturbed=None)[0] == 1.0
    path.write_text(SHOP + "DELETE FROM customer WHERE id = 4;")
    later = path.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(later, later))
    assert score(cheat, "SELECT COUNT(*) FROM customer", database=str(path), perturbed=None)[0] == 0.0


@pytest.mark.parametrize("seed", range(12))
def test_an_instance_keeps_keys_references_and_what_must_not_be_null(seed):
    schema = schema_of(image_of(find(SHOP, "")))
    query = parse("SELECT name FROM customer JOIN purchase ON customer.id = customer_id WHERE amount > 10", schema)
    instances = Instances(schema, asked([query], schema, ["customer", "purchase"]), ["customer", "purchase"])
    rows = instances.rows(seed)
    assert rows == instances.rows(seed)
    customers, purchases = rows["customer"], rows["purchase"]
    for some in (customers, purchases):
        assert len({row[0] for row in some}) == len(some)
    assert {row[1] for row in purchases} <= {row[0] for row in customers}
    assert all(row[1] is not None for row in customers)
    stored = opened(image_with(schema, rows)).execute("SELECT * FROM customer").fetchall()
    assert stored == customers


@pytest.mark.parametrize(
    "value", [{"float_tolerance": math.nan}, {"float_tolerance": -1}, {"seconds": 0}, {"max_rows": 0}]
)
def test_a_parameter_out_of_its_range_is_refused(value):
    with pytest.raises(ValueError, match=next(iter(value))):
        score("SELECT 1", "SELECT 1", **value)


# ---------------------------------------------------------------------------------------- the comparison by itself

CELLS = st.one_of(
    st.none(), st.integers(-3, 3), st.sampled_from(["", "a", "1"]), st.sampled_from([0.5, 1.0]), st.just(b"a")
)


@st.composite
def tables(draw):
    columns = draw(st.integers(1, 4))
    return draw(st.lists(st.tuples(*[CELLS] * columns), max_size=6)), columns


def same(left, right, columns, ordered=False, tolerance=1e-6):
    group = range(len(left)) if ordered else [0] * len(left)
    return same_rows(Expected(columns, left, group), columns, right, tolerance)


@settings(deadline=None, max_examples=150)
@given(tables(), st.randoms(use_true_random=False))
def test_rows_and_columns_may_change_places(table, draw):
    rows, columns = table
    places = draw.sample(range(columns), columns)
    moved = [tuple(row[i] for i in places) for row in rows]
    assert same(rows, moved, columns, ordered=True)
    draw.shuffle(moved)
    assert same(rows, moved, columns)


def exact(cell):
    """Cells of equal value alike, and of different kinds apart."""
    return ("number", cell) if isinstance(cell, int | float) else (type(cell).__name__, cell)


@settings(deadline=None, max_examples=150)
@given(tables(), st.data())
def test_it_agrees_with_trying_every_permutation(table, data):
    rows, columns = table
    other = [list(row) for row in rows]
    for _ in range(data.draw(st.integers(0, 2)) if rows else 0):
        i, j = data.draw(st.integers(0, len(rows) - 1)), data.draw(st.integers(0, len(rows) - 1))
        k = data.draw(st.integers(0, columns - 1))
        other[i][k], other[j][k] = other[j][k], other[i][k]
    left = Counter(tuple(map(exact, row)) for row in rows)
    permuted = (
        Counter(tuple(exact(row[i]) for i in p) for row in other) for p in itertools.permutations(range(columns))
    )
    assert same(rows, other, columns) == any(right == left for right in permuted)
    assert same(rows, other, columns) == same(other, rows, columns)


def test_forty_columns_that_look_alike_are_paired_without_trying_their_permutations():
    rows = [tuple((i + j) % 40 for j in range(40)) for i in range(40)]
    assert same(rows, [row[::-1] for row in rows], 40)
    worse = [list(row) for row in rows]
    worse[0][0], worse[1][0] = worse[1][0], worse[0][0]
    assert not same(rows, worse, 40)


def test_numbers_are_compared_with_a_tolerance_unless_both_are_integers():
    near = functools.partial(close, tolerance=1e-6)
    assert near(1.0, 1)
    assert near(0.1 + 0.2, 0.3)
    assert near(1e-17, 0)
    assert near(math.inf, math.inf)
    assert not near(391871, 391872)
    assert not near(10**17 + 1, 10**17)
    assert not near(1, 1.0001)
    assert not near("1", 1)
    assert not near(None, 0)
    assert not near(b"a", "a")
    assert not near(math.inf, 1e308)
