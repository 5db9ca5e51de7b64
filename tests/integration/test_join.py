"""Engines join a transfer of weights as processes of their own, and who does not is named.

What an actor of these classes imports is this file, so nothing heavy stands at its top.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import ray

pytestmark = pytest.mark.integration


class Joining:
    """An engine as the learner's side of a transfer sees it, which joins as it is told to."""

    async def be(self, does: str) -> None:
        self.does = does

    async def init_weight_transfer_engine(self, request: Any, deadline: float) -> None:
        self.offset = request.init_info["rank_offset"]
        if self.does == "fails":
            raise ConnectionError("no route to host")
        if self.does != "joins":
            await asyncio.sleep(3600)

    async def joining(self) -> str:
        return self.does

    async def asked(self) -> int:
        return self.offset


class Trainer:
    """Rank 0 of a learner, without a model."""

    def connect(self, engines: list[Any], workers: int, deadline: float) -> None:
        import torch
        from vllm.distributed.weight_transfer.base import ModuleSource

        from rlpost import rehearsal
        from rlpost.learner.delivery import Delivery
        from rlpost.learner.transfer import connect

        rehearsal.tell(True)
        rehearsal.install()
        source = ModuleSource(torch.nn.Linear(2, 2))
        connect("nccl", engines, workers, 0, Delivery.address(self), source, 16, deadline)


@pytest.fixture(scope="module")
def started(ray_cluster):
    return [ray.remote(Joining).options(num_cpus=0).remote() for _ in range(2)]


@pytest.fixture
def engines(started):
    """Has the two engines do what they are told."""

    def told(*does: str) -> list[Any]:
        ray.get([engine.be.remote(what) for engine, what in zip(started, does, strict=True)])
        return started

    return told


@pytest.fixture(scope="module")
def trainer(ray_cluster):
    return ray.remote(Trainer).remote()


def test_workers_of_all_engines_have_ranks_of_their_own(engines):
    from rlpost.learner.transfer import IndependentEngines

    both = engines("joins", "joins")
    IndependentEngines(both, workers=4, deadline=60.0).init_weight_transfer_engine({"rank_offset": 1, "world_size": 9})
    assert ray.get([e.asked.remote() for e in both]) == [1, 5]


def test_who_does_not_join_is_named(engines, trainer):
    with pytest.raises(Exception, match=r"DeadlineError.*engine 0 waits for the others; engine 1 is at work"):
        ray.get(trainer.connect.remote(engines("waits for the others", "is at work"), 1, 2.0))


def test_an_engine_that_fails_ends_the_wait_of_the_others(engines, trainer):
    with pytest.raises(Exception, match=r"EngineLostError: engine 1 could not join the transfer: no route to host"):
        ray.get(trainer.connect.remote(engines("waits for the others", "fails"), 1, 3600.0))
