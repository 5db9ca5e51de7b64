"""Every family in engine and learner: the same log-probs after an update, and the engine's choice obeyed by the learner."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from rlpost.learner.replay import Replay, RouteGrid
from rlpost.types import Rollout
from tests.integration.routing.by_hand import Hand, drift, load, logp_of, moved, prompt_of
from tests.moe_models import FAMILIES, make_model, save_model

pytestmark = pytest.mark.integration


def logp_under(
    model: PreTrainedModel, replay: Replay, rollout: Rollout, replayed: bool
) -> tuple[np.ndarray, dict[str, float]]:
    """float32 (R,) log-probs by the model, live or with the engine's experts, and what the routers did."""
    ids = torch.from_numpy(np.concatenate([rollout.prompt_ids, rollout.response_ids]).astype(np.int64))
    rows = torch.from_numpy(np.concatenate([rollout.routes.shared, rollout.routes.own]))
    index = torch.cat([torch.arange(len(rows)), torch.tensor([-1])])
    grid = RouteGrid(rows, index if replayed else torch.full_like(index, -1), torch.ones(len(ids), dtype=torch.bool))
    with torch.no_grad(), replay.using(grid) as stats:
        logits = model(ids[None]).logits[0]
    return logp_of(logits, rollout), stats.meter().values()


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "gpt_oss"])
def test_engine_and_learner_agree_after_an_update_and_choose_the_same_experts(family, tmp_path):
    save_model(make_model(family), tmp_path)
    hand = Hand(tmp_path)
    before, after = load(tmp_path), moved(tmp_path)
    assert drift(before, hand.sample(prompt_of(10))) < 1e-4
    hand.update(after)
    rollouts = hand.sample(prompt_of(10), samples=4)
    assert drift(after, rollouts) < 1e-4
    replay = Replay(after)
    assert hand.started["routing"] == {"layers": list(replay.layers), "top_k": replay.top_k, "experts": replay.experts}
    for r in rollouts:
        logp, stats = logp_under(after, replay, r, replayed=True)
        assert np.abs(logp - r.logprobs).max() < 1e-4
        assert stats["routing/agreement"] == 1.0


GPT_OSS_BOUND = 0.1  # nats; both sides compute in bfloat16, vLLM on CPU knows nothing else for this family


def test_gpt_oss_agrees_in_bfloat16_within_its_own_bound_once_it_chooses_the_same_experts(tmp_path):
    save_model(make_model("gpt_oss", dtype=torch.bfloat16), tmp_path)
    hand = Hand(tmp_path, dtype="bfloat16")
    after = moved(tmp_path).to(torch.bfloat16)
    hand.update(after)
    rollouts = hand.sample(prompt_of(10), samples=8)
    replay = Replay(after)
    worst = {
        replayed: max(float(np.abs(logp_under(after, replay, r, replayed)[0] - r.logprobs).max()) for r in rollouts)
        for replayed in (False, True)
    }
    assert worst[True] < GPT_OSS_BOUND, worst
