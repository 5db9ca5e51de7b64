"""The f-divergences D_f(pi || p) = E_p[f(t)], t = pi / p, as functions of log t (methods.md, 1.2).

f is only given up to c (t - 1), which changes neither D_f nor the expectation of its gradient E_pi[f'(t) grad log pi].
Here every f is the one with f(1) = f'(1) = 0. It is never negative, and where pi = p each sample's value and gradient
are zero, not only their means: with it the +1 of reverse KL's log t + 1 is gone, and forward KL's -1/t is 1 - 1/t, the
control variate that DPH-RL's published estimator has (arXiv 2509.07430). In a reward that matters: a constant at each
token pays for the length of a response.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlpost.config import Component
from rlpost.registry import Registry

LOG_2 = math.log(2)


@dataclass(frozen=True)
class FDivergence:
    """One f, in float32 or float64 as its arguments are.

    Attributes:
        name: as in a configuration.
        value: log t -> f(t), of any shape. It grows as t or faster; in float32 it holds for |log t| <= 40.
        derivative: log t -> f'(t).
        exact: log-probs (..., V) of pi and p -> (...), D_f summed over the vocabulary, differentiable in both. Tokens
            may have log-prob -inf: what pi alone has counts with f'(inf), what p alone has with f(0), and it is inf
            where that is.
        limit: f'(inf), the divergence for mass of pi where p has none.
        exponential: f' grows as a power of t or 1 / t on some side, not as its logarithm at most.
    """

    name: str
    value: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    exact: Callable[[Tensor, Tensor], Tensor]
    limit: float
    exponential: bool


GENERATORS: Registry[Callable[[], FDivergence]] = Registry("f-divergence", inputs=())


@functools.cache
def f_divergence(name: str, alpha: float = 0.2, *, standard: bool = False) -> FDivergence:
    """The f-divergence of that name.

    Args:
        name: one of `rlpost.config.F_DIVERGENCES`.
        alpha: of `alpha` alone. standard: of `js` alone.

    Raises:
        ConfigError: there is no such divergence, or alpha is not between 0 and 1.
    """
    params: dict[str, dict[str, Any]] = {"alpha": {"alpha": alpha}, "js": {"standard": standard}}
    return GENERATORS.create(Component(name=name, **params.get(name, {})))()


def exact_divergence(name: str, params: Mapping[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """`exact` of the f-divergence that a configuration names, with its parameters.

    Raises:
        ConfigError: no such divergence, or a parameter that it does not have over the whole vocabulary.
    """
    return GENERATORS.create(Component(name=name, **params))().exact


@GENERATORS.register("reverse_kl")
def reverse_kl() -> FDivergence:
    """KL(pi || p): f = t log t - t + 1, f' = log t."""

    def exact(logp: Tensor, logq: Tensor) -> Tensor:
        p = logp.exp()
        return (p * _log_ratio(logp, logq) - p + logq.exp()).sum(-1)

    return FDivergence("reverse_kl", lambda u: u.exp() * u - u.expm1(), lambda u: u, exact, math.inf, False)


@GENERATORS.register("forward_kl")
def forward_kl() -> FDivergence:
    """KL(p || pi): f = t - 1 - log t, f' = 1 - 1/t."""

    def exact(logp: Tensor, logq: Tensor) -> Tensor:
        q = logq.exp()
        return (q * _log_ratio(logq, logp) - q + logp.exp()).sum(-1)

    return FDivergence("forward_kl", lambda u: u.expm1() - u, lambda u: -(-u).expm1(), exact, 1.0, True)


@GENERATORS.register("js")
def js(*, standard: bool = False) -> FDivergence:
    """f = t log t - (t + 1) log((t + 1) / 2), f' = log(2t / (t + 1)).

    That is **twice** the Jensen-Shannon divergence, as in the published code of f-DPO, f-DPG and DPH-RL.

    Args:
        standard: the Jensen-Shannon divergence itself, KL(pi || m) / 2 + KL(p || m) / 2 with m the mean of both, which
            is at most log 2: half of the above.
    """
    scale = 0.5 if standard else 1.0

    def derivative(u: Tensor) -> Tensor:
        return scale * (LOG_2 + logsigmoid(u))

    def value(u: Tensor) -> Tensor:
        return u.exp() * derivative(u) + derivative(-u)

    def exact(logp: Tensor, logq: Tensor) -> Tensor:
        of_pi = logp.exp() * derivative(_log_ratio(logp, logq))
        return (of_pi + logq.exp() * derivative(_log_ratio(logq, logp))).sum(-1)

    return FDivergence("js", value, derivative, exact, scale * LOG_2, False)


@GENERATORS.register("alpha")
def alpha_divergence(*, alpha: Annotated[float, Field(gt=0, lt=1)] = 0.2) -> FDivergence:
    """f = (t^(1 - a) - (1 - a) t - a) / (a (a - 1)), f' = (1 - t^-a) / a.

    The convention of f-DPO and DPH-RL, whose default is 0.2: reverse KL for a -> 0, forward KL for a -> 1. TRL's
    coefficient is 1 - a.
    """
    a, b = alpha, 1 - alpha

    def derivative(u: Tensor) -> Tensor:
        return -(-a * u).expm1() / a

    def value(u: Tensor) -> Tensor:
        # The same twice: with the small one of a and b under expm1 nothing large is divided by it.
        if a <= 0.5:
            return (u.exp() * derivative(u) - u.expm1()) / b
        return (u.expm1() - (b * u).expm1() / b) / a

    def exact(logp: Tensor, logq: Tensor) -> Tensor:
        return (b * logp.exp() + a * logq.exp() - (b * logp + a * logq).exp()).sum(-1) / (a * b)

    return FDivergence("alpha", value, derivative, exact, 1 / a, True)


@GENERATORS.register("tv")
def tv() -> FDivergence:
    """Total variation: f = |t - 1| / 2, f' = sign(t - 1) / 2, taken as 0 at t = 1."""

    def exact(logp: Tensor, logq: Tensor) -> Tensor:
        return (logp.exp() - logq.exp()).abs().sum(-1) / 2

    return FDivergence("tv", lambda u: u.expm1().abs() / 2, lambda u: u.sign() / 2, exact, 0.5, False)


@GENERATORS.register("pearson")
def pearson() -> FDivergence:
    """chi^2(pi || p): f = (t - 1)^2, f' = 2 (t - 1). Called reverse chi^2 in the published code of f-DPG."""
    return FDivergence("pearson", lambda u: u.expm1().square(), lambda u: 2 * u.expm1(), _chi_squared, math.inf, True)


@GENERATORS.register("neyman")
def neyman() -> FDivergence:
    """chi^2(p || pi): f = (1 - t)^2 / t, f' = 1 - 1/t^2. Called chi^2 in the published code of f-DPG."""

    def exact(logp: Tensor, logq: Tensor) -> Tensor:
        return _chi_squared(logq, logp)

    return FDivergence("neyman", lambda u: -u.expm1() * (-u).expm1(), lambda u: -(-2 * u).expm1(), exact, 1.0, True)


@GENERATORS.register("hellinger")
def hellinger() -> FDivergence:
    """Squared Hellinger: f = (sqrt(t) - 1)^2, f' = 1 - 1/sqrt(t). Between 0 and 2: no factor of 1/2."""

    def exact(logp: Tensor, logq: Tensor) -> Tensor:
        return ((logp / 2).exp() - (logq / 2).exp()).square().sum(-1)

    return FDivergence("hellinger", lambda u: (u / 2).expm1().square(), lambda u: -(-u / 2).expm1(), exact, 1.0, True)


def _chi_squared(logp: Tensor, logq: Tensor) -> Tensor:
    """sum (p - q)^2 / q. The root of each summand is exponentiated, since p / q overflows long before p^2 / q."""
    root = (logp - logq / 2).masked_fill(logp.isneginf(), -math.inf)
    return (root.exp() - (logq / 2).exp()).square().sum(-1)


def _log_ratio(logp: Tensor, logq: Tensor) -> Tensor:
    """log(p / q), 0 where p is 0, so that p times a function of it is 0 there, and not 0 * inf."""
    return (logp - logq).masked_fill(logp.isneginf(), 0.0)
