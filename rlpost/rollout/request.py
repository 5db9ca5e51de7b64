"""What is asked of an engine. Plain data, importable without vLLM."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlpost.cluster import Threads
from rlpost.config import DType
from rlpost.models.source import ModelSource
from rlpost.rollout.adapters import AdapterSpec


@dataclass(frozen=True)
class Sampling:
    """How to decode. Temperature 0 is greedy; top_p below 1 is for evaluation only."""

    temperature: float
    max_tokens: int
    top_p: float = 1.0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class SampleRequest:
    """One group: `seeds` samples of one prompt.

    Attributes:
        prompt_ids: int32 (P,).
        seeds: one for each sample.
        deadline: seconds after which what is unfinished is given up ("abort").
        routes: whether the rollouts bring theirs, from an engine that captures them.
    """

    prompt_id: str
    group: int
    prompt_ids: np.ndarray
    seeds: tuple[int, ...]
    sampling: Sampling
    deadline: float
    routes: bool = True


@dataclass(frozen=True)
class EngineSpec:
    """Everything an engine actor needs to know, decided by the driver.

    `capture_routes`: bring the experts chosen for every token (`Rollout.routes`); needs a mixture-of-experts model.
    `adapters`: serve these beside the weights of `source`, which stay; None serves weights alone.
    """

    source: ModelSource
    dtype: DType
    max_model_len: int
    max_sequences: int
    tensor_parallel: int
    enforce_eager: bool
    prefix_caching: bool
    gpu_memory_utilization: float
    kv_cache_gb: float
    threads: Threads
    weight_transfer: str
    stop_strings: bool
    on_gpu: bool
    engine_args: dict[str, Any]
    capture_routes: bool = False
    adapters: AdapterSpec | None = None


def sample_seed(run_seed: int, step: int, prompt_id: str, sample: int) -> int:
    """The seed of one sample: a pure function, so that neither engines nor restarts change what is drawn.

    `sample` counts on over the draws of a prompt within a step, so that a prompt drawn twice gives no copies.

    31 bits, since a CPU generator uses no more than 32.
    """
    digest = hashlib.blake2b(f"{run_seed}/{step}/{prompt_id}/{sample}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") & 0x7FFFFFFF
