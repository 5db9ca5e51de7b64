"""The learner's weights as vLLM's trainer-side transfer engines want them. Used with GPUs only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

from rlpost.config import DType
from rlpost.learner.masters import Masters
from rlpost.learner.model import DTYPES, checkpoint_tensors
from rlpost.learner.survival import Survival
from rlpost.weights import held_wide, make_probes, to_numpy

if TYPE_CHECKING:
    from rlpost.weights import Held, Probe


class LearnerWeights(WeightSource):
    """All weights by checkpoint name. Every rank iterates: under ZeRO-3 each tensor is gathered from all.

    The whole model is gathered on each rank for the time of a transfer; per-layer gathering is future work.
    """

    def __init__(self, model: Any, dtype: DType, masters: Callable[[], Masters]) -> None:
        self._model = model
        self._dtype = dtype
        self._wide: set[str] = set()
        self._masters = masters
        self._tensors: dict[str, torch.Tensor] = {}
        self.probes: dict[str, Probe] = {}
        self.survival = Survival()

    def begin(self, dtype: DType, readable: dict[str, Held], version: int) -> None:
        """Gather this round's weights and make its probes."""
        self._dtype, self._wide = dtype, held_wide(readable)
        self._gather()
        names = [n for n in readable if n in self._tensors]
        self.probes = make_probes({n: to_numpy(self._tensors[n].cpu()) for n in names}, readable, version)

    def _gather(self) -> None:
        self.survival = Survival()
        self._tensors = checkpoint_tensors(
            self._model,
            True,
            DTYPES[self._dtype],
            device=None,
            wide=self._wide,
            survival=self.survival,
            masters=self._masters(),
        )

    def metadata(self) -> list[ParamMeta]:
        if not self._tensors:
            self._gather()
        return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self._tensors.items()]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self._tensors.items()
        self._tensors = {}
