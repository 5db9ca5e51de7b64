"""Weight updates while vLLM schedules a step ahead, which it does on GPUs and switches off on CPU.

What an actor of this module's class imports is this file, so nothing heavy stands at its top.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import numpy as np
import pytest

from rlpost.rollout.engine import Engine

pytestmark = pytest.mark.integration


class Event:
    """What it marks is done already, as all work on a CPU is when the call returns."""

    def __init__(self, *args: Any, **how: Any) -> None:
        return None

    def record(self, *args: Any) -> None:
        return None

    wait = synchronize = wait_stream = record

    def query(self) -> bool:
        return True


class AheadEngine(Engine):
    """Schedules ahead on CPU, counts whom an update catches, and rests where it has sampled as much as it may."""

    allowed = 0

    async def allow(self, tokens: int) -> None:
        """So many in all."""
        await self._do(lambda: setattr(self, "allowed", tokens))

    def _take_jobs(self, wait: bool) -> None:
        super()._take_jobs(wait or self._generated_tokens >= self.allowed)

    def _load(self) -> dict[str, Any]:
        import torch
        import vllm.v1.engine.llm_engine
        import vllm.v1.worker.cpu_worker
        import vllm.v1.worker.gpu_model_runner  # noqa: F401 - before CUDA looks as if it were there
        from vllm.platforms.cpu import CpuPlatform

        torch.cuda.Event = torch.cuda.Stream = Event
        torch.cuda.stream = lambda stream: contextlib.nullcontext()
        torch.cuda.current_stream = lambda *args: Event()
        check = CpuPlatform.check_and_update_config.__func__

        def ahead(cls: Any, vllm_config: Any) -> None:
            check(cls, vllm_config)
            vllm_config.scheduler_config.async_scheduling = True

        CpuPlatform.check_and_update_config = classmethod(ahead)
        started = super()._load()
        core = self._engine.engine_core.engine_core
        self.caught = 0
        preempt = core.scheduler._preempt_request

        def counted(request: Any, timestamp: float, drop_stale_output: bool = False) -> Any:
            self.caught += drop_stale_output
            return preempt(request, timestamp, drop_stale_output)

        core.scheduler._preempt_request = counted
        self.how = type(core.scheduler).__name__, core.batch_queue_size
        return started

    async def facts(self) -> tuple[Any, int]:
        return self.how, self.caught


def test_every_token_is_of_the_weights_that_it_says(ray_cluster, monkeypatch, tmp_path):
    import ray
    import torch
    from transformers import AutoModelForCausalLM

    from rlpost.config import parse
    from rlpost.faults import DeadlineError
    from rlpost.learner.group import LearnerGroup
    from rlpost.rollout import fleet as fleets
    from rlpost.rollout import seat
    from rlpost.run.roles import Roles
    from rlpost.run.start import engine_spec, learner_spec
    from tests import moe_models
    from tests.conftest import tiny
    from tests.integration.served import ask
    from tests.integration.transports import learn

    moe_models.save_model(moe_models.make_model("qwen3_moe"), tmp_path / "0")
    monkeypatch.setattr(seat, "Engine", AheadEngine)
    model = str(tmp_path / "0")
    config = parse(
        tiny(rollout={"threads": 1, "max_tokens": 120}, learner={"lr": 0.01, "threads": 1}, routing={"replay": "r3"})
    )
    fleet = fleets.Fleet(engine_spec(config, model), [None], cpus=1, gpus=0, sync_deadline=60, start_deadline=180)
    spec = learner_spec(config, Roles(config), model, 0)
    learner = LearnerGroup(spec, [None], cpus=1, gpus=0, start_deadline=180)
    try:
        learner.ready()
        fleet.ready()
        engine = fleet.engines[0]
        pending = [fleet.submit(ask(k, samples=8, max_tokens=120)) for k in range(3)]

        def sampled(more: int) -> None:
            before = ray.get(engine.statistics.remote(), timeout=60)["tokens"]
            ray.get(engine.allow.remote(before + more), timeout=60)
            end = time.monotonic() + 120
            while (now := ray.get(engine.statistics.remote(), timeout=60)["tokens"]) < before + more:
                if time.monotonic() > end:
                    raise DeadlineError(f"{now - before} of {more} tokens in two minutes")
                time.sleep(0.02)

        for version in (1, 2, 3):
            sampled(120)
            learn(learner, version)
            fleet.sync(learner, version, "float32")
            learner.save_model(tmp_path / str(version))
        ray.get(engine.allow.remote(10**6), timeout=60)
        rollouts = [rollout for group in pending for rollout in group.result(240)]
        how, caught = ray.get(engine.facts.remote(), timeout=60)
    finally:
        fleet.shutdown()
        learner.shutdown()
    assert how == ("AsyncScheduler", 2)
    assert caught >= 12, "updates are to catch samples that run"
    assert all(r.routes.valid.all() for r in rollouts)
    tokens = 0
    for version in range(4):
        policy = AutoModelForCausalLM.from_pretrained(tmp_path / str(version), dtype=torch.float32).eval()
        for r in rollouts:
            at = np.flatnonzero(r.versions == version)
            if not len(at):
                continue
            ids = torch.tensor([[*map(int, r.prompt_ids), *map(int, r.response_ids)]])
            with torch.no_grad():
                logp = torch.log_softmax(policy(ids).logits[0, :-1], -1).gather(-1, ids[0, 1:, None])[:, 0].numpy()
            off = np.abs(logp[len(r.prompt_ids) - 1 :][at] - r.logprobs[at]).max()
            assert off < 1e-4, f"tokens of version {version} are {off:.2g} off its weights"
            tokens += len(at)
    assert tokens == sum(len(r.response_ids) for r in rollouts) > 360
