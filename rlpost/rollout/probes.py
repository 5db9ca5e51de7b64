"""Tensors of an engine read back. Both run inside vLLM's workers, through its `collective_rpc`."""

from __future__ import annotations

from typing import Any

from rlpost.weights import Held, Probe, checksum, to_numpy


def readable(worker: Any) -> dict[str, Held]:
    """Names, shapes and dtypes of the tensors an engine keeps as they are in the checkpoint: embeddings, norms, biases.

    Others are fused, sharded or packed for a kernel (an empty tensor is left behind), and have other names or shapes.
    Queries, keys and values that are one tensor in the checkpoint too may stand in another order in it (GPT-NeoX, BLOOM),
    and of a small vocabulary that is shared out and padded the first worker has all, and the others nothing.
    """
    from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    def kept(module: Any) -> bool:
        if isinstance(module, VocabParallelEmbedding):
            return bool(module.tp_size == 1)
        return not isinstance(module, QKVParallelLinear | MergedColumnParallelLinear)

    model = worker.model_runner.get_model()
    others = {name for name, module in model.named_modules() if not kept(module)}
    return {
        name: Held(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in model.named_parameters()
        if tensor.numel() and name.rpartition(".")[0] not in others
    }


def wrong_probes(worker: Any, probes: dict[str, Probe]) -> list[str]:
    """Names of the probed tensors whose bytes the engine does not hold."""
    held = dict(worker.model_runner.get_model().named_parameters())
    return [
        name
        for name, probe in probes.items()
        if name not in held or checksum(to_numpy(held[name].data[: probe.shape[0]].cpu())) != probe.checksum
    ]
