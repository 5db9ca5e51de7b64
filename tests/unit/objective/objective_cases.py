"""Small policies whose every sequence can be listed, so that expectations and gradients are exact. Float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlpost.objective import TermInputs

V = 4

LogProbs = Callable[[Tensor], Tensor]  # parameters -> (sequences, T), log-probs of each token of every sequence


def one_token(theta: Tensor) -> Tensor:
    """All V one-token sequences of softmax(theta), theta (V,): (V, 1)."""
    return theta.log_softmax(-1)[:, None]


def two_tokens(theta: Tensor) -> Tensor:
    """All V^2 two-token sequences, theta (1 + V, V): a first token, then a row for each first token: (V^2, 2)."""
    first, second = theta[0].log_softmax(-1), theta[1:].log_softmax(-1)
    return torch.stack([first[:, None].expand(V, V), second], dim=-1).reshape(V * V, 2)


def parameters(policy: LogProbs, seed: int) -> Tensor:
    shape = (V,) if policy is one_token else (1 + V, V)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def inputs(logp: Tensor, **given: Any) -> TermInputs:
    """On-policy inputs with advantage 1, weight 1 and everything unmasked, unless given otherwise."""
    detached, ones = logp.detach(), torch.ones_like(logp.detach())
    defaults: dict[str, Any] = {
        "logp": logp,
        "old_logp": detached,
        "behavior_logp": detached,
        "anchors": {},
        "advantages": ones,
        "weights": ones,
        "mask": ones.bool(),
        "entropy": torch.zeros_like(detached),
        "group": torch.arange(len(detached)),
    }
    return TermInputs(**{**defaults, **given})


def gradient(scalar: Tensor, theta: Tensor) -> Tensor:
    return torch.autograd.grad(scalar, theta, retain_graph=True)[0]


def expected_loss(logp: Tensor, per_token: Tensor) -> Tensor:
    """E over sequences sampled from the policy, the sampling itself not differentiated, of sum_t l_t."""
    return (logp.detach().sum(-1).exp() * per_token.sum(-1)).sum()


def sequence_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of whole sequences, from (sequences, T) log-probs; differentiable in both."""
    p, q = p.sum(-1), q.sum(-1)
    return (p.exp() * (p - q)).sum()


def per_token_kl(theta_p: Tensor, theta_q: Tensor, prefixes: Tensor) -> Tensor:
    """sum_t E_prefix[KL(p_t || q_t)] for `two_tokens` parameters, first tokens distributed as `prefixes` (V,)."""
    p, q = theta_p.log_softmax(-1), theta_q.log_softmax(-1)
    each = (p.exp() * (p - q)).sum(-1)
    return each[0] + (prefixes * each[1:]).sum()
