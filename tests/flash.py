"""Stand-ins for flash attention's CUDA kernels, in plain torch, that refuse what those refuse.

`torch_kernels` puts them under torch's own operators for the time of a `with`, so that `torch.nn.attention.varlen` runs on a
CPU as it is, backward pass included; `flash_attn_package` puts them in the place of the package that transformers calls.
They compute in the dtype they are given, float32 too, and make the whole square of scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch


def probabilities(
    query: torch.Tensor, key: torch.Tensor, ends: torch.Tensor, scale: float, left: int, right: int
) -> torch.Tensor:
    """(heads, T, T): of every place over all places, those out of its sequence or window zero."""
    segment = torch.bucketize(torch.arange(len(query)), ends[1:].long(), right=True)
    ahead = torch.arange(len(query))[None, :] - torch.arange(len(query))[:, None]
    seen = segment[:, None] == segment[None, :]
    seen &= (ahead <= right) if right >= 0 else True
    seen &= (-ahead <= left) if left >= 0 else True
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    return scores.masked_fill(~seen, -torch.inf).softmax(-1)


def dense(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: torch.Tensor,
    scale: float,
    left: int,
    right: int,
) -> torch.Tensor:
    """(T, heads, D), attention by its definition.

    Args:
        left, right: places before and after its own that a token sees; -1: all.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return torch.einsum("hqk,khd->qhd", probabilities(query, key, ends, scale, left, right), value)


def gradients(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: torch.Tensor,
    scale: float,
    left: int,
    right: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of `dense`, by hand: below an operator there is no autograd."""
    groups = query.shape[1] // key.shape[1]
    wide_key, wide_value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    p = probabilities(query, wide_key, ends, scale, left, right)
    of_p = torch.einsum("qhd,khd->hqk", grad, wide_value)
    of_scores = p * (of_p - (of_p * p).sum(-1, keepdim=True)) * scale
    of_key = torch.einsum("hqk,qhd->khd", of_scores, query).unflatten(1, (-1, groups)).sum(2)
    of_value = torch.einsum("hqk,qhd->khd", p, grad).unflatten(1, (-1, groups)).sum(2)
    return torch.einsum("hqk,khd->qhd", of_scores, wide_key), of_key, of_value


def _check(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: torch.Tensor, longest: int) -> None:
    """What the CUDA kernel checks, or reads past the end by."""
    assert ends.dtype == torch.int32
    assert ends.is_contiguous()
    assert int(ends[0]) == 0
    assert int(ends[-1]) == len(query) == len(key) == len(value)
    assert int(ends.diff().max()) == longest
    assert int(ends.diff().min()) > 0
    width = query.shape[-1]
    assert width == key.shape[-1] == value.shape[-1]
    assert width % 8 == 0
    assert width <= 256
    assert query.shape[1] % key.shape[1] == 0
    assert all(x.dim() == 3 and x.stride(-1) == 1 for x in (query, key, value))


@contextmanager
def torch_kernels() -> Iterator[list[dict[str, Any]]]:
    """torch's operators for flash attention on CPUs; yields what each forward was called with."""
    calls: list[dict[str, Any]] = []

    def forward(
        query: Any, key: Any, value: Any, cum_q: Any, cum_k: Any, max_q: int, max_k: int, dropout: float, is_causal: bool,
        return_debug_mask: bool, *, scale: float, window_size_left: int, window_size_right: int, **none: Any,
    ) -> Any:  # fmt: skip
        assert dropout == 0
        assert not any(given is not None for given in none.values())
        assert cum_q is cum_k or torch.equal(cum_q, cum_k)
        assert is_causal == ((window_size_left, window_size_right) == (-1, 0))
        _check(query, key, value, cum_q, max_q)
        calls.append({"query": query, "key": key, "window": (window_size_left, window_size_right), "longest": max_k})
        out = dense(query, key, value, cum_q, scale, window_size_left, window_size_right)
        nothing = query.new_empty(0)
        return out, query.new_zeros(query.shape[1], len(query)), nothing, nothing, nothing

    def backward(
        grad_out: Any, query: Any, key: Any, value: Any, out: Any, lse: Any, cum_q: Any, cum_k: Any, max_q: int, max_k: int,
        dropout: float, is_causal: bool, rng_state: Any, unused: Any, *, scale: float, window_size_left: int,
        window_size_right: int,
    ) -> Any:  # fmt: skip
        return gradients(grad_out, query, key, value, cum_q, scale, window_size_left, window_size_right)

    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", forward, "CPU")
    library.impl("_flash_attention_backward", backward, "CPU")
    try:
        yield calls
    finally:
        library._destroy()


def flash_attn_package(patch: pytest.MonkeyPatch) -> list[str]:
    """The two functions of flash-attn that transformers calls; returns the names of those called, as they are."""
    import transformers.modeling_flash_attention_utils as utils

    calls: list[str] = []

    def whole(q: Any, k: Any, v: Any, causal: bool = True, **given: Any) -> Any:  # (rows, length, heads, D)
        calls.append("whole")
        assert causal
        ends = torch.tensor([0, q.shape[1]], dtype=torch.int32)
        scale = given["softmax_scale"] or q.shape[-1] ** -0.5
        return torch.stack([dense(*row, ends, scale, -1, 0) for row in zip(q, k, v, strict=True)])

    def varlen(q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, causal: bool = True, **given: Any) -> Any:
        calls.append("varlen")
        assert causal
        _check(q, k, v, cu_seqlens_q, given["max_seqlen_q"])
        return dense(q, k, v, cu_seqlens_q, given["softmax_scale"] or q.shape[-1] ** -0.5, -1, 0)

    def wanted(**given: Any) -> dict[str, Any]:
        return {name: given.get(name) for name in ("softmax_scale", "max_seqlen_q", "max_seqlen_k")} | {
            "causal": given["is_causal"]
        }

    def found(*_: Any, **__: Any) -> Any:
        return (whole, varlen, None, None, None), (wanted, None)

    patch.setattr(utils, "lazy_import_flash_attention", found)
    patch.setattr("transformers.modeling_utils.lazy_import_flash_attention", found)
    patch.setattr("transformers.PreTrainedModel._flash_attn_can_dispatch", lambda *_, **__: True)
    return calls
