"""Rows of a reasoning_gym source, scored by the scorer of their task.

Some of reasoning-gym's scorers (countdown, puzzle24, simple_integration and others) hand the answer to sympy's
`parse_expr` or to `eval`. So they are isolated, and may evaluate expressions only: what an answer does ends with its
verdict, and does not reach that. For the countdown task use the `countdown` verifier, which evaluates nothing.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any

import reasoning_gym
from reasoning_gym.factory import DATASETS

from rlpost.verify.adapters import scored_by


def verify(response: str, task: str, entry: Mapping[str, Any], answer_tag: bool = True) -> dict[str, Any]:
    """The task's own score, usually 1.0 when right and little or nothing when wrong.

    Args:
        task: reasoning-gym's name of the task; the source gives it.
        entry: the row as reasoning-gym made it; the source gives it.
        answer_tag: of what follows the thought, take what stands in the last `<answer>` when there is one.
    """
    return scored_by(_scorer(task), response, entry, answer_tag)


@functools.cache
def _scorer(task: str) -> Callable[..., float]:
    return reasoning_gym.get_score_answer_fn(task)


def _prepare() -> None:
    """Make the scorers, some of which read whole dictionaries; but those of tasks that are refused as sources.

    Those that use sympy score an answer once: what sympy then loads and keeps takes them longer than any answer after it.
    """
    for task in DATASETS.keys() - {"composite", "arc_agi", "rearc"}:
        scorer: Any = _scorer(task)
        space = vars(sys.modules[type(scorer.__self__).__module__]).values()
        if any(str(getattr(v, "__module__", None) or getattr(v, "__name__", "")).startswith("sympy") for v in space):
            entry = scorer.__self__[0]
            scorer(answer=entry["answer"], entry=entry)


verify.isolate = True  # type: ignore[attr-defined]
verify.prepare = _prepare  # type: ignore[attr-defined]
