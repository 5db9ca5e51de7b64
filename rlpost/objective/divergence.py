"""Role Regularizer: a divergence to an anchor, estimated on the sampled tokens, or an entropy.

An entry is a function `(batch: TermInputs, anchor: Tensor, **params) -> TermOutputs`, with `anchor` the (B, T)
log-probs of the sampled tokens under the anchor policy. It sees no advantages. Its metrics are named by family; the
objective appends which regularizer it was: `kl/k3`, `divergence/js`, `clamp/k3`.

Traits: `anchored`, true when it is not said; an entry for which it is false is called with None for the anchor.
`sources`, those of `rlpost.config.SOURCES` whose samples it is an expectation over, all when it is not said; over the
whole vocabulary (`form: full`) it is none over samples, and any source will do.

An estimator's value and its gradient are different questions (methods.md, 1.1). With d = log pi - log ref on a token
sampled from pi, k1, k2 and k3 (Schulman, "Approximating KL divergence", 2020) all have a value near KL(pi || ref), k1
and k3 without bias; but as a *loss*, where the sampling itself is not differentiated, their expected gradients are
those of three different objectives. On sequences that holds per token, with the distribution of prefixes held fixed:
it is the gradient of sum_t E_prefix[KL_t], not of the KL of whole sequences, which also moves the prefixes.

**Samples of another policy** (`is_weight`). After the first optimizer step of a batch its samples are of pi_old, not
of pi, and all the above is biased. With w = pi / pi_old of the token the expectation is one over pi again: `detached`,
w is a constant, and gradients are those that the same estimator has on samples of pi; `differentiable`, w is
differentiated as well, and the gradient is that of what the *value* estimates. On sequences prefixes remain those of
pi_old. Values that are reported have w in them. pi_old is the learner's policy at the start of the step, so w says
nothing of samples that were stale by then, and is 1 in a batch's first step; with `proximal: behavior` the batch has mu
in its place, w is pi / mu, and stale samples are corrected too.

**In the reward** (`TermOutputs.penalty`): with minus the penalty as its reward, a token's REINFORCE gradient is that
of the divergence for k1, k1_st, the f-divergences, entropy and split_kl. Where a response is credited with the sum of
its rewards, what counts is the divergence of whole sequences, and the sum of the tokens' penalties has its gradient
for k1, k1_st, reverse_kl, entropy and split_kl; an f-divergence with `level: sequence` has it for every f. The
penalties of k2, k3 and k3_st are their values, which have the gradient of no KL there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from rlpost.objective.f_divergence import FDivergence, f_divergence
from rlpost.objective.ratio import clamped_log_ratio
from rlpost.objective.types import TermInputs, TermOutputs
from rlpost.registry import Registry

Divergence = Callable[[TermInputs, Tensor | None], TermOutputs]
DIVERGENCES: Registry[Divergence] = Registry("divergence", inputs=("batch", "anchor"))

Form = Literal["sampled", "generator"]
Level = Literal["token", "sequence"]
Weight = Literal["none", "detached", "differentiable"]
Constant = Literal["none", "detached"]

OF_POLICY = ("on_policy",)
OF_POLICY_OR_ANCHOR = ("on_policy", "rehearsal")


@DIVERGENCES.register("k1", sources=OF_POLICY)
def k1(batch: TermInputs, anchor: Tensor, *, is_weight: Weight = "none") -> TermOutputs:
    """d. Value: KL(pi || ref), unbiased, of either sign.

    Gradient in the loss: grad log pi, which has expectation **zero** under pi, with `detached` weights too. It
    regularizes nothing and adds noise; k1 belongs in the reward, where its gradient is that of the **reverse**
    KL(pi || ref). With `differentiable` weights it is that in the loss as well.
    """
    d, clamped = clamped_log_ratio(batch.logp, anchor)
    return _kl(batch, d, clamped, is_weight)


@DIVERGENCES.register("k2", sources=OF_POLICY)
def k2(batch: TermInputs, anchor: Tensor, *, is_weight: Weight = "none") -> TermOutputs:
    """d^2 / 2. Value: biased, near KL(pi || ref) when the two are close.

    Gradient in the loss: d grad log pi, in expectation under pi exactly that of the **reverse** KL(pi || ref); with
    `detached` weights on samples of pi_old too. With `differentiable` ones it is that of E_pi[d^2 / 2], of no KL.
    """
    d, clamped = clamped_log_ratio(batch.logp, anchor)
    return _kl(batch, d.square() / 2, clamped, is_weight)


@DIVERGENCES.register("k3", sources=OF_POLICY)
def k3(
    batch: TermInputs,
    anchor: Tensor,
    *,
    is_weight: Weight = "none",
    max_value: Annotated[float, Field(gt=0)] | None = None,
) -> TermOutputs:
    """exp(-d) - 1 + d. Value: KL(pi || ref), unbiased, never negative. GRPO's choice (arXiv 2402.03300, eq. 4).

    Gradient in the loss: (1 - ref / pi) grad log pi, in expectation under pi exactly that of the **forward**
    KL(ref || pi), not of the KL its value estimates. Off policy (samples from pi_old != pi) it is neither without
    weights; still the forward one with `detached` weights; with `differentiable` ones exactly the **reverse** one, of
    which it is an estimate (RPG, arXiv 2505.17508, app. D; DeepSeek-V3.2).

    Args:
        max_value: clamp the value from above, as other systems do with 10. There its gradient is zero, which is where
            the divergence is largest; those tokens are counted in the `clamp` metric. None: no clamp.
    """
    d, clamped = clamped_log_ratio(batch.logp, anchor)
    value = torch.expm1(-d) + d
    if max_value is not None:
        clamped = clamped | (value.detach() > max_value)
        value = value.clamp(max=max_value)
    return _kl(batch, value, clamped, is_weight)


@DIVERGENCES.register("k1_st", sources=OF_POLICY)
def k1_st(batch: TermInputs, anchor: Tensor, *, is_weight: Constant = "none") -> TermOutputs:
    """The value of k1 with the gradient of k2: unbiased and exact for the reverse KL(pi || ref). In verl: `k1+`.

    Weights can only be constants: differentiated, they would add the gradient of the value to that of k2, twice the
    reverse KL's.
    """
    d, clamped = clamped_log_ratio(batch.logp, anchor)
    return _kl(batch, _straight_through(d, d), clamped, is_weight)


@DIVERGENCES.register("k3_st", sources=OF_POLICY)
def k3_st(batch: TermInputs, anchor: Tensor, *, is_weight: Constant = "none") -> TermOutputs:
    """The value of k3 with the gradient of k2: unbiased and exact for the reverse KL(pi || ref). In verl: `k3+`.

    Weights can only be constants, as in `k1_st`.
    """
    d, clamped = clamped_log_ratio(batch.logp, anchor)
    return _kl(batch, _straight_through(torch.expm1(-d) + d, d), clamped, is_weight)


@DIVERGENCES.register("reverse_kl", sources=OF_POLICY_OR_ANCHOR)
def reverse_kl(
    batch: TermInputs, anchor: Tensor, *, form: Form = "sampled", level: Level = "token", is_weight: Weight = "none"
) -> TermOutputs:
    """KL(pi || anchor): f = t log t - t + 1, f' = log t. Parameters and metrics as in `f_estimate`."""
    return f_estimate(f_divergence("reverse_kl"), batch, anchor, form, level, is_weight)


@DIVERGENCES.register("forward_kl", sources=OF_POLICY_OR_ANCHOR)
def forward_kl(
    batch: TermInputs, anchor: Tensor, *, form: Form = "sampled", level: Level = "token", is_weight: Weight = "none"
) -> TermOutputs:
    """KL(anchor || pi): f = t - 1 - log t, f' = 1 - 1/t. Parameters and metrics as in `f_estimate`.

    With form generator it is DPH-F of DPH-RL (arXiv 2509.07430): NLL of the stored samples with a control variate.
    """
    return f_estimate(f_divergence("forward_kl"), batch, anchor, form, level, is_weight)


@DIVERGENCES.register("js", sources=OF_POLICY_OR_ANCHOR)
def js(
    batch: TermInputs,
    anchor: Tensor,
    *,
    form: Form = "sampled",
    level: Level = "token",
    is_weight: Weight = "none",
    standard: bool = False,
) -> TermOutputs:
    """f = t log t - (t + 1) log((t + 1) / 2), f' = log(2t / (t + 1)): **twice** the Jensen-Shannon divergence.

    So it is in DPH-JS (arXiv 2509.07430) and in other published code. It is bounded: no barrier, unlike forward KL.
    Parameters and metrics as in `f_estimate`.

    Args:
        standard: the Jensen-Shannon divergence itself, half of that.
    """
    return f_estimate(f_divergence("js", standard=standard), batch, anchor, form, level, is_weight)


@DIVERGENCES.register("alpha", sources=OF_POLICY_OR_ANCHOR)
def alpha_divergence(
    batch: TermInputs,
    anchor: Tensor,
    *,
    form: Form = "sampled",
    level: Level = "token",
    is_weight: Weight = "none",
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.2,
) -> TermOutputs:
    """f = (t^(1 - a) - (1 - a) t - a) / (a (a - 1)), f' = (1 - t^-a) / a. Parameters and metrics as in `f_estimate`.

    Args:
        alpha: a, in the convention of DPH-RL and f-DPO: reverse KL towards 0, forward KL towards 1.
    """
    return f_estimate(f_divergence("alpha", alpha), batch, anchor, form, level, is_weight)


@DIVERGENCES.register("tv", sources=OF_POLICY_OR_ANCHOR)
def tv(
    batch: TermInputs, anchor: Tensor, *, form: Form = "sampled", level: Level = "token", is_weight: Weight = "none"
) -> TermOutputs:
    """Total variation: f = |t - 1| / 2, f' = sign(t - 1) / 2. Parameters and metrics as in `f_estimate`."""
    return f_estimate(f_divergence("tv"), batch, anchor, form, level, is_weight)


@DIVERGENCES.register("pearson", sources=OF_POLICY_OR_ANCHOR)
def pearson(
    batch: TermInputs, anchor: Tensor, *, form: Form = "sampled", level: Level = "token", is_weight: Weight = "none"
) -> TermOutputs:
    """chi^2(pi || anchor): f = (t - 1)^2, f' = 2 (t - 1). Parameters and metrics as in `f_estimate`."""
    return f_estimate(f_divergence("pearson"), batch, anchor, form, level, is_weight)


@DIVERGENCES.register("neyman", sources=OF_POLICY_OR_ANCHOR)
def neyman(
    batch: TermInputs, anchor: Tensor, *, form: Form = "sampled", level: Level = "token", is_weight: Weight = "none"
) -> TermOutputs:
    """chi^2(anchor || pi): f = (1 - t)^2 / t, f' = 1 - 1/t^2. Parameters and metrics as in `f_estimate`."""
    return f_estimate(f_divergence("neyman"), batch, anchor, form, level, is_weight)


@DIVERGENCES.register("hellinger", sources=OF_POLICY_OR_ANCHOR)
def hellinger(
    batch: TermInputs, anchor: Tensor, *, form: Form = "sampled", level: Level = "token", is_weight: Weight = "none"
) -> TermOutputs:
    """Squared Hellinger: f = (sqrt(t) - 1)^2, f' = 1 - 1/sqrt(t). Parameters and metrics as in `f_estimate`."""
    return f_estimate(f_divergence("hellinger"), batch, anchor, form, level, is_weight)


@DIVERGENCES.register("entropy", anchored=False)
def entropy(batch: TermInputs, anchor: Tensor | None = None) -> TermOutputs:
    """-H(pi) at each token, over the whole vocabulary: a positive coefficient maximises the entropy.

    Gradient in the loss: exact, whatever sampled the prefixes, which are held. In the reward the penalty is log pi, of
    which the expected gradient is that of -H, and summed over a response that of the entropy of whole sequences.
    Compares with no anchor. Reports nothing: the objective reports `entropy` anyway.
    """
    return TermOutputs(-batch.entropy, penalty=batch.logp.detach())


@DIVERGENCES.register("split_kl", sources=OF_POLICY)
def split_kl(
    batch: TermInputs,
    anchor: Tensor,
    *,
    entropy_coef: Annotated[float, Field(ge=0)] = 1.0,
    cross_entropy_coef: Annotated[float, Field(ge=0)] = 1.0,
    is_weight: Constant = "none",
) -> TermOutputs:
    """-a H(pi) + c CE(pi, anchor), CE = -E_pi log anchor: the reverse KL(pi || anchor) in its two parts.

    With a = c = 1 it is the reverse KL; with a < c the entropy counts less, H-DPO's idea (arXiv 2411.07595) in an
    online loss: against a reward r, with coefficient beta, the optimum is pi ~ anchor^(c / a) e^(r / (a beta)). The
    entropy is exact, over the whole vocabulary, and so is its gradient; the gradient of the rest is
    -log anchor grad log pi, exact in expectation under pi, or with `detached` weights, which are on it alone, under
    pi_old. Unlike that of k2 it does not vanish from sample to sample where pi = anchor, only on average.

    Reports `divergence`: a log pi - c log anchor, which estimates the whole without bias; `clamp`, share of tokens
    whose weight was held within ±20 nats, 0 without weights. In the reward the penalty is that same estimate.

    Args:
        entropy_coef: a. cross_entropy_coef: c.
    """
    w, clamped = _importance(batch.logp.detach(), batch.old_logp, is_weight)
    crossed = -cross_entropy_coef * w * anchor
    estimate = entropy_coef * batch.logp.detach() - cross_entropy_coef * anchor
    loss = -entropy_coef * batch.entropy + _with_slope(crossed, crossed, batch.logp)
    return TermOutputs(loss, means={"divergence": w * estimate, "clamp": clamped}, penalty=estimate)


def f_estimate(
    f: FDivergence, batch: TermInputs, anchor: Tensor, form: Form, level: Level, is_weight: Weight
) -> TermOutputs:
    """D_f(pi || anchor) = E_anchor[f(t)], t = pi / anchor, on sampled tokens (methods.md, 1.2).

        form       samples of   value         gradient
        sampled    pi           f(t) / t      f'(t) grad log pi
        generator  anchor       f(t)          t f'(t) grad log pi

    Value and gradient of the loss are both those of D_f in expectation. `f` is the one with f(1) = f'(1) = 0: samples
    on which the two policies agree have neither. `generator` needs stored samples of the anchor and no model of it.

    `level` is what t is of. `token`: each token's own ratio, and the sum over tokens is sum_t E_prefix[D_f(pi_t ||
    anchor_t)], prefixes held and distributed as those sampled. `sequence`: the ratio of the whole row, its unmasked
    tokens, which is the divergence of the distributions of whole sequences; a loss per row, averaged over rows
    whatever the aggregation. Only for KL are the two the same in value (methods.md, 1.3): reverse on samples of pi,
    forward on samples of the anchor. The variance of t grows exponentially with length.

    `is_weight`, with form sampled: samples are of pi_old, and value and gradient are multiplied by w = pi / pi_old, of
    the token or of the row. `detached` and `differentiable` are the same here: w f(t) / t = anchor / pi_old f(t), and
    its derivative is w f'(t).

    log t and log w are held within ±20 nats: beyond, value and gradient stay as they are at the bound, the gradient is
    not zero. The gradient of reverse_kl, js and tv with form sampled needs no such bound on t and has none.

    Reports `divergence`, the value, and `clamp`, share of tokens with a ratio beyond the bound; of a row at each of
    its tokens. `penalty`, with form sampled: f'(t) of each token, or that of the row at its last unmasked token.

    Returns:
        Loss (B, T), or (B,) with level sequence.

    Raises:
        ValueError: weights with form generator, whose samples are not of pi_old.
    """
    if form == "generator" and is_weight != "none":
        raise ValueError(
            f"{f.name}: is_weight: {is_weight} is about samples of an older policy, and form: generator takes samples "
            "of the anchor: leave is_weight out"
        )
    logp, old_logp = batch.logp, batch.old_logp
    if level == "sequence":
        logp, old_logp, anchor = logp.sum(1), old_logp.sum(1), anchor.sum(1)
    held, clamped = clamped_log_ratio(logp.detach(), anchor)
    penalty = None
    if form == "generator":
        value, slope = f.value(held), f.derivative(held) * held.exp()
    else:
        w, overweight = _importance(logp.detach(), old_logp, is_weight)
        derivative = f.derivative(held if f.exponential else logp.detach() - anchor)
        value, slope = w * f.value(held) * (-held).exp(), w * derivative
        clamped = clamped | overweight
        penalty = derivative if level == "token" else _at_last(derivative, batch)
    loss = _with_slope(value, slope, logp)
    if level == "sequence":
        value, clamped = (x[:, None].expand(batch.mask.shape) for x in (value, clamped))
    return TermOutputs(loss, means={"divergence": value, "clamp": clamped}, penalty=penalty)


def _kl(batch: TermInputs, value: Tensor, clamped: Tensor, is_weight: Weight) -> TermOutputs:
    """The outputs of an estimator of a KL from its value on each token, which is still to be weighed."""
    w, overweight = _importance(batch.logp, batch.old_logp, is_weight)
    loss = w * value
    return TermOutputs(loss, means={"kl": loss.detach(), "clamp": clamped | overweight}, penalty=value.detach())


def _importance(logp: Tensor, old_logp: Tensor, is_weight: Weight) -> tuple[Tensor, Tensor]:
    """w = pi / pi_old and where its bound acted, in the shape of the log-probs; ones when there is to be no weight."""
    if is_weight == "none":
        return torch.ones_like(old_logp), torch.zeros_like(old_logp, dtype=torch.bool)
    log_w, clamped = clamped_log_ratio(logp if is_weight == "differentiable" else logp.detach(), old_logp)
    return log_w.exp(), clamped


def _with_slope(value: Tensor, slope: Tensor, logp: Tensor) -> Tensor:
    """`value`, with gradient `slope` grad log pi; both are detached."""
    # The bracket is exactly 0: it carries the slope and leaves the value.
    return value + slope * (logp - logp.detach())


def _straight_through(value: Tensor, d: Tensor) -> Tensor:
    """`value`, with the gradient of d^2 / 2."""
    return _with_slope(value.detach(), d.detach(), d)


def _at_last(values: Tensor, batch: TermInputs) -> Tensor:
    """(B,) as (B, T): at each row's last unmasked token, zeros elsewhere."""
    left = batch.mask.flip(1).cumsum(1).flip(1)
    return torch.where(batch.mask & (left == 1), values[:, None], 0.0)
