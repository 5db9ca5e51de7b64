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
    if program is None:
        program = pickle.dumps({"step": 1, "values": [1.0, None]}, 2)
    entries = [("shard/data.pkl", program), ("shard/byteorder", b"little"), ("shard/data/0", b"w" * 1000), *more]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, content in entries:
            file.writestr(zipfile.ZipInfo(name), content, compression)  # without the time, so that two are alike
    return out.getvalue()
