"""Stand-ins for objects and classes of another process: what is done to them is asked of a `Bridge`.

A stand-in's class is made for the object's class, with the special methods that one has.
"""

from __future__ import annotations

from typing import Any

ORDER = ("__lt__", "__le__", "__gt__", "__ge__")
EQUALITY = ("__eq__", "__ne__")
BINARY = (
    "add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "divmod", "pow", "lshift", "rshift", "and", "or", "xor",
)  # fmt: skip
ARITHMETIC = frozenset(f"__{how}{name}__" for name in BINARY for how in ("", "r", "i"))
COMPARED = ARITHMETIC | {*ORDER, *EQUALITY, "__contains__"}
OTHER = (
    "len", "bool", "iter", "next", "reversed", "int", "float", "complex", "index", "neg", "pos", "abs", "invert", "round",
    "trunc", "floor", "ceil", "hash", "bytes", "length_hint", "fspath", "getitem", "setitem", "delitem", "missing", "call",
    "enter", "exit", "aenter", "aexit", "aiter", "anext",
)  # fmt: skip
SPECIAL = COMPARED | {f"__{name}__" for name in OTHER}


class Number:
    """Of an object of the other side, where its stand-in is not at hand."""

    def __init__(self, number: int) -> None:
        self.number = number


class Kind(type):
    """The class of stand-ins for classes: they are called, and have attributes, where the class is."""

    is_kind = True
    _plain_: frozenset[str] = frozenset()

    def __new__(cls, name: str, bases: Any, space: Any, bridge: Any = None) -> Any:
        if bridge is None:
            for base in bases:
                if isinstance(base, Kind):
                    vars(base)["_bridge_"].unsupported(
                        f"the class {name} of the tests derives from one of the program's"
                    )
        return super().__new__(cls, name, bases, {**space, "_bridge_": bridge})

    def __init__(cls, name: str, bases: Any, space: Any, bridge: Any = None) -> None:
        super().__init__(name, bases, space)

    def __call__(cls, *arguments: Any, **named: Any) -> Any:
        return cls._bridge_.made_by(cls, cls._bridge_.ask("call", cls, list(arguments), named))

    def __getattr__(cls, name: str) -> Any:
        if name in ("__abstractmethods__", "__set_name__", "__isabstractmethod__", "_bridge_"):
            raise AttributeError(name)
        return cls._bridge_.ask("get", cls, name)

    def __setattr__(cls, name: str, value: Any) -> None:
        cls._bridge_.ask("set", cls, name, value)


class Remote(metaclass=Kind, bridge=...):
    """An object of the other process."""

    __slots__ = ("_number_",)

    def __getattribute__(self, name: str) -> Any:
        if name in ("__class__", "__copy__", "__deepcopy__"):
            return object.__getattribute__(self, name)
        return _bridge_of(self).ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _bridge_of(self).ask("set", self, name, value)

    def __delattr__(self, name: str) -> None:
        _bridge_of(self).ask("delete", self, name)

    def __repr__(self) -> str:
        return _text(_bridge_of(self).ask("special", self, "__repr__", []))

    def __str__(self) -> str:
        return _text(_bridge_of(self).ask("special", self, "__str__", []))

    def __format__(self, spec: str) -> str:
        return _text(_bridge_of(self).ask("special", self, "__format__", [spec]))

    def __dir__(self) -> Any:
        return _bridge_of(self).ask("special", self, "__dir__", [])

    def __copy__(self) -> Any:
        return _bridge_of(self).ask("copy", self, False)

    def __deepcopy__(self, memo: Any) -> Any:
        return _bridge_of(self).ask("copy", self, True)


class Failure:
    """Of an exception of the program's own class: what it has beyond a built-in one is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _bridge_of(self).ask("get", self, name)

    def __str__(self) -> str:
        return _text(_bridge_of(self).ask("special", self, "__str__", []))

    def __repr__(self) -> str:
        return _text(_bridge_of(self).ask("special", self, "__repr__", []))


def _bridge_of(stand_in: Any) -> Any:
    return type(stand_in)._bridge_


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError("__str__ returned non-string")
    return value


def on_instance(name: str) -> Any:
    def method(self: Any, *arguments: Any) -> Any:
        return type(self)._bridge_.special(self, name, list(arguments))

    method.__name__ = name
    return method


def called(self: Any, /, *arguments: Any, **named: Any) -> Any:
    return type(self)._bridge_.ask("call", self, list(arguments), named)


def on_class(name: str) -> Any:
    def method(cls: Any, *arguments: Any) -> Any:
        return cls._bridge_.special(cls, name, list(arguments))

    return method
