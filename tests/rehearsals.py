"""Rehearsals as a user starts them: the command, in a process of its own, and a copy of the code with a fault put in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

COMMAND = "from rlpost.cli import main; main()"


@dataclass(frozen=True)
class Ended:
    """What a rehearsal ended with and said."""

    code: int
    out: str
    error: str


def rehearse(file: str, *arguments: str, to: Path, code: Path = ROOT) -> Ended:
    """`rlpost rehearse configs/FILE.yaml`, of the code in another folder where one is given."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(code)}
    environment.pop("RAY_ADDRESS", None)
    command = [
        sys.executable,
        "-c",
        COMMAND,
        "rehearse",
        str(ROOT / "configs" / f"{file}.yaml"),
        *arguments,
        "--to",
        str(to),
    ]
    done = subprocess.run(command, cwd=code, env=environment, capture_output=True, text=True, timeout=900, check=False)
    return Ended(done.returncode, done.stdout, done.stderr)


def planted(folder: Path, file: str, right: str, wrong: str) -> Path:
    """A copy of the code in `folder` in which `file` has `wrong` where it has `right`, once. Returns `folder`."""
    for package in ("rlpost", "rewards"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    text = (folder / file).read_text()
    assert text.count(right) == 1, f"{file} has {right!r} {text.count(right)} times"
    (folder / file).write_text(text.replace(right, wrong))
    return folder
