"""By which rules a row is judged: those of the benchmark that its columns are of."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)
_said: set[str] = set()

# What the judges of contests have in scope without an import of it, the modules by their names too.
_STARRED = (
    *(
        "string",
        "re",
        "datetime",
        "collections",
        "heapq",
        "bisect",
        "copy",
        "math",
        "random",
        "statistics",
        "itertools",
    ),
    *("functools", "operator", "io", "sys", "json", "builtins", "typing"),
)
CONTEST = "".join(f"from {name} import *\n" for name in _STARRED) + f"import {', '.join(_STARRED)}\n"
NODES = """
class ListNode:
    def __init__(self, val=0, next=None):
        self.val, self.next = val, next

class TreeNode:
    def __init__(self, val=0, left=None, right=None):
        self.val, self.left, self.right = val, left, right
"""


@dataclass(frozen=True)
class Rules:
    """How the rows of a benchmark are run and their outputs compared.

    Args:
        header: run in the program's module before the program.
        compare, float_tolerance: for what a program prints, where the configuration does not say; see `code.verify`.
        numbers: numbers that are written in two ways are the same, exactly.
    """

    header: str = ""
    compare: str = "lines"
    float_tolerance: float | None = None
    numbers: bool = False


RULES = {
    "humaneval": Rules(),
    "mbpp": Rules(),
    "bigcodebench": Rules(),
    "kodcode": Rules(),
    "leetcode": Rules(CONTEST + NODES),
    "livecodebench": Rules(CONTEST, "stripped", numbers=True),
    "apps": Rules(CONTEST, "stripped"),
    "codecontests": Rules(compare="tokens", float_tolerance=1e-5),
    "plain": Rules(),
}


def rules_of(columns: Mapping[str, Any]) -> str:
    """The name of the rules for a row with these columns; said in the log when it is met first."""
    name = _named(columns)
    if name not in _said:
        _said.add(name)
        log.info("verifier code: rows with %s are judged by the rules of %s", ", ".join(sorted(columns)), name)
    return name


def _named(columns: Mapping[str, Any]) -> str:
    source = columns.get("test") or columns.get("tests") or columns.get("reference")
    source = source if isinstance(source, str) else ""
    if "public_test_cases" in columns or "private_test_cases" in columns:
        return "livecodebench"
    if str(columns.get("entry_point", "")).startswith("Solution"):
        return "leetcode"
    if "generated_tests" in columns or "public_tests" in columns or "private_tests" in columns:
        return "codecontests"
    if "input_output" in columns:
        return "apps"
    if "fn_name" in columns:
        return "leetcode"
    if "TestCase" in source:
        return "bigcodebench"
    if "def check(" in source and "entry_point" in columns:
        return "humaneval"
    if "test_list" in columns:
        return "mbpp"
    return "kodcode" if "def test" in source or "pytest" in source else "plain"
