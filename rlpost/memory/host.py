"""What machines and disks hold beside the GPUs."""

from __future__ import annotations

import math

from rlpost.config import Config
from rlpost.memory.holders import GIB
from rlpost.memory.rank import MASTER, MOMENTS, SUM, WIDTH, Zero
from rlpost.memory.shapes import Shapes


def phases(config: Config, shapes: Shapes) -> dict[str, dict[str, float]]:
    """Bytes of the machine with most ranks, by phase and part. Python itself, engines and the page cache come on top.

    `start`: ranks read weights into host memory, each all of them, and under ZeRO 3 rank 0 alone, whose tensors the
    others get (transformers, `HfDeepSpeedConfig`). `run`: what stays.
    """
    zero = Zero.of(config)
    ranks = min(config.learner.ranks, config.cluster.gpus_per_node) if config.on_gpu else config.learner.ranks
    stays: dict[str, float] = {}
    if zero.offload:
        each = (MASTER + MOMENTS + SUM) * shapes.trained / zero.ranks
        stays["optimizer, offloaded"] = ranks * each
    if config.cluster.address is None:
        stays["object store"] = config.cluster.object_store_gb * GIB
    loading = 1 if zero.stage == 3 else ranks
    return {"start": {**stays, "weights being read": loading * zero.width * shapes.parameters}, "run": stays}


def object_store(config: Config, shapes: Shapes) -> float:
    """Bytes of the weights of an update that travels by Ray's object store; 0 where it does not."""
    if config.weight_transfer != "object_store":
        return 0.0
    return WIDTH[config.rollout_dtype] * (shapes.trained if config.model.lora else shapes.parameters)


def checkpoint(config: Config, shapes: Shapes) -> dict[str, float]:
    """Bytes on disk of one checkpoint.

    Weights in the Hugging Face format; DeepSpeed's state of the optimizer, and below ZeRO 3 its own copy of the weights
    that are trained (`mp_rank_00_model_states.pt`).
    """
    zero, lora = Zero.of(config), config.model.lora is not None
    parts: dict[str, float] = {"model": SUM * shapes.trained if lora else zero.width * shapes.parameters}
    if zero.stage < 3:
        parts["DeepSpeed's weights"] = zero.width * shapes.trained
    parts["optimizer"] = (MOMENTS + (MASTER if zero.stage else 0)) * shapes.trained
    return parts


def seconds(size: float, speed: float = 1e9) -> int:
    """Seconds to write bytes at a speed in bytes a second."""
    return math.ceil(size / speed)
