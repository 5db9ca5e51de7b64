"""The databases a query is graded on: images in memory, and copies of them that lack some of the rows."""

from __future__ import annotations

import functools
import itertools
import random
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_DATABASE = 256 * 2**20  # bytes; a copy goes to the sandbox for every query
SEEDS = 12  # perturbed copies without rows drawn at random that are tried until one changes the reference's result
PARTS = ("upper", "lower", "drawn", "other")  # of a column's values: above its median, not above it, two drawn halves
MAX_BY_VALUE = 24  # copies without the rows that have such a part of a column's values, which are tried next
SUFFIXES = ("", ".sqlite", ".sqlite3", ".db", ".sql")

Cell = None | int | float | str | bytes


class BadReferenceError(ValueError):
    """The reference or its database cannot be used; the message says why."""


def opened(image: bytes) -> sqlite3.Connection:
    """A database in memory that is a copy of the image."""
    connection = sqlite3.connect(":memory:", isolation_level=None, cached_statements=0)
    connection.deserialize(image)
    connection.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
    return connection


def find(database: str, directory: str) -> tuple[str, int]:
    """A script, or a path, with the file's time of change: what the image is remembered by."""
    if "\n" in database or ";" in database:
        return database, -1
    below = Path(directory, database)
    candidates = [*(below.with_name(below.name + suffix) for suffix in SUFFIXES), below / f"{below.name}.sqlite"]
    for path in candidates:
        if path.is_file():
            return str(path), path.stat().st_mtime_ns
    raise BadReferenceError(f"there is no database {str(below)!r}; verifier sql: set directory to where it is")


@functools.lru_cache(32)
def image_of(source: tuple[str, int]) -> bytes:
    """The database as bytes, as SQLite's file format has them."""
    text, changed = source
    memory = sqlite3.connect(":memory:")
    try:
        if changed >= 0:
            path = Path(text)
            with path.open("rb") as file:
                is_database = file.read(16) == b"SQLite format 3\0"
            if path.stat().st_size > MAX_DATABASE:
                raise BadReferenceError(f"database {text!r} is larger than {MAX_DATABASE} bytes")
            if is_database:
                # Immutable: no lock, no file beside it. A write-ahead log that is there has to be read, though.
                immutable = 0 if path.with_name(path.name + "-wal").exists() else 1
                on_disk = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable={immutable}", uri=True)
                on_disk.backup(memory)
                on_disk.close()
            else:
                memory.executescript(path.read_text(encoding="utf-8"))
        else:
            memory.executescript(text)
        memory.commit()
        image = bytearray(memory.serialize())
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise BadReferenceError(f"database {text[:200]!r}: {error}") from error
    finally:
        memory.close()
    image[18:20] = b"\1\1"  # not in WAL mode, in which a database cannot be in memory
    return bytes(image)


def copies(image: bytes, reads: Sequence[tuple[str, str]]) -> Iterator[bytes]:
    """Perturbed copies in the order in which they are tried, for queries that read these columns."""
    for seed in range(SEEDS):
        yield perturbed(image, seed)
    # Of values that occur often some are left whichever rows are drawn, and so is what is asked of them: how many there
    # are, which, or the largest.
    connection = opened(image)
    repeated = {
        (table, values.name): values.distinct
        for table in _layout(image)[0]
        if any(table == other for other, _ in reads)
        for values in _values(connection, table)
        if len(values.distinct) > 1 and not values.unique
    }
    chosen = [pair for pair in dict.fromkeys(reads) if pair in repeated]
    by_value = ((table, name, part) for part in PARTS for table, name in chosen)
    for table, name, part in itertools.islice(by_value, MAX_BY_VALUE):
        gone = _part(repeated[table, name], part)
        rows = connection.execute(f"SELECT rowid, {_quoted(name)} FROM {_quoted(table)}").fetchall()
        yield _smaller(image, {table: [row for row, value in rows if value in gone]})


def _part(values: frozenset[Cell], part: str) -> frozenset[Cell]:
    """Half of the values; never all of them."""
    ordered = sorted(values, key=sort_key)
    if part in ("drawn", "other"):
        random.Random(0).shuffle(ordered)
    middle = len(ordered) // 2
    return frozenset(ordered[middle:] if part in ("upper", "other") else ordered[:middle])


@functools.lru_cache(8)
def _layout(image: bytes) -> tuple[list[str], list[tuple[str, str, str, str]]]:
    """The tables from which rows can be taken, and the references between them."""
    connection = opened(image)
    tables = [
        name
        for name, text in connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'").fetchall()
        if not name.startswith("sqlite_") and not re.search(r"\bvirtual\b|without\s+rowid", text, re.IGNORECASE)
    ]
    return tables, _references(connection, tables)


@functools.lru_cache(64)
def perturbed(image: bytes, seed: int) -> bytes:
    """The database without some of the rows, drawn, of some of its tables."""
    connection = opened(image)
    # The last two are the halves of one draw: whatever single row the reference is about, one of them lacks it.
    halves = seed >= SEEDS - 2
    draw = random.Random(0 if halves else seed + 1)
    share = (0.3, 0.15, 0.0)[seed % 3]  # small tables that refer to each other are soon empty
    gone: dict[str, list[int]] = {}
    for table in _layout(image)[0]:
        ids = [row[0] for row in connection.execute(f"SELECT rowid FROM {_quoted(table)}").fetchall()]
        if halves:
            draw.shuffle(ids)
            gone[table] = ids[seed % 2 :: 2]
        elif len(ids) > 1 and draw.random() < 0.6:
            gone[table] = draw.sample(ids, max(1, int(len(ids) * share)))
    return _smaller(image, gone)


def _smaller(image: bytes, gone: Mapping[str, Sequence[int]]) -> bytes:
    """The database without these rows of these tables, and without every row that referred to one of them.

    Taking rows away keeps keys, checks and whatever else holds for every row; following references keeps joins as they
    were. So a query that is right by the rules of the data is right here too.
    """
    connection = opened(image)
    connection.execute("BEGIN")
    for table, ids in gone.items():
        connection.executemany(f"DELETE FROM {_quoted(table)} WHERE rowid = ?", [(i,) for i in ids])
    deleted = 1
    while deleted:
        deleted = 0
        for table, column, parent, key in _layout(image)[1]:
            deleted += connection.execute(
                f"DELETE FROM {_quoted(table)} WHERE {_quoted(column)} IS NOT NULL AND {_quoted(column)} NOT IN "
                f"(SELECT {_quoted(key)} FROM {_quoted(parent)} WHERE {_quoted(key)} IS NOT NULL)"
            ).rowcount
    connection.execute("COMMIT")
    smaller = connection.serialize()
    connection.close()
    return smaller


def _references(connection: sqlite3.Connection, tables: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """(table, column, table, column) of every foreign key, declared or, for few declare them, seen in the data.

    Seen: all values of the first occur in the second, which has no value twice, and they are text, or the name of one
    column ends with that of the other.
    """
    declared: list[tuple[str, str, str, str]] = []
    columns: list[tuple[str, _Values]] = []
    for table in tables:
        columns += [(table, values) for values in _values(connection, table)]
        for row in connection.execute(f"PRAGMA foreign_key_list({_quoted(table)})").fetchall():
            if row[2] in tables and row[4]:
                declared.append((table, row[3], row[2], row[4]))
    seen = [
        (table, values.name, parent, keys.name)
        for table, values in columns
        for parent, keys in columns
        if parent != table and keys.unique and values.distinct and values.distinct <= keys.distinct
        if values.text
        or values.name.lower().endswith(keys.name.lower())
        or keys.name.lower().endswith(values.name.lower())
    ]
    return list(dict.fromkeys([*declared, *seen]))


@dataclass(frozen=True)
class _Values:
    """What a column holds besides NULL: its values, whether none of them occurs twice, and whether all are text."""

    name: str
    distinct: frozenset[Cell]
    unique: bool
    text: bool


def _values(connection: sqlite3.Connection, table: str) -> list[_Values]:
    rows = connection.execute(f"SELECT * FROM {_quoted(table)}")
    names = [column[0] for column in rows.description]
    found = []
    # An empty table has no columns here: nothing refers to it, and it refers to nothing.
    for name, column in zip(names, zip(*rows.fetchall(), strict=True), strict=False):
        values = [value for value in column if value is not None]
        distinct = frozenset(values)
        text = all(isinstance(value, str) for value in distinct)
        found.append(_Values(name, distinct, len(distinct) == len(values), text))
    return found


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def sort_key(value: Cell) -> tuple[int, Any]:
    if value is None:
        return 0, 0
    return (1 if isinstance(value, int | float) else 2 if isinstance(value, str) else 3), value
