"""How an entry of a role is found by name or by import path, and gets its parameters from the configuration.

A role is a `Registry`; an entry is a function or a class with a decorator. A user's own entry is named by where it
stands, `my_losses.py:fancy` or `package.module:fancy`, needs no decorator, and is treated like a built-in one.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from rlpost.config import Component, ConfigError
from rlpost.user_code import import_file, nearest

T = TypeVar("T")
Entry = TypeVar("Entry", bound=Callable[..., Any])


class Registry(Generic[T]):
    """The entries of one role, by name.

    An entry's parameters are whatever its signature has besides the role's inputs, with their defaults; annotations
    are checked by pydantic, so `Annotated[float, Field(gt=1)]` is a range that a configuration is held to.

    Args:
        role: what the entries are, as error messages call it: "policy loss".
        inputs: names of the leading arguments that the objective passes at run time; a configuration cannot set them.
            A class gets its parameters in the constructor and the inputs when its instance is called. A role without
            inputs has classes whose instances are not called.
    """

    def __init__(self, role: str, inputs: Sequence[str]) -> None:
        self.role = role
        self.inputs = tuple(inputs)
        self._entries: dict[str, Callable[..., Any]] = {}

    def register(self, name: str, **traits: Any) -> Callable[[Entry], Entry]:
        """Decorator that adds a function or class under `name`.

        Args:
            traits: what the objective has to know of the entry before it runs, such as `needs=("entropy",)`. They
                become attributes of it; an entry in a user's file sets them itself: `fancy.needs = ("entropy",)`.

        Raises:
            ValueError: the name is taken.
        """

        def add(entry: Entry) -> Entry:
            if name in self._entries:
                raise ValueError(f"{self.role} {name!r} is already registered, by {self._entries[name].__module__}")
            for trait, value in traits.items():
                setattr(entry, trait, value)
            self._entries[name] = entry
            return entry

        return add

    def names(self) -> list[str]:
        """The registered names, sorted."""
        return sorted(self._entries)

    def create(self, component: Component) -> T:
        """The entry that `component.name` names, with `component.params` bound: partial function, or instance.

        Raises:
            ConfigError: no such entry, file or attribute; a file that cannot be imported; a parameter that is unknown,
                missing or refused by its annotation. The message names the role, the entry and the parameter.
        """
        entry = self._find(component.name)
        params = self._check(component, entry)
        bound = entry(**params) if inspect.isclass(entry) else functools.partial(entry, **params)
        if self.inputs and not callable(bound):
            raise ConfigError(f"{self.role} {component.name!r}: instances of the class must be callable: add __call__")
        return bound  # type: ignore[return-value]  # the role's call signature is the entry's promise

    def trait(self, name: str, trait: str, default: Any) -> Any:
        """A trait of the entry `name`, or `default` where it does not say.

        Raises:
            ConfigError: no such entry.
        """
        return getattr(self._find(name), trait, default)

    def _find(self, name: str) -> Callable[..., Any]:
        if name in self._entries:
            return self._entries[name]
        origin, colon, attribute = name.partition(":")
        if not colon:
            raise ConfigError(
                f"unknown {self.role} {name!r}{nearest(name, self._entries)} (known: {', '.join(self.names())}, "
                "or file.py:function)"
            )
        module = self._import(origin)
        entry = getattr(module, attribute, None)
        if entry is None:
            raise ConfigError(f"{self.role}: {origin} has no {attribute!r}{nearest(attribute, vars(module))}")
        if not callable(entry):
            raise ConfigError(f"{self.role}: {name} is a {type(entry).__name__}, not a function or class")
        return entry

    def _import(self, origin: str) -> ModuleType:
        try:
            return import_file(Path(origin)) if origin.endswith(".py") else importlib.import_module(origin)
        except (Exception, SystemExit) as error:  # a file that ends the program as a script does
            raise ConfigError(f"{self.role}: cannot import {origin}: {type(error).__name__}: {error}") from error

    def _check(self, component: Component, entry: Callable[..., Any]) -> dict[str, Any]:
        """The component's parameters, validated against the entry's signature."""
        where = f"{self.role} {component.name!r}"
        try:
            signature = list(inspect.signature(entry, eval_str=True).parameters.values())
        except NameError as error:
            raise ConfigError(f"{where}: an annotation names what its module does not import: {error}") from error
        if not inspect.isclass(entry):
            if sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in signature) < len(self.inputs):
                raise ConfigError(f"{where}: must take ({', '.join(self.inputs)}) and then its own parameters")
            signature = signature[len(self.inputs) :]
        known = {p.name: p for p in signature if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        open_ended = any(p.kind is p.VAR_KEYWORD for p in signature)

        checked: dict[str, Any] = {}
        for name, value in component.params.items():
            if name in known:
                checked[name] = _validated(where, known[name], value)
            elif open_ended:
                checked[name] = value
            else:
                raise ConfigError(
                    f"{where}: unknown parameter {name!r}, value {value!r}{nearest(name, known)} "
                    f"(known: {', '.join(known) or 'none'})"
                )
        missing = [name for name, p in known.items() if p.default is p.empty and name not in checked]
        if missing:
            raise ConfigError(f"{where}: missing {', '.join(missing)}, which has no default: set it in the file")
        return checked


def _validated(where: str, parameter: inspect.Parameter, value: Any) -> Any:
    if parameter.annotation is parameter.empty:
        return value
    try:
        return TypeAdapter(parameter.annotation).validate_python(value)
    except ValidationError as error:
        reasons = "; ".join(dict.fromkeys(item["msg"] for item in error.errors()))
        raise ConfigError(f"{where}: parameter {parameter.name!r}, value {value!r}: {reasons}") from None
