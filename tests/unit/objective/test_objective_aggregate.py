"""The loss of a step does not depend on how its batch was cut (methods.md, T9)."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_cases import gradient

from rlpost import config
from rlpost.meter import Meter
from rlpost.objective import Denominators, LossInputs, Objective, TermInputs, token_weights

MODES = ["seq_mean_token_mean", "token_mean", "seq_mean_token_sum_norm", "seq_mean_token_sum"]
LENGTHS = [5, 1, 0, 9, 3, 3, 7, 2, 0, 4]  # two sequences have nothing to learn from
MAX_TOKENS = 12
STEP = Denominators(sequences=8, tokens=34, max_tokens=MAX_TOKENS)

_generator = torch.Generator().manual_seed(0)
FEATURES = torch.randn(len(LENGTHS), MAX_TOKENS, 3, generator=_generator, dtype=torch.float64)
ADVANTAGES = torch.randn(len(LENGTHS), generator=_generator, dtype=torch.float64)
THETA = torch.randn(3, generator=_generator, dtype=torch.float64)


def logp_of(theta, rows):
    return torch.nn.functional.logsigmoid(FEATURES[rows] @ theta)


def written_out(mode, losses):
    """The four modes as in the papers, over a list of the (|y|,) losses of the sequences that have any."""
    if mode == "seq_mean_token_mean":
        return torch.stack([x.mean() for x in losses]).mean()
    if mode == "token_mean":
        return torch.cat(losses).mean()
    if mode == "seq_mean_token_sum_norm":
        return torch.cat(losses).sum() / (len(losses) * MAX_TOKENS)
    return torch.stack([x.sum() for x in losses]).mean()


@functools.cache
def objective(mode):
    return Objective(
        config.Objective(
            aggregation=mode,
            regularizers=[config.Regularizer(divergence="k3", coef=0.3)],
        )
    )


def micro_batch(theta, rows):
    """The rows as a rank gets them, padded to the longest of them."""
    width = max(1, *(LENGTHS[i] for i in rows))
    mask = torch.arange(width)[None] < torch.tensor([LENGTHS[i] for i in rows])[:, None]
    logp, old, reference = (logp_of(t, rows)[:, :width] for t in (theta, THETA + 0.05, THETA - 0.2))
    return TermInputs(
        logp=logp,
        old_logp=old,
        behavior_logp=old,
        anchors={"frozen": reference},
        advantages=ADVANTAGES[rows][:, None].expand_as(old),
        weights=torch.ones_like(old),
        mask=mask,
        entropy=-logp.detach(),
        group=torch.tensor(rows),
    )


POOLS = {"policy_loss": STEP, "on_policy": STEP}
COEFS = {"k3": 0.3}


@functools.cache
def whole(mode):
    """`step` over one micro-batch of everything."""
    return step(mode, [list(range(len(LENGTHS)))])


def step(mode, split):
    """Gradient and merged metrics of one optimizer step over a list of micro-batches, on however many ranks."""
    total, meters = torch.zeros_like(THETA), []
    for rows in split:
        theta = THETA.clone().requires_grad_()
        terms = micro_batch(theta, rows)
        on_policy = torch.zeros(len(rows), dtype=torch.int64)
        loss, meter = objective(mode).loss(LossInputs(terms, on_policy, coefs=COEFS), POOLS)
        total += gradient(loss, theta)
        meters.append(meter)
    return total, Meter.merge(meters).values()


@st.composite
def splits(draw):
    order = draw(st.permutations(range(len(LENGTHS))))
    cuts = sorted(draw(st.sets(st.integers(1, len(LENGTHS) - 1))))
    return [order[a:b] for a, b in zip([0, *cuts], [*cuts, len(LENGTHS)], strict=True)]


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(split=splits())
def test_any_split_into_micro_batches_and_ranks_gives_the_same_gradient_and_metrics(mode, split):
    expected, metrics = whole(mode)
    found, merged = step(mode, split)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert merged == pytest.approx(metrics, abs=1e-12)
    assert {"loss", "policy_loss", "kl/k3", "clamp/k3", "clip/low", "clip/high", "entropy", "ratio/max"} <= set(merged)


@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_is_that_of_the_objective_as_the_paper_writes_it(mode):
    theta = THETA.clone().requires_grad_()
    losses = []
    for i, length in enumerate(LENGTHS):
        if length:
            logp, old, reference = (logp_of(t, [i])[0, :length] for t in (theta, THETA + 0.05, THETA - 0.2))
            ratio, d = (logp - old).exp(), logp - reference
            a = ADVANTAGES[i]
            losses.append(-torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a) + 0.3 * ((-d).exp() - 1 + d))
    written = written_out(mode, losses)
    found, metrics = whole(mode)
    torch.testing.assert_close(found, gradient(written, theta), rtol=0, atol=1e-12)
    assert metrics["loss"] == pytest.approx(written.item(), abs=1e-12)


@pytest.mark.parametrize(
    ("mode", "weights"),
    [
        ("seq_mean_token_mean", [[1 / 4, 1 / 4], [0, 0], [1 / 2, 0]]),
        ("token_mean", [[1 / 3, 1 / 3], [0, 0], [1 / 3, 0]]),
        ("seq_mean_token_sum_norm", [[1 / 10, 1 / 10], [0, 0], [1 / 10, 0]]),
        ("seq_mean_token_sum", [[1 / 2, 1 / 2], [0, 0], [1 / 2, 0]]),
    ],
)
def test_a_sequence_without_tokens_weighs_nothing_and_the_others_as_documented(mode, weights):
    mask = torch.tensor([[True, True], [False, False], [True, False]])
    found = token_weights(mask, mode, Denominators(sequences=2, tokens=3, max_tokens=5))
    torch.testing.assert_close(found, torch.tensor(weights, dtype=torch.float64), rtol=0, atol=1e-15)


@pytest.mark.parametrize("mode", MODES)
def test_a_step_without_a_single_token_weighs_nothing_instead_of_dividing_by_zero(mode):
    mask = torch.zeros(2, 3, dtype=torch.bool)
    assert not token_weights(mask, mode, Denominators(sequences=0, tokens=0, max_tokens=5)).any()


@pytest.mark.parametrize("step_size", [{"sequences": 1, "tokens": 4}, {"sequences": 2, "tokens": 3}])
def test_denominators_smaller_than_the_micro_batch_itself_are_refused(step_size):
    with pytest.raises(ValueError, match="counted over all micro-batches and ranks"):
        token_weights(torch.ones(2, 2, dtype=torch.bool), "token_mean", Denominators(**step_size, max_tokens=5))
