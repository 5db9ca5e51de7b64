"""`rlpost list`: names a configuration may use."""

from __future__ import annotations

from importlib.metadata import entry_points

from rlpost import config
from rlpost.cli import DONE
from rlpost.config import ConfigError


def show(what: str) -> int:
    """Print names, one a line."""
    if what == "methods":
        for role, names in (
            ("objective.advantage", config.ADVANTAGES),
            ("objective.policy_loss", config.POLICY_LOSSES),
            ("objective.regularizers[].divergence", config.DIVERGENCES),
            ("objective.regularizers[].anchor", config.REFERENCES),
        ):
            print(f"{role}: {', '.join(names)}")
    elif what == "verifiers":
        for name in config.VERIFIERS:
            print(name)
        for entry in entry_points(group="rlpost.verifiers"):
            print(f"{entry.name} ({entry.value})")
    elif what == "tasks":
        from reasoning_gym.factory import DATASETS

        print("\n".join(sorted(DATASETS)))
    else:
        raise ConfigError(f"rlpost list {what!r}: must be methods, verifiers or tasks")
    return DONE
