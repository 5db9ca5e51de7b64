"""What runs in the tests' process: the tests of the data set, with stand-ins where they call the candidate.

Its source, behind that of the codec, is what the sandbox runs. A stand-in's operations are carried out elsewhere, by
replay: the tests are run with the replies known so far. From the first operation without a reply on, operations return a
`Guess`, and what is asked for is only written down; the run whose operations all have replies is the one that counts.
Standard input: one JSON object
    {"setup": [source, ...], "tests": [source with its assertions under `with __state__`, ...], "entry_point": name or None, "names": [name, ...],
     "operations": [text, ...], "replies": [text, ...], "seconds": most to spend on guessing}
Standard output: {"complete": bool, "operations": [text, ...], "tests": [[passed, exception or None, text], ...],
"cut": bool, "broken": text or None}; cut are tests whose last assertions an error in a statement between them kept from
being reached, broken those that fail whatever the candidate does.
"""

from __future__ import annotations

import builtins
import json
import os
import random
import signal
import sys
import types
from typing import Any, NoReturn

from rewards._code_codec import Malformed, Opaque, TooLarge, dumps, loads, shown

MAX_OPERATIONS = 5000
# What `map` or `zip`, and so a test around them, takes for the end of its input and not for an error.
ENDS = (StopIteration, StopAsyncIteration)


class Candidate(Exception):
    """What the candidate raised, where that is no built-in exception a test could expect."""


class State:
    """Of one run of the tests."""

    def __init__(self, operations: list[str], replies: list[str]) -> None:
        self.asked, self.known, self.replies = [], operations, replies  # type: ignore[var-annotated]
        self.guessing = False
        self.tests: list[tuple[bool, str | None, str]] = []
        self.cut = False
        self.counted = 0  # operations that some test has been recorded for

    def operate(self, kind: str, target: Any, *rest: Any) -> Any:
        """Carry an operation out: by its reply when it has one."""
        try:
            text = dumps([kind, target, *rest], _stands_for)
        except Opaque as error:
            raise TypeError(f"an argument cannot be given to the candidate: {error}") from None
        index = len(self.asked)
        if index >= MAX_OPERATIONS:
            if self.guessing:
                self.report()
            raise Candidate(f"more than {MAX_OPERATIONS} calls")
        self.asked.append(text)
        if self.guessing or index >= len(self.replies) or self.known[index] != text:
            self.guessing = True
            return Guess("result", index)
        try:
            _, outcome, *what = loads(self.replies[index], Handle)
            value, changed = what
        except (Malformed, TooLarge, ValueError, TypeError) as error:
            raise Candidate(f"its answer cannot be read: {error}") from None
        if outcome == "raise":
            raise _exception(value, changed)
        if changed is not None and rest:
            for argument, after in zip(rest[0], changed, strict=False):
                _become(argument, after)
        return value

    def record(self, error: BaseException | None) -> None:
        """A test has ended; one that asked nothing of the candidate says nothing about it unless it fails."""
        asked, self.counted = len(self.asked) > self.counted, len(self.asked)
        if asked or error is not None:
            kind = None if error is None else getattr(error, "name_there", type(error).__name__)
            self.tests.append((error is None, kind, "" if error is None else shown(error, 500)))

    def report(self, broken: str | None = None) -> NoReturn:
        """Say what came of this run, and end the process."""
        told = {
            "complete": not self.guessing,
            "operations": self.asked,
            "tests": self.tests,
            "cut": self.cut,
            "broken": broken,
        }
        line = memoryview(json.dumps(told).encode())
        while line:
            line = line[os.write(REPORT, line) :]
        os._exit(0)

    def late(self) -> None:
        """End a run that only guesses; how many tests it got to is chance."""
        self.tests.clear()
        self.report()

    # As a context around an assertion, and what else is a test.

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        self.record(error)
        return isinstance(error, Exception | SystemExit)


STATE = State([], [])
REPORT = 60


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
    os.dup2(1, REPORT)
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    random.seed(0)  # a test that draws its inputs must draw the same in each run
    STATE = State(request["operations"], request["replies"])
    # A loop that waits for some result never ends on a guess; what was asked until then is known.
    signal.signal(signal.SIGALRM, lambda *_: STATE.late() if STATE.guessing else None)
    signal.setitimer(signal.ITIMER_REAL, request["seconds"])
    STATE.report(_run(request))


def _run(request: dict[str, Any]) -> str | None:
    names = {name: Name(name) for name in request["names"]}
    space: dict[str, Any] = {"__name__": "tests", "__state__": STATE, **names}
    solution = types.ModuleType("solution")
    solution.__dict__.update(names)
    sys.modules["solution"] = solution  # for tests that begin with `from solution import f`
    try:
        codes = [compile(source, "tests.py", "exec", dont_inherit=True) for source in request["tests"]]
        for source in request["setup"]:
            exec(compile(source, "setup.py", "exec", dont_inherit=True), space)
            space.update(names)  # the prompt of a row may hold the function's head
    except Exception as error:  # noqa: BLE001
        if STATE.asked:  # it may be the candidate's doing, whatever it looks like
            STATE.record(error)
            return None
        return f"{type(error).__name__}: {shown(error)}"
    entry_point = request["entry_point"]
    for code in codes:
        with _Outside():
            exec(code, space)
    check = space.get("check")
    if isinstance(check, types.FunctionType) and entry_point:
        with _Outside():
            check(names[entry_point])
    for name, function in list(space.items()):
        if name.startswith("test_") and isinstance(function, types.FunctionType) and not function.__code__.co_argcount:
            with _Outside():
                function()
    return None


class _Outside:
    """Around statements that are no assertion: only their failure counts, and what they keep from being reached."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if error is not None:
            STATE.record(error)
            STATE.cut = True
        return isinstance(error, Exception | SystemExit)


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


def _become(argument: Any, after: Any) -> None:
    """Change what a test has given to a call as the call has changed it."""
    if type(argument) is list and type(after) is list:
        for mine, theirs in zip(argument, after, strict=False):
            _become(mine, theirs)
        argument[:] = [
            mine if type(mine) is type(theirs) and isinstance(mine, list | dict | set) else theirs
            for mine, theirs in zip(argument, after, strict=False)
        ] + after[len(argument) :]
    elif type(argument) is tuple and type(after) is tuple:
        for mine, theirs in zip(argument, after, strict=False):
            _become(mine, theirs)
    elif type(argument) in (dict, set) and type(after) is type(argument):
        argument.clear()
        argument.update(after)
    elif type(argument) is bytearray and type(after) is bytearray:
        argument[:] = after


if __name__ == "__main__":
    main()
