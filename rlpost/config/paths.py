"""What a configuration names outside itself: files, folders, models, the user's own Python.

`~`, `$VARIABLE` and `${VARIABLE}` in these are replaced when the configuration is read, so the `config.yaml` of a run
has them replaced and a resume does not depend on the environment; `$$` is a dollar sign. Relative paths stay relative:
they start at the current directory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, PlainSerializer, ValidatorFunctionWrapHandler, WrapValidator

# file: a file or folder of this machine. hub: the same, or an id of the Hugging Face hub. code: `file.py:function` or
# `package.module:function`. output: a folder that is written.
Kind = Literal["file", "hub", "code", "output"]

_VARIABLE = re.compile(r"\$(?:\$|(?P<name>[A-Za-z_]\w*)|\{(?P<braced>[^}]*)\}|(?P<wrong>))")


class ConfiguredPath(str):
    """A path of the configuration: text with `~` and variables replaced, that knows what kind of path it is.

    Attributes:
        kind: what it names.
        typed: what the user wrote.
    """

    kind: Kind
    typed: str

    def __new__(cls, value: str, kind: Kind, typed: str | None = None) -> ConfiguredPath:
        path = super().__new__(cls, value)
        path.kind, path.typed = kind, value if typed is None else typed
        return path

    def __getnewargs__(self) -> tuple[str, Kind, str]:  # type: ignore[override]
        return str(self), self.kind, self.typed

    @property
    def shown(self) -> str:
        """For messages: what the user wrote, and what it stands for where that is another text."""
        return repr(self.typed) if self.typed == self else f"{self.typed!r} ({self})"

    @property
    def file(self) -> str:
        """The path alone: of `file.py:function` the file; empty for a module."""
        if self.kind != "code":
            return str(self)
        origin, _, _ = self.rpartition(":")
        return origin if origin.endswith(".py") else ""

    @property
    def variables(self) -> list[str]:
        """Names of the environment variables in what the user wrote."""
        return [name for m in _VARIABLE.finditer(self.typed) if (name := m["name"] or m["braced"])]


def expanded(text: str, kind: Kind) -> ConfiguredPath:
    """`text` with a leading `~` or `~user` and all variables replaced.

    Raises:
        ValueError: the text is empty, a variable is not set, or there is no such user.
    """
    if not text.strip():
        raise ValueError(f"{text!r} is empty: give a path, or leave the key out")
    if "\0" in text:
        raise ValueError(f"{text!r} has a null character, which no path can have")
    head, slash, rest = text.partition("/")
    if not head.startswith("~"):
        return ConfiguredPath(_VARIABLE.sub(_value, text), kind, text)
    home = os.path.expanduser(head)
    if home == head:
        raise ValueError(f"{text!r}: {head} is no user of this machine; a file of that name is ./{text}")
    # The home folder is a path already: only what the user wrote is looked through for variables.
    return ConfiguredPath(home + slash + _VARIABLE.sub(_value, rest), kind, text)


def _value(found: re.Match[str]) -> str:
    if found[0] == "$$":
        return "$"
    name = found["name"] or found["braced"]
    if not name:
        raise ValueError(f"{found.string!r} has a $ without a variable's name; a dollar sign is written $$")
    if not os.environ.get(name):
        state = "empty" if name in os.environ else "not set"
        raise ValueError(
            f"{found.string!r}: the environment variable {name} is {state}: export {name}=..., or write the path out"
        )
    return os.environ[name]


def unreadable(path: ConfiguredPath) -> str | None:
    """Why nothing can be read at a path, in words for a message; None where there is a file or folder to read."""
    found = Path(path)
    try:
        if not os.path.lexists(found):
            return f"{path.shown} does not exist (relative paths start at the current directory)"
        if not found.exists():
            return f"{path.shown} is a link to {found.readlink()}, which does not exist"
    except OSError as error:
        return f"{path.shown[:80]} cannot be read: {error.strerror}"
    if not (found.is_file() or found.is_dir()):
        return f"{path.shown} is neither a file nor a folder"
    return None if os.access(found, os.R_OK) else f"{path.shown} may not be read: give read permission"


def escaped(path: str) -> str:
    """A path as a file must have it, to be read as the same path again."""
    return str(path).replace("$", "$$") if isinstance(path, ConfiguredPath) else path


def _expanding(kind: Kind) -> Any:
    def expand(value: Any, checked: ValidatorFunctionWrapHandler) -> Any:
        if isinstance(value, ConfiguredPath) and value.kind == kind:
            return value
        text = checked(value)
        if kind == "code" and ":" not in text:
            return text  # a name of a registry
        return expanded(text, kind)

    return WrapValidator(expand)


_AS_WRITTEN = PlainSerializer(escaped, return_type=str)

LocalPath = Annotated[str, _expanding("file"), _AS_WRITTEN]
HubPath = Annotated[str, _expanding("hub"), _AS_WRITTEN]
Code = Annotated[str, _expanding("code"), _AS_WRITTEN]
OutputPath = Annotated[str, _expanding("output"), _AS_WRITTEN]

LONGEST_NAME = 200  # bytes; a folder's name may have 255, and sinks add to it


def _plain_name(name: str) -> str:
    if not name.strip() or name != name.strip() or "/" in name or name.startswith("."):
        raise ValueError(
            f"{name!r} must be the name of a folder, without slashes and not hidden; where runs lie is runs_dir"
        )
    if not name.isprintable() or len(name.encode(errors="replace")) > LONGEST_NAME:
        raise ValueError(f"{name[:60]!r} must be printable text of at most {LONGEST_NAME} bytes: it is a folder's name")
    return name


RunName = Annotated[str, AfterValidator(_plain_name)]

# Parameters of built-in components that are paths, by component; a test compares them with the components themselves.
PARAMETERS: dict[str, dict[str, Kind]] = {
    "frozen": {"path": "hub"},
    "teacher": {"path": "hub"},
    "soup": {"members": "hub"},
    "ensemble": {"model": "file"},
    "sql": {"directory": "file"},
}


def expand_parameter(component: str, parameter: str, value: Any) -> Any:
    """A component's parameter with its path or paths expanded, where it is any; else the value as it is.

    Raises:
        ValueError: as `expanded`.
    """
    kind = PARAMETERS.get(component, {}).get(parameter)
    if kind is None or isinstance(value, ConfiguredPath):
        return value
    if isinstance(value, list):
        return [expand_parameter(component, parameter, item) for item in value]
    return expanded(value, kind) if isinstance(value, str) and value else value


@dataclass(frozen=True)
class PathOf:
    """A path of a configuration and the key it stands under: `data.train.path`, `verifiers.0.name`."""

    key: str
    value: ConfiguredPath

    @property
    def kind(self) -> Kind:
        return self.value.kind


def paths_of(config: BaseModel) -> list[PathOf]:
    """Every path of a configuration, wherever it stands: sections, lists, mappings, parameters of components."""
    return list(_paths(config, ""))


def _paths(value: Any, key: str) -> Iterator[PathOf]:
    if isinstance(value, ConfiguredPath):
        yield PathOf(key, value)
        return
    items: Any = ()
    if isinstance(value, BaseModel):
        items = value  # fields, and keys that the schema leaves open
    elif isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    for name, item in items:
        yield from _paths(item, f"{key}.{name}" if key else str(name))
