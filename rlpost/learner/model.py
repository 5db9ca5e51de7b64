"""Hugging Face models for the learner: in its dtype, adapted, and without noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from rlpost.config import Model
from rlpost.learner.adapters import add_lora
from rlpost.learner.attention import register
from rlpost.models.load import load_causal_lm
from rlpost.models.source import ModelSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_model(source: ModelSource, model: Model, trainable: bool) -> PreTrainedModel:
    """A causal language model in `model.dtype`, in training mode with adapters when asked for.

    Under ZeRO-3 an `HfDeepSpeedConfig` must be alive, so that parameters are sharded as they are made.
    """
    register()
    loaded = load_causal_lm(source, DTYPES[model.dtype], None if model.attention == "auto" else model.attention)
    if model.head_dtype is not None:
        loaded.config.head_dtype = model.head_dtype
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
