"""Writes docs/configuration.md from the schema: `python docs/generate.py`. A test compares what is committed with it."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from rlpost.config import Component, Config, Section

TARGET = Path(__file__).parent / "configuration.md"

INTRODUCTION = """\
# Configuration

Made from the schema in `rlpost/config/` by `python docs/generate.py`; do not edit.

A run is one YAML file. More than one may be given, later ones over earlier ones, then `key=value` overrides:

```bash
rlpost train configs/quickstart.yaml steps=20 learner.lr=1e-4 verifiers.0.name=exact
```

- Paths (data, models, `file.py:function`, `runs_dir`, paths among the parameters of a reference, strategy or verifier)
  may hold `~`, `$VARIABLE` and `${VARIABLE}`; `$$` is a dollar sign, and a variable that is not set is an error.
  Relative paths start at the current directory. A run's own `config.yaml` has all of these replaced, so that a resume
  needs no variable.
- Mappings are merged key by key, but an entry with another name replaces the whole entry, and a source of another kind all keys that say where rows are; and so is a list's item that is a mapping (`verifiers.0.weight=2`); all else is
  replaced.
- A key that is not known, or is given twice, is an error that names the nearest known key. `1e-6` is a number.
- Relative paths start at the current directory.
- The resolved file is written to the run as `config.yaml`; given to `rlpost train` it makes the same run again.
- `rlpost plan` shows batch arithmetic, placement and memory of a file and starts nothing.

One name per quantity: a step samples `learner.prompts_per_step` x `rollout.samples_per_prompt` responses and learns
from them in `learner.optimizer_steps_per_batch` optimizer steps, each cut into micro-batches of at most
`learner.tokens_per_micro_batch` tokens. No other batch size exists.

Where a table says *name*, write the name alone (`grpo`), or a mapping of the name and its parameters
(`{name: ppo_clip, low: 0.2}`), or a place of your own code (`my_losses.py:fancy`). The names that exist are in
[methods.md](methods.md) and [verifiers.md](verifiers.md).
"""

# A section that appears in more than one place comes once.
TITLES = {"data.train": "data.train`, `data.train.NAME", "data.test": "data.test`, `data.test.NAME"}
COLLAPSED = ("data.train.template", "data.test.template")

CONSTRAINTS = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))


def render() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for path, section in sections("", Config):
        title = f"`{TITLES.get(path, path)}`" if path else "The file"
        parts.append("\n\n".join(filter(None, [f"## {title}", _described(section), _table(section)])) + "\n")
    return "\n".join(parts)


def sections(path: str, section: type[Section]) -> Iterator[tuple[str, type[Section]]]:
    """(key, section) of every part of the file, in the order of the schema; parts of the same type come once."""
    yield path, section
    for name, field in section.model_fields.items():
        inner = _section_of(field.annotation)
        key = f"{path}.{name}" if path else name
        if inner is not None and inner is not Component and key not in COLLAPSED:
            many = "[]" if get_origin(field.annotation) is list else ""
            yield from sections(key + many, inner)


def _described(section: type[Section]) -> str:
    text = inspect.cleandoc(section.__dict__.get("__doc__") or "")
    open_ended = section.model_config.get("extra") == "allow"
    return "\n\n".join([text, "Further keys are parameters of what is named."]) if open_ended else text


def _table(section: type[Section]) -> str:
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in section.model_fields.items():
        cells = (f"`{name}`", _type_of(field), _default_of(field), field.description or "")
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def _type_of(field: FieldInfo) -> str:
    limits = [
        f"{sign} {getattr(constraint, name):g}"
        for constraint in field.metadata
        for name, sign in CONSTRAINTS
        if hasattr(constraint, name)
    ]
    return ", ".join([_named(field.annotation), *limits])


def _named(annotation: Any) -> str:
    if annotation is type(None):
        return "null"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _named(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_named(a) for a in arguments)
    if origin is list:
        return f"list of {_named(arguments[0])}"
    if origin is tuple:
        return " and ".join(_named(a) for a in arguments)
    if origin is dict or annotation is dict:
        return "mapping"
    if annotation is Component:
        return "*name*"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "section"
    return {str: "text", bool: "true or false", int: "whole number", float: "number"}.get(annotation, str(annotation))


def _default_of(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, Component):
        return f"`{default.name}`"
    if isinstance(default, Section):
        return "as below"
    return f"`{_yaml(default)}`"


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_yaml(v) for v in value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _section_of(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((s for a in get_args(annotation) if (s := _section_of(a)) is not None), None)


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
    print(f"wrote {TARGET}")
