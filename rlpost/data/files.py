"""The files of a source: one, or those of a folder, by format, in order, and of one split where they are named by it."""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from rlpost.data.errors import DataError, did_you_mean

ENDINGS = {
    "jsonl": (".jsonl", ".ndjson", ".jsonl.gz", ".jsonl.zst"),
    "json": (".json", ".json.gz", ".json.zst"),
    "parquet": (".parquet", ".pq"),
}
# The words by which files and folders are told apart, as `datasets` has them.
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


@dataclass(frozen=True)
class SourceFile:
    """One file of a source.

    Attributes:
        name: its path within the folder; empty where the source is this file alone.
        columns: what its folders say of all of its rows (`level=hard/`), as text.
    """

    path: Path
    name: str
    columns: Mapping[str, str]


def files_of(kind: str, path: Path, split: str | None, said: str) -> list[SourceFile]:
    """The files that hold a source's rows, in the order of their paths.

    A folder's files are found at any depth by their ending; those whose name, or a folder's of it, begins with `_` or
    `.` are none. A file belongs to a split when its name or one of its folders has a word for it: `train-00001.parquet`,
    `split=test/`, `validation/0.parquet`.

    Args:
        said: the source in a few words, for messages.

    Raises:
        DataError: there is no such file; the folder has several splits and none is asked for, or not this one; a file
            belongs to two.
    """
    if not path.is_dir():
        return [SourceFile(path, "", {})]
    inside = sorted(file.relative_to(path) for file in path.rglob("*") if file.is_file())
    seen = [file for file in inside if not any(part.startswith(("_", ".")) for part in file.parts)]
    found = [file for file in seen if file.name.lower().endswith(ENDINGS[kind])]
    if not found:
        there = sorted({file.suffix or file.name for file in seen})
        raise DataError(
            f"{said} is a folder without a file that ends in {', '.join(ENDINGS[kind])} (it has "
            f"{', '.join(there) or 'no file'})"
        )
    splits = {file: _split_of(file, split, said) for file in found}
    named = sorted({name for name in splits.values() if name is not None})
    if split is None and len(named) > 1:
        raise DataError(
            f"{said} holds files of several splits ({', '.join(named)}), which would be read as one: say which by "
            f"`split`, or give one file as `path`"
        )
    if split is not None and split not in named:
        what = (
            f"its files are of {', '.join(named)}; {did_you_mean(split, named)}" if named else "no file is named by one"
        )
        raise DataError(f"{said} has no file of the split {split!r}: {what}")
    return [
        SourceFile(path / file, file.as_posix(), _columns_of(file))
        for file in found
        if split is None or splits[file] == split
    ]


def open_bytes(path: Path) -> IO[bytes]:
    """The file's bytes, taken out of gzip or zstd by its ending."""
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if path.suffix == ".zst":
        import pyarrow as pa

        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def _split_of(file: Path, asked: str | None, said: str) -> str | None:
    words = set(re.split(r"[\W\d_]+", file.as_posix().lower()))
    pieces = {piece.lower() for part in file.parts for piece in (part, part.partition(".")[0], part.partition("=")[2])}
    known = SPLITS if asked is None or asked in SPLITS else {**SPLITS, asked: (asked.lower(),)}
    of = [name for name, spelled in known.items() if words & set(spelled) or name.lower() in pieces]
    if len(of) > 1:
        raise DataError(f"{said}: {file.as_posix()} is named by several splits ({', '.join(of)}): rename it")
    return of[0] if of else None


def _columns_of(file: Path) -> dict[str, str]:
    pairs = (part.partition("=") for part in file.parts[:-1])
    return {key: value for key, equals, value in pairs if equals and key}
