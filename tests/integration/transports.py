"""Engines and a learner placed and connected as on GPUs, on CPU: `rlpost.rehearsal` stands in for what is below vLLM."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray

from rlpost import cluster
from rlpost.config import parse
from rlpost.learner.batch import Batch
from rlpost.learner.group import LearnerGroup
from rlpost.rollout.fleet import Fleet
from rlpost.run.roles import Roles
from rlpost.run.start import engine_spec, learner_spec, start_fleet, start_learner
from rlpost.types import Rollout, Sample
from tests.conftest import tiny
from tests.integration.served import ask, learner_logp


@contextmanager
def node_of(gpus: int) -> Iterator[None]:
    """A private Ray that says it has GPUs."""
    ray.init(
        address="local",
        num_cpus=8,
        num_gpus=gpus,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=300 * 2**20,
        logging_level="ERROR",
    )
    try:
        yield
    finally:
        ray.shutdown()


@dataclass
class Pair:
    fleet: Fleet
    learner: LearnerGroup
    engine: dict[str, Any]

    def updates(self, versions: int = 2) -> list[list[list[Rollout]]]:
        """Move the weights so many times; what each engine samples under each version, checked against the learner."""
        self.fleet.connect(self.learner)
        found = []
        for version in range(1, versions + 1):
            learn(self.learner, version)
            self.fleet.sync(self.learner, version, "float32")
            asked = [e.generate.remote(ask(10 * version + i)) for i, e in enumerate(self.fleet.engines)]
            sampled = ray.get(asked, timeout=120)
            for engine, rollouts in enumerate(sampled):
                assert {int(v) for r in rollouts for v in r.versions} == {version}
                off = learner_logp(self.learner, rollouts)
                assert off < 1e-4, f"engine {engine} is {off:.2g} off the learner under version {version}"
            found.append(sampled)
        return found


def learn(learner: LearnerGroup, version: int) -> None:
    rng = np.random.default_rng(version)
    examples = [(rng.integers(4, 20, 5), rng.integers(4, 20, 6)) for _ in range(8)]
    samples = [Sample.given(p, r, "on_policy", i) for i, (p, r) in enumerate(examples)]
    learner.update(Batch.from_samples(samples), version=version - 1)


@contextmanager
def connected(
    model: Path,
    /,  # changes may be of `model` too
    transport: str,
    engines: int = 1,
    ranks: int = 1,
    stage: int = 0,
    tensor_parallel: int = 1,
    **changes: Any,
) -> Iterator[Pair]:
    """A fleet and a learner, started where the configuration of so many GPUs places them."""
    gpus = ranks if transport == "ipc" else engines * tensor_parallel + ranks
    config = parse(
        tiny(
            cluster={
                "gpus_per_node": gpus,
                "colocate": transport == "ipc",
                "cpus_per_engine": 1,
                "cpus_per_rank": 1,
                "start_deadline": 700.0,
            },
            rollout={"engines": engines, "threads": 1, "tensor_parallel": tensor_parallel},
            learner={"lr": 0.02, "threads": 1, "ranks": ranks, "zero_stage": stage, "deadline": 120.0},
            warmup=None,
            **changes,
        )
    )
    assert config.weight_transfer == transport
    with node_of(gpus):
        placement = cluster.place(config)
        on_cpu: dict[str, Any] = {"on_gpu": False, "stand_in": True}
        spec = replace(engine_spec(config, str(model)), enforce_eager=True, dtype="float32", **on_cpu)
        fleet = start_fleet(config, spec, placement)
        learner = start_learner(
            config, replace(learner_spec(config, Roles(config), str(model), 0), **on_cpu), placement
        )
        try:
            learner.ready()
            yield Pair(fleet, learner, fleet.ready())
        finally:
            fleet.shutdown()
            learner.shutdown()
