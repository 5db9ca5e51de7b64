"""The learner's log-probs are those of the plain model, however sequences are laid out and logits are chunked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from benchmarks.families import head as difference_of_heads
from benchmarks.small_models import small_model
from rlpost.learner.batch import Batch, make_grid, plan
from rlpost.learner.logprobs import Against, LogProbs, Policy, TokenLogProbs


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
        logp = policy(grid.input_ids, grid.position_ids, grid.predictors, grid.targets, temperature).logp
        rows = grid.spread(logp)
        for b, i in enumerate(micro.sequences):
            torch.testing.assert_close(rows[b, : len(expected[i])].double(), expected[i], atol=2e-6, rtol=0)


def test_gradients_do_not_depend_on_layout_or_chunk(model, batch):
    def gradient(layout: str, row: int | None, chunk: int) -> torch.Tensor:
        model.zero_grad()
        policy = Policy(model, chunk)
        for micro in plan(batch.lengths, 1, layout, 64, row)[0]:
            grid = make_grid(batch, micro, pad_id=0)
            logp, entropy, _ = policy(grid.input_ids, grid.position_ids, grid.predictors, grid.targets, 1.0)
            (logp.sum() + 0.1 * entropy.sum()).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    reference = gradient("padded", None, 1000)
    assert reference.abs().max() > 1
    for layout, row, chunk in (("packed", None, 1000), ("packed", 10, 3), ("padded", None, 2)):
        torch.testing.assert_close(gradient(layout, row, chunk), reference, atol=1e-5, rtol=1e-6)


def test_entropy_is_that_of_the_tempered_distribution(model, batch):
    grid = make_grid(batch, plan(batch.lengths, 1, "padded", 200)[0][0], pad_id=0)
    policy = Policy(model, 100)
    entropy = policy(grid.input_ids, grid.position_ids, grid.predictors, grid.targets, 0.5).entropy
    logits = model(input_ids=grid.input_ids, position_ids=grid.position_ids).logits.flatten(0, 1)[grid.predictors]
    expected = torch.distributions.Categorical(logits=logits / 0.5).entropy()
    torch.testing.assert_close(entropy.double(), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("family", "scaled"),
    [
        ("granite", {"logits_scaling": 8.0}),
        ("cohere", {"logit_scale": 0.25}),
        ("falcon_h1", {"lm_head_multiplier": 0.5}),
        ("hyperclovax", {"logits_scaling": 0.5}),
        ("gemma2", {"final_logit_softcapping": 0.5}),
    ],
)
def test_logits_are_scaled_as_the_model_scales_them(family, scaled):
    assert difference_of_heads(small_model(family, **scaled).eval()) < 1e-4


# ------------------------------------------------------------------------------- divergences over the vocabulary


def reverse_kl(logp: torch.Tensor, logq: torch.Tensor) -> torch.Tensor:
    return (logp.exp() * (logp - logq)).sum(-1)


def jensen_shannon(logp: torch.Tensor, logq: torch.Tensor) -> torch.Tensor:
    middle = torch.logaddexp(logp, logq) - np.log(2)
    return 0.5 * ((logp.exp() * (logp - middle)).sum(-1) + (logq.exp() * (logq - middle)).sum(-1))


def forward(policy: Policy, grid, temperature: float = 0.7, full=()) -> LogProbs:
    return policy(grid.input_ids, grid.position_ids, grid.predictors, grid.targets, temperature, full)


@pytest.fixture(scope="module")
def anchor() -> torch.nn.Module:
    """Another model over the same vocabulary, of another width."""
    torch.manual_seed(1)
    config = Qwen2Config(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.3,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float64, attn_implementation="sdpa")


@pytest.fixture
def grid(batch):
    return make_grid(batch, plan(batch.lengths, 1, "padded", 64)[0][0], pad_id=0)


def gradient(model: torch.nn.Module, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_exact_divergences_and_their_gradients_are_those_of_whole_logits(model, anchor, grid):
    weights = torch.linspace(-1, 2, len(grid.targets), dtype=torch.float64)
    temperature = 0.7

    def whole(m: torch.nn.Module) -> torch.Tensor:
        logits = m(input_ids=grid.input_ids, position_ids=grid.position_ids).logits
        return torch.log_softmax(logits.flatten(0, 1)[grid.predictors] / temperature, -1)

    expected = [f(whole(model), whole(anchor).detach()) for f in (reverse_kl, jensen_shannon)]
    reference = gradient(model, (weights * (expected[0] - 3 * expected[1])).sum())
    assert min(float(e.detach().min()) for e in expected) > 0.01
    assert reference.abs().max() > 0.1

    plain = forward(Policy(model, 1000), grid)
    for chunk in (1, 4, 1000):
        policy, frozen = Policy(model, chunk), Policy(anchor, 3)
        hidden = frozen.hidden(grid.input_ids, grid.position_ids, grid.predictors).detach()
        full = [Against(hidden, frozen.logprobs, f) for f in (reverse_kl, jensen_shannon)]
        out = forward(policy, grid, temperature, full)
        for found, value in zip(out.full, expected, strict=True):
            torch.testing.assert_close(found.double(), value, atol=2e-6, rtol=0)
        torch.testing.assert_close(out.logp, plain.logp)
        torch.testing.assert_close(out.entropy, plain.entropy)
        anchor.zero_grad()
        ours = gradient(model, (weights * (out.full[0] - 3 * out.full[1])).sum())
        torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-5)
        assert all(p.grad is None for p in anchor.parameters())


def test_without_a_divergence_there_is_none(model, grid):
    out = forward(Policy(model, 4), grid)
    assert out.full == ()
    logp, entropy, full = out
    assert logp is out.logp
    assert entropy is out.entropy
    assert full == ()


def test_the_policy_does_not_diverge_from_itself(model, grid):
    policy = Policy(model, 4)
    hidden = policy.hidden(grid.input_ids, grid.position_ids, grid.predictors).detach()
    (found,) = forward(policy, grid, full=[Against(hidden, policy.logprobs, reverse_kl)]).full
    assert torch.equal(found, torch.zeros_like(found))
    assert gradient(model, found.sum()).abs().max() < 1e-5


@pytest.mark.parametrize("ours", [None, 5.0])
@pytest.mark.parametrize("theirs", [None, 2.0])
def test_policy_and_anchor_each_have_their_own_softcap_and_bias(ours, theirs):
    torch.manual_seed(2)
    heads = [torch.nn.Linear(6, 11, dtype=torch.float64) for _ in range(2)]
    hidden = [4 * torch.randn(9, 6, dtype=torch.float64) for _ in range(2)]
    targets = torch.arange(9)
    against = Against(hidden[1], TokenLogProbs(heads[1], 2, theirs), reverse_kl)
    (found,) = TokenLogProbs(heads[0], 2, ours)(hidden[0], targets, 0.5, [against]).full

    def log_softmax(i: int, cap: float | None) -> torch.Tensor:
        logits = heads[i](hidden[i])
        return torch.log_softmax((logits if cap is None else cap * torch.tanh(logits / cap)) / 0.5, -1)

    torch.testing.assert_close(
        found.double(), reverse_kl(log_softmax(0, ours), log_softmax(1, theirs)), atol=1e-5, rtol=1e-5
    )


def test_no_more_logits_exist_at_once_than_those_of_a_chunk():
    head = torch.nn.Linear(6, 50)
    hidden = torch.randn(40, 6, requires_grad=True)
    seen = []

    def watched(logp: torch.Tensor, logq: torch.Tensor) -> torch.Tensor:
        seen.append((tuple(logp.shape), tuple(logq.shape)))
        assert not logq.requires_grad
        return reverse_kl(logp, logq)

    kept = []
    against = Against(torch.randn(40, 6), TokenLogProbs(torch.nn.Linear(6, 50), 1), watched)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        out = TokenLogProbs(head, 8)(hidden, torch.zeros(40, dtype=torch.int64), 1.0, [against])
    assert seen == [((8, 50), (8, 50))] * 5
    assert not [shape for shape in kept if shape.numel() >= 8 * 50 and shape != head.weight.shape], "nothing is kept"
    out.full[0].sum().backward()
    assert len(seen) == 10, "the backward pass makes them again"


def test_anchors_that_do_not_fit_are_refused():
    head = TokenLogProbs(torch.nn.Linear(6, 11), 4)
    hidden, targets = torch.randn(9, 6), torch.zeros(9, dtype=torch.int64)
    wide = TokenLogProbs(torch.nn.Linear(6, 12), 4)
    with pytest.raises(ValueError, match="11 logits a token and the anchor 12"):
        head(hidden, targets, 1.0, [Against(hidden, wide, reverse_kl)])
    with pytest.raises(ValueError, match="the anchor has 8 hidden states, the policy 9"):
        head(hidden, targets, 1.0, [Against(hidden[:8], head, reverse_kl)])
    with pytest.raises(ValueError, match=r"must be \(4,\), one number a token, got \(\)"):
        head(hidden, targets, 1.0, [Against(hidden, head, lambda p, q: reverse_kl(p, q).mean())])


@pytest.mark.parametrize("bias", [False, True])
def test_a_head_in_float32_rounds_no_logits_and_its_gradients_are_those_of_the_weights_dtype(bias):
    torch.manual_seed(0)
    head = torch.nn.Linear(64, 50, bias=bias).bfloat16()
    head.weight.data *= 20  # logits of up to 30, which bfloat16 rounds by up to 0.06
    hidden, targets = torch.randn(23, 64).bfloat16(), torch.randint(0, 50, (23,))
    exact = torch.nn.Linear(64, 50, bias=bias).double()
    exact.load_state_dict({name: p.double() for name, p in head.state_dict().items()})

    def scored(asked: torch.nn.Module, wide: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
        inputs = hidden.to(asked.weight.dtype, copy=True).requires_grad_()
        logp = TokenLogProbs(asked, chunk_tokens=10, wide=wide)(inputs, targets, 1.0).logp
        logp.sum().backward()
        return logp.detach().double(), [inputs.grad, *(p.grad for p in asked.parameters())]

    expected, true = scored(exact, wide=False)
    rounded, _ = scored(head, wide=False)
    head.zero_grad()
    found, gradients = scored(head, wide=True)
    assert (found - expected).abs().max() < 1e-4
    assert (rounded - expected).abs().max() > 1e-2
    for ours, theirs in zip(gradients, true, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.double() - theirs).norm() < 0.01 * theirs.norm()


@pytest.mark.parametrize(("said", "wide"), [(None, False), ("model", False), ("float32", True)])
def test_the_head_is_of_the_dtype_that_the_configuration_says_to_engines(model, said, wide, monkeypatch):
    monkeypatch.setattr(model.config, "head_dtype", said, raising=False)
    assert Policy(model, 10).logprobs.wide == wide
