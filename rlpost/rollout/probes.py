"""Tensors of an engine read back. Both run inside vLLM's workers, through its `collective_rpc`."""

from __future__ import annotations

from typing import Any

from rlpost.weights import Held, Probe, checksum, to_numpy


def readable(worker: Any) -> dict[str, Held]:
    """Names, shapes and dtypes of the tensors an engine keeps as they are in the checkpoint: embeddings, norms, biases.

    Others are fused, sharded or packed for a kernel (an empty tensor is left behind), and have other names or shapes.
    """
    held = worker.model_runner.get_model().named_parameters()
    return {n: Held(tuple(t.shape), str(t.dtype).removeprefix("torch.")) for n, t in held if t.numel()}


def wrong_probes(worker: Any, probes: dict[str, Probe]) -> list[str]:
    """Names of the probed tensors whose bytes the engine does not hold."""
    held = dict(worker.model_runner.get_model().named_parameters())
    return [
        name
        for name, probe in probes.items()
        if name not in held or checksum(to_numpy(held[name].data[: probe.shape[0]].cpu())) != probe.checksum
    ]
