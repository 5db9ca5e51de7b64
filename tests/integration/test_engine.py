"""The real engine under weight updates: it serves the learner's weights, says which, and never serves others."""

from __future__ import annotations

import numpy as np
import pytest
import ray

from rlpost.config import CreateModel
from rlpost.learner.batch import Batch
from rlpost.models.create import create_model
from rlpost.rollout.request import SampleRequest, Sampling
from rlpost.types import Sample
from tests.conftest import merge, tiny
from tests.integration.served import ask, build, learner_logp, nudge

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def served(request, ray_cluster, tmp_path_factory):
    """One engine and one learner on the same model, whose head is tied to the embeddings or not."""
    folder = tmp_path_factory.mktemp("model")
    create = merge(
        tiny()["model"]["create"], {"config": {"tie_word_embeddings": request.param, "initializer_range": 0.2}}
    )
    create_model(CreateModel.model_validate(create), folder)
    fleet, learner = build(folder)
    fleet.sync(learner, 0, "float32")
    yield fleet, learner
    fleet.shutdown()
    learner.shutdown()


def test_log_probs_agree_with_the_learner_after_every_update(served):
    fleet, learner = served
    for version in (1, 2, 3):
        nudge(learner)
        stale = fleet.submit(ask(version * 10, samples=8)).result(60)
        assert learner_logp(learner, stale) > 1e-3, "the update must be visible for this test to mean anything"
        fleet.sync(learner, version, "float32")
        fresh = fleet.submit(ask(version * 10 + 1, samples=8)).result(60)
        assert learner_logp(learner, fresh) < 1e-4
        assert {int(v) for r in fresh for v in r.versions} == {version}


def test_what_is_asked_for_just_before_an_update_is_sampled_after_it(served):
    fleet, learner = served
    version = fleet.version + 1
    parts, probes = learner.weights("float32", fleet._readable, version)
    busy = fleet.submit(ask(50, samples=64))
    late = [fleet.submit(ask(51 + i, samples=4)) for i in range(8)]
    ray.get(fleet.engines[0].load_weights.remote(version, *parts), timeout=60)
    ray.get(fleet.engines[0].accept_version.remote(version, probes), timeout=60)
    fleet.version = version
    for future in (busy, *late):
        assert all(len(r.response_ids) for r in future.result(60))
    assert late[-1].result(60)[0].versions[-1] == version


def test_the_same_seed_draws_the_same_tokens_alone_or_in_a_crowd(served):
    fleet, _ = served
    alone = fleet.submit(ask(100, samples=2)).result(60)
    crowd = [fleet.submit(ask(101 + i, samples=2)) for i in range(12)]
    for future in crowd:
        for a, b in zip(alone, future.result(60), strict=True):
            assert a.response_ids.tolist() == b.response_ids.tolist()
    assert alone[0].response_ids.tolist() != alone[1].response_ids.tolist()


def test_responses_end_by_the_end_token_or_the_limit_and_say_which(served):
    fleet, _ = served
    for rollout in fleet.submit(ask(200, samples=64, temperature=1.5)).result(60):
        if rollout.finish_reason == "stop":
            assert rollout.response_ids[-1] == 2
            assert "<eos>" not in rollout.text
        else:
            assert (rollout.finish_reason, len(rollout.response_ids)) == ("length", 12)


def test_a_group_past_its_deadline_is_given_up_and_says_so(served):
    fleet, _ = served
    rollouts = fleet.submit(ask(300, samples=64, max_tokens=40, deadline=0.0)).result(60)
    assert len(rollouts) == 64
    assert {r.finish_reason for r in rollouts} >= {"abort"}
    assert not any(r.usable for r in rollouts if r.finish_reason == "abort")


def test_a_prompt_too_long_for_the_engine_is_refused_by_name(served):
    fleet, _ = served
    request = SampleRequest("long", 400, np.ones(1000, np.int32), (1,), Sampling(1.0, 4), 60)
    with pytest.raises(Exception, match="prompt long has 1000 tokens; the engine holds 36"):
        fleet.submit(request).result(60)


def test_tokens_sampled_across_an_update_carry_both_versions(ray_cluster, small_model):
    # Two at a time, so that some are running whenever the update comes.
    fleet, learner = build(small_model, max_sequences=2)
    try:
        fleet.sync(learner, 0, "float32")
        fleet.submit(ask(0)).result(60)  # the first call warms up
        futures = [fleet.submit(ask(1 + i, samples=16)) for i in range(40)]
        futures[2].result(60)
        nudge(learner)
        fleet.sync(learner, 1, "float32")
        rollouts = [r for f in futures for r in f.result(120)]
        mixed = [r for r in rollouts if {0, 1} <= set(r.versions.tolist())]
        assert mixed, "no response was running when the update came: make them longer"
        for r in mixed:
            assert (np.diff(r.versions) >= 0).all()
        # The keys and values of what was running are made anew, so tokens after the update are the new weights' own.
        after = [r for r in rollouts if set(r.versions.tolist()) == {1}]
        batch = Batch.from_samples([Sample.on_policy(r) for r in mixed + after])
        for r, logp in zip(mixed + after, learner.log_probs(batch), strict=True):
            new = r.versions == 1
            assert np.abs(logp[new] - r.logprobs[new]).max() < 1e-4
    finally:
        fleet.shutdown()
        learner.shutdown()


def test_two_engines_share_the_work_and_give_the_same_samples_as_one(ray_cluster, small_model):
    fleet, learner = build(small_model, engines=2)
    try:
        fleet.sync(learner, 0, "float32")
        futures = [fleet.submit(ask(i)) for i in range(6)]
        texts = [[r.response_ids.tolist() for r in f.result(120)] for f in futures]
        assert all(t == texts[0] for t in texts)
        totals = ray.get([e.statistics.remote() for e in fleet.engines])
        assert all(t["tokens"] > 0 for t in totals)
    finally:
        fleet.shutdown()
        learner.shutdown()
