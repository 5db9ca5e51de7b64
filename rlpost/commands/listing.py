"""`rlpost list`: names a configuration may use."""

from __future__ import annotations

import re
from importlib.metadata import entry_points
from pathlib import Path

import rlpost
from rlpost import config
from rlpost.config import ConfigError
from rlpost.exit_codes import DONE

# Beside the package: an editable installation has them, as in a checkout; a wheel does not.
METHODS = Path(rlpost.__file__).parents[1] / "configs" / "methods"
ROLES = (
    ("data.strategy", tuple(config.STRATEGIES)),
    ("objective.advantage", config.ADVANTAGES),
    ("objective.transforms[]", config.TRANSFORMS),
    ("objective.corrections[]", config.CORRECTIONS),
    ("objective.policy_loss", config.POLICY_LOSSES),
    ("objective.terms[].loss", config.TERMS),
    ("objective.regularizers[].divergence", config.DIVERGENCES),
    ("objective.terms[].where, objective.regularizers[].where", config.SELECTORS),
    ("objective.terms[].coef, objective.regularizers[].coef", config.SCHEDULES),
    ("objective.references.NAME", config.REFERENCES),
    ("objective.reweight", config.REWEIGHTERS),
    ("objective.likelihood", config.LIKELIHOODS),
)


def show(what: str, long: bool = False) -> int:
    """Print names, one a line; of methods their files with what they are, then the entries of each role.

    Args:
        long: of verifiers, what each is, too.
    """
    if long and what != "verifiers":
        raise ConfigError(f"rlpost list {what} --long: only verifiers have a long list")
    if what == "methods":
        _show_files(METHODS)
        for role, names in ROLES:
            print(f"{role}: {', '.join(names)}")
    elif what == "verifiers":
        if long:
            from rlpost.commands.verifiers import described

            print("\n\n".join(map(described, config.VERIFIERS)))
        else:
            print("\n".join(config.VERIFIERS))
        for entry in entry_points(group="rlpost.verifiers"):
            print(f"{entry.name} ({entry.value})")
    elif what == "tasks":
        from reasoning_gym.factory import DATASETS

        print("\n".join(sorted(DATASETS)))
    else:
        raise ConfigError(f"rlpost list {what!r}: must be methods, verifiers or tasks")
    return DONE


def header(file: Path) -> dict[str, str]:
    """What the comments at the top of a method's file say, by label: `Objective`, `Paper`, `Differs`, `When`, ..."""
    found: dict[str, str] = {}
    label = None
    for line in file.read_text().splitlines():
        if not line.startswith("#"):
            break
        labelled = re.match(r"# (\w+): +(.*)", line)
        if labelled:
            label, text = labelled.groups()
            found[label] = text
        elif label is not None:
            found[label] += " " + line.lstrip("# ")
    return found


def _show_files(folder: Path) -> None:
    files = sorted(folder.glob("*.yaml"))
    if not files:
        print(f"Method files: none in {folder}; they are in the repository's configs/methods, not in the package.\n")
        return
    near = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    print(f"Method files, each to be laid over a base: rlpost train BASE.yaml {near}/NAME.yaml\n")
    width = max(len(file.stem) for file in files)
    for file in files:
        said = header(file)
        print(f"{file.stem:<{width}}  {said.get('Objective', '')}  ({said.get('Paper', '')})")
    print("\nEntries of each role, for files of your own:\n")
