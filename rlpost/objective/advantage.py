"""Role AdvantageEstimator: from rewards to credit.

An entry is a function `(batch: CreditInputs, **params) -> Tensor`: (B,) float64, one credit for all tokens of a
sample, or (B, T) float64, one for each token, zeros outside the mask. It sees the whole batch of the step, so that what
it says of a batch is said of all ranks. Traits: `needs`, the optional inputs it reads, or a function of its parameters;
`owns_correction`, its credit has the ratio pi_old / mu in it, which must not be counted a second time.

What is compared is `batch.returns`, the reward with its token rewards. Credit is scaled so that the mean over the
samples of A_i grad log pi(y_i), the gradient with `aggregation: seq_mean_token_sum`, is what an entry's docstring says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from rlpost.objective.f_divergence import f_divergence
from rlpost.objective.ratio import clamped_log_ratio
from rlpost.objective.types import CreditInputs
from rlpost.registry import Registry

AdvantageEstimator = Callable[[CreditInputs], Tensor]
ADVANTAGES: Registry[AdvantageEstimator] = Registry("advantage", inputs=("batch",))

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Ddof = Literal[0, 1]
Mean = Literal["none", "group", "group_loo", "batch"]
Std = Literal["none", "group", "batch", "batch_tokens"]


class GroupStatistics(NamedTuple):
    """Statistics of each sample's group, all (B,) float64.

    Attributes:
        count: samples in the group.
        deviation: value minus the group's mean; exactly 0 in a group of equal values.
        std: of the group; exactly 0 in a group of equal values or of one.
    """

    count: Tensor
    deviation: Tensor
    std: Tensor


def group_statistics(values: Tensor, group: Tensor, *, ddof: int) -> GroupStatistics:
    """What every group-wise normalisation is made of; one group for all samples gives the batch-wise ones.

    Args:
        values: (B,), group: (B,) int64, as in `CreditInputs`.
        ddof: the variance is the sum of squares over `count - ddof`.
    """
    labels, index = torch.unique(group, return_inverse=True)
    values = values.double()
    # Measured from the group's minimum, equal values have deviation 0 to the last bit; from the mean, only nearly.
    infinity = values.new_full((len(labels),), torch.inf)
    shifted = values - infinity.scatter_reduce(0, index, values, "amin")[index]
    count = _group_sum(torch.ones_like(values), group)
    deviation = shifted - _group_sum(shifted, group) / count
    variance = _group_sum(deviation.square(), group) / (count - ddof).clamp(min=1)
    return GroupStatistics(count, deviation, variance.sqrt())


def _group_sum(values: Tensor, group: Tensor) -> Tensor:
    """(B,), at each sample the sum over its group."""
    labels, index = torch.unique(group, return_inverse=True)
    return values.new_zeros(len(labels)).index_add(0, index, values)[index]


def _centred(values: Tensor, group: Tensor, mean: Mean) -> Tensor:
    """(B,) values less a mean; `group_loo` is the mean of the others, and a sample without others gets 0."""
    if mean == "none":
        return values.double()
    statistics = group_statistics(values, torch.zeros_like(group) if mean == "batch" else group, ddof=0)
    if mean == "group_loo":  # r_i - mean_{j != i} r_j = G / (G - 1) (r_i - mean)
        return statistics.deviation * statistics.count / (statistics.count - 1).clamp(min=1)
    return statistics.deviation


def _whitened(values: Tensor, mask: Tensor, *, ddof: int, eps: float) -> Tensor:
    """(B, T) values with mean 0 and standard deviation 1 over the tokens of the mask, and zeros outside it."""
    if not mask.any():
        return torch.zeros_like(values)
    shifted = values[mask] - values[mask].min()  # equal values whiten to exactly 0
    deviation = shifted - shifted.mean()
    std = (deviation.square().sum() / max(len(deviation) - ddof, 1)).sqrt()
    return torch.zeros_like(values).masked_scatter(mask, deviation / (std + eps))


@ADVANTAGES.register("normalized")
def normalized(
    batch: CreditInputs,
    *,
    mean: Mean = "group",
    std: Std = "group",
    ddof: Ddof = 1,
    eps: Positive = 1e-6,
    scale: Literal["one", "age"] = "one",
) -> Tensor:
    """A_i = alpha (r_i - mean) / (std + eps): what the group-wise estimators are choices of.

    GRPO is mean group, std group; Dr.GRPO mean group, std none; RLOO mean group_loo, std none; REINFORCE++-baseline
    mean group, std batch_tokens; GPG mean group, std none, scale age. CISPO as in ScaleRL (arXiv 2510.13786) is mean
    group, std batch.

    Args:
        mean: what is taken off: nothing; the mean of the group; of the others in the group; of the batch. A sample
            that is alone in its group gets 0 from the second and the third.
        std: what it is divided by: nothing; the standard deviation of the group; that of the centred rewards over all
            samples of the batch; or, `batch_tokens`, whitening over all tokens of the batch: a sample counts as often
            as it has tokens, and the mean over tokens, which differing lengths leave, is taken off too.
        ddof: 1, the sample standard deviation, as in torch; 0, the population's, as in numpy.
        eps: added to the standard deviation.
        scale: `age`, alpha = groups / groups with differing rewards (see `gpg`); `one`, alpha = 1.

    Returns:
        (B,), or (B, T) with `std: batch_tokens`. With a group-wise mean, exactly 0 in a group of equal rewards, but for
        what whitening over tokens takes off.
    """
    credit = _centred(batch.returns, batch.group, mean)
    if std == "group":
        credit = credit / (group_statistics(batch.returns, batch.group, ddof=ddof).std + eps)
    elif std == "batch":
        credit = credit / (group_statistics(credit, torch.zeros_like(batch.group), ddof=ddof).std + eps)
    elif std == "batch_tokens":
        credit = _whitened(batch.per_token(credit), batch.mask, ddof=ddof, eps=eps)
    return credit if scale == "one" else _age(batch, 0.0) * credit


@ADVANTAGES.register("grpo")
def grpo(batch: CreditInputs, *, normalize_std: bool = True, eps: Positive = 1e-6, ddof: Ddof = 1) -> Tensor:
    """A_i = (r_i - mean_g) / (std_g + eps) (GRPO, arXiv 2402.03300, 4.1.1).

    A group of equal rewards, or of one sample, gets exactly 0. The division keeps the expected direction of each
    prompt with rewards 0 and 1, but weighs prompts by their difficulty, so the direction of several is not the
    policy gradient's.

    Args:
        normalize_std: divide by the standard deviation.
        eps, ddof: as in `normalized`.
    """
    return normalized(batch, mean="group", std="group" if normalize_std else "none", eps=eps, ddof=ddof)


@ADVANTAGES.register("dr_grpo")
def dr_grpo(batch: CreditInputs) -> Tensor:
    """A_i = r_i - mean_g (Dr.GRPO, arXiv 2503.20783): in expectation (G - 1) / G times the policy gradient.

    Its other half is the aggregation: seq_mean_token_sum_norm.
    """
    return normalized(batch, mean="group", std="none")


@ADVANTAGES.register("rloo")
def rloo(batch: CreditInputs) -> Tensor:
    """A_i = r_i - mean_{j != i} r_j = G / (G - 1) (r_i - mean_g) (RLOO, arXiv 2402.14740): the policy gradient, unbiased.

    A sample that is alone in its group gets 0.
    """
    return normalized(batch, mean="group_loo", std="none")


@ADVANTAGES.register("reinforce_pp")
def reinforce_pp(batch: CreditInputs, *, gamma: Fraction = 1.0, eps: Positive = 1e-6, ddof: Ddof = 1) -> Tensor:
    """Returns to go, whitened over all tokens of the batch (REINFORCE++, arXiv 2501.03262).

    R_t = sum_{s >= t} gamma^(s - t) r_s, with the token rewards r_s (the k1 divergence, placed in the reward) and the
    reward of the sample at its last token; then A = (R - mean) / (std + eps) over the tokens of all samples. Tokens
    outside the mask are no steps: they neither carry a reward nor discount one. Groups play no part.

    Args:
        gamma: discount of a reward for each token that it comes later.
        eps, ddof: as in `normalized`.

    Returns:
        (B, T).
    """
    rewards = torch.zeros_like(batch.mask, dtype=torch.float64)
    if batch.token_rewards is not None:
        rewards = batch.per_token(batch.token_rewards.double())
    last = (batch.mask * torch.arange(1, batch.mask.shape[1] + 1, device=batch.mask.device)).argmax(1)
    rewards = rewards.scatter_add(1, last[:, None], batch.rewards.double()[:, None])
    to_go, running = torch.zeros_like(rewards), torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        running = torch.where(batch.mask[:, t], rewards[:, t] + gamma * running, running)
        to_go[:, t] = running
    return _whitened(to_go, batch.mask, ddof=ddof, eps=eps)


@ADVANTAGES.register("reinforce_pp_baseline")
def reinforce_pp_baseline(batch: CreditInputs, *, eps: Positive = 1e-6, ddof: Ddof = 1) -> Tensor:
    """r_i - mean_g, whitened over all tokens of the batch (REINFORCE++-baseline, arXiv 2501.03262).

    Args:
        eps, ddof: as in `normalized`.

    Returns:
        (B, T).
    """
    return normalized(batch, mean="group", std="batch_tokens", eps=eps, ddof=ddof)


@ADVANTAGES.register("gpg")
def gpg(
    batch: CreditInputs,
    *,
    normalize_std: bool = False,
    min_inverse_alpha: Fraction = 0.0,
    compat: Literal["verl"] | None = None,
    eps: Positive = 1e-6,
    ddof: Ddof = 1,
) -> Tensor:
    """A_i = alpha (r_i - mean_g), or alpha (r_i - mean_g) / (std_g + eps) (GPG, arXiv 2504.02546).

    alpha = groups / groups with differing rewards: a group of equal rewards gives no gradient, and without alpha it
    would shrink that of the batch. It is 1 where no group has a signal, whose credit is 0 all the same.

    Args:
        normalize_std: divide by the group's standard deviation; the published code does not unless told to.
        min_inverse_alpha: floor of 1 / alpha, so that alpha is at most its inverse: a batch with hardly a signal is
            not scaled up to a full one. In the published code a number of this name is a share of groups that is
            sampled for until it is reached (that is the matter of a data strategy); after that the floor never acts.
        compat: `verl` for alpha = samples / samples with a reward other than 0, as verl counts. That is wrong, and
            here for comparison with its numbers alone: it scales up where samples fail, whether or not their group has
            a signal. Rewards 1, 1, 1, 1 and 1, 0, 0, 0 give 8 / 5 = 1.6, where one group of two has a signal: 2.
            `min_inverse_alpha` does not bound it.
        eps, ddof: as in `normalized`.
    """
    if compat == "verl":
        alpha = len(batch.returns) / max(int(batch.returns.count_nonzero()), 1)
    else:
        alpha = _age(batch, min_inverse_alpha)
    return alpha * normalized(batch, mean="group", std="group" if normalize_std else "none", eps=eps, ddof=ddof)


def _age(batch: CreditInputs, floor: float) -> float:
    """alpha of GPG, with `floor` below its inverse."""
    deviation = group_statistics(batch.returns, batch.group, ddof=0).deviation
    groups, valid = (len(torch.unique(g)) for g in (batch.group, batch.group[deviation != 0]))
    return 1 / max(valid / groups, floor) if valid else 1.0


@ADVANTAGES.register("pass_at_k")
def pass_at_k(
    batch: CreditInputs,
    *,
    k: Annotated[int, Field(ge=1)],
    baseline: Literal["none", "leave_one_out", "marginal"] = "marginal",
) -> Tensor:
    """The gradient of pass@k, the chance that one of k samples is right, without bias from n >= k samples of a prompt.

    With c of n right and rho(n, c, k) = 1 - C(n - c, k) / C(n, k), the unbiased estimate of pass@k, the gradient is
    the sum over the group of w_i grad log pi(y_i) with w_i = k / n for a right sample and k / n rho(n - 1, c, k - 1)
    for a wrong one, which shares what the other k - 1 find (PKPO, arXiv 2505.15201). Credit is A_i = n w_i - b_i: the
    factor n because the mean over samples is taken, and k = 1 then is the policy gradient. Each b_i is a function of
    the other samples alone, so that all three baselines are without bias:

        none            b_i = 0
        leave_one_out   b_i = k rho(n - 1, c_other, k): pass@k of the others, c_other of which are right. n > k; with
                        k = 1 it is RLOO.
        marginal        b_i = k rho(n - 1, c_other, k - 1): of each k samples, what the other k - 1 find without i. A
                        wrong sample gets 0, a right one the chance that it alone is right among k, times k. n >= k;
                        with k = 1 it is no baseline.

    A group with fewer samples than that, some being without a verdict, has no unbiased estimate and gets 0.

    Args:
        k: of pass@k, at most the samples of a prompt.
        baseline: as above.

    Raises:
        ValueError: a return is neither 0 nor 1, or no group has enough samples.
    """
    returns = batch.returns.double()
    right = returns == 1
    if not (right | (returns == 0)).all():
        other = returns[~right & (returns != 0)][0].item()
        raise ValueError(
            f"advantage pass_at_k: a sample has return {other}, but pass@k is about right and wrong: make the rewards "
            "0 and 1, with one verifier of weight 1, and place no divergence in the reward"
        )
    n, c = _group_sum(torch.ones_like(returns), batch.group), _group_sum(returns, batch.group)
    least = k + 1 if baseline == "leave_one_out" else k
    if not (n >= least).any():
        raise ValueError(
            f"advantage pass_at_k: k = {k} with baseline {baseline} needs groups of {least} samples, the largest has "
            f"{int(n.max())}: raise rollout.samples_per_prompt or lower k"
        )
    value = torch.where(right, 1.0, _pass_estimate(n - 1, c, k - 1))
    if baseline != "none":
        value = value - _pass_estimate(n - 1, c - returns, k if baseline == "leave_one_out" else k - 1)
    return torch.where(n >= least, k * value, 0.0)


def _pass_estimate(n: Tensor, c: Tensor, k: int) -> Tensor:
    """rho(n, c, k), the share of k-subsets of n samples that hold one of the c right ones; n >= k, else anything."""
    miss = torch.ones_like(n)
    for j in range(k):
        miss = miss * (n - c - j).clamp(min=0) / (n - j).clamp(min=1)
    return 1 - miss


@ADVANTAGES.register("jepo_loo")
def jepo_loo(batch: CreditInputs) -> Tensor:
    """A_i = G (log mean_j e^{r_j} - log mean_{j != i} e^{r_j}), of rewards r_j = log pi(a* | z_j) (JEPO, 2503.19618).

    The gradient of E log((1 / G) sum_j pi(a* | z_j)) with respect to the samples z, with what the others reach as
    baseline, which keeps it unbiased. The factor G, not there in the formula for the sum over a group, is because the
    mean over samples is taken: small differences of rewards then give RLOO. Its other half, the gradient with respect
    to a*, is the term `reference_nll`, whose weights G softmax_i(r) have mean 1 likewise.

    A group of equal rewards, or of one sample, gets exactly 0.
    """
    table, row, column = _table(batch.returns.double(), batch.group)
    itself = torch.eye(table.shape[1], dtype=torch.bool, device=table.device)
    others = table[:, None, :].masked_fill(itself, -torch.inf)
    count = (table > -torch.inf).sum(1)[row]
    gain = _log_mean_exp(table)[row] - _log_mean_exp(others)[row, column]
    return torch.where(count > 1, count * gain, 0.0)


def _table(values: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values (B,), which are finite, with a row for each group, padded with -inf; row and column of each sample."""
    labels, row, sizes = torch.unique(group, return_inverse=True, return_counts=True)
    order = row.argsort(stable=True)
    column = torch.empty_like(row)
    column[order] = torch.arange(len(row), device=row.device) - (sizes.cumsum(0) - sizes)[row[order]]
    table = values.new_full((len(labels), int(sizes.max())), -torch.inf)
    table[row, column] = values
    return table, row, column


def _log_mean_exp(values: Tensor) -> Tensor:
    """log mean exp over the last dimension without its -inf; of equal values exactly these, of none anything."""
    top = values.amax(-1)
    mean = (values - top[..., None]).exp().sum(-1) / (values > -torch.inf).sum(-1)
    return mean.log() + top


Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha", "tv", "pearson", "neyman", "hellinger"]


def _f_dpg_needs(params: Mapping[str, Any]) -> tuple[str, ...]:
    return ("old_logp", "behavior_logp", f"anchors.{params.get('anchor', 'frozen')}")


@ADVANTAGES.register("f_dpg", needs=_f_dpg_needs, owns_correction=True)
def f_dpg(
    batch: CreditInputs,
    *,
    divergence: Divergence = "js",
    beta: Positive = 0.1,
    anchor: str = "frozen",
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.2,
    baseline: Literal["none", "group", "group_loo"] = "group_loo",
) -> Tensor:
    """-D_f(pi || p) of whole responses, for the target p proportional to anchor e^{r / beta} (f-DPG, arXiv 2302.08215).

    The gradient of D_f = E_p f(t), t = pi / p, is E_pi f'(t) grad log pi, so -f'(t) is a reward:

        log t_i = log pi_old - log anchor - r_i / beta + log Z
        Z = mean_j e^{r_j / beta} anchor / mu        over the group, by importance sampling
        A_i = pi_old / mu (-f'(t_i) - b_i)

    all log-probs summed over the tokens of the response. With reverse_kl it is reward maximisation with a KL penalty,
    times 1 / beta. log t and log pi_old / mu are held within 20 nats of 0: f' of a sequence's ratio, e^{-log t} with
    forward_kl, has no bounds otherwise; js and tv have some by themselves, and past the bounds credit no longer tells
    samples apart. The ratio to mu is in the credit, so a correction, `minirl`, or a ratio to mu beside it is refused.

    Z is of the same samples, so the gradient is exact for reverse_kl with `group_loo`, where log Z cancels, and else
    has a bias that falls as 1 / G. The published code has a running mean of Z for each prompt, and as baseline a
    running mean of -f'; a prompt is seen too rarely for that in a run over many prompts. A sample that is alone in its
    group cannot tell Z from its own weight, and gets 0 from both baselines.

    Args:
        divergence: f, by its name as a regularizer.
        beta: temperature of the reward in the target: small for a target that follows the reward.
        anchor: name of the policy that the target tilts; `old_policy` tilts the one that sampled.
        alpha: of `alpha`, 0 < alpha < 1: towards 0 reverse_kl, towards 1 forward_kl.
        baseline: b_i, the mean of -f' over the group or over the others in it; without bias for given Z is the latter.
    """
    if anchor == "old_policy":
        reference = batch.need("old_logp")
    else:
        reference = batch.need(f"anchors.{anchor}")
    policy, behavior, reference = (
        batch.per_token(logp.double()).sum(1)
        for logp in (batch.need("old_logp"), batch.need("behavior_logp"), reference)
    )
    tilted = reference + batch.returns.double() / beta
    table, row, _ = _table(tilted - behavior, batch.group)
    log_t, _ = clamped_log_ratio(policy, tilted - _log_mean_exp(table)[row])
    log_weight, _ = clamped_log_ratio(policy, behavior)
    reward = -f_divergence(divergence, alpha).derivative(log_t)
    return log_weight.exp() * _centred(reward, batch.group, baseline)


@ADVANTAGES.register("trice")
def trice(batch: CreditInputs) -> Tensor:
    """A_i = -G (share of the other samples of the batch that are right) for the last of the G samples of each prompt.

    TRICE's control variate (arXiv 2312.02179); the other samples get 0. The gradient of log sum_z pi(z | x) 1[z is
    right] is E grad log pi(z | x) over the right z alone. TRICE remembers one for each prompt, replaces it by a proposal
    from pi that is right, and learns its likelihood: the term `sft` with `source: success_memory`, `coef: 1`, aggregated
    as seq_mean_token_sum. This credit is for the proposal: its mean gradient is 0, so taking a share of it away changes
    nothing in expectation. Where all are right, what was just remembered is the last proposal, and the two cancel,
    which a mean over several proposals would not; hence the factor G for the mean over samples. That the share is of
    the others keeps it without bias. From the description of the paper's estimator, its code was not at hand. A batch
    of one sample gets 0.
    """
    right = batch.correct.double()
    share = (right.sum() - right) / max(len(right) - 1, 1)
    count = _group_sum(torch.ones_like(right), batch.group)
    last = (batch.group[:, None] == batch.group).triu(1).sum(1) == 0
    return torch.where(last, -count * share, 0.0)
