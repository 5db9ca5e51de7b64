"""The engine's side of a weight update through Ray's object store, as a vLLM weight-transfer engine.

It takes the same three calls as vLLM's own NCCL and IPC engines, so an update looks alike on CPU and GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
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

from rlpost.weights import tail, to_tensor


@dataclass
class NoInit(WeightTransferInitInfo):
    """There is nothing to set up: arrays come with the update."""


@dataclass
class Arrays(WeightTransferUpdateInfo):
    """All weights by checkpoint name, as `rlpost.weights.to_numpy` makes them."""

    arrays: dict[str, np.ndarray]


class _Read(TorchDispatchMode):
    """Remembers what operations were given, by `_storage`: a loader that skips a tensor does nothing with it."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = tree_leaves((args, kwargs or {}))
        self.storages.update(_storage(x) for x in given if isinstance(x, torch.Tensor) and not x.is_meta)
        return func(*args, **(kwargs or {}))


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class ObjectStoreReceiver(WeightTransferEngine[NoInit, Arrays]):
    init_info_cls = NoInit
    update_info_cls = Arrays

    def init_transfer_engine(self, init_info: NoInit) -> None:
        return None

    def start_weight_update(self) -> None:
        # Before the reload, which takes tied weights apart for its own bookkeeping.
        held: dict[int, list[str]] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            held.setdefault(id(parameter), []).append(name)
        derived = self._derived()
        # All names of each tensor: a model may know its shared experts and its tied head by several.
        self._wanted = [names for names in held.values() if not derived.intersection(names)]
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
        """Load every tensor, and refuse an update that leaves any of the model's own unset, sets one twice or reads one not.

        vLLM's loaders skip names they do not know without a word, and a layer that got nothing keeps its old weights.
        """
        self._check_tied(update_info.arrays)
        tensors = {name: to_tensor(array) for name, array in update_info.arrays.items()}
        with _Read() as read:
            loaded = self.model.load_weights(iter(tensors.items()))
        if unread := [n for n, tensor in tensors.items() if tensor.numel() and _storage(tensor) not in read.storages]:
            raise RuntimeError(
                f"weight update has {len(unread)} of {len(tensors)} tensors that {type(self.model).__name__} of vLLM has no "
                f"place for, first {sorted(unread)[:3]}: the engine would serve another model than is trained. Of a head, set "
                "tie_word_embeddings in the model's config.json, as its family has it"
            )
        # What loads experts says `experts.w2_weight` of what is named `experts.routed_experts.w2_weight`.
        named = {name.replace(".routed_experts.", ".") for name in loaded or ()}
        missing = sorted(
            names[0] for names in self._wanted if not any(n.replace(".routed_experts.", ".") in named for n in names)
        )
        missing += self._unset()
        if missing:
            raise RuntimeError(
                f"weight update left {len(missing)} of {len(self._wanted)} tensors of {type(self.model).__name__} unset, "
                f"first {missing[:3]}; the learner sent {len(update_info.arrays)} tensors, such as "
                f"{sorted(update_info.arrays)[:3]}"
            )

    def _check_tied(self, arrays: dict[str, np.ndarray]) -> None:
        """Refuse two different tensors for what the engine holds as one: the last to come would be served for both.

        Some models of vLLM tie their head to the embeddings whatever the configuration says (LFM2, Gemma).
        """
        by_tail = {tail(name): name for name in arrays}
        for names in self._wanted:
            sent = sorted({by_tail[tail(name)] for name in names if tail(name) in by_tail and len(names) > 1})
            if any(not np.array_equal(arrays[sent[0]], arrays[other]) for other in sent[1:]):
                raise RuntimeError(
                    f"weight update has different tensors for {' and '.join(sent)}, which {type(self.model).__name__} of "
                    "vLLM holds as one: set tie_word_embeddings in the model's config.json, as its family has it"
                )

    def _unset(self) -> list[str]:
        """Modules that got nothing whatever the model says it loaded, or not all of their experts.

        One tensor holds all experts of a layer, so that its name is loaded with the first of them.
        """
        unset = []
        known = {names[0] for names in self._wanted}  # a tied head gets its weights under the embeddings' name
        for name, module in self.model.named_modules():
            info = get_layerwise_info(module)
            if name in self._direct:
                if any(p.isnan().any() for p in module.parameters(recurse=False)):
                    unset.append(name)
                continue
            # A module that has got everything is done, and forgets how much it was.
            got, whole = info.load_numel, info.load_numel_total or 0
            wanted = any(f"{name}.{own}" in known for own in module._parameters)
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
