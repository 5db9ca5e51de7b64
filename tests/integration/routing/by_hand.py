"""A real engine whose steps a test takes itself, and what transformers says of the tokens it sampled."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlpost.cluster import Threads
from rlpost.learner.model import DTYPES
from rlpost.learner.stream import WeightStream
from rlpost.models.source import ModelSource
from rlpost.rollout.engine import Engine
from rlpost.rollout.probes import readable
from rlpost.rollout.request import EngineSpec, SampleRequest, Sampling
from rlpost.types import Rollout
from rlpost.weights import Probing, held_wide, to_numpy
from tests.conftest import merge

BLOCK = 32


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def moved(folder: Path) -> PreTrainedModel:
    """The model after an update that nothing could miss."""
    other = load(folder)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return other


class Hand:
    """An engine whose steps are taken by hand, in this thread and without Ray."""

    made: ClassVar[list[Hand]] = []

    def __init__(self, folder: Path, **changes: Any) -> None:
        spec = {
            "source": ModelSource(str(folder)),
            "dtype": "float32",
            "max_model_len": 256,
            "max_sequences": 16,
            "tensor_parallel": 1,
            "enforce_eager": True,
            "prefix_caching": True,
            "gpu_memory_utilization": 0.5,
            "kv_cache_gb": 1.0,
            "threads": Threads(1),
            "weight_transfer": "object_store",
            "stop_strings": False,
            "on_gpu": False,
            "engine_args": {"block_size": BLOCK, "num_gpu_blocks_override": 64},
            "capture_routes": True,
        }
        self.engine = Engine(EngineSpec(**merge(spec, changes)))
        self.started = self.engine._load()
        self.groups = 0
        Hand.made.append(self)

    def ask(self, prompt: np.ndarray, samples: int = 3, tokens: int = 12, **more: Any) -> Future[list[Rollout]]:
        self.groups += 1
        future: Future[list[Rollout]] = Future()
        how = Sampling(more.pop("temperature", 1.0), tokens, stop=more.pop("stop", ()))
        request = SampleRequest("p", self.groups, prompt, tuple(range(samples)), how, 600.0, **more)
        self.engine.refuse_stale()
        self.engine._submit(request, future)
        return future

    def step(self) -> list[Any]:
        outputs = self.engine._engine.step()
        for output in outputs:
            self.engine._collect(output)
        return outputs

    def finish(self, *futures: Future[list[Rollout]]) -> list[Rollout]:
        while not all(f.done() for f in futures):
            self.step()
        return [r for f in futures for r in f.result(0)]

    def sample(self, prompt: np.ndarray, **how: Any) -> list[Rollout]:
        return self.finish(self.ask(prompt, **how))

    def update(self, weights: PreTrainedModel, without: tuple[str, ...] = ()) -> None:
        """The next version, as the fleet gives it; `without` the tensors whose names have one of these in them."""
        version = self.engine.version + 1
        held = self.engine._engine.collective_rpc(readable)[0]
        stream, how = WeightStream(weights), (DTYPES[self.engine.spec.dtype], held_wide(held))
        sent = {n: t for n, t in stream.tensors(*how) if not any(w in n for w in without)}
        probing = Probing({n: tuple(t.shape) for n, t in sent.items()}, held, version)
        arrays = {n: to_numpy(t) for n, t in probing.watch(sent.items())}

        async def both() -> None:
            await self.engine.load_weights(version, arrays)
            await self.engine.accept_version(version, probing.probes())

        async def served() -> None:
            running = asyncio.ensure_future(both())
            while not running.done():
                await asyncio.sleep(0)
                self.engine._take_jobs(wait=False)
            await running

        asyncio.run(served())

    def preempted(self) -> int:
        """How many requests the scheduler has had to interrupt among those that run or wait."""
        scheduler = self.engine._engine.engine_core.engine_core.scheduler
        return sum(r.num_preemptions for r in [*scheduler.running, *scheduler.waiting])


def prompt_of(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(4, 20, length).astype(np.int32)


def truth(model: PreTrainedModel, rollout: Rollout) -> tuple[np.ndarray, np.ndarray]:
    """What the model chooses for each token but the last, (P + R - 1, layers, top_k) sorted, and its log-probs (R,)."""
    ids = np.concatenate([rollout.prompt_ids, rollout.response_ids]).astype(np.int64)
    with torch.no_grad():
        out = model(torch.from_numpy(ids[None]), output_router_logits=True)
    chosen = torch.stack([logits.topk(2, -1).indices for logits in out.router_logits], 1)[:-1]
    return np.sort(chosen.numpy(), -1), logp_of(out.logits[0], rollout)


def logp_of(logits: torch.Tensor, rollout: Rollout) -> np.ndarray:
    """float32 (R,): log-probs of the response's tokens, of logits (P + R, vocabulary)."""
    logp = logits[len(rollout.prompt_ids) - 1 : -1].float().log_softmax(-1)
    return logp.gather(1, torch.from_numpy(rollout.response_ids.astype(np.int64))[:, None])[:, 0].numpy()


def drift(weights: PreTrainedModel, rollouts: list[Rollout]) -> float:
    """Largest difference between what an engine said of its tokens and what transformers says with `weights`."""
    worst = 0.0
    for r in rollouts:
        ids = np.concatenate([r.prompt_ids, r.response_ids]).astype(np.int64)
        with torch.no_grad():
            logits = weights(torch.from_numpy(ids[None])).logits[0]
        worst = max(worst, float(np.abs(logp_of(logits, r) - r.logprobs).max()))
    return worst
