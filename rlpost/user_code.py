"""Python a user names in a configuration: `file.py:function`."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType


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
    name = f"rlpost_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
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
