"""Log-probabilities of given tokens without holding [tokens, vocabulary] for the whole batch."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class TokenLogProbs(nn.Module):
    """The language-model head, asked only for the tokens that matter, a chunk at a time.

    Each chunk's logits are made again in the backward pass, so at most `chunk_tokens` x vocabulary of them exist at
    once. Under ZeRO-3 this module is a leaf: the head's weight is gathered once for all chunks, on every rank alike,
    however many chunks a rank has.
    """

    def __init__(self, head: nn.Module, chunk_tokens: int, softcap: float | None = None) -> None:
        super().__init__()
        self.head = head
        self.chunk_tokens = chunk_tokens
        self.softcap = softcap

    def forward(
        self, hidden: torch.Tensor, targets: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            hidden: (M, H) hidden states that predict `targets`.
            targets: int64 (M,).
            temperature: logits are divided by it, as the engine does when it samples.

        Returns:
            float32 (M,) log-probabilities and float32 (M,) entropies (nats), both differentiable.
        """
        weight, bias = self.head.weight, getattr(self.head, "bias", None)
        parts = [
            checkpoint(self._chunk, h, t, weight, bias, temperature, use_reentrant=False)
            for h, t in zip(hidden.split(self.chunk_tokens), targets.split(self.chunk_tokens), strict=True)
        ]
        logp, entropy = zip(*parts, strict=True)
        return torch.cat(logp), torch.cat(entropy)

    def _chunk(
        self,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        temperature: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits = nn.functional.linear(hidden, weight, bias).float()
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        log_softmax = torch.log_softmax(logits / temperature, dim=-1)
        logp = log_softmax.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        entropy = -(log_softmax.exp() * log_softmax).sum(-1)
        return logp, entropy


class Policy(nn.Module):
    """A causal language model that answers with log-probs of given tokens instead of logits of all."""

    def __init__(self, model: nn.Module, chunk_tokens: int) -> None:
        super().__init__()
        self.model = model
        config = model.config
        for key in ("logits_scaling", "logit_scale"):
            if getattr(config, key, None) not in (None, 1, 1.0):
                raise ValueError(f"{type(model).__name__} scales its logits by {key}, which the learner does not apply")
        self.logprobs = TokenLogProbs(
            model.get_output_embeddings(), chunk_tokens, getattr(config, "final_logit_softcapping", None)
        )

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        predictors: torch.Tensor,
        targets: torch.Tensor,
        temperature: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs and entropies of `targets`; shapes as in `rlpost.learner.batch.Grid`."""
        backbone = getattr(self.model, self.model.base_model_prefix)
        hidden = backbone(input_ids=input_ids, position_ids=position_ids, use_cache=False).last_hidden_state
        return self.logprobs(hidden.flatten(0, 1)[predictors], targets, temperature)
