"""Databases with other rows: drawn so that the conditions of a reference are met, just missed, and met one at a time.

A row keeps what the schema says of it: keys occur once, foreign keys refer to a row, NULL is where it may be. All else
is drawn anew: from what the column holds, from the constants that the reference compares it with and their neighbours,
and from near them. Few different values make duplicates and ties, many make none; each instance has its own share.
"""

from __future__ import annotations

import datetime
import random
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rewards._sql_databases import Cell, Column, Link, Schema, Table
from rewards._sql_reading import Asked, Place, related

MAX_VALUES = 40  # of a column's own that are drawn from
MAX_TABLE_ROWS = 40
SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24)
DATE = re.compile(r"(\d{4})-(\d{2})-(\d{2})(.*)", re.DOTALL)

Rows = dict[str, list[tuple[Cell, ...]]]


@dataclass(frozen=True)
class _Pool:
    """What a column's cells are drawn from; `hits[i]` and `misses[i]` are what meets the i-th condition, and does not."""

    usual: tuple[Cell, ...]
    special: tuple[Cell, ...]
    hits: tuple[tuple[Cell, ...], ...]
    misses: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class _Style:
    """How one instance is drawn."""

    rows: int
    few: int  # different values of a column; 0: as many as there are
    null: float
    hit: float
    skew: float  # how unevenly rows refer to those of another table
    apart: bool  # numbers that seldom occur twice


class Instances:
    """Instances for references that read these tables, each by its number."""

    def __init__(self, schema: Schema, asked: Asked, tables: Sequence[str]) -> None:
        self.schema, self.asked = schema, asked
        self.order = _parents_first(schema, tables)
        self._made: Rows = {}
        self.links = [link for link in schema.links if link.table in self.order]
        pairs = [((a.table, i), (a.parent, j)) for a in self.links for i, j in zip(a.columns, a.keys, strict=True)]
        self.alike = related(dict.fromkeys(self.order), [*asked.alike, *pairs])
        self.pools = {
            (name, i): self._pool((name, i)) for name in self.order for i in range(len(schema.tables[name].columns))
        }

    def rows(self, seed: int) -> Rows:
        draw = random.Random(seed)
        style = _Style(
            rows=draw.choice(SIZES),
            few=draw.choice((0, 0, 2, 3, 5)),
            null=draw.choice((0.0, 0.0, 0.1, 0.3)),
            hit=draw.choice((0.3, 0.6, 0.8, 0.95)),
            skew=draw.choice((0.0, 1.0, 2.0)),
            apart=draw.random() < 0.5,
        )
        made: Rows = {}
        self._made = made
        for name in self.order:
            made[name] = self._table(draw, style, name, made)
        self._drop_strays(made)
        for rows in made.values():
            draw.shuffle(rows)
        return made

    # -- what is drawn from

    def _pool(self, place: Place) -> _Pool:
        group = sorted(self.alike.get(place, {place}))
        column = self._column(place)
        usual: list[Cell] = []
        constants: list[Cell] = []
        conditions: list[str] = []
        for other in group:
            held = self._column(other).values
            usual += held[:: max(1, len(held) // MAX_VALUES)][:MAX_VALUES]
            constants += self.asked.constants.get(other, ())
            conditions += self.asked.conditions.get(other, ())
        special = list(dict.fromkeys(near for constant in constants for near in _neighbours(constant)))
        dates = [value for value in usual if isinstance(value, str) and DATE.fullmatch(value)]
        if dates and constants:
            special = _dated(dates, constants)
        if not usual:
            usual = [value for value in _unknown(column) if value is not None]
        made = list(dict.fromkeys([*usual, *special]))
        hits, misses = _split(column.type, list(dict.fromkeys(conditions)), made)
        return _Pool(tuple(dict.fromkeys(usual)), tuple(special), hits, misses)

    def _column(self, place: Place) -> Column:
        return self.schema.tables[place[0]].columns[place[1]]

    # -- drawing

    def _table(self, draw: random.Random, style: _Style, name: str, made: Rows) -> list[tuple[Cell, ...]]:
        table = self.schema.tables[name]
        links = [link for link in self.links if link.table == name and (link.parent in made or link.parent == name)]
        is_parent = any(link.parent == name for link in self.links)
        count = max(1, round(style.rows * draw.uniform(0.7, 1.3) * (0.6 if is_parent else 1.3)))
        if self.asked.counts and draw.random() < 0.5:
            count = max(count, draw.choice(sorted(self.asked.counts)) + draw.choice((-1, 0, 1, 3)))
        if draw.random() < 0.03:
            count = 0
        few = {
            i: draw.sample(pool, min(style.few, len(pool)))
            for i in range(len(table.columns))
            if style.few and (pool := sorted(set(self.pools[name, i].usual), key=repr))
        }
        rows: list[tuple[Cell, ...]] = []
        standing = [(i,) for i, column in enumerate(table.columns) if column.unique and (name, i) in self.asked.no_twin]
        unique = list(dict.fromkeys([*table.keys, *standing]))
        seen: list[set[tuple[Cell, ...]]] = [set() for _ in unique]
        for _ in range(min(count, MAX_TABLE_ROWS)):
            row = self._row(draw, style, table, rows, few)
            whole = True
            for link in links:
                whole = whole and self._refer(draw, style, table, link, row, made.get(link.parent, rows))
            for key, values in zip(unique, seen, strict=True):
                self._make_new(draw, table, key, values, row, {i for link in links for i in link.columns})
            own = [tuple(row[i] for i in key) for key in unique]
            if whole and not any(cells in values for cells, values in zip(own, seen, strict=True)):
                rows.append(tuple(row))
                for cells, values in zip(own, seen, strict=True):
                    values.add(cells)
        return rows

    def _row(
        self,
        draw: random.Random,
        style: _Style,
        table: Table,
        rows: Sequence[tuple[Cell, ...]],
        few: Mapping[int, Sequence[Cell]],
    ) -> list[Cell]:
        name = table.name.lower()
        kind = draw.random()
        if rows and kind < 0.25:  # a row that is there, but for one cell; or, its key apart, for none
            row = list(draw.choice(rows))
            changed = draw.sample(range(len(row)), draw.choice((0, 1)))
        elif table.rows and kind < 0.45:
            row = [*draw.choice(table.rows)]
            changed = [i for i in range(len(row)) if draw.random() < 0.6]
        else:
            row = [None] * len(table.columns)
            changed = list(range(len(row)))
        # All conditions met, or all but one.
        missed = draw.choice((-1, -1, *range(len(row))))
        for i in changed:
            row[i] = self._cell(draw, style, (name, i), few.get(i, ()), i == missed)
        return row

    def _cell(self, draw: random.Random, style: _Style, place: Place, few: Sequence[Cell], miss: bool) -> Cell:
        column, pool = self._column(place), self.pools[place]
        may_be_null = column.nullable and (column.has_null or place not in self.asked.no_null)
        if may_be_null and draw.random() < style.null:
            return None
        # What is compared with another table's column, without a foreign key, should often be found there.
        there = [row[j] for table, j in sorted(self.alike.get(place, ())) for row in self._made.get(table, ())]
        if there and draw.random() < 0.6:
            return draw.choice(there)
        if pool.hits and draw.random() < style.hit:
            chosen = draw.choice(pool.misses if miss else pool.hits)
            if chosen:
                return draw.choice(chosen)
        if pool.special and draw.random() < 0.4:
            return draw.choice(pool.special)
        if few:
            return draw.choice(few)
        return self._near(draw, style, pool)

    def _near(self, draw: random.Random, style: _Style, pool: _Pool) -> Cell:
        """One of the usual values, or a value like them."""
        if not pool.usual:
            return None
        value = draw.choice(pool.usual)
        if isinstance(value, int | float) and not isinstance(value, bool):
            if not style.apart and draw.random() < 0.6:
                return value
            numbers = [other for other in pool.usual if isinstance(other, int | float)]
            low, high = min(numbers), max(numbers)
            if set(numbers) <= {0, 1}:
                return value
            if draw.random() < 0.1:  # far out
                return draw.choice((low - abs(high) - 50, 2 * high + 50, 10 * high + 500))
            if isinstance(value, int):
                return draw.randint(int(low) - 1, int(high) + max(2, 30 * style.apart))
            return round(draw.uniform(low, high + 1), 2)
        if isinstance(value, str) and style.apart:
            if DATE.fullmatch(value):
                return _moved(value, draw.randint(-400, 400))
            if draw.random() < 0.4 and not any(letter.isdigit() for letter in value):
                return f"{value} {draw.randint(1, 9)}"
        return value

    def _refer(
        self,
        draw: random.Random,
        style: _Style,
        table: Table,
        link: Link,
        row: list[Cell],
        parents: Sequence[tuple[Cell, ...]],
    ) -> bool:
        """Have the row refer to another, or to none if it may; False when it cannot be."""
        columns = [table.columns[i] for i in link.columns]
        to_none = all(column.nullable for column in columns) and (
            not parents
            or (any(column.has_null for column in columns) and draw.random() < max(style.null, 0.1))
            or (link.parent == link.table and draw.random() < 0.3)
        )
        if to_none:
            for i in link.columns:
                row[i] = None
            return True
        if not parents:
            return False
        wanted = [row[i] for i in link.columns]
        fitting = [parent for parent in parents if [parent[j] for j in link.keys] == wanted]
        if not fitting or draw.random() < 0.3:
            weights = [(i + 1) ** -style.skew for i in range(len(parents))]
            fitting = draw.choices(parents, weights)
        for i, j in zip(link.columns, link.keys, strict=True):
            row[i] = fitting[0][j]
        return True

    def _make_new(
        self,
        draw: random.Random,
        table: Table,
        key: Sequence[int],
        values: set[tuple[Cell, ...]],
        row: list[Cell],
        fixed: set[int],
    ) -> None:
        """Change the key of a row to one that is not there yet, if it can be: not where it refers to another row."""
        free = [i for i in key if i not in fixed]
        for attempt in range(12):
            if tuple(row[i] for i in key) not in values and all(row[i] is not None for i in free):
                return
            for i in free:
                usual = self.pools[table.name.lower(), i].usual
                value = draw.choice(usual) if usual else attempt
                if attempt > 5:
                    number = len(values) + 7 * attempt
                    value = (
                        number if isinstance(value, int) else f"{value}{number}" if isinstance(value, str) else value
                    )
                row[i] = value

    def _drop_strays(self, made: Rows) -> None:
        """Rows that refer to none, where tables refer to each other in a circle."""
        dropped = True
        while dropped:
            dropped = False
            for link in self.links:
                there = {tuple(parent[j] for j in link.keys) for parent in made[link.parent]}
                kept = [
                    row
                    for row in made[link.table]
                    if None in (own := tuple(row[i] for i in link.columns)) or own in there
                ]
                dropped = dropped or len(kept) < len(made[link.table])
                made[link.table] = kept


def _parents_first(schema: Schema, tables: Sequence[str]) -> list[str]:
    """These tables and all that they refer to, each after those it refers to, as far as that can be."""
    needed = [name for name in tables if name in schema.tables]
    for name in needed:
        needed += [link.parent for link in schema.links if link.table == name and link.parent not in needed]
    needed = list(dict.fromkeys(needed))
    ordered: list[str] = []
    while len(ordered) < len(needed):
        left = [name for name in needed if name not in ordered]
        ready = [
            name for name in left if all(link.parent in (*ordered, name) for link in schema.links if link.table == name)
        ]
        ordered.append((ready or left)[0])
    return ordered


# ------------------------------------------------------------------------------------------------------------ values


def _neighbours(value: Cell) -> Iterator[Cell]:
    yield value
    if isinstance(value, int):
        yield from (value - 1, value + 1)
    elif isinstance(value, float):
        yield from (value - 0.5, value + 0.5, round(value))
    elif isinstance(value, str):
        if value.lstrip("-").isdecimal():
            yield from (str(int(value) - 1), str(int(value) + 1))
        elif DATE.fullmatch(value):
            yield from (_moved(value, -1), _moved(value, 1), _moved(value, 366))
        elif "%" in value or "_" in value:
            bare = value.replace("%", "").replace("_", "a")
            inner = value.replace("%", " and ").replace("_", "b").strip()
            yield from (bare, f"{bare} tail", f"head {bare}", f"head {bare} tail", inner, bare[:-1], bare.swapcase())
        else:
            yield from (value.swapcase(), value[:-1], f"{value} 2", f"a {value}")


def _moved(value: str, days: int) -> str:
    found = DATE.fullmatch(value)
    assert found
    try:
        day = datetime.date(int(found[1]), int(found[2]), int(found[3])) + datetime.timedelta(days)
    except (ValueError, OverflowError):
        return value
    return f"{day.isoformat()}{found[4]}"


def _dated(dates: Sequence[str], constants: Sequence[Cell]) -> list[Cell]:
    """Dates as the column writes them, moved to the years, months and days that constants name, and next to these."""
    made: list[Cell] = []
    sample = dates[:: max(1, len(dates) // 4)]
    for constant in dict.fromkeys(constants):
        text = str(constant)
        for date in sample:
            rest = date[10:]
            if DATE.fullmatch(text):
                made += [
                    text[:10] + rest,
                    _moved(text[:10] + rest, -1),
                    _moved(text[:10] + rest, 1),
                    _moved(text[:10] + rest, 40),
                ]
            elif re.fullmatch(r"\d{4}-\d{2}", text):
                made += [text + date[7:], _moved(text + date[7:], 31), _moved(text + date[7:], -31)]
            elif re.fullmatch(r"(?:1[89]|20)\d{2}", text):
                made += [f"{year}{date[4:]}" for year in (int(text) - 1, int(text), int(text) + 1)]
            elif re.fullmatch(r"0?[1-9]|1[0-2]", text):
                made.append(f"{date[:5]}{int(text):02}{date[7:]}")
            elif text.startswith(("now", "current")):
                made += [_moved(datetime.date.today().isoformat() + rest, -days) for days in (0, 1, 6, 29, 31, 364)]
    return list(dict.fromkeys(made))


def _unknown(column: Column) -> Sequence[Cell]:
    """Values of a column that holds none, by its type."""
    kind = column.type.lower()
    if any(word in kind for word in ("char", "text", "clob")):
        return "a", "b", "c", "d", "ab"
    if any(word in kind for word in ("date", "time")):
        return tuple(f"20{year:02}-0{month}-15" for year in (19, 20, 21, 24) for month in (1, 5))
    if any(word in kind for word in ("real", "floa", "doub", "dec")):
        return 0.5, 1.0, 2.25, 3.5, 10.0
    if "bool" in kind or "bit" in kind:
        return 0, 1
    return tuple(range(1, 9))


def _split(
    type_: str, conditions: Sequence[str], values: Sequence[Cell]
) -> tuple[tuple[tuple[Cell, ...], ...], tuple[tuple[Cell, ...], ...]]:
    """For each condition on `v` the values that meet it and those that do not, as SQLite judges."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        connection.execute(f"CREATE TABLE pool (i, v {type_})")
    except sqlite3.Error:
        connection.execute("CREATE TABLE pool (i, v)")
    connection.executemany("INSERT INTO pool VALUES (?, ?)", list(enumerate(values)))
    hits, misses = [], []
    for condition in conditions:
        try:
            met = {i for i, yes in connection.execute(f"SELECT i, ({condition}) FROM pool").fetchall() if yes}
        except sqlite3.Error:
            continue
        hits.append(tuple(value for i, value in enumerate(values) if i in met))
        misses.append(tuple(value for i, value in enumerate(values) if i not in met))
    return tuple(hits), tuple(misses)
