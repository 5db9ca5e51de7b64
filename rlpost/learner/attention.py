"""`model.attention: varlen`: attention within each sequence of a grid, by kernels that take their lengths, without a mask.

transformers' `sdpa` keeps packed sequences apart with a mask of every place against every other, which no flash kernel
takes: the whole square of a row is computed, and keys and values are repeated for grouped heads. Here the rows of a grid
are laid end to end, and the kernel is told where each sequence begins (`Segments`), whatever the number of rows: on GPUs
`torch.nn.attention.varlen`, on a CPU torch's own attention, a sequence at a time.

What stands where other implementations have a mask is `Causal`, made where transformers makes masks. So what a layer may
see is read off the same call that makes the masks of `sdpa`, and a model that puts another mask there, or asks for what the
kernel does not have, is refused at its first forward. What is known from its configuration: `rlpost.models.attention`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import pad, scaled_dot_product_attention

from rlpost.config import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "varlen"
# What of a forward comes by here and changes nothing of attention; the rest is refused, lest it be left out in silence.
INERT = {"cu_seq_lens_k", "max_length_k", "sliding_window", "position_ids", "use_cache", "output_attentions"}
MULTIPLE = 8  # of the numbers of a head, for the kernel


@dataclass(frozen=True)
class Segments:
    """Where the sequences of a grid are, its rows laid end to end. The padding behind a row counts as one.

    Attributes:
        cu_seqlens: int32 (S + 1,), 0 and where each of the S segments ends.
        max_seqlen: tokens of the longest.
    """

    cu_seqlens: torch.Tensor
    max_seqlen: int

    @classmethod
    def of(cls, position_ids: torch.Tensor, device: torch.device | str) -> Segments:
        """Of a grid's positions (rows, length), on a CPU, which begin at 0 with every segment."""
        flat = position_ids.flatten()
        ends = torch.cat([torch.nonzero(flat == 0).flatten(), flat.new_tensor([len(flat)])])
        return cls(ends.int().to(device), int(ends.diff().max()))

    def arguments(self) -> dict[str, Any]:
        """What attention is told, under the names that transformers has for it (its `FlashAttentionKwargs`)."""
        return {
            **dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), self.cu_seqlens),
            **dict.fromkeys(("max_length_q", "max_length_k"), self.max_seqlen),
        }


@dataclass(frozen=True)
class Causal:
    """A token sees its own sequence up to itself: the last `window` tokens of it, itself among them; None: all."""

    window: int | None


def register() -> None:
    """Make `varlen` an implementation of attention for all models of transformers in this process."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, varlen_attention)
    AttentionMaskInterface.register(NAME, causal)


def takes_segments(model: PreTrainedModel) -> bool:
    """Whether attention is to be told where sequences are, as flash kernels have to be when there are several rows.

    Layers that carry a state from token to token would take it for themselves, too, and do not all know how.
    """
    told = getattr(model.config, "_attn_implementation", None) in (NAME, "flash_attention_2")
    return told and not getattr(model, "_is_stateful", False)


def causal(
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    config: Any = None,
    **_: Any,
) -> Causal:
    """What takes the place of a mask. Arguments are those that transformers makes masks of.

    Args:
        local_size: of a sliding window, or of a chunk.
        use_vmap: whether the model adds a rule of its own.

    Raises:
        ConfigError: tokens are to see anything else.
    """
    if attention_mask is not None or use_vmap:
        raise _refusal(getattr(config, "model_type", "the model"), "masks of its own")
    if local_size is not None and local_size == getattr(config, "attention_chunk_size", None):
        raise _refusal(config.model_type, f"attention in chunks (attention_chunk_size: {local_size})")
    return Causal(local_size)


def varlen_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers' layers call it.

    Args:
        query: (rows, heads, length, D).
        key, value: (rows, key-value heads, length, D or D'); grouped heads are not repeated.
        attention_mask: a `Causal`.
        scaling: of the products; 1 / sqrt(D) when None.
        cu_seq_lens_q, max_length_q: of `Segments`.

    Returns:
        (rows, length, heads, D'), and no weights.

    Raises:
        ConfigError: the layer asks for what is not computed here.
    """
    name = type(module).__name__
    if unknown := sorted(k for k, v in others.items() if v is not None and k not in INERT):
        raise _refusal(name, f"attention with {' and '.join(unknown)}")
    if not isinstance(attention_mask, Causal) or not (
        getattr(module, "is_causal", True) if is_causal is None else is_causal
    ):
        raise _refusal(name, "masks of its own")
    if cu_seq_lens_q is None or max_length_q is None:
        raise _refusal(name, "layers that do not tell their attention where sequences begin (cu_seq_lens_q)")
    if dropout:
        raise _refusal(name, f"attention with dropout ({dropout})")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = (
        attention_mask.window if attention_mask.window is not None and attention_mask.window < max_length_q else None
    )
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    if on_cpu(query):
        out = by_sequence(q, k, v, cu_seq_lens_q, window, scale)
    else:
        out = by_kernel(q, k, v, cu_seq_lens_q, max_length_q, window, scale)
    return out.unflatten(0, (len(query), -1)), None


def on_cpu(tensor: torch.Tensor) -> bool:
    """Where there is no kernel."""
    return tensor.device.type == "cpu"


def by_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    window: int | None,
    scale: float,
) -> torch.Tensor:
    """(T, heads, D') of (T, heads, D), (T, key-value heads, D) and (T, key-value heads, D'), by torch's CUDA kernel.

    It wants heads of one width for all three, a multiple of 8: zeros behind a head change nothing, with the scale given.
    """
    width = -(-max(query.shape[-1], value.shape[-1]) // MULTIPLE) * MULTIPLE
    query, key, value_ = (x if x.shape[-1] == width else pad(x, (0, width - x.shape[-1])) for x in (query, key, value))
    out: torch.Tensor = varlen_attn(
        query,
        key,
        value_,
        cu_seqlens,
        cu_seqlens,
        max_seqlen,
        max_seqlen,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),  # tokens before, and after, the token itself
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out[..., : value.shape[-1]]


def by_sequence(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens: torch.Tensor,
    window: int | None,
    scale: float,
) -> torch.Tensor:
    """As `by_kernel`, in any dtype on any device: a call for each segment."""
    lengths = cu_seqlens.diff().tolist()
    grouped = query.shape[1] != key.shape[1]
    parts = []
    for split in zip(query.split(lengths), key.split(lengths), value.split(lengths), strict=True):
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in split)
        mask = None if window is None or q.shape[2] <= window else _band(q.shape[2], window, q.device)
        out = scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
        )
        parts.append(out[0].transpose(0, 1))
    return torch.cat(parts)


def _band(length: int, window: int, device: torch.device) -> torch.Tensor:
    """bool (length, length): the last `window` places up to each."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril().triu(1 - window)


def _refusal(who: str, what: str) -> ConfigError:
    return ConfigError(
        f"model.attention: {NAME}, but {who} has {what}, which it does not compute: set model.attention: sdpa"
    )
