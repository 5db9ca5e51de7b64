"""Engines are killed and stopped while idle, sampling and updating: others come in their place, and nothing differs."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import Future

import numpy as np
import pytest
import ray

from rlpost.actors import ActorGoneError
from rlpost.rollout.fleet import Fleet
from rlpost.rollout.health import State
from rlpost.rollout.request import SampleRequest
from rlpost.types import Rollout
from tests.integration.served import ask, build, learner_logp, nudge

pytestmark = pytest.mark.integration
GROUPS = 6


class Serving:
    """A fleet of two and a learner; the version that both have, and what was said of engines."""

    def __init__(self, model) -> None:
        self.fleet, self.learner = build(model, engines=2, repair={"heartbeat": 1, "restarts": 100})
        self.said: list[tuple[str, str]] = []
        self.fleet.says(lambda who, what: self.said.append((who, what)))
        self.version, self.groups = -1, 0
        self.update()

    def update(self) -> None:
        nudge(self.learner)
        self.version += 1
        self.fleet.sync(self.learner, self.version, "float32")

    def requests(self) -> list[SampleRequest]:
        """The same at every call, but for the number of the group."""
        self.groups += GROUPS
        return [ask(self.groups + i, samples=2) for i in range(GROUPS)]

    def pid(self, engine: int) -> int:
        found: int = ray.get(self.fleet.crew[engine].found).pid
        return found

    def undisturbed(self) -> list[list[Rollout]]:
        return attended(self.fleet, [self.fleet.submit(request) for request in self.requests()])


def attended(fleet: Fleet, futures: list[Future]) -> list[list[Rollout]]:
    until = time.monotonic() + 120
    while not all(future.done() for future in futures):
        assert time.monotonic() < until, "samples do not come"
        fleet.attend()
        time.sleep(0.2)
    return [future.result() for future in futures]


def assert_same(found: list[list[Rollout]], expected: list[list[Rollout]], version: int) -> None:
    for rollouts, others in zip(found, expected, strict=True):
        for rollout, other in zip(rollouts, others, strict=True):
            assert np.array_equal(rollout.response_ids, other.response_ids)
            assert np.array_equal(rollout.logprobs, other.logprobs)
            assert set(rollout.versions) <= {version}


@pytest.fixture(scope="module")
def serving(ray_cluster, small_model):
    serving = Serving(small_model)
    yield serving
    serving.fleet.shutdown()
    serving.learner.shutdown()


def test_one_killed_while_sampling_is_replaced_and_what_it_sampled_is_sampled_again_alike(serving):
    expected = serving.undisturbed()
    lost = serving.pid(1)
    os.kill(lost, signal.SIGSTOP)  # so that it is still sampling when it is killed
    futures = [serving.fleet.submit(request) for request in serving.requests()]
    os.kill(lost, signal.SIGKILL)
    assert_same(attended(serving.fleet, futures), expected, serving.version)
    assert serving.pid(1) != lost
    assert [who for who, _ in serving.said[-2:]] == ["engine 1"] * 2
    assert "is gone: The actor" in serving.said[-2][1]
    assert serving.said[-1][1].endswith("3 groups are sampled again")
    assert serving.fleet.stats()["engines/replaced"] == 1
    assert serving.fleet.stats()["engines/replaced"] == 0


@pytest.mark.long
def test_both_stopped_are_named_and_replaced(serving):
    expected = serving.undisturbed()
    lost = [serving.pid(engine) for engine in range(2)]
    for pid in lost:
        os.kill(pid, signal.SIGSTOP)
    serving.said.clear()
    found = attended(serving.fleet, [serving.fleet.submit(request) for request in serving.requests()])
    assert_same(found, expected, serving.version)
    named = {who for who, what in serving.said if "is stopped (SIGSTOP)" in what}
    assert named == {"engine 0", "engine 1"}
    for pid in lost:
        assert not os.path.exists(f"/proc/{pid}"), "a stopped process outlives the kill of Ray alone"


@pytest.mark.parametrize(
    "how",
    ["killed while idle", pytest.param("killed while updating", marks=pytest.mark.long), "stopped while updating"],
)
def test_an_update_that_meets_a_lost_engine_is_made_again_by_all(serving, how):
    lost = serving.pid(0)
    if how == "killed while idle":
        os.kill(lost, signal.SIGKILL)
    else:
        os.kill(lost, signal.SIGSTOP)
    if how == "killed while updating":
        threading.Timer(1.0, os.kill, (lost, signal.SIGKILL)).start()
    serving.update()
    assert serving.pid(0) != lost
    assert [seat.health.state for seat in serving.fleet._seats] == [State.HEALTHY] * 2
    found = serving.undisturbed()
    assert {int(v) for rollouts in found for r in rollouts for v in r.versions} == {serving.version}
    assert max(learner_logp(serving.learner, rollouts) for rollouts in found) < 1e-4, "all serve what was learned"


@pytest.mark.long
def test_one_that_is_lost_when_the_learner_is_ahead_gets_what_the_learner_has_under_its_version(serving):
    nudge(serving.learner)
    serving.fleet.learned = serving.version + 1
    os.kill(serving.pid(1), signal.SIGKILL)
    found = attended(serving.fleet, [serving.fleet.submit(request) for request in serving.requests()])
    fresh = [rs for rs in found if set(rs[0].versions) == {serving.version + 1}]
    old = [rs for rs in found if set(rs[0].versions) == {serving.version}]
    assert len(fresh) + len(old) == GROUPS
    assert fresh
    assert max(learner_logp(serving.learner, rollouts) for rollouts in fresh) < 1e-4
    serving.version += 1
    serving.fleet.sync(serving.learner, serving.version, "float32")


def test_what_an_engine_itself_refuses_is_no_loss(serving):
    before = serving.pid(0)
    with pytest.raises(Exception, match="the engine holds"):
        attended(serving.fleet, [serving.fleet.submit(too_long(1_000_000))])
    assert serving.pid(0) == before
    serving.undisturbed()


def too_long(group: int) -> SampleRequest:
    request = ask(group, samples=1)
    return SampleRequest(
        request.prompt_id, group, np.ones(10_000, np.int32), request.seeds, request.sampling, request.deadline
    )


def test_one_that_dies_again_and_again_is_given_up_by_name(serving):
    serving.fleet._repair._budget._restarts = 0
    os.kill(serving.pid(1), signal.SIGKILL)
    with pytest.raises(ActorGoneError, match=r"engine 1 is gone: .*rollout.repair.restarts") as raised:
        attended(serving.fleet, [serving.fleet.submit(request) for request in serving.requests()])
    assert raised.value.member.name == "engine 1"
