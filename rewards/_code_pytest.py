"""What tests written for pytest use of it, in the tests' process: `raises`, `approx`, `mark.parametrize`, fixtures.

pytest itself collects from files and rewrites them, and takes longer to be imported than most tests to run.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import types
from collections.abc import Iterator, Mapping
from typing import Any


class Skipped(BaseException):
    """A test that is not to be run."""


class Unknown(Exception):
    """A part of pytest that is not here."""


class _Raised:
    """What `pytest.raises` gives: the exception, once it is there."""

    value: Any = None

    @property
    def type(self) -> Any:
        return type(self.value)

    def match(self, pattern: str) -> bool:
        assert re.search(pattern, str(self.value)), f"{pattern!r} does not match {str(self.value)!r}"
        return True


class _Raises:
    def __init__(self, expected: Any, match: Any = None) -> None:
        self.expected, self.pattern, self.info = expected, match, _Raised()

    def __enter__(self) -> _Raised:
        return self.info

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if error is None:
            raise AssertionError(f"DID NOT RAISE {self.expected}")
        if not issubclass(kind, self.expected):
            return False
        self.info.value = error
        if self.pattern is not None:
            self.info.match(self.pattern)
        return True


def _raises(expected: Any, *call: Any, match: Any = None, **named: Any) -> Any:
    if not call:
        return _Raises(expected, match)
    with _Raises(expected) as info:
        call[0](*call[1:], **named)
    return info


class _Approx:
    """Equal to plain numbers near it, and to collections of such, as pytest says when they are near."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, expected: Any, rel: float | None = None, abs: float | None = None, nan_ok: bool = False) -> None:
        self.expected, self.rel, self.abs, self.nan_ok = expected, rel, abs, nan_ok

    def __eq__(self, actual: Any) -> bool:
        return self._near(self.expected, actual)

    def __repr__(self) -> str:
        return f"approx({self.expected!r})"

    def _near(self, expected: Any, actual: Any) -> bool:
        if hasattr(actual, "tolist"):
            actual = actual.tolist()
        if hasattr(expected, "tolist"):
            expected = expected.tolist()
        if isinstance(expected, Mapping):
            return (
                isinstance(actual, Mapping)
                and expected.keys() == actual.keys()
                and all(self._near(expected[key], actual[key]) for key in expected)
            )
        if isinstance(expected, list | tuple):
            return (
                isinstance(actual, list | tuple)
                and len(actual) == len(expected)
                and all(self._near(a, b) for a, b in zip(expected, actual, strict=True))
            )
        if isinstance(expected, bool | str | None) or isinstance(actual, bool):
            return type(actual) is type(expected) and bool(actual == expected)
        if getattr(type(type(actual)), "is_kind", False):  # an object does not say itself what it is near to
            return False
        try:
            if expected != expected:
                return self.nan_ok and actual != actual
            if expected == actual:
                return True
            if math.isinf(abs(expected)):
                return False
            absolute = 1e-12 if self.abs is None else self.abs
            relative = (1e-6 if self.abs is None else 0.0) if self.rel is None else self.rel
            return bool(abs(expected - actual) <= max(absolute, relative * abs(expected)))
        except TypeError:
            return False


class _Mark:
    """`pytest.mark`: parameters count, other marks say nothing about a function."""

    def __getattr__(self, name: str) -> Any:
        if name == "parametrize":
            return _parametrize
        if name in ("skip", "xfail"):
            return _skipping
        if name == "skipif":
            return lambda condition, **_: _skipping if condition else lambda function: function
        return _transparent


def _transparent(*arguments: Any, **_: Any) -> Any:
    return arguments[0] if len(arguments) == 1 and callable(arguments[0]) else lambda function: function


def _skipping(*arguments: Any, **_: Any) -> Any:
    if len(arguments) == 1 and callable(arguments[0]):
        vars(arguments[0])["skipped_here"] = True
        return arguments[0]
    return _skipping


def _parametrize(names: Any, values: Any, ids: Any = None, **_: Any) -> Any:
    split = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    sets = []
    for value in values:
        held = value.values if isinstance(value, _Param) else value if len(split) > 1 else (value,)
        sets.append(dict(zip(split, held, strict=True)))

    def decorate(function: Any) -> Any:
        function.parameters_here = [*getattr(function, "parameters_here", []), sets]
        return function

    return decorate


class _Param:
    def __init__(self, *values: Any, **_: Any) -> None:
        self.values = values


def _fixture(*arguments: Any, params: Any = None, autouse: bool = False, **_: Any) -> Any:
    def decorate(function: Any) -> Any:
        function.fixture_here = True
        return function

    return decorate(arguments[0]) if arguments and callable(arguments[0]) else decorate


def _fail(reason: str = "", **_: Any) -> Any:
    raise AssertionError(reason)


def _skip(reason: str = "", **_: Any) -> Any:
    raise Skipped(reason)


def pytest_module() -> types.ModuleType:
    module = types.ModuleType("pytest")
    module.__dict__.update(
        raises=_raises,
        approx=_Approx,
        mark=_Mark(),
        param=_Param,
        fixture=_fixture,
        fail=_fail,
        skip=_skip,
        main=lambda *_, **__: 0,
        warns=lambda *_, **__: contextlib.nullcontext(),
    )
    return module


def calls_of(function: Any, owner: Any) -> Iterator[dict[str, Any]]:
    """The parameters of each call that pytest would make; none for a fixture and what is skipped."""
    if getattr(function, "fixture_here", False) or getattr(function, "skipped_here", False):
        return
    marked = [*getattr(function, "parameters_here", []), *getattr(type(owner), "parameters_here", [])]
    for sets in itertools.product(*marked):
        yield {name: value for one in sets for name, value in one.items()}


def arguments_of(
    function: Any, given: dict[str, Any], space: dict[str, Any], owner: Any
) -> tuple[dict[str, Any], list[Any]]:
    """The function's arguments, fixtures made, and the generators of fixtures that are to be ended.

    Raises:
        Unknown: a fixture that is not defined by the tests.
    """
    if not function.__code__.co_argcount - (owner is not None):
        return {}, []
    import inspect  # takes longer than most tests, which have no parameters

    after: list[Any] = []
    made: dict[str, Any] = {}

    def value_of(name: str) -> Any:
        if name in given:
            return given[name]
        if name not in made:
            method = getattr(owner, name, None) if owner is not None else None
            source = method if getattr(method, "fixture_here", False) else space.get(name)
            if not getattr(source, "fixture_here", False):
                raise Unknown(f"the fixture {name!r}")
            value = source(**{other: value_of(other) for other in inspect.signature(source).parameters})  # type: ignore[misc, arg-type]
            if isinstance(value, types.GeneratorType):
                after.append(value)
                value = next(value)
            made[name] = value
        return made[name]

    parameters = list(inspect.signature(function).parameters.values())[int(owner is not None) :]
    wanted = [p.name for p in parameters if p.default is p.empty or p.name in given]
    return {name: value_of(name) for name in wanted}, after
