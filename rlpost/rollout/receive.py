"""The engine's side of a weight update through Ray's object store, as a vLLM weight-transfer engine.

It takes the same three calls as vLLM's own NCCL and IPC engines, so an update looks alike on CPU and GPU.
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
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.platforms import current_platform

from rlpost.weights import to_tensor


@dataclass
class NoInit(WeightTransferInitInfo):
    """There is nothing to set up: arrays come with the update."""


@dataclass
class Arrays(WeightTransferUpdateInfo):
    """All weights by checkpoint name, as `rlpost.weights.to_numpy` makes them."""

    arrays: dict[str, np.ndarray]


class ObjectStoreReceiver(WeightTransferEngine[NoInit, Arrays]):
    init_info_cls = NoInit
    update_info_cls = Arrays

    def init_transfer_engine(self, init_info: NoInit) -> None:
        return None

    def start_weight_update(self) -> None:
        # Before the reload, which takes tied weights apart for its own bookkeeping.
        self._wanted = {name for name, _ in self.model.named_parameters()}
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: Arrays) -> None:
        """Load every tensor, and refuse an update that leaves any of the model's own unset.

        vLLM's loaders skip names they do not know without a word, and a layer that got nothing keeps its old weights.
        """
        loaded = self.model.load_weights((name, to_tensor(array)) for name, array in update_info.arrays.items())
        missing = sorted(self._wanted - set(loaded or ()))
        if missing:
            raise RuntimeError(
                f"weight update left {len(missing)} of {len(self._wanted)} tensors of {type(self.model).__name__} unset, "
                f"first {missing[:3]}; the learner sent {len(update_info.arrays)} tensors, such as "
                f"{sorted(update_info.arrays)[:3]}"
            )

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        if current_platform.is_cpu():
            self._repack_heads()

    def _repack_heads(self) -> None:
        """Pack the language-model head anew.

        On CPU vLLM 0.30 keeps a packed copy of it. A head tied to the embeddings gets no weights of its own in an
        update, so its copy would stay that of the first weights, without a word: log-probs drift from step to step.
        """
        for module in self.model.modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)

    def shutdown(self) -> None:
        return None
