"""The learner's log-probs are those of the plain model, however sequences are laid out and logits are chunked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from rlpost.learner.batch import Batch, make_grid, plan
from rlpost.learner.logprobs import Policy


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float64, attn_implementation="sdpa")


@pytest.fixture(scope="module")
def batch() -> Batch:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 40, n).astype(np.int32) for n in (3, 1, 5, 2, 4)]
    responses = [rng.integers(0, 40, n).astype(np.int32) for n in (4, 6, 1, 3, 2)]
    return Batch.from_examples(prompts, responses)


def plain(model: torch.nn.Module, batch: Batch, temperature: float) -> list[torch.Tensor]:
    """One sequence at a time, whole logits."""
    found = []
    for i in range(len(batch)):
        one = batch.select([i])
        tokens = torch.from_numpy(one.tokens.astype(np.int64))[None]
        logp = torch.log_softmax(model(tokens).logits[0, :-1] / temperature, -1).gather(-1, tokens[0, 1:, None])[:, 0]
        found.append(logp[int(one.prompt_lengths[0]) - 1 :])
    return found


@pytest.mark.parametrize(("layout", "budget", "row"), [("padded", 64, None), ("packed", 64, None), ("packed", 40, 10)])
@pytest.mark.parametrize("chunk", [1, 4, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_every_layout_and_chunk_gives_the_log_probs_of_the_plain_model(
    model, batch, layout, budget, row, chunk, temperature
):
    policy, expected = Policy(model, chunk), plain(model, batch, temperature)
    for micro in plan(batch.lengths, 1, layout, budget, row)[0]:
        grid = make_grid(batch, micro, pad_id=0)
        logp, _ = policy(grid.input_ids, grid.position_ids, grid.predictors, grid.targets, temperature)
        rows = grid.spread(logp)
        for b, i in enumerate(micro.sequences):
            torch.testing.assert_close(rows[b, : len(expected[i])].double(), expected[i], atol=2e-6, rtol=0)


def test_gradients_do_not_depend_on_layout_or_chunk(model, batch):
    def gradient(layout: str, row: int | None, chunk: int) -> torch.Tensor:
        model.zero_grad()
        policy = Policy(model, chunk)
        for micro in plan(batch.lengths, 1, layout, 64, row)[0]:
            grid = make_grid(batch, micro, pad_id=0)
            logp, entropy = policy(grid.input_ids, grid.position_ids, grid.predictors, grid.targets, 1.0)
            (logp.sum() + 0.1 * entropy.sum()).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    reference = gradient("padded", None, 1000)
    assert reference.abs().max() > 1
    for layout, row, chunk in (("packed", None, 1000), ("packed", 10, 3), ("padded", None, 2)):
        torch.testing.assert_close(gradient(layout, row, chunk), reference, atol=1e-5, rtol=1e-6)


def test_entropy_is_that_of_the_tempered_distribution(model, batch):
    grid = make_grid(batch, plan(batch.lengths, 1, "padded", 200)[0][0], pad_id=0)
    policy = Policy(model, 100)
    _, entropy = policy(grid.input_ids, grid.position_ids, grid.predictors, grid.targets, 0.5)
    logits = model(input_ids=grid.input_ids, position_ids=grid.position_ids).logits.flatten(0, 1)[grid.predictors]
    expected = torch.distributions.Categorical(logits=logits / 0.5).entropy()
    torch.testing.assert_close(entropy.double(), expected, atol=2e-6, rtol=0)


def test_a_model_whose_logits_would_be_scaled_otherwise_is_refused(model):
    model.config.logits_scaling = 8.0
    with pytest.raises(ValueError, match="logits_scaling"):
        Policy(model, 10)
    del model.config.logits_scaling
