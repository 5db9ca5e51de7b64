"""Weights on disk as other weights: adapters merged into those they belong to, or another dtype."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlpost.config import ConfigError, DType, Model
from rlpost.learner.adapters import load_adapter
from rlpost.learner.model import DTYPES, load_model
from rlpost.learner.stream import WeightStream
from rlpost.learner.survival import Survival
from rlpost.models.adapters import adapter_of
from rlpost.models.save import save_pretrained
from rlpost.models.source import ModelSource


def merge_adapter(folder: Path, into: Path, model: Model, dtype: DType) -> float | None:
    """Write adapters and their base as one Hugging Face model: added in float32, rounded once to `dtype`.

    Args:
        folder: in PEFT's format, as a checkpoint of a run with `model.lora` holds it.
        model: how the base was loaded while they were trained: its dtype is what the learner rounded the base to.

    Returns:
        Which share of the update survives in `dtype` (`rlpost.learner.survival`); None where nothing was trained.

    Raises:
        ConfigError: the base is not there.
    """
    found = adapter_of(folder)
    if found is None:
        raise ConfigError(f"{folder} holds no adapters (no adapter_config.json)")
    base = found.source(model.trust_remote_code)
    loaded = load_model(base, model.model_copy(update={"lora": found.lora}), trainable=True)
    for name, parameter in loaded.named_parameters():
        if "lora_" in name:  # as precise as they were saved
            parameter.data = parameter.data.float()
    load_adapter(loaded, folder)
    survival = Survival()
    _write(loaded, into, base, dtype, survival)
    return survival.share


def convert(folder: Path, into: Path, model: Model, dtype: DType) -> None:
    """Write a Hugging Face model in another dtype.

    Args:
        model: how it was trained.
    """
    source = ModelSource.of(model, str(folder))
    loaded = load_model(source, model, trainable=False)
    _write(loaded, into, source, dtype)


def _write(model: Any, into: Path, source: ModelSource, dtype: DType, survival: Survival | None = None) -> None:
    stream, kind = WeightStream(model), DTYPES[dtype]
    save_pretrained(into, source, stream.described(kind), stream.tensors(kind, survival=survival), kind)
