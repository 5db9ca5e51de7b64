"""Whoever shared the optimizer out, whoever takes it up has the same weights and moments, and learns the same from there."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import ray

from rlpost.config import Learner

pytestmark = pytest.mark.integration

STAGES = {"float32": (0, 1, 2, 3), "bfloat16": (1, 2, 3)}
SHARES = [(ranks, stage, dtype) for dtype, stages in STAGES.items() for ranks in (1, 2) for stage in stages]
Shared = tuple[int, int, str]  # ranks, stage, dtype


@ray.remote(num_cpus=1)
class Rank:
    """A process of a group that makes one DeepSpeed engine after another."""

    def __init__(self, rank: int, world: int, port: int) -> None:
        os.environ |= {"DS_ACCELERATOR": "cpu", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": "0"}
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend="gloo", verbose=False)
        self.rank, self.world = rank, world

    def _engine(self, stage: int, dtype: str) -> Any:
        import deepspeed
        import torch

        from rlpost.learner.deepspeed_config import deepspeed_config

        class Model(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.second = torch.nn.Linear(5, 7), torch.nn.Linear(7, 5, bias=False)
                self.frozen = torch.nn.Linear(5, 5).requires_grad_(False)
                self.third = torch.nn.Linear(5, 3)
                self.last = torch.nn.Linear(3, 5, bias=False)
                self.again = self.first  # one tensor under two names, as tied weights are
                self.register_buffer("seen", torch.zeros(3))

            def forward(self, x: Any) -> Any:
                h = self.frozen(self.second(torch.tanh(self.first(x))))
                return self.last(torch.tanh(self.third(torch.tanh(self.second(self.again(h))))))

        torch.manual_seed(0)
        model = Model().to(getattr(torch, dtype))
        learner = Learner(zero_stage=stage, grad_clip=0.5, deepspeed={"zero_optimization": {"sub_group_size": 40}})
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, eps=1e-3)
        config = deepspeed_config(learner, dtype, self.world)
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
        return engine

    def _learn(self, engine: Any, steps: range) -> None:
        import torch

        for step in steps:
            x = torch.randn(8, 5, generator=torch.Generator().manual_seed(step)).chunk(self.world)[self.rank]
            engine.optimizer.param_groups[0]["lr"] = 0.01 * (step + 1)
            engine.set_gradient_accumulation_boundary(True)
            engine.backward(engine(x.to(next(engine.module.parameters()).dtype)).float().square().sum(-1).mean())
            engine.step()

    def _state(self, engine: Any) -> dict[str, Any]:
        """Weights and moments of what trains, whole; what is computed with; buffers, step count, learning rate."""
        from deepspeed.utils import safe_get_full_optimizer_state

        from rlpost.learner.masters import Masters, gathered

        masters, found = Masters(engine.optimizer), {}
        base = getattr(engine.optimizer, "optimizer", engine.optimizer)
        if hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
            engine.optimizer._lazy_init_hp_params_optimizer_state()  # DeepSpeed's first step does
        for name, p in engine.module.named_parameters():
            with gathered([p]):
                found[f"{name} computes"] = p.detach().float().clone()
            if p.requires_grad:
                found[name] = masters.of(p).clone()
                for key in ("exp_avg", "exp_avg_sq"):
                    whole = safe_get_full_optimizer_state(p, key)
                    found[f"{name} {key}"] = (base.state[p][key] if whole is None else whole).clone()
        found |= {name: b.float().clone() for name, b in engine.module.named_buffers()}
        steps = {float(state["step"]) for state in base.state.values()}
        return {k: v.numpy() for k, v in found.items()} | {"steps": steps, "lr": base.param_groups[0]["lr"]}

    def save(self, folder: str, stage: int, dtype: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Take two steps, save, take two more. Returns the state at the save and at the end."""
        engine = self._engine(stage, dtype)
        engine.module.seen.fill_(2.0)
        self._learn(engine, range(2))
        engine.save_checkpoint(folder, tag="state", client_state={"kept": 7}, save_latest=False)
        before = self._state(engine)
        self._learn(engine, range(2, 4))
        return before, self._state(engine)

    def load(self, folder: str, stage: int, dtype: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Take up what was saved and take two steps. Returns the state before and after."""
        from rlpost.learner import convert

        engine, saved = self._engine(stage, dtype), convert.Saved(Path(folder) / "state")
        assert saved.client["kept"] == 7
        convert.restore(engine, saved)
        before = self._state(engine)
        self._learn(engine, range(2, 4))
        return before, self._state(engine)


@pytest.fixture(scope="module")
def groups(ray_cluster) -> dict[int, list[Any]]:
    """Processes by how many of them there are."""
    made = {}
    for world in (1, 2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        made[world] = [Rank.remote(rank, world, port) for rank in range(world)]
    return made


def asked(groups: dict[int, list[Any]], method: str, folder: Path, share: Shared) -> tuple[dict, dict]:
    """What rank 0 says, once all have said the same."""
    ranks, stage, dtype = share
    said = ray.get([getattr(r, method).remote(str(folder), stage, dtype) for r in groups[ranks]], timeout=240)
    for before, after in said[1:]:
        assert apart(before, said[0][0]) == apart(after, said[0][1]) == 0
    return said[0]


def apart(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """The largest difference, in the largest value of its kind. What is counted must be equal."""
    assert ours.keys() == theirs.keys()
    assert (ours["steps"], ours["lr"]) == (theirs["steps"], theirs["lr"])
    return max(
        abs(ours[k] - theirs[k]).max() / max(abs(theirs[k]).max(), 1e-8) for k in ours if k not in ("steps", "lr")
    )


@pytest.fixture(scope="module")
def saved(groups, tmp_path_factory) -> dict[Shared, tuple[Path, dict, dict]]:
    """By how it was shared a checkpoint, its state, and the state of the run that went straight on."""
    found = {}
    for share in SHARES:
        folder = tmp_path_factory.mktemp("saved")
        found[share] = (folder, *asked(groups, "save", folder, share))
    return found


def pairs() -> list[Any]:
    """Every share taken up as every other; in the fast suite each once on either side."""
    found = []
    for stages in STAGES.values():
        shares = [s for s in SHARES if s[1] in stages and s[2] == ("float32" if 0 in stages else "bfloat16")]
        for i, was in enumerate(shares):
            for now in shares:
                fast = now is shares[(i + len(stages) + 1) % len(shares)]
                marks = () if fast else pytest.mark.long
                found.append(
                    pytest.param(was, now, id=f"{'-'.join(map(str, was))}-as-{'-'.join(map(str, now))}", marks=marks)
                )
    return found


@pytest.mark.parametrize(("was", "now"), pairs())
def test_it_goes_on_as_the_straight_run_does(groups, saved, was, now):
    folder, before, straight = saved[was]
    taken, after = asked(groups, "load", folder, now)
    assert apart(taken, before) == 0, "bit by bit what was saved"
    assert apart(after, taken | {k: after[k] for k in ("steps", "lr")}) > 1e-2, "the steps move weights"
    assert apart(after, straight) < (1e-5 if now[2] == "float32" else 2e-2)
    assert after["steps"] == {4.0}


@pytest.mark.parametrize(
    ("was", "now"), [((2, 1, "bfloat16"), (1, 0, "float32")), ((1, 0, "float32"), (2, 3, "bfloat16"))], ids=str
)
def test_weights_may_be_computed_with_in_another_dtype(groups, saved, was, now):
    folder, before, _ = saved[was]
    taken, _ = asked(groups, "load", folder, now)
    exact = [k for k in before if not k.endswith("computes") and not k.startswith("frozen")]
    assert apart({k: taken[k] for k in exact}, {k: before[k] for k in exact}) == 0
