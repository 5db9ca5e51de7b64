"""Adapters as a run uses them: which modules get one, and how engines serve them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rlpost.config import Config
from rlpost.models.adapters import adapter_of
from rlpost.models.create import created_config
from rlpost.models.load import config_values, load_config
from rlpost.models.source import ModelSource, OutOfReachError
from rlpost.rollout.adapters import AdapterSpec
from rlpost.weights import Probe, probed, to_numpy

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from rlpost.config import DType, Model

# Families whose engine computes in bfloat16 alone.
BFLOAT16_ONLY = ("gpt_oss",)


def check_adapters(config: Config) -> None:
    """Refuse, before anything starts, targets of `model.lora` that are not there or that the learner does not apply.

    Raises:
        ConfigError: naming the target, the model and what there is.
    """
    if config.model.lora is None:
        return
    if config.model.create is not None:
        adapted_modules(config.model, created_config(config.model.create))
        return
    with suppress(OutOfReachError):  # else the learner says so
        adapted_modules(config.model, load_config(ModelSource.of(config.model)))


def adapter_spec(config: Config, path: str) -> AdapterSpec | None:
    """What engines are to serve beside the weights of `path`; None where there is nothing, or merged weights are wanted.

    Where engines compute in a wider dtype than the learner, weights are merged in that: the learner's base is rounded to
    its own, and adapters beside another base would be another policy.
    """
    lora, wider = config.model.lora, (config.model.dtype, config.rollout_dtype) == ("bfloat16", "float32")
    if lora is None or config.rollout.adapters == "merged" or wider:
        return None
    modules = adapted_modules(config.model, load_config(ModelSource.of(config.model, path)))
    return AdapterSpec(lora.rank, tuple(modules), lora.dora)


def merged_dtype(config: Config, path: str) -> DType:
    """What engines compute in when adapters are merged for them: the widest they take, where nothing else is asked for."""
    if config.rollout.dtype is not None:
        return config.rollout.dtype
    kind = config_values(ModelSource.of(config.model, path)).get("model_type")
    return "bfloat16" if kind in BFLOAT16_ONLY else "float32"


def adapted_modules(model: Model, values: PretrainedConfig) -> list[str]:
    """Full names of the modules that get adapters, from the configuration alone: the model is built without memory.

    Raises:
        ConfigError: as `rlpost.learner.adapters.add_lora`.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from rlpost.learner.adapters import add_lora, lora_layers

    assert model.lora is not None
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(values, trust_remote_code=model.trust_remote_code)
    add_lora(empty, model.lora)
    return list(lora_layers(empty))


def saved_adapter(folder: Path, dtype: DType, version: int) -> tuple[dict[str, np.ndarray], dict[str, Probe]]:
    """Adapters in PEFT's format as engines take them, and probes to check them by."""
    from safetensors.torch import load_file

    from rlpost.learner.model import DTYPES

    found = adapter_of(folder)
    assert found is not None
    scaling = found.lora.scaling
    arrays = {
        name: to_numpy((tensor * scaling if ".lora_B." in name else tensor).to(DTYPES[dtype]))
        for name, tensor in load_file(folder / "adapter_model.safetensors").items()
    }
    return arrays, probed(arrays, version)
