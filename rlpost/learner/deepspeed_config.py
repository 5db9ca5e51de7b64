"""The DeepSpeed configuration rlpost makes from its own, and the learning rate at a step."""

from __future__ import annotations

import math
from typing import Any

from rlpost.config import DType, Learner, Optimizer


def learning_rate(optimizer: Optimizer, step: int, total_steps: int) -> float:
    """Learning rate of optimizer step `step` (from 0) of `total_steps`.

    A pure function of the step, so that a resumed run cannot be at another place of the schedule.
    """
    if step < optimizer.warmup_steps:
        return optimizer.lr * (step + 1) / optimizer.warmup_steps
    if optimizer.schedule == "constant":
        return optimizer.lr
    span = max(1, total_steps - optimizer.warmup_steps)
    done = min(1.0, (step - optimizer.warmup_steps) / span)
    share = 1 - done if optimizer.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return optimizer.lr * (optimizer.min_lr_ratio + (1 - optimizer.min_lr_ratio) * share)


def deepspeed_config(learner: Learner, dtype: DType, ranks: int) -> dict[str, Any]:
    """Gradient accumulation is 1 on purpose: boundaries are set by hand, as micro-batches differ from step to step."""
    config: dict[str, Any] = {
        "train_batch_size": ranks,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": learner.grad_clip,
        "steps_per_print": 10**9,
        "bf16": {"enabled": dtype == "bfloat16"},
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": learner.zero_stage},
    }
    if learner.offload_optimizer:
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        config["zero_force_ds_cpu_optimizer"] = False
    return _over(config, learner.deepspeed)


def _over(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        merged[key] = (
            _over(merged[key], value) if isinstance(value, dict) and isinstance(merged.get(key), dict) else value
        )
    return merged
