"""RPG, a policy loss with its divergence inside (arXiv 2505.17508): the two share the ratio and its clip."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from rlpost.config import ConfigError
from rlpost.objective.policy_loss import POLICY_LOSSES, Dual, High, Low, clipped_surrogate, with_ratios
from rlpost.objective.ratio import clamped_log_ratio
from rlpost.objective.types import TermInputs, TermOutputs


@POLICY_LOSSES.register("rpg", owns_divergence=True)
class Rpg:
    """J = E_pi[A] - beta D, D a divergence between pi and pi_old, by a surrogate on samples of pi_old.

    With w = pi / pi_old at each token, estimates of D and their derivatives D' with respect to `logp`:

        fkl    KL(pi_old || pi)         D = -log w            D' = -1
        ufkl   unnormalised KL of it    D = w - 1 - log w     D' = w - 1
        rkl    KL(pi || pi_old)         D = w log w           D' = w (log w + 1)
        urkl   unnormalised KL of it    D = w log w - w + 1   D' = w log w

    where UKL(p || q) = sum p log(p / q) - p + q. Each is the gradient of -J exactly, in either style:

        differentiable   l = -W (w A - beta D)
        reinforce        l = -W sg[w A - beta D'] log pi

    These are the paper's surrogates up to constants (log pi for log w in fkl, no + 1 in urkl), which have no gradient.
    fkl pushes up every sampled token by beta, and is balanced in expectation alone; ufkl, with the same expectation,
    is zero at pi = pi_old for each sample. The anchor is pi_old itself, so there is no KL to any other policy, and at
    the first optimizer step of a batch only A acts. W belongs to the divergence as well: its samples are the same.

    Clipping, on when any of `low`, `high`, `dual` = e1, e2, c is given; a bound that is None is none. On the bounds
    themselves, where Algorithm 2 stops it, the gradient still flows, as in `ppo_clip`.

    * differentiable, RPG-Style Clip: `ppo_clip`'s surrogate of w and A* in place of w A. For fkl and ufkl, A* = A and
      beta D stays beside it. For urkl A* = A - beta log w and for rkl A* = A - beta (log w + 1), differentiated, and
      there is no further divergence. Zero on the clipped region is thus only what A contributes: there, the gradient
      with respect to `logp` is W beta D' for fkl and ufkl, and W beta b, b in {1 - e1, 1 + e2, c} the bound that
      acts, for rkl and urkl. Off that region rkl and urkl have W beta w more than without clipping, an amount with
      expectation zero under pi_old (it is the gradient of sum pi); so bounds that never act give the same gradient
      in expectation, and for fkl and ufkl the same at each sample.
    * reinforce, Algorithm 2: with P = w A - beta D', the gradient is -W P, and exactly zero where P >= 0 and
      w > 1 + e2; P < 0 and w < 1 - e1; P < 0 and w > c. The loss there is -W sg[(b A - beta D') log pi].

    |log w| > 20 is held at that bound: zero gradient in the differentiable style, a finite weight in the other.

    Reports `divergence/rpg`, the estimate D; `clip/low`, `clip/high`, `clip/dual` for the bounds that there are.

    Args:
        divergence, style: as above. The best published results are with urkl and ufkl, reinforce.
        beta: 1e-4 in the paper; 1e-3 did worse.
        low, high, dual: published: 0.2, 0.28, 10.
        compat: "code" for what the published code of the reinforce style does instead: D' is of w clipped to
            [1 - e1, 1 + e2]; the branch is on the sign of A, not of P; in the loss on the regions of e1 and e2, a
            value without gradient, beta D' has the opposite sign.

    Raises:
        ConfigError: `compat` with the differentiable style, or without `low` and `high`, which it is about.
    """

    def __init__(
        self,
        *,
        divergence: Literal["fkl", "ufkl", "rkl", "urkl"] = "urkl",
        style: Literal["differentiable", "reinforce"] = "reinforce",
        beta: Annotated[float, Field(ge=0)] = 1e-4,
        low: Low | None = None,
        high: High | None = None,
        dual: Dual | None = None,
        compat: Literal["code"] | None = None,
    ) -> None:
        if compat is not None and style != "reinforce":
            raise ConfigError(f"rpg: compat: {compat} is about style: reinforce, not {style}: leave compat out")
        if compat is not None and (low is None or high is None):
            raise ConfigError(
                f"rpg: compat: {compat} is about clipping: set low and high (published: 0.2, 0.28) or leave compat out"
            )
        self.divergence = divergence
        self.style = style
        self.beta = beta
        self.low, self.high, self.dual = low, high, dual
        self.compat = compat

    def __call__(self, batch: TermInputs) -> TermOutputs:
        log_w, clamped = clamped_log_ratio(batch.logp, batch.old_logp)
        if self.style == "differentiable":
            surrogate, acts = self._differentiable(log_w, batch.advantages)
        else:
            surrogate, acts = self._reinforce(batch.logp, log_w.detach(), batch.advantages)
        outputs = with_ratios(-batch.weights * surrogate, log_w.exp(), clamped, acts)
        return TermOutputs(
            outputs.loss, {**outputs.means, "divergence/rpg": self._estimate(log_w.detach())}, outputs.maxima
        )

    @property
    def _bounds(self) -> tuple[float, float]:
        return 0.0 if self.low is None else 1 - self.low, math.inf if self.high is None else 1 + self.high

    @property
    def _clips(self) -> bool:
        return not (self.low is None and self.high is None and self.dual is None)

    def _differentiable(self, log_w: Tensor, advantages: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        w = log_w.exp()
        if not self._clips:
            return w * advantages - self.beta * self._estimate(log_w), {}
        if self.divergence in ("fkl", "ufkl"):
            surrogate, acts = clipped_surrogate(w, advantages, low=self.low, high=self.high, dual=self.dual)
            return surrogate - self.beta * self._estimate(log_w), acts
        baseline = 1.0 if self.divergence == "rkl" else 0.0
        regularized = advantages - self.beta * (log_w + baseline)
        return clipped_surrogate(w, regularized, low=self.low, high=self.high, dual=self.dual)

    def _reinforce(self, logp: Tensor, log_w: Tensor, advantages: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Everything but `logp` is detached."""
        w = log_w.exp()
        if self.compat is None:
            pull = -self.beta * self._derivative(log_w)
            credit = w * advantages + pull
            good, sign = credit >= 0, 1
        else:
            pull = -self.beta * self._derivative(w.clamp(*self._bounds).log())
            credit = w * advantages + pull
            good, sign = advantages > 0, -1
        surrogate, acts = credit * logp, {}
        floor, ceiling = self._bounds

        def stop(name: str, where: Tensor, bound: float, pull: Tensor) -> None:
            nonlocal surrogate
            acts[name] = where
            surrogate = torch.where(where, (bound * advantages + pull) * logp.detach(), surrogate)

        if self.low is not None:
            stop("clip/low", ~good & (w < floor), floor, sign * pull)
        if self.high is not None:
            stop("clip/high", good & (w > ceiling), ceiling, sign * pull)
        if self.dual is not None:
            stop("clip/dual", ~good & (w > self.dual), self.dual, pull)
        return surrogate, acts

    def _estimate(self, log_w: Tensor) -> Tensor:
        """D at each token; its mean over samples of pi_old is the divergence."""
        match self.divergence:
            case "fkl":
                return -log_w
            case "ufkl":
                return torch.expm1(log_w) - log_w
            case "rkl":
                return log_w.exp() * log_w
            case _:
                return log_w.exp() * log_w - torch.expm1(log_w)

    def _derivative(self, log_w: Tensor) -> Tensor:
        """D' at each token, with respect to `logp`."""
        match self.divergence:
            case "fkl":
                return -torch.ones_like(log_w)
            case "ufkl":
                return torch.expm1(log_w)
            case "rkl":
                return log_w.exp() * (log_w + 1)
            case _:
                return log_w.exp() * log_w
