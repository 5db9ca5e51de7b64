"""The weights of a learner rank on their way out: to engines, whatever carries them, and to disk."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlpost import rehearsal
from rlpost.config import DType
from rlpost.faults import amount
from rlpost.learner.spec import LearnerSpec
from rlpost.weights import Held

if TYPE_CHECKING:
    import torch

    from rlpost.learner.stream import WeightStream
    from rlpost.learner.survival import Survival
    from rlpost.weights import Probing

    Pairs = Iterator[tuple[str, torch.Tensor]]


@dataclass
class _Outgoing:
    """A pass over the weights for the engines. `survival` and `probing`, of rank 0, are complete when it is.

    Attributes:
        described: what comes, on the meta device.
    """

    described: Mapping[str, torch.Tensor]
    parts: Iterable[Pairs]
    survival: Survival
    probing: Probing | None


class Delivery:
    """What a rank that is started (`rlpost.learner.rank`) gives away. All ranks at once, as each holds collectives."""

    rank: int
    spec: LearnerSpec
    engine: Any
    _sample: Any
    _survived: float | None

    @property
    def model(self) -> Any:
        """The Hugging Face model inside the engine."""
        return self.engine.module.model

    @cached_property
    def stream(self) -> WeightStream:
        """The model's weights, whoever gets them."""
        from rlpost.learner.stream import WeightStream

        return WeightStream(self.model, self._masters)

    def weights(self, dtype: DType, readable: dict[str, Held], version: int) -> tuple[Any, Any]:
        """All weights in Ray's object store, a part at a time, and probes of a few; (None, None) but from rank 0.

        Args:
            dtype: the engine's.
            readable: names, shapes and dtypes of what the engines can be asked for.

        Returns:
            references to numpy arrays by checkpoint name, disjoint and together all of them.
        """
        import ray

        from rlpost.weights import to_numpy

        sent = self._outgoing(dtype, readable, version, keep=self.rank == 0)
        buckets = []
        for part in sent.parts:
            if arrays := {name: to_numpy(tensor.cpu()) for name, tensor in part}:
                buckets.append(ray.put(arrays))
            del arrays
        self._survived = sent.survival.share
        return (buckets, sent.probing.probes()) if sent.probing else (None, None)

    def adapters(self, dtype: DType, version: int) -> tuple[Any, Any]:
        """The adapters alone as engines serve them, and probes; (None, None) but from rank 0. All ranks.

        Args:
            dtype: of the engines' adapters.
        """
        from rlpost.learner.adapters import as_served, factors, lora_layers, trained
        from rlpost.learner.model import DTYPES
        from rlpost.learner.survival import Survival
        from rlpost.weights import probed, to_numpy

        exact = trained(self.model, self._masters(), self.rank == 0)
        if self.rank != 0:
            return None, None
        survival, tensors = Survival(), as_served(self.model, exact, DTYPES[dtype])
        names = iter(tensors)
        for name, layer in lora_layers(self.model).items():
            survival.add_factors(*factors(name, layer, exact), tensors[next(names)], tensors[next(names)])
        self._survived = survival.share
        arrays = {name: to_numpy(tensor) for name, tensor in tensors.items()}
        return arrays, probed(arrays, version)

    def _begin_survival(self, dtype: DType) -> Any:
        """What is known of the share that arrives before weights are gathered: of a full training, a sample."""
        from rlpost.learner.model import DTYPES
        from rlpost.learner.survival import Survival

        return Survival() if self._sample is None else self._sample.survival(DTYPES[dtype], self._masters())

    def _masters(self) -> Any:
        from rlpost.learner.masters import Masters

        return Masters(self.engine.optimizer)

    def survived(self) -> float | None:
        """Which share of all that was trained the latest weights for the engines hold; None before anything was."""
        return self._survived

    def connect(
        self, backend: str, engines: list[Any], workers: int, dtype: DType, master: tuple[str, int], deadline: float
    ) -> None:
        """Set vLLM's own weight transfer up: `rlpost.learner.transfer.connect`.

        Args:
            dtype: the engines'.
        """
        if self.spec.stand_in:
            rehearsal.tell(True)
            rehearsal.install()
        from rlpost.learner.model import DTYPES
        from rlpost.learner.source import LearnerWeights
        from rlpost.learner.transfer import connect

        # Bytes are sent in buffers that hold the largest tensor: smaller ones vLLM refuses or warns of, and each is held
        # beside the weights by both sides.
        largest = max(tensor.nbytes for tensor in self.stream.described(DTYPES[dtype]).values())
        self._backend = backend
        self._source = LearnerWeights()
        self._transfer = connect(backend, engines, workers, self.rank, master, self._source, largest, deadline)

    def send_weights(self, dtype: DType, readable: dict[str, Held], version: int, deadline: float) -> Any:
        """Send all weights to the connected engines, within a deadline. Returns probes from rank 0. All ranks."""
        # An engine reads what the rank on its own GPU holds, or what rank 0 sends to all.
        sent = self._outgoing(dtype, readable, version, keep=self.rank == 0 or self._backend == "ipc")
        self._source.begin(sent.described, chain.from_iterable(sent.parts))
        self._transfer.send(deadline)
        self._survived = sent.survival.share
        return sent.probing.probes() if sent.probing else None

    def _outgoing(self, dtype: DType, readable: dict[str, Held], version: int, keep: bool) -> _Outgoing:
        """A pass over the weights for the engines. All ranks; rank 0 alone reads probes."""
        from rlpost.learner.model import DTYPES
        from rlpost.weights import Probing, held_wide

        survival, wide = self._begin_survival(dtype), held_wide(readable)
        described = self.stream.described(DTYPES[dtype], wide)
        shapes = {name: tuple(tensor.shape) for name, tensor in described.items()}
        probing = Probing(shapes, readable, version) if self.rank == 0 else None
        parts = self.stream.parts(DTYPES[dtype], wide, keep, survival)
        if (noise := amount("router.noise", version)) is not None:
            parts = _disturbed(parts, noise, version)
        return _Outgoing(described, parts if probing is None else map(probing.watch, parts), survival, probing)

    def address(self) -> tuple[str, int]:
        """A host and free port where rank 0 will listen for the engines."""
        import ray

        host = ray.util.get_node_ip_address()
        with socket.socket() as s:
            s.bind((host, 0))
            return host, s.getsockname()[1]

    def save_model(self, folder: str) -> float | None:
        """Write only the weights, in the Hugging Face format, adapters merged: in float32 where less would lose them.

        Returns:
            Which share of the adapters survives in `model.dtype`; None without any.
        """
        from rlpost.learner.model import DTYPES
        from rlpost.learner.survival import Survival
        from rlpost.weights import LEAST_SURVIVING

        survival = Survival()
        self._write(folder, DTYPES[self.spec.model.dtype], survival)
        lost = [survival.share is not None and survival.share < LEAST_SURVIVING]
        if self.spec.model.lora is not None:
            import torch

            torch.distributed.broadcast_object_list(lost, src=0)
        if lost[0]:
            self._write(folder, DTYPES["float32"], None)
        return survival.share

    def _write(self, folder: str, dtype: Any, survival: Any) -> None:
        from rlpost.models.save import save_pretrained

        tensors = self.stream.tensors(dtype, keep=self.rank == 0, survival=survival)
        if self.rank == 0:
            save_pretrained(Path(folder), self.spec.source, self.stream.described(dtype), tensors, dtype)
        else:
            for _ in tensors:
                raise AssertionError("a rank that keeps nothing got a tensor")


def _disturbed(parts: Iterable[Pairs], share: float, seed: int) -> Iterator[Pairs]:
    """The `router.noise` failpoint: what the engines get of the routers is not quite what the learner has."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def noisy(part: Pairs) -> Pairs:
        for name, tensor in part:
            if name.endswith((".gate.weight", ".router.weight")):
                noise = torch.randn(tensor.shape, generator=generator).to(tensor.device) * share * tensor.float().std()
                tensor = (tensor.float() + noise).to(tensor.dtype)
            yield name, tensor

    return map(noisy, parts)
