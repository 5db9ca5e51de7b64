"""A run that goes on with other ranks, or under another ZeRO stage, through the command: as if nothing had been changed."""

from __future__ import annotations

import shutil

import pytest

from tests.integration.test_train import metrics, rlpost

pytestmark = [pytest.mark.integration, pytest.mark.long]

EMA = {
    "references": {"slow": {"name": "ema", "decay": 0.5, "every": 1}},
    "regularizers": [{"divergence": "k3", "coef": 0.1, "anchor": "slow"}],
}
MOE = {
    "model_type": "qwen3_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "head_dim": 32,
    "norm_topk_prob": True,
}
KINDS = {
    "dense, an anchor that moves": {"objective": EMA},
    "mixture of experts, routes replayed": {"model": {"create": {"config": MOE}}, "routing": {"replay": "r3"}},
    "adapters, an anchor that moves": {
        "objective": EMA,
        "model": {"lora": {"rank": 4}},
        "rollout": {"adapters": "merged"},
    },
    "bfloat16": {"model": {"dtype": "bfloat16"}, "rollout": {"dtype": "float32"}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_steps_are_those_of_the_straight_run(write_config, tmp_path, kind):
    least = 0 if kind != "bfloat16" else 1
    settings = {"lr": 1e-3, "eps": 1e-3, "ranks": 2, "zero_stage": least, "optimizer_steps_per_batch": 2}
    path = write_config(
        name="run",
        steps=2,
        warmup={"steps": 10},
        evaluation={"before": False, "after": False},
        checkpoint={"every": 1},
        **{**KINDS[kind], "learner": settings},
    )
    rlpost("train", path)
    straight = tmp_path / "runs" / "run"
    other = straight.with_name("other")
    shutil.copytree(straight, other)
    # Two ranks become one under ZeRO 3, and that one two again: each next step has the batch of the straight run.
    for step, share in ((3, (1, 3)), (4, (2, 2))):
        rlpost("resume", straight, f"steps={step}")
        rlpost("resume", other, f"steps={step}", f"learner.ranks={share[0]}", f"learner.zero_stage={share[1]}")
        expected, found = metrics(straight)[-1], metrics(other)[-1]
        assert found["lr"] == expected["lr"]
        for name in ("loss", "grad_norm", "entropy"):
            assert found[name] == pytest.approx(expected[name], rel=1e-3 if least == 0 else 0.2, abs=1e-5), (step, name)
