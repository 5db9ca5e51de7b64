"""The learning rate is a pure function of the optimizer step."""

from __future__ import annotations

import pytest

from rlpost.config import Learner
from rlpost.learner.deepspeed_config import deepspeed_config, learning_rate


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
    assert [learning_rate(learner, s, 12) for s in steps] == pytest.approx(expected)


def test_the_rate_stays_at_the_floor_after_the_last_step():
    assert learning_rate(Learner(lr=1.0, schedule="cosine", min_lr_ratio=0.2), 500, 100) == pytest.approx(0.2)


def test_deepspeed_gets_the_users_settings_over_ours():
    config = deepspeed_config(
        Learner(zero_stage=2, deepspeed={"zero_optimization": {"overlap_comm": True}}), "bfloat16", ranks=4
    )
    assert config["zero_optimization"] == {"stage": 2, "overlap_comm": True}
    assert config["bf16"] == {"enabled": True}
    assert (config["train_batch_size"], config["gradient_accumulation_steps"]) == (4, 1)
