"""While a scorer of others has an answer in its hands, the text it evaluates must be a plain expression.

Isolation ends what an answer does with its verdict, and leaves it that verdict: executed, it can replace the scorer it is
judged by. So whatever text is compiled in between (by `eval`, or by sympy's parser) may hold numbers, texts, lists,
operators, and calls by name, such as a list or sympy's functions; no attributes, and of Python's own functions those only
that compute.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import sys
from collections.abc import Iterator

HARMLESS = {"abs", "bool", "complex", "dict", "divmod", "float", "int", "len", "list", "max", "min", "pow", "range"}
HARMLESS |= {"reversed", "round", "set", "sorted", "str", "sum", "tuple", "True", "False", "None"}
OWN = "from sympy import *"  # what sympy's parser itself executes first
NODES = (
    *(ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Call, ast.keyword, ast.Tuple, ast.List, ast.Set, ast.Dict),
    *(ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
)

_armed = False
_installed = False


class NoExpressionError(ValueError):
    """What was to be evaluated is more than an expression."""


@contextlib.contextmanager
def only() -> Iterator[None]:
    """Text that is compiled in this process meanwhile must be such an expression, or compiling it raises."""
    global _armed, _installed
    if not _installed:
        _installed = True
        sys.addaudithook(_hook)  # for good: no code, an answer's neither, can take one away
    _armed = True
    try:
        yield
    finally:
        _armed = False


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    global _armed
    if event != "compile" or not _armed:
        return
    source, filename = arguments
    if not str(filename).startswith("<"):  # a module that is imported only now
        return
    _armed = False  # reading it is compiling, too
    try:
        refuse(source)
    finally:
        _armed = True


def refuse(source: object) -> None:
    """Raise NoExpressionError for text that is more than an expression."""
    text = source.decode("utf-8", "replace") if isinstance(source, bytes) else source
    if text == OWN or text is None:  # nothing but a tree is compiled without a text, and a tree was read from one
        return
    if not isinstance(text, str):
        raise NoExpressionError("what is compiled is no text")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise NoExpressionError(f"no expression: {error}") from None
    for node in ast.walk(tree):
        if not isinstance(node, NODES) or (isinstance(node, ast.Call) and not isinstance(node.func, ast.Name)):
            raise NoExpressionError(f"an expression with {type(node).__name__}")
        if isinstance(node, ast.Name) and (
            node.id.startswith("_") or (hasattr(builtins, node.id) and node.id not in HARMLESS)
        ):
            raise NoExpressionError(f"an expression that names {node.id}")
