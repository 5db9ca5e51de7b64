"""Which implementations of attention a model has, known from its configuration and the shapes of its network alone."""

from __future__ import annotations

from typing import Any

from rlpost.config import Config

LAYERS = {"full_attention", "sliding_attention"}
HEADS = ("head_dim", "qk_head_dim", "v_head_dim")
WIDEST = 256  # numbers of a head that the kernels have
# Seen in transformers 5.23: what no flag of the class says. Any other is refused when the learner starts.
DROPPED = {"nemotron": "its layers do not tell their attention where sequences begin"}


def implementations(network: Any) -> tuple[tuple[str, ...], str]:
    """What of `model.attention` a network of transformers has, and why not `varlen`; "" where it has that."""
    why_not = without_varlen(network)
    has = {
        "sdpa": network._supports_sdpa,
        "flash_attention_2": network._supports_flash_attn,
        "varlen": not why_not,
    }
    return ("eager", *(name for name, there in has.items() if there)), why_not


def without_varlen(network: Any) -> str:
    """Why attention of this network is not to be had by sequences' lengths alone; "" where it is."""
    text = network.config.get_text_config(decoder=True)
    others = sorted({str(kind) for kind in getattr(text, "layer_types", None) or ()} - LAYERS)
    if others:
        return f"it has layers of {' and '.join(others)}"
    if getattr(network, "_is_stateful", False):
        return "it has layers that carry a state from token to token"
    if not network._supports_attention_backend:
        return "its attention is not behind the interface of transformers"
    if not network._supports_flash_attn:
        return "its attention depends on a mask of its own"
    if text.model_type in DROPPED:
        return DROPPED[text.model_type]
    if cap := getattr(text, "attn_logit_softcapping", None):
        return f"it caps the products of attention (attn_logit_softcapping: {cap}), which the kernel does not"
    if any("sink" in name for name, _ in network.named_parameters()):
        return "its attention has sinks, which the kernel has not"
    if (wide := max(size for name in HEADS for size in {0, *by_layer(text, name)})) > WIDEST:
        return f"it has heads of {wide} numbers, and the kernel {WIDEST} at most"
    return ""


def by_layer(text: Any, name: str) -> set[int]:
    """The numbers a configuration has for a key, which in some families differ from layer to layer."""
    values = text.to_dict()
    layers = values.get("per_layer_config")  # where it is there, asking the configuration itself is an error
    found = [at.get(name) for at in (values, *layers.values())] if layers else [getattr(text, name, None)]
    return {number for number in found if isinstance(number, int)}


def preferred(config: Config) -> tuple[str, ...]:
    """Implementations in the order in which `model.attention: auto` takes the first that a model has.

    On CPUs varlen is a call for each sequence: faster than the mask of a packed row, slower than padded rows at once.
    """
    fast = config.model.dtype == "bfloat16" if config.on_gpu else config.learner.layout == "packed"
    return ("varlen", "sdpa", "eager") if fast else ("sdpa", "eager")
