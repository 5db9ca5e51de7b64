"""A loss that is no number stops the run, and what it was taken of stays to be looked at."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rlpost.observe import Alarm

if TYPE_CHECKING:
    from rlpost.observe import Recorder
    from rlpost.run.credit import Lesson

WATCHED = ("loss", "grad_norm")


@contextmanager
def batch_kept(recorder: Recorder, lesson: Lesson, step: int) -> Iterator[dict[str, float]]:
    """Keep the batch of an update whose loss or gradient is not finite.

    Yields:
        metrics of the update, for the caller to fill in.

    Raises:
        Alarm: a rank met a number that is none, before its optimizer step.
    """
    metrics: dict[str, float] = {}
    try:
        yield metrics
    except FloatingPointError as error:
        said = str(getattr(error, "cause", error))
        look = f"A rank stopped before the optimizer step ({said}). {_look(write(recorder.folder.logs, lesson, step))}"
        raise Alarm(step, "loss", math.nan, "which is not a finite number", look) from error
    if not all(math.isfinite(metrics.get(name, 0.0)) for name in WATCHED):
        recorder.console.warn(_look(write(recorder.folder.logs, lesson, step)))


def write(folder: Path, lesson: Lesson, step: int) -> Path:
    """Write a lesson's batch as arrays, which `numpy.load` reads: the fields of `Batch`, and `coefs/<label>`."""
    path = folder / f"nonfinite_step_{step:06d}.npz"
    arrays: dict[str, np.ndarray] = {}
    for field in fields(lesson.batch):
        value = getattr(lesson.batch, field.name)
        if isinstance(value, Mapping):
            arrays |= {f"{field.name}/{name}": values for name, values in value.items()}
        elif value is not None:
            arrays[field.name] = value
    arrays |= {f"coefs/{name}": np.asarray(value, np.float64) for name, value in lesson.coefs.items()}
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    return path


def _look(path: Path) -> str:
    return (
        f"The step's batch is in {path} (numpy.load; its `files` are the fields of rlpost.learner.batch.Batch, sequences end "
        "to end): look for what is not finite in behavior_logp, advantages and per_token/*, then at learner.lr and "
        "learner.grad_clip"
    )
