"""Rows in the place of a data set that cannot be had here: of the same columns, asking what the verifiers can check."""

from __future__ import annotations

import json
import random
import string
from pathlib import Path
from typing import Any

from rlpost import atomic
from rlpost.config import Config, ConfigError, Source
from rlpost.data.errors import DataError
from rlpost.data.sources import describe, read_rows
from rlpost.rehearsal.scale import LABEL, ROWS, Change
from rlpost.run.inputs import sources_of

MADE_FOR = {"math", "exact", "format", "length", "overlong", "repetition", "language", LABEL}


def with_rows(config: Config, folder: Path) -> tuple[Config, list[Change]]:
    """The configuration with made rows in `folder` for each data set of the hub that cannot be had.

    Raises:
        ConfigError: rows cannot be made for what verifies them; names the keys to give others by.
    """
    from rlpost.config import parse

    values, changes = config.model_dump(mode="json"), []
    for number, (key, source) in enumerate(sources_of(config)):
        if source.source != "hf" or (why := _why_not(source)) is None:
            continue
        _refuse_others(config, key, source, why)
        path = folder / f"{key}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(path, "".join(json.dumps(row) + "\n" for row in made(source, number)))
        inner: Any = values
        for section in key.split("."):
            inner = inner[section]
        inner |= {"source": "jsonl", "path": str(path), "name": None, "split": None, "revision": None}
        changes.append(
            Change(
                f"{key}.path", source.path, str(path), f"made rows of its columns, as the data set cannot be had: {why}"
            )
        )
    return (parse(values, origin="the rehearsal") if changes else config), changes


def made(source: Source, seed: int) -> list[dict[str, str]]:
    """Sums with their answers, under the columns that a source names."""
    drawn, rows = random.Random(seed), []
    for number in range(ROWS):
        a, b = drawn.randint(10, 99), drawn.randint(10, 99)
        row = dict.fromkeys(source.metadata, "")
        for text, value in (
            (source.id, f"{seed}-{number}"),
            (source.completion, f"{a} + {b} = {a + b}"),
            (source.reference, f"{a + b}"),
            (source.prompt, f"What is {a} + {b}?"),
        ):
            row |= dict.fromkeys(columns_of(text), value)
        rows.append(row)
    return rows


def columns_of(text: str | None) -> list[str]:
    """The columns that a key of a source names: one, or those of a template."""
    if text is None:
        return []
    if "{" not in text:
        return [text]
    return [name.partition("[")[0].partition(".")[0] for _, name, _, _ in string.Formatter().parse(text) if name]


def _why_not(source: Source) -> str | None:
    """Why a data set cannot be read; None: it can."""
    try:
        read_rows(source.model_copy(update={"limit": 1}))
    except DataError as error:
        return " ".join(str(error).split()).rpartition("cannot be loaded: ")[2][:120]
    return None


def _refuse_others(config: Config, key: str, source: Source, why: str) -> None:
    asked = {v.label: str(v.name) for v in config.verifiers}
    own = getattr(source, "verifiers", None) or list(asked)
    if others := sorted({asked[label] for label in own if label != LABEL and asked[label] not in MADE_FOR}):
        raise ConfigError(
            f"{key}.path: {describe(source)} cannot be had here ({why}), and rows cannot be made for the "
            f"{'verifier' if len(others) == 1 else 'verifiers'} {', '.join(others)}: give some of your own: "
            f"{key}.source=jsonl {key}.path=FILE"
        )
