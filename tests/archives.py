"""Files as torch.save writes them, made without torch: an archive with a pickle, honest or not."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path


class Canary:
    """A pickle of it makes a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def archive(program: bytes | None = None, more: Iterable[tuple[str, bytes]] = (), compression: int = 0) -> bytes:
    """
    Args:
        program: the pickle; of a few numbers by default.
        more: further entries.
    """
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as file:
        file.writestr(
            "shard/data.pkl", pickle.dumps({"step": 1, "values": [1.0, None]}, 2) if program is None else program
        )
        file.writestr("shard/byteorder", "little")
        file.writestr("shard/data/0", b"w" * 1000)
        for name, content in more:
            file.writestr(name, content)
    return out.getvalue()
