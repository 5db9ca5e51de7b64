"""The DeepSpeed configuration rlpost makes from its own."""

from __future__ import annotations

from typing import Any

from rlpost.config import DType, Learner


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
    if dtype == "bfloat16":
        # By default DeepSpeed adds up the gradients of micro-batches, and of ranks, in the dtype of the weights: with 128
        # micro-batches a sum is then off by 1 %.
        config |= {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}
    if learner.offload_optimizer:
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        config["zero_force_ds_cpu_optimizer"] = False  # as it would otherwise refuse torch's
    return _over(config, learner.deepspeed)


def _over(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        merged[key] = (
            _over(merged[key], value) if isinstance(value, dict) and isinstance(merged.get(key), dict) else value
        )
    return merged
