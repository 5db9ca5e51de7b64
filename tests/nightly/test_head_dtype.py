"""How far engine and learner are from each other in bfloat16, with a head in float32 and without."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from rlpost.config import parse
from rlpost.learner.batch import Batch
from rlpost.learner.group import LearnerGroup
from rlpost.rollout.fleet import Fleet
from rlpost.run.roles import Roles
from rlpost.run.start import engine_spec, learner_spec
from rlpost.types import Sample
from tests.conftest import tiny
from tests.integration.served import ask, nudge
from tests.tiny_models import make

pytestmark = pytest.mark.usefixtures("ray_cluster")


def apart(model: str, head: str | None) -> float:
    """Root mean square of the differences of log-probs, in nats, of sampled tokens after an update."""
    given = tiny(rollout={"threads": 1}, learner={"lr": 1e-3, "threads": 1})
    given |= {"model": {"path": model, "dtype": "bfloat16", "head_dtype": head}, "warmup": None}
    config = parse(given)
    fleet = Fleet(engine_spec(config, model), [None], cpus=1, gpus=0, sync_deadline=60, start_deadline=180)
    learner = LearnerGroup(learner_spec(config, Roles(config), model, 0), [None], cpus=1, gpus=0, start_deadline=180)
    try:
        learner.ready()
        fleet.ready()
        nudge(learner)
        fleet.sync(learner, 1, fleet.dtype)
        asked = [fleet.submit(ask(group, samples=16, max_tokens=24)) for group in range(8)]
        rollouts = [rollout for future in asked for rollout in future.result(timeout=120)]
        found = learner.log_probs(Batch.from_samples([Sample.on_policy(r) for r in rollouts]))
        off = np.concatenate([a - r.logprobs for a, r in zip(found, rollouts, strict=True)])
        return float(np.sqrt(np.mean(off**2)))
    finally:
        fleet.shutdown()
        learner.shutdown()


@pytest.mark.parametrize(
    ("tied", "factor", "bound"),
    [
        (False, 20, 0.85),  # logits of up to 30, and little noise below them: it is mostly theirs
        (True, 1, 1.05),  # logits of up to 2: nothing is gained, nor lost
    ],
)
def test_a_head_in_float32_brings_engine_and_learner_nearer_where_logits_are_large(tied, factor, bound, tmp_path):
    sizes = {"hidden_size": 256, "intermediate_size": 512, "initializer_range": 0.02}
    model = make(tmp_path / "m", tie_word_embeddings=tied, **sizes)
    if not tied:
        tensors = load_file(model / "model.safetensors")
        tensors["lm_head.weight"] *= factor
        save_file(tensors, model / "model.safetensors", {"format": "pt"})
    narrow, wide = apart(str(model), None), apart(str(model), "float32")
    print(f"tied {tied}: {narrow:.2e} nats with a head in bfloat16, {wide:.2e} in float32")
    assert wide < bound * narrow
