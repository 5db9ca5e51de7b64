"""Hugging Face models for the learner: adapted, and turned back into checkpoint tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rlpost.config import Lora, Model
from rlpost.models.load import load_causal_lm
from rlpost.models.source import ModelSource
from rlpost.weights import tail

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_model(source: ModelSource, model: Model, trainable: bool) -> PreTrainedModel:
    """A causal language model in `model.dtype`, in training mode with adapters when asked for.

    Under ZeRO-3 an `HfDeepSpeedConfig` must be alive, so that parameters are sharded as they are made.
    """
    loaded = load_causal_lm(source, DTYPES[model.dtype], model.attention)
    if not trainable:
        return loaded.eval().requires_grad_(False)
    if model.lora is not None:
        add_lora(loaded, model.lora)
    return without_noise(loaded.train())


def without_noise(model: PreTrainedModel) -> PreTrainedModel:
    """The model with dropout and router jitter off: engines sample without, and would be another policy's otherwise."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and ("dropout" in name or "jitter" in name):  # given to a function
                setattr(module, name, 0.0)
    return model


def add_lora(model: PreTrainedModel, lora: Lora) -> None:
    """Put adapters in; only they stay trainable."""
    from peft import LoraConfig, inject_adapter_in_model

    model.requires_grad_(False)
    targets: Any = lora.target_modules
    if targets == "all-linear":
        head = model.get_output_embeddings()
        targets = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head]
        if not targets:
            raise ValueError(f"{type(model).__name__} has no linear layers: name them in model.lora.target_modules")
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets)
    inject_adapter_in_model(config, model)
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(
            f"model.lora.target_modules {lora.target_modules!r} matched no layer of {type(model).__name__}"
        )


def checkpoint_tensors(
    model: PreTrainedModel,
    keep: bool,
    dtype: torch.dtype,
    device: str | None = "cpu",
    wide: Collection[str] = (),
) -> dict[str, torch.Tensor]:
    """All weights under the names and shapes of the Hugging Face checkpoint format, and the buffers that go with them.

    Adapters are merged, tied weights come once, stacked experts are taken apart again. Under ZeRO-3 every rank must
    call this, in step: each tensor is gathered from all.

    Args:
        keep: whether this rank wants the result; the others get an empty dict.
        dtype: of the result, but for what the model wants in float32 whatever its dtype: the bias that selects experts
            in some routers, which must not round differently in learner and engine.
        device: where copies are put; None leaves them where they are.
        wide: ends of names (`rlpost.weights.tail`) of what is wanted in float32 besides.
    """
    from transformers.core_model_loading import revert_weight_conversion

    adapters = dict(_lora_layers(model))
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            continue
        layer = adapters.get(name.removesuffix(".base_layer.weight")) if name.endswith(".base_layer.weight") else None
        needed = [parameter] + (list(_lora_parameters(layer)) if layer is not None else [])
        with gathered(needed), torch.no_grad():
            if keep:
                value = parameter.detach()
                if layer is not None:
                    value = value + layer.get_delta_weight("default").to(value.dtype)
                tensors[name.replace(".base_layer.", ".")] = value.to(device, copy=True) if device else value.clone()
    if not keep:
        return {}
    persistent = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name in persistent:
            tensors[name] = buffer.detach().to(device, copy=True) if device else buffer.detach().clone()
    exact = tuple(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    return {
        name: tensor.to(torch.float32 if tail(name) in wide or any(part in name for part in exact) else dtype)
        for name, tensor in revert_weight_conversion(model, tensors).items()
    }


def _lora_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight") and hasattr(module, "lora_A"):
            yield name, module


def _lora_parameters(layer: Any) -> Iterator[nn.Parameter]:
    for name, parameter in layer.named_parameters():
        if "lora_" in name:
            yield parameter


@contextmanager
def gathered(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Whole parameters, where ZeRO-3 holds only this rank's shards of them."""
    sharded = [p for p in parameters if hasattr(p, "ds_id")]
    if not sharded:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(sharded):
        yield
