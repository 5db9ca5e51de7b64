"""The verifier pool as Ray actors: the same verdicts as beside the driver, and a lost actor costs no sample."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest

from rlpost import config
from rlpost.types import Prompt, Rollout
from rlpost.verify import VerifierError, open_pool
from rlpost.verify.remote import ClusterPool
from tests.conftest import private_ray

WAIT = 120.0
IDS = np.arange(3, dtype=np.int32)

VERIFIERS = """
import os, time

def slow(response, reference):
    time.sleep(0.02)
    return response == reference

def spread(responses):
    return [len(set(responses)) / len(responses)] * len(responses)

spread.group = True

def key(response):
    return {"score": float(os.environ.get("CLUSTER_KEY") == response), "details": {"pid": os.getppid()}}

def stuck(response):
    open(response, "w").close()
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def small_ray():
    with private_ray(cpus=2, store_mb=100):
        yield


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(VERIFIERS)
    return path


def sample(text, number=0):
    prompt = Prompt(f"p{number}", "", IDS, reference="yes")
    return Rollout(prompt.id, number, 0, IDS, IDS, np.zeros(3, np.float32), IDS, "stop", text, number), prompt


def pool_of(*specs, **settings):
    specs = [config.VerifierSpec(**({"name": s} if isinstance(s, str) else s)) for s in specs]
    return open_pool(specs, config.VerifierPool(where="cluster", **settings), start_deadline=WAIT)


def test_verdicts_come_from_the_cluster_and_a_lost_actor_costs_none(small_ray, file, monkeypatch):
    monkeypatch.setenv("CLUSTER_KEY", "yes")
    slow, key, spread = f"{file}:slow", f"{file}:key", f"{file}:spread"
    specs = (slow, {"name": key, "env": ["CLUSTER_KEY"], "weight": 0.5}, {"name": spread, "weight": 0.25})
    with pool_of(*specs, workers=1) as pool:
        assert isinstance(pool, ClusterPool)
        (first,) = [f.result(WAIT) for f in pool.submit_group([sample("yes")[0]], sample("yes")[1])]
        assert first.reward == 1.75
        assert (first.logprobs.dtype, list(first.response_ids)) == (np.float32, [0, 1, 2])

        groups = [sample("yes" if i % 3 else "no", i) for i in range(60)]
        futures = [f for r, p in groups for f in pool.submit_group([r, r], p)]
        os.kill(first.verdicts[key].details["pid"], signal.SIGKILL)
        scored = [f.result(WAIT) for f in futures]
        assert [r.verdicts[slow].score for r in scored[::2]] == [float(i % 3 > 0) for i in range(60)]
        assert {r.verdicts[spread].score for r in scored} == {0.5}
        assert scored[-1].verdicts[key].details["pid"] != first.verdicts[key].details["pid"]
        stats = pool.stats()
        assert (stats["verifier/nodes"], stats["verifier/nodes_lost"]) == (1, 1)
        assert stats[f"verifier/{slow}/seconds_mean"] > 0

        with pytest.raises(VerifierError, match="submit_group"):
            pool.submit(*sample("yes")).result(WAIT)
        with pytest.raises(VerifierError, match="plain JSON"):
            pool.submit_group([first], Prompt("p", "", IDS, reference=object()))


def test_a_sample_whose_actor_is_lost_each_time_is_unverified(small_ray, file, tmp_path):
    began = tmp_path / "began"
    name = f"{file}:stuck"
    with pool_of({"name": name, "timeout": 600}, workers=1, retries=0) as pool:
        future = pool.submit(*sample(str(began)))
        deadline = time.monotonic() + WAIT
        while not began.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        import ray

        ray.kill(pool._nodes[0].actor)
        rollout = future.result(WAIT)
    verdict = rollout.verdicts[name]
    assert (rollout.reward, verdict.status, verdict.reason) == (None, "unverified", "node_lost")


def test_a_verifier_that_does_not_load_on_a_node_stops_the_start_and_closing_leaves_no_thread(small_ray, file):
    before = threading.active_count()
    pool = pool_of(f"{file}:gone", workers=1)
    with pytest.raises(VerifierError, match="has no 'gone'"):
        pool.start()
    assert threading.active_count() == before
    with pytest.raises(VerifierError, match="no node had 64 free CPUs"):
        pool_of("exact", workers=64).start()
