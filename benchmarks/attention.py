"""The learner's forward and backward pass by implementation of attention and layout: seconds, memory, and what differs.

    python benchmarks/attention.py [--config '{"hidden_size": 192, ...}'] [--lengths 25,50] [--tokens 4096] [--threads 1]

On a CPU seconds are of the processor and the model is the quickstart's; on a GPU of the clock, in bfloat16. Each case is
run in turn with the others and the fastest run counts.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch

from rlpost.learner.attention import register
from rlpost.learner.batch import Batch, make_grid, plan
from rlpost.learner.logprobs import Policy
from rlpost.learner.model import without_noise

SMALL = {
    "model_type": "qwen2", "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 24,
}  # fmt: skip
LAYOUTS = {"packed, 1 row": ("packed", 1), "packed, 4 rows": ("packed", 4), "padded": ("padded", 1)}
KINDS = ("sdpa", "varlen")


def made(config: dict[str, Any], device: str) -> Any:
    """A model with random weights, in the dtype its device trains in."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    with torch.device(device):
        return without_noise(AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=dtype).train())


def drawn(least: int, most: int, tokens: int, vocabulary: int) -> Batch:
    """Sequences of `tokens` tokens together, half of each a response."""
    rng, sizes = np.random.default_rng(0), [least]
    while sum(sizes) + most <= tokens:
        sizes.append(int(rng.integers(least, most + 1)))
    texts = [rng.integers(3, vocabulary, n).astype(np.int32) for n in sizes]
    return Batch.from_examples([t[: len(t) // 2] for t in texts], [t[len(t) // 2 :] for t in texts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=json.loads, default={}, help="changes to the model, as JSON")
    parser.add_argument("--lengths", default="25,50", help="of the shortest and the longest sequence")
    parser.add_argument("--tokens", type=int, default=4096, help="of a micro-batch")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    register()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    policy = Policy(made({**SMALL, **given.config}, device), 1024)
    least, most = map(int, given.lengths.split(","))
    batch = drawn(least, most, given.tokens, policy.model.config.vocab_size)
    print(
        f"{len(batch)} sequences of {least} to {most} tokens, {int(batch.lengths.sum())} tokens; torch {torch.__version__} on"
    )
    print(torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, {given.threads} thread(s)")
    for name, (layout, rows) in LAYOUTS.items():
        budget = max(given.tokens, most * len(batch))
        micros = plan(batch.lengths, 1, layout, budget, budget // rows if rows > 1 else None)[0]  # type: ignore[arg-type]
        grids = [make_grid(batch, micro, 0, device) for micro in micros]
        best = dict.fromkeys(KINDS, float("inf"))
        gpu, logp = {}, {}
        for _ in range(given.runs):
            for kind in KINDS:
                policy.model.set_attn_implementation(kind)
                best[kind] = min(best[kind], seconds(policy, grids, device))
                if device == "cuda":
                    gpu[kind] = f" and {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
                with torch.no_grad():
                    logp[kind] = scored(policy, grids)
        apart = float((logp["varlen"] - logp["sdpa"]).abs().max())
        times = ", ".join(f"{kind} {best[kind]:.3f} s{gpu.get(kind, '')}" for kind in KINDS)
        print(
            f"{name:15} {times}; sdpa over varlen {best['sdpa'] / best['varlen']:.2f}; log-probs differ by {apart:.1e}"
        )


def scored(policy: Policy, grids: list[Any]) -> torch.Tensor:
    """(M,), log-probs of all grids."""
    return torch.cat(
        [policy(g.input_ids, g.position_ids, g.predictors, g.targets, 1.0, segments=g.segments).logp for g in grids]
    )


def seconds(policy: Policy, grids: list[Any], device: str) -> float:
    """Of one forward and backward pass of all grids."""
    policy.zero_grad()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    clock = time.perf_counter if device == "cuda" else time.process_time
    begun = clock()
    scored(policy, grids).sum().backward()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - begun


if __name__ == "__main__":
    main()
