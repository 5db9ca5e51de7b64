"""Objects between two processes: each holds stand-ins for objects of the other and carries operations over a socket.

Its source, behind that of the codec, runs in the tests' process and in the candidate's. Plain data is copied; any other
object stays where it is and a number stands for it. The other side makes a stand-in whose class has the special methods
that the object's class has, so that `len`, `in`, `with`, `+`, iteration and the like are Python's own, each carried over
as one operation. An exception is caught by its class, a generator is a generator, a coroutine can be awaited.

A message is its length and a JSON list: descriptions of objects the other side does not know yet, and the codec's text of
    ["ask", operation, argument, ...], ["value", value, arguments after a call or None] or ["raise", name, text, exception, its cause].
While one side waits for its answer it does what it is asked; so functions of the tests can be called by the program.
"""

from __future__ import annotations

import builtins
import collections
import collections.abc
import copy
import importlib
import json
import os
import struct
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from rewards._code_codec import Malformed, TooLarge, become, builtin_name, dumps, loads, shown
from rewards._code_remote import COMPARED, SPECIAL, Failure, Kind, Number, Remote, called, on_class, on_instance

MOST = 4_000_000  # parts of a message
SLICE = 0.005  # seconds that coroutines run before the other side has its turn
PLAIN = (int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset)
LAZY = collections.abc.Iterator
# Both sides run the same Python: a built-in class is its place in this list.
BUILTINS = [name for name, value in sorted(vars(builtins).items()) if isinstance(value, type)]
# What `map` or `zip`, and so a test around them, takes for the end of its input and not for an error.
STOPS = (StopIteration, StopAsyncIteration)


class Gone(BaseException):
    """The other process has ended, or does not answer."""


class Candidate(Exception):
    """What the candidate raised, where that is no exception that a test could expect."""


class Refused(Exception):
    """The other side may not have this, or do this."""


class Bridge:
    """One end. The two processes differ in what they let the other do (`permitted`) and in `own`, the module whose classes
    and functions are theirs to share."""

    def __init__(self, socket: int, own: str) -> None:
        self.socket, self.own = socket, own
        self.shared: list[Any] = []  # what the other side knows by number
        self.numbers: dict[int, int] = {}  # of `shared`, by id
        self.kinds: dict[int, int] = {}  # of classes in `shared` that could also be sent by name
        self.fresh: list[dict[str, Any]] = []  # descriptions still to be sent
        self.stand_ins: dict[int, Any] = {}
        self.theirs: dict[int, int] = {}  # numbers of stand-ins, by id
        self.tasks: dict[int, Any] = {}
        self.loop: Any = None

    # -- what the two sides do differently

    def permitted(self, operation: str, target: Any, rest: list[Any]) -> None:
        """Raises Refused for what the other side may not do."""

    def shareable(self, value: Any) -> bool:
        return True

    def by_value(self, value: Any) -> bool:
        """Whether an instance of a subclass of a built-in type crosses as the value of that type."""
        return type(value).__module__ != self.own

    def importable(self, value: Any) -> bool:
        """Whether it may be sent as the name of a thing of the standard library."""
        return False

    def unsupported(self, why: str) -> Any:
        raise Refused(why)

    def made_by(self, kind: Any, value: Any) -> Any:
        """A class of the other side was called."""
        return value

    def special(self, target: Any, name: str, arguments: list[Any]) -> Any:
        return self.ask("special", target, name, arguments)

    # -- asking and answering

    def ask(self, operation: str, *rest: Any) -> Any:
        """The result of an operation there.

        Raises:
            Gone; what the operation raises there.
        """
        self.send(["ask", operation, *rest])
        while True:
            what, *message = self.receive()
            if what == "ask":
                self.answer(message)
                continue
            if what == "value":
                value, changed = message
                if changed is not None and operation == "call":
                    for argument, after in zip([*rest[1], *rest[2].values()], changed, strict=False):
                        become(argument, after)
                return value
            raise self.raised(operation, rest, *message)

    def answer(self, message: list[Any]) -> None:
        """Do what the other side asks for and send what came of it."""
        try:
            operation, target, *rest = message
            self.permitted(operation, target, rest)
            before = self.text(rest[:2]) if operation == "call" and _mutable(rest) else None
            value = getattr(self, f"do_{operation}")(target, *rest)
            changed = [*rest[0], *rest[1].values()] if before is not None and self.text(rest[:2]) != before else None
            self.send(["value", value, changed])
        except Gone:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the other side's to see
            self.send_error(error)

    def send_error(self, error: BaseException) -> None:
        try:
            text = str(error)[:2000]
        except BaseException:  # noqa: BLE001 - the program's own __str__
            text = ""
        if isinstance(error, Refused):
            self.send(["raise", "AttributeError", text, None, None])
            return
        name = "TooLarge" if type(error) is TooLarge else builtin_name(type(error))
        try:
            self.send(["raise", name, text, error, error.__cause__])
        except (TooLarge, TypeError, ValueError):
            self.send(["raise", name, text, None, None])

    def raised(self, operation: str, rest: Any, name: Any, text: Any, error: Any, cause: Any) -> BaseException:
        name, text = shown(name, 100), shown(text, 2000)
        if name == "StopIteration" and (operation == "resume" or rest[1:2] == ("__next__",)):
            return StopIteration(*error.args) if isinstance(error, StopIteration) else StopIteration()
        if name == "StopAsyncIteration" and operation == "await":
            return StopAsyncIteration()
        kind = getattr(builtins, name, None)
        known = isinstance(kind, type) and issubclass(kind, Exception | SystemExit) and not issubclass(kind, STOPS)
        if not known or not isinstance(error, Exception | SystemExit) or isinstance(error, STOPS):
            try:
                error = kind(text) if known else Candidate(f"{name}: {text}")  # type: ignore[misc]
            except TypeError:  # UnicodeDecodeError and its like need more than a text
                error = Candidate(f"{name}: {text}")
        error.name_there = f"candidate:{name}"
        error.__cause__ = cause if isinstance(cause, BaseException) else None
        return error

    # -- operations, on objects of this side

    def do_call(self, target: Any, arguments: list[Any], named: dict[str, Any]) -> Any:
        return target(*arguments, **named)

    def do_get(self, target: Any, name: str) -> Any:
        return getattr(target, name)

    def do_set(self, target: Any, name: str, value: Any) -> None:
        setattr(target, name, value)

    def do_delete(self, target: Any, name: str) -> None:
        delattr(target, name)

    def do_special(self, target: Any, name: str, arguments: list[Any]) -> Any:
        return getattr(type(target), name)(target, *arguments)

    def do_plain(self, target: Any) -> Any:
        """As the value of the built-in type that its class derives from."""
        return loads(dumps(target, self.shared_as, most=MOST), self.found, most=MOST)

    def do_unlike(self, target: Any, name: str) -> Any:
        """Whether it equals what it cannot know."""
        said = getattr(type(target), name)(target, object())
        return said is not NotImplemented and bool(said)

    def do_copy(self, target: Any, deep: bool) -> Any:
        return copy.deepcopy(target) if deep else copy.copy(target)

    def do_resume(self, target: Any, how: str, value: Any) -> Any:
        if how == "next":
            return next(target)
        return getattr(target, how)(*([] if how == "close" else [value]))

    def do_await(self, target: Any) -> list[Any]:
        """[True, result] when it has ended, else [False, None]; runs all that is awaited for a moment."""
        import asyncio  # takes longer than most programs run

        loop = self.loop = self.loop or asyncio.new_event_loop()
        outer = asyncio._get_running_loop()  # the tests' own, which waits meanwhile
        asyncio._set_running_loop(None)
        try:
            if id(target) not in self.tasks:
                self.tasks[id(target)] = loop.create_task(_awaited(target))
            task = self.tasks[id(target)]
            loop.run_until_complete(asyncio.wait({task}, timeout=SLICE))
            return [True, task.result()] if task.done() else [False, None]
        finally:
            asyncio._set_running_loop(outer)

    def do_cancel(self, target: Any) -> None:
        task = self.tasks.get(id(target))
        if task is not None and not task.done():
            task.cancel()
            self.do_await(target)

    # -- values

    def text(self, value: Any) -> str:
        return dumps(value, self.shared_as, self.special_node, MOST)

    def share_kind(self, kind: type) -> int:
        """The number of an object's class, of which the other side makes one of stand-ins, whatever it could import."""
        if not self.importable(kind):
            return self.share(kind)
        return self._numbered(kind, self.kinds, self.class_described)

    def special_node(self, value: Any) -> Any:
        """Of what is to keep its identity though the codec could copy it, and of stand-ins: their number."""
        number = value.number if type(value) is Number else self.theirs.get(id(value))
        if number is not None:
            return {"yours": number}
        if value is NotImplemented or value is Ellipsis:
            return {"constant": int(value is NotImplemented)}
        if isinstance(value, types.TracebackType):  # what `__exit__` gets
            return {"constant": 2}
        if isinstance(value, PLAIN) and not isinstance(value, bool) and type(value) not in PLAIN:
            return None if self.by_value(value) else self.shared_as(value)
        if isinstance(value, LAZY):
            return self.shared_as(value)
        return None

    def shared_as(self, value: Any) -> Any:
        """What stands for an object of this side."""
        number = self.numbers.get(id(value))
        if number is None:
            name = value.__name__ if isinstance(value, type) else ""
            if name in BUILTINS and value is getattr(builtins, name):
                return {"builtin": BUILTINS.index(name)}
            if not self.shareable(value) and not self.importable(value):
                return self.unsupported(f"an object of type {type(value).__name__}")
            number = self.share(value)
        return {"mine": number}

    def share(self, value: Any) -> int:
        """The number of an object of this side, which the other side is told of with the next message."""
        return self._numbered(value, self.numbers, self.described)

    def _numbered(self, value: Any, numbers: dict[int, int], describe: Callable[[Any], dict[str, Any]]) -> int:
        if id(value) not in numbers:
            description = describe(value)  # first: what it speaks of has its numbers before
            numbers[id(value)] = len(self.shared)
            self.shared.append(value)
            self.fresh.append({"number": numbers[id(value)], **description})
        return numbers[id(value)]

    def described(self, value: Any) -> dict[str, Any]:
        if self.importable(value):
            module = getattr(value, "__objclass__", value).__module__
            return {"is": "global", "module": module, "name": value.__qualname__}
        if isinstance(value, type):
            return self.class_described(value)
        if hasattr(type(value), "__await__"):
            return {"is": "coroutine"}
        if isinstance(value, types.GeneratorType):
            return {"is": "generator"}
        if isinstance(value, types.ModuleType) and standard(value.__name__):
            return {"is": "module", "name": value.__name__}
        if isinstance(value, BaseException):
            return self.error_described(value)
        return {"is": "object", "of": self.share_kind(type(value))}

    def error_described(self, error: BaseException) -> dict[str, Any]:
        try:
            arguments = dumps(list(error.args))
        except (TypeError, ValueError):
            arguments = dumps([shown(argument) for argument in error.args])
        kind = type(error)
        if standard(kind.__module__):
            return {"is": "error", "module": kind.__module__, "name": kind.__qualname__, "arguments": arguments}
        return {"is": "failure", "of": self.share(kind), "arguments": arguments}

    def class_described(self, value: type) -> dict[str, Any]:
        bases: list[Any] = []
        for base in value.__bases__:
            if issubclass(base, BaseException) and base.__module__ == "builtins":
                bases.append(base.__name__)
            elif base.__module__ == self.own or issubclass(base, BaseException):
                bases.append(self.share(base))
        hashes = value.__hash__
        return {
            "is": "class",
            "name": value.__name__,
            "module": value.__module__,
            "bases": bases,
            "has": [name for name in sorted(SPECIAL) if _has(value, name, object)],
            "class has": [name for name in sorted(SPECIAL - {"__call__"}) if _has(type(value), name, type)],
            "hash": "none" if hashes is None else "own" if hashes is not object.__hash__ else "identity",
            "error": issubclass(value, BaseException),
            # Which of its comparisons and arithmetic are those of the built-in type it derives from.
            "plain": [name for name in sorted(COMPARED) if _plain(value, name)],
        }

    def found(self, tag: str, content: int) -> Any:
        if tag == "yours":
            return self.shared[content]
        if tag == "mine":
            return self.stand_ins[content]
        if tag == "constant":
            return (Ellipsis, NotImplemented, None)[content]
        if tag == "builtin":
            return getattr(builtins, BUILTINS[content])
        raise Malformed(f"an unknown tag {tag[:40]!r}")

    # -- stand-ins

    def take(self, description: dict[str, Any]) -> None:
        """Make a stand-in for an object of the other side."""
        number = description["number"]
        made = getattr(self, f"take_{description['is']}")(number, description)
        self.stand_ins[number] = made
        self.theirs[id(made)] = number

    def take_object(self, number: int, description: dict[str, Any]) -> Any:
        kind = self.stand_ins[description["of"]]
        return object.__new__(kind if isinstance(kind, Kind) and not issubclass(kind, BaseException) else Remote)

    def take_failure(self, number: int, description: dict[str, Any]) -> Any:
        kind, arguments = self.stand_ins[description["of"]], loads(description["arguments"])
        made = kind.__new__(kind, *arguments)
        made.args = tuple(arguments)
        return made

    def take_error(self, number: int, description: dict[str, Any]) -> Any:
        """One of Python's own, made without its `__init__`, which may want other arguments."""
        module, name, arguments = description["module"], description["name"], loads(description["arguments"])
        kind = getattr(importlib.import_module(module), name) if standard(module) else None
        if not isinstance(kind, type) or not issubclass(kind, BaseException):
            raise Malformed("not an exception")
        made = kind.__new__(kind, *arguments)
        made.args = tuple(arguments)
        return made

    def take_module(self, number: int, description: dict[str, Any]) -> Any:
        """The same module here: what the program has made of its own is no affair of the tests."""
        if not standard(description["name"]):
            raise Malformed("not a module of the standard library")
        return importlib.import_module(description["name"])

    def take_class(self, number: int, description: dict[str, Any]) -> Any:
        error = bool(description["error"])
        bases: list[Any] = []
        for base in description["bases"]:
            known = getattr(builtins, base, Exception) if isinstance(base, str) else self.stand_ins[base]
            bases.append(known)
        space: dict[str, Any] = {name: on_instance(name) for name in description["has"] if name in SPECIAL}
        if description["hash"] == "none":
            space["__hash__"] = None
        elif description["hash"] == "identity" and "__eq__" in space:
            space["__hash__"] = object.__hash__
        if "__call__" in space:
            space["__call__"] = called
        space["_plain_"] = frozenset(description["plain"])
        if error:
            bases = [base for base in bases if isinstance(base, type) and issubclass(base, BaseException)] or [
                Exception
            ]
            bases = [*([] if any(issubclass(base, Failure) for base in bases) else [Failure]), *bases]
        else:
            bases = [base for base in bases if isinstance(base, Kind)] or [Remote]
            space["__slots__"] = ()
        kinds = tuple(
            dict.fromkeys(type(base) for base in bases if isinstance(type(base), type) and issubclass(type(base), Kind))
        )
        kinds = kinds or (Kind,)
        own: dict[str, Any] = {name: on_class(name) for name in description["class has"] if name in SPECIAL}
        own |= {"__hash__": type.__hash__} if own else {}
        meta = type("Kind", kinds, own) if own else type("Kind", kinds, {}) if len(kinds) > 1 else kinds[0]
        space["__module__"] = "solution"
        name = shown(description["name"], 100)
        try:
            made = meta(name, tuple(bases), space, bridge=self)
        except TypeError:  # bases that do not go together here
            made = Kind(name, (Failure, Exception) if error else (Remote,), space, bridge=self)
        return made

    def take_generator(self, number: int, description: dict[str, Any]) -> Iterator[Any]:
        def generator() -> Any:
            how, value = "next", None
            while True:
                try:
                    item = self.ask("resume", Number(number), how, value)
                except StopIteration as end:
                    return end.value
                try:
                    value = yield item
                    how = "next" if value is None else "send"
                except GeneratorExit:
                    self.ask("resume", Number(number), "close", None)
                    raise
                except Exception as error:  # noqa: BLE001 - thrown in, for the generator there
                    how, value = "throw", error

        return generator()

    def take_coroutine(self, number: int, description: dict[str, Any]) -> Any:
        import asyncio

        async def coroutine() -> Any:
            try:
                while True:
                    ended, value = self.ask("await", Number(number))
                    if ended:
                        return value
                    await asyncio.sleep(0)
            except (asyncio.CancelledError, GeneratorExit):
                self.ask("cancel", Number(number))
                raise

        return coroutine()

    # -- messages

    def send(self, message: list[Any]) -> None:
        text = self.text(message)
        fresh, self.fresh = self.fresh, []
        data = json.dumps([fresh, text]).encode()
        view = memoryview(struct.pack("<Q", len(data)) + data)
        try:
            while view:
                view = view[os.write(self.socket, view) :]
        except OSError:
            raise Gone from None

    def receive(self) -> list[Any]:
        (size,) = struct.unpack("<Q", self._read(8))
        if size > 2**28:
            raise Gone
        data = self._read(size)
        try:
            fresh, text = json.loads(data)
            for description in fresh:
                self.take(description)
            message = loads(text, self.found, most=MOST)
            if message[0] not in ("ask", "value", "raise"):
                raise Malformed("not a message")
            return message
        except Exception as error:  # noqa: BLE001 - whatever a hostile message does here
            raise Candidate(f"its answer cannot be read: {shown(error)}") from None

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            try:
                chunk = os.read(self.socket, min(size - len(data), 2**20))
            except OSError:
                raise Gone from None
            if not chunk:
                raise Gone
            data += chunk
        return bytes(data)


def standard(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names


def _has(kind: type, name: str, root: type) -> bool:
    return any(name in vars(base) for base in kind.__mro__ if base not in (root, object))


def _plain(kind: type, name: str) -> bool:
    owner = next((base for base in kind.__mro__ if name in vars(base)), object)
    return owner in PLAIN


def _mutable(rest: list[Any]) -> bool:
    mutable = (list, dict, set, bytearray, tuple, collections.deque)
    return any(isinstance(argument, mutable) for argument in (*rest[0], *rest[1].values()))


async def _awaited(target: Any) -> Any:
    return await target
