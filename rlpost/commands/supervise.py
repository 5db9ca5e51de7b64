"""Verbs under `--restarts N`. What they run is the same command without it, in a process of its own."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from rlpost.config import Config
from rlpost.supervise import supervise


def new_run(verb: Literal["train", "sft"], arguments: list[str], config: Config, restarts: int) -> int:
    """A new run. It gets its name here where it has none: who starts it again has to know where it lies."""
    name = config.name or f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    named = [] if config.name else [f"name={name}"]
    return supervise([verb, *arguments, *named], Path(config.runs_dir).expanduser().resolve() / name, restarts)


def old_run(folder: Path, overrides: list[str], restarts: int) -> int:
    """A run that goes on."""
    return supervise(["resume", str(folder), *overrides], folder.expanduser().resolve(), restarts)
