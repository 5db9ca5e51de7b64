"""Log-probabilities of given tokens, and divergences at them, without [tokens, vocabulary] for the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rlpost import device
from rlpost.learner.attention import takes_segments

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from rlpost.learner.attention import Segments
    from rlpost.learner.replay import Replay, RouteGrid, RouterStats


class LogProbs(NamedTuple):
    """What a policy says of M tokens.

    Attributes:
        logp: float32 (M,), log-probabilities.
        entropy: float32 (M,), entropies of the distributions the tokens are of, in nats.
        full: a float32 (M,) for each divergence that was asked for, in that order.
    """

    logp: torch.Tensor
    entropy: torch.Tensor
    full: tuple[torch.Tensor, ...] = ()


@dataclass(frozen=True)
class Against:
    """An anchor to compare the policy with over the whole vocabulary, at the same M places.

    Attributes:
        hidden: (M, H') hidden states of the anchor, `Policy.hidden`; detached, as is all of the anchor.
        head: the anchor's own head, with its own softcap.
        divergence: (logp (N, V), logq (N, V)) -> (N,), of log-probs of the policy and of the anchor.
    """

    hidden: torch.Tensor
    head: TokenLogProbs
    divergence: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

    def compare(self, logp: torch.Tensor, hidden: torch.Tensor, temperature: float) -> torch.Tensor:
        """(N,) divergences of the policy's (N, V) log-probs, at places where the anchor has `hidden` (N, H')."""
        with torch.no_grad():
            head = self.head.head
            logq = self.head.log_softmax(hidden, head.weight, getattr(head, "bias", None), temperature)
        if logq.shape != logp.shape:
            raise ValueError(
                f"the policy has {logp.shape[-1]} logits a token and the anchor {logq.shape[-1]}: a divergence over "
                "the whole vocabulary needs one and the same, so take an anchor of the same size or form: sampled"
            )
        found = self.divergence(logp, logq)
        if found.shape != logp.shape[:1]:
            raise ValueError(f"a divergence must be ({len(logp)},), one number a token, got {tuple(found.shape)}")
        return found


class TokenLogProbs(nn.Module):
    """The language-model head, asked only for the tokens that matter, a chunk at a time.

    Each chunk's logits are made again in the backward pass, so at most `chunk_tokens` x vocabulary of them exist at
    once, and as many for an anchor. Under ZeRO-3 this module is a leaf: the head's weight is gathered once for all
    chunks, on every rank alike, however many chunks a rank has. An anchor's head is not gathered from in here, so
    `full` cannot be had under ZeRO-3.
    """

    def __init__(
        self,
        head: nn.Module,
        chunk_tokens: int,
        softcap: float | None = None,
        factor: float = 1.0,
        wide: bool = False,
    ) -> None:
        """
        Args:
            wide: logits are of float32, as an engine's are whose head is (`model.head_dtype`).
        """
        super().__init__()
        self.head = head
        self.chunk_tokens = chunk_tokens
        self.softcap = softcap
        self.factor = factor
        self.wide = wide

    def forward(
        self, hidden: torch.Tensor, targets: torch.Tensor, temperature: float, full: Sequence[Against] = ()
    ) -> LogProbs:
        """
        Args:
            hidden: (M, H) hidden states that predict `targets`.
            targets: int64 (M,).
            temperature: logits are divided by it, as the engine does when it samples; an anchor's too.
            full: divergences wanted, each over the whole vocabulary.

        Returns:
            log-probs, entropies and divergences, all differentiable in the policy.

        Raises:
            ValueError: an anchor has other places or another vocabulary, or a divergence is not one number a place.
        """
        for against in full:
            if len(against.hidden) != len(hidden):
                raise ValueError(f"the anchor has {len(against.hidden)} hidden states, the policy {len(hidden)}")
        weight, bias = self.head.weight, getattr(self.head, "bias", None)
        chunks = zip(*(h.split(self.chunk_tokens) for h in (hidden, targets, *(a.hidden for a in full))), strict=True)
        parts = [
            checkpoint(self._chunk, weight, bias, temperature, full, *chunk, use_reentrant=False) for chunk in chunks
        ]
        logp, entropy, *divergences = (torch.cat(values) for values in zip(*parts, strict=True))
        return LogProbs(logp, entropy, tuple(divergences))

    def _chunk(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        temperature: float,
        full: Sequence[Against],
        hidden: torch.Tensor,
        targets: torch.Tensor,
        *anchors: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        log_softmax = self.log_softmax(hidden, weight, bias, temperature)
        logp = log_softmax.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        entropy = -(log_softmax.exp() * log_softmax).sum(-1)
        divergences = [a.compare(log_softmax, h, temperature) for a, h in zip(full, anchors, strict=True)]
        return (logp, entropy, *divergences)

    def log_softmax(
        self, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, temperature: float
    ) -> torch.Tensor:
        """float32 (N, V)."""
        hidden = hidden.to(weight.dtype)  # Mamba keeps residuals in float32
        if self.wide and weight.dtype != torch.float32:
            logits = _WideProduct.apply(hidden, weight)
            logits = logits if bias is None else logits + bias.float()
        else:
            logits = nn.functional.linear(hidden, weight, bias).float()
        if self.factor != 1:
            logits = logits * self.factor
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return torch.log_softmax(logits / temperature, dim=-1)


class _WideProduct(torch.autograd.Function):
    """float32 (N, V) logits of (N, H) hidden states and a (V, H) head, whatever their dtype.

    Gradients are computed as those of a head in their own dtype are: what is exact is what an engine must agree with.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(hidden, weight)
        return device.wide_product(hidden, weight.t())

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        hidden, weight = ctx.saved_tensors
        narrow = gradient.to(weight.dtype)
        of_hidden, of_weight = ctx.needs_input_grad
        return narrow @ weight if of_hidden else None, narrow.t() @ hidden if of_weight else None


def logits_factor(config: PretrainedConfig) -> float:
    """What a model multiplies the output of its head by, which families call by different names."""
    factor = float(getattr(config, "logit_scale", None) or 1)  # Cohere
    factor *= float(getattr(config, "lm_head_multiplier", None) or 1)  # Falcon-H1
    scaling = float(getattr(config, "logits_scaling", None) or 1)
    return factor * scaling if config.model_type == "hyperclovax" else factor / scaling  # Granite divides


class Policy(nn.Module):
    """A causal language model that answers with log-probs of given tokens instead of logits of all.

    Attributes:
        routers: what the routers of a mixture-of-experts model did in the latest forward; None without `replay`.
    """

    def __init__(self, model: nn.Module, chunk_tokens: int, replay: Replay | None = None) -> None:
        """
        Args:
            replay: of `model`, which then chooses the experts it is told to. Never for a model to compare with.
        """
        super().__init__()
        self.model = model
        self.replay = replay
        self.routers: RouterStats | None = None
        softcap = getattr(model.config, "final_logit_softcapping", None)
        # By the name that vLLM reads in a model's configuration, so that what config.json says holds on both sides.
        wide = getattr(model.config, "head_dtype", None) == "float32"
        self.logprobs = TokenLogProbs(
            model.get_output_embeddings(), chunk_tokens, softcap, logits_factor(model.config), wide
        )

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        predictors: torch.Tensor,
        targets: torch.Tensor,
        temperature: float,
        full: Sequence[Against] = (),
        segments: Segments | None = None,
        routes: RouteGrid | None = None,
        record: bool = False,
    ) -> LogProbs:
        """Log-probs and entropies of `targets`, and divergences; shapes as in `rlpost.learner.batch.Grid`.

        Args:
            segments: where sequences are; attention that finds it out from positions does without.
            routes: the experts to choose; None leaves that to the routers.
            record: keep the experts that were used in `routers`.
        """
        hidden = self.hidden(input_ids, position_ids, predictors, segments, routes, record)
        return self.logprobs(hidden, targets, temperature, full)

    def hidden(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        predictors: torch.Tensor,
        segments: Segments | None = None,
        routes: RouteGrid | None = None,
        record: bool = False,
    ) -> torch.Tensor:
        """(M, H), what the head takes in at `predictors`.

        Raises:
            ValueError: attention has to be told where sequences are, and is not.
        """
        backbone = getattr(self.model, self.model.base_model_prefix, None) or self.model.model  # Llama 4 names another
        told = {}
        if takes_segments(self.model):
            if segments is None:
                raise ValueError("attention of this implementation needs the grid's segments")
            told = segments.arguments()
        with nullcontext() if self.replay is None else self.replay.using(routes, record) as self.routers:
            hidden = backbone(input_ids=input_ids, position_ids=position_ids, use_cache=False, **told).last_hidden_state
        return hidden.flatten(0, 1)[predictors]
