"""The databases of `verifiers_sql.py`, and random ones of the same schema on which two queries are told apart."""

from __future__ import annotations

import collections
import json
import random
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STEPS = 400  # thousands of SQLite's, for a query on a random database


@dataclass
class Database:
    name: str
    schema: str  # what creates the tables
    tables: dict[str, list[str]]  # names of the columns
    keys: dict[str, list[str]]
    foreign: list[tuple[str, str, str, str]]
    script: str
    references: list[str] = field(default_factory=list)


# -------------------------------------------------------------------------------------------------------- the data


def databases(folder: Path) -> Iterator[Database]:
    questions: dict[str, list[str]] = collections.defaultdict(list)
    for line in (folder / "defog_sqlite.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        questions[row["db"]].append(row["gold_sql"][0])
    for name, references in sorted(questions.items()):
        script = (folder / "databases" / f"{name}.sql").read_text(encoding="utf-8")
        connection = sqlite3.connect(":memory:")
        connection.executescript(script)
        schema = ";\n".join(row[0] for row in connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL"))
        tables = {
            row[0]: [c[1] for c in connection.execute(f'PRAGMA table_info("{row[0]}")')]
            for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        }
        yield Database(name, schema, tables, {}, [], script, references)
    questions.clear()
    for line in (folder / "spider_dev_questions.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        questions[row["db"]].append(row["gold_sql"])
    schemas = json.loads((folder / "spider_dev_schemas.json").read_text(encoding="utf-8"))
    for name, references in sorted(questions.items()):
        yield made_up(name, schemas[name], list(dict.fromkeys(references)))


def made_up(name: str, schema: str, references: list[str]) -> Database:
    """A database of Spider's with rows of our own."""
    draw = random.Random(name)
    schema = re.sub(r"(?m)^( +)(?!CONSTRAINT |PRIMARY )([^\s`]+) ", r"\1`\2` ", schema)
    schema = re.sub(r"CREATE TABLE `?sqlite_sequence`? \(.*?\n\);", "", schema, flags=re.DOTALL)
    tables: dict[str, list[str]] = {}
    examples: dict[tuple[str, str], list[Any]] = {}
    keys: dict[str, list[str]] = {}
    foreign = []
    for table, body in re.findall(r"CREATE TABLE `?([^`(]+?)`? \(\n(.*?)\n\);", schema, re.DOTALL):
        tables[table] = []
        for line in body.splitlines():
            if found := re.match(
                r"\s+CONSTRAINT \S+ FOREIGN KEY \(`?(.+?)`?\) REFERENCES `?(.+?)`? \(`?(.+?)`?\)", line
            ):
                foreign.append((table, found[1], found[2], found[3]))
            elif found := re.match(r"\s+PRIMARY KEY \((.+)\)", line):
                keys[table] = [part.strip(" `") for part in found[1].split(",")]
            elif found := re.match(r"\s+`?(.+?)`? (\w+),?(?: --.*?(?:example: (\[.*\]))?)?$", line):
                tables[table].append(found[1])
                held = re.findall(r"'([^']*)'|\"([^\"]*)\"|(-?[\d.]+)", found[3] or "")
                examples[table, found[1]] = [
                    a or b or (float(c) if "." in c else int(c)) for a, b, c in held if a or b or c.strip(".")
                ]
    constants = constants_of(" ".join(references))
    rows: dict[str, list[list[Any]]] = {}
    pending = list(tables)
    while pending:
        ready = [t for t in pending if all(p not in pending or p == t for c, _, p, _ in foreign if c == t)]
        table = (ready or pending)[0]
        pending.remove(table)
        rows[table] = []
        for i in range(draw.randint(12, 30)):
            row = []
            for column in tables[table]:
                parent = next(((p, k) for t, c, p, k in foreign if (t, c) == (table, column)), None)
                held = examples[table, column]
                if parent and rows.get(parent[0]):
                    row.append(draw.choice(rows[parent[0]])[tables[parent[0]].index(parent[1])])
                elif column in keys.get(table, ()):
                    number = all(isinstance(value, int | float) for value in held)
                    row.append(i + 1 if number else f"{held[i % len(held)]}{i // len(held) or ''}")
                elif held and isinstance(held[0], int | float):
                    near = [c for c in constants if isinstance(c, int | float)]
                    low, high = min(held), max(held)
                    row.append(draw.choice([*held, draw.randint(int(low), int(high) + 20), *near[:12]]))
                else:
                    near = [c for c in constants if isinstance(c, str) and "%" not in c]
                    row.append(draw.choice([*held, *near[:25], f"{column} {draw.randint(1, 9)}"]))
                if draw.random() < 0.04 and column not in keys.get(table, ()) and not parent:
                    row[-1] = None
            rows[table].append(row)
    # Keys that foreign keys were written into may occur twice.
    lines = [schema]
    for table, some in rows.items():
        lines += [f"INSERT OR IGNORE INTO `{table}` VALUES ({', '.join(map(literal, row))});" for row in some]
    return Database(name, schema, tables, keys, foreign, "\n".join(lines), references)


def literal(value: Any) -> str:
    if value is None:
        return "NULL"
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)


def constants_of(query: str) -> list[Any]:
    found = [a or b for a, b in re.findall(r"'([^']*)'|\"([^\"]*)\"", query)]
    bare = re.sub(r"'[^']*'|\"[^\"]*\"", " ", query)
    return [*found, *(float(n) if "." in n else int(n) for n in re.findall(r"(?<![\w.])\d+(?:\.\d+)?", bare))]


# -------------------------------------------------------------------------------------------------- random databases


class Sampler:
    """Random databases of one schema, for two queries that are to be told apart."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.base = sqlite3.connect(":memory:")
        self.base.executescript(database.script)
        self.held: dict[tuple[str, str], list[Any]] = {}
        self.rows: dict[str, list[tuple[Any, ...]]] = {}
        for table, columns in database.tables.items():
            self.rows[table] = self.base.execute(f'SELECT * FROM "{table}"').fetchall()
            for i, column in enumerate(columns):
                self.held[table, column] = [row[i] for row in self.rows[table]]

    def databases(self, seed: int, used: str) -> tuple[sqlite3.Connection, sqlite3.Connection]:
        """One in two copies, the rows of the second in reverse. `used`: the queries' text, for their constants."""
        draw = random.Random(seed)
        constants = constants_of(used)
        near = [n + d for n in constants if isinstance(n, int | float) for d in (-1, 0, 1)]
        texts = [t.strip("%") for t in constants if isinstance(t, str)]
        named = {word.lower() for word in re.findall(r"\w+", used)}
        chance, fresh = draw.choice((0.05, 0.3, 0.6)), draw.choice((0.0, 0.3, 0.8))
        rows: dict[str, list[tuple[Any, ...]]] = {}
        pending = [table for table in self.database.tables]
        while pending:
            foreign = self.database.foreign
            ready = [t for t in pending if all(p not in pending or p == t for c, _, p, _ in foreign if c == t)]
            table = (ready or pending)[0]
            pending.remove(table)
            if table.lower() not in named and not any(p == table for _, _, p, _ in foreign):
                continue
            rows[table] = [
                tuple(self._cell(draw, table, column, rows, near, texts, chance, fresh, row[i] if row else None)
                      for i, column in enumerate(self.database.tables[table]))
                for row in (draw.choice(self.rows[table]) if self.rows[table] else None
                            for _ in range(draw.choice((1, 3, 6, 10, 16, 25))))
            ]  # fmt: skip
            # Columns without a value twice keep to it, as keys and names do.
            for i, column in enumerate(self.database.tables[table]):
                held = self.held[table, column]
                if held and len(set(held)) == len(held):
                    rows[table] = list({row[i]: row for row in rows[table]}.values())
        first, second = sqlite3.connect(":memory:"), sqlite3.connect(":memory:")
        for connection in (first, second):
            connection.executescript(self.database.schema)
        for table, some in rows.items():
            insert = f'INSERT OR IGNORE INTO "{table}" VALUES ({", ".join("?" * len(self.database.tables[table]))})'
            first.executemany(insert, some)
            stored = first.execute(f'SELECT * FROM "{table}"').fetchall()
            second.executemany(insert, stored[::-1])
        return first, second

    def _cell(
        self,
        draw: random.Random,
        table: str,
        column: str,
        rows: dict[str, list[tuple[Any, ...]]],
        near: list[float],
        texts: list[str],
        chance: float,
        fresh: float,
        own: Any,
    ) -> Any:
        parent = next(((p, k) for t, c, p, k in self.database.foreign if (t, c) == (table, column)), None)
        if parent and rows.get(parent[0]):
            return draw.choice(rows[parent[0]])[self.database.tables[parent[0]].index(parent[1])]
        held = self.held[table, column]
        key = column in self.database.keys.get(table, ())
        if held and isinstance(held[0], int | float):
            if key:
                return draw.choice((draw.randint(1, 40), own))
            if near and draw.random() < chance:
                return draw.choice(near)
            if draw.random() < fresh:
                numbers = [value for value in held if isinstance(value, int | float)]
                return draw.randint(int(min(numbers)) - 3, int(max(numbers)) + 30)
        elif texts and not key and draw.random() < chance:
            return draw.choice(texts)
        return draw.choice(held) if held and draw.random() < 0.7 else own


def returned(connection: sqlite3.Connection, query: str) -> list[tuple[Any, ...]] | None:
    left = [STEPS]

    def tick() -> bool:
        left[0] -= 1
        return left[0] < 0

    connection.set_progress_handler(tick, 1000)
    try:
        return connection.execute(query).fetchmany(3000)
    except sqlite3.Error:
        return None


def alike(a: list[tuple[Any, ...]], b: list[tuple[Any, ...]], ordered: bool) -> bool:
    def plain(rows: list[tuple[Any, ...]]) -> list[str]:
        shown = [repr([f"{c:.6g}" if isinstance(c, float | int) else c for c in row]) for row in rows]
        return shown if ordered else sorted(shown)

    return plain(a) == plain(b)


def different(sampler: Sampler, reference: str, other: str, samples: int) -> bool:
    """Whether the queries return something else on a database where neither hangs on the order of rows."""
    ordered = bool(re.search(r"\border\s+by\b(?!.*\))", reference, re.IGNORECASE | re.DOTALL))
    for seed in range(samples):
        first, second = sampler.databases(seed, f"{reference} {other}")
        results = [returned(c, q) for c in (first, second) for q in (reference, other)]
        if any(result is None for result in results):
            continue
        a, b, c, d = (result or [] for result in results)
        if not any(cell is not None for row in a for cell in row):
            continue
        if alike(a, c, ordered) and not alike(a, b, ordered) and not alike(c, d, ordered):
            return True
    return False


def references(folder: Path, count: int) -> list[tuple[Sampler, str]]:
    """References that return something, from each database in turn."""
    queues = []
    for database in databases(folder):
        sampler = Sampler(database)
        random.Random(0).shuffle(database.references)
        usable = [
            q for q in database.references if any(c is not None for row in returned(sampler.base, q) or () for c in row)
        ]
        queues.append([(sampler, query) for query in usable])
    chosen = []
    while len(chosen) < count and any(queues):
        for queue in queues:
            if queue and len(chosen) < count:
                chosen.append(queue.pop())
    return chosen


def readable(reference: str, sampler: Sampler) -> str:
    """With "text" that names no column as 'text', as SQLite takes it."""
    columns = {column.lower() for some in sampler.database.tables.values() for column in some}
    return re.sub(r'"([^"]*)"', lambda m: m[0] if m[1].lower() in columns else literal(m[1]), reference)
