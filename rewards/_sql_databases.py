"""The databases a query is graded on, as images in memory, and what is known of their tables."""

from __future__ import annotations

import functools
import re
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_DATABASE = 256 * 2**20  # bytes; a copy goes to the sandbox for every query
MAX_ROWS = 2000  # of a table that are looked at for its values
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
    """The database as bytes, as SQLite's file format has them.

    Raises:
        BadReferenceError: it cannot be read, or is too large.
    """
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


# ------------------------------------------------------------------------------------------------------ the tables


@dataclass(frozen=True)
class Column:
    """A column, and the values that it holds besides NULL, each once."""

    name: str
    type: str
    nullable: bool
    has_null: bool
    values: tuple[Cell, ...]
    unique: bool  # none of them occurs twice


@dataclass(frozen=True)
class Table:
    """A table; `keys` are the places of columns whose values together occur once."""

    name: str
    columns: tuple[Column, ...]
    keys: tuple[tuple[int, ...], ...]
    rows: tuple[tuple[Cell, ...], ...]
    script: str  # what creates it

    def place(self, column: str) -> int | None:
        return next((i for i, other in enumerate(self.columns) if other.name.lower() == column.lower()), None)


@dataclass(frozen=True)
class Link:
    """A foreign key: the values in these columns of `table` are in those of `parent`."""

    table: str
    columns: tuple[int, ...]
    parent: str
    keys: tuple[int, ...]


@dataclass(frozen=True)
class Schema:
    """The tables by their names in lower case, the foreign keys between them, and what else the database is made of."""

    tables: Mapping[str, Table]
    links: tuple[Link, ...]
    views: tuple[str, ...]


@functools.lru_cache(16)
def schema_of(image: bytes) -> Schema:
    connection = opened(image)
    objects = connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
    tables = {}
    for kind, name, script in objects:
        # What belongs to a virtual table is no table of its own, and neither can be filled as others are.
        virtual = re.search(r"^\s*create\s+virtual\b", script or "", re.IGNORECASE)
        if kind == "table" and not name.startswith("sqlite_") and not virtual:
            tables[name.lower()] = _table(connection, name, script)
    links = _links(connection, tables)
    return Schema(tables, links, tuple(script for kind, _, script in objects if kind == "view"))


def _table(connection: sqlite3.Connection, name: str, script: str) -> Table:
    # Hidden: generated columns, which nobody fills.
    described = [row for row in connection.execute(f"PRAGMA table_xinfo({quoted(name)})").fetchall() if row[6] == 0]
    names = ", ".join(quoted(row[1]) for row in described)
    # Text that is none in UTF-8 can be read, but not be written again.
    connection.text_factory = lambda text: text.decode("utf-8", "replace")
    rows = connection.execute(f"SELECT {names} FROM {quoted(name)} LIMIT {MAX_ROWS}").fetchall()
    columns = []
    for i, (_, column, declared, required, _, primary, _) in enumerate(described):
        held = [row[i] for row in rows if row[i] is not None]
        distinct = tuple(dict.fromkeys(held))
        nullable = not required and not primary
        columns.append(
            Column(column, declared, nullable, len(held) < len(rows), distinct, len(distinct) == len(held) > 0)
        )
    places = {row[1]: i for i, row in enumerate(described)}
    primary_key = tuple(places[row[1]] for row in sorted(described, key=lambda row: row[5]) if row[5])
    keys = [primary_key] if primary_key else []
    for _, index, unique, _, partial in connection.execute(f"PRAGMA index_list({quoted(name)})").fetchall():
        indexed = [row[2] for row in connection.execute(f"PRAGMA index_info({quoted(index)})").fetchall()]
        if unique and not partial and all(column in places for column in indexed):
            keys.append(tuple(places[column] for column in indexed))
    # Many declare no key; then it is the first column, when that looks like one.
    if not keys and len(rows) > 1 and columns and columns[0].unique and not columns[0].has_null:
        keys.append((0,))
    return Table(name, tuple(columns), tuple(dict.fromkeys(keys)), tuple(rows), script)


def _links(connection: sqlite3.Connection, tables: Mapping[str, Table]) -> tuple[Link, ...]:
    """Every foreign key, declared or, for few declare them, seen in the data.

    Seen: all values of a column that is no key occur in another table's key, and they are text, or the names say so. Of
    several such keys it is the one whose name, with its table's, is most of the column's.
    """
    links = []
    for table in tables.values():
        declared: dict[int, list[tuple[Any, ...]]] = {}
        for row in connection.execute(f"PRAGMA foreign_key_list({quoted(table.name)})").fetchall():
            declared.setdefault(row[0], []).append(row)
        for rows in declared.values():
            parent = tables.get(rows[0][2].lower())
            if parent is None:
                continue
            columns = [table.place(row[3]) for row in rows]
            keys = [parent.place(row[4]) for row in rows] if rows[0][4] else list(parent.keys[0] if parent.keys else ())
            if None not in columns and None not in keys and len(columns) == len(keys):
                links.append(Link(table.name.lower(), tuple(columns), parent.name.lower(), tuple(keys)))  # type: ignore[arg-type]
    taken = {(link.table, i) for link in links for i in link.columns}
    for table in tables.values():
        for i, column in enumerate(table.columns):
            if (table.name.lower(), i) not in taken and column.values and (i,) not in table.keys:
                fitting = [
                    (_likeness(column.name, parent, key.name), parent.name.lower(), j)
                    for parent in tables.values()
                    for j, key in enumerate(parent.columns)
                    if parent is not table and (j,) in parent.keys and _refers(column, parent, key)
                ]
                if fitting:
                    _, name, j = max(fitting, key=lambda fit: fit[0])
                    links.append(Link(table.name.lower(), (i,), name, (j,)))
    return tuple(links)


def _refers(column: Column, parent: Table, key: Column) -> bool:
    name, other = column.name.lower(), key.name.lower()
    if not set(column.values) <= set(key.values):
        return False
    if all(isinstance(value, str) for value in column.values):
        return True
    # Numbers of rows are alike in all tables, so it is for the names to say whose they are.
    if name == other or len(other) > 3:
        return name != "id" and (name.endswith(other) or other.endswith(name))
    return name.endswith(other) and _names(parent, name)


def _names(table: Table, column: str) -> bool:
    return any(part in column for part in (table.name.lower(), table.name.lower()[:-1]) if part)


def _likeness(column: str, parent: Table, key: str) -> int:
    return (column.lower() == key.lower()) + 2 * _names(parent, column.lower())


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def sort_key(value: Cell) -> tuple[int, Any]:
    if value is None:
        return 0, 0
    return (1 if isinstance(value, int | float) else 2 if isinstance(value, str) else 3), value


def image_with(schema: Schema, rows: Mapping[str, Sequence[Sequence[Cell]]]) -> bytes:
    """The image of a database of this schema that holds these rows, in their order.

    Tables are made without their keys where SQLite lets them be: the rows keep them already, and no index or row
    number of SQLite's puts them in an order that nobody asked for.
    """
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("PRAGMA page_size = 512")
    connection.execute("BEGIN")
    for name, table in schema.tables.items():
        ordinary = not re.search(r"\bcollate\b|\bgenerated\b|\bas\s*\(|\bstrict\b", table.script, re.IGNORECASE)
        columns = ", ".join(f"{quoted(column.name)} {column.type}" for column in table.columns)
        try:
            connection.execute(f"CREATE TABLE {quoted(table.name)} ({columns})" if ordinary else table.script)
        except sqlite3.Error:  # a type that is no type
            connection.execute(table.script)
        if rows.get(name):
            names = ", ".join(quoted(column.name) for column in table.columns)
            places = ", ".join("?" * len(table.columns))
            connection.executemany(
                f"INSERT OR IGNORE INTO {quoted(table.name)} ({names}) VALUES ({places})", rows[name]
            )
    for view in schema.views:
        connection.execute(view)
    connection.execute("COMMIT")
    image = connection.serialize()
    connection.close()
    return image
