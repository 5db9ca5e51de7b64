"""A weight update that is whole or refused, whatever carried it, in one piece or many.

vLLM's loaders skip names they do not know without a word, and a layer that got nothing keeps its old weights.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from vllm.model_executor.layers.attention.mla_attention import MLAAttention
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader.reload.layerwise import _layerwise_process, get_layerwise_info
from vllm.model_executor.model_loader.reload.meta import materialize_layer

from rlpost.weights import tail

BLOCK = 1 << 20


class _Read(TorchDispatchMode):
    """Remembers where the tensors that operations were given lie: a loader that skips one does nothing with it."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = tree_leaves((args, kwargs or {}))
        self.addresses.update(x.data_ptr() for x in given if isinstance(x, torch.Tensor) and not x.is_meta)
        return func(*args, **(kwargs or {}))

    def unread(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> list[str]:
        """Which of these, all alive since before, no operation was given, nor a part of."""
        at = sorted(self.addresses)

        def touched(tensor: torch.Tensor) -> bool:
            first = bisect_left(at, tensor.data_ptr())
            return first < len(at) and at[first] < tensor.data_ptr() + tensor.nbytes

        return [name for name, tensor in tensors if tensor.numel() and not touched(tensor)]


class WholeUpdate:
    """What a model of vLLM's has got of one update. Made before vLLM's layerwise reload begins, which `begin` follows."""

    def __init__(self, model: Any) -> None:
        self.model = model
        # Before the reload, which takes tied weights apart for its own bookkeeping.
        held: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            held.setdefault(id(parameter), []).append(name)
        derived = self._derived()
        # All names of each tensor: a model may know its shared experts and its tied head by several.
        self._wanted = [names for names in held.values() if not derived.intersection(names)]
        self._tied = {tail(n) for names in self._wanted if len({*map(tail, names)}) > 1 for n in names}
        self._prints: dict[str, tuple[str, tuple[Any, ...]]] = {}
        self._loaded: set[str] = set()
        self._sent: list[str] = []
        self._unread: list[str] = []
        self._failure: Exception | None = None
        self._direct: dict[str, nn.Module] = {}

    def begin(self) -> None:
        self._direct = self._written_directly()
        for module in self._direct.values():
            materialize_layer(module, get_layerwise_info(module))
            for parameter in module.parameters(recurse=False):
                parameter.data.fill_(float("nan"))  # so that what nobody writes is seen

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Load some of the update, in the place of the model's own method of this name.

        What the model's loaders raise is kept until `refuse_unless_whole`: a transfer goes on in step with its sender.
        """
        tensors = list(weights)
        self._sent += [name for name, _ in tensors]
        if self._failure is not None:
            return
        for name, tensor in tensors:
            if tail(name) in self._tied:
                self._prints[tail(name)] = name, fingerprint(tensor)
        try:
            with _Read() as read:
                loaded = self.model.load_weights(iter(tensors))
        except Exception as error:  # noqa: BLE001 - raised when the transfer is over
            self._failure = error
            return
        self._unread += read.unread(tensors)
        # What loads experts says `experts.w2_weight` of what is named `experts.routed_experts.w2_weight`.
        self._loaded.update(name.replace(".routed_experts.", ".") for name in loaded or ())

    def refuse_unless_whole(self) -> None:
        """Once everything was sent.

        Raises:
            RuntimeError: the update left a tensor of the model's unset, set one twice, or brought one that nobody read.
        """
        if self._failure is not None:
            raise self._failure
        of_vllm = f"{type(self.model).__name__} of vLLM"
        self._refuse_tied(of_vllm)
        if self._unread:
            raise RuntimeError(
                f"weight update has {len(self._unread)} of {len(self._sent)} tensors that {of_vllm} has no place for, first "
                f"{sorted(self._unread)[:3]}: the engine would serve another model than is trained. Of a head, set "
                "tie_word_embeddings in the model's config.json, as its family has it"
            )
        missing = sorted(
            names[0]
            for names in self._wanted
            if not any(n.replace(".routed_experts.", ".") in self._loaded for n in names)
        )
        missing += self._unset()
        if missing:
            raise RuntimeError(
                f"weight update left {len(missing)} of {len(self._wanted)} tensors of {type(self.model).__name__} unset, "
                f"first {missing[:3]}; the learner sent {len(self._sent)} tensors, such as {sorted(self._sent)[:3]}"
            )

    def finish(self) -> None:
        """Before vLLM's reload is closed."""
        with torch.no_grad():
            for info, module in ((get_layerwise_info(m), m) for m in self._direct.values()):
                if info.can_load():  # by loaders after all: then it is done
                    _layerwise_process(module, info)

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

    def _refuse_tied(self, of_vllm: str) -> None:
        """Refuse two different tensors for what the engine holds as one: the last to come would be served for both.

        Some models of vLLM tie their head to the embeddings whatever the configuration says (LFM2, Gemma).
        """
        for names in self._wanted:
            sent = sorted({self._prints[t] for t in map(tail, names) if t in self._prints})
            if len({found for _, found in sent}) > 1:
                raise RuntimeError(
                    f"weight update has different tensors for {' and '.join(name for name, _ in sent)}, which {of_vllm} "
                    "holds as one: set tie_word_embeddings in the model's config.json, as its family has it"
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
            wanted = any(f"{name}.{own}" in known for own in module._parameters) and not _pads(module)
            if wanted and got < whole and (got == 0 or isinstance(module, RoutedExperts)):
                unset.append(f"{name} ({got} of {whole} elements)")
        return unset


def _pads(module: nn.Module) -> bool:
    """Whether a worker's share of a vocabulary is padding alone: a small one ends before the last worker's share."""
    if not isinstance(module, VocabParallelEmbedding):
        return False
    share = module.shard_indices
    return share.num_org_elements + share.num_added_elements == 0


def fingerprint(tensor: torch.Tensor) -> tuple[str, tuple[int, ...], int]:
    """Dtype, shape and 64 bits of what a tensor holds and where, without a copy of it.

    The bits are sum_i i x_i over its elements as integers, modulo 2^64: made on the tensor's device, in blocks.
    """
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = tensor.detach().contiguous().view(-1).view(kinds[tensor.element_size()])
    found = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for start in range(0, len(bits), BLOCK):
        block = bits[start : start + BLOCK].long()
        found += (block * torch.arange(start + 1, start + 1 + len(block), device=tensor.device)).sum()
    return str(tensor.dtype), tuple(tensor.shape), int(found)
