"""What of a bfloat16 model is kept in float32: the sum of a step's gradients, over ranks too, and the first update."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import ray

from rlpost.config import Learner

pytestmark = pytest.mark.integration
RANKS, MICRO_BATCHES, LR = 2, 128, 1e-2


@ray.remote(num_cpus=1)
def step(rank: int, port: int, cases: list[Learner]) -> list[tuple[float, float]]:
    """One optimizer step of a linear layer, by case.

    Returns:
        relative error of the summed gradient, each micro-batch's own being of bfloat16 whatever is done; and the size of
        the update, in learning rates.
    """
    import os

    os.environ |= {"DS_ACCELERATOR": "cpu", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(RANKS), "LOCAL_RANK": "0"}
    import deepspeed
    import torch
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad

    from rlpost.learner.deepspeed_config import deepspeed_config

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)

    def taken(learner: Learner) -> tuple[float, float]:
        torch.manual_seed(0)
        layer = torch.nn.Linear(64, 64, bias=False).to(torch.bfloat16)
        fused = learner.offload_optimizer or None
        optimizer = torch.optim.AdamW(layer.parameters(), lr=LR, weight_decay=0.0, fused=fused)
        engine: Any
        engine, *_ = deepspeed.initialize(
            model=layer,
            optimizer=optimizer,
            config=deepspeed_config(learner, "bfloat16", RANKS),
            dist_init_required=False,
        )
        before = safe_get_full_fp32_param(engine.module.weight).clone()
        drawn = torch.Generator().manual_seed(1)
        common = torch.randn(64, 64, generator=drawn)
        exact = torch.zeros(64, 64, dtype=torch.float64)
        for k in range(MICRO_BATCHES):
            of_ranks = [(common + torch.randn(64, 64, generator=drawn)) / MICRO_BATCHES for _ in range(RANKS)]
            exact += sum(gradient.bfloat16().double() for gradient in of_ranks) / RANKS
            output = engine(torch.eye(64, dtype=torch.bfloat16))  # W^T, whose gradient is what it is multiplied by
            engine.set_gradient_accumulation_boundary(k == MICRO_BATCHES - 1)
            engine.backward((output.float() * of_ranks[rank].t()).sum())
            if k < MICRO_BATCHES - 1:
                engine.step()
        summed = safe_get_full_grad(engine.module.weight).double()
        engine.step()
        moved = (safe_get_full_fp32_param(engine.module.weight) - before).abs().mean() / LR
        return float((summed - exact).norm() / exact.norm()), float(moved)

    return [taken(learner) for learner in cases]


def test_gradients_of_a_step_add_up_in_float32_and_the_first_update_is_whole(ray_cluster):
    cases = [Learner(zero_stage=s, offload_optimizer=o, grad_clip=0) for s in (1, 2, 3) for o in (False, True)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for found in ray.get([step.remote(rank, port, cases) for rank in range(RANKS)], timeout=240):
        for (error, moved), case in zip(found, cases, strict=True):
            assert error < 1e-6, case
            assert moved == pytest.approx(1, rel=1e-3), case
