"""The learning rate of an optimizer step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rlpost.config import Optimizer
from rlpost.course import Course


def fresh_course(optimizer: Optimizer, total_steps: int, begin: int = 0) -> Course:
    """From the end of the warm-up, which starts with step `begin`, to the end of the run, in optimizer steps."""
    return Course(begin + optimizer.warmup_steps, 0.0, total_steps)


def learning_rate(optimizer: Optimizer, step: int, course: Course, begin: int = 0) -> float:
    """Learning rate of optimizer step `step` (from 0).

    A pure function of the step, so that a resumed run cannot be at another place of the schedule.

    Args:
        begin: the step the optimizer began with: another than 0 where a run went on without its old state.
    """
    if step < begin + optimizer.warmup_steps:
        return optimizer.lr * (step - begin + 1) / optimizer.warmup_steps
    share = _share(optimizer.schedule, course(step))
    return optimizer.lr * (optimizer.min_lr_ratio + (1 - optimizer.min_lr_ratio) * share)


def course_state(optimizer: Optimizer, course: Course, begin: int = 0) -> dict[str, Any]:
    """What `resumed_course` takes up: plain data."""
    at, done, end = course.at, course.done, course.end
    return {"schedule": optimizer.schedule, "begin": begin, "at": at, "done": done, "end": end}


def resumed_course(saved: Mapping[str, Any], optimizer: Optimizer, steps: int, total_steps: int) -> Course:
    """The course of a run that goes on, so that the learning rate goes on from where it is.

    With other total steps what is left of the schedule is stretched over what is left of the run. Another schedule
    begins at the height that the old one had come to.

    Args:
        saved: by `course_state`.
        steps: optimizer steps that were taken.
    """
    before, last = Course(saved["at"], saved["done"], saved["end"]), steps - 1
    if last <= saved["begin"] + optimizer.warmup_steps:
        return fresh_course(optimizer, total_steps, saved["begin"])
    if saved["schedule"] == optimizer.schedule:
        return before.bent(last, total_steps)
    return Course(last, _done(optimizer.schedule, _share(saved["schedule"], before(last))), total_steps)


def _share(schedule: str, done: float) -> float:
    """Of the way between the least learning rate and the full one."""
    if schedule == "constant":
        return 1.0
    return 1 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def _done(schedule: str, share: float) -> float:
    """The inverse."""
    if schedule == "constant":
        return 0.0
    return 1 - share if schedule == "linear" else math.acos(2 * share - 1) / math.pi
