"""Anchors, exact divergences and pairs in real DeepSpeed ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlpost.config import Lora, Objective
from rlpost.learner.batch import Batch
from rlpost.learner.references import AnchorSpec
from rlpost.models.source import ModelSource
from rlpost.types import Sample
from tests.integration.test_learner import flat, group, ragged_batches, spec


def with_objective(path: Path, settings: dict, anchors: dict[str, AnchorSpec], **learner: object):
    model = learner.pop("model", None)
    made = spec(path, model=model, **{"lr": 1e-2, "eps": 1e-8, "warmup_steps": 0, **learner})
    return replace(made, objective=Objective.model_validate(settings), anchors=anchors)


def apart(learner, batch: Batch, anchor: str) -> float:
    """Largest difference between the log-probs of the policy and of an anchor."""
    scores = learner.score(batch, ["old_logp", f"anchors.{anchor}"])
    return float(np.abs(scores["old_logp"] - scores[f"anchors.{anchor}"]).max())


@pytest.mark.parametrize(
    ("zero_stage", "model"),
    [(0, {}), (3, {}), (2, {"lora": Lora(rank=4, alpha=8).model_dump()})],
    ids=["zero0", "zero3", "lora"],
)
def test_an_anchor_follows_the_policy_when_it_is_told_to_and_is_part_of_the_checkpoint(
    ray_cluster, small_model, tmp_path, zero_stage, model
):
    origin = ((ModelSource(str(small_model)), 1.0),)
    anchors = {"slow": AnchorSpec(origin, movable=True), "frozen": AnchorSpec(origin)}
    given = with_objective(small_model, {}, anchors, zero_stage=zero_stage, model=model)
    batch = ragged_batches(1)[0]
    learner = group(given, 2)
    try:
        assert apart(learner, batch, "slow") < 1e-6, "both begin as the policy"
        learner.update(batch, version=0)
        far = apart(learner, batch, "slow")
        assert far > 1e-3
        learner.move_anchor("slow", 0.5, clear_optimizer=False)
        half = apart(learner, batch, "slow")
        assert 0.2 * far < half < 0.8 * far
        learner.save(tmp_path)
        learner.move_anchor("slow", 1.0, clear_optimizer=True)
        assert apart(learner, batch, "slow") < 1e-6
        assert apart(learner, batch, "frozen") == pytest.approx(far, rel=1e-3)
        learner.load(tmp_path)
        assert apart(learner, batch, "slow") == pytest.approx(half, rel=1e-3)
    finally:
        learner.shutdown()


def test_an_average_of_models_is_an_anchor(ray_cluster, small_model, tmp_path):
    learner = group(with_objective(small_model, {}, {}), 1)
    batch = ragged_batches(1)[0]
    try:
        learner.update(batch, version=0)
        learner.save_model(tmp_path / "moved")
        moved = flat(learner)
    finally:
        learner.shutdown()
    soup = AnchorSpec(((ModelSource(str(small_model)), 0.5), (ModelSource(str(tmp_path / "moved")), 0.5)))
    for zero_stage in (0, 3):
        learner = group(with_objective(small_model, {}, {"soup": soup}, zero_stage=zero_stage), 2)
        try:
            assert np.abs(flat(learner) - moved).max() > 1e-3
            assert apart(learner, batch, "soup") > 1e-4
        finally:
            learner.shutdown()


def test_a_cleared_optimizer_takes_the_step_it_would_have_taken_first(ray_cluster, small_model):
    origin = AnchorSpec(((ModelSource(str(small_model)), 1.0),), movable=True)
    batch = ragged_batches(1)[0]
    # With lr 0 the weights stay and only the moments change: the step after clearing is then AdamW's first.
    learner = group(with_objective(small_model, {}, {"anchor": origin}), 2)
    try:
        before = flat(learner)
        learner.update(batch, version=0)
        first = flat(learner) - before
        learner.move_anchor("anchor", 1.0, clear_optimizer=True)
        learner.update(batch, version=0)
        second = flat(learner) - before - first
        moved = np.abs(first) > 1e-4
        # AdamW's first step is lr in size for every weight, whatever the gradient; a later one is not.
        assert np.abs(np.abs(second[moved]) - 1e-2).mean() < 1e-3
    finally:
        learner.shutdown()


def test_a_divergence_over_the_whole_vocabulary_is_zero_at_the_anchor_and_grows(ray_cluster, small_model):
    settings = {"regularizers": [{"divergence": "js", "form": "full", "coef": 0.1}]}
    anchors = {"frozen": AnchorSpec(((ModelSource(str(small_model)), 1.0),))}
    found = {}
    for ranks, layout in ((1, "padded"), (2, "packed")):
        learner = group(with_objective(small_model, settings, anchors, layout=layout), ranks)
        try:
            metrics = [learner.update(b, version=0, coefs={"js": 0.1}).values() for b in ragged_batches(2)]
            found[ranks] = [m["divergence/js"] for m in metrics]
        finally:
            learner.shutdown()
    assert abs(found[1][0]) < 1e-7 < 1e-4 < found[1][1]
    assert found[1] == pytest.approx(found[2], rel=1e-3, abs=1e-7)


def pairs(count: int = 7) -> Batch:
    """Winners and losers of different lengths, dealt so that the two of a pair are far from each other."""
    rng = np.random.default_rng(1)

    def side(i: int, weight: float) -> Sample:
        response = rng.integers(4, 20, rng.integers(2, 8))
        return Sample.given(np.array([1, 5, 6 + i]), response, "pair", i, weight)

    return Batch.from_samples([side(i, 1.0) for i in range(count)] + [side(i, -1.0) for i in range(count)])


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_preferences_are_learned_alike_however_the_pairs_are_dealt(ray_cluster, small_model, layout):
    settings = {
        "policy_loss": None,
        "terms": [
            {"loss": "dpo", "source": "pair", "beta": 0.5},
            {"loss": "sft", "source": "pair", "where": "positive", "coef": 0.5},
        ],
    }
    anchors = {"frozen": AnchorSpec(((ModelSource(str(small_model)), 1.0),))}
    found = []
    for ranks, tokens in ((1, 4096), (3, 40)):
        learner = group(
            with_objective(small_model, settings, anchors, layout=layout, tokens_per_micro_batch=tokens, lr=1e-3), ranks
        )
        try:
            batch = pairs()
            positive = np.repeat(batch.group, batch.response_lengths) >= 0
            positive &= batch.advantages > 0
            steps = []
            for _ in range(3):
                scored = batch.carrying({**learner.score(batch, ["anchors.frozen"]), "where.sft": positive})
                steps.append(learner.update(scored, version=0, coefs={"dpo": 1.0, "sft": 0.5}).values())
            found.append(steps)
        finally:
            learner.shutdown()
    assert found[0][0]["loss/dpo"] == pytest.approx(np.log(2), abs=1e-5), "policy and anchor are still one"
    assert found[0][2]["loss/dpo"] < found[0][1]["loss/dpo"] < found[0][0]["loss/dpo"]
    assert found[0][2]["preference/accuracy/dpo"] > 0.9
    for one, other in zip(*found, strict=True):
        for name in ("loss", "loss/dpo", "loss/sft", "preference/margin/dpo", "grad_norm"):
            assert one[name] == pytest.approx(other[name], rel=2e-3, abs=1e-6), name
