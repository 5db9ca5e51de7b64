"""What vLLM loads in every process it starts (entry point `vllm.general_plugins`)."""

from __future__ import annotations

import ast
import functools
import inspect
import logging
import textwrap
from typing import Any

from rlpost import rehearsal

logger = logging.getLogger(__name__)

REPAIRED_VERSIONS = ("0.30.",)

# What takes weights that travel by a transport of ours, as vLLM is to call it, and its class in `rlpost.rollout.receive`.
RECEIVERS = {
    "object_store": ("object_store", "ObjectStoreReceiver"),
    "nccl": ("whole_nccl", "NCCLReceiver"),
    "ipc": ("whole_ipc", "IPCReceiver"),
}


def register() -> None:
    """Make our weight receivers known by name, and repair what needs it. vLLM may call this more than once."""
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    for name, receiver in RECEIVERS.values():
        if name not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(name, "rlpost.rollout.receive", receiver)
    if rehearsal.told():
        rehearsal.install()
    repair_expert_reload()
    repair_rotary()
    repair_router_bias()
    repair_xielu()
    repair_adapters()


def repair_expert_reload() -> None:
    """Have the experts of a CPU engine packed for their kernel on every load, not on the first alone.

    vLLM 0.30 packs them when it makes the kernel. A weight update finds the kernel made and leaves the new weights as
    they came, which the kernel then reads as packed: log-probs drift by tenths, without an error.
    """
    import vllm
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

    setup = UnquantizedFusedMoEMethod._setup_kernel
    if getattr(setup, "packs_every_load", False) or not packs_first_load_only(inspect.getsource(setup)):
        return
    if vllm.__version__.startswith(REPAIRED_VERSIONS):
        UnquantizedFusedMoEMethod._setup_kernel = packing_every_load(setup)
    else:
        logger.error(
            "vLLM %s does not pack experts anew in a weight update, as 0.30 does not, and the repair was never tried on "
            "it: log-probs of a mixture-of-experts model on CPU will drift from the learner's. Install vLLM 0.30.0.",
            vllm.__version__,
        )


def packs_first_load_only(source: str) -> bool:
    """Whether the source of `_setup_kernel` packs experts under a condition that a weight update does not meet."""
    for node in ast.walk(ast.parse(textwrap.dedent(source))):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "not is_weight_update":
            calls = [n.func for branch in node.body for n in ast.walk(branch) if isinstance(n, ast.Call)]
            return any(isinstance(c, ast.Attribute) and c.attr == "process_weights_after_loading" for c in calls)
    return False


def packing_every_load(setup: Any) -> Any:
    """`setup`, a method `_setup_kernel` of vLLM's, with the packing of experts on CPU after a weight update too."""

    @functools.wraps(setup)
    def _setup_kernel(self: Any, layer: Any, *args: Any, **kwargs: Any) -> None:
        from vllm.model_executor.layers.fused_moe.oracle.unquantized import UnquantizedMoeBackend

        update = self.moe_kernel is not None
        setup(self, layer, *args, **kwargs)
        if update and self.unquantized_backend == UnquantizedMoeBackend.CPU:
            self.moe_kernel.fused_experts.process_weights_after_loading(layer)

    _setup_kernel.packs_every_load = True  # type: ignore[attr-defined]
    return _setup_kernel


def repair_rotary() -> None:
    """Have the rotary kernel of CPU engines see the heads of a token in one row, as it expects them.

    vLLM 0.30's kernel turns only a part of a query (tokens, heads, size) with more than one head, without an error. The
    latent attention of DeepSeek-V3 passes such a query: log-probs are off by tenths, from the first weights on. One in a
    row (tokens, heads * size) comes out right, so this may stay when the kernel is mended.
    """
    from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

    if not getattr(RotaryEmbedding.forward_cpu, "heads_in_a_row", False):
        RotaryEmbedding.forward_cpu = turning_heads_in_a_row(RotaryEmbedding.forward_cpu)


def turning_heads_in_a_row(turn: Any) -> Any:
    """`turn`, a method `forward_cpu(positions, query, key)` of vLLM's, given every token's heads as one row."""

    @functools.wraps(turn)
    def forward_cpu(self: Any, positions: Any, query: Any, key: Any = None) -> Any:
        def row(x: Any) -> Any:
            return x if x is None or x.dim() < 3 else x.flatten(1)

        turned = turn(self, positions, row(query), row(key))
        return tuple(t if t is None else t.view(x.shape) for t, x in zip(turned, (query, key), strict=True))

    forward_cpu.heads_in_a_row = True  # type: ignore[attr-defined]
    return forward_cpu


def repair_router_bias() -> None:
    """Have the bias that selects experts used on CPU in routers without groups, too.

    vLLM 0.30's `CPURouter` drops it there without a word (ERNIE 4.5): experts are other ones than the learner's as soon
    as the bias is not zero. And it knows softmax alone there. One group of all experts is the same question, answered.
    """
    import vllm
    from vllm.platforms import current_platform

    if not current_platform.is_cpu() or not vllm.__version__.startswith(REPAIRED_VERSIONS):
        return
    from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter

    if not getattr(CPURouter._compute_routing, "in_one_group", False):
        CPURouter._compute_routing = routing_in_one_group(CPURouter._compute_routing)


def routing_in_one_group(compute: Any) -> Any:
    """`compute`, a method `_compute_routing` of vLLM's, of a router whose experts are one group where it has none."""

    @functools.wraps(compute)
    def _compute_routing(self: Any, *args: Any, **kwargs: Any) -> Any:
        scored = self.scoring_func in ("softmax", "sigmoid") and self.custom_routing_function is None
        if (
            not self.use_grouped_topk
            and scored
            and (self.e_score_correction_bias is not None or self.scoring_func == "sigmoid")
        ):
            self.use_grouped_topk, self.num_expert_group, self.topk_group = True, 1, 1
        return compute(self, *args, **kwargs)

    _compute_routing.in_one_group = True  # type: ignore[attr-defined]
    return _compute_routing


def repair_xielu() -> None:
    """Have the trained scalars of the activation xIELU (Apertus) held in the engine's dtype.

    vLLM 0.30 always makes them bfloat16: in a float32 engine an update of them is rounded away.
    """
    import vllm

    if not vllm.__version__.startswith(REPAIRED_VERSIONS):
        return
    import torch
    from vllm.model_executor.layers.activation import XIELU

    init = XIELU.__init__
    if getattr(init, "in_own_dtype", False):
        return

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **{"dtype": torch.get_default_dtype(), **kwargs})

    __init__.in_own_dtype = True  # type: ignore[attr-defined]
    XIELU.__init__ = __init__


def repair_adapters() -> None:
    """Have the one adapter of a CPU engine multiplied, not copied for every token first.

    vLLM 0.30 gathers A and B of each token's adapter, (tokens, out, rank), before it multiplies: a hundred times the time of
    one product at 64 tokens. Where there is one slot all tokens have the same.
    """
    import vllm
    from vllm.platforms import current_platform

    if not current_platform.is_cpu() or not vllm.__version__.startswith(REPAIRED_VERSIONS):
        return
    from vllm.lora.ops.torch_ops import lora_ops

    for name, ours in (("bgmv_shrink", _shrink), ("bgmv_expand", _expand), ("bgmv_expand_slice", _expand_slice)):
        theirs = getattr(lora_ops, name)
        if not getattr(theirs, "one_slot", False):
            setattr(lora_ops, name, with_one_slot(theirs, ours))


def with_one_slot(theirs: Any, ours: Any) -> Any:
    """vLLM's operation, but ours where the stacked weights (slots, 1, out, in) hold one adapter."""

    @functools.wraps(theirs)
    def operation(inputs: Any, weights: Any, output: Any, indices: Any, *args: Any) -> None:
        if weights.shape[0] != 1:
            theirs(inputs, weights, output, indices, *args)
            return
        product = inputs.to(output.dtype) @ weights.reshape(weights.shape[-2:]).to(output.dtype).T
        ours(product, output, *args)

    operation.one_slot = True  # type: ignore[attr-defined]
    return operation


def _shrink(product: Any, output: Any, scaling: float = 1.0) -> None:
    output[:, : product.shape[1]] = scaling * product


def _expand(product: Any, output: Any, add_inputs: bool = True) -> None:
    _expand_slice(product, output, 0, min(product.shape[1], output.shape[1]), add_inputs)


def _expand_slice(product: Any, output: Any, offset: int, size: int, add_inputs: bool = True) -> None:
    part = output[: product.shape[0], offset : offset + size]
    if add_inputs:
        part += product[: output.shape[0], :size]
    else:
        part.copy_(product[: output.shape[0], :size])
