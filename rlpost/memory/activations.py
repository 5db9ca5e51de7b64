"""What a forward and backward pass of the learner holds: its own code run on the meta device, and its storages counted."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from rlpost.learner.logprobs import Policy
from rlpost.memory.counted import Storages


@dataclass(frozen=True)
class Work:
    """Bytes of one micro-batch, without weights and without gradients that are kept.

    Attributes:
        kept: what the forward leaves for the backward pass below the head.
        head: the most that is there beside it while log-probs are made and differentiated: logits of a chunk.
        layers: the most that is there beside it in the rest of the backward pass, what is made again included.
    """

    kept: int
    head: int
    layers: int


class UncountedError(Exception):
    """A network that does not run on the meta device; says why."""


def work_of(
    network: Any,
    rows: int,
    length: int,
    chunk: int,
    attention: str,
    checkpointing: bool,
    arrives: Callable[[nn.Parameter], None] = lambda parameter: None,
) -> Work:
    """Run one micro-batch of (rows, length) tokens, all of them of responses, and count.

    Args:
        network: on the meta device, in the dtype it is trained in; what does not require a gradient is not trained.
        chunk: tokens whose logits are held at once.
        attention: `sdpa` with the mask of a packed row, `eager`, or any other, which is by variable lengths.
        checkpointing: whether layers are made again in the backward pass.
        arrives: told each parameter whose gradient is complete, before that is dropped.

    Raises:
        UncountedError: the network looks into its tensors, or has attention of its own.
    """

    def complete(parameter: nn.Parameter) -> None:
        arrives(parameter)
        parameter.grad = None

    policy, hooks = Policy(network, chunk), []
    trained = [p for p in network.parameters() if p.requires_grad]
    try:
        _set_attention(network, attention)
        if checkpointing:
            network.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
            if len(trained) < sum(1 for _ in network.parameters()):
                network.enable_input_require_grads()
        hooks = [p.register_post_accumulate_grad_hook(complete) for p in trained]
        return _run(policy, rows, length)
    except (RuntimeError, NotImplementedError, ValueError, KeyError, TypeError, AttributeError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise UncountedError(f"{type(network).__name__} does not run without its numbers: {said[:200]}") from error
    finally:
        for hook in hooks:
            hook.remove()
        if checkpointing:
            network.activation_checkpointing_disable()
            network.disable_input_require_grads()


def forward_peak(network: Any, tokens: int) -> int:
    """Bytes at most at once of a forward pass of (1, tokens) without gradients and without logits, weights left out.

    Raises:
        UncountedError: as `work_of`.
    """
    try:
        _set_attention(network, "varlen")
        ids = torch.zeros(1, tokens, dtype=torch.int64, device="meta")
        with torch.no_grad(), Storages("meta", [*network.parameters(), *network.buffers(), ids]) as memory:
            Policy(network, 1).hidden(ids, torch.zeros_like(ids), ids.new_zeros(1))
        return memory.peak
    except (RuntimeError, NotImplementedError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UncountedError(f"{type(network).__name__} does not run without its numbers: {error}") from error


def _run(policy: Policy, rows: int, length: int) -> Work:
    ids = torch.zeros(rows, length, dtype=torch.int64, device="meta")
    targets = torch.zeros(rows * (length - 1), dtype=torch.int64, device="meta")
    kept = head = 0
    with Storages("meta", [*policy.parameters(), *policy.buffers(), ids, targets]) as memory:

        def below(grad: torch.Tensor) -> None:
            nonlocal head
            head, memory.peak = memory.peak, memory.held

        hidden = policy.hidden(ids, torch.zeros_like(ids), targets)
        kept, memory.peak = memory.held, memory.held
        hidden.register_hook(below)
        out = policy.logprobs(hidden, targets, 1.0)
        del hidden
        loss = out.logp.sum() + out.entropy.sum()  # as an objective: entropies are measured and not always learned from
        del out
        loss.backward()
    return Work(kept, max(head - kept, 0), max(memory.peak - kept, 0))


# ---------------------------------------------------------------------------------------- attention without its kernels


class _Flash(torch.autograd.Function):
    """What a flash kernel makes and keeps: the output and, for each query, a float32 (`torch.nn.attention.varlen`).

    Its backward makes gradients of all three, those of keys and values a head each at first (Dao, FlashAttention-2).
    """

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any) -> torch.Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32), mask)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def _varlen(
    masks: _Masks, module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **_: Any
) -> tuple[torch.Tensor, None]:
    """Rows laid end to end."""
    flat = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    return _Flash.apply(*flat, None).unflatten(0, (len(query), -1)), None


def _sdpa(
    masks: _Masks, module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **_: Any
) -> tuple[torch.Tensor, None]:
    """Under a mask of every place against every other: heads are repeated, and kernels want the mask in their dtype."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (key, value))
    square = masks.of(module, query, torch.bool).to(query.dtype)
    return _Flash.apply(query, key, value, square).transpose(1, 2).contiguous(), None


def _eager(
    masks: _Masks,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: Any,
    **given: Any,
) -> tuple[torch.Tensor, Any]:
    own = sys.modules[type(module).__module__].eager_attention_forward
    found: tuple[torch.Tensor, Any] = own(module, query, key, value, masks.of(module, query, query.dtype), **given)
    return found


class _Masks:
    """Of every place against every other: made at the first layer that needs it, and shared by those of one window."""

    def __init__(self) -> None:
        self._made: dict[Any, torch.Tensor] = {}

    def of(self, module: nn.Module, query: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        key = getattr(module, "sliding_window", None)
        if key not in self._made:
            self._made[key] = query.new_empty(len(query), 1, query.shape[2], query.shape[2], dtype=dtype)
        return self._made[key]


MASKED = {"sdpa": _sdpa, "eager": _eager}


def _set_attention(network: Any, kind: str) -> None:
    from transformers import AttentionInterface

    name = f"counted_{kind}"  # transformers makes no mask for an implementation that has registered none
    AttentionInterface.register(name, partial(MASKED.get(kind, _varlen), _Masks()))
    network.set_attn_implementation(name)
    if network.config.get_text_config(decoder=True)._attn_implementation != name:
        raise ValueError("its attention is not behind the interface of transformers")
