"""What a run asks of its model, compared before anything starts: refused, or set with a line that says so."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

from rlpost.config import Config, ConfigError
from rlpost.models.architecture import check_experts
from rlpost.models.attention import preferred
from rlpost.models.facts import Facts, Outline, positions
from rlpost.models.families import check_family
from rlpost.models.load import config_values
from rlpost.models.source import ModelSource

# The sizes of an attention head that the engine's kernels for CPUs are compiled for, whatever the dtype: those of vLLM's
# list, and 48, which is not in it. Latent attention (MLA) has kernels of its own.
CPU_HEADS = (32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)


def check_written(config: Config, source: ModelSource | None, served: bool = True) -> None:
    """The commonest slips, from what config.json spells out: transformers, which knows the rest, takes seconds to import.

    Args:
        served: whether engines are to serve the model, too.

    Raises:
        ConfigError: as `check_outline`, and what is known of the family.
    """
    check_family(config, served)
    if source is None:
        assert config.model.create is not None
        where, values = "model.create.config", config.model.create.config
    else:
        where, values = f"{source.key}.path {str(source)!r}", config_values(source)
    if not values.get("rope_scaling"):  # spelled as in older versions
        check_length(positions(SimpleNamespace(**values)), where, longest(config), _lengths(config))


def check_outline(config: Config, outline: Outline, served: bool = True) -> None:
    """Refuse what a model's configuration alone does not allow.

    Args:
        served: whether engines are to serve the model, too.

    Raises:
        ConfigError: naming key, value and fix.
    """
    check_experts(config)
    if served and not config.on_gpu:
        check_heads(outline)
    check_length(outline.positions, outline.where, longest(config), _lengths(config))


def fitted(config: Config, facts: Facts) -> tuple[Config, list[str]]:
    """The configuration with what its model needs, and a line for each thing that was set or is cast.

    Raises:
        ConfigError: the model cannot do what is asked; names key, value and fix.
    """
    lines = []
    _check_vocabulary(facts)
    own = facts.source is not None and facts.source.path == config.model.path
    if own and facts.source is not None and (pinned := facts.source.pinned()) != facts.source:
        lines.append(f"model.revision: {facts.source} is commit {pinned.revision} of the hub, which the run stays with")
        config = _with_model(config, revision=pinned.revision)
    config, line = _with_attention(config, facts)
    lines += line
    here = config.cluster.address is None
    if config.model.attention == "flash_attention_2" and here and importlib.util.find_spec("flash_attn") is None:
        raise ConfigError(
            "model.attention: flash_attention_2 needs the package flash_attn, which is not installed: set model.attention: "
            "sdpa, or install it"
        )
    if other := [dtype for dtype in facts.dtypes if dtype != config.model.dtype]:
        lines.append(f"model.dtype: weights are {' and '.join(other)} on disk and are cast to {config.model.dtype}")
    return config, lines


def check_heads(outline: Outline) -> None:
    """Refuse a size of attention heads that the engine has no kernel for on CPUs.

    Raises:
        ConfigError: naming the size and those there are.
    """
    size, where = outline.head_size, outline.where
    if size is None or size in CPU_HEADS:
        return
    near = min(CPU_HEADS, key=lambda known: abs(known - size))
    fix = (
        f"set head_dim: {near}, or another width or number of heads"
        if outline.source is None
        else "take another model, or run it on GPUs (cluster.gpus_per_node)"
    )
    raise ConfigError(
        f"{where}: attention heads of {size} numbers, for which the engine has no kernel on CPUs (it has "
        f"{', '.join(map(str, CPU_HEADS))}): {fix}"
    )


def _with_attention(config: Config, facts: Facts) -> tuple[Config, list[str]]:
    """The configuration with an implementation of attention that the model has, and a line where it is not the first choice.

    Raises:
        ConfigError: it has not the one that is asked for.
    """
    asked = config.model.attention
    order = {"auto": preferred(config), "sdpa": ("sdpa", "eager")}.get(asked, (asked,))
    found = next((name for name in order if name in facts.attention), None)
    lacks = f"{facts.family} does not have" + (f": {facts.without_varlen}" if order[0] == "varlen" else "")
    if found is None:
        raise ConfigError(
            f"model.attention: {asked}, which {lacks}: set model.attention: {' or '.join(facts.attention[::-1])}"
        )
    lines = [] if found == order[0] else [f"model.attention: set to {found}, not {order[0]}, which {lacks}"]
    return _with_model(config, attention=found), lines


def _with_model(config: Config, **values: Any) -> Config:
    return config.model_copy(update={"model": config.model.model_copy(update=values)})


def longest(config: Config) -> int:
    """Tokens of the longest sequence a run may have, prompt and response, evaluations included."""
    return config.max_served_tokens


def check_length(positions: int | None, where: str, tokens: int, what: str) -> None:
    """Refuse sequences of more tokens than a model has positions (None: no limit).

    Raises:
        ConfigError: with the sum as `what` says it.
    """
    if positions is not None and tokens > positions:
        raise ConfigError(
            f"{what} = {tokens} tokens, but {where} has {positions} positions: lower one of them by {tokens - positions}, or "
            "take a model with more"
        )


def _lengths(config: Config) -> str:
    """The sum that is the longest sequence, by key and value."""
    tests = {
        ".".join(filter(None, ("data.test", name, "max_tokens"))): t.max_tokens for name, t in config.test_sets.items()
    }
    responses = {"rollout.max_tokens": config.rollout.max_tokens, **tests}
    key = max(responses, key=lambda name: responses[name])
    return f"data.max_prompt_tokens {config.data.max_prompt_tokens} + {key} {responses[key]}"


def _check_vocabulary(facts: Facts) -> None:
    if facts.tokens > facts.rows:
        made = facts.source is None
        fix = "leave vocab_size out" if made else "give the tokenizer of the model, or resize its embeddings"
        raise ConfigError(
            f"{facts.where}: its tokenizer has ids up to {facts.tokens - 1}, but its embeddings have {facts.rows} rows: {fix}"
        )
    for name, value in (("pad_token_id", facts.padding), *(("eos_token_id", i) for i in facts.end)):
        if not 0 <= value < facts.rows:
            raise ConfigError(
                f"{facts.where}: {name} {value} is no row of its {facts.rows} embeddings: mend its config.json, "
                "generation_config.json or tokenizer_config.json"
            )
