"""Programs that seem to know the tests: a hint for whoever reads rollouts, never a part of the score.

No sandbox can tell a program that computes its answers from one that was told them. Tests that the prompt does not show
are what helps; this says where to look when it does show them.
"""

from __future__ import annotations

import ast
import functools
import json
from collections.abc import Iterable, Iterator
from typing import Any

from rewards._code_codec import loads
from rewards._code_task import Task


def hardcoded(code: str, task: Task) -> bool:
    """Whether the literals of half of the tests, of two at least, stand in a Python program; small ones tell nothing."""
    try:
        known, telling = frozenset(_literals(ast.parse(code))), _telling(task)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return sum(values <= known for values in telling) >= max(2, len(telling) / 2)


@functools.lru_cache(4096)
def _telling(task: Task) -> tuple[frozenset[str], ...]:
    return tuple(values for values in map(frozenset, _values(task)) if values)


def _values(task: Task) -> Iterator[Iterable[str]]:
    """By test the literals it is made of."""
    for source in task.tests:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Assert):
                yield _literals(node.test)
    for given, expected in task.examples:
        if task.function is None:
            yield _kept([given.strip(), expected.strip()])
        else:
            yield _leaves([loads(given)[2], json.loads(expected)[0]])


def _literals(tree: ast.AST) -> Iterable[str]:
    return _kept(node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)
    elif isinstance(value, dict):
        yield from _leaves([*value, *value.values()])
    else:
        yield from _kept([value])


def _kept(values: Iterable[Any]) -> Iterator[str]:
    """Those that no honest program is likely to hold, without their sign."""
    for value in values:
        if isinstance(value, str) and len(value.strip()) > 1:
            yield repr(value.strip())
        elif type(value) in (int, float) and abs(value) > 10:
            yield repr(abs(value))
