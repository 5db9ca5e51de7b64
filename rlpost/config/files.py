"""How YAML files and `key=value` overrides become a `Config`, or an error that says what to change."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import Tag, ValidationError

from rlpost.config.data import SOURCE_KEYS, Source
from rlpost.config.other_names import said_otherwise
from rlpost.config.schema import Config
from rlpost.config.section import KEY, NAMED, ONE, AtKey, Component, ConfigError, Section, complete, one_or_named
from rlpost.config.yaml_text import DEEPEST, read, read_file, shortened
from rlpost.user_code import nearest

_KEY = re.compile(r"[a-z_]+(\.\w+)*:? ")
_TYPE = re.compile(r"float|int|str|bool|function-\w+\[.*")
_REMOVAL = re.compile(r"~[a-z_]+(\.\w+)*(=.*)?", re.DOTALL)  # as Hydra has it
_INDEX = re.compile("-?[0-9]{1,9}")


def load(paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> Config:
    """Read YAML files, later ones over earlier ones, then `key=value` overrides, and check the result.

    Raises:
        ConfigError: with every problem found, one a line, each naming key, value and fix.
    """
    merged: dict[str, Any] = {}
    for path in paths:
        values = read_file(Path(path))
        merged = _merge(_without_other_length(merged, values), values)
    given = [_parse_override(override) for override in overrides]
    merged = _without_other_length(merged, {key: value for values in given for key, value in values.items()})
    for values in given:
        merged = _merge(merged, values)
    return parse(merged, origin=", ".join(str(p) for p in paths))


def load_arguments(files: Sequence[str | Path], overrides: Sequence[str]) -> Config:
    """`load` for a command line, where at least one file must be named."""
    if not files:
        raise ConfigError(
            "no configuration file given, only overrides; for example: rlpost train configs/quickstart.yaml"
        )
    return load(files, overrides)


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Configuration files and overrides of a command line: an override has an `=` and names no file.

    Raises:
        ConfigError: an argument is neither, but what takes a key away in Hydra.
    """
    files = [a for a in arguments if "=" not in a or os.path.isfile(a)]
    for argument in files:
        if _REMOVAL.fullmatch(argument) and not os.path.exists(argument):
            raise ConfigError(_no_removal(argument))
    return files, [a for a in arguments if a not in files]


def parse(values: Mapping[str, Any], origin: str = "the configuration") -> Config:
    """Check a nested mapping against the schema."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, values, origin)) from None


def dump(config: Config) -> str:
    """The resolved configuration as YAML; `load` of it gives the same configuration."""
    return yaml.safe_dump(config.model_dump(mode="json", exclude_none=False), sort_keys=False, allow_unicode=True)


def _without_other_length(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """`low` without `steps` where `high` says by `epochs` how long to train, and the other way round."""
    others = {"steps": "epochs", "epochs": "steps"}
    return {key: v for key, v in low.items() if key in high or high.get(others.get(key, "")) is None}


def _parse_override(text: str) -> dict[str, Any]:
    if _REMOVAL.fullmatch(text):
        raise ConfigError(_no_removal(text))
    key, equals, raw = text.partition("=")
    if key.startswith("+"):
        raise ConfigError(f"override {shortened(text)!r}: a key is set by key=value alone, new or not: leave the + out")
    parts = key.split(".")
    if not equals or not all(part and part == part.strip() for part in parts) or len(parts) > DEEPEST:
        raise ConfigError(
            f"override {shortened(text)!r} must look like key=value, without spaces around the key or its dots, for example "
            "learner.lr=1e-6"
        )
    value = read(raw, f"override {shortened(text)!r}")
    for part in reversed(parts):
        value = {part: value}
    return value


def _no_removal(text: str) -> str:
    key = text[1:].partition("=")[0]
    return (
        f"override {shortened(text)!r}: no override takes a key away: leave {key} out of the file, or give it another value "
        f"({key}=value)"
    )


def _merge(low: Any, high: Any, place: Any = Config, key: str = "") -> Any:
    """`high` over `low`: mappings by key, a list's items by index (`verifiers.0.weight=2`), all else replaced.

    A bare name that gets keys is an entry with that name: `grpo` and `{eps: 1e-4}` make `{name: grpo, eps: 1e-4}`. An
    entry that gets another name is another entry, and takes the place of the whole one: `{name: gspo}` over
    `{name: ppo_clip, low: 0.2}` has no `low`. So with a source of another kind: a task's parameters are none of a file;
    and several sources take the place of one, or one of several.

    Args:
        key: of this place of the file.
        place: the schema's type at this place of the file; None where the schema does not say.
    """
    if isinstance(low, str) and isinstance(high, dict) and high:
        low = {"name": low}
    if isinstance(low, dict) and isinstance(high, dict):
        if _holds(place, Component) and high.get("name", low.get("name")) != low.get("name"):
            return high
        if _has_forms(place) and complete(high) and one_or_named(high) != one_or_named(low):
            return high
        if _holds(place, Source) and high.get("source", low.get("source")) != low.get("source"):
            # Where rows are is said anew; what the columns mean stays.
            low = {key: value for key, value in low.items() if key == "path" or key not in SOURCE_KEYS}
        return {
            **low,
            **{
                k: _merge(low[k], v, _place_of(place, k), f"{key}.{k}" if key else k) if k in low else v
                for k, v in high.items()
            },
        }
    if isinstance(low, list) and isinstance(high, dict) and high and all(_INDEX.fullmatch(k) for k in high):
        merged = list(low)
        for index, value in high.items():
            if int(index) not in range(len(merged)):
                known = f"0 to {len(merged) - 1}" if merged else "none"
                raise ConfigError(f"{key}.{index}: the list has {len(merged)} items, counted from 0 ({known})")
            merged[int(index)] = _merge(merged[int(index)], value, _place_of(place, index), f"{key}.{index}")
        return merged
    return high


def _has_forms(place: Any) -> bool:
    """Whether one source or several may stand at a place."""
    return any(isinstance(part, Tag) or _has_forms(part) for part in get_args(place))


def _holds(place: Any, kind: type[Section]) -> bool:
    """Whether a type is a section of this kind, alone or as one of several."""
    if isinstance(place, type):
        return issubclass(place, kind)
    return get_origin(place) not in (list, dict) and any(_holds(part, kind) for part in get_args(place))


def _place_of(place: Any, key: Any) -> Any:
    """The type at a key of a section, a mapping or a list; None where the schema does not say."""
    if get_origin(place) in (list, dict):
        return get_args(place)[-1]
    if isinstance(place, type):
        field = place.model_fields.get(str(key)) if issubclass(place, Section) else None
        return field.annotation if field is not None else None
    return next((found for part in get_args(place) if (found := _place_of(part, key)) is not None), None)


def _explain(error: ValidationError, values: Mapping[str, Any], origin: str) -> str:
    return "\n".join([f"{origin} cannot run:", *_problems(error, "")])


def _problems(error: ValidationError, above: str) -> Iterable[str]:
    """One line for each problem; `above` is the key under which the checked section stands."""
    for item in error.errors():
        # What follows a key are the names of a union's types; each of them says what it would have taken.
        place = [part for part in item["loc"] if part not in (ONE, NAMED, KEY) and not _TYPE.fullmatch(str(part))]
        key = ".".join(filter(None, [above, *map(str, place)])) or "(whole file)"
        cause = item.get("ctx", {}).get("error")
        while isinstance(cause, AtKey):
            key, cause = f"{key}.{cause.key}", cause.problem
        if isinstance(cause, ValidationError):
            yield from _problems(cause, key)
        elif item["type"] == "extra_forbidden":
            known = _keys_at(place[:-1]) if not above else []
            fix = nearest(str(place[-1]), known) + said_otherwise(key, item["input"])
            fix = fix or f" (known here: {', '.join(sorted(known))})"
            yield f"  {key}: unknown key, value {item['input']!r}{fix}"
        elif item["type"] == "missing":
            yield f"  {key}: missing; it has no default"
        elif item["type"] == "value_error":
            said = str(cause)
            whole = key == "(whole file)" and _KEY.match(said)
            yield f"  {said}" if whole or said.startswith(f"{key}.") else f"  {key}: {said}"
        else:
            yield f"  {key}: {_in_our_words(item['type'], item['msg'])}, got {shortened(repr(item['input']))}{_fix(item)}"


_WORDS = {
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be a mapping of keys to values",
    "model_type": "must be a mapping of keys to values",
    "finite_number": "must be a number, and finite",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "must be a whole number, an integer"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
}


def _in_our_words(kind: str, message: str) -> str:
    return _WORDS.get(kind, message.replace("Input should be", "must be"))


def _fix(item: Any) -> str:
    """What to do about a value of a wrong type, where it is plain."""
    value = item["input"]
    if value is None:
        return ": give a value, or leave the key out"
    if item["type"] == "string_type" and isinstance(value, dict):
        return ": quote text with braces in it"
    if item["type"] == "string_type" and isinstance(value, int | float):
        return f': quote it: "{value}"'
    return f" ({type(value).__name__})"


def _keys_at(location: Sequence[str | int]) -> list[str]:
    """The keys the schema knows at a place in the file."""
    place: Any = Config
    for part in location:
        place = _place_of(place, part)
    section = next(iter(_sections(place)), None)
    return list(section.model_fields) if section is not None else []


def _sections(annotation: Any) -> Iterable[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _sections(argument)
