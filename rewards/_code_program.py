"""The program of a response, loaded in the candidate's process; for `_code_candidate` and `_code_partner`."""

from __future__ import annotations

import builtins
import os
import sys
import types
from typing import Any


def silence() -> None:
    """What the program prints is not part of its answer, and there is nothing for it to read."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    sys.stdin = open(0, encoding="utf-8", errors="replace")  # noqa: SIM115 - for the rest of the process


def load(sources: list[str], header: str = "") -> types.ModuleType:
    """The module made by the first of the sources that compiles, run behind the header."""
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
    exec(header, module.__dict__)
    module.__header__ = {**module.__dict__}  # type: ignore[attr-defined]
    exec(code, module.__dict__)
    return module


def defined(module: types.ModuleType, name: str) -> Any:
    """What the program calls so, or what its class `Solution` does."""
    space, header = vars(module), vars(module).get("__header__", {})
    own = name in space and not (name in header and header[name] is space[name])
    if not own and isinstance(space.get("Solution"), type) and hasattr(space["Solution"], name):
        return getattr(module.Solution(), name)
    if name in space:
        return space[name]
    try:
        return getattr(module, name)  # it may define `__getattr__`
    except AttributeError:
        raise NameError(f"name {name!r} is not defined") from None
