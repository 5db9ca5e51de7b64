"""Engine and learner agree on positions, whatever shares a micro-batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from vllm.model_executor.layers import rotary_embedding

from benchmarks.small_models import small_model
from rlpost.config import parse
from rlpost.data import make_tokenizer
from rlpost.learner.batch import Batch, MicroBatch, make_grid
from rlpost.learner.logprobs import Policy
from rlpost.learner.rope import fix_rope
from rlpost.run.roles import Roles
from rlpost.run.start import engine_spec, learner_spec
from rlpost.types import Sample
from tests.conftest import tiny
from tests.integration.routing.by_hand import Hand, prompt_of
from tests.unit.learner.test_learner_rope import LONG

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("longest", [30, 64])
def test_longrope_is_one_and_the_same_for_engine_and_learner_beside_long_sequences_too(longest, tmp_path):
    """Of 32 tokens of the original training; an engine that takes more has the long factors for all."""
    tokenizer = make_tokenizer("0123456789+-*/()[], :")
    model = small_model("phi3", len(tokenizer), rope_parameters=LONG, original_max_position_embeddings=32).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    rotary_embedding._ROPE_DICT.clear()  # vLLM keeps embeddings by all but the length that these are chosen by
    hand = Hand(tmp_path, max_model_len=longest, capture_routes=False)
    rollouts = hand.sample(prompt_of(8), samples=4, tokens=12)

    fix_rope(model, longest)
    other = np.random.default_rng(0).integers(4, 20, 60)
    batch = Batch.from_samples([*map(Sample.on_policy, rollouts), Sample.given(other[:4], other[4:], "sft", 99)])
    policy = Policy(model, 1024)
    for rows in [[(0, 1, 2, 3, 4)], [(0,), (1,), (2,), (3,), (4,)]]:
        grid = make_grid(batch, MicroBatch(tuple(rows)), pad_id=0)
        with torch.no_grad():
            logp = policy(grid.input_ids, grid.position_ids, grid.predictors, grid.targets, 1.0).logp
        sampled = np.concatenate([r.logprobs for r in rollouts])
        np.testing.assert_allclose(logp[: len(sampled)], sampled, atol=1e-3)


def test_the_learner_is_told_how_long_a_sequence_the_engines_take():
    config = parse(tiny())
    engine = engine_spec(config, "anywhere")
    assert learner_spec(config, Roles(config), "anywhere", 0).longest == engine.max_model_len
