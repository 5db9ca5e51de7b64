"""A model's Hugging Face configuration: read before anything starts, and what a run asks of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlpost.config import Config, ConfigError, Experts, Model
from rlpost.models.create import created_config
from rlpost.models.load import config_values
from rlpost.models.source import ModelSource, OutOfReachError

# What families call the sizes of their experts.
TOTAL = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")
LAYERS = ("num_hidden_layers", "num_layers")
LAYER_KINDS = ("mlp_layer_types", "layers_block_type")


def check_experts(config: Config) -> None:
    """Refuse, before anything starts, what a model's experts do not allow.

    Raises:
        ConfigError: routes of a dense model are to be replayed, or GPT-OSS is to get its weights by vLLM's receivers.
    """
    if config.routing.replay == "off" and config.weight_transfer == "object_store":
        return
    values = hf_config(config.model)
    if values is None:
        return
    kind = values.get("model_type")
    if config.routing.replay != "off" and not is_moe(values):
        raise ConfigError(
            f"routing.replay: {config.routing.replay}, but the model ({kind}) is dense: it has no routes to replay. Set "
            "routing.replay: off"
        )
    if kind == "gpt_oss" and config.weight_transfer != "object_store":
        raise ConfigError(
            f"rollout.weight_transfer: {config.weight_transfer}, but vLLM 0.30 keeps GPT-OSS' first experts and sinks "
            "when it takes weights that way, without a word: set rollout.weight_transfer: object_store"
        )


def hf_config(model: Model) -> dict[str, Any] | None:
    """A model's Hugging Face configuration: of one made here with all defaults, of others as it is written.

    None where it is out of reach: a hub id that is not in the cache, while the hub cannot be asked.

    Raises:
        ConfigError: there is no such model, or it has no configuration that can be read.
    """
    if model.create is not None:
        return dict(created_config(model.create).to_dict())
    try:
        return config_values(ModelSource.of(model))
    except OutOfReachError:
        return None


def is_moe(values: Mapping[str, Any]) -> bool:
    """Whether a model of this Hugging Face configuration has experts to choose from."""
    return (_size(_text(values), TOTAL) or 0) > 1


def experts_of(values: Mapping[str, Any]) -> Experts | None:
    """Sizes of the experts of a model, from its Hugging Face configuration; None where it has none or does not say.

    `layers` counts every layer that may have them: some models leave out further ones, which only the weights tell.
    """
    values = _text(values)
    total, per_token, layers = (_size(values, names) for names in (TOTAL, PER_TOKEN, LAYERS))
    kinds = [kind for name in LAYER_KINDS for kind in values.get(name) or ()]
    if sparse := sum(kind in ("sparse", "moe", "hash_moe") for kind in kinds):
        layers = sparse
    elif layers:
        layers -= int(values.get("first_k_dense_replace") or 0) + len(values.get("mlp_only_layers") or ())
    if total is None or total < 2 or not per_token or not layers:
        return None
    return Experts(layers=layers, per_token=per_token, total=total)


def _text(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a configuration that is about text."""
    found: Mapping[str, Any] = values.get("text_config") or values
    return found


def _size(values: Mapping[str, Any], names: Sequence[str]) -> int | None:
    """The first of these sizes that is there; the largest, where each layer has its own."""
    found = next((values[name] for name in names if values.get(name)), None)
    return max(found) if isinstance(found, list) else found
