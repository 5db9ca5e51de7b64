"""Mixture-of-experts models as the driver sees them: their sizes, and the routes a step's samples came with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rlpost.config import SAMPLED, Config, ConfigError, Experts, Model
from rlpost.types import Sample

EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


class DamagedRoutesError(RuntimeError):
    """Routes are missing or wrong, and `routing.invalid: fail` says that the run ends then."""

    exit_code = 4


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
        for i, sample in enumerate(samples):
            if i in damaged or (sample.source == "pair" and sample.group in pairs):
                kept[i] = replace(sample, mask=np.zeros(len(sample.response_ids), bool))
    metrics = {"routing/damaged": float(len(damaged))}
    if fed:
        metrics |= {"routing/coverage": sound / fed, "routing/bytes_per_token": size / fed}
    return kept, metrics


# ------------------------------------------------------------------------------------------------------- the model


def check_experts(config: Config) -> None:
    """Refuse, before weights are loaded, what a model's experts do not allow.

    Raises:
        ConfigError: routes of a dense model are to be replayed, or GPT-OSS is to get its weights on GPUs. A model whose
            configuration is not at hand is judged when it is loaded.
    """
    values = hf_config(config.model)
    if values is None:
        return
    kind = values.get("model_type")
    if config.routing.replay != "off" and experts_of(values) is None:
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
    """A model's Hugging Face configuration, defaults included; None when it is neither made here nor a folder."""
    if model.create is not None:
        if "model_type" not in model.create.config:
            return None  # refused, with what to give, where the model is made
        from transformers import AutoConfig

        values = dict(model.create.config)
        return dict(AutoConfig.for_model(values.pop("model_type"), **values).to_dict())
    file = Path(model.path or "").expanduser() / "config.json"
    return json.loads(file.read_text()) if file.is_file() else None


def experts_of(values: Mapping[str, Any]) -> Experts | None:
    """Sizes of the experts of a model, from its Hugging Face configuration; None of a dense one.

    `layers` counts every layer that may have them: some models leave out further ones, which only the weights tell.
    """
    values = values.get("text_config", values)
    total = next((int(values[k]) for k in EXPERT_COUNTS if values.get(k)), 0)
    if total < 2:
        return None
    layers = int(values["num_hidden_layers"]) - int(values.get("first_k_dense_replace") or 0)
    return Experts(
        layers=layers - len(values.get("mlp_only_layers") or ()),
        per_token=int(values.get("num_experts_per_tok") or values.get("moe_k") or 1),
        total=total,
    )


def bytes_per_token(experts: Experts) -> int:
    """Of the routes of a token, at most: a group's samples share those of their prompt."""
    return experts.layers * experts.per_token * (1 if experts.total <= 256 else 2)
