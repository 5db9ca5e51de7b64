"""Python a user names in a configuration: `file.py:function`. Read first, so that a slip is found before it is run."""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

USER = "rlpost_user_"  # modules of users' files are named so


def import_file(path: Path) -> ModuleType:
    """The module in a file, run once per process under a name no other file has.

    So a user's `random.py` never stands in for the library's; yet the file may import its neighbours.

    Raises:
        FileNotFoundError: no such file; names the Python files beside it.
        ImportError: the file is no Python.
        Exception: whatever running the file raises.
    """
    path = path.expanduser().resolve()
    if not path.is_file():
        beside = ", ".join(sorted(p.name for p in path.parent.glob("*.py"))) or "none"
        raise FileNotFoundError(f"file {path} does not exist (python files in that folder: {beside})")
    name = f"{USER}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a file that Python can import")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses look their module up by name
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # last, so that neighbours hide no library
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def nearest(name: str, known: Iterable[str]) -> str:
    """`, did you mean 'x'?` for the known name nearest to `name`; empty when none is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


def check_file(path: Path, attribute: str, params: Iterable[str] = ()) -> None:
    """Refuse a file that cannot hold `attribute`, from its source alone: nothing is imported, so it takes no time.

    Args:
        params: what the configuration sets besides the name; each must be an argument, where there is a definition
            with a list of them to look at.

    Raises:
        ValueError: no such file, a syntax error, no such name, or an argument it does not have.
    """
    if not path.expanduser().is_file():
        raise ValueError(f"file {str(path)!r} does not exist (relative paths start at the current directory)")
    try:
        tree = ast.parse(path.expanduser().read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{path} is not Python that can be read: {error}") from None
    defined: dict[str, ast.AST | None] = {}
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                defined.setdefault(node.name, node)
                for decorator in node.decorator_list:  # registered under another name: @verifier("score")
                    for value in getattr(decorator, "args", ()):
                        if isinstance(value, ast.Constant) and isinstance(value.value, str):
                            defined.setdefault(value.value, node)
            case ast.Name(id=name, ctx=ast.Store()):
                defined.setdefault(name, None)
            case ast.alias(name="*"):
                return
            case ast.alias(name=name, asname=asname):
                defined.setdefault(asname or name.partition(".")[0], None)
    if attribute not in defined:
        raise ValueError(f"{path} has no {attribute!r}{nearest(attribute, defined)}")
    known = _arguments(defined[attribute])
    for param in params:
        if known is not None and param not in known:
            raise ValueError(
                f"{path}:{attribute} takes no {param!r}{nearest(param, known)} (it has {', '.join(known)})"
            )


def _arguments(node: ast.AST | None) -> list[str] | None:
    """Names of a function's arguments, or of a class's constructor; None where they cannot be told or are open."""
    if isinstance(node, ast.ClassDef):
        node = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.args.kwarg is not None:
        return None
    return [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
