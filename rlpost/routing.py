"""Mixture-of-experts models as the driver sees them: their sizes, and the routes a step's samples came with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rlpost.config import SAMPLED, Config, ConfigError, Experts, Model
from rlpost.exit_codes import ALARM
from rlpost.types import Sample

# What families call the sizes of their experts.
TOTAL = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")
LAYERS = ("num_hidden_layers", "num_layers")
LAYER_KINDS = ("mlp_layer_types", "layers_block_type")


class DamagedRoutesError(RuntimeError):
    """Routes are missing or wrong, and `routing.invalid: fail` says that the run ends then."""

    exit_code = ALARM


def admitted(
    samples: Sequence[Sample], invalid: Literal["live", "mask", "fail"]
) -> tuple[list[Sample], dict[str, float]]:
    """The samples, those with damaged routes as `invalid` has it, and metrics of all that an engine sampled.

    Where one sample of a pair is masked, the other is too.

        routing/coverage          share of the tokens that were fed whose routes are there and sound
        routing/damaged           samples of which a token has none
        routing/bytes_per_token   of the routes, each prompt's counted once for its group

    Raises:
        DamagedRoutesError: some are damaged and `invalid` is "fail".
    """
    fed = sound = size = 0
    seen: set[int] = set()
    damaged: list[int] = []
    for i, sample in enumerate(samples):
        if sample.source not in SAMPLED:
            continue
        here = len(sample.prompt_ids) + len(sample.response_ids) - 1
        good = int(sample.routes.valid.sum()) if sample.routes is not None else 0
        fed, sound = fed + here, sound + good
        if good < here:
            damaged.append(i)
        if sample.routes is not None:
            size += sample.routes.own.nbytes
            if id(sample.routes.shared) not in seen:
                seen.add(id(sample.routes.shared))
                size += sample.routes.shared.nbytes
    if damaged and invalid == "fail":
        first = samples[damaged[0]]
        raise DamagedRoutesError(
            f"{len(damaged)} of {len(samples)} samples have tokens without sound routes, first sample {first.number} of "
            f"group {first.group}, and routing.invalid is fail; live or mask go on without them"
        )
    kept = list(samples)
    if invalid == "mask":
        pairs = {samples[i].group for i in damaged if samples[i].source == "pair"}
        other_sides = {i for i, s in enumerate(samples) if s.source == "pair" and s.group in pairs}
        for i in other_sides.union(damaged):
            kept[i] = replace(kept[i], mask=np.zeros(len(kept[i].response_ids), bool))
    metrics = {"routing/damaged": float(len(damaged))}
    if fed:
        metrics |= {"routing/coverage": sound / fed, "routing/bytes_per_token": size / fed}
    return kept, metrics


# ------------------------------------------------------------------------------------------------------- the model


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

    Of a hub id it is the cached or the hub's. None when it cannot be had: without it a run does not start either, since
    the driver reads the tokenizer from the same place.
    """
    if model.create is not None:
        if "model_type" not in model.create.config:
            return None  # refused, with what to give, where the model is made
        from transformers import AutoConfig

        values = dict(model.create.config)
        return dict(AutoConfig.for_model(values.pop("model_type"), **values).to_dict())
    assert model.path is not None
    folder = Path(model.path).expanduser()
    if folder.is_dir():
        file = folder / "config.json"
        return json.loads(file.read_text()) if file.is_file() else None
    from transformers import PretrainedConfig

    try:
        return PretrainedConfig.get_config_dict(model.path)[0] or None
    except OSError:  # no such id, or the hub is out of reach
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


def bytes_per_token(experts: Experts) -> int:
    """Of the routes of a token, at most: a group's samples share those of their prompt."""
    return experts.layers * experts.per_token * (1 if experts.total <= 256 else 2)
