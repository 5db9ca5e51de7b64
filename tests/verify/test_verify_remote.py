"""Actors of verifiers that share a machine: when one is lost, what is scored goes elsewhere until the others have answered."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from rlpost import config
from rlpost.verify.remote import ClusterPool, Node


class Actor:
    """Answers whether it is there when it is told to."""

    def __init__(self) -> None:
        self.asked: list[Future] = []
        self.ready = self

    def remote(self) -> Actor:
        return self

    def future(self) -> Future:
        self.asked.append(Future())
        return self.asked[-1]


@pytest.fixture
def pool(monkeypatch):
    """Two actors on one machine, of which one stands in for a node that is gone, and one on another."""
    made = ClusterPool([config.VerifierSpec(name="exact")], config.VerifierPool(where="cluster"))
    made._nodes = [Node(name, Actor(), host, True) for name, host in (("a", "one"), ("b", "one"), ("c", "two"))]
    made.revived = []
    monkeypatch.setattr(made, "_revive", made.revived.append)
    return made


def up(pool: ClusterPool) -> list[str]:
    return [node.id for node in pool._nodes if node.up]


def test_its_neighbours_are_sent_nothing_before_they_answer(pool):
    a, b, c = pool._nodes
    pool._lose(a)
    assert up(pool) == ["c"]
    assert (pool.revived, len(c.actor.asked)) == ([a], 0)
    b.actor.asked[0].set_result("one")
    pool._events.get_nowait()()
    assert up(pool) == ["b", "c"]
    assert pool.revived == [a]


def test_a_neighbour_that_is_gone_as_well_is_started_anew(pool):
    a, b, _ = pool._nodes
    pool._lose(a)
    b.actor.asked[0].set_exception(RuntimeError("its node is dead"))
    pool._events.get_nowait()()
    assert up(pool) == ["c"]
    assert (pool.revived, pool._lost) == ([a, b], 2)
