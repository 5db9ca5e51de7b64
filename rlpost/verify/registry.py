"""From the name in the configuration to the function: built-in, entry point, `file.py:function`, `module:function`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from rlpost.user_code import import_file
from rlpost.verify.protocol import REGISTERED, VerifierError

# Not imported before they are asked for: sympy alone takes half a second.
BUILT_IN = {
    "math": "rewards.math_equivalence:verify",
    "reasoning_gym": "rewards.reasoning_gym_task:verify",
    **{
        name: f"rewards.{name}:verify"
        for name in (
            *("exact", "format", "countdown", "code", "sql", "length", "overlong", "repetition", "language", "choice"),
            *("regex", "json_schema", "instructions", "ensemble"),
        )
    },
    "judge": "rlpost.verify.judge:verify",
}
ENTRY_POINTS = "rlpost.verifiers"


def resolve(name: str) -> Callable[..., Any]:
    """The verifier called `name`; importing its module runs the module's code.

    Raises:
        VerifierError: naming what was looked for and what is there instead.
    """
    if name in BUILT_IN:
        name = BUILT_IN[name]
    elif name in REGISTERED:
        return REGISTERED[name]
    origin, colon, attribute = name.partition(":")
    if not colon:
        return _entry_point(name)
    if not origin or not attribute:
        raise VerifierError(f"verifier {name!r} must look like file.py:function or package.module:function")
    module = _load_file(name, Path(origin)) if origin.endswith(".py") else _import(name, origin)
    return _function(name, module, attribute)


def anchored(name: str) -> str:
    """The name as another process reads it, whose current directory is not this one's: a file by its whole path."""
    origin, colon, attribute = name.partition(":")
    if not colon or not origin.endswith(".py"):
        return name
    return f"{Path(origin).expanduser().resolve()}:{attribute}"


def _entry_point(name: str) -> Callable[..., Any]:
    installed = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    if name not in installed:
        raise VerifierError(
            f"no verifier {name!r}: the built-in ones are {', '.join(BUILT_IN)}; entry points of group "
            f"{ENTRY_POINTS!r}: {', '.join(installed) or 'none'}; your own is file.py:function"
        )
    try:
        function = installed[name].load()
    except Exception as error:
        raise VerifierError(f"verifier {name!r}: its entry point {installed[name].value!r} fails: {error!r}") from error
    return _checked(name, function, installed[name].value)


def _import(name: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise VerifierError(f"verifier {name!r}: importing module {module!r} fails: {error!r}") from error


def _load_file(name: str, path: Path) -> ModuleType:
    try:
        return import_file(path)
    except FileNotFoundError as error:
        raise VerifierError(f"verifier {name!r}: {error}") from error
    except (Exception, SystemExit) as error:  # a file that ends the program as a script does
        raise VerifierError(f"verifier {name!r}: running {path} fails: {error!r}") from error


def _function(name: str, module: ModuleType, attribute: str) -> Callable[..., Any]:
    registered = REGISTERED.get(attribute)
    function = getattr(module, attribute, None)
    if function is None and registered is not None and registered.__module__ == module.__name__:
        function = registered
    where = module.__file__ or module.__name__
    if function is None:
        there = [n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]
        raise VerifierError(
            f"verifier {name!r}: {where} has no {attribute!r}; its functions: {', '.join(there) or 'none'}"
        )
    return _checked(name, function, where)


def _checked(name: str, function: Any, where: str) -> Callable[..., Any]:
    if not callable(function) or inspect.isclass(function):
        raise VerifierError(f"verifier {name!r} in {where} is a {type(function).__name__}, not a function")
    return function
