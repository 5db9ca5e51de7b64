"""Every way weights go on GPUs, on CPU: transports, engines, tensor parallelism, ranks, ZeRO stages, kinds of models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlpost.config import CreateModel
from rlpost.models.create import create_model
from tests import moe_models
from tests.conftest import tiny
from tests.integration.transports import connected

SHARDED = [(1, 0), (2, 0), (2, 1), (2, 2), (2, 3)]  # learner ranks, ZeRO stage
OTHERS = ("deepseek_v3",)  # vLLM makes other weights of some that it loads. GPT-OSS over these is refused by the file
LORA = {"model": {"lora": {"rank": 4, "alpha": 8}}}


def cases() -> list[Any]:
    found = [
        ("nccl", engines, tp, ranks, stage, family, {})
        for engines, tp in ((1, 1), (2, 1), (1, 2), (2, 2))
        for ranks, stage in SHARDED
        for family in ("dense", "qwen3_moe")
    ]
    found += [
        ("ipc", ranks, 1, ranks, stage, family, {}) for ranks, stage in SHARDED for family in ("dense", "qwen3_moe")
    ]
    found += [(how, 2, 1, 2, stage, "dense", LORA) for how in ("nccl", "ipc") for stage in range(4)]
    found += [(how, 1, 1, 1, 0, family, {}) for how in ("nccl", "ipc") for family in OTHERS]
    return [
        pytest.param(*case, id="-".join([case[0], "x".join(map(str, case[1:4])), f"zero{case[4]}", case[5], *case[6]]))
        for case in found
    ]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    made = CreateModel.model_validate(tiny()["model"]["create"])
    made.config["initializer_range"] = 0.2
    create_model(made, folder / "dense")
    for family in ("qwen3_moe", *OTHERS):
        moe_models.save_model(moe_models.make_model(family), folder / family)
    return {family: folder / family for family in ("dense", "qwen3_moe", *OTHERS)}


@pytest.mark.parametrize(("transport", "engines", "tensor_parallel", "ranks", "stage", "family", "changes"), cases())
def test_engines_hold_what_the_learner_has(models, transport, engines, tensor_parallel, ranks, stage, family, changes):
    changes = {**changes, "routing": {"replay": "r3"}} if family != "dense" else changes
    with connected(models[family], transport, engines, ranks, stage, tensor_parallel, **changes) as pair:
        for sampled in pair.updates():
            if family != "dense":
                assert all(r.routes.valid.all() for rollouts in sampled for r in rollouts)
