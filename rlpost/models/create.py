"""Small models with random weights, made on the spot."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from rlpost.config import ConfigError, CreateModel, Model
from rlpost.models.load import load_tokenizer
from rlpost.models.source import ModelSource
from rlpost.user_code import nearest

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


def created_config(spec: CreateModel) -> PretrainedConfig:
    """The configuration of the model that `create_model` makes: what is given, and the tokenizer's vocabulary.

    Raises:
        ConfigError: its type is not named, not known, or does not take these values.
    """
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from rlpost.data import make_tokenizer

    tokenizer = make_tokenizer(spec.tokenizer)
    values = dict(spec.config)
    if "model_type" not in values:
        raise ConfigError("model.create.config needs model_type, for example qwen2")
    kind = values.pop("model_type")
    if kind not in CONFIG_MAPPING:
        raise ConfigError(
            f"model.create.config.model_type: transformers has no {kind!r}{nearest(str(kind), list(CONFIG_MAPPING))}"
        )
    given = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **values,
    }
    try:
        return AutoConfig.for_model(kind, **given)
    except Exception as error:  # each configuration class has checks of its own
        said = " ".join(str(error).split())
        raise ConfigError(f"model.create.config: {kind} does not take {values}: {said}") from error


def tokenizer_of(model: Model, base: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of the weights a run starts from, also of those that are not made yet.

    Args:
        base: where they are, if they are others than the configuration's.

    Raises:
        ConfigError: as `load_tokenizer`.
    """
    if base is not None or model.create is None:
        return load_tokenizer(ModelSource.of(model, base))
    from rlpost.data import make_tokenizer

    with TemporaryDirectory(prefix="rlpost-") as folder:  # written and read, as it will be with the model
        make_tokenizer(model.create.tokenizer).save_pretrained(folder)
        return load_tokenizer(ModelSource(folder))


def create_model(spec: CreateModel, folder: Path) -> None:
    """Write a small model with random weights, and its tokenizer, to `folder`."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from rlpost.data import make_tokenizer

    disable_progress_bar()

    tokenizer = make_tokenizer(spec.tokenizer)
    config = created_config(spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
