"""The small model of a rehearsal: of the user's architecture, with the user's tokenizer where it can be had."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlpost.config import Config, ConfigError
from rlpost.data import make_tokenizer
from rlpost.memory.known import known_config
from rlpost.models.create import created_config
from rlpost.models.families import UNSERVED
from rlpost.models.load import load_config, load_tokenizer
from rlpost.models.save import copy_companions
from rlpost.models.source import ModelSource, OutOfReachError
from rlpost.rehearsal.shrink import shrunk

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Original:
    """The user's model, as far as it can be had here.

    Attributes:
        source: where its tokenizer and code are; None where the tokenizer is made.
        said: where the sizes and the tokenizer come from, for the report.
    """

    config: PretrainedConfig
    source: ModelSource | None
    tokenizer: PreTrainedTokenizerBase
    said: str


def original(config: Config) -> Original:
    """Find the user's model: a folder, the hub or its cache; of some hub ids the sizes are known here.

    Raises:
        ConfigError: neither can be had, or engines on CPUs cannot serve models of its family.
    """
    model = config.model
    if model.create is not None:
        made = Original(
            created_config(model.create), None, make_tokenizer(model.create.tokenizer), "as model.create says"
        )
    else:
        source = ModelSource.of(model)
        try:
            made = Original(load_config(source), source, load_tokenizer(source), f"of {source}")
        except OutOfReachError as error:
            known = known_config(model.path)
            if known is None:
                raise ConfigError(
                    f"{error}. A rehearsal needs its config.json: put the model's tokenizer and config.json into a folder and "
                    "give model.path=FOLDER, or rehearse where the hub can be reached"
                ) from None
            said = (
                f"{source} cannot be had here: its published sizes, and a made tokenizer of bytes in place of its own"
            )
            made = Original(known, None, make_tokenizer("bytes"), said)
    reasons = UNSERVED.get(str(made.config.model_type), {})
    if why := reasons.get(config.rollout_dtype) or reasons.get(""):
        raise ConfigError(
            f"model.path {model.path!r} cannot be rehearsed: engines on CPUs do not serve {made.config.model_type} in "
            f"{config.rollout_dtype}: {why}"
        )
    return made


def make_small(found: Original, folder: Path, seed: int) -> tuple[int, dict[str, tuple[Any, Any]]]:
    """Write the small model with random weights to `folder`.

    Returns:
        how many numbers its weights are, and which sizes are others: by name (the user's, the small model's).
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    made = {
        "vocab_size": len(found.tokenizer),
        "bos_token_id": found.tokenizer.bos_token_id,
        "eos_token_id": found.tokenizer.eos_token_id,
        "pad_token_id": found.tokenizer.pad_token_id,
    }
    config = shrunk(found.config, **({} if found.source else made))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, trust_remote_code=bool(found.source and found.source.trust_remote_code)
        )
    model.generation_config.eos_token_id = found.tokenizer.eos_token_id
    model.save_pretrained(folder)
    if found.source is None:
        found.tokenizer.save_pretrained(folder)
    else:
        copy_companions(found.source, folder)
    was, now = found.config.to_dict(), config.to_dict()
    differ = {name: (was[name], now.get(name)) for name in was if _size(was[name]) and was[name] != now.get(name)}
    return sum(parameter.numel() for parameter in model.parameters()), differ


def _size(value: Any) -> bool:
    return type(value) is int
