"""The DeepSpeed learner with replayed routes: however the work is shared, the same weights come of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlpost.cluster import Threads
from rlpost.config import Learner, Model, Objective, Routing
from rlpost.learner.batch import Batch
from rlpost.learner.group import LearnerGroup
from rlpost.learner.spec import LearnerSpec
from rlpost.models.source import ModelSource
from rlpost.routing import Routes
from rlpost.types import Sample
from tests.integration.test_learner import flat, group
from tests.moe_models import make_model, save_model

pytestmark = pytest.mark.integration

LAYERS, TOP_K, EXPERTS = 2, 2, 8


@pytest.fixture(scope="module")
def moe(tmp_path_factory) -> Path:
    """A model whose first layer is dense, with shared experts: routes have rows for two of its three layers."""
    folder = tmp_path_factory.mktemp("moe")
    save_model(make_model("qwen2_moe"), folder)
    return folder


def batches(count: int = 2, sequences: int = 9) -> list[Batch]:
    """Ragged batches whose routes no router would choose; two samples share each prompt, some rows are missing."""
    rng = np.random.default_rng(3)

    def rows(n: int) -> np.ndarray:
        chosen = [rng.permutation(EXPERTS)[:TOP_K] for _ in range(n * LAYERS)]
        return np.array(chosen, np.uint8).reshape(n, LAYERS, TOP_K)

    made = []
    for _ in range(count):
        samples = []
        for i in range(sequences):
            if i % 2 == 0:
                prompt = rng.integers(4, 20, int(rng.integers(1, 9)))
                shared = rows(len(prompt) - 1)
            r = int(rng.integers(1, 12))
            samples.append(
                Sample(
                    prompt,
                    rng.integers(4, 20, r),
                    source="on_policy",
                    group=i // 2,
                    number=i % 2,
                    logprobs=-rng.random(r).astype(np.float32) * 3,
                    versions=np.zeros(r, np.int32),
                    weight=float(rng.normal()),
                    routes=Routes(shared, rows(r), rng.random(len(prompt) + r - 1) > 0.2),
                )
            )
        made.append(Batch.from_samples(samples))
    return made


def spec(path: Path, replay: str = "r3", **learner: object) -> LearnerSpec:
    settings = {"lr": 0.3, "eps": 1.0, "tokens_per_micro_batch": 64, "layout": "padded", **learner}
    attention = "varlen" if settings["layout"] == "packed" else "sdpa"  # as `auto` has it
    return LearnerSpec(
        source=ModelSource(str(path)),
        anchors={},
        model=Model.model_validate({"path": str(path), "dtype": "float32", "attention": attention}),
        learner=Learner.model_validate(settings),
        objective=Objective(),
        total_steps=10,
        temperature=1.0,
        response_limit=12,
        pad_id=0,
        seed=0,
        on_gpu=False,
        threads=Threads(1),
        routing=Routing(replay=replay),
    )


def learn(learner: LearnerGroup, batch: Batch) -> dict[str, float]:
    wanted = ["old_logp"] + (["routes"] if learner.spec.routing.replay == "r2" else [])
    scores = learner.score(batch, wanted)
    if "routes" in scores:
        batch = batch.routed(scores.pop("routes"))
    return learner.update(batch.carrying(scores), version=0).values()


def trained(learner_spec: LearnerSpec, ranks: int) -> tuple[np.ndarray, list[dict[str, float]]]:
    learner = group(learner_spec, ranks)
    try:
        metrics = [learn(learner, batch) for batch in batches()]
        return flat(learner), metrics
    finally:
        learner.shutdown()


@pytest.fixture(scope="module")
def reference(ray_cluster, moe) -> tuple[np.ndarray, np.ndarray, list[dict[str, float]]]:
    """Weights before and after two updates by one rank with everything in one micro-batch."""
    learner = group(spec(moe), 1)
    before = flat(learner)
    learner.shutdown()
    return before, *trained(spec(moe, tokens_per_micro_batch=4096), 1)


@pytest.mark.parametrize(
    ("ranks", "settings"),
    [
        (1, {"layout": "packed", "tokens_per_micro_batch": 60, "gradient_checkpointing": True}),
        (2, {"zero_stage": 0, "gradient_checkpointing": True}),
        (2, {"zero_stage": 3, "layout": "packed", "gradient_checkpointing": True}),
        (2, {"zero_stage": 3}),
    ],
    ids=["packed-checkpointed", "two-ranks", "zero3-packed-checkpointed", "zero3"],
)
def test_replayed_updates_do_not_depend_on_ranks_sharding_packing_or_recomputation(
    reference, moe, ranks: int, settings: dict[str, Any]
):
    before, expected, metrics = reference
    found, measured = trained(spec(moe, **settings), ranks)
    assert np.abs(expected - before).max() > 0.01, "the updates must move the weights far more than rounding does"
    assert np.abs(found - expected).max() / np.abs(expected).max() < 1e-5
    for ours, theirs in zip(measured, metrics, strict=True):
        for name in (
            "loss",
            "grad_norm",
            "mismatch/kl",
            "routing/replayed",
            "routing/agreement",
            "router/load_entropy",
        ):
            assert ours[name] == pytest.approx(theirs[name], rel=2e-4), name
        assert ours["router/dead"] == theirs["router/dead"]


def test_what_was_replayed_is_counted(reference, moe):
    _, _, metrics = reference
    for batch, found in zip(batches(), metrics, strict=True):
        share = float((batch.route_index >= 0).sum()) / len(batch.tokens)
        assert found["routing/replayed"] == pytest.approx(share)
        assert found["routing/fallback"] == pytest.approx(1 - share)
        assert found["routing/agreement"] < 0.2, "random routes are hardly ever the live router's"
        assert found["mismatch_replay/kl"] != found["mismatch_live/kl"], "both were measured on one micro-batch"


def test_routes_change_what_is_learned_and_without_replay_they_are_not_looked_at(ray_cluster, reference, moe):
    _, replayed, _ = reference
    found, metrics = trained(spec(moe, replay="r2", tokens_per_micro_batch=4096), 1)
    assert np.abs(found - replayed).max() > 1e-3
    assert all(m["routing/replayed"] == 1.0 for m in metrics), "r2 has a route for every token"
    assert metrics[0]["routing/agreement"] == 1.0, "before the first update the learner's choice is its own"


def test_r2_replays_over_several_optimizer_steps_what_was_chosen_before_the_first(ray_cluster, moe):
    learner = group(spec(moe, replay="r2", optimizer_steps_per_batch=3, lr=3.0), 1)
    try:
        metrics = learn(learner, batches(1)[0])
        assert metrics["routing/replayed"] == 1.0
        assert metrics["routing/agreement"] < 1.0, "the router has moved, and is not obeyed"
    finally:
        learner.shutdown()


def test_a_rank_that_is_dealt_no_sequence_waits_for_nobody(ray_cluster, moe):
    learner = group(spec(moe, zero_stage=0, ranks=2), 2)
    try:
        metrics = learn(learner, batches(1, sequences=1)[0])
    finally:
        learner.shutdown()
    assert 0 < metrics["routing/replayed"] <= 1


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_a_model_whose_routers_cannot_be_replayed_learns_without(ray_cluster, tmp_path, zero_stage):
    sizes = {"num_local_experts": 8, "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = AutoConfig.for_model("phimoe", num_hidden_layers=2, intermediate_size=32, vocab_size=78, **sizes)
    save_model(AutoModelForCausalLM.from_config(config), tmp_path)
    learner = group(spec(tmp_path, replay="off", zero_stage=zero_stage), 1)
    try:
        metrics = learn(learner, batches(1)[0])
    finally:
        learner.shutdown()
    assert np.isfinite(metrics["grad_norm"])
    assert not any(name.startswith("routing/") for name in metrics)
    with pytest.raises(Exception, match=r"PhimoeTopKRouter .*Turn routing.replay off"):
        group(spec(tmp_path, zero_stage=zero_stage), 1)


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_an_exported_mixture_of_experts_is_the_one_that_was_learned(ray_cluster, moe, tmp_path, zero_stage):
    learner = group(spec(moe, zero_stage=zero_stage), 1 + zero_stage // 3)
    try:
        learn(learner, batches(1)[0])
        learner.save_model(tmp_path / "model")
        probe = batches(1)[0]
        probe = replace(probe, routes=None, route_index=None)
        expected = learner.log_probs(probe)
    finally:
        learner.shutdown()
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in (moe, tmp_path / "model"))
    assert before.state_dict().keys() == after.state_dict().keys()
    changed = [name for name, p in after.state_dict().items() if not torch.equal(p, before.state_dict()[name])]
    assert any("experts" in name for name in changed)
    starts = np.cumsum(probe.lengths) - probe.lengths
    for i, logp in enumerate(expected):
        ids = torch.from_numpy(probe.tokens[starts[i] : starts[i] + probe.lengths[i]].astype(np.int64))
        with torch.no_grad():
            logits = after(ids[None]).logits[0, probe.prompt_lengths[i] - 1 : -1]
        found = logits.log_softmax(-1).gather(1, ids[probe.prompt_lengths[i] :, None])[:, 0].numpy()
        np.testing.assert_allclose(found, logp, atol=1e-5)


def test_a_dense_model_cannot_be_asked_to_replay(ray_cluster, small_model):
    with pytest.raises(Exception, match="has no router to replay"):
        group(spec(small_model), 1)


def test_packing_is_refused_where_a_model_does_not_keep_sequences_apart(ray_cluster, tmp_path):
    save_model(make_model("gpt_oss"), tmp_path)
    eager = Model.model_validate({"path": str(tmp_path), "dtype": "float32", "attention": "eager"})
    with pytest.raises(Exception, match="GptOssForCausalLM does not keep the sequences of a row apart"):
        group(replace(spec(tmp_path, layout="packed", tokens_per_micro_batch=128), model=eager), 1)
