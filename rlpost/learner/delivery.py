"""The weights of a learner rank on their way out: to engines, whatever carries them, and to disk."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from rlpost.config import DType
from rlpost.faults import amount
from rlpost.learner.spec import LearnerSpec
from rlpost.weights import Held


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

    def weights(self, dtype: DType, readable: dict[str, Held], version: int) -> tuple[Any, Any]:
        """All weights as numpy arrays by checkpoint name, and probes of a few; (None, None) but from rank 0.

        Args:
            dtype: the engine's.
            readable: names, shapes and dtypes of what the engines can be asked for.
        """
        from rlpost.learner.model import DTYPES, checkpoint_tensors
        from rlpost.weights import held_wide, make_probes, to_numpy

        survival = self._begin_survival(dtype)
        tensors = checkpoint_tensors(
            self.model,
            self.rank == 0,
            DTYPES[dtype],
            wide=held_wide(readable),
            survival=survival,
            masters=self._masters(),
        )
        self._survived = survival.share
        if self.rank != 0:
            return None, None
        if (noise := amount("router.noise", version)) is not None:
            _disturb_routers(tensors, noise, version)
        arrays = {name: to_numpy(tensor) for name, tensor in tensors.items()}
        return arrays, make_probes(arrays, readable, version)

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

    def connect(self, backend: str, engines: list[Any], world_size: int, master: tuple[str, int]) -> None:
        """Join vLLM's own weight transfer, as its trainer side. GPUs only."""
        from vllm.distributed.weight_transfer.clients import RayVLLMWeightSyncClient
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        from rlpost.learner.source import LearnerWeights

        info: Any = (
            NCCLTrainerInitInfo(rank=self.rank, master_address=master[0], master_port=master[1], world_size=world_size)
            if backend == "nccl"
            else IPCTrainerInitInfo(rank=self.rank)
        )
        self._source = LearnerWeights(self.model, self.spec.model.dtype, self._masters)
        self._sender = WeightTransferTrainerFactory.trainer_init(
            info, client=RayVLLMWeightSyncClient(engines), source=self._source
        )

    def send_weights(self, dtype: DType, readable: dict[str, Held], version: int) -> Any:
        """Send all weights to the connected engines. Returns probes from rank 0. All ranks."""
        survival = self._begin_survival(dtype)
        self._source.begin(dtype, readable, version)
        self._survived = (self._source.survival if self._sample is None else survival).share
        self._sender.send_weights()
        return self._source.probes

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
        from rlpost.learner.model import DTYPES, checkpoint_tensors
        from rlpost.learner.survival import Survival
        from rlpost.models.save import save_pretrained
        from rlpost.weights import LEAST_SURVIVING

        dtype, survival = DTYPES[self.spec.model.dtype], Survival()
        masters = self._masters()
        tensors = checkpoint_tensors(self.model, self.rank == 0, dtype, survival=survival, masters=masters)
        lost = [survival.share is not None and survival.share < LEAST_SURVIVING]
        if self.spec.model.lora is not None:
            import torch

            torch.distributed.broadcast_object_list(lost, src=0)
        if lost[0]:
            dtype = DTYPES["float32"]
            tensors = checkpoint_tensors(self.model, self.rank == 0, dtype, masters=masters)
        if self.rank == 0:
            save_pretrained(Path(folder), self.spec.source, tensors, dtype)
        return survival.share


def _disturb_routers(tensors: dict[str, Any], share: float, seed: int) -> None:
    """The `router.noise` failpoint: what the engines get of the routers is not quite what the learner has."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for name, tensor in tensors.items():
        if name.endswith((".gate.weight", ".router.weight")):
            noise = torch.randn(tensor.shape, generator=generator) * share * tensor.float().std()
            tensors[name] = (tensor.float() + noise).to(tensor.dtype)
