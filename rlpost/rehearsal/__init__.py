"""What stands in for GPUs where there are none: the way weights go on GPUs, rehearsed on CPU.

vLLM's own transfer engines run, with their rendezvous and packing. Stood in for is what they call below that: NCCL
(`communicator`), CUDA IPC (`handles`), streams and the numbers of devices (`devices`). Each refuses what it stands for would.

It is asked for by `stand_in` of an engine's or a learner's spec and by nothing else. An engine tells the workers it starts
by the environment, which vLLM's plugin reads (`rlpost.rollout.plugin`).
"""

from __future__ import annotations

import os

VARIABLE = "RLPOST_STAND_IN"


def tell(stand_in: bool) -> None:
    """Say to this process and to those it starts whether GPUs are stood in for. In a Ray actor."""
    import ray

    os.environ.pop(VARIABLE, None)  # whatever the actor was given
    if stand_in:
        os.environ[VARIABLE] = ray.get_runtime_context().get_node_id()


def told() -> bool:
    return VARIABLE in os.environ


def install() -> None:
    """Stand in for GPUs in what vLLM transfers weights with, in this process from here on.

    Raises:
        RuntimeError: there is a GPU.
    """
    from importlib import import_module

    import torch.multiprocessing.reductions as reductions
    from vllm.distributed.device_communicators import pynccl

    from rlpost import device
    from rlpost.rehearsal import devices, handles
    from rlpost.rehearsal.communicator import Communicator

    if device.present():
        raise RuntimeError("GPUs are to be stood in for, but this process has one")
    stand_ins = {
        "torch": devices.Torch(),
        "reduce_tensor": handles.reduce_tensor,
        "rebuild_cuda_tensor": handles.rebuild_tensor,
    }
    for module in map(import_module, devices.TRANSFER_MODULES):
        for name, stand_in in stand_ins.items():
            if hasattr(module, name):
                setattr(module, name, stand_in)
    reductions.rebuild_cuda_tensor = handles.rebuild_tensor  # imported where it is called
    pynccl.PyNcclCommunicator = Communicator
