"""What the integration tests of a module share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def small_model(tmp_path_factory) -> Path:
    """A model of the tiny configuration, with random weights large enough to have opinions."""
    from rlpost.config import CreateModel
    from rlpost.models.create import create_model
    from tests.conftest import tiny

    folder = tmp_path_factory.mktemp("model")
    spec = CreateModel.model_validate(tiny()["model"]["create"])
    spec.config["initializer_range"] = 0.2
    create_model(spec, folder)
    return folder
