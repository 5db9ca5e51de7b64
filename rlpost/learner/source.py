"""The learner's weights as vLLM's trainer-side transfer engines want them. Used with GPUs only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

Pairs = Iterator[tuple[str, torch.Tensor]]


class LearnerWeights(WeightSource):
    """A pass over the learner's weights, given anew for each transfer. Every rank iterates it, whether it sends or not."""

    def __init__(self) -> None:
        self._described: Mapping[str, torch.Tensor] = {}
        self._tensors: Pairs = iter(())

    def begin(self, described: Mapping[str, torch.Tensor], tensors: Pairs) -> None:
        """What the next iteration yields, and what that will be (on the meta device, in its order)."""
        self._described, self._tensors = described, tensors

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self._described.items()]

    def __iter__(self) -> Pairs:
        tensors, self._tensors = self._tensors, iter(())
        return tensors
