"""Checkpoints on disk.

    checkpoints/step_000020/
      model/        weights in the Hugging Face format, with the tokenizer
      deepspeed/    each rank's optimizer state
      state.json    the driver's: step, data position, counters
      probe.json    log-probs of fixed sequences by the learner itself, for `rlpost export` to compare with
      manifest.json sizes and SHA-256 of all of the above

A checkpoint is written under another name and renamed when its manifest is on disk; the old ones go after that.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import filter as matching
from pathlib import Path
from typing import Any

from rlpost.atomic import fsync


class CheckpointError(RuntimeError):
    """No checkpoint that can be believed."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint."""

    path: Path

    @property
    def step(self) -> int:
        return int(self.path.name.removeprefix("step_"))

    @property
    def model(self) -> Path:
        return self.path / "model"

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads((self.path / "state.json").read_text())
        return state

    def problems(self) -> list[str]:
        """Why this checkpoint cannot be believed; empty when it is as its manifest says."""
        manifest = self.path / "manifest.json"
        if not manifest.is_file():
            return ["it has no manifest.json: it was not finished"]
        files: dict[str, dict[str, Any]] = json.loads(manifest.read_text())["files"]
        found = []
        for name, expected in files.items():
            path = self.path / name
            if not path.is_file():
                found.append(f"{name} is missing")
            elif path.stat().st_size != expected["bytes"]:
                found.append(f"{name} has {path.stat().st_size} bytes, expected {expected['bytes']}")
            elif _sha256(path) != expected["sha256"]:
                found.append(f"{name} is not what was written (SHA-256 differs)")
        return found or _lacking(files, self.state())


def write(folder: Path, step: int, state: dict[str, Any], fill: Callable[[Path], None]) -> Checkpoint:
    """Write `folder/step_<step>` atomically.

    Args:
        state: the driver's, with the learner's `ranks` and `zero_stage`.
        fill: writes everything but state.json into the folder it is given.

    Raises:
        CheckpointError: the weights or a rank's optimizer state are not in the folder after `fill`.
    """
    final = folder / f"step_{step:06d}"
    draft = folder / f"tmp-{uuid.uuid4().hex}"
    draft.mkdir(parents=True)
    try:
        fill(draft)
        (draft / "state.json").write_text(json.dumps(state, indent=1))
        files = {}
        for path in sorted(p for p in draft.rglob("*") if p.is_file()):
            files[str(path.relative_to(draft))] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            fsync(path)
        if lacking := _lacking(files, state):
            raise CheckpointError(
                f"{final}: {', '.join(lacking)} where it was written: runs_dir ({folder.parent.parent}) must be on a "
                "file system that all nodes share"
            )
        (draft / "manifest.json").write_text(json.dumps({"step": step, "files": files}, indent=1))
        fsync(draft / "manifest.json")
        if final.exists():  # left by a run that was resumed from before it
            final.rename(folder / f"tmp-{uuid.uuid4().hex}")
        draft.rename(final)
        fsync(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return Checkpoint(final)


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that can be believed, and what was passed over and why."""
    rejected: list[str] = []
    for path in sorted(folder.glob("step_*"), reverse=True):
        checkpoint = Checkpoint(path)
        problems = checkpoint.problems()
        if not problems:
            return checkpoint, rejected
        rejected.append(f"{path.name}: {'; '.join(problems[:3])}")
    return None, rejected


def retain(folder: Path, keep: int) -> None:
    """Keep the newest `keep` checkpoints and drop the rest, with what unfinished writes left behind."""
    for path in sorted(folder.glob("step_*"))[:-keep]:
        shutil.rmtree(path)
    for path in folder.glob("tmp-*"):
        shutil.rmtree(path)


def _lacking(files: Iterable[str], state: Mapping[str, Any]) -> list[str]:
    """Which files no run could continue without are not among these."""
    shards = [f"deepspeed/state/*zero_pp_rank_{rank}_*optim_states.pt" for rank in range(state["ranks"])]
    wanted = ["model/*.safetensors", *(shards if state["zero_stage"] else ["deepspeed/state/*"])]
    return [f"no {pattern}" for pattern in wanted if not matching(files, pattern)]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
