"""Storages are counted once, as long as they are there, and a pass without numbers counts what one with numbers does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rlpost.learner.logprobs import Policy
from rlpost.memory.activations import Work, work_of
from rlpost.memory.counted import Storages
from tests import moe_models, tiny_models

DENSE = {
    "llama": {**tiny_models.LLAMA, "intermediate_size": 160},
    **{
        kind: {**tiny_models.LLAMA, "model_type": kind, "head_dim": 32, "intermediate_size": 160}
        for kind in ("qwen2", "qwen3", "gemma2", "mistral", "olmo2")
    },
}
FAMILIES = {**DENSE, **moe_models.FAMILIES}
VOCABULARY = 400
ROWS, LENGTH, CHUNK = 2, 96, 48


def network(family: str, device: str, **changes: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {**FAMILIES[family], "num_hidden_layers": 4, **changes}
    config = AutoConfig.for_model(**sizes, vocab_size=VOCABULARY, pad_token_id=0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="eager").train()


def test_a_view_counts_once_and_what_is_gone_no_more():
    there = torch.zeros(100)
    with Storages("cpu", [there]) as memory:
        made = torch.ones(10) + 1
        assert (memory.held, memory.peak) == (40, 80), "the ones are gone, and were there beside their sum"
        views = [made.view(2, 5), made[3:], there[:5]]
        assert memory.held == 40
        del made
        assert memory.held == 40, "views hold it"
        del views
        assert memory.held == 0


def test_the_meta_device_counts_as_a_real_one():
    def work(device: str) -> tuple[int, int]:
        x = torch.ones(64, 32, device=device, requires_grad=True)
        with Storages(device, [x]) as memory:
            (x @ x.T).softmax(-1).log().sum().backward()
        return memory.held, memory.peak

    assert work("meta") == work("cpu")


def with_numbers(model: Any, checkpointing: bool) -> Work:
    """As `work_of`, of the same pass on real tensors."""
    if checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    policy = Policy(model, CHUNK)
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    ids = torch.arange(ROWS * LENGTH).reshape(ROWS, LENGTH) % VOCABULARY
    positions = torch.arange(LENGTH).expand(ROWS, LENGTH).contiguous()
    at = torch.cat([row * LENGTH + torch.arange(LENGTH - 1) for row in range(ROWS)])
    targets = ids.flatten()[at + 1]
    with Storages("cpu", [*model.parameters(), *model.buffers(), ids, positions, at, targets]) as memory:
        head = 0

        def below(grad: torch.Tensor) -> None:
            nonlocal head
            head, memory.peak = memory.peak, memory.held

        hidden = policy.hidden(ids, positions, at)
        kept, memory.peak = memory.held, memory.held
        hidden.register_hook(below)
        out = policy.logprobs(hidden, targets, 1.0)
        del hidden
        loss = out.logp.sum() + out.entropy.sum()
        del out
        loss.backward()
    return Work(kept, head - kept, memory.peak - kept)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "made again"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_pass_holds_is_known_without_its_numbers(family: str, checkpointing: bool):
    real = with_numbers(network(family, "cpu"), checkpointing)
    counted = work_of(network(family, "meta"), ROWS, LENGTH, CHUNK, "eager", checkpointing)
    assert counted.kept == pytest.approx(real.kept, rel=0.1)
    for part in ("head", "layers"):
        assert counted.kept + getattr(counted, part) == pytest.approx(real.kept + getattr(real, part), rel=0.1), part
