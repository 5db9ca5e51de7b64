"""The parts of a model, loaded: tokenizer, configuration, what ends a response, and the network itself.

Nothing else in rlpost calls `from_pretrained`. transformers asks on standard input whether code may be run when it is
not told; here it always is.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlpost.config import ConfigError
from rlpost.models.source import ModelSource
from rlpost.user_code import nearest

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """The model's tokenizer; one without a padding token pads with its end of sequence.

    Raises:
        ConfigError: it is not there, cannot be loaded, needs code that may not be run, or has nothing to pad with.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = source.folder(weights=False)
    with _named(source, "tokenizer", folder):
        # One that is all in its tokenizer.json is what it says there. By the type of the model beside it transformers may
        # take another class, with a decoder of its own: a tokenizer of characters then loses its spaces.
        file = folder / "tokenizer_config.json"
        written = _json(source, file) if file.is_file() and (folder / "tokenizer.json").is_file() else {}
        whole = written.get("tokenizer_class") == "TokenizersBackend" and "auto_map" not in written
        tokenizer = (PreTrainedTokenizerFast if whole else AutoTokenizer).from_pretrained(
            folder, trust_remote_code=source.trust_remote_code
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ConfigError(
                f"{source.key}: the tokenizer of {source.path!r} has neither a pad token nor an eos token: set one in "
                "its tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_config(source: ModelSource) -> PretrainedConfig:
    """The model's configuration as transformers understands it.

    Raises:
        ConfigError: it is not there, torn, of a type that is not known, or needs code that may not be run.
    """
    import transformers
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    folder = source.folder(weights=False)
    written = config_values(source)
    with _named(source, "configuration", folder):
        if "model_type" not in written and "auto_map" not in written:
            raise ValueError("config.json names no model_type")
        kind = str(written.get("model_type"))
        if kind not in CONFIG_MAPPING and "auto_map" not in written:
            raise ValueError(
                f"transformers {transformers.__version__} has no model_type {kind!r}{nearest(kind, list(CONFIG_MAPPING))}"
            )
        return AutoConfig.from_pretrained(folder, trust_remote_code=source.trust_remote_code)


def config_values(source: ModelSource) -> dict[str, Any]:
    """config.json as it is written.

    Raises:
        ConfigError: there is none, or it is no JSON object.
    """
    folder = source.folder(weights=False)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{source.key}.path {source.path!r} has no config.json{_what_it_is(folder)}")
    return _json(source, folder / "config.json")


def eos_token_ids(source: ModelSource) -> list[int]:
    """The token ids that end a response: of the tokenizer, the model and its generation configuration.

    Raises:
        ConfigError: none of them names one.
    """
    folder = source.folder(weights=False)
    found: list[Any] = [load_tokenizer(source).eos_token_id]
    found.append(load_config(source).get_text_config(decoder=True).eos_token_id)
    if (file := folder / "generation_config.json").is_file():
        found.append(_json(source, file).get("eos_token_id"))
    ids: set[int] = set()
    for item in found:
        ids.update(item if isinstance(item, list) else [item] if item is not None else [])
    if not ids:
        raise ConfigError(
            f"{source.key}.path {source.path!r}: neither tokenizer nor model names an end-of-sequence token; a response "
            "could not end: set eos_token_id in its generation_config.json"
        )
    return sorted(ids)


def load_causal_lm(source: ModelSource, dtype: torch.dtype, attention: str | None = "sdpa") -> PreTrainedModel:
    """The network with its weights. Under ZeRO-3 an `HfDeepSpeedConfig` must be alive: parameters are sharded as made.

    Args:
        attention: an implementation that transformers knows; None: `sdpa` where the model has it, else `eager`.

    Raises:
        ConfigError: it cannot be loaded, or weights it needs are not in the checkpoint: transformers would draw them.
    """
    from transformers import AutoModelForCausalLM

    folder = source.folder()
    with _named(source, "model", folder):
        loaded, found = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attention,
            trust_remote_code=source.trust_remote_code,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are refused here, by name
            output_loading_info=True,
        )
    for kind, fix in (("missing_keys", "has no"), ("mismatched_keys", "has another shape of")):
        if names := sorted(name if isinstance(name, str) else name[0] for name in found[kind]):
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ConfigError(
                f"{source.key}.path {source.path!r}: the checkpoint {fix} {', '.join(names[:3])}{more}, which "
                f"{type(loaded).__name__} needs: it is of another model, or not whole"
            )
    return loaded


def shaped(config: PretrainedConfig, where: str, trust_remote_code: bool) -> PreTrainedModel:
    """The network a configuration describes, with shapes and no weights.

    Raises:
        ConfigError: its class cannot be built of these sizes.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            made: PreTrainedModel = AutoModelForCausalLM.from_config(
                copy.deepcopy(config), attn_implementation="eager", trust_remote_code=trust_remote_code
            )
    except Exception as error:  # whatever a class of transformers, or one that comes with the model, says of its sizes
        said = " ".join(str(error).split())
        raise ConfigError(f"{where}: no {config.model_type} can be built of its sizes: {said[:600]}") from error
    return made


@contextmanager
def _named(source: ModelSource, what: str, folder: Path) -> Iterator[None]:
    """Say which model's which part could not be loaded, whatever a library says of it, and by which key it is set."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # transformers, tokenizers and code that comes with a model raise all there is
        said = " ".join(str(error).split()) or type(error).__name__
        if "trust_remote_code" in said and not source.trust_remote_code:
            raise ConfigError(
                f"{source.key}.trust_remote_code: false, but the {what} of {source.path!r} is code that comes with it: read "
                f"{', '.join(sorted(f.name for f in folder.glob('*.py'))) or 'it'}, and set {source.key}.trust_remote_code: "
                "true to run it"
            ) from None
        raise ConfigError(
            f"{source.key}.path {source.path!r}: its {what} cannot be loaded from {folder}{_what_it_is(folder)}: {said[:600]}"
        ) from error


def _json(source: ModelSource, file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{source.key}.path {source.path!r}: {file} is not JSON, perhaps cut off: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{source.key}.path {source.path!r}: {file} holds a {type(values).__name__}, not an object")
    return values


def _what_it_is(folder: Path) -> str:
    """What a folder is that is no model, and which one to give instead."""
    if (folder / "adapter_config.json").is_file():
        return " (it is an adapter of peft: give the model it is for, and merge it first)"
    if (folder / "model" / "config.json").is_file():
        return f" (it is a checkpoint or a warm-up: give {folder / 'model'})"
    if saved := sorted((folder / "checkpoints").glob("step_*/model")):
        return f" (it is a run: give {saved[-1]})"
    if any(folder.glob("*.gguf")):
        return " (it holds GGUF, a format for inference: give a folder in the Hugging Face format)"
    return ""
