"""The engine's side of a weight update through Ray's object store, as a vLLM weight-transfer engine.

It takes the same three calls as vLLM's own NCCL and IPC engines, so an update looks alike on CPU and GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.attention.mla_attention import MLAAttention
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import _layerwise_process, get_layerwise_info
from vllm.model_executor.model_loader.reload.meta import materialize_layer
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
        self._wanted = {name for name, _ in self.model.named_parameters()} - self._derived()
        initialize_layerwise_reload(self.model)
        self._direct = self._written_directly()
        for module in self._direct.values():
            materialize_layer(module, get_layerwise_info(module))
            for parameter in module.parameters(recurse=False):
                parameter.data.fill_(float("nan"))  # so that what nobody writes is seen

    def _derived(self) -> set[str]:
        """Parameters that are made of others after a load: what latent attention multiplies its queries and values by."""
        attention = ((name, m) for name, m in self.model.named_modules() if isinstance(m, MLAAttention))
        return {f"{name}.{own}" for name, m in attention for own in m._parameters}

    def _written_directly(self) -> dict[str, nn.Module]:
        """Modules whose parameters the model writes itself, by name.

        vLLM's reload hands out placeholders and waits for the loaders of parameters to be called. The GPT-OSS model of
        vLLM 0.30 copies experts and attention sinks past them: into the placeholders, and the old ones are put back.
        """
        if type(self.model).__name__ != "GptOssForCausalLM":
            return {}
        modules = self.model.named_modules()
        return {name: m for name, m in modules if isinstance(m, RoutedExperts) or "sinks" in m._parameters}

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: Arrays) -> None:
        """Load every tensor, and refuse an update that leaves any of the model's own unset.

        vLLM's loaders skip names they do not know without a word, and a layer that got nothing keeps its old weights.
        """
        loaded = self.model.load_weights((name, to_tensor(array)) for name, array in update_info.arrays.items())
        # What loads experts says `experts.w2_weight` of what is named `experts.routed_experts.w2_weight`.
        named = {name.replace(".routed_experts.", ".") for name in loaded or ()}
        missing = sorted(name for name in self._wanted if name.replace(".routed_experts.", ".") not in named)
        missing += self._unset()
        if missing:
            raise RuntimeError(
                f"weight update left {len(missing)} of {len(self._wanted)} tensors of {type(self.model).__name__} unset, "
                f"first {missing[:3]}; the learner sent {len(update_info.arrays)} tensors, such as "
                f"{sorted(update_info.arrays)[:3]}"
            )

    def _unset(self) -> list[str]:
        """Modules that got nothing whatever the model says it loaded, or not all of their experts.

        One tensor holds all experts of a layer, so that its name is loaded with the first of them.
        """
        unset = []
        for name, module in self.model.named_modules():
            info = get_layerwise_info(module)
            if name in self._direct:
                if any(p.isnan().any() for p in module.parameters(recurse=False)):
                    unset.append(name)
                continue
            # A module that has got everything is done, and forgets how much it was.
            got, whole = info.load_numel, info.load_numel_total or 0
            wanted = any(f"{name}.{own}" in self._wanted for own in module._parameters)
            if wanted and got < whole and (got == 0 or isinstance(module, RoutedExperts)):
                unset.append(f"{name} ({got} of {whole} elements)")
        return unset

    def finish_weight_update(self) -> None:
        with torch.no_grad():
            for info, module in ((get_layerwise_info(m), m) for m in self._direct.values()):
                if info.can_load():  # by loaders after all: then it is done
                    _layerwise_process(module, info)
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
