"""`rlpost fork`: a new run that begins where another one was."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from rlpost import checkpoint
from rlpost.checkpoint.manifest import damage
from rlpost.config import ConfigError, dump, load
from rlpost.exit_codes import DONE
from rlpost.observe import RunFolder
from rlpost.run.refusal import refused_leaves_nothing


def fork(run: Path, name: str, step: int | Literal["best"] | None, command: list[str]) -> int:
    """Copy a checkpoint of a run into a new run beside it, which `rlpost resume` goes on with. The old one is only read.

    Args:
        name: of the new run.
        step: of the checkpoint; the newest by default.

    Raises:
        ConfigError: there is no such checkpoint, or the name is taken.
    """
    old = RunFolder.open(run)
    if old.is_of_sft:
        raise ConfigError(
            f"{old.path} is of rlpost sft, whose steps lead to one model: rlpost sft {old.config} name={name}"
        )
    config = load([old.config], [f"name={name}"])
    saved = checkpoint.Store(old.checkpoints, old.run_id).choose(step, print, config.checkpoint.best)
    origin = {"run_id": old.run_id, "path": str(old.path), "step": saved.step}
    folder = RunFolder.create(old.path.parent, name, dump(config), command, config.seed, origin)

    def fill(draft: Path) -> None:
        for file in set(saved.files) - {"state.json"}:
            (draft / file).parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(saved.path / file, draft / file)
            except FileNotFoundError:
                break
        copied = {file: entry for file, entry in saved.files.items() if file != "state.json"}
        if found := damage(draft, copied):  # a run that is under way lets its old checkpoints go
            raise ConfigError(f"{saved.path} went away while it was copied ({found[0]}): fork again")

    with folder, refused_leaves_nothing(folder):
        checkpoint.Store(folder.checkpoints, folder.run_id).write(saved.step, saved.state(), fill)
    print(f"{folder.path} begins at step {saved.step} of {old.path}: rlpost resume {folder.path} [key=value ...]")
    return DONE
