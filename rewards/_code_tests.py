"""What runs in the tests' process where no candidate is alive beside it: the tests, with stand-ins where they call it.

Its source, behind those it imports from here, is what the sandbox runs. A stand-in's operations are carried out elsewhere,
by replay: the tests are run with the replies known so far. From the first operation without a reply on, operations return
a `Guess`, and what is asked for is only written down; the run whose operations all have replies is the one that counts.
Without any reply it tells what the tests will ask, and which of them fail whatever they are told.
Standard input: one JSON object
    {"setup": [source, ...], "tests": [source with its assertions under `with __state__`, ...], "entry_point": name or None, "names": [name, ...],
     "modules": [name, ...], "pytest": bool, "operations": [text, ...], "replies": [text, ...], "seconds": most to spend on guessing}
Standard output: {"complete": bool, "operations": [text, ...], "tests": [[passed, exception or None, text, operations before it], ...],
"cut": bool, "broken": text or None}; cut are tests whose last assertions an error in a statement between them kept from
being reached, broken those that fail whatever the candidate does.
"""

from __future__ import annotations

import builtins
import json
import random
import signal
import sys
from typing import Any, NoReturn

from rewards._code_codec import Malformed, Opaque, TooLarge, become, dumps, loads, shown
from rewards._code_harness import Record, report, run_tests, silence

MAX_OPERATIONS = 5000
# What `map` or `zip`, and so a test around them, takes for the end of its input and not for an error.
ENDS = (StopIteration, StopAsyncIteration)


class Candidate(Exception):
    """What the candidate raised, where that is no built-in exception a test could expect."""


class State(Record):
    """Of one run of the tests."""

    def __init__(self, operations: list[str], replies: list[str]) -> None:
        super().__init__()
        self.known, self.replies = operations, replies
        self.operations: list[str] = []
        self.guessing = False
        self.things = False  # whether a reply was no plain data
        self.opaque: str | None = None  # an argument that is none

    def operate(self, kind: str, target: Any, *rest: Any) -> Any:
        """Carry an operation out: by its reply when it has one."""
        try:
            text = dumps([kind, target, *rest], _stands_for)
        except Opaque as error:
            self.opaque = str(error)
            text = dumps(["opaque", self.opaque])
        index = len(self.operations)
        if index >= MAX_OPERATIONS:
            if self.guessing:
                self.tell()
            raise Candidate(f"more than {MAX_OPERATIONS} calls")
        self.operations.append(text)
        self.asked = len(self.operations)
        if self.guessing or index >= len(self.replies) or self.known[index] != text:
            self.guessing = True
            return Guess("result", index)
        try:
            _, outcome, *what = loads(self.replies[index], self._thing)
            value, changed = what
        except (Malformed, TooLarge, ValueError, TypeError) as error:
            raise Candidate(f"its answer cannot be read: {error}") from None
        if outcome == "raise":
            raise _exception(value, changed)
        if changed is not None and rest:
            for argument, after in zip(rest[0], changed, strict=False):
                become(argument, after)
        return value

    def _thing(self, tag: str, number: int) -> Any:
        self.things = True
        return Handle(tag, number)

    def tell(self, broken: str | None = None) -> NoReturn:
        """Say what came of this run, and end the process."""
        signal.signal(signal.SIGALRM, signal.SIG_IGN)  # or a run that is late while it tells would tell twice
        report(
            {
                "complete": not self.guessing,
                "operations": self.operations,
                "tests": self.tests,
                "cut": self.cut,
                "things": self.things,
                "opaque": self.opaque,
                "broken": broken,
            }
        )

    def late(self) -> None:
        """End a run that only guesses; how many tests it got to is chance."""
        self.tests.clear()
        self.tell()


STATE = State([], [])


class Handle:
    """Something in the candidate's process that is not plain data. It equals nothing but itself."""

    def __init__(self, tag: str, number: int) -> None:
        object.__setattr__(self, "_place", (tag, number))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return STATE.operate("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        STATE.operate("set", self, name, value)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return STATE.operate("call", self, list(arguments), named)


class Guess(Handle):
    """A result not known yet. It goes along with everything, so that the tests get on to their next calls."""

    def _same(self, *_: Any) -> Any:
        return self

    def _true(self, *_: Any) -> bool:
        return True

    def _none(self, *_: Any) -> int:
        return 0

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __floordiv__ = _same
    __rfloordiv__ = __mod__ = __rmod__ = __pow__ = __rpow__ = __and__ = __rand__ = __or__ = __ror__ = __xor__ = _same
    __neg__ = __pos__ = __abs__ = __invert__ = __round__ = __getitem__ = _same
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __bool__ = _true
    __len__ = __int__ = __index__ = __hash__ = _none

    def __float__(self) -> float:
        return 0.0

    def __iter__(self) -> Any:
        return iter(())

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


class Name:
    """Stands for something the candidate defines."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.__name__ = name

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return STATE.operate("call", self._name, list(arguments), named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return STATE.operate("get", self._name, name)


def main() -> None:
    """Run the tests once and report."""
    global STATE
    request = json.loads(sys.stdin.buffer.read())
    silence()
    random.seed(0)  # a test that draws its inputs must draw the same in each run
    STATE = State(request["operations"], request["replies"])
    # A loop that waits for some result never ends on a guess; what was asked until then is known.
    signal.signal(signal.SIGALRM, lambda *_: STATE.late() if STATE.guessing else None)
    signal.setitimer(signal.ITIMER_REAL, request["seconds"])
    STATE.tell(run_tests(request, {name: Name(name) for name in request["names"]}, STATE))


def _stands_for(value: Any) -> dict[str, int]:
    if isinstance(value, Handle):
        tag, number = object.__getattribute__(value, "_place")
        return {tag: number}
    raise Opaque(f"a {type(value).__name__} is not plain data")


def _exception(raised: Any, said: Any) -> Exception:
    name, text = shown(raised, 100), shown(said, 2000)
    kind = getattr(builtins, name, None)
    plain = isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, (AssertionError, *ENDS))
    try:
        error: Any = kind(text) if plain and kind is not None else Candidate(f"{name}: {text}")
    except TypeError:  # UnicodeDecodeError and its like need more than a text
        error = Candidate(f"{name}: {text}")
    error.name_there = f"candidate:{name}"
    return error


if __name__ == "__main__":
    main()
