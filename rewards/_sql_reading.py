"""What a reference asks of its tables, read from its tree: which values it tells apart, and how many it counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import sqlglot
from sqlglot import exp

from rewards._sql_databases import Cell, Schema

Place = tuple[str, int]  # a table's name in lower case, and which of its columns
COMPARISONS = (
    exp.EQ,
    exp.NEQ,
    exp.GT,
    exp.GTE,
    exp.LT,
    exp.LTE,
    exp.Like,
    exp.In,
    exp.Between,
    exp.Is,
    exp.Glob,
    exp.Nullif,
)


def parse(query: str, schema: Schema) -> exp.Query | None:
    """The query as a tree, in which "text" that names no column is text, as it is for SQLite. None: it cannot be read."""
    try:
        tree = sqlglot.parse_one(query, read="sqlite")
    except (sqlglot.ParseError, sqlglot.TokenError, RecursionError, ValueError):
        return None
    if not isinstance(tree, exp.Query):
        return None
    named = {column.name.lower() for table in schema.tables.values() for column in table.columns}
    named |= {alias.lower() for node in tree.find_all(exp.Alias, exp.TableAlias) for alias in _aliases(node)}
    for column in list(tree.find_all(exp.Column)):
        identifier = column.this
        quoted = isinstance(identifier, exp.Identifier) and identifier.args.get("quoted")
        if quoted and not column.table and column.name.lower() not in named:
            column.replace(exp.Literal.string(column.name))
    return tree


def _aliases(node: exp.Expression) -> Iterator[str]:
    yield node.alias
    if isinstance(node, exp.TableAlias):
        yield from (column.name for column in node.args.get("columns") or ())


def text(tree: exp.Expression) -> str:
    return tree.sql(dialect="sqlite")


@dataclass
class Asked:
    """What references ask.

    `conditions[place]`: conditions about that column alone, with `v` in its place, as SQL. `constants[place]`: what it
    is compared with, in whatever way. `alike`: pairs of columns that are compared with each other. `counts`: numbers
    that rows or groups are counted against.

    Where the data show none, some cells are better left out than used to refuse right ways of asking, which differ over
    them though nothing in the question is about them. `no_null`: columns by which a query sorts, adds up, joins, or looks
    in another table. `no_twin`: columns that stand for the row, as names do, where each row is to be given once although
    a join has it several times.
    """

    conditions: dict[Place, list[str]] = field(default_factory=dict)
    constants: dict[Place, list[Cell]] = field(default_factory=dict)
    alike: list[tuple[Place, Place]] = field(default_factory=list)
    counts: set[int] = field(default_factory=set)
    no_null: set[Place] = field(default_factory=set)
    no_twin: set[Place] = field(default_factory=set)


def asked(trees: Sequence[exp.Query], schema: Schema, tables: Sequence[str]) -> Asked:
    """What these references ask of these tables, named in lower case."""
    found = Asked()
    for tree in trees:
        for node in tree.find_all(*COMPARISONS):
            _compared(node, schema, tables, found)
        for node in tree.find_all(exp.Limit, exp.Offset):
            found.counts.update(n for n in _numbers(node) if isinstance(n, int))
        for node in tree.find_all(
            exp.Sum, exp.Avg, exp.Min, exp.Max, exp.Count, exp.Ordered, exp.Join, exp.SetOperation
        ):
            if isinstance(node, exp.SetOperation):
                inside: list[exp.Expression] = [e for side in (node.left, node.right) for e in _selected(side)]
            elif isinstance(node, exp.Join):
                inside = [on for on in (node.args.get("on"),) if on is not None]
            elif isinstance(node, exp.Count) and not isinstance(node.this, exp.Distinct):
                inside = []
            else:
                inside = [node]
            for column in (column for part in inside for column in part.find_all(exp.Column)):
                found.no_null.update(places(column, schema, tables))
        for select in tree.find_all(exp.Select):
            where = select.args.get("where")
            if select.args.get("joins") or (where is not None and where.find(exp.Query)):
                group = select.args.get("group")
                rows = group.expressions if group is not None else select.selects
                found.no_twin.update(
                    place for e in rows for column in e.find_all(exp.Column) for place in places(column, schema, tables)
                )
    return found


def _selected(query: exp.Expression) -> list[exp.Expression]:
    return list(query.selects) if isinstance(query, exp.Query) else []


def places(column: exp.Column, schema: Schema, tables: Sequence[str]) -> list[Place]:
    """Which columns of the database this may be; several where the tree alone does not say."""
    sources: dict[str, str] = {}
    scope = column.find_ancestor(exp.Select)
    while scope is not None:
        joins = [join.this for join in scope.args.get("joins") or ()]
        source = scope.args.get("from_") or scope.args.get("from")
        for table in [*([source.this] if source else ()), *joins]:
            if isinstance(table, exp.Table):
                sources.setdefault(table.alias_or_name.lower(), table.name.lower())
        scope = scope.find_ancestor(exp.Select)
    if column.table:
        names = [sources.get(column.table.lower(), "")]
    else:
        names = list(sources.values())
    found = _in(names, column.name, schema)
    return found or _in(tables, column.name, schema)


def _in(names: Sequence[str], column: str, schema: Schema) -> list[Place]:
    tables = [(name, schema.tables[name]) for name in dict.fromkeys(names) if name in schema.tables]
    return [(name, i) for name, table in tables if (i := table.place(column)) is not None]


def _compared(node: exp.Expression, schema: Schema, tables: Sequence[str], found: Asked) -> None:
    inner = node.args.get("query")
    if inner is not None or any(isinstance(side, exp.Subquery) for side in (node.this, node.args.get("expression"))):
        # A column against what a query returns.
        outer = [side for side in (node.this, node.args.get("expression")) if not isinstance(side, exp.Subquery)]
        queries = [side for side in (inner, node.this, node.args.get("expression")) if isinstance(side, exp.Subquery)]
        ours = {
            p
            for side in outer
            if side is not None
            for c in side.find_all(exp.Column)
            for p in places(c, schema, tables)
        }
        theirs = {
            p
            for query in queries
            for e in _selected(query.unnest())
            for c in e.find_all(exp.Column)
            for p in places(c, schema, tables)
        }
        found.alike += [(a, b) for a in ours for b in theirs]
        found.no_null |= theirs
        return
    if node.find(exp.Query):
        return
    columns = list(node.find_all(exp.Column))
    where = [places(column, schema, tables) for column in columns]
    constants = _numbers(node) + [literal.this for literal in node.find_all(exp.Literal) if literal.is_string]
    if node.find(exp.AggFunc):
        found.counts.update(n for n in constants if isinstance(n, int) and 0 <= n < 100)
    for place in {place for some in where for place in some}:
        found.constants.setdefault(place, []).extend(constants)
    if len({text(column).lower() for column in columns}) == 1 and not node.find(exp.AggFunc):
        alone = node.copy()
        for column in list(alone.find_all(exp.Column)):
            column.replace(exp.column("v"))
        for place in where[0]:
            found.conditions.setdefault(place, []).append(text(alone))
    elif len(columns) == 2:
        found.alike += [(a, b) for a in where[0] for b in where[1] if a != b]


def _numbers(node: exp.Expression) -> list[Cell]:
    found: list[Cell] = []
    for literal in node.find_all(exp.Literal):
        if not literal.is_string:
            sign = -1 if isinstance(literal.parent, exp.Neg) else 1
            try:
                found.append(sign * int(literal.this))
            except ValueError:
                found.append(sign * float(literal.this))
    return found


def related(tables: Mapping[str, object], alike: Sequence[tuple[Place, Place]]) -> dict[Place, set[Place]]:
    """For each column those that hold what it holds, by whatever chain."""
    groups: dict[Place, set[Place]] = {}
    for a, b in alike:
        if a[0] in tables and b[0] in tables:
            joined = groups.get(a, {a}) | groups.get(b, {b})
            for place in joined:
                groups[place] = joined
    return groups
