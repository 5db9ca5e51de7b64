"""The floor: the same tokens through bare vLLM and a bare torch optimizer step. No rewards, no sync, no log-probs."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from workload import Step, Workload, run_side

from rlpost.types import Prompt

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from vllm import LLM, SamplingParams

Sequence = tuple[list[int], list[int]]
"""Token ids of a prompt and of a response to it."""

HOW = (
    "floor: generate is vLLM's LLM.generate in this process (no seeds, log-probs or text), learn is torch's forward, "
    "log-softmax on the response tokens, backward, clipping and AdamW on the same tokens, padded, in the same "
    "micro-batches of tokens_per_micro_batch. Nothing is verified; the engine keeps its first weights."
)


def measure(workload: Workload) -> tuple[str, list[Step]]:
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1", VLLM_CPU_OMP_THREADS_BIND="nobind")
    config = workload.config()
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, round(config.rollout.kv_cache_gb)))
    import torch
    from transformers import AutoModelForCausalLM
    from vllm import LLM, SamplingParams

    batches = workload.batches()
    llm = LLM(
        model=str(workload.model),
        dtype=config.rollout_dtype,
        max_model_len=config.max_sequence_tokens,
        max_num_seqs=config.rollout.max_sequences or 256,
        enforce_eager=True,
        enable_prefix_caching=config.rollout.prefix_caching,
        enable_chunked_prefill=False,
        max_num_batched_tokens=max(4096, config.max_sequence_tokens),
        skip_tokenizer_init=True,
    )
    torch.set_num_threads(workload.threads())
    sampling = SamplingParams(
        n=workload.samples,
        temperature=config.rollout.temperature,
        max_tokens=workload.tokens,
        detokenize=False,
    )
    model = AutoModelForCausalLM.from_pretrained(workload.model, dtype=getattr(torch, config.model.dtype)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learner.lr, weight_decay=config.learner.weight_decay)

    steps: list[Step] = []
    ended = time.perf_counter()
    for prompts in batches:
        began = time.perf_counter()
        sequences = generate(llm, prompts, sampling)
        generated = time.perf_counter()
        learn(model, optimizer, sequences, config.learner.tokens_per_micro_batch, config.learner.grad_clip)
        learned = time.perf_counter()
        lengths = [len(response) for _, response in sequences]
        steps.append(
            {
                "generate": generated - began,
                "learn": learned - generated,
                "total": learned - ended,
                "length": sum(lengths) / len(lengths),
            }
        )
        ended = learned
    return HOW, steps[1:]


def generate(llm: LLM, prompts: list[Prompt], sampling: SamplingParams) -> list[Sequence]:
    requests = [{"prompt_token_ids": prompt.token_ids.tolist()} for prompt in prompts]
    outputs = llm.generate(requests, sampling, use_tqdm=False)
    return [
        (request["prompt_token_ids"], list(sample.token_ids))
        for request, output in zip(requests, outputs, strict=True)
        for sample in output.outputs
    ]


def learn(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    sequences: list[Sequence],
    tokens_per_micro_batch: int,
    grad_clip: float,
) -> None:
    """One step towards higher likelihood of all responses: the computation of a policy gradient with advantages 1."""
    import torch

    response_tokens = sum(len(response) for _, response in sequences)
    for micro in micro_batches(sequences, tokens_per_micro_batch):
        longest = max(len(prompt) + len(response) for prompt, response in micro)
        # Padding stands on the right, where causal attention lets no real token see it.
        ids = torch.zeros(len(micro), longest, dtype=torch.int64)
        sampled = torch.zeros(len(micro), longest, dtype=torch.bool)
        for i, (prompt, response) in enumerate(micro):
            ids[i, : len(prompt) + len(response)] = torch.tensor(prompt + response)
            sampled[i, len(prompt) : len(prompt) + len(response)] = True
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[:, :-1][sampled[:, 1:]])
        logp = torch.log_softmax(logits.float(), -1).gather(-1, ids[sampled].unsqueeze(-1))
        (-logp.sum() / response_tokens).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    optimizer.step()
    optimizer.zero_grad()


def micro_batches(sequences: list[Sequence], tokens: int) -> list[list[Sequence]]:
    """Sequences of like length together, as many as fit in `tokens` when padded."""
    cut: list[list[Sequence]] = []
    for sequence in sorted(sequences, key=lambda s: len(s[0]) + len(s[1])):
        length = len(sequence[0]) + len(sequence[1])
        if not cut or (len(cut[-1]) + 1) * length > tokens:
            cut.append([])
        cut[-1].append(sequence)
    return cut


if __name__ == "__main__":
    run_side("floor", Path(sys.argv[1]), measure)
