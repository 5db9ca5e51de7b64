"""Role RolloutCorrection: the learner's proximal policy pi_old against the engine's mu, on the engine's samples.

An entry is a function `(batch: CreditInputs, **params) -> Corrected`. Its factors multiply the policy loss. A chain
multiplies; only one entry of it may carry the ratio pi_old / mu itself (trait `weighs`), the others only leave out.

With rho_t = pi_old / mu of the sampled token, an entry looks at one of three ratios, its `level`:

    token      rho_t. Low variance, biased: it corrects neither the prefix nor what follows (an error of order T^2).
    sequence   prod_t rho_t. Unbiased when it is not bounded; but 1.1 a token is 1.4e4 over 100 tokens, so bounds on
               it fall on long responses.
    geometric  (prod_t rho_t)^(1/T), free of that.

Every log-ratio, summed or not, is held within +-20 before `exp`. Tokens outside the mask have no part. What an entry
leaves out has W = 0 and stays in the denominators of the policy loss. Each reports, over the unmasked tokens:

    correction/<label>_kept      share with W > 0
    correction/<label>_mean      mean of W
    correction/<label>_clipped   share whose ratio was out of bounds, and so was set to a bound or left out
    correction/<label>_clamped   share whose log-ratio was held at +-20
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from rlpost.config import Component, ConfigError
from rlpost.objective.advantage import group_statistics
from rlpost.objective.ratio import clamped_log_ratio
from rlpost.objective.types import Corrected, CreditInputs
from rlpost.registry import Registry

Correction = Callable[[CreditInputs], Corrected]
CORRECTIONS: Registry[Correction] = Registry("rollout correction", inputs=("batch",))

Level = Literal["token", "sequence", "geometric"]
Bound = Annotated[float, Field(ge=0)]
NEEDS = ("old_logp", "behavior_logp")


@CORRECTIONS.register("importance", weighs=True, needs=NEEDS)
def importance(
    batch: CreditInputs,
    *,
    level: Level = "token",
    mode: Literal["truncate", "mask"] = "truncate",
    low: Bound = 0.0,
    high: Annotated[float, Field(gt=0)] = 2.0,
    normalize: bool = False,
) -> Corrected:
    """W = rho at `level`, held within [low, high] or 0 outside of it.

        TIS         level: token, mode: truncate, high: 2 (5 in MiniRL, arXiv 2512.01374)
        MIS         level: token or sequence, mode: mask, low: 0.5, high: 2
        IcePop      level: token, mode: mask, low: 0.5, high: 5
        Seq-TIS     level: sequence, mode: truncate

    Args:
        mode: `truncate`, W = clip(rho, low, high); `mask`, W = rho where low <= rho <= high, else 0.
        normalize: divide W by its mean over the batch, over tokens for `level: token` and over sequences otherwise,
            what is masked included; a batch in which all is masked stays at 0.

    Raises:
        ConfigError: low > high.
    """
    ratio = _ratio(batch, level)
    outside = ratio.outside("importance", low, high)
    weights = ratio.value.clamp(low, high) if mode == "truncate" else ratio.value.masked_fill(outside, 0.0)
    if normalize:
        mean = weights[ratio.there].mean()
        weights = weights / mean if mean > 0 else weights
    return _corrected("importance", batch, weights, outside, ratio.clamped)


@CORRECTIONS.register("reject", weighs=False, needs=NEEDS)
def reject(
    batch: CreditInputs,
    *,
    low: Bound,
    high: Annotated[float, Field(gt=0)],
    level: Level = "geometric",
    label: str = "reject",
) -> Corrected:
    """W = 1 where low <= rho at `level` <= high, else 0: tokens or sequences that mu sampled too differently go.

    Geo-RS, or seq-mask beside a token-level `importance`: level: geometric, low: 0.999, high: 1.002 (NeMo-RL; verl has
    0.999 and 1.001). No bounds suit every level, so there is no default.

    Args:
        label: what its metrics are called, for a second one in the same chain.

    Raises:
        ConfigError: low > high.
    """
    ratio = _ratio(batch, level)
    outside = ratio.outside("reject", low, high)
    return _corrected(label, batch, (~outside).double(), outside, ratio.clamped)


@CORRECTIONS.register("opsm", weighs=False, needs=NEEDS)
def opsm(batch: CreditInputs, *, delta: Annotated[float, Field(ge=0)] = 0.5) -> Corrected:
    """W = 0 on a sequence with A < 0 and mean_t log(mu / pi_old) > delta, else 1.

    Off-policy sequence masking (DeepSeek-V3.2) leaves out a bad sequence that has become unlikely. There the policy
    that sampled is compared with pi as it moves through the updates of the batch; a correction is worked out once,
    before the first of them, and compares mu with pi_old. So it acts on the difference between engine and learner and
    on samples of older weights, and not on what the updates of this batch add.

    A correction sees no advantages: A < 0 is a return below the mean of the group, which is the sign of every
    estimator with a group baseline, and may not be that of one with a baseline over the batch.
    """
    ratio = _ratio(batch, "geometric")
    bad = group_statistics(batch.returns, batch.group, ddof=0).deviation < 0
    dropped = bad & (-ratio.log > delta)
    return _corrected("opsm", batch, (~dropped).double(), dropped, ratio.clamped)


def check_chain(components: Sequence[Component], proximal: str) -> None:
    """Refuse corrections that count the ratio to the engine's policy twice.

    An entry of a user's own weighs unless it says otherwise: `fancy.weighs = False`. With `proximal: behavior` the
    policy loss has pi / mu as its ratio, so no entry may weigh; one that only leaves out may stand, since it judges
    by pi_old / mu and multiplies by nothing. It then costs the forward pass for pi_old that `behavior` saves.

    Args:
        components: `objective.corrections`.
        proximal: `objective.proximal`.

    Raises:
        ConfigError: two entries weigh, or one does and `proximal` is `behavior`.
    """
    weighing = [c.name for c in components if CORRECTIONS.trait(c.name, "weighs", True)]
    hint = "a function of your own that only leaves out says so with `your_function.weighs = False`"
    if len(weighing) > 1:
        raise ConfigError(
            f"objective.corrections: {' and '.join(weighing)} each weigh by pi_old / mu, which would be counted "
            f"{len(weighing)} times: keep one of them ({hint})"
        )
    if weighing and proximal == "behavior":
        raise ConfigError(
            f"objective.corrections: {weighing[0]} weighs by pi_old / mu, but with objective.proximal: behavior the "
            f"policy loss has pi / mu as its ratio, so it would be counted twice: remove it, or set proximal: learner "
            f"({hint})"
        )


class _Ratio(NamedTuple):
    """pi_old / mu at a level: (B, T) for tokens, (B,) for sequences. `there` says where there is one at all."""

    log: Tensor
    value: Tensor
    there: Tensor
    clamped: Tensor

    def outside(self, name: str, low: float, high: float) -> Tensor:
        if low > high:
            raise ConfigError(f"rollout correction {name!r}: low {low} is above high {high}: nothing can be between")
        return (self.value < low) | (self.value > high)


def _ratio(batch: CreditInputs, level: Level) -> _Ratio:
    log = batch.per_token(batch.need("old_logp") - batch.need("behavior_logp"))
    there = batch.mask
    if level != "token":
        log, there = log.sum(1), batch.lengths > 0
        if level == "geometric":
            log = log / batch.lengths.clamp(min=1)
    log, clamped = clamped_log_ratio(log, torch.zeros_like(log))
    return _Ratio(log, log.exp(), there, clamped)


def _corrected(label: str, batch: CreditInputs, weights: Tensor, clipped: Tensor, clamped: Tensor) -> Corrected:
    weights = batch.per_token(weights)
    tokens = batch.mask.sum().clamp(min=1)
    reported = {
        "kept": (weights > 0).double(),
        "mean": weights,
        "clipped": batch.per_token(clipped.double()),
        "clamped": batch.per_token(clamped.double()),
    }
    return Corrected(weights, {f"correction/{label}_{k}": float(v.sum() / tokens) for k, v in reported.items()})
