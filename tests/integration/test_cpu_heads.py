"""The sizes of attention heads that are let through on CPUs are those the engine's kernels are compiled for."""

import torch

from rlpost.models.fits import CPU_HEADS


def test_the_engine_has_kernels_on_cpus_for_the_sizes_that_are_let_through_and_for_no_other():
    from vllm import _custom_ops as ops
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    current_platform.import_kernels()

    def served(size: int, dtype: torch.dtype) -> bool:
        try:
            ops.cpu_attn_get_scheduler_metadata(
                num_reqs=1,
                num_heads=2,
                num_kv_heads=1,
                head_dim=size,
                seq_lens=torch.tensor([5], dtype=torch.int32),
                dtype=dtype,
                query_start_loc=torch.tensor([0, 5], dtype=torch.int32),
                causal=True,
                sliding_window_size=-1,
                isa=_get_attn_isa(dtype, 128, size),
                enable_kv_split=True,
            )
        except RuntimeError as error:
            if "Unsupported CPU attention configuration" not in str(error):
                raise
            return False
        return True

    for dtype in (torch.float32, torch.bfloat16):
        assert tuple(size for size in range(8, 520, 8) if served(size, dtype)) == CPU_HEADS
