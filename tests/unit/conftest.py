"""What keeps unit tests quick: one thread a process, and no process to see that verifiers which ship can be loaded."""

from __future__ import annotations

import os

import pytest

# What is computed is small, and threads of several workers only wait for each other. Before torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture
def shipped_verifiers_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a start verifiers are loaded in a process of their own; here those alone that a test brings or sets up."""
    from rlpost.config import Config
    from rlpost.run import inputs
    from rlpost.verify.registry import BUILT_IN

    check = inputs.check_verifiers

    def check_others(config: Config) -> None:
        if any(spec.name not in BUILT_IN or spec.params or spec.when for spec in config.verifiers):
            check(config)

    monkeypatch.setattr(inputs, "check_verifiers", check_others)
