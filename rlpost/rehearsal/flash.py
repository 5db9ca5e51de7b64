"""In the place of FlashAttention's kernels: the same arithmetic in plain torch, chosen between by transformers as on GPUs.

Which of the two functions is called decides whether packed sequences see each other, so that is what is rehearsed.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch.nn import functional


def install() -> None:
    """Let transformers take these functions for the package flash_attn, in this process from here on."""
    import transformers.modeling_flash_attention_utils as flash
    from transformers import PreTrainedModel

    flash.FLASH_ATTENTION_COMPATIBILITY_MATRIX[2]["general_availability_check"] = lambda *given, **how: True
    flash._flash_fn, flash._flash_varlen_fn = dense, packed
    flash._process_flash_kwargs_fn = flash._lazy_define_process_function(packed)
    flash._loaded_implementation = "flash_attention_2"
    PreTrainedModel._flash_attn_can_dispatch = lambda *given, **how: True


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool = True, **how: Any) -> torch.Tensor:
    """`flash_attn_func`: each row is one sequence, whatever its positions. (B, L, H, D)."""
    groups = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(groups, 2), v.repeat_interleave(groups, 2)))
    scale = how.get("softmax_scale")
    return functional.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale).transpose(1, 2)


def packed(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    causal: bool = True,
    softmax_scale: float | None = None,
    **how: Any,
) -> torch.Tensor:
    """`flash_attn_varlen_func`: sequences end to end, cut where `cu_seqlens_q` says. (T, H, D)."""
    cuts = cu_seqlens_q.tolist()
    pieces = [
        dense(q[None, a:b], k[None, a:b], v[None, a:b], causal, softmax_scale=softmax_scale)[0]
        for a, b in pairwise(cuts)
    ]
    return torch.cat(pieces)
