"""Assertions on literals, decided in the verifier's own process from the candidate's decoded answers.

Only expressions known to be cheap and safe are: literals, comparisons, arithmetic and some functions, over plain data of
limited size. All other tests are run in the sandbox.
"""

from __future__ import annotations

import ast
import functools
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards._code_codec import Malformed, TooLarge, dumps, loads, shown
from rewards._code_run import Result, reason_of
from rewards._code_task import Task


@dataclass(frozen=True)
class Plan:
    """Assertions as expressions over the results of operations, which they have as `_0`, `_1`, ...

    `parts`: whether a right result may be longer than they are: they ask for its length, or compute what it is to be.
    """

    operations: tuple[str, ...]
    tests: tuple[Any, ...]
    parts: bool = False


class _NotSimple(Exception):
    """The test is more than an assertion on literals."""


class _Raised(Exception):
    """The candidate raised instead of returning the value that is asked for."""


FUNCTIONS = (abs, all, any, bool, bytes, complex, dict, float, frozenset, int, len, list, max, min, round, set, sorted)
SAFE: dict[str, Any] = {function.__name__: function for function in (*FUNCTIONS, str, sum, tuple)}
MATH = ("isclose", "isnan", "isinf", "pi", "e", "inf", "nan")
NODES = (
    *(ast.Expression, ast.Constant, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.Load, ast.keyword),
    *(ast.UnaryOp, ast.unaryop, ast.BinOp, ast.operator, ast.BoolOp, ast.boolop, ast.Compare, ast.cmpop),
    *(ast.Subscript, ast.Slice, ast.IfExp),
)


class _Simple(ast.NodeTransformer):
    """Checks that an expression is cheap and safe to evaluate here, and puts results in place of calls."""

    def __init__(self, names: Mapping[str, str], operations: list[str]) -> None:
        self.names, self.operations = names, operations

    def visit(self, node: ast.AST) -> ast.AST:
        match node:
            case ast.Call(func=ast.Name(id=name)) if name in self.names:
                return self._operation(node, self.names[name])
            case ast.Call(func=ast.Name(id=name)) if name in SAFE and not self._starred(node):
                node.args = [self.visit(argument) for argument in node.args]  # type: ignore[misc]
                node.keywords = [self.visit(argument) for argument in node.keywords]  # type: ignore[misc]
                return node
            case ast.Call(func=ast.Attribute(value=ast.Name(id="math"), attr="isclose" | "isnan" | "isinf")):
                node.args = [self.visit(argument) for argument in node.args]  # type: ignore[misc]
                node.keywords = [self.visit(argument) for argument in node.keywords]  # type: ignore[misc]
                return node
            case ast.Attribute(value=ast.Name(id="math"), attr=name) if name in MATH:
                return node
            case ast.BinOp(op=op) if self.names and not isinstance(op, ast.Add | ast.Sub | ast.Div | ast.FloorDiv):
                # By a value of the candidate's these make gigabytes; by literals they are the data set's affair.
                return _Simple({}, []).visit(node)
            case _ if not isinstance(node, NODES):
                raise _NotSimple(type(node).__name__)
        return self.generic_visit(node)

    def _operation(self, node: ast.Call, name: str) -> ast.AST:
        if self._starred(node):
            raise _NotSimple("starred arguments")
        text = dumps(
            ["call", name, [_value(part) for part in node.args], {k.arg: _value(k.value) for k in node.keywords}]
        )
        self.operations.append(text)
        return ast.copy_location(ast.Name(f"_{len(self.operations) - 1}", ast.Load()), node)

    def _starred(self, node: ast.Call) -> bool:
        return any(isinstance(part, ast.Starred) for part in node.args) or any(k.arg is None for k in node.keywords)


def _value(node: ast.expr) -> Any:
    """Of an argument made of literals. It is the data set's, not the model's."""
    expression = ast.Expression(_Simple({}, []).visit(node))  # type: ignore[arg-type]
    return eval(compile(ast.fix_missing_locations(expression), "tests.py", "eval"), _space())


def _space() -> dict[str, Any]:
    return {"__builtins__": {}, "math": math, **SAFE}


@functools.lru_cache(4096)
def plan_of(task: Task) -> Plan | None:
    """How to decide the tests here; None when they are more than assertions on literals."""
    names = {name: name for name in task.names}
    operations: list[str] = []
    tests = []
    parts = False
    try:
        if any(name in SAFE or name == "math" for name in names) and len(names) > 1:
            raise _NotSimple("a candidate that redefines what the tests use")
        if any(not _is_known(node) for source in task.setup if source != task.stub for node in ast.parse(source).body):
            raise _NotSimple("set-up code")
        for source in task.tests:
            for node, local in _assertions(ast.parse(source), task.entry_point):
                before = len(operations)
                tree = ast.Expression(_Simple({**names, **local}, operations).visit(node.test))  # type: ignore[arg-type]
                parts |= any(isinstance(part, ast.Subscript | ast.Call | ast.BinOp) for part in ast.walk(tree))
                if len(operations) > before:
                    tests.append(compile(ast.fix_missing_locations(tree), "tests.py", "eval"))
                elif not isinstance(node.test, ast.Constant):
                    raise _NotSimple("an assertion without a call")
    # Whatever evaluating an argument comes to, the sandbox will see it too.
    except Exception:  # noqa: BLE001
        return None
    return Plan(tuple(operations), tuple(tests), parts) if tests else None


def _assertions(tree: ast.Module, entry_point: str | None) -> list[tuple[ast.Assert, dict[str, str]]]:
    """The module's assertions, and those in `check(candidate)`, each with what `candidate` is called there."""
    found: list[tuple[ast.Assert, dict[str, str]]] = []
    for node in tree.body:
        match node:
            case ast.Assert():
                found.append((node, {}))
            case ast.FunctionDef(name="check", args=ast.arguments(args=[ast.arg(arg=name)])) if entry_point:
                for inner in node.body:
                    if isinstance(inner, ast.Assert):
                        found.append((inner, {name: entry_point}))
                    elif not isinstance(inner, ast.Pass) and not _is_text(inner):
                        raise _NotSimple(type(inner).__name__)
            case ast.Assign(targets=[ast.Name(id="METADATA")]):
                pass
            case _ if not _is_text(node) and not _is_known(node):
                raise _NotSimple(type(node).__name__)
    return found


def _is_known(node: ast.stmt) -> bool:
    """An import that cannot fail."""
    return isinstance(node, ast.Import) and all(alias.name in sys.stdlib_module_names for alias in node.names)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


class _Results(dict[str, Any]):
    """The operations' results by name, decoded when asked for."""

    def __init__(self, replies: Sequence[str]) -> None:
        self._replies = replies

    def __missing__(self, name: str) -> Any:
        if not name.startswith("_"):
            raise KeyError(name)
        text = self._replies[int(name[1:])]
        if len(text) > 2**14:
            raise TooLarge("a long value")
        outcome, value = reply_of(text)
        if outcome == "raise":
            raise _Raised(value)
        self[name] = value
        return value


class _Thing:
    """Something of the candidate's that is not plain data; equal to nothing."""

    def __init__(self, tag: str, number: int) -> None:
        pass


def reply_of(text: str) -> tuple[str, Any]:
    """The codec's text of a reply: ("value", value) or ("raise", (kind, text))."""
    try:
        _, outcome, *what = loads(text, _Thing, hostile=True)
        value, second = what
    except TooLarge:  # for another place to read
        raise
    except (Malformed, ValueError, TypeError):
        return "raise", ("runtime_error", "its answer cannot be read")
    return ("raise", (shown(value, 100), shown(second, 500))) if outcome == "raise" else ("value", value)


def decided(test: Any, replies: Sequence[str]) -> Result:
    try:
        return Result("" if eval(test, _space(), _Results(replies)) else "mismatch")
    except TooLarge:
        raise
    except _Raised as error:
        kind, text = error.args[0]
        return Result(reason_of(f"candidate:{kind}"), f"{kind}: {text}")
    except Exception as error:  # noqa: BLE001 - such as a TypeError on a value of the wrong type
        return Result("mismatch", f"{type(error).__name__}: {shown(error)}")
