"""The same batches give the same weights, however many ranks, ZeRO stages, micro-batches and layouts share the work."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import ray

from rlpost.cluster import Threads
from rlpost.config import Learner, Lora, Model, Objective
from rlpost.learner.batch import Batch
from rlpost.learner.group import LearnerGroup
from rlpost.learner.references import AnchorSpec
from rlpost.learner.spec import LearnerSpec
from rlpost.models.source import ModelSource
from rlpost.types import Sample
from rlpost.weights import Held, to_tensor
from tests.archives import Canary, archive

pytestmark = pytest.mark.integration
READABLE = {"model.norm.weight": Held((64,), "float32")}

OBJECTIVE = Objective.model_validate({"regularizers": [{"divergence": "k2", "coef": 0.1}]})


def ragged_batches(count: int = 3, sequences: int = 13) -> list[Batch]:
    """Batches whose sequences differ in length, some of them not learned from."""
    rng = np.random.default_rng(7)
    batches = []
    for _ in range(count):
        sizes = [(int(rng.integers(1, 9)), int(rng.integers(1, 12))) for _ in range(sequences)]
        batches.append(
            Batch.from_samples(
                [
                    Sample(
                        rng.integers(4, 20, p),
                        rng.integers(4, 20, r),
                        source="on_policy",
                        group=i,
                        logprobs=-rng.random(r) * 3,
                        versions=np.zeros(r),
                        weight=float(rng.normal()),
                        mask=np.full(r, i % 5 != 2),
                    )
                    for i, (p, r) in enumerate(sizes)
                ]
            )
        )
    return batches


def spec(path: Path, model: dict | None = None, **learner: object) -> LearnerSpec:
    # SGD-like steps: with AdamW's first steps near lr * sign(gradient), a gradient that is zero but for rounding would
    # move a weight as far as a large one. A large eps keeps the update proportional to the gradient.
    settings = {"lr": 0.3, "eps": 1.0, "tokens_per_micro_batch": 64, "layout": "padded", "warmup_steps": 2, **learner}
    attention = "varlen" if settings["layout"] == "packed" else "sdpa"  # as `auto` has it
    return LearnerSpec(
        source=ModelSource(str(path)),
        anchors={"frozen": AnchorSpec(((ModelSource(str(path)), 1.0),))},
        model=Model.model_validate({"path": str(path), "dtype": "float32", "attention": attention, **(model or {})}),
        learner=Learner.model_validate(settings),
        objective=OBJECTIVE,
        total_steps=10,
        temperature=0.8,
        response_limit=12,
        pad_id=0,
        seed=0,
        on_gpu=False,
        threads=Threads(1),
    )


def group(learner_spec: LearnerSpec, ranks: int) -> LearnerGroup:
    made = LearnerGroup(learner_spec, [None] * ranks, cpus=1, gpus=0, start_deadline=120)
    made.ready()
    return made


def learn(learner: LearnerGroup, batch: Batch) -> dict[str, float]:
    """One update as the loop makes it: scored, with the divergence's coefficient."""
    wanted = ["anchors.frozen"] + (["old_logp"] if learner.spec.learner.optimizer_steps_per_batch > 1 else [])
    return learner.update(batch.carrying(learner.score(batch, wanted)), version=0, coefs={"k2": 0.1}).values()


def trained(learner_spec: LearnerSpec, ranks: int) -> tuple[np.ndarray, list[dict[str, float]]]:
    """All weights after three updates, as one vector, and the metrics of each update."""
    learner = group(learner_spec, ranks)
    try:
        metrics = [learn(learner, batch) for batch in ragged_batches()]
        return flat(learner), metrics
    finally:
        learner.shutdown()


def sent(learner: LearnerGroup, dtype: str = "float32") -> dict[str, np.ndarray]:
    """What engines of this dtype would get."""
    parts, _ = learner.weights(dtype, READABLE, version=0)
    return {name: array for part in ray.get(parts) for name, array in part.items()}


def flat(learner: LearnerGroup) -> np.ndarray:
    found = sent(learner)
    return np.concatenate([found[name].ravel() for name in sorted(found)])


@pytest.fixture(scope="module")
def reference(ray_cluster, small_model) -> tuple[np.ndarray, np.ndarray, list[dict[str, float]]]:
    """Weights before and after three updates by one rank with everything in one micro-batch."""
    learner = group(spec(small_model), 1)
    before = flat(learner)
    learner.shutdown()
    after, metrics = trained(spec(small_model, tokens_per_micro_batch=4096), 1)
    return before, after, metrics


def assert_same(found: np.ndarray, reference: tuple, tolerance: float) -> None:
    before, after, _ = reference
    moved = np.abs(after - before).max()
    assert moved > 0.01, "the updates must move the weights far more than rounding does"
    assert np.abs(found - after).max() / np.abs(after).max() < tolerance


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_two_ranks_under_every_zero_stage_learn_what_one_rank_learns(reference, small_model, zero_stage):
    found, metrics = trained(spec(small_model, zero_stage=zero_stage, layout="packed"), ranks=2)
    assert_same(found, reference, 1e-5)
    for ours, expected in zip(metrics, reference[2], strict=True):
        for name in ("loss", "policy_loss", "kl/k2", "entropy", "grad_norm", "mismatch/kl", "lr"):
            assert ours[name] == pytest.approx(expected[name], rel=2e-4), name


@pytest.mark.parametrize(
    "settings",
    [
        {"tokens_per_micro_batch": 20},
        {"tokens_per_micro_batch": 64},
        {"layout": "packed", "tokens_per_micro_batch": 4096},
        {"layout": "packed", "tokens_per_micro_batch": 64, "row_tokens": 21},
        {"layout": "packed", "tokens_per_micro_batch": 60, "gradient_checkpointing": True, "logits_chunk_tokens": 3},
    ],
    ids=lambda s: "-".join(f"{k}={v}" for k, v in s.items()),
)
def test_the_update_does_not_depend_on_how_the_batch_is_cut(reference, small_model, settings):
    found, _ = trained(spec(small_model, **settings), ranks=1)
    assert_same(found, reference, 1e-6)


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_an_optimizer_in_cpu_memory_learns_the_same(reference, small_model, zero_stage):
    found, _ = trained(spec(small_model, zero_stage=zero_stage, offload_optimizer=True), ranks=2)
    assert_same(found, reference, 1e-5)


def test_three_ranks_with_packing_learn_the_same(reference, small_model):
    found, _ = trained(spec(small_model, layout="packed", tokens_per_micro_batch=40), ranks=3)
    assert_same(found, reference, 1e-6)


def test_several_optimizer_steps_a_batch_use_the_log_probs_from_before_the_first(ray_cluster, small_model):
    learner = group(spec(small_model, optimizer_steps_per_batch=3, warmup_steps=0), 1)
    try:
        metrics = learn(learner, ragged_batches(1)[0])
        assert metrics["ratio/max"] > 1.0001, "later steps must see a policy that has moved"
    finally:
        learner.shutdown()


def test_a_saved_learner_goes_on_as_if_it_had_not_stopped(ray_cluster, small_model, tmp_path):
    batches = ragged_batches()
    whole = group(spec(small_model, zero_stage=3, eps=1e-8, lr=1e-2), 2)
    first = [learn(whole, b) for b in batches[:2]]
    whole.save(tmp_path)
    rest = learn(whole, batches[2])
    expected = flat(whole)
    whole.shutdown()
    again = group(spec(small_model, zero_stage=3, eps=1e-8, lr=1e-2), 2)
    try:
        assert again.load(tmp_path)["optimizer_steps"] == len(first)
        resumed = learn(again, batches[2])
        assert (resumed["lr"], resumed["loss"]) == (rest["lr"], pytest.approx(rest["loss"], rel=1e-6))
        np.testing.assert_allclose(flat(again), expected, atol=1e-7)
        with pytest.raises(Exception, match="the checkpoint is not whole"):
            again.load(tmp_path / "elsewhere")
        for shard in (tmp_path / "deepspeed" / "state").iterdir():
            shard.write_bytes(archive(pickle.dumps({"module": Canary(tmp_path / "canary")}, 2)))
        with pytest.raises(Exception, match=r"states\.pt: it calls posix\.mkdir"):
            again.load(tmp_path)
        assert not (tmp_path / "canary").exists()
    finally:
        again.shutdown()


def test_only_adapters_learn_under_lora_and_they_are_merged_into_what_is_sent(ray_cluster, small_model):
    lora = {"lora": Lora(rank=4, alpha=8).model_dump()}
    learner = group(spec(small_model, model=lora, zero_stage=2), 2)
    try:
        before = {k: v.copy() for k, v in sent(learner).items()}
        for batch in ragged_batches():
            learn(learner, batch)
        after = sent(learner)
        changed = {name for name in after if not np.array_equal(before[name], after[name])}
        assert set(after) == set(before)
        assert changed == {name for name in after if name.endswith("_proj.weight")}
        probe = ragged_batches(1)[0]
        ours = learner.log_probs(probe)
        plain = group(spec(small_model), 1)
        theirs = plain.log_probs(probe)
        plain.shutdown()
        assert max(np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True)) > 1e-3
    finally:
        learner.shutdown()


@pytest.mark.parametrize("head", [None, "float32"])
def test_bfloat16_with_zero_3_trains_and_exports_what_it_holds(ray_cluster, small_model, tmp_path, head):
    from safetensors.torch import load_file

    learner = group(
        spec(small_model, model={"dtype": "bfloat16", "head_dtype": head}, zero_stage=3, eps=1e-8, lr=1e-2), 2
    )
    try:
        for batch in ragged_batches():
            assert np.isfinite(learn(learner, batch)["loss"])
        learner.save_model(tmp_path / "model")
        found = {name: to_tensor(array) for name, array in sent(learner, "bfloat16").items()}
        saved = load_file(tmp_path / "model" / "model.safetensors")
        assert set(saved) == set(found)
        assert all((saved[name] == found[name]).all() for name in saved)
    finally:
        learner.shutdown()
