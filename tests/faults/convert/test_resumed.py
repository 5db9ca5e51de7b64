"""A run that goes on with other ranks, or under another ZeRO stage, through the command: as if nothing had been changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.integration.test_train import metrics, rlpost

pytestmark = [pytest.mark.integration, pytest.mark.long]

EMA = {
    "anchors": {"slow": {"follow": "ema", "decay": 0.3}},
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
    exact = kind != "bfloat16"
    least = 0 if exact else 1
    path = write_config(
        name="run",
        steps=2,
        warmup={"steps": 10},
        evaluation={"before": False, "after": False},
        checkpoint={"every": 1},
        **{
            **KINDS[kind],
            "learner": {"lr": 1e-3, "eps": 1e-3, "ranks": 2, "zero_stage": least, "optimizer_steps_per_batch": 2},
        },
    )
    rlpost("train", path)
    run = tmp_path / "runs" / "run"
    shares = [(1, 3), (2, 3), (1, 2), (2, 2 if least else 1)]
    straight = gone_on(run, 2, least)
    for ranks, stage in shares:
        found = gone_on(run, ranks, stage)
        for name in ("lr", "loss", "grad_norm", "reward/mean", "tokens/response"):
            if name in straight:
                assert found[name] == pytest.approx(straight[name], rel=1e-4 if exact else 0.1, abs=1e-6), (
                    ranks,
                    stage,
                    name,
                )
    # A conversion of what was converted, back to what it was.
    there, back = run.with_name("there"), run.with_name("back")
    assert there.is_dir() is back.is_dir() is False
    shutil.copytree(run.with_name("2-3"), there)
    found = gone_on(there, 2, least, steps=4)
    expected = gone_on(run.with_name(f"2-{least}"), 2, least, steps=4)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-3 if exact else 0.3, abs=1e-5)
    assert found["lr"] == expected["lr"]


def gone_on(run: Path, ranks: int, stage: int, steps: int = 3) -> dict:
    """The metrics of the last step that a copy of a run makes so."""
    copy = run.with_name(f"{ranks}-{stage}" if steps == 3 else f"{run.name}-{ranks}-{stage}-{steps}")
    shutil.copytree(run, copy)
    rlpost("resume", copy, f"steps={steps}", f"learner.ranks={ranks}", f"learner.zero_stage={stage}")
    return metrics(copy)[-1]
