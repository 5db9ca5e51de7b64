"""Families of models that are known to need another layout, or not to be trained at all: refused before anything starts."""

from __future__ import annotations

from importlib.metadata import version

from rlpost.config import Config, ConfigError
from rlpost.models.architecture import hf_config
from rlpost.models.known_families import FAMILIES, TRIED


def check_family(config: Config) -> None:
    """Refuse what is known of the model's family, from its configuration alone.

    Families that are not known, code that comes with a model, and other versions of transformers are judged by the model
    itself when the learner starts (`rlpost.learner.isolation`).

    Raises:
        ConfigError: the family is not to be trained, or not in this layout.
    """
    create = config.model.create
    values = hf_config(config.model) if create is None else create.config
    if values is None or version(TRIED[0]) != TRIED[1] or (config.model.trust_remote_code and "auto_map" in values):
        return
    family = str(values.get("model_type"))
    layout, why = FAMILIES.get(family, ("packed", ""))
    key = "model.path" if create is None else "model.create.config"
    if layout == "refused":
        raise ConfigError(f"{key}: models of the family {family} cannot be trained: {why}: take another model")
    if layout == "padded" and config.learner.layout == "packed":
        raise ConfigError(f"learner.layout: packed, but in {family} models {why}: set learner.layout: padded")
