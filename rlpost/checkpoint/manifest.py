"""What a folder says of itself: manifest.json, written last, with size and SHA-256 of every file.

A folder is what its manifest says, whatever the folder is called. Names are for people, who copy and rename.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rlpost.atomic import fsync

FILE = "manifest.json"


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
            if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
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
        if not file.is_file():
            raise ManifestError(f"it has no {FILE}: it was not finished")
        return Manifest.model_validate_json(file.read_bytes(), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ManifestError(f"{FILE} cannot be read: {f'{key}: ' if key else ''}{first['msg']}") from None
    except OSError as error:
        raise ManifestError(f"{FILE} cannot be read: {error.strerror}") from None


def described(folder: Path) -> dict[str, Entry]:
    """Every file below a folder, flushed to the disk first."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / FILE):
        fsync(path)
        found[path.relative_to(folder).as_posix()] = Entry(bytes=path.stat().st_size, sha256=_sha256(path))
    return found


def damage(folder: Path, files: Mapping[str, Entry], content: bool = True) -> list[str]:
    """What of a folder is not as its manifest says.

    Args:
        content: compare SHA-256 too, which reads everything.
    """
    found, root = [], folder.resolve()
    for name, expected in files.items():
        path = folder / name
        try:
            if not path.is_file():
                found.append(f"{name} is missing")
            elif not path.resolve().is_relative_to(root):
                found.append(f"{name} is a link to somewhere else")
            elif (size := path.stat().st_size) != expected.bytes:
                found.append(f"{name} has {size} bytes, expected {expected.bytes}")
            elif content and _sha256(path) != expected.sha256:
                found.append(f"{name} is not what was written (SHA-256 differs)")
        except OSError as error:
            found.append(f"{name} cannot be read: {error.strerror}")
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
