"""How far a run has come, by what lies in its folder."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from rlpost.checkpoint import Store


@dataclass(frozen=True)
class Progress:
    """
    Attributes:
        run: the run's id; None where there is none yet.
        saved: the step of its newest checkpoint; None before the first.
        step: the last step that was recorded.
        taught: the step of the newest checkpoint of its warm-up, while it is in that.
    """

    run: str | None = None
    saved: int | None = None
    step: int = 0
    taught: int = 0

    @classmethod
    def of(cls, folder: Path) -> Progress:
        """What there is of a run. A file that is being written, or damaged, is none: whoever resumes has more to say."""
        try:
            run = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["run_id"]
        except (OSError, ValueError, KeyError, TypeError):
            return cls()
        saved, taught = (
            [c for c in Store(folder / name, run).finished() if not c.manifest.alarm]
            for name in ("checkpoints", "warmup")
        )
        step = _last_step(folder / "metrics.jsonl")
        return cls(run, saved[0].step if saved else None, step, taught[0].step if taught else 0)

    def beyond(self, best: Progress) -> bool:
        """Whether this is further than a run ever was."""
        return self.step > best.step or self.taught > best.taught or (self.saved or 0) > (best.saved or 0)

    def furthest(self, other: Progress) -> Progress:
        saved = [p.saved for p in (self, other) if p.saved is not None]
        return Progress(self.run, max(saved, default=None), max(self.step, other.step), max(self.taught, other.taught))


def _last_step(metrics: Path, tail: int = 2**20) -> int:
    """The last step in metrics.jsonl, of which at most `tail` bytes are read."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - tail))
            lines = file.read().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):  # cut off by the death of its writer
            continue
    return 0
