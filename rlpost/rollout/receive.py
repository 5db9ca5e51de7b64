"""The engine's side of a weight update, as vLLM weight-transfer engines: through Ray's object store, NCCL and CUDA IPC.

All take the same three calls, so an update looks alike on CPU and GPU, and none takes an update that is not whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.platforms import current_platform

from rlpost.rollout.whole import WholeUpdate
from rlpost.weights import WHOLE, to_tensor


@dataclass
class NoInit(WeightTransferInitInfo):
    """There is nothing to set up: arrays come with the update."""


@dataclass
class Arrays(WeightTransferUpdateInfo):
    """Some or all of the weights by checkpoint name, as `rlpost.weights.to_numpy` makes them."""

    arrays: dict[str, np.ndarray]


class _Arrays(WeightTransferEngine[NoInit, Arrays]):
    """Loads what came with the call: what vLLM's own engines do with what they fetch."""

    init_info_cls = NoInit
    update_info_cls = Arrays

    def init_transfer_engine(self, init_info: NoInit) -> None:
        return None

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: Arrays) -> None:
        self.model.load_weights((name, to_tensor(array)) for name, array in update_info.arrays.items())

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        return None


class _Whole(WeightTransferEngine[Any, Any]):
    """Comes before an engine in a receiver's bases: what that one loads goes through a `WholeUpdate`."""

    _update: WholeUpdate

    def start_weight_update(self) -> None:
        self._update = WholeUpdate(self.model)
        super().start_weight_update()
        self._update.begin()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """A piece, or `rlpost.weights.WHOLE`: refused here, an update leaves a worker that can take another."""
        if update_info == WHOLE:
            self._update.refuse_unless_whole()
        else:
            super().update_weights(update_info)

    def receive_weights(self, update_info: Any) -> None:
        # Of the model an engine of vLLM's asks nothing but to load.
        self.model = self._update
        try:
            super().receive_weights(update_info)
        finally:
            self.model = self._update.model

    def finish_weight_update(self) -> None:
        self._update.finish()
        super().finish_weight_update()
        if current_platform.is_cpu():
            self._repack_heads()

    def _repack_heads(self) -> None:
        """Pack the language-model head anew.

        On CPU vLLM 0.30 keeps a packed copy of it. A head tied to the embeddings gets no weights of its own in an
        update, so its copy would stay that of the first weights, without a word: log-probs drift from step to step.
        """
        for module in self._update.model.modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)


class ObjectStoreReceiver(_Whole, _Arrays):
    pass


class IPCReceiver(_Whole, IPCWeightTransferEngine):
    pass


class NCCLReceiver(_Whole, NCCLWeightTransferEngine):
    pass
