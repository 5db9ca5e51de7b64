"""What runs in the tests' process while the candidate is alive in another: the tests, over `_code_bridge`.

Its source, behind those it imports from here, is what the sandbox runs. Beside it lies `request.json`; standard input is
the socket to the candidate. On standard output it says, as `_code_tests` does, what came of the tests, with
    "loaded": None or [type, text], "gone": whether the candidate was, "untestable": [why, ...]
where untestable is what this way of testing cannot do, whatever the candidate is.

What the tests expect never goes to the candidate. So an object of the program is equal to nothing but its like, and meets
plain data in `<`, `in` or arithmetic only where the tests made it themselves, by calling a class of the program; what a
function returns in place of a number or a list decides about no test. Two objects are asked whether they are equal, unless
the first says so of what it cannot know.
"""

from __future__ import annotations

import functools
import json
import os
import random
import sys
import types
from typing import Any

from rewards._code_bridge import LAZY, Bridge, Gone, Refused, standard
from rewards._code_codec import Malformed, shown
from rewards._code_harness import Record, report, run_tests, silence
from rewards._code_remote import ARITHMETIC, COMPARED, EQUALITY, SPECIAL, Kind

CALLABLE = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial)
LENT = ("unittest.mock", "_io", "operator", "re")  # modules whose objects the program may use
NAMES = ("__name__", "__qualname__", "__doc__", "__module__")
RESUMED = ("next", "send", "throw", "close")


class Unsupported(Exception):
    """The tests need what cannot be done between two processes."""


class Tests(Bridge):
    """The tests' end: the program may call what it was given, and see the public parts of objects."""

    def __init__(self, socket: int, classes: list[str]) -> None:
        super().__init__(socket, "tests")
        self.record = Record()
        self.classes = classes
        self.expected: tuple[Any, ...] = ()
        self.made: set[int] = set()  # numbers of objects that the tests made
        self.untestable: list[str] = []
        self._answering = False

    def start(self, names: list[str]) -> tuple[dict[str, Any], list[str] | None]:
        """What stands for each name, and what loading the program raised."""
        what, *message = self.receive()
        if what == "raise":
            return {}, [shown(message[0], 100), shown(message[1], 500)]
        found = {
            name: value if there else Missing(name) for name, (there, value) in zip(names, message[0], strict=True)
        }
        self.expected = tuple(
            value for name, value in found.items() if name in self.classes and isinstance(value, Kind)
        )
        return found, None

    # -- what the tests ask

    def ask(self, operation: str, *rest: Any) -> Any:
        self.record.asked += 1
        answering, self._answering = self._answering, False
        try:
            return super().ask(operation, *rest)
        finally:
            self._answering = answering

    def made_by(self, kind: Any, value: Any) -> Any:
        if isinstance(value, self.expected):
            self.made.add(self.theirs[id(value)])
        return value

    def special(self, target: Any, name: str, arguments: list[Any]) -> Any:
        plain = name in COMPARED and not all(id(argument) in self.theirs for argument in arguments)
        if plain:
            if name in type(target)._plain_:
                value = self.ask("plain", target)
                return getattr(type(value), name)(value, *arguments)
            if name in EQUALITY and arguments[0] is None:
                return name == "__ne__"
            if not self._may_meet(target, name):
                if isinstance(target, self.expected):
                    self.untestable.append(f"an object of class {type(target).__name__} and plain data in {name}")
                if name == "__contains__":
                    raise TypeError("an object of the program is not asked whether it holds the tests' data")
                return NotImplemented
        value = self.ask("special", target, name, arguments)
        if name == "__enter__":
            return self.made_by(type(target), value)
        if name not in EQUALITY or plain or value is NotImplemented or "__eq__" not in vars_of(target):
            return value
        if bool(value) == (name == "__eq__") and self.ask("unlike", target, "__eq__"):
            return name == "__ne__"
        return value

    def _may_meet(self, target: Any, name: str) -> bool:
        if name in EQUALITY:
            return False
        return self.theirs[id(target)] in self.made or (name in ARITHMETIC and isinstance(target, self.expected))

    # -- what the program asks

    def answer(self, message: list[Any]) -> None:
        self._answering = True
        try:
            super().answer(message)
        finally:
            self._answering = False

    def permitted(self, operation: str, target: Any, rest: list[Any]) -> None:
        kind = type(target)
        ours = "tests" in (getattr(target, "__module__", None), kind.__module__) or kind.__module__ in LENT
        if operation == "call":
            allowed = isinstance(target, CALLABLE) or ours
        elif operation in ("get", "set", "delete"):
            name = rest[0]
            allowed = type(name) is str and (
                name in NAMES or (ours and not isinstance(target, CALLABLE) and name[:1] != "_")
            )
        elif operation == "special":
            shown = rest[0] in ("__str__", "__repr__", "__format__", "__dir__")
            allowed = (rest[0] in SPECIAL or shown) and (ours or isinstance(target, (*CALLABLE, LAZY)))
        elif operation == "resume":
            allowed = isinstance(target, LAZY) and rest[0] in RESUMED
        else:
            allowed = ours or (operation in ("await", "cancel") and isinstance(target, types.CoroutineType))
        if not allowed:
            raise Refused(f"the tests' {kind.__name__} is not to be asked for {operation}")

    def shareable(self, value: Any) -> bool:
        if isinstance(value, type):
            return value.__module__ == "tests"
        lazy = isinstance(value, (*CALLABLE, types.CoroutineType, LAZY, BaseException))
        return lazy or type(value).__module__ in ("tests", *LENT)

    def importable(self, value: Any) -> bool:
        """A function or class of the standard library, or a method of one."""
        owner = getattr(value, "__objclass__", value)
        name, module = getattr(value, "__qualname__", None), getattr(owner, "__module__", None)
        if not isinstance(value, (*CALLABLE[:2], types.MethodDescriptorType, type)) or type(module) is not str:
            return False
        found = sys.modules.get(module)
        for part in str(name).split("."):
            found = getattr(found, part, None)
        return standard(module) and found is value

    def by_value(self, value: Any) -> bool:
        return type(value).__module__ != "tests"

    def unsupported(self, why: str) -> Any:
        if self._answering:
            raise Refused(why)
        self.untestable.append(why)
        raise Unsupported(why)

    def take_global(self, number: int, description: dict[str, Any]) -> Any:
        raise Malformed("the program names nothing of the tests' process")


def vars_of(target: Any) -> set[str]:
    """The special methods of a stand-in."""
    return {name for kind in type(target).__mro__ for name in vars(kind)}


class Missing:
    """A name that the program does not define."""

    def __init__(self, name: str) -> None:
        object.__setattr__(self, "_name_", name)

    def _fail(self, *_: Any, **__: Any) -> Any:
        error = NameError(f"name {object.__getattribute__(self, '_name_')!r} is not defined")
        error.name_there = "candidate:NameError"  # type: ignore[attr-defined]
        raise error

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._fail()

    __call__ = __eq__ = __iter__ = __len__ = __getitem__ = __contains__ = __add__ = __radd__ = _fail
    __lt__ = __le__ = __gt__ = __ge__ = __mro_entries__ = _fail
    __hash__ = object.__hash__


def main() -> None:
    """Run the tests and report."""
    with open("request.json", encoding="utf-8") as file:
        request = json.load(file)
    bridge = Tests(os.dup(0), request["classes"])
    silence()
    random.seed(0)  # a test that draws its inputs draws the same for every response
    told: dict[str, Any] = {"loaded": None, "broken": None, "gone": False}
    try:
        names, told["loaded"] = bridge.start(request["names"])
        if told["loaded"] is None:
            told["broken"] = run_tests(request, names, bridge.record)
    except Gone:
        told["gone"] = True
    report({**told, "tests": bridge.record.tests, "cut": bridge.record.cut, "untestable": bridge.untestable})


if __name__ == "__main__":
    main()
