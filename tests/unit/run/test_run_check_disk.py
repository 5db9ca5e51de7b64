"""A new run whose checkpoints its disk has no room for is refused with what is needed, what is free, and what would fit."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from rlpost.checkpoint import room
from rlpost.config import Config
from rlpost.memory import shapes
from rlpost.memory.host import checkpoint
from rlpost.run.check import _crowded
from tests.conftest import tiny

FACTS = SimpleNamespace(config=None, where="the model")


@pytest.fixture
def each(monkeypatch) -> float:
    """Bytes of a checkpoint."""
    found = shapes.Shapes(parameters=10**9, trained=10**9)
    monkeypatch.setattr(shapes, "shapes_of", lambda *_: found)
    return sum(checkpoint(Config.model_validate(tiny()), found).values())


@pytest.mark.parametrize(
    ("keep", "best", "free", "remedy"),
    [(2, 0, 2.9, "set checkpoint.keep: 1, "), (1, 0, 1.9, "make room, or set runs_dir"), (2, 2, 4.5, "keep: 1, ")],
)
def test_a_disk_with_less_room_than_is_kept_and_one_more_is_refused(monkeypatch, each, keep, best, free, remedy):
    kept = {"keep": keep, **({"best": {"metric": "pass@1", "keep": best}} if best else {})}
    config = Config.model_validate(tiny(checkpoint=kept, evaluation={"every": 1}))
    monkeypatch.setattr(room, "free", lambda _: int(free * each))
    said = _crowded(config, FACTS)
    assert f"checkpoint.keep: {keep}: {keep + best + 1} checkpoints of {room.size(each)}" in said
    assert f"has {room.size(int(free * each))} free" in said
    assert remedy in said
    monkeypatch.setattr(room, "free", lambda _: int((keep + best + 1) * each) + 1)
    assert _crowded(config, FACTS) is None
