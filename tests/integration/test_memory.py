"""What a rank is said to hold is what the storages of real DeepSpeed ranks come to."""

from __future__ import annotations

import multiprocessing
import os
import socket
from contextlib import nullcontext
from typing import Any

import pytest

from rlpost.config import Config, parse
from rlpost.memory import rank
from rlpost.memory.shapes import shapes_of
from tests.conftest import tiny

ROWS, LENGTH, RANKS = 2, 128, 2
MODEL = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 2000,
    "tie_word_embeddings": False,
}
CASES = [
    ("float32", 0, False),
    ("bfloat16", 1, True),
    ("bfloat16", 2, False),
    ("bfloat16", 3, False),
]


def configured(dtype: str, stage: int, checkpointing: bool) -> Config:
    learner = {
        "ranks": RANKS,
        "zero_stage": stage,
        "gradient_checkpointing": checkpointing,
        "row_tokens": LENGTH,
        "tokens_per_micro_batch": ROWS * LENGTH,
        "logits_chunk_tokens": 64,
        # Far below the size of the model, as its default is of one that has to be sharded.
        "deepspeed": {"zero_optimization": {"reduce_bucket_size": 300_000}},
    }
    model = {"dtype": dtype, "attention": "eager", "create": {"config": MODEL, "tokenizer": "bytes"}}
    return parse(tiny(model=model, learner=learner))


def hugging_face() -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(**MODEL)


@pytest.fixture(scope="module")
def measured() -> dict[tuple[str, int, bool], dict[str, int]]:
    """Bytes at most of rank 0, in a forward and backward pass and in the optimizer's step, by case."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    found = context.Queue()
    ranks = [context.Process(target=run_rank, args=(i, port, found), daemon=True) for i in range(RANKS)]
    for process in ranks:
        process.start()
    try:
        return found.get(timeout=300)
    finally:
        for process in ranks:
            process.join(timeout=30)
            process.kill()


def run_rank(number: int, port: int, found: Any) -> None:
    os.environ.update(
        RANK=str(number), WORLD_SIZE=str(RANKS), LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    os.environ.update(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    sizes = {case: learn(configured(*case)) for case in CASES}
    if number == 0:
        found.put(sizes)


def learn(config: Config) -> dict[str, int]:
    """Two optimizer steps of two micro-batches each, as a rank takes them; the peaks of the second."""
    import deepspeed
    import torch
    from transformers import AutoModelForCausalLM

    from rlpost.learner.deepspeed_config import deepspeed_config
    from rlpost.learner.logprobs import Policy, TokenLogProbs
    from rlpost.learner.model import DTYPES
    from rlpost.memory.counted import Storages

    lo, dtype = config.learner, DTYPES[config.model.dtype]
    settings = deepspeed_config(lo, config.model.dtype, RANKS)
    ids = torch.arange(ROWS * LENGTH).reshape(ROWS, LENGTH) % MODEL["vocab_size"]
    positions = torch.arange(LENGTH).expand(ROWS, LENGTH).contiguous()
    at = torch.cat([row * LENGTH + torch.arange(LENGTH - 1) for row in range(ROWS)])
    targets = ids.flatten()[at + 1]
    peaks = {"learn": 0, "step": 0}
    with Storages("cpu", [ids, positions, at, targets]) as memory:
        sharded = (
            deepspeed.zero.Init(config_dict_or_path=settings, dtype=dtype) if lo.zero_stage == 3 else nullcontext()
        )
        with sharded:
            model = AutoModelForCausalLM.from_config(hugging_face(), dtype=dtype, attn_implementation="eager")
        model.train()
        if lo.gradient_checkpointing:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        policy = Policy(model, lo.logits_chunk_tokens)
        if lo.zero_stage == 3:
            deepspeed.utils.set_z3_leaf_modules(policy, [TokenLogProbs])
        engine, *_ = deepspeed.initialize(
            model=policy,
            optimizer=torch.optim.AdamW(policy.parameters(), lr=1e-4),
            config=settings,
            dist_init_required=False,
        )
        for step in range(2):
            for micro in range(2):
                memory.peak = memory.held
                out = engine(ids, positions, at, targets, 1.0)
                loss = out.logp.sum() + out.entropy.sum()
                engine.set_gradient_accumulation_boundary(micro == 1)
                del out
                engine.backward(loss)
                del loss
                peaks["learn"] = max(peaks["learn"], memory.peak if step else 0)
                memory.peak = memory.held
                engine.step()
                peaks["step"] = max(peaks["step"], memory.peak if step else 0)
    engine.destroy()
    return peaks


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}-zero{c[1]}{'-checkpointing' if c[2] else ''}")
def test_a_rank_holds_what_is_said_of_it(case: tuple[str, int, bool], measured):
    config = configured(*case)
    notes: list[str] = []
    said = {
        name: sum(parts.values())
        for name, parts in rank.phases(config, shapes_of(config, hugging_face(), "here"), notes).items()
    }
    assert not notes
    assert max(said["logits"], said["layers"], said.get("reduce", 0)) == pytest.approx(measured[case]["learn"], rel=0.1)
    assert said["step"] == pytest.approx(measured[case]["step"], rel=0.1)
