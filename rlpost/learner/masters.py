"""Parameters in full: gathered where ZeRO-3 shards them, and in float32 where the optimizer keeps them so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class Masters:
    """Reads parameters in full and in float32. Under ZeRO every rank must ask for the same ones, in step.

    Args:
        optimizer: DeepSpeed's, around the one that was given to it; None where there is none, as outside of a learner.
    """

    def __init__(self, optimizer: Any = None) -> None:
        from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer

        # Of ZeRO stage 0 in bfloat16, which DeepSpeed's own helper does not know.
        plain = isinstance(optimizer, FP16_UnfusedOptimizer)
        narrow, wide = (optimizer.fp16_groups, optimizer.fp32_groups) if plain else ([], [])
        self._copies = {
            id(p): copy
            for group, copies in zip(narrow, wide, strict=True)
            for p, copy in zip(group, copies, strict=True)
        }

    def of(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """float32, detached; shared with the optimizer where it can be."""
        from deepspeed.utils import safe_get_full_fp32_param

        found = self._copies.get(id(parameter))
        if found is None:
            found = safe_get_full_fp32_param(parameter)
        return (parameter if found is None else found).detach().float()


@contextmanager
def gathered(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Whole parameters, where ZeRO-3 holds only this rank's shards of them."""
    sharded = [p for p in parameters if hasattr(p, "ds_id")]
    if not sharded:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(sharded):
        yield
