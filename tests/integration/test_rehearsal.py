"""What stands in for GPUs refuses what they would, and has what vLLM's transfers call."""

from __future__ import annotations

import ast
import multiprocessing
import threading
from pathlib import Path

import pytest
import torch

from rlpost import rehearsal
from rlpost.rehearsal import devices, handles
from rlpost.rehearsal.communicator import Communicator

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def _node(monkeypatch):
    monkeypatch.setenv(rehearsal.VARIABLE, "node")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")


class Group:
    """Of vLLM's `StatelessProcessGroup` what a communicator reads."""

    def __init__(self, rank, world_size, store):
        self.rank, self.world_size, self.store = rank, world_size, store


def together(ranks, what, world=None, gpus=None, monkeypatch=None):
    """What each rank's `what(communicator)` returns or raises; every one is a thread of its own."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    stores = [torch.distributed.TCPStore("127.0.0.1", store.port, wait_for_workers=False) for _ in ranks]
    found = [None] * len(ranks)
    names = dict(zip(range(len(ranks)), gpus or [f"gpu {i}" for i in range(len(ranks))], strict=True))
    local = threading.local()
    monkeypatch.setattr("rlpost.rehearsal.communicator.gpu", lambda: names[local.number])

    def run(number):
        local.number = number
        try:
            group = Group(ranks[number], world or len(ranks), stores[number])
            found[number] = what(Communicator(group, 0, deadline=10.0))
        except Exception as error:  # noqa: BLE001 - it is what is asked for
            found[number] = error

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(ranks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


def sent(dtype=torch.bfloat16, shapes=((3, 2), (4,)), others=None):
    """A broadcast of some tensors from rank 0, and what arrived."""

    def run(communicator):
        mine = shapes if communicator.rank == 0 or others is None else others
        tensors = [torch.arange(torch.Size(s).numel()).reshape(s).to(dtype) for s in mine]
        if communicator.rank:
            tensors = [torch.zeros_like(t) for t in tensors]
        for tensor in tensors:
            communicator.broadcast(tensor, src=0)
        return tensors

    return run


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32])
def test_a_broadcast_arrives(monkeypatch, dtype):
    first, *others = together([0, 1, 2], sent(dtype), monkeypatch=monkeypatch)
    assert first[0].any()
    for tensors in others:
        assert all(torch.equal(a, b) for a, b in zip(first, tensors, strict=True))


@pytest.mark.parametrize(
    ("ranks", "gpus", "why"),
    [
        ([0, 1, 1], None, r"processes by rank: \{0: 1, 1: 2, 2: 0\}"),
        ([0, 1, 2], ["a", "b", "a"], "Duplicate GPU detected"),
    ],
)
def test_a_group_that_nccl_would_not_form_is_refused_on_all_ranks(monkeypatch, ranks, gpus, why):
    for found in together(ranks, sent(), gpus=gpus, monkeypatch=monkeypatch):
        with pytest.raises(RuntimeError, match=f"NCCL: .*{why}"):
            raise found


@pytest.mark.parametrize("others", [((4,), (3, 2)), ((3, 2), (5,))])
def test_ranks_that_differ_in_what_they_send_are_refused(monkeypatch, others):
    for found in together([0, 1], sent(others=others), monkeypatch=monkeypatch):
        with pytest.raises(RuntimeError, match="NCCL: ranks differ in"):
            raise found


def test_a_tensor_in_pieces_is_refused(monkeypatch):
    (found,) = together([0], lambda c: c.broadcast(torch.ones(4, 2).T, src=0), monkeypatch=monkeypatch)
    with pytest.raises(RuntimeError, match="in one piece"):
        raise found


def opened(arguments, out):
    """In another process: read what is shared, and write to it."""
    try:
        tensor = handles.rebuild_tensor(*arguments)
        out.send(tensor.tolist())
        tensor.zero_()
        out.send("written")
    except Exception as error:  # noqa: BLE001 - it is what is asked for
        out.send(str(error))


def elsewhere(arguments):
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=opened, args=(arguments, theirs))
    process.start()
    assert mine.poll(120), "the other process says nothing"
    found = mine.recv()
    process.join(60)
    return found


def test_a_handle_is_of_the_same_memory_in_another_process():
    tensor = torch.arange(6.0).reshape(2, 3)[:, 1:]
    _, arguments = handles.reduce_tensor(tensor)
    assert elsewhere(arguments) == [[1.0, 2.0], [4.0, 5.0]]
    assert not tensor.any(), "what the other process wrote is seen here"


def test_a_handle_of_another_node_is_refused(monkeypatch):
    _, arguments = handles.reduce_tensor(torch.ones(3))
    monkeypatch.setenv(rehearsal.VARIABLE, "another")
    with pytest.raises(RuntimeError, match="it is of node node and was opened on another"):
        handles.rebuild_tensor(*arguments)


def test_two_processes_share_a_gpu_if_ray_gave_them_the_same(monkeypatch):
    assert devices.gpu() == "node/3"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(RuntimeError, match="given 0 GPUs"):
        devices.gpu()


def asked(module: Path) -> set[tuple[str, str]]:
    """What a module of vLLM's asks of `torch.cuda` and `torch.accelerator` when it runs."""
    tree = ast.parse(module.read_text())
    hints = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and f.returns for n in ast.walk(f.returns)}
    return {
        (node.value.attr, node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and id(node) not in hints
        if isinstance(node.value, ast.Attribute) and ast.unparse(node.value) in ("torch.cuda", "torch.accelerator")
    }


def test_all_that_transfers_ask_of_devices_is_there_and_is_torchs():
    from importlib.util import find_spec

    wanted = set().union(*(asked(Path(find_spec(name).origin)) for name in devices.TRANSFER_MODULES))
    assert {("cuda", "get_device_properties"), ("accelerator", "synchronize")} <= wanted
    for part, stand_in in (("cuda", devices.Cuda), ("accelerator", devices.Accelerator)):
        there = {name for name in vars(stand_in) if not name.startswith("_")}
        assert {name for p, name in wanted if p == part} == there
        assert all(hasattr(getattr(torch, part), name) for name in there)


def test_nothing_is_stood_in_for_unless_a_spec_asks(monkeypatch):
    """An actor that was given the variable by whoever started Ray forgets it."""
    rehearsal.tell(False)
    assert not rehearsal.told()


def test_where_there_is_a_gpu_nothing_stands_in(monkeypatch):
    monkeypatch.setattr("rlpost.device.present", lambda: True)
    with pytest.raises(RuntimeError, match="this process has one"):
        rehearsal.install()
