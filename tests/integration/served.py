"""An engine and a learner on the same small model, and questions to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rlpost.config import parse
from rlpost.learner.batch import Batch
from rlpost.learner.group import LearnerGroup
from rlpost.rollout.fleet import Fleet
from rlpost.rollout.request import SampleRequest, Sampling, sample_seed
from rlpost.run.roles import Roles
from rlpost.run.start import engine_spec, learner_spec
from rlpost.types import Rollout, Sample
from tests.conftest import tiny


def build(model: Path, engines: int = 1, **rollout: Any) -> tuple[Fleet, LearnerGroup]:
    config = parse(tiny(rollout={"engines": engines, "threads": 1, **rollout}, learner={"lr": 0.05, "threads": 1}))
    fleet = Fleet(
        engine_spec(config, str(model)),
        [None] * engines,
        cpus=1,
        gpus=0,
        sync_deadline=60,
        start_deadline=180,
        repair=config.rollout.repair,
    )
    learner = LearnerGroup(
        learner_spec(config, Roles(config), str(model), 0), [None], cpus=1, gpus=0, start_deadline=180
    )
    learner.ready()
    fleet.ready()
    return fleet, learner


def ask(
    group: int, samples: int = 4, temperature: float = 1.0, max_tokens: int = 12, deadline: float = 60
) -> SampleRequest:
    prompt = np.array([1, *range(5, 12)], np.int32)
    seeds = tuple(sample_seed(0, 1, "p", i) for i in range(samples))
    return SampleRequest("p", group, prompt, seeds, Sampling(temperature, max_tokens), deadline)


def learner_logp(learner: LearnerGroup, rollouts: list[Rollout]) -> float:
    """Largest difference between what the engine said of its tokens and what the learner says."""
    batch = Batch.from_samples([Sample.on_policy(r) for r in rollouts])
    found = learner.log_probs(batch)
    return max(float(np.abs(a - r.logprobs).max()) for a, r in zip(found, rollouts, strict=True))


def nudge(learner: LearnerGroup) -> None:
    """One update that moves the weights."""
    rng = np.random.default_rng(0)
    examples = [(rng.integers(4, 20, 5), rng.integers(4, 20, 6)) for _ in range(4)]
    learner.update(
        Batch.from_samples([Sample.given(p, r, "on_policy", i) for i, (p, r) in enumerate(examples)]), version=0
    )
