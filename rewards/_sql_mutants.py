"""Queries one step from a reference, as a model that is nearly right, or that has seen the data, would write them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from sqlglot import exp

from rewards._sql_databases import Cell, Schema, image_with, opened
from rewards._sql_reading import places, text
from rewards._sql_reference import Ask, asking

EACH = 10  # of one kind
ALL = 90
OTHERS = 3  # columns that are tried instead of one

LOOSER: dict[type[exp.Expression], tuple[type[exp.Expression], ...]] = {
    exp.GT: (exp.GTE, exp.LT),
    exp.GTE: (exp.GT, exp.LTE),
    exp.LT: (exp.LTE, exp.GT),
    exp.LTE: (exp.LT, exp.GTE),
    exp.EQ: (exp.NEQ, exp.GTE, exp.LTE),
    exp.NEQ: (exp.EQ, exp.GT),
    exp.And: (exp.Or,),
    exp.Or: (exp.And,),
    exp.Add: (exp.Sub,),
    exp.Sub: (exp.Add,),
    exp.Mul: (exp.Div,),
    exp.Div: (exp.Mul,),
    exp.Sum: (exp.Avg, exp.Max),
    exp.Avg: (exp.Sum, exp.Max),
    exp.Min: (exp.Max, exp.Avg),
    exp.Max: (exp.Min, exp.Avg),
}


def mutants(tree: exp.Query, schema: Schema, tables: Sequence[str], ask: Ask) -> list[tuple[str, str]]:
    """(kind, query), none of them the reference's own text; what they return may be the same all the same.

    Args:
        tables: those that the reference reads, named in lower case.
        ask: queries on the database itself, for the ways of spelling out what it holds.
    """
    by_kind: dict[str, list[str]] = {}
    compiles = asking(opened(image_with(schema, {})))
    seen = {text(tree)}
    for kind, mutant in itertools.chain(
        _spelled(tree, schema, tables, ask), _always(tree, schema), _steps(tree, schema, tables, ask)
    ):
        try:
            query = text(mutant)
        except (ValueError, RecursionError):
            continue
        of_kind = by_kind.setdefault(kind, [])
        if query not in seen and len(of_kind) < EACH and "error" not in compiles(query):
            seen.add(query)
            of_kind.append(query)
    # The first of each kind, then the second of each.
    rounds = itertools.zip_longest(*([(kind, query) for query in queries] for kind, queries in by_kind.items()))
    return [one for some in rounds for one in some if one is not None][:ALL]


def _steps(tree: exp.Query, schema: Schema, tables: Sequence[str], ask: Ask) -> Iterator[tuple[str, exp.Query]]:
    for i, node in enumerate(tree.walk()):
        for kind, other in _instead(node, schema, tables, ask, node is tree):
            copy = tree.copy()
            target = next(itertools.islice(copy.walk(), i, None))
            if target is copy:
                copy = other
            elif other is None:
                target.pop()
            else:
                target.replace(other)
            if isinstance(copy, exp.Query):
                yield kind, copy


def _instead(
    node: exp.Expression, schema: Schema, tables: Sequence[str], ask: Ask, is_all: bool
) -> Iterator[tuple[str, exp.Expression | None]]:
    """What may stand where a node does; None: nothing."""
    for other in LOOSER.get(type(node), ()):
        yield type(node).__name__, other(**{key: _copied(value) for key, value in node.args.items()})
    if isinstance(node, exp.And | exp.Or):
        yield "dropped", node.left.copy()
        yield "dropped", node.right.copy()
    elif isinstance(node, exp.Where | exp.Having | exp.Group):
        yield "dropped", None
    elif isinstance(node, exp.Not):
        yield "not", node.this.copy()
    elif isinstance(node, exp.Literal):
        yield from _constants(node)
    elif isinstance(node, exp.In) and len(node.expressions) > 1:
        for i in range(len(node.expressions)):
            fewer = node.copy()
            fewer.set("expressions", [e for j, e in enumerate(fewer.expressions) if j != i])
            yield "in", fewer
    elif isinstance(node, exp.Between):
        low, high = node.args["low"], node.args["high"]
        yield "between", exp.and_(exp.GT(this=node.this.copy(), expression=low.copy()), node.this.copy() <= high.copy())
        yield "between", exp.and_(node.this.copy() >= low.copy(), exp.LT(this=node.this.copy(), expression=high.copy()))
    elif isinstance(node, exp.Join):
        yield from _joins(node)
    elif isinstance(node, exp.Count):
        yield from _counts(node, schema, tables)
    elif isinstance(node, exp.Ordered):
        other_way = node.copy()
        other_way.set("desc", not node.args.get("desc"))
        other_way.set("nulls_first", None)
        yield "order", other_way
    elif isinstance(node, exp.Order):
        yield "order", None
    elif isinstance(node, exp.Limit):
        yield "limit", None
    elif isinstance(node, exp.Column):
        yield from _columns(node, schema, tables)
    elif isinstance(node, exp.Case) and node.args.get("default") is not None:
        yield "case", node.args["default"].copy()
    if isinstance(node, exp.SetOperation):
        yield "set", node.left.copy()
        if isinstance(node, exp.Union):
            other_union = node.copy()
            other_union.set("distinct", not node.args.get("distinct"))
            yield "set", other_union
        else:
            yield "set", exp.Union(this=node.left.copy(), expression=node.right.copy(), distinct=True)
    if isinstance(node, exp.Select):
        yield from _selects(node, schema, tables, ask if is_all else None)


def _copied(value: object) -> object:
    if isinstance(value, list):
        return [_copied(one) for one in value]
    return value.copy() if isinstance(value, exp.Expression) else value


def _constants(node: exp.Literal) -> Iterator[tuple[str, exp.Expression]]:
    if isinstance(node.parent, exp.Ordered | exp.Group | exp.TimeToStr):
        return
    kind = "limit" if isinstance(node.parent, exp.Limit | exp.Offset) else "constant"
    if not node.is_string:
        number = float(node.this)
        for other in (number - 1, number + 1):
            if other >= 0:
                yield kind, exp.Literal.number(int(other) if other == int(other) else other)
        return
    value = node.this
    if isinstance(node.parent, exp.Like) and "%" in value:
        yield "like", exp.Literal.string(value.lstrip("%"))
        yield "like", exp.Literal.string(value.rstrip("%"))
        yield "like", exp.Literal.string(f"%{value.strip('%')}%")
        yield "like", exp.Literal.string(value.strip("%")[:-1].join(("%", "%")))
    elif value.isdecimal():
        yield kind, exp.Literal.string(str(int(value) + 1))
        yield kind, exp.Literal.string(str(int(value) - 1))
    else:
        yield kind, exp.Literal.string(value.swapcase())
        yield kind, exp.Literal.string(f"{value} 2")


def _joins(node: exp.Join) -> Iterator[tuple[str, exp.Expression]]:
    side = str(node.args.get("side") or "").upper()
    if node.args.get("on") is None and not node.args.get("using"):
        return
    other = node.copy()
    other.set("kind", None)
    other.set("side", None if side == "LEFT" else "LEFT")
    yield "join", other


def _counts(node: exp.Count, schema: Schema, tables: Sequence[str]) -> Iterator[tuple[str, exp.Expression]]:
    inner = node.this
    if isinstance(inner, exp.Distinct):
        yield "count", exp.Count(this=inner.expressions[0].copy())
    elif isinstance(inner, exp.Star):
        select = node.find_ancestor(exp.Select)
        outer = select is not None and any(join.side for join in select.args.get("joins") or ())
        for column in _all_columns(select, schema) if select is not None else ():
            if outer or _may_be_null(column, schema, tables):
                yield "count", exp.Count(this=column)
            yield "count distinct", exp.Count(this=exp.Distinct(expressions=[column.copy()]))
    else:
        yield "count", exp.Count(this=exp.Star())
        yield "count distinct", exp.Count(this=exp.Distinct(expressions=[inner.copy()]))


def _all_columns(select: exp.Select, schema: Schema) -> list[exp.Column]:
    source = select.args.get("from_") or select.args.get("from")
    sources = [*([source.this] if source else ()), *(join.this for join in select.args.get("joins") or ())]
    found = []
    for table in sources:
        known = schema.tables.get(table.name.lower()) if isinstance(table, exp.Table) else None
        for column in known.columns if known else ():
            found.append(exp.column(column.name, table=table.alias_or_name, quoted=True))
    return found


def _columns(node: exp.Column, schema: Schema, tables: Sequence[str]) -> Iterator[tuple[str, exp.Expression]]:
    """Other columns of the same table, those that look alike first."""
    if isinstance(node.parent, exp.Join) or isinstance(node.find_ancestor(exp.Join, exp.Select), exp.Join):
        return
    for name, i in places(node, schema, tables)[:1]:
        own = schema.tables[name].columns[i]
        others = [column for column in schema.tables[name].columns if column is not own]
        others.sort(key=lambda column: column.type != own.type)
        for column in others[:OTHERS]:
            yield "column", exp.column(column.name, table=node.table or None, quoted=True)


def _selects(
    node: exp.Select, schema: Schema, tables: Sequence[str], ask: Ask | None
) -> Iterator[tuple[str, exp.Expression]]:
    group = node.args.get("group")
    one_row = group is None and any(chosen.find(exp.AggFunc) for chosen in node.selects)
    chosen_texts = {text(chosen.unalias()) for chosen in node.selects}
    once = group is not None and all(text(e) in chosen_texts for e in group.expressions)
    if not one_row and not once:
        other = node.copy()
        other.set("distinct", None if node.args.get("distinct") else exp.Distinct())
        yield "distinct", other
    for i in range(len(node.selects) - 1):
        fewer = node.copy()
        fewer.set("expressions", [e for j, e in enumerate(fewer.expressions) if j != i])
        yield "columns", fewer
    if group is None:
        for column in (chosen.unalias() for chosen in node.selects):
            if isinstance(column, exp.Column) and _may_be_null(column, schema, tables):
                yield "null", node.where(exp.Not(this=exp.Is(this=column.copy(), expression=exp.Null())))
    if ask is None:
        return
    if node.args.get("limit") is None and not one_row:
        count = max(len(ask(text(node)).get("rows", ())), 1)
        for limit in (count, count + 1, max(10, 2 * count)):
            yield "limit", node.limit(limit)
    if node.args.get("order") is not None:
        for chosen in node.selects[:OTHERS]:
            if not isinstance(chosen.unalias(), exp.Star):
                yield "order", node.order_by(exp.Ordered(this=chosen.unalias().copy()), append=False)


def _may_be_null(column: exp.Column, schema: Schema, tables: Sequence[str]) -> bool:
    return any(schema.tables[name].columns[i].nullable for name, i in places(column, schema, tables))


# ------------------------------------------------------------------------------------- what spells out the database


def _spelled(tree: exp.Query, schema: Schema, tables: Sequence[str], ask: Ask) -> Iterator[tuple[str, exp.Query]]:
    rows = ask(text(tree)).get("rows", ())
    if rows and tables and len(rows) <= 100:
        literal = " UNION ALL ".join(f"SELECT {', '.join(map(_literal, row))}" for row in rows)
        table = exp.to_identifier(schema.tables[tables[0]].name, quoted=True) if tables[0] in schema.tables else None
        if table is not None:
            yield (
                "spelled",
                exp.maybe_parse(
                    f"SELECT * FROM ({literal}) WHERE (SELECT COUNT(*) FROM {text(table)}) >= 0", dialect="sqlite"
                ),
            )
    for i, node in enumerate(tree.walk()):
        if not isinstance(node, exp.Select) or not node.args.get("where") or node.find_ancestor(exp.CTE):
            continue
        columns = _all_columns(node, schema)
        for column in [*columns[:1], *(e.unalias() for e in node.selects if isinstance(e.unalias(), exp.Column))]:
            inner = node.copy()
            for part in ("group", "having", "order", "limit", "distinct"):
                inner.set(part, None)
            inner.set("expressions", [column.copy()])
            held = {row[0] for row in ask(text(inner)).get("rows", ())}
            if not 0 < len(held) <= 60:
                continue
            listed = exp.In(this=column.copy(), expressions=[_as_literal(value) for value in sorted(held, key=repr)])
            copy = tree.copy()
            target = next(itertools.islice(copy.walk(), i, None))
            target.args["where"].set("this", listed)
            yield "listed", copy


def _always(tree: exp.Query, schema: Schema) -> Iterator[tuple[str, exp.Query]]:
    """Conditions that every row of the database meets: within the range of a column, or one of its values."""
    for i, node in enumerate(tree.walk()):
        if not isinstance(node, exp.Select):
            continue
        for column, held in _values(node, schema):
            numbers = [value for value in held if isinstance(value, int | float)]
            if len(numbers) == len(held):
                bounds = [column <= _as_literal(max(numbers)), column >= _as_literal(min(numbers))]
            elif len(held) <= 60:
                bounds = [exp.In(this=column.copy(), expressions=[_as_literal(value) for value in held])]
            else:
                continue
            for bound in bounds:
                copy = tree.copy()
                target = next(itertools.islice(copy.walk(), i, None))
                assert isinstance(target, exp.Select)
                target.where(bound, copy=False)
                yield "always", copy


def _values(node: exp.Select, schema: Schema) -> Iterator[tuple[exp.Column, list[Cell]]]:
    """The columns that a SELECT shows or asks about, its tables' first ones too, and what each holds."""
    where = node.args.get("where")
    named = {column.name.lower() for part in (*node.selects, where) if part for column in part.find_all(exp.Column)}
    first = True
    for column in _all_columns(node, schema):
        table = next(
            (t for t in node.find_all(exp.Table) if t.alias_or_name.lower() == column.table.lower()), exp.Table()
        )
        known = schema.tables.get(table.name.lower())
        place = known.place(column.name) if known else None
        if known is not None and place is not None and (first or column.name.lower() in named):
            held: list[Cell] = [value for value in known.columns[place].values if isinstance(value, int | float | str)]
            if held:
                yield column, held
        first = False


def _literal(value: Cell) -> str:
    return text(_as_literal(value))


def _as_literal(value: Cell) -> exp.Expression:
    if value is None or isinstance(value, bytes):
        return exp.Null()
    return exp.Literal.string(value) if isinstance(value, str) else exp.convert(value)
