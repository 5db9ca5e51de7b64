"""The learning rate is a pure function of the optimizer step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest

from rlpost.config import Learner
from rlpost.course import Course
from rlpost.learner.deepspeed_config import deepspeed_config
from rlpost.learner.learning_rate import course_state, fresh_course, learning_rate, resumed_course


def rates(learner: Learner, course: Course, steps: Iterable[int]) -> list[float]:
    return [learning_rate(learner, step, course) for step in steps]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.25, 0.5, 0.75, 1.0, 1.0, 0.775, 0.1]),
        ("cosine", [0.25, 0.5, 0.75, 1.0, 1.0, 0.1 + 0.9 * 0.5 * (1 + 2**-0.5), 0.1]),
    ],
)
def test_warm_up_then_the_schedule_down_to_the_floor(schedule, expected):
    learner = Learner(lr=1.0, schedule=schedule, warmup_steps=4, min_lr_ratio=0.1)
    steps = [0, 1, 2, 3, 4, 6, 12]
    assert rates(learner, fresh_course(learner, 12), steps) == pytest.approx(expected)


def test_the_rate_stays_at_the_floor_after_the_last_step():
    learner = Learner(lr=1.0, schedule="cosine", min_lr_ratio=0.2)
    assert learning_rate(learner, 500, fresh_course(learner, 100)) == pytest.approx(0.2)


def resumed(before: Learner, now: Learner, taken: int, old_total: int, total: int) -> tuple[list[float], list[float]]:
    """Rates until a run of `old_total` steps is stopped after `taken`, and from there to `total`."""
    course = fresh_course(before, old_total)
    again = resumed_course(course_state(before, course), now, taken, total)
    return rates(before, course, range(taken)), rates(now, again, range(taken, total))


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("taken", [1, 3, 4, 5, 9, 12])
def test_a_resume_without_other_steps_changes_nothing(schedule, taken):
    learner = Learner(lr=1.0, schedule=schedule, warmup_steps=4, min_lr_ratio=0.1)
    before, after = resumed(learner, learner, taken, 12, 12)
    assert before + after == rates(learner, fresh_course(learner, 12), range(12))


def test_with_other_steps_a_linear_schedule_goes_on_from_where_it_is():
    learner = Learner(lr=1.0, schedule="linear")
    before, after = resumed(learner, learner, 4, 4, 8)
    assert before == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert after == pytest.approx([0.2, 0.15, 0.1, 0.05])
    assert resumed(learner, learner, 4, 8, 5)[1] == pytest.approx([0.625 / 2])


def test_with_other_steps_a_cosine_schedule_goes_on_from_where_it_is():
    learner = Learner(lr=2.0, schedule="cosine", min_lr_ratio=0.5)
    before, after = resumed(learner, learner, 3, 4, 7)
    done = [0.5 + 0.5 * k / 5 for k in range(1, 5)]
    assert before[-1] == pytest.approx(1.5)
    assert after == pytest.approx([1 + 0.5 * (1 + math.cos(math.pi * d)) for d in done])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 3, 10])
@pytest.mark.parametrize(("taken", "old", "total"), [(1, 4, 9), (4, 4, 100), (8, 20, 10), (12, 20, 400), (19, 20, 21)])
def test_a_rate_never_rises_once_it_has_begun_to_fall(schedule, warmup, taken, old, total):
    learner = Learner(lr=1.0, schedule=schedule, warmup_steps=warmup, min_lr_ratio=0.01)
    before, after = resumed(learner, learner, taken, old, total)
    falling = (before + after)[warmup:]
    assert falling == sorted(falling, reverse=True)
    assert all(0.01 < rate <= 1 for rate in falling)


def test_runs_that_are_lengthened_again_and_again_keep_falling_and_keep_learning():
    learner = Learner(lr=1.0, schedule="linear")
    course, seen = fresh_course(learner, 2), []
    for total in range(2, 12, 2):
        seen += rates(learner, course, range(total - 2, total))
        course = resumed_course(course_state(learner, course), learner, total, total + 2)
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] > 0


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("constant", "linear", [1 - 1 / 5]),
        ("linear", "cosine", None),
        ("cosine", "linear", None),
        ("linear", "constant", [1.0]),
    ],
)
def test_another_schedule_begins_where_the_old_one_is(old, new, expected):
    was, now = Learner(lr=1.0, schedule=old), Learner(lr=1.0, schedule=new)
    before, after = resumed(was, now, 4, 8, 8)
    if expected is not None:
        assert after[0] == pytest.approx(expected[0])
    else:
        course = resumed_course(course_state(was, fresh_course(was, 8)), now, 4, 8)
        assert learning_rate(now, 3, course) == pytest.approx(before[-1])
        assert before[-1] > after[0] > after[-1] > 0


def test_a_course_is_straight_until_it_is_bent():
    course = Course(1, 0.0, 5)
    assert [course(step) for step in range(7)] == [0, 0, 0.25, 0.5, 0.75, 1, 1]
    bent = course.bent(3, 7)
    assert [bent(step) for step in range(3, 9)] == [0.5, 0.625, 0.75, 0.875, 1, 1]
    assert course.bent(3, 5) is course
    assert course.bent(1, 3) == Course(1, 0.0, 3)


def test_deepspeed_gets_the_users_settings_over_ours():
    config = deepspeed_config(
        Learner(zero_stage=2, deepspeed={"zero_optimization": {"overlap_comm": True}}), "bfloat16", ranks=4
    )
    assert config["zero_optimization"] == {"stage": 2, "overlap_comm": True}
    assert config["bf16"] == {"enabled": True}
    assert (config["train_batch_size"], config["gradient_accumulation_steps"]) == (4, 1)


def test_an_optimizer_that_begins_anew_warms_up_again_and_keeps_its_place_afterwards():
    learner = Learner(lr=1.0, schedule="linear", warmup_steps=2)
    course = fresh_course(learner, 10, begin=4)
    whole = [learning_rate(learner, step, course, 4) for step in range(4, 10)]
    assert whole == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25])
    for taken in (5, 8):
        saved = course_state(learner, course, 4)
        again = resumed_course(saved, learner, taken, 10)
        assert [learning_rate(learner, s, again, saved["begin"]) for s in range(taken, 10)] == whole[taken - 4 :]
