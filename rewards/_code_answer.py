"""Which part of a response is the program."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Collection, Sequence

from rewards._code_programs import PYTHON
from rewards._response import Fence, fences, visible

MAX_SOURCE = 100_000  # characters of a program
READS = re.compile(r"\binput\s*\(|\bstdin\b|\bopen\s*\(\s*0")


def extract(response: str, tags: Sequence[str] = PYTHON, names: Collection[str] = ()) -> tuple[str, bool]:
    """The program in a response, and whether it was fenced.

    It is the last block of the language that defines what the tests use, be there blocks behind it that use or test it;
    several blocks together where no one defines all of it; where none does, or nothing is to be defined, the last that
    reads standard input, else the last of the language, else the last.

    Args:
        tags: what the language is called on a fence.
        names: what the tests use of the program.
    """
    text = visible(response)
    if text is None:
        return "", False
    blocks = [block for block in fences(text) if block.body.strip()]
    if not blocks:
        return text.replace("\r\n", "\n"), False
    tagged = [block for block in blocks if block.info in tags]
    for some in (tagged, [block for block in blocks if block.info in (*tags, "")]):
        found = _defining(some, names) if names else [block for block in some if READS.search(block.body)][-1:]
        if found:
            return "\n".join(block.body for block in found), True
    return (tagged or blocks)[-1].body, True


def _defining(blocks: Sequence[Fence], names: Collection[str]) -> list[Fence]:
    wanted = frozenset(names)
    defined = [_defined(block.body) & wanted for block in blocks]
    most = max(map(len, defined), default=0)
    if not most:
        return []
    if most < len(frozenset().union(*defined)):
        return [block for block, found in zip(blocks, defined, strict=True) if found]
    return [next(block for block, found in zip(reversed(blocks), reversed(defined), strict=True) if len(found) == most)]


DEFINITION = re.compile(r"^(?:async[ \t]+)?(?:def|class)[ \t]+(\w+)|^(\w+)[ \t]*(?::[^=\n]*)?=", re.MULTILINE)
METHOD = re.compile(r"^[ \t]+(?:async[ \t]+)?def[ \t]+(\w+)", re.MULTILINE)


def _defined(source: str) -> frozenset[str]:
    """Names that a program defines at its top, with the methods of a class `Solution`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            body = ast.parse(source if len(source) <= MAX_SOURCE else "(").body
        return frozenset(name for node in body for name in _names(node))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        names = {name for found in DEFINITION.finditer(source) for name in found.groups() if name}
        return frozenset(names | ({found[1] for found in METHOD.finditer(source)} if "Solution" in names else set()))


def _names(node: ast.stmt) -> list[str]:
    match node:
        case ast.ClassDef(name="Solution", body=body):
            return [
                "Solution",
                *(part.name for part in body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)),
            ]
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Assign(targets=targets):
            return [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case ast.If(body=body, orelse=orelse) | ast.Try(body=body, orelse=orelse):
            return [name for part in (*body, *orelse) for name in _names(part)]
    return []
