"""A part of a run that does not start, said in a line: which part, the keys it was given, what the library said last."""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlpost.config import Config
from rlpost.exit_codes import FAULT
from rlpost.run.refusal import REFUSALS

MOST = 400  # characters of what a library says


class StartError(RuntimeError):
    """A role that did not start, for a reason that could not be known before."""

    exit_code = FAULT


@contextmanager
def starting(role: str, config: Config, *sections: str, log: Path | None = None) -> Iterator[None]:
    """Say what does not start in a line, and keep the traceback in a file.

    Args:
        role: such as `the engines`.
        sections: of the configuration, whose keys the role was given.
        log: folder for the traceback; that of temporary files by default.

    Raises:
        StartError: whatever was raised inside that is no refusal.
    """
    try:
        yield
    except REFUSALS:
        raise
    except Exception as error:
        cause = getattr(error, "cause", None) or error
        if hasattr(cause, "exit_code"):  # an alarm, say: it is told already
            raise
        said = " ".join(str(cause).split()) or type(cause).__name__
        handle, name = tempfile.mkstemp(prefix="start_", suffix=".txt", dir=log)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write("".join(traceback.format_exception(error)))
        given = ", ".join(f"{key}: {value!r}" for key, value in _given(config, sections, said))
        raise StartError(
            f"{role} did not start: {type(cause).__name__}: {said[-MOST:]}. Set were {given or 'no keys of it'}; the traceback "
            f"is in {name}"
        ) from error


def _given(config: Config, sections: tuple[str, ...], said: str) -> list[tuple[str, Any]]:
    """Keys that differ from their defaults, those first whose name or value the message has."""
    values = config.model_dump(mode="json", exclude_defaults=True, include=set(sections))
    found = [(key, value) for key, value in _flat(values, "") if not key.startswith("model.create")]
    return sorted(found, key=lambda item: item[0].rpartition(".")[2] not in said and str(item[1]) not in said)


def _flat(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else name)
    else:
        yield key, value
