"""Hugging Face models for the learner: adapted, and turned back into checkpoint tensors."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
from torch import nn

from rlpost.config import Model
from rlpost.learner.adapters import add_lora, lora_layers, merged, trained
from rlpost.learner.masters import Masters, gathered
from rlpost.learner.survival import Survival
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


def checkpoint_tensors(
    model: PreTrainedModel,
    keep: bool,
    dtype: torch.dtype,
    device: str | None = "cpu",
    wide: Collection[str] = (),
    survival: Survival | None = None,
    masters: Masters | None = None,
) -> dict[str, torch.Tensor]:
    """All weights under the names and shapes of the Hugging Face checkpoint format, and the buffers that go with them.

    Adapters are merged in float32 and rounded once, tied weights come once, stacked experts are taken apart again. Under ZeRO-3 every rank must
    call this, in step: each tensor is gathered from all.

    Args:
        keep: whether this rank wants the result; the others get an empty dict.
        dtype: of the result, but for what the model wants in float32 whatever its dtype: the bias that selects experts
            in some routers, which must not round differently in learner and engine.
        device: where copies are put; None leaves them where they are.
        wide: ends of names (`rlpost.weights.tail`) of what is wanted in float32 besides.
        survival: told what of the adapters is left after rounding.
        masters: where adapters are more precise than in the model.
    """
    from transformers.core_model_loading import revert_weight_conversion

    layers, adapters = lora_layers(model), trained(model, masters or Masters(), keep)
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            continue
        adapted = name.removesuffix(".base_layer.weight") if name.endswith(".base_layer.weight") else ""
        with gathered([parameter]), torch.no_grad():
            if keep:
                value = parameter.detach()
                if adapted in layers:
                    whole, base = merged(adapted, layers[adapted], value, adapters), value.float()
                    if survival is not None:
                        survival.add(whole - base, whole.to(dtype).float() - base.to(dtype).float())
                    value = whole.to(dtype)
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
