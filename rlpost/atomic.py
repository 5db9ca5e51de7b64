"""Files that are either the old version or the new one, never half of each."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary sibling to write; on leaving it is fsynced and renamed over `path`, on an exception removed."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        fsync(temporary)
        temporary.replace(path)
        fsync(path.parent)  # the rename itself must survive a power cut
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write one JSON object; numbers JSON cannot hold become null and are named under `nonfinite`."""
    write_text(path, json.dumps(finite(value), indent=2, allow_nan=False) + "\n")


def finite(value: Mapping[str, Any]) -> dict[str, Any]:
    """`value` with NaN and infinities as None and, when there are any, a key `nonfinite` with their dotted names."""
    names: list[str] = []

    def clean(item: Any, name: str) -> Any:
        if isinstance(item, float) and not math.isfinite(item):
            names.append(name)
            return None
        if isinstance(item, Mapping):
            return {str(key): clean(inner, f"{name}.{key}" if name else str(key)) for key, inner in item.items()}
        if isinstance(item, list | tuple):
            return [clean(inner, f"{name}.{index}") for index, inner in enumerate(item)]
        return item

    cleaned: dict[str, Any] = clean(value, "")
    return {**cleaned, "nonfinite": names} if names else cleaned


def fsync(path: Path) -> None:
    """Have the kernel write a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
