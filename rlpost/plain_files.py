"""Files that others may have put where a checkpoint lies, opened so that none of them can make the reader wait or stray."""

from __future__ import annotations

import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any


def opened(path: Path) -> BufferedReader:
    """A plain file, to read.

    Raises:
        OSError: it cannot be opened, is a link, or is a pipe, a socket or a device, which could block or never end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "it is no plain file")
    return os.fdopen(descriptor, "rb")


def read_json(path: Path, limit: int) -> Any:
    """The JSON of a plain file of at most `limit` bytes, in which every key is there once and every number is one.

    Raises:
        OSError: as `opened`.
        ValueError: it is longer, or something else.
    """
    with opened(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > limit:
            raise ValueError(f"it has {size} bytes, more than the {limit} that it may")
        text = file.read(limit + 1)
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def shown(name: str) -> str:
    """A name as it is, or quoted where it holds what a terminal would not show as text."""
    return name if name.isprintable() else repr(name)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return found


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")
