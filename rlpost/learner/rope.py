"""Rotary embeddings that depend on how long a batch is, held to what the engine has."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


def fix_rope(model: nn.Module, longest: int) -> None:
    """Make a position mean the same in every batch: what it means to an engine that holds `longest` tokens.

    transformers chooses the frequencies of "longrope" (Phi) by the longest position of a batch and of "dynamic" by the
    longest so far, so the log-probs of a sequence would move with what else is learned from. vLLM decides once, from
    `max_model_len`: the long factors of longrope for all sequences as soon as one could go past the length of the
    original training, and for dynamic what holds up to that length.

    Args:
        longest: tokens of the longest sequence an engine takes, its `max_model_len`.
    """
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        if isinstance(kinds, str):
            if _fix(module, kinds, None, longest):
                module.rope_type = "default"
        elif isinstance(kinds, dict):  # one for each kind of layer
            module.rope_type = {
                layer: "default" if _fix(module, kind, layer, longest) else kind for layer, kind in kinds.items()
            }


def _fix(module: Any, kind: str, layer: str | None, longest: int) -> bool:
    """Whether these frequencies depended on length; they do so no more."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    if kind != "longrope":
        return "dynamic" in kind  # as they were made: for the length of the original training
    parameters = module.config.rope_parameters if layer is None else module.config.rope_parameters[layer]
    original = parameters["original_max_position_embeddings"]
    named = {} if layer is None else {"layer_type": layer}
    frequencies, scaling = ROPE_INIT_FUNCTIONS[kind](module.config, None, seq_len=longest, **named)
    scaling = parameters.get("long_mscale" if longest > original else "short_mscale") or scaling
    prefix = "" if layer is None else f"{layer}_"
    with torch.no_grad():
        getattr(module, f"{prefix}inv_freq").copy_(frequencies)
    setattr(module, f"{prefix}attention_scaling", scaling)
    if callable(getattr(module, "rope_init_fn", None)):  # Phi-MoE makes them anew in every forward
        module.rope_init_fn = lambda *_, **__: (module.inv_freq, scaling)
        module.config = copy.deepcopy(module.config)
        module.config.rope_parameters["rope_type"] = "default"
    return True
