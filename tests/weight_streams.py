"""What a stream of weights is held against: the model converted at once, and memory counted by storages."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion

from rlpost.config import Lora
from rlpost.learner.adapters import add_lora, lora_layers
from rlpost.memory.counted import Storages
from rlpost.weights import tail
from tests.moe_models import FAMILIES, make_model

DENSE = {
    "vocab_size": 40,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "pad_token_id": 0,
}
PLAIN = {
    "qwen2": {"tie_word_embeddings": False},
    "gemma2": {"tie_word_embeddings": True},
    "glm4": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    "gpt_neox": {},
    "falcon_mamba": {},
    "lfm2": {"tie_word_embeddings": True},
}
LARGE = {"qwen2": {"hidden_size": 256, "intermediate_size": 512}, **{key: {"hidden_size": 256} for key in FAMILIES}}
MEASURED = ("qwen2", "qwen3_moe", "deepseek_v3", "gpt_oss")


def made(family: str, dtype: torch.dtype = torch.float32, **sizes: object):
    if family in FAMILIES:
        return make_model(family, dtype=dtype, num_hidden_layers=4, **sizes)
    known = AutoConfig.for_model(family).to_dict()
    values = {name: value for name, value in {**DENSE, **PLAIN[family], **sizes}.items() if name in known}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **values), dtype=dtype)


def adapted(model, **lora: object):
    """As if something had been learned, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        add_lora(model, Lora(rank=4, **lora))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model


def at_once(model, dtype: torch.dtype, wide: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    """The whole model converted by transformers, and adapters merged by peft's own formula."""
    layers = {f"{name}.base_layer.weight": layer for name, layer in lora_layers(model).items()}
    tensors = {}
    for name, tensor in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
        if "lora_" not in name and name in model.state_dict():
            value = tensor.detach()
            if name in layers:
                layer = layers[name]
                (a, b) = (m["default"].weight.detach().float() for m in (layer.lora_A, layer.lora_B))
                whole = value.float() + b * layer.scaling["default"] @ a
                value = whole.to(dtype)
            tensors[name.replace(".base_layer.", ".")] = value
    exact = tuple(model._keep_in_fp32_modules_strict or ())
    return {
        name: tensor.to(torch.float32 if tail(name) in wide or any(part in name for part in exact) else dtype)
        for name, tensor in revert_weight_conversion(model, tensors).items()
    }


class Memory(Storages):
    """Bytes of the tensors made within; what operations are given was there before, unless it was made within."""

    def __init__(self) -> None:
        super().__init__("cpu")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs or {})):
            if isinstance(tensor, torch.Tensor) and id(storage := tensor.untyped_storage()) not in self._seen:
                self._see(storage, 0)
        return super().__torch_dispatch__(func, types, args, kwargs)


def largest_layer(model: torch.nn.Module) -> int:
    """Bytes of the largest layer: all of a decoder layer, or a tensor that is in none."""
    layers: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        index = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        key = name if index is None else ".".join(parts[: index + 1])
        layers[key] = layers.get(key, 0) + parameter.numel() * parameter.element_size()
    return max(layers.values())
