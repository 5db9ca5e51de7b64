"""What runs in the candidate's process: load the program, do the operations it is asked for, send back plain data.

Its source, behind that of the codec, is what the sandbox runs. Standard input: one JSON object
    {"sources": [program, fallback, ...], "skip": [index, ...], "operations": [text, ...]}
where an operation is the codec's text of
    ["call", target, [argument, ...], {name: argument, ...}], ["get", target, attribute] or ["set", target, attribute,
    value]; a target is a name, or what stands for an earlier result.
Standard output: a line for the loading, and one for each operation, as soon as it is done:
    [index, "value", value, arguments after the call or None] or [index, "raise", type, text]
with index -1 for the loading. What is no plain data stays here; {"result": index} or {"kept": number} stands for it and
may be a target or an argument. Whatever the program does to all of this changes its own answers and nothing else.
"""

from __future__ import annotations

import builtins
import json
import os
import sys
import types
from typing import Any

from rewards._code_codec import TooLarge, dumps, loads

MAX_TEXT = 2000


def main() -> None:
    """Load, operate, and end without the program's own exit handlers."""
    request = json.loads(sys.stdin.buffer.read())
    replies = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):  # what the program prints is not part of its answer
        os.dup2(null, fd)
    sys.stdin = open(0, encoding="utf-8", errors="replace")  # noqa: SIM115 - for the rest of the process
    kept: list[Any] = []
    results: dict[int, Any] = {}

    def keep(value: Any) -> dict[str, int]:
        for index, result in results.items():
            if result is value:
                return {"result": index}
        kept.append(value)
        return {"kept": len(kept) - 1}

    def found(tag: str, number: int) -> Any:
        return results[number] if tag == "result" else kept[number]

    def reply(index: int, *what: Any) -> None:
        line = memoryview((dumps([index, *what], keep) + "\n").encode())
        while line:
            line = line[os.write(replies, line) :]

    def failed(index: int, error: BaseException) -> None:
        try:
            text = str(error)[:MAX_TEXT]
        except BaseException:  # noqa: BLE001 - the program's own __str__
            text = ""
        reply(index, "raise", "TooLarge" if type(error) is TooLarge else _builtin_name(type(error)), text)

    try:
        module = _load(request["sources"])
    # SystemExit, and whatever else the program thinks of, is its failure.
    except BaseException as error:  # noqa: BLE001
        failed(-1, error)
        os._exit(0)
    reply(-1, "value", None, None)
    for index, text in enumerate(request["operations"]):
        if index in request["skip"]:
            continue
        try:
            kind, target, *rest = loads(text, found)
            results[index], after = _operate(module, kind, target, rest)
            reply(
                index, "value", results[index], None if after is None else _changed(after, loads(text, found)[2], keep)
            )
        except BaseException as error:  # noqa: BLE001
            failed(index, error)
    os._exit(0)


def _load(sources: list[str]) -> types.ModuleType:
    """The module made by the first of the sources that compiles."""
    for number, source in enumerate(sources):
        try:
            code = compile(source, "solution.py", "exec", dont_inherit=True)
            break
        # ValueError: a NUL byte; the others: nesting without end.
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            if number == len(sources) - 1:
                raise SyntaxError(str(error)[:200]) from None
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]  # as in a Python that was started the usual way
    module = types.ModuleType("solution")
    sys.modules["solution"] = module  # dataclasses and pickle look a class's module up
    exec(code, module.__dict__)
    return module


def _operate(module: types.ModuleType, kind: str, target: Any, rest: list[Any]) -> tuple[Any, list[Any] | None]:
    """The result, and for a call its arguments as they are afterwards."""
    holder = _named(module, target) if isinstance(target, str) else target
    if kind == "get":
        return getattr(holder, rest[0]), None
    if kind == "set":
        setattr(holder, rest[0], rest[1])
        return None, None
    arguments, named = rest
    return holder(*arguments, **named), arguments


def _named(module: types.ModuleType, name: str) -> Any:
    if not hasattr(module, name) and isinstance(getattr(module, "Solution", None), type):
        return getattr(module.Solution(), name)
    try:
        return getattr(module, name)
    except AttributeError:
        raise NameError(f"name {name!r} is not defined") from None


def _changed(after: list[Any], before: list[Any], keep: Any) -> list[Any] | None:
    """The arguments, when the call has changed one in place."""
    mutable = (list, dict, set, bytearray, tuple)
    if not any(isinstance(argument, mutable) for argument in after):
        return None
    parts = [argument if isinstance(argument, mutable) else None for argument in after]
    was = [argument if isinstance(argument, mutable) else None for argument in before]
    try:
        return None if dumps(parts, keep) == dumps(was, keep) else parts
    except TooLarge:
        return None


def _builtin_name(kind: type) -> str:
    """The name of the nearest base that is a built-in exception."""
    return next((base.__name__ for base in kind.__mro__ if base.__module__ == "builtins"), "Exception")


if __name__ == "__main__":
    main()
