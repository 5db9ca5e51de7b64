"""The page that maps faults to tests names tests that exist, and has every row of its tables."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([a-z_/]+\.py)(?:::(\w+))?`", PAGE)))
ROWS = {"C": 18, "D": 12, "E": 26, "F": 18, "G": 12}


@cache
def functions(file: str) -> set[str]:
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_test_that_is_named_is_there(file, name):
    assert (TESTS / file).is_file()
    found = functions(file)
    assert name in found if name else any(one.startswith("test_") for one in found)


def test_every_row_is_there_once_and_says_something():
    lines = [line.split("|")[1:-1] for line in PAGE.splitlines() if re.match(r"\| [C-G]\d", line)]
    ids = [row for cells in lines for row in cells[0].replace(",", " ").split()]
    assert ids == [f"{table}{number}" for table, count in ROWS.items() for number in range(1, count + 1)]
    assert all(len(cells) == 3 and cells[2].strip() for cells in lines)
