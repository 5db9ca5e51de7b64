"""Models that are made once and shared by the runs of a folder, several of which may want one at the same moment."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from rlpost import atomic
from rlpost.checkpoint.manifest import Entry, damage, described
from rlpost.locks import LockedError, lock, unlock

FILE = "made.json"


class Made(BaseModel):
    """What a finished model says of itself, written last: its files."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    files: dict[str, Entry]


def made_once(folder: Path, make: Callable[[Path], None]) -> bool:
    """Have a model in `folder`, by `make` where it is not there whole. Returns whether it was.

    Whoever asks at the same time makes it too, as a maker may die or hang; the first to be done gives it its name, and the
    others take that one. A model is renamed into place when its list of files is on disk, so one that lacks any of them
    was damaged since, and is made again.
    """
    made = [path for path in folder.parents if not path.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    _clear_drafts(folder.parent)
    if is_whole(folder):
        return True
    try:
        with _draft(folder.parent) as draft:
            make(draft)
            atomic.write_text(draft / FILE, Made(files=described(draft)).model_dump_json(indent=1))
            _put(draft, folder)
    except BaseException:
        for path in made:
            with suppress(OSError):  # somebody else's work is in it
                path.rmdir()
        raise
    return False


def is_whole(folder: Path) -> bool:
    """Whether a model lies here with all its files as long as they were."""
    try:
        made = Made.model_validate_json((folder / FILE).read_bytes())
    except (OSError, ValidationError):
        return False
    return not damage(folder, made.files, content=False)


def _put(draft: Path, folder: Path) -> None:
    """Give a draft its name, unless another maker was faster: then theirs is as good."""
    for _ in range(10):
        if is_whole(folder):
            return
        try:
            draft.rename(folder)
        except OSError as error:  # something is there: another maker's, since a moment, or what is left of a model
            if is_whole(folder):
                return
            if not folder.exists():
                raise
            failed = error
            with suppress(FileNotFoundError):  # another maker moved it first
                aside = folder.rename(folder.with_name(f"{draft.name}.aside"))
                shutil.rmtree(aside)
        else:
            atomic.fsync(folder.parent)
            return
    raise failed


@contextmanager
def _draft(parent: Path) -> Iterator[Path]:
    """A folder to make something in, gone afterwards unless it was renamed. The lock says that its maker is alive."""
    draft = parent / f"tmp-{uuid.uuid4().hex}"
    held = _try_lock(draft)
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if held is not None:
            _lock_of(draft).unlink(missing_ok=True)
            unlock(held)


def _clear_drafts(parent: Path) -> None:
    """Remove what makers left behind that were killed: drafts whose lock can be had."""
    for path in parent.glob("tmp-*.lock"):
        draft = path.with_suffix("")
        if (held := _try_lock(draft)) is not None:
            for left in (draft, draft.with_name(f"{draft.name}.aside")):
                shutil.rmtree(left, ignore_errors=True)
            path.unlink(missing_ok=True)
            unlock(held)


def _lock_of(draft: Path) -> Path:
    return draft.with_name(f"{draft.name}.lock")


def _try_lock(draft: Path) -> int | None:
    """None where somebody has it, or the file system knows no locks: then a draft is never known to be dead, and stays."""
    try:
        return lock(_lock_of(draft))
    except (LockedError, OSError):
        return None
