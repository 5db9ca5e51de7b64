"""A checkpoint is sealed while the run goes on; until then the one before it stands, and a failure is not lost."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from rlpost.checkpoint import Store, manifest
from rlpost.checkpoint import store as store_module
from tests.unit.checkpoint.test_checkpoint_store import RUN, fill, names, state


@pytest.fixture
def store(tmp_path) -> Store:
    store = Store(tmp_path, RUN, deadline=20)
    store.write(1, state(1), fill)
    return store


@pytest.fixture
def held(monkeypatch) -> threading.Event:
    """Files are summed once this is set."""
    let_go = threading.Event()

    def described(folder: Path) -> dict[str, manifest.Entry]:
        assert let_go.wait(20)
        return manifest.described(folder)

    monkeypatch.setattr(store_module, "described", described)
    return let_go


def test_the_run_goes_on_while_a_checkpoint_is_sealed(store, held, tmp_path):
    told: list[str] = []
    begun = store.begin(2, state(2), fill, keep=1, told=lambda: told.append("2"))
    store.check()
    assert (begun.path.name, store.last, told) == ("step_000002", 1, [])
    assert Store(tmp_path, RUN).newest()[0].step == 1, "what is not sealed is not there"
    held.set()
    store.join()
    assert (store.last, told, names(tmp_path)) == (2, ["2"], ["step_000002"])
    assert store.newest()[0].step == 2


@pytest.mark.parametrize("asked", ["begin", "newest", "retain", "score"])
def test_whoever_asks_next_waits_for_it(store, held, asked):
    store.begin(2, state(2), fill)
    threading.Timer(0.2, held.set).start()
    if asked == "begin":
        store.begin(3, state(3), fill)
    elif asked == "newest":
        assert store.newest()[0].step == 2
    elif asked == "retain":
        store.retain(1)
    else:
        store.score(2, {"pass@1": 0.5})
    assert store.choose(2, print).scores() == ({"pass@1": 0.5} if asked == "score" else {})


def test_what_goes_wrong_is_said_once_at_the_next_step_and_leaves_the_old_one(store, monkeypatch, tmp_path):
    def full(_: Path) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "described", full)
        store.begin(2, state(2), fill)
        store._sealing._thread.join()
        with pytest.raises(OSError, match="Input/output"):
            store.check()
    store.check()
    assert (store.last, names(tmp_path)) == (1, ["step_000001"])
    store.write(3, state(3), fill)
    assert store.newest()[0].step == 3


def test_one_that_is_never_sealed_is_not_waited_for_without_end(store, held):
    store._sealing.deadline = 0.1
    store.begin(2, state(2), fill)
    with pytest.raises(TimeoutError, match="the checkpoint of step 2 to be sealed"):
        store.join()
    held.set()


def test_those_of_every_so_many_steps_stay_for_good(store, tmp_path):
    for step in range(2, 12):
        store.begin(step, state(step), fill, keep=2, every=4)
    store.join()
    assert names(tmp_path) == ["step_000004", "step_000008", "step_000010", "step_000011"]
    store.retain(1)
    assert names(tmp_path) == ["step_000011"]
