"""A model's configuration made small: the same architecture with fewer layers, narrower, with fewer experts.

What decides which code runs is kept: the kinds of layers and their order, grouped queries, latent attention's own sizes,
groups of experts, tied embeddings, how positions are encoded. Sizes go by the names that configuration classes use.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig

HEAD = 32  # numbers of an attention head; kernels of engines on CPUs have no smaller one

# The most of each size. All divide by two, for engines of two GPUs.
MOST: dict[str, int] = {
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff", "dff", "d_inner"), 128),
    **dict.fromkeys(("intermediate_size_mlp", "shared_intermediate_size"), 128),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 64),
    **dict.fromkeys(("moe_shared_expert_intermediate_size",), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 8),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "num_expert_group"), 2),
    **dict.fromkeys(("topk_group",), 1),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("zero_expert_num",), 4),
    **dict.fromkeys(("q_lora_rank",), 32),
    **dict.fromkeys(("linear_num_heads", "linear_num_key_heads", "index_n_heads"), 2),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 16),
    **dict.fromkeys(("mamba_n_groups", "n_groups", "mamba_ngroups"), 1),
    **dict.fromkeys(("time_step_rank", "mamba_dt_rank"), 8),
    **dict.fromkeys(("sliding_window", "attention_window_size", "window_size", "index_topk"), 128),
    **dict.fromkeys(("hidden_size_per_layer_input",), 16),
    **dict.fromkeys(("num_nextn_predict_layers", "num_mtp_layers"), 0),
}
WIDTHS = ("hidden_size", "n_embd", "d_model", "n_embed")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads")
KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "num_attention_groups")
HEAD_SIZES = ("head_dim", "attention_head_dim", "attn_head_dim", "kv_channels", "d_head", "linear_head_dim")
STATE_HEADS = ("mamba_n_heads", "mamba_num_heads")
STATE_HEAD_SIZES = ("mamba_d_head", "mamba_head_dim", "mamba_headdim")
# Sizes that some families want to be a multiple of the width, or of half of it: they stay that multiple.
MULTIPLES = (1, 2, 4)
# Layers of another kind come after so many, or each so many.
FIRST = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")
EACH = re.compile(r"(layer_period|layer_interval|_step|every_n_layers|layer_group_size|sliding_window_pattern)$")
NUMBERS = ("mlp_only_layers", "moe_layers", "full_attn_idxs")  # lists of layers by their number
KINDS = ("layer_types", "layers_block_type", "block_types", "mlp_layer_types")


def shrunk(config: PretrainedConfig, **given: Any) -> PretrainedConfig:
    """The configuration of a small model of the same architecture.

    Args:
        given: values that are set as they are, such as the vocabulary of another tokenizer.

    Raises:
        Exception: whatever the configuration class says of sizes that do not go together.
    """
    values = config.to_dict()
    text = values["text_config"] if isinstance(values.get("text_config"), dict) else values
    if "vocab_size" in given and text.get("vocab_size_per_layer_input"):
        given["vocab_size_per_layer_input"] = given["vocab_size"]
    text.update(small(text), **given)
    kind = values.pop("model_type")
    for name in ("transformers_version", "id2label", "label2id"):
        values.pop(name, None)
    made = type(config)(**values)
    assert made.model_type == kind
    return made


def small(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a configuration's text part that change, with what they change to."""
    now = {name: min(value, MOST[name]) for name, value in values.items() if name in MOST and _counts(value)}
    layers, kept = kept_layers(values), {}
    for name in LAYERS:
        if _counts(values.get(name)):
            kept[name] = layers
    now |= kept | _by_layer(values, layers) | _heads(values)
    width = _first({**values, **now}, WIDTHS)
    wide = _first(values, WIDTHS)
    for name, value in values.items():
        if name in WIDTHS or not wide or not width or type(value) is not int:
            continue
        if name in now and name not in MOST:
            continue
        times = next((m for m in MULTIPLES if value == m * wide), None)
        if times and (name in MOST or re.search(r"(width|size|dim)$", name)):
            now[name] = times * width
    now |= _state_heads({**values, **now}, width)
    if "initializer_range" in values:
        now["initializer_range"] = 0.1  # so that the small model has opinions that rounding does not tip
    return {name: value for name, value in now.items() if value != values.get(name)}


def kept_layers(values: Mapping[str, Any]) -> int:
    """How many of the first layers have one of each kind there is; at least two, where there are two."""
    total = _layers(values)
    kinds = [tuple(column) for column in zip(*_lists(values).values(), strict=True)]
    needed = max((kinds.index(kind) + 1 for kind in kinds), default=2)
    if hybrids := [i for i, kind in enumerate(kinds) if "hybrid" in kind]:  # they share their weights: one has none
        needed = max(needed, hybrids[:2][-1] + 1)
    repeated = (len(values[name]) for name in KINDS if values.get(name) and len(values[name]) < total)
    needed = max([needed, *repeated, *(values[name] + 1 for name in FIRST if _counts(values.get(name)))])
    needed = max([needed, *(v for name, v in values.items() if EACH.search(name) and _counts(v) and v < total)])
    dense = [i for i in values.get("mlp_only_layers") or () if isinstance(i, int)]
    if dense:
        sparse = next((i for i in range(total) if i not in dense), total - 1)
        needed = max(needed, min(dense) + 1, sparse + 1)
    if own := values.get("per_layer_config"):
        needed = max(needed, min(map(int, own)) + 1)
    return max(1, min(total, max(2, needed)))


def _layers(values: Mapping[str, Any]) -> int:
    """How many layers a configuration has."""
    listed = next((len(values[name]) for name in KINDS if values.get(name)), None)
    return _first(values, LAYERS) or listed or 2


def _lists(values: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What a configuration lists for each layer."""
    layers = _layers(values)
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, list) and len(value) == layers > 1 and name not in NUMBERS
    }


def _by_layer(values: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """What a configuration says of each layer, of the first ones alone."""
    now: dict[str, Any] = {name: listed[:layers] for name, listed in _lists(values).items()}
    for name in NUMBERS:
        if isinstance(listed := values.get(name), list):
            now[name] = [i for i in listed if i < layers]
    if own := values.get("per_layer_config"):
        now["per_layer_config"] = {
            i: {k: min(v, 2 * HEAD) if k in HEAD_SIZES else v for k, v in layer.items()}
            for i, layer in own.items()
            if int(i) < layers
        }
    if isinstance(pairs := values.get("attention_types"), list) and pairs:  # GPT-Neo: [[kinds], times]
        now["attention_types"] = [[kinds, layers // len(kinds)] for kinds, _ in pairs[:1]]
    if _counts(values.get("max_window_layers")):
        now["max_window_layers"] = min(values["max_window_layers"], layers)
    if _counts(values.get("moe_layer_end_index")):
        now["moe_layer_end_index"] = min(values["moe_layer_end_index"], layers - 1)
    if _counts(values.get("num_kv_shared_layers")):
        now["num_kv_shared_layers"] = min(values["num_kv_shared_layers"], layers // 2)
    return now


def _heads(values: Mapping[str, Any]) -> dict[str, Any]:
    """Heads of attention and the width: as many queries to a key as there are, but for two at most."""
    heads, keys, width = _first(values, HEADS), _first(values, KEY_HEADS), _first(values, WIDTHS)
    now: dict[str, Any] = {}
    few_keys = min(keys or heads or 2, 2)
    few = few_keys * (2 if keys and heads and heads > keys else 1)
    few = max(few, min(heads or 2, 2))
    now |= {name: few for name in HEADS if _counts(values.get(name))}
    now |= {name: few_keys for name in KEY_HEADS if _counts(values.get(name))}
    latent = "kv_lora_rank" in values  # the sizes of its heads are those that its kernels are written for
    sized = [name for name in HEAD_SIZES if _counts(values.get(name))]
    if not latent:
        now |= {name: min(values[name], HEAD) for name in sized}
        size = _first(values, HEAD_SIZES) or (width // heads if width and heads else None)
        now |= _rotary(values, size, min(size or HEAD, HEAD))
    if _counts(values.get("linear_num_value_heads")):
        ratio = values["linear_num_value_heads"] // (values.get("linear_num_key_heads") or 1)
        now["linear_num_value_heads"] = 2 * min(ratio, 2)
    narrow = few * HEAD if not sized or latent else 2 * HEAD
    now |= {name: min(values[name], narrow) for name in WIDTHS if _counts(values.get(name))}
    return now


def _rotary(values: Mapping[str, Any], size: int | None, now: int) -> dict[str, Any]:
    """What counts the numbers of a head that turn with the position, for heads of another size."""
    found: dict[str, Any] = {}
    if not size:
        return found
    if _counts(values.get("rotary_dim")):
        found["rotary_dim"] = max(2, values["rotary_dim"] * now // size)
    rope = copy.deepcopy(values.get("rope_parameters"))
    if isinstance(rope, dict):
        for one in (rope, *(inner for inner in rope.values() if isinstance(inner, dict))):
            for name in ("short_factor", "long_factor"):
                if isinstance(listed := one.get(name), list):
                    one[name] = listed[: max(1, len(listed) * now // size)]
            if isinstance(sections := one.get("mrope_section"), list):
                parts = [part * now // size for part in sections]
                one["mrope_section"] = [sum(sections) * now // size - sum(parts[1:]), *parts[1:]]
        found["rope_parameters"] = rope
    return found


def _state_heads(values: Mapping[str, Any], width: int | None) -> dict[str, Any]:
    """Heads of a state-space layer, which make up its inner width."""
    expand = _first(values, ("mamba_expand", "expand"))
    heads = next((name for name in STATE_HEADS if _counts(values.get(name))), None)
    if values.get("model_type") == "mamba2":
        heads = "num_heads"
    if heads is None or not width:
        return {}
    inner = (expand or 2) * width
    now = {name: HEAD for name in STATE_HEAD_SIZES if _counts(values.get(name))}
    now[heads] = inner // HEAD
    if _counts(values.get("mamba_d_ssm")):
        now["mamba_d_ssm"] = inner
    return now


def _counts(value: Any) -> bool:
    return type(value) is int and value > 0


def _first(values: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    return next((values[name] for name in names if _counts(values.get(name))), None)
