"""No wait is measured by a clock that somebody may set."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2] / "rlpost"
# Where it says when something was, for people: tensorboard's events.
SAYS_WHEN = {"observe/sinks.py"}


def test_only_monotonic_clocks_measure():
    found = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "time":
                if node.attr in ("time", "time_ns"):
                    found.add(path.relative_to(ROOT).as_posix())
            elif (
                isinstance(node, ast.ImportFrom)
                and node.module == "time"
                and {a.name for a in node.names} & {"time", "time_ns"}
            ):
                found.add(path.relative_to(ROOT).as_posix())
    assert found == SAYS_WHEN
