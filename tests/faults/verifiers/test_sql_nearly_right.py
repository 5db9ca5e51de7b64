"""Queries that are right on the database at hand and wrong on others, and right ones that must not be taken for those."""

from __future__ import annotations

import pytest

from rewards import sql

AGES = (52, 32, 41, 43, 25, 41, 41, 29)
NAMES = ("Joe", "Tim", "Ada", "Rose", "John", "Bea", "Tracy", "Cleo")
COUNTRIES = ("Netherlands", "United States", "France", "France", "France", "Spain", "France", "Spain")
SINGER = "CREATE TABLE singer (id INTEGER PRIMARY KEY, name TEXT, country TEXT, age INTEGER);" + "".join(
    f"INSERT INTO singer VALUES ({i + 1}, '{NAMES[i]}', '{COUNTRIES[i]}', {AGES[i]});" for i in range(8)
)
# Capacity happens to grow with the order in which rows are stored, and each stadium has one concert.
STADIUM = """
CREATE TABLE stadium (id INTEGER PRIMARY KEY, sname TEXT, city TEXT, cap INTEGER);
CREATE TABLE concert (id INTEGER PRIMARY KEY, stadium_id INTEGER REFERENCES stadium (id), year INTEGER, visitors INTEGER);
INSERT INTO stadium VALUES (1, 'Park', 'Ayr', 1000), (2, 'Oval', 'Ayr', 2000), (3, 'Dome', NULL, 3000),
    (4, 'Bowl', 'Elgin', 4000);
INSERT INTO concert VALUES (1, 1, 2014, 100), (2, 2, 2015, 300), (3, 3, 2015, 200), (4, 4, 2014, 400);
"""


def score(database, answer, reference):
    verdict = sql.verify(f"```sql\n{answer}\n```", reference, database)
    return verdict["score"], verdict["reason"]


OLDER = "SELECT name FROM singer WHERE age > 40"


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("SELECT name FROM singer WHERE id IN (1, 3, 4, 6, 7)", OLDER),
        ("SELECT name FROM singer WHERE id <> 2 AND id <> 5 AND id <> 8", OLDER),
        ("SELECT name FROM singer WHERE name IN ('Joe', 'Ada', 'Rose', 'Bea', 'Tracy')", OLDER),
        ("SELECT name FROM singer WHERE age IN (52, 41, 43)", OLDER),
        ("SELECT name FROM singer WHERE age >= 40", OLDER),
        ("SELECT name FROM singer WHERE age >= 41 AND age < 60", OLDER),
        ("SELECT name FROM singer WHERE age > 39", OLDER),
        ("SELECT name FROM singer WHERE age > 35", OLDER),
        ("SELECT name FROM singer WHERE age > 40 AND id < 100", OLDER),
        ("SELECT name FROM singer WHERE age > 40 LIMIT 5", OLDER),
        ("SELECT name FROM singer WHERE age > 40 LIMIT 10", OLDER),
        ("SELECT DISTINCT name FROM singer WHERE age > 40", OLDER),
        ("SELECT name FROM singer WHERE age > 40 GROUP BY name", OLDER),
        ("SELECT name FROM singer WHERE age > 40 UNION SELECT name FROM singer WHERE age > 40", OLDER),
        ("SELECT count(name) FROM singer", "SELECT count(*) FROM singer"),
        ("SELECT count(DISTINCT name) FROM singer", "SELECT count(*) FROM singer"),
        ("SELECT max(id) FROM singer", "SELECT count(*) FROM singer"),
        ("SELECT count(*) FROM singer WHERE country IN ('France', 'Spain')", "SELECT count(*) FROM singer WHERE age <= 43 AND id > 2"),
        ("SELECT name FROM singer WHERE country = 'France' AND age > 20", "SELECT name FROM singer WHERE country = 'France'"),
        ("SELECT name FROM singer WHERE country LIKE 'F%'", "SELECT name FROM singer WHERE country = 'France'"),
        ("SELECT name FROM singer WHERE lower(country) = 'france'", "SELECT name FROM singer WHERE country = 'France'"),
        ("SELECT name FROM singer WHERE country LIKE 'France'", "SELECT name FROM singer WHERE country = 'France'"),
        ("SELECT name FROM singer WHERE country IS NOT 'France'", "SELECT name FROM singer WHERE country != 'France'"),
        ("SELECT name FROM singer WHERE age BETWEEN 29 AND 41", "SELECT name FROM singer WHERE age BETWEEN 28 AND 42"),
        ("SELECT name FROM singer ORDER BY age DESC LIMIT 1", "SELECT name FROM singer WHERE age > 50"),
        ("SELECT country, max(age) FROM singer GROUP BY country HAVING count(*) > 3", "SELECT country, max(age) FROM singer GROUP BY country HAVING count(*) >= 3"),
    ],
)  # fmt: skip
def test_what_is_right_for_these_singers_only_is_wrong(answer, reference):
    alone = sql.verify(f"```sql\n{answer}\n```", reference, SINGER, perturbed=None)["score"]
    assert score(SINGER, answer, reference)[0] == 0.0, f"right on the one database: {alone}"


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("SELECT sname FROM stadium LIMIT 10", "SELECT sname FROM stadium"),
        ("SELECT sname FROM stadium", "SELECT sname FROM stadium ORDER BY cap"),
        ("SELECT sname FROM stadium ORDER BY id", "SELECT sname FROM stadium ORDER BY cap"),
        ("SELECT sname FROM stadium ORDER BY cap DESC LIMIT 4", "SELECT sname FROM stadium ORDER BY cap DESC"),
        ("SELECT sname FROM stadium WHERE id = 4", "SELECT sname FROM stadium ORDER BY cap DESC LIMIT 1"),
        ("SELECT sname FROM stadium ORDER BY id DESC LIMIT 1", "SELECT sname FROM stadium ORDER BY cap DESC LIMIT 1"),
        ("SELECT sname, visitors FROM stadium s JOIN concert c ON s.id = c.stadium_id", "SELECT sname, sum(visitors) FROM stadium s JOIN concert c ON s.id = c.stadium_id GROUP BY s.id"),
        ("SELECT sname, max(visitors) FROM stadium s JOIN concert c ON s.id = c.stadium_id GROUP BY s.id", "SELECT sname, sum(visitors) FROM stadium s JOIN concert c ON s.id = c.stadium_id GROUP BY s.id"),
        ("SELECT sname FROM stadium s JOIN concert c ON s.id = c.id", "SELECT sname FROM stadium s JOIN concert c ON s.id = c.stadium_id"),
        ("SELECT sname, year FROM stadium s LEFT JOIN concert c ON s.id = c.stadium_id", "SELECT sname, year FROM stadium s JOIN concert c ON s.id = c.stadium_id"),
        ("SELECT count(*) FROM stadium", "SELECT count(*) FROM stadium s JOIN concert c ON s.id = c.stadium_id"),
        ("SELECT count(DISTINCT stadium_id) FROM concert", "SELECT count(*) FROM concert"),
        ("SELECT count(DISTINCT city) FROM stadium", "SELECT count(city) - 1 FROM stadium"),
        ("SELECT sname FROM stadium WHERE id IN (SELECT stadium_id FROM concert)", "SELECT sname FROM stadium"),
        ("SELECT sname FROM stadium WHERE city != 'Ayr' OR city IS NULL", "SELECT sname FROM stadium WHERE id > 2"),
        ("SELECT avg(cap) FROM stadium", "SELECT (max(cap) + min(cap)) / 2.0 FROM stadium"),
    ],
)  # fmt: skip
def test_what_is_right_for_these_stadiums_only_is_wrong(answer, reference):
    assert score(STADIUM, answer, reference)[0] == 0.0


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("SELECT s.name FROM singer AS s WHERE NOT s.age <= 40", OLDER),
        ("SELECT name FROM singer WHERE 40 < age", OLDER),
        ("SELECT name FROM singer WHERE age >= 41", OLDER),
        ("WITH o AS (SELECT id FROM singer WHERE age > 40) SELECT name FROM singer JOIN o USING (id)", OLDER),
        ("SELECT name FROM singer s WHERE EXISTS (SELECT 1 FROM singer t WHERE t.id = s.id AND t.age > 40)", OLDER),
        ("SELECT name FROM singer WHERE country = 'Spain' OR country = 'France'", "SELECT name FROM singer WHERE country IN ('France', 'Spain')"),
        ("SELECT name FROM singer WHERE age >= 29 AND age <= 41", "SELECT name FROM singer WHERE age BETWEEN 29 AND 41"),
        ("SELECT count(id) FROM singer", "SELECT count(*) FROM singer"),
        ("SELECT country FROM singer GROUP BY country", "SELECT DISTINCT country FROM singer"),
        # Which of those of one age is the third is left open; and so is which country of those with as many.
        ("SELECT name FROM singer ORDER BY age DESC, name DESC LIMIT 3", "SELECT name FROM singer ORDER BY age DESC LIMIT 3"),
        ("SELECT country FROM singer GROUP BY country ORDER BY count(*), country DESC LIMIT 1", "SELECT country FROM singer GROUP BY country ORDER BY count(*) LIMIT 1"),
        ("SELECT country FROM singer GROUP BY country ORDER BY max(age)", "SELECT DISTINCT country FROM singer ORDER BY age"),
        ("SELECT country FROM singer GROUP BY country ORDER BY max(age) LIMIT 2", "SELECT DISTINCT country FROM singer ORDER BY age LIMIT 2"),
        ("SELECT name FROM singer ORDER BY age, name DESC", "SELECT name FROM singer ORDER BY age"),
        ("SELECT name FROM singer WHERE age = (SELECT max(age) FROM singer)", "SELECT name FROM singer ORDER BY age DESC LIMIT 1"),
        ("SELECT name FROM singer WHERE age = (SELECT min(age) FROM singer)", "SELECT name FROM singer ORDER BY age LIMIT 1"),
        ("SELECT sum(age) * 1.0 / count(*) FROM singer", "SELECT avg(age) FROM singer"),
    ],
)  # fmt: skip
def test_another_way_to_ask_for_the_same_is_right(answer, reference):
    assert score(SINGER, answer, reference) == (1.0, "")


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        (
            "SELECT sname FROM stadium s WHERE NOT EXISTS (SELECT 1 FROM concert c WHERE c.stadium_id = s.id AND year = 2014)",
            "SELECT sname FROM stadium WHERE id NOT IN (SELECT stadium_id FROM concert WHERE year = 2014)",
        ),
        (
            "SELECT s.sname FROM stadium s LEFT JOIN concert c ON c.stadium_id = s.id AND c.year = 2014 WHERE c.id IS NULL",
            "SELECT sname FROM stadium WHERE id NOT IN (SELECT stadium_id FROM concert WHERE year = 2014)",
        ),
        (
            "SELECT sname FROM stadium WHERE id IN (SELECT stadium_id FROM concert)",
            "SELECT DISTINCT sname FROM stadium s JOIN concert c ON s.id = c.stadium_id",
        ),
        ("SELECT sum(visitors) FROM concert", "SELECT sum(visitors) FROM concert c JOIN stadium s ON s.id = c.stadium_id"),
    ],
)  # fmt: skip
def test_what_joins_and_subqueries_have_in_common_is_right(answer, reference):
    assert score(STADIUM, answer, reference) == (1.0, "")


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("SELECT name FROM a WHERE NOT EXISTS (SELECT 1 FROM b WHERE b.a = a.id)", "SELECT name FROM a WHERE id NOT IN (SELECT a FROM b WHERE a IS NOT NULL)", True),
        ("SELECT name FROM a WHERE id NOT IN (SELECT a FROM b)", "SELECT name FROM a WHERE id NOT IN (SELECT a FROM b WHERE a IS NOT NULL)", False),
        ("SELECT count(a) FROM b", "SELECT count(*) FROM b", False),
        ("SELECT id FROM b WHERE a != 1", "SELECT id FROM b WHERE a IS NOT 1", False),
    ],
)  # fmt: skip
def test_where_the_data_hold_null_it_counts(answer, reference, right):
    database = (
        "CREATE TABLE a (id INTEGER PRIMARY KEY, name TEXT); CREATE TABLE b (id INTEGER PRIMARY KEY, a INTEGER REFERENCES a (id));"
        "INSERT INTO a VALUES (1, 'x'), (2, 'y'), (3, 'z'); INSERT INTO b VALUES (1, 1), (2, NULL), (3, 1);"
    )
    assert score(database, answer, reference)[0] == float(right)


def test_where_a_limit_leaves_open_which_rows_their_number_still_counts():
    reference = "SELECT name FROM singer ORDER BY age DESC LIMIT 3"  # three are 41, and two of them are left out
    for limit, right in ((2, 0.0), (3, 1.0), (4, 0.0)):
        assert score(SINGER, f"SELECT name FROM singer ORDER BY age DESC, id DESC LIMIT {limit}", reference)[0] == right


def test_the_share_of_mutants_told_apart_is_said_and_too_small_a_one_is_the_rows_fault():
    verdict = sql.verify(f"```sql\n{OLDER}\n```", OLDER, SINGER)
    assert verdict["score"] == 1.0
    assert verdict["details"]["measures"]["told_apart"] > 0.9
    reference = "SELECT name FROM singer LIMIT 3"  # whichever three
    verdict = sql.verify("", reference, SINGER, min_told_apart=0.95)
    assert (verdict["score"], verdict["reason"]) == (None, "bad_reference")
    assert "min_told_apart" in verdict["details"]["error"]


@pytest.mark.parametrize(
    ("response", "query"),
    [
        ("```sql\nSELECT 1\n```\nResult:\n```\nJoe\n```", "SELECT 1"),
        ("```sql\nSELECT 1\n```\nResult:\n```\n| name |\n| Joe |\n```", "SELECT 1"),
        ("```sql\nSELECT 1\n```\nwhich is the same as\n```\nSELECT 2\n```", "SELECT 1"),
        ("```postgresql\nSELECT 1\n```", "SELECT 1"),
        ("```mysql\nSELECT 1\n```", "SELECT 1"),
        ("```sqlite3\nSELECT 1\n```", "SELECT 1"),
        ("```SQL\nSELECT 1\n```\n```json\n[1]\n```", "SELECT 1"),
        ("~~~sql\nSELECT 1\n~~~", "SELECT 1"),
        ("````sql\nSELECT 1\n````", "SELECT 1"),
        ("```sql\nSELECT 1;```", "SELECT 1;"),
        ("```\nSELECT 1\n```\nOutput:\n```\n1\n```", "SELECT 1"),
        ("```sql\nSELECT 1\n```\nOutput:\n```sql\nJoe\n```", "SELECT 1"),
        ("```sql\nSELECT 1\n```\n```\nSELECT 2", "SELECT 1"),
        ("```sql\r\nSELECT 1\r\n```\r\n", "SELECT 1"),
        ("<answer>```mysql\nSELECT 1\n```</answer>", "SELECT 1"),
        ("<think>```sql\nSELECT 1\n```</think>```\nJoe\n```", None),
    ],
)
def test_the_answer_is_the_block_that_is_marked_as_a_query(response, query):
    assert sql.extract(response) == query
