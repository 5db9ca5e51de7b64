"""The queries of `verifiers_sql.py`: one step from a reference, or the reference in other words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sqlglot import exp
from verifiers_sql_data import Sampler, returned

# Classes without a like among the verifier's own mutants.
HELD_OUT = frozenset(
    (
        *("rounded", "coalesced", "letter case", "condition added", "joined twice", "joined elsewhere", "offset"),
        *("group added", "having added", "subquery dropped"),
    )
)


# ------------------------------------------------------------------------------------------------------------ wrong


def changed(tree: exp.Expression, kind: Any, change: Callable[[Any], exp.Expression | None]) -> Iterator[str]:
    """The query with one of the nodes of a kind changed; each in turn."""
    for i in range(len(list(tree.find_all(kind)))):
        copy = tree.copy()
        node = list(copy.find_all(kind))[i]
        new = change(node)
        if new is None:
            continue
        if node is copy:
            yield new.sql("sqlite")
        else:
            node.replace(new)
            yield copy.sql("sqlite")


def swapped(node: exp.Expression, other: type[exp.Expression]) -> exp.Expression:
    return other(this=node.this.copy(), expression=node.expression.copy())


def wrong_queries(tree: exp.Query, sampler: Sampler) -> Iterator[tuple[str, str]]:
    for old, new in ((exp.GT, exp.GTE), (exp.GTE, exp.GT), (exp.LT, exp.LTE), (exp.LTE, exp.LT), (exp.EQ, exp.NEQ)):
        yield from (
            ("comparison", q)
            for q in changed(tree, old, lambda n, new=new: None if n.find_ancestor(exp.Join) else swapped(n, new))
        )
    yield from (("and, or", q) for q in changed(tree, exp.And, lambda n: swapped(n, exp.Or)))
    yield from (("and, or", q) for q in changed(tree, exp.Or, lambda n: swapped(n, exp.And)))
    yield from (("condition dropped", q) for q in changed(tree, exp.And, lambda n: n.left))
    yield from (("condition dropped", q) for q in changed(tree, exp.And, lambda n: n.right))
    for part in ("where", "having", "order", "limit"):
        for query in changed(tree, exp.Select, lambda n, part=part: without(n, part)):
            yield {"where": "condition dropped"}.get(part, part), query
    yield from (("distinct", q) for q in changed(tree, exp.Select, flipped_distinct))
    yield from (("constant", q) for q in changed(tree, exp.Literal, lambda n: other_constant(n, 1)))
    yield from (("constant", q) for q in changed(tree, exp.Literal, lambda n: other_constant(n, -1)))
    yield from (
        ("order", q)
        for q in changed(tree, exp.Ordered, lambda n: exp.Ordered(this=n.this.copy(), desc=not n.args.get("desc")))
    )
    for old, new in (
        (exp.Max, exp.Min),
        (exp.Min, exp.Max),
        (exp.Avg, exp.Sum),
        (exp.Sum, exp.Avg),
        (exp.Sum, exp.Max),
    ):
        yield from (("aggregate", q) for q in changed(tree, old, lambda n, new=new: new(this=n.this.copy())))
    for table, columns in sampler.database.tables.items():
        if tree.find(exp.Table) and any(
            t.name.lower() == table.lower() and not t.alias for t in tree.find_all(exp.Table)
        ):
            for column in columns[1:3]:
                yield from (
                    ("count", q)
                    for q in changed(
                        tree,
                        exp.Count,
                        lambda n, c=column: exp.Count(this=exp.Distinct(expressions=[exp.column(c, quoted=True)])),
                    )
                )
    yield from (
        ("join", q)
        for q in changed(
            tree,
            exp.Join,
            lambda n: (
                exp.Join(this=n.this.copy(), on=n.args["on"].copy(), side=None if n.side else "LEFT")
                if n.args.get("on")
                else None
            ),
        )
    )
    yield from (("set", q) for q in changed(tree, exp.SetOperation, lambda n: n.left))
    yield from (
        ("set", q)
        for q in changed(
            tree, exp.Intersect, lambda n: exp.Union(this=n.left.copy(), expression=n.right.copy(), distinct=True)
        )
    )
    yield from (
        ("set", q)
        for q in changed(
            tree,
            exp.Union,
            lambda n: exp.Union(this=n.left.copy(), expression=n.right.copy(), distinct=not n.args.get("distinct")),
        )
    )
    yield from (("listed", q) for q in listed(tree, sampler))
    # Held out.
    yield from (("rounded", q) for q in changed(tree, (exp.Avg, exp.Div), lambda n: exp.func("ROUND", n.copy())))
    yield from (("coalesced", q) for q in changed(tree, exp.Select, lambda n: coalesced(n)))
    yield from (
        ("letter case", q)
        for q in changed(
            tree,
            exp.EQ,
            lambda n: (
                exp.EQ(this=exp.func("LOWER", n.this.copy()), expression=exp.func("LOWER", n.expression.copy()))
                if isinstance(n.expression, exp.Literal) and n.expression.is_string
                else None
            ),
        )
    )
    yield from (("condition added", q) for q in narrowed(tree, sampler))
    yield from (("joined twice", q) for q in changed(tree, exp.Select, joined_twice))
    yield from (("joined elsewhere", q) for q in joined_elsewhere(tree, sampler))
    yield from (
        ("offset", q) for q in changed(tree, exp.Select, lambda n: n.copy().offset(1) if n.args.get("limit") else None)
    )
    yield from (("group added", q) for q in grouped_more(tree, sampler))
    yield from (
        ("having added", q)
        for q in changed(
            tree,
            exp.Select,
            lambda n: n.copy().having("COUNT(*) > 1") if n.args.get("group") and not n.args.get("having") else None,
        )
    )
    yield from (("subquery dropped", q) for q in changed(tree, exp.Subquery, lambda n: exp.select(n.this.selects[0].copy()).from_(n.this.find(exp.From).this.copy()).subquery() if isinstance(n.this, exp.Select) and n.this.args.get("where") and n.this.find(exp.From) else None))  # fmt: skip


def without(node: exp.Select, part: str) -> exp.Expression | None:
    if not node.args.get(part):
        return None
    copy = node.copy()
    copy.set(part, None)
    return copy


def flipped_distinct(node: exp.Select) -> exp.Expression:
    copy = node.copy()
    copy.set("distinct", None if node.args.get("distinct") else exp.Distinct())
    return copy


def other_constant(node: exp.Literal, step: int) -> exp.Expression | None:
    if node.find_ancestor(exp.TimeToStr, exp.Ordered, exp.Join):
        return None
    if not node.is_string:
        number = float(node.this) + step
        return exp.Literal.number(int(number) if number == int(number) else number) if number > 0 else None
    return exp.Literal.string(node.this + "s" if step > 0 else node.this[:-1]) if node.this else None


def coalesced(node: exp.Select) -> exp.Expression | None:
    copy = node.copy()
    first = copy.selects[0].unalias()
    if not isinstance(first, exp.Column):
        return None
    copy.set("expressions", [exp.func("COALESCE", first.copy(), exp.Literal.string("none")), *copy.selects[1:]])
    return copy


def tables_of(node: exp.Select, sampler: Sampler) -> Iterator[tuple[exp.Table, str]]:
    source = node.find(exp.From)
    for table in [*([source.this] if source else []), *(j.this for j in node.args.get("joins") or ())]:
        known = next(
            (t for t in sampler.database.tables if isinstance(table, exp.Table) and t.lower() == table.name.lower()),
            None,
        )
        if known:
            yield table, known


def narrowed(tree: exp.Query, sampler: Sampler) -> Iterator[str]:
    """A condition on another column, one that keeps about half of the data, or all of it."""
    if not isinstance(tree, exp.Select):
        return
    for table, name in tables_of(tree, sampler):
        for column in sampler.database.tables[name][:4]:
            held = sorted((v for v in sampler.held[name, column] if isinstance(v, int | float)), key=float)
            texts = sorted({v for v in sampler.held[name, column] if isinstance(v, str)})
            place = exp.column(column, table=table.alias_or_name, quoted=True)
            if held:
                yield tree.copy().where(exp.GT(this=place, expression=exp.convert(held[len(held) // 2]))).sql("sqlite")
                yield tree.copy().where(exp.LT(this=place.copy(), expression=exp.convert(held[-1] + 1))).sql("sqlite")
            elif texts:
                yield tree.copy().where(exp.NEQ(this=place, expression=exp.convert(texts[0]))).sql("sqlite")


def listed(tree: exp.Query, sampler: Sampler) -> Iterator[str]:
    """The rows that the condition takes on the data named by their first column."""
    if not isinstance(tree, exp.Select) or not tree.args.get("where"):
        return
    for table, name in tables_of(tree, sampler):
        column = exp.column(sampler.database.tables[name][0], table=table.alias_or_name, quoted=True)
        bare = tree.copy()
        for part in ("group", "having", "order", "limit", "distinct"):
            bare.set(part, None)
        bare.set("expressions", [column])
        rows = returned(sampler.base, bare.sql("sqlite")) or []
        named = sorted({row[0] for row in rows if row[0] is not None}, key=repr)
        if 0 < len(named) < 100:
            copy = tree.copy()
            copy.set("where", exp.Where(this=exp.In(this=column.copy(), expressions=[exp.convert(v) for v in named])))
            yield copy.sql("sqlite")


def joined_twice(node: exp.Select) -> exp.Expression | None:
    joins = [j for j in node.args.get("joins") or () if j.args.get("on") and isinstance(j.this, exp.Table)]
    if not joins:
        return None
    again = joins[-1].copy()
    old = again.this.alias_or_name
    again.set("this", exp.alias_(exp.to_table(joins[-1].this.name), "again", table=True))
    for column in again.find_all(exp.Column):
        if column.table.lower() == old.lower():
            column.set("table", exp.to_identifier("again"))
    copy = node.copy()
    copy.append("joins", again)
    return copy


def joined_elsewhere(tree: exp.Query, sampler: Sampler) -> Iterator[str]:
    names = {name.lower(): name for name in sampler.database.tables}
    for i, join in enumerate(tree.find_all(exp.Join)):
        on = join.args.get("on")
        if not isinstance(on, exp.EQ) or join.this.name.lower() not in names:
            continue
        for column in sampler.database.tables[names[join.this.name.lower()]][:3]:
            copy = tree.copy()
            target = list(copy.find_all(exp.Join))[i]
            for side in target.args["on"].find_all(exp.Column):
                if side.table.lower() == target.this.alias_or_name.lower() and side.name.lower() != column.lower():
                    side.replace(exp.column(column, table=side.table, quoted=True))
                    yield copy.sql("sqlite")
                    break


def grouped_more(tree: exp.Query, sampler: Sampler) -> Iterator[str]:
    if isinstance(tree, exp.Select) and tree.args.get("group"):
        for table, name in tables_of(tree, sampler):
            for column in sampler.database.tables[name][1:3]:
                yield tree.copy().group_by(exp.column(column, table=table.alias_or_name, quoted=True)).sql("sqlite")


# ------------------------------------------------------------------------------------------------------------ right


def right_queries(tree: exp.Query) -> Iterator[tuple[str, str]]:
    """The reference in other words."""
    turned = {exp.GT: exp.LT, exp.LT: exp.GT, exp.GTE: exp.LTE, exp.LTE: exp.GTE, exp.EQ: exp.EQ}
    for old, new in turned.items():
        yield from (
            ("sides", q)
            for q in changed(tree, old, lambda n, new=new: new(this=n.expression.copy(), expression=n.this.copy()))
        )
    for kind in (exp.And, exp.Or):
        yield from (
            ("commuted", q)
            for q in changed(tree, kind, lambda n, kind=kind: kind(this=n.right.copy(), expression=n.left.copy()))
        )
    yield from (
        ("negated", q) for q in changed(tree, exp.GT, lambda n: exp.Not(this=exp.Paren(this=swapped(n, exp.LTE))))
    )
    yield from (
        ("between", q)
        for q in changed(
            tree,
            exp.Between,
            lambda n: exp.Paren(
                this=exp.and_(
                    exp.GTE(this=n.this.copy(), expression=n.args["low"].copy()),
                    exp.LTE(this=n.this.copy(), expression=n.args["high"].copy()),
                )
            ),
        )
    )
    yield from (
        ("in as or", q)
        for q in changed(
            tree,
            exp.In,
            lambda n: (
                exp.Paren(this=exp.or_(*[exp.EQ(this=n.this.copy(), expression=e.copy()) for e in n.expressions]))
                if n.expressions
                else None
            ),
        )
    )
    yield from (
        ("= as in", q)
        for q in changed(
            tree,
            exp.EQ,
            lambda n: (
                exp.In(this=n.this.copy(), expressions=[n.expression.copy()])
                if isinstance(n.expression, exp.Literal)
                else None
            ),
        )
    )
    yield from (
        ("count(1)", q)
        for q in changed(
            tree, exp.Count, lambda n: exp.Count(this=exp.Literal.number(1)) if isinstance(n.this, exp.Star) else None
        )
    )
    yield from (("in as exists", q) for q in changed(tree, exp.In, exists))
    yield from (("joins turned", q) for q in changed(tree, exp.Select, turned_join))
    yield from (("join as where", q) for q in changed(tree, exp.Select, comma_join))
    yield from (("distinct as group", q) for q in changed(tree, exp.Select, distinct_as_group))
    renamed = tree.copy()
    for table in renamed.find_all(exp.Table):
        if table.alias:
            table.set("alias", exp.TableAlias(this=exp.to_identifier(f"x_{table.alias}".lower())))
    aliases = {t.alias.lower() for t in tree.find_all(exp.Table) if t.alias}
    for column in renamed.find_all(exp.Column):
        if column.table.lower() in aliases:
            column.set("table", exp.to_identifier(f"x_{column.table}".lower()))
    yield "aliases", renamed.sql("sqlite")
    inner = tree.sql("sqlite")
    if not tree.args.get("order"):
        yield "subquery", f"SELECT * FROM ({inner}) AS q"
        yield "cte", f"WITH q AS ({inner}) SELECT * FROM q" if not tree.find(exp.With) else inner
    if isinstance(tree, exp.Select) and not any(s.find(exp.Star) and not s.find(exp.Count) for s in tree.selects):
        named = tree.copy()
        named.set(
            "expressions", [exp.alias_(s.unalias().copy(), s.alias or f"c{i}") for i, s in enumerate(named.selects)]
        )
        yield "names", named.sql("sqlite")


def exists(node: exp.In) -> exp.Expression | None:
    query = node.args.get("query")
    inner = query.this if query is not None else None
    if not isinstance(inner, exp.Select) or not isinstance(node.this, exp.Column) or isinstance(node.parent, exp.Not):
        return None
    if any(inner.args.get(part) for part in ("group", "limit", "having", "distinct")) or not node.this.table:
        return None
    inside = inner.copy()
    column = inside.selects[0].unalias()
    if not isinstance(column, exp.Column) or not column.table:
        return None
    inside.set("expressions", [exp.Literal.number(1)])
    return exp.Exists(this=inside.where(exp.EQ(this=column.copy(), expression=node.this.copy())))


def turned_join(node: exp.Select) -> exp.Expression | None:
    joins = node.args.get("joins") or []
    if (
        len(joins) != 1
        or joins[0].side
        or not joins[0].args.get("on")
        or (node.find(exp.Star) and not node.find(exp.Count))
    ):
        return None
    copy = node.copy()
    source, join = copy.find(exp.From), copy.args["joins"][0]
    first, second = source.this.copy(), join.this.copy()
    source.set("this", second)
    join.set("this", first)
    return copy


def comma_join(node: exp.Select) -> exp.Expression | None:
    joins = node.args.get("joins") or []
    if not joins or any(j.side or not j.args.get("on") for j in joins):
        return None
    copy = node.copy()
    conditions = [j.args["on"].copy() for j in copy.args["joins"]]
    copy.set("joins", [exp.Join(this=j.this.copy()) for j in copy.args["joins"]])
    return copy.where(*conditions)


def distinct_as_group(node: exp.Select) -> exp.Expression | None:
    if (
        not node.args.get("distinct")
        or node.args.get("group")
        or not all(isinstance(s, exp.Column) for s in node.selects)
    ):
        return None
    copy = node.copy()
    copy.set("distinct", None)
    return copy.group_by(*[s.copy() for s in node.selects])
