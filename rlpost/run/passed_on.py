"""What is handed through to DeepSpeed and vLLM, read by their own configuration classes before anything starts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from rlpost.config import Config, ConfigError


def check_passed_on(config: Config, elsewhere: bool = False) -> list[str]:
    """Refuse values of `learner.deepspeed` and `rollout.engine_args` that the libraries do not take.

    The libraries are imported where there is something to ask them, which takes seconds.

    Args:
        elsewhere: the run is to be on other machines; what is not installed here is not asked.

    Returns:
        What could not be looked at.

    Raises:
        ConfigError: naming key, value and what the library says of it.
    """
    lines = []
    for key, given, problems in (
        ("learner.deepspeed", config.learner.deepspeed, _deepspeed_problems),
        ("rollout.engine_args", config.rollout.engine_args, _engine_problems),
    ):
        if not given:
            continue
        try:
            found = list(problems(config))
        except ImportError as error:
            if not elsewhere:
                raise
            lines.append(f"{key} is not looked at: {error}")
            continue
        if found:
            raise ConfigError("\n".join(f"{key}.{problem}" for problem in found))
    return lines


def _deepspeed_problems(config: Config) -> Iterator[str]:
    from deepspeed.runtime.config import DeepSpeedConfig

    from rlpost.learner.deepspeed_config import deepspeed_config

    for key, value in config.learner.deepspeed.items():
        alone = config.learner.model_copy(update={"deepspeed": {key: value}})
        try:
            DeepSpeedConfig(deepspeed_config(alone, config.model.dtype, 1))
        except ValidationError as error:
            yield from _said(key, error, "DeepSpeed")
        except (ValueError, TypeError, AttributeError, KeyError, AssertionError) as error:
            yield f"{key}: {value!r}: DeepSpeed does not take it ({type(error).__name__}: {error}): mend it, or leave it out"


def _engine_problems(config: Config) -> Iterator[str]:
    from vllm import config as vllm_config
    from vllm.engine import arg_utils

    for key, value in config.rollout.engine_args.items():
        kind: Any = arg_utils.EngineArgs.__annotations__[key]
        kind = eval(kind, vars(arg_utils)) if isinstance(kind, str) else kind  # vLLM's own annotation, as text
        bounds = [
            field
            for section in (vllm_config.CacheConfig, vllm_config.ParallelConfig, vllm_config.SchedulerConfig)
            for field in [getattr(section, "__pydantic_fields__", {}).get(key)]
            if field is not None and value is not None
        ]
        kinds = [kind, *(Annotated[f.annotation, *f.metadata] for f in bounds if f.metadata)]
        try:
            for each in kinds:
                TypeAdapter(each).validate_python(value)
        except ValidationError as error:
            yield from _said(key, error, "vLLM")


def _said(key: str, error: ValidationError, library: str) -> Iterator[str]:
    for item in error.errors():
        place = ".".join(map(str, (key, *item["loc"])))
        said = item["msg"].replace("Input should be", "must be")
        yield f"{place}: {item['input']!r}: {said}, says {library}: mend it, or leave it out"
