"""Engines of one process share their process groups, which the first one that is shut down takes along."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.routing.by_hand import Hand


@pytest.fixture(scope="module", autouse=True)
def _engines() -> Iterator[None]:
    yield
    if Hand.made:
        Hand.made[0].engine._engine.engine_core.shutdown()
        Hand.made.clear()
