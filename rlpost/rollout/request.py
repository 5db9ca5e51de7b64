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
from rlpost.rollout.plugin import RECEIVERS


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

    `max_sequences`: None leaves it to vLLM, by the memory of the GPU.
    `head_dtype`: of the logits; None leaves it to the model's configuration.
    `capture_routes`: bring the experts chosen for every token (`Rollout.routes`); needs a mixture-of-experts model.
    `adapters`: serve these beside the weights of `source`, which stay; None serves weights alone.
    `stand_in`: take weights as on GPUs where there are none: `rlpost.rehearsal`.
    """

    source: ModelSource
    dtype: DType
    max_model_len: int
    max_sequences: int | None
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
    head_dtype: DType | None = None
    capture_routes: bool = False
    adapters: AdapterSpec | None = None
    stand_in: bool = False

    def arguments(self, folder: str) -> dict[str, Any]:
        """What vLLM's EngineArgs are told of all this, but for adapters, routes and `engine_args`.

        Args:
            folder: of the model, on this machine.
        """
        arguments: dict[str, Any] = dict(
            model=folder,
            dtype=self.dtype,
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_sequences,
            tensor_parallel_size=self.tensor_parallel,
            enforce_eager=self.enforce_eager,
            enable_prefix_caching=self.prefix_caching,
            gpu_memory_utilization=self.gpu_memory_utilization,
            trust_remote_code=self.source.trust_remote_code,
            skip_tokenizer_init=not self.stop_strings,
            # Of the distribution really sampled from: after temperature. The default is before it.
            logprobs_mode="processed_logprobs",
            weight_transfer_config={"backend": RECEIVERS[self.weight_transfer][0]},
            seed=0,
            disable_log_stats=True,
        )
        if self.head_dtype is not None:
            arguments["hf_overrides"] = {"head_dtype": self.head_dtype}
        if self.tensor_parallel > 1:
            # In an actor of a placement group vLLM takes Ray, asks for the GPUs that this actor holds, and refuses.
            arguments["distributed_executor_backend"] = "mp"
        if not self.on_gpu:
            # A prompt cut in chunks rewinds its seeded generator, which a CPU generator cannot do.
            arguments |= dict(enable_chunked_prefill=False, max_num_batched_tokens=max(4096, self.max_model_len))
        return arguments


def sample_seed(run_seed: int, step: int, prompt_id: str, sample: int) -> int:
    """The seed of one sample: a pure function, so that neither engines nor restarts change what is drawn.

    `sample` counts on over the draws of a prompt within a step, so that a prompt drawn twice gives no copies.

    31 bits, since a CPU generator uses no more than 32.
    """
    digest = hashlib.blake2b(f"{run_seed}/{step}/{prompt_id}/{sample}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") & 0x7FFFFFFF
