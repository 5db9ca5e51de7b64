"""Checkpoints on disk.

    checkpoints/step_000020/
      model/        weights in the Hugging Face format, with the tokenizer
      deepspeed/    each rank's optimizer state
      state.json    the driver's: step, data position, counters
      flight.safetensors  rollouts in flight, where sampling overlaps learning
      probe.json    log-probs of fixed sequences by the learner itself, for `rlpost export` to compare with
      manifest.json what this is, with sizes and SHA-256 of all of the above
      scores.json   what an evaluation said of it later

A checkpoint is written under another name and renamed when its manifest is on disk; the old ones go after that. Users
copy, rename, link and lay things beside: what is no folder with a manifest of this run is neither believed nor touched,
and of a checkpoint that goes only the files that its manifest names.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import filter as matching
from pathlib import Path
from typing import Any, Literal

from rlpost import atomic
from rlpost.atomic import fsync
from rlpost.checkpoint import flight, room
from rlpost.checkpoint.errors import CheckpointError
from rlpost.checkpoint.manifest import FILE, Manifest, ManifestError, damage, described, read
from rlpost.checkpoint.mirror import Mirror
from rlpost.checkpoint.sealing import Sealing
from rlpost.config import Best, ConfigError
from rlpost.faults import strike
from rlpost.plain_files import read_json, shown

SCORES = "scores.json"
LONGEST = 512 * 2**20  # of a JSON file of a checkpoint: far above what ten million prompts need
SHARD = re.compile(r"deepspeed/state/[^/]*zero_pp_rank_(\d{1,9})_[^/]*optim_states\.pt")


@dataclass(frozen=True)
class Checkpoint:
    """A finished checkpoint, under its own name or a copy."""

    path: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        return self.manifest.step

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def files(self) -> Mapping[str, Any]:
        return self.manifest.files or {}

    def state(self) -> dict[str, Any]:
        state = read_json(self.path / "state.json", LONGEST)
        if not isinstance(state, dict):
            raise ValueError("it is no object")
        return state

    def scores(self) -> dict[str, float]:
        """By metric what the latest evaluation of this step said; empty before there was one."""
        try:
            found = read_json(self.path / SCORES, LONGEST)
        except (OSError, ValueError):
            return {}
        return {k: v for k, v in found.items() if isinstance(v, (int, float))} if isinstance(found, dict) else {}

    def problems(self) -> list[str]:
        """Why this checkpoint cannot be believed; empty when it is as its manifest says. Reads everything."""
        if found := damage(self.path, self.files):
            return found
        if "state.json" not in self.files:
            return ["no state.json"]
        try:
            state = self.state()
            if state["step"] != self.step:
                return [f"state.json is of step {state['step']!r}, manifest.json of step {self.step}"]
            return _lacking(self.files, state) or flight.problems(self.path, self.files, state, self.manifest.run)
        except (AttributeError, OSError, KeyError, TypeError, ValueError) as error:
            return [f"state.json cannot be read: {error!r}"]


class Store:
    """The checkpoints of one run. One writer at a time; whoever writes holds the lock of the run's folder.

    What was written or found damaged is remembered, so that retention never reads what it only has to count.

    Args:
        folder: where they lie, which others may use too.
        run: `run_id` of the run.
        deadline: seconds to wait for a checkpoint to be sealed, and uploaded.
        mirror: where sealed checkpoints are uploaded to.
    """

    def __init__(self, folder: Path, run: str, deadline: float = 1800.0, mirror: Mirror | None = None) -> None:
        self.folder = folder
        self.run = run
        self.last: int | None = None  # the newest step that is known to be saved
        self._believed: dict[Path, bool] = {}
        self._bytes = 0  # of the checkpoint written last; before the first nothing is known here
        self._sealing = Sealing(deadline)
        self.mirror = mirror

    def finished(self) -> list[Checkpoint]:
        """The run's checkpoints, newest first and originals before copies, as their manifests say and unread."""
        return self._read()[0]

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that can be believed, and what was passed over and why.

        Where there is none, that of the mirror is downloaded.
        """
        checkpoint, rejected = self._search(None)
        if checkpoint is None and self.mirror is not None and not rejected:
            self.folder.mkdir(parents=True, exist_ok=True)
            rejected = self.mirror.fetch(self.folder)
            checkpoint, more = self._search(None)
            rejected += more
        if checkpoint is not None:
            self.last = checkpoint.step
        return checkpoint, rejected

    def choose(
        self, step: int | Literal["best"] | None, warn: Callable[[str], None], best: Best | None = None
    ) -> Checkpoint:
        """The checkpoint of a step, the best one, or the newest, that can be believed.

        Args:
            warn: is told what was passed over and why.
            best: which one is the best.

        Raises:
            ConfigError: there is none; says what there is.
        """
        if step == "best" and best is None:
            raise ConfigError("--step best: checkpoint.best is not set in the run's configuration; name a step")
        checkpoint, rejected = self._search(step, best)
        if checkpoint is None:
            asked = "" if step is None else f"--step {step}: "
            why = f" that can be believed ({'; '.join(rejected)})" if rejected else ""
            there = ", ".join(str(s) for s in sorted({c.step for c in self.finished()} - {step})) or "none"
            if best is not None and step == "best":
                there += f", of which {best.metric} is known: {', '.join(map(_scored(best), self._by_score(best))) or 'of none'}"
            raise ConfigError(f"{asked}{self.folder} has no such checkpoint{why}; steps that are there: {there}")
        for line in rejected:
            warn(f"checkpoint passed over: {line}")
        return checkpoint

    def score(self, step: int, values: Mapping[str, float]) -> None:
        """Write down what an evaluation said of a step, where the step has a checkpoint."""
        self.join()
        for checkpoint in self._own():
            if checkpoint.step == step:
                atomic.write_json(checkpoint.path / SCORES, values)

    def _own(self) -> list[Checkpoint]:
        return [c for c in self.finished() if c.path.name == c.manifest.name]

    def _by_score(self, best: Best) -> list[Checkpoint]:
        """Checkpoints whose score is known, the best first, of equal ones the newest."""
        scored = [(c.scores()[best.metric], c) for c in self.finished() if best.metric in c.scores()]
        sign = -1 if best.mode == "max" else 1
        return [c for _, c in sorted(scored, key=lambda pair: sign * pair[0])]  # stable: newest first before

    def _search(
        self, step: int | Literal["best"] | None, best: Best | None = None
    ) -> tuple[Checkpoint | None, list[str]]:
        self.join()
        found, rejected = self._read()
        if step == "best" and best is not None:
            found, step = self._by_score(best), None
        for checkpoint in (c for c in found if step in (None, c.step)):
            if checkpoint.manifest.alarm and step is None:
                rejected.append(f"{shown(checkpoint.path.name)}: it is of an alarm; --step {checkpoint.step} takes it")
                continue
            problems = checkpoint.problems()
            self._believed[checkpoint.path] = not problems
            if not problems:
                return checkpoint, rejected
            more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
            rejected.append(f"{shown(checkpoint.path.name)}: {'; '.join(problems[:3])}{more}")
        return None, rejected

    def write(self, step: int, state: dict[str, Any], fill: Callable[[Path], None], alarm: bool = False) -> Checkpoint:
        """Write the checkpoint of a step atomically, and wait until it has its name: see `begin`."""
        path = self.begin(step, state, fill, alarm).path
        self.join()
        return Checkpoint(path, read(path))

    def begin(
        self,
        step: int,
        state: dict[str, Any],
        fill: Callable[[Path], None],
        alarm: bool = False,
        keep: int | None = None,
        best: Best | None = None,
        every: int | None = None,
        told: Callable[[], None] | None = None,
    ) -> Checkpoint:
        """Write the checkpoint of a step; from when its files are there, it is sealed while the run goes on.

        To seal is to flush and sum the files, to write the manifest, to give the folder its name, and to retain. What goes
        wrong with it is raised by `check`, or by whoever asks the store for anything next.

        Args:
            state: the driver's, with `step` and the learner's `ranks` and `zero_stage`.
            fill: writes everything but state.json into the folder it is given.
            alarm: whether the run ends by one: see `Manifest.alarm`.
            keep, best, every: what is retained then: see `retain`; all without `keep`.
            told: called when it is sealed, by whoever hears of it first.

        Returns:
            the checkpoint as it will be, under the name it will have.

        Raises:
            CheckpointError: the weights or a rank's optimizer state are not in the folder after `fill`.
            DiskFullError: there is less room than the last one took, or it ran out.
        """
        self.join()
        strike("save.begin", step)
        room.look_for(self._bytes, self.folder, step)
        name, before = self._place(f"{'alarm' if alarm else 'step'}_{step:06d}")
        manifest = Manifest(format=1, id=uuid.uuid4().hex, run=self.run, name=name, step=step, files=None, alarm=alarm)
        draft = self.folder / manifest.draft
        with room.told_when_full(self.folder, step), _removed_on_failure(draft):
            draft.mkdir(parents=True)
            _write_manifest(draft, manifest)  # so that who finds the draft later knows whose it was
            fill(draft)
            (draft / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
            names = [p.relative_to(draft).as_posix() for p in draft.rglob("*") if p.is_file()]
            if lacking := _lacking(names, state):
                raise CheckpointError(
                    f"{self.folder / name}: {', '.join(lacking)} where it was written: runs_dir "
                    f"({self.folder.parent.parent}) must be on a file system that all nodes share"
                )

        def seal() -> None:
            with room.told_when_full(self.folder, step), _removed_on_failure(draft):
                self._seal(draft, manifest, before)
            if keep is not None:
                self._retain(keep, best, every)
            if self.mirror is not None and not alarm:
                self.mirror.put(self.folder / manifest.name, {c.path.name for c in self._own()})

        self._sealing.start(f"the checkpoint of step {step} to be sealed", seal, told)
        return Checkpoint(self.folder / name, manifest)

    def check(self) -> None:
        """Say what went wrong with a checkpoint that was begun, if that is known by now."""
        self._sealing.check()

    def join(self) -> None:
        """Wait until the checkpoint that was begun is sealed, or raise what went wrong with it."""
        self._sealing.join()

    def _seal(self, draft: Path, manifest: Manifest, before: Checkpoint | None) -> None:
        step, path = manifest.step, self.folder / manifest.name
        strike("save.before_manifest", step)
        manifest = manifest.model_copy(update={"files": described(draft)})
        _write_manifest(draft, manifest)
        strike("save.after_manifest", step)
        if before is not None:  # left by a run that was resumed from before it
            before = Checkpoint(before.path.rename(self.folder / before.manifest.draft), before.manifest)
        strike("save.before_rename", step)
        draft.rename(path)
        fsync(self.folder)
        strike("save.after_rename", step)
        if before is not None:
            _remove(before)
        self._believed[path] = True
        self._bytes = sum(entry.bytes for entry in (manifest.files or {}).values())
        self.last = step

    def retain(self, keep: int, best: Best | None = None, every: int | None = None) -> None:
        """Keep the newest `keep` of the run's own checkpoints that can be believed, the best, and those of every so many
        steps; drop older ones.

        What is newer than those and damaged stays: it is not in the way, and something may be left to save. Drafts that
        the run left behind go.
        """
        self.join()
        self._retain(keep, best, every)

    def _retain(self, keep: int, best: Best | None, every: int | None) -> None:
        own = self._own()
        newest = [c for c in own if not c.manifest.alarm and self._stands(c)][:keep]
        oldest = min((c.step for c in newest), default=0)
        spared = [c for c in self._by_score(best) if c in own and self._stands(c)][: best.keep] if best else []
        spared += [c for c in own if every is not None and c.step % every == 0]
        for checkpoint in own:
            if checkpoint.step < oldest and checkpoint not in spared:
                strike("save.retain", own[0].step)
                _remove(checkpoint)
        self._clear_drafts()

    def clear(self) -> None:
        """Delete all of the run's own checkpoints, and the folder where nothing else is in it."""
        self.join()
        for checkpoint in self._own():
            _remove(checkpoint)
        self._clear_drafts()
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _clear_drafts(self) -> None:
        for path, manifest in self._folders():
            if isinstance(manifest, Manifest) and manifest.run == self.run and path.name == manifest.draft:
                shutil.rmtree(path)

    def _stands(self, checkpoint: Checkpoint) -> bool:
        known = self._believed.get(checkpoint.path)
        return known if known is not None else not damage(checkpoint.path, checkpoint.files, content=False)

    def _folders(self) -> Iterator[tuple[Path, Manifest | ManifestError]]:
        """Every folder with its manifest, or why there is none to be read. No links: what is behind them is elsewhere."""
        if not self.folder.is_dir():
            return
        for path in sorted(self.folder.iterdir()):
            if path.is_symlink() or not path.is_dir():
                continue
            try:
                yield path, read(path)
            except ManifestError as error:
                yield path, error

    def _read(self) -> tuple[list[Checkpoint], list[str]]:
        """Finished checkpoints of the run, newest first and originals before copies; what looks like one and is not."""
        found, rejected = [], []
        for path, manifest in self._folders():
            if isinstance(manifest, ManifestError):
                if (path.name[:5] == "step_" and path.name[5:].isdigit()) or os.path.lexists(path / FILE):
                    rejected.append(f"{shown(path.name)}: {manifest}")
            elif manifest.run != self.run:
                rejected.append(f"{shown(path.name)}: it is of another run ({shown(manifest.run)})")
            elif manifest.files is not None:
                found.append(Checkpoint(path, manifest))
        return sorted(
            found, key=lambda c: (-c.step, c.manifest.alarm, c.path.name != c.manifest.name, c.path.name)
        ), rejected

    def _place(self, plain: str) -> tuple[str, Checkpoint | None]:
        """What a checkpoint will be called that is to have this name, and the run's own one that has it now."""
        name = plain
        number = 1
        while (path := self.folder / name).exists() or path.is_symlink():
            if before := next((c for c in self.finished() if c.path == path and c.manifest.name == name), None):
                return name, before
            number += 1
            name = f"{plain}-{number}"  # somebody else's has the name
        return name, None


@contextmanager
def _removed_on_failure(draft: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    atomic.write_text(folder / FILE, manifest.model_dump_json(indent=1))


def _remove(checkpoint: Checkpoint) -> None:
    """Delete the files of a checkpoint and the folders they leave empty; what somebody laid beside them stays.

    The manifest goes last: a removal that is cut off leaves a damaged checkpoint of the run, and is made up for later.
    """
    root = checkpoint.path.resolve()
    for name in checkpoint.files:
        path = checkpoint.path / name
        if path.parent.resolve().is_relative_to(root) and not path.is_dir():
            path.unlink(missing_ok=True)
    for name in (SCORES, FILE):
        (checkpoint.path / name).unlink(missing_ok=True)
    below = [p for p in checkpoint.path.rglob("*") if p.is_dir() and not p.is_symlink()]
    for folder in [*sorted(below, key=lambda p: len(p.parts), reverse=True), checkpoint.path]:
        if not any(folder.iterdir()):
            folder.rmdir()


def _scored(best: Best) -> Callable[[Checkpoint], str]:
    return lambda checkpoint: f"{checkpoint.scores()[best.metric]:g} at step {checkpoint.step}"


def _lacking(files: Iterable[str], state: Mapping[str, Any]) -> list[str]:
    """Which files no run could continue without are not among these."""
    names, wanted = list(files), ["model/*.safetensors"]
    ranks = range(min(state["ranks"], len(names) + 1))  # as many as there can be, whatever the number says
    found = {int(match[1]) for name in names if (match := SHARD.fullmatch(name))}
    if state["zero_stage"]:
        wanted += [f"deepspeed/state/*zero_pp_rank_{rank}_*optim_states.pt" for rank in ranks if rank not in found]
    else:
        wanted += ["deepspeed/state/*"]
    return [f"no {pattern}" for pattern in wanted if not matching(names, pattern)]
