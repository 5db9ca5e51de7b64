"""What runs in the candidate's process: load the program, do the operations it is asked for, send back plain data.

Its source, behind those it imports from here, is what the sandbox runs. Standard input: one JSON object
    {"header": source, "sources": [program, fallback, ...], "skip": [index, ...], "operations": [text, ...],
     "drain": whether an iterator crosses as all it yields}
where an operation is the codec's text of
    ["call", target, [argument, ...], {name: argument, ...}], ["get", target, attribute] or ["set", target, attribute,
    value]; a target is a name, or what stands for an earlier result.
Standard output: a line for the loading, and one for each operation, as soon as it is done:
    [index, "value", value, arguments after the call or None] or [index, "raise", type, text]
with index -1 for the loading. What is no plain data stays here; {"result": index} or {"kept": number} stands for it and
may be a target or an argument. Whatever the program does to all of this changes its own answers and nothing else.
"""

from __future__ import annotations

import json
import os
import sys
import types
from typing import Any

from rewards._code_codec import ITERATORS, TooLarge, builtin_name, dumps, loads
from rewards._code_program import defined, load, silence

MAX_TEXT = 2000


def main() -> None:
    """Load, operate, and end without the program's own exit handlers."""
    request = json.loads(sys.stdin.buffer.read())
    replies = os.dup(1)
    silence()
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

    def lazy(value: Any) -> Any:
        return keep(value) if isinstance(value, ITERATORS) and not request["drain"] else None

    def reply(index: int, *what: Any) -> None:
        line = memoryview((dumps([index, *what], keep, lazy) + "\n").encode())
        while line:
            line = line[os.write(replies, line) :]

    def failed(index: int, error: BaseException) -> None:
        try:
            text = str(error)[:MAX_TEXT]
        except BaseException:  # noqa: BLE001 - the program's own __str__
            text = ""
        reply(index, "raise", "TooLarge" if type(error) is TooLarge else builtin_name(type(error)), text)

    try:
        module = load(request["sources"], request["header"])
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


def _operate(module: types.ModuleType, kind: str, target: Any, rest: list[Any]) -> tuple[Any, list[Any] | None]:
    """The result, and for a call its arguments as they are afterwards."""
    holder = defined(module, target) if isinstance(target, str) else target
    if kind == "get":
        return getattr(holder, rest[0]), None
    if kind == "set":
        setattr(holder, rest[0], rest[1])
        return None, None
    arguments, named = rest
    return holder(*arguments, **named), arguments


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


if __name__ == "__main__":
    main()
