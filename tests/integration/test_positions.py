"""Engine and learner agree on positions, whatever shares a micro-batch."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.small_models import small_model
from rlpost.data import make_tokenizer
from rlpost.learner.batch import Batch
from rlpost.types import Sample
from tests.integration.served import ask, build
from tests.unit.learner.test_learner_rope import LONG

pytestmark = pytest.mark.integration


def test_longrope_is_one_and_the_same_for_engine_and_learner_beside_long_sequences_too(ray_cluster, tmp_path):
    """With 36 tokens at most, past the 32 of the original training, vLLM takes the long factors for all."""
    tokenizer = make_tokenizer("0123456789+-*/()[], :")
    small_model("phi3", len(tokenizer), rope_parameters=LONG, original_max_position_embeddings=32).save_pretrained(
        tmp_path
    )
    tokenizer.save_pretrained(tmp_path)
    fleet, learner = build(tmp_path)
    try:
        fleet.sync(learner, 0, "float32")
        rollouts = fleet.submit(ask(0)).result(60)
        samples = [Sample.on_policy(r) for r in rollouts]
        rng = np.random.default_rng(0)
        samples.append(Sample.given(rng.integers(4, 20, 24), rng.integers(4, 20, 12), "sft", 99))
        found = learner.log_probs(Batch.from_samples(samples))
        for rollout, logp in zip(rollouts, found[:-1], strict=True):
            np.testing.assert_allclose(logp, rollout.logprobs, atol=1e-3)
    finally:
        fleet.shutdown()
        learner.shutdown()
