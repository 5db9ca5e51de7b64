"""What a folder says of itself: manifest.json, written last, with size and SHA-256 of every file.

A folder is what its manifest says, whatever the folder is called. Names are for people, who copy and rename.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rlpost import torch_files
from rlpost.plain_files import opened, read_json, shown

FILE = "manifest.json"
# Far above what the largest runs write: a hundred bytes a file, some files a rank.
LONGEST = 16 * 2**20
READERS = min(8, os.cpu_count() or 1)  # threads that sum files: hashing lets go of the interpreter
# What is read of these folders is what lies there, named in the manifest or not.
READ = ("anchors", "deepspeed", "model")
KINDS = (".bin", ".jinja", ".json", ".model", ".pt", ".py", ".safetensors", ".tiktoken")


class ManifestError(ValueError):
    """A manifest that is not there, cannot be read, or says what cannot be."""


class Entry(BaseModel):
    """A file as it was written."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """The manifest of a checkpoint.

    Attributes:
        id: of this one writing, 32 hex digits; until the end the folder is called `tmp-<id>`.
        run: `run_id` of the run that wrote it.
        name: what the folder is called in the end; under another name it is somebody's copy.
        files: by path below the folder, with slashes; None while they are being written.
        alarm: whether it was written on the way out of an alarm: then only who asks for its step gets it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: Literal[1]
    id: str = Field(pattern="^[0-9a-f]{32}$")
    run: str
    name: str
    step: int = Field(ge=0)
    files: dict[str, Entry] | None
    alarm: bool = False

    @model_validator(mode="after")
    def _inside(self) -> Self:
        for name in self.files or {}:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or path.as_posix() != name or "\0" in name or name == ".":
                raise ValueError(f"{name!r} is no path below the folder")
        return self

    @property
    def draft(self) -> str:
        return f"tmp-{self.id}"


def read(folder: Path) -> Manifest:
    """
    Raises:
        ManifestError: saying what is wrong with it.
    """
    file = folder / FILE
    try:
        return Manifest.model_validate(read_json(file, LONGEST), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(shown(str(part)) for part in first["loc"])
        raise ManifestError(f"{FILE} cannot be read: {f'{key}: ' if key else ''}{first['msg']}") from None
    except FileNotFoundError:
        raise ManifestError(f"it has no {FILE}: it was not finished") from None
    except OSError as error:
        raise ManifestError(f"{FILE} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ManifestError(f"{FILE} cannot be read: {error}") from None


def described(folder: Path) -> dict[str, Entry]:
    """Every file below a folder, flushed to the disk first; several at a time."""

    def entry(path: Path) -> tuple[str, Entry]:
        with opened(path) as file:
            os.fsync(file.fileno())
            size = os.fstat(file.fileno()).st_size
            return path.relative_to(folder).as_posix(), Entry(bytes=size, sha256=_sha256(file))

    with ThreadPoolExecutor(READERS) as readers:
        return dict(readers.map(entry, sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / FILE)))


def damage(folder: Path, files: Mapping[str, Entry], content: bool = True) -> list[str]:
    """What of a folder is not as its manifest says, or is more than data.

    Args:
        content: compare SHA-256 too, which reads everything, and look at what pickles would call.
    """
    with ThreadPoolExecutor(READERS) as readers:
        wrong = readers.map(lambda name: _wrong(folder, name, files[name], content), files)
        found = [f"{shown(name)} {what}" for name, what in zip(files, wrong, strict=True) if what]
    return found + [f"{shown(name)} is not in {FILE}" for name in _beside(folder, files)]


def _wrong(folder: Path, name: str, expected: Entry, content: bool) -> str | None:
    path = folder / name
    try:
        if linked := next(
            (p for p in (path, *path.parents) if p.is_relative_to(folder) and p != folder and p.is_symlink()), None
        ):
            return f"is a link to somewhere else ({os.readlink(linked)})"
        with opened(path) as file:
            if (size := os.fstat(file.fileno()).st_size) != expected.bytes:
                return f"has {size} bytes, expected {expected.bytes}"
            if content and _sha256(file) != expected.sha256:
                return "is not what was written (SHA-256 differs)"
        why = torch_files.refused(path) if content and path.suffix == ".pt" else None
        return why and f"is not loaded: {why}"
    except (FileNotFoundError, NotADirectoryError):
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _beside(folder: Path, files: Mapping[str, Entry]) -> Iterator[str]:
    """Files that a library could take for a part of the checkpoint, and nobody wrote."""
    for read in READ:
        if (folder / read).is_symlink():
            yield read
            continue
        for path in (folder / read).rglob("*"):
            if path.suffix in KINDS and (name := path.relative_to(folder).as_posix()) not in files:
                yield name


def _sha256(file: BufferedReader) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()
