"""Room on the disk for a checkpoint: looked for before one is written, and told of when it ran out meanwhile."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlpost.checkpoint.errors import DiskFullError

GIB = 2**30
FULL = (errno.ENOSPC, errno.EDQUOT)
# As torch and DeepSpeed's actors have it, where the number of the error is lost on the way.
WORDS = ("No space left on device", "Disk quota exceeded", "unexpected pos", "PytorchStreamWriter failed")


def free(folder: Path) -> int:
    """Bytes that can be written where a folder is, or would be."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def size(count: float) -> str:
    """Bytes in words."""
    return f"{count / GIB:.2f} GiB" if count >= GIB / 100 else f"{count / 2**20:.2f} MiB"


def look_for(needed: int, folder: Path, step: int) -> None:
    """
    Args:
        needed: bytes of the checkpoint, as the last one had.

    Raises:
        DiskFullError: there are fewer.
    """
    if (there := free(folder)) < needed:
        raise DiskFullError(
            f"no room for the checkpoint of step {step}: it needs {size(needed)}, as the last one did, and {folder} has "
            f"{size(there)} free; those before it are untouched. {_remedy(folder)}"
        )


@contextmanager
def told_when_full(folder: Path, step: int) -> Iterator[None]:
    """Say so in words where the disk of `folder` ran out in here, whoever met it."""
    try:
        yield
    except Exception as error:
        if not _ran_out(error):
            raise
        raise DiskFullError(
            f"no space left for the checkpoint of step {step}: {folder} has {size(free(folder))} free with what was "
            f"written of it removed; those before it are untouched. {_remedy(folder)}"
        ) from error


def _ran_out(error: BaseException) -> bool:
    return getattr(error, "errno", None) in FULL or any(words in str(error) for words in WORDS)


def _remedy(folder: Path) -> str:
    run = folder.parent
    return f"Make room, or lower checkpoint.keep, and go on with: rlpost resume {run}"
