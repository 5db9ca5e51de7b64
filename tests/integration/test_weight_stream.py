"""Two DeepSpeed ranks stream their weights: the bits of the model that was loaded, and never more than a layer or two."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlpost.learner.stream import WeightStream
from tests.conftest import ROOT
from tests.weight_streams import LARGE, MEASURED, Memory, largest_layer, made

pytestmark = pytest.mark.integration

CASES = [(family, "bfloat16", 3, lora) for family in MEASURED for lora in (False, True)]
CASES += [("qwen3_moe", "float32", 0, True), ("deepseek_v3", "bfloat16", 1, True)]


def ranks(folder: Path, cases: list[tuple[str, str, int, bool]], deadline: float) -> list[list[dict[str, Any]]]:
    """What each of two ranks finds of each case: `tests.integration.streamed_ranks`."""
    for family in {family for family, *_ in cases}:
        made(family, **LARGE[family]).save_pretrained(folder / family)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "tests.integration.streamed_ranks"]
    rest = ["2", str(port), str(folder), json.dumps(cases)]
    running = [
        subprocess.Popen(
            [*command, str(rank), *rest], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        told = [rank.communicate(timeout=deadline) for rank in running]
    finally:
        for rank in running:
            rank.kill()
    assert [rank.returncode for rank in running] == [0, 0], told[0][1][-3000:] + told[1][1][-3000:]
    return [[json.loads(line) for line in out.splitlines() if line.startswith('{"same')] for out, _ in told]


def check(case: tuple[str, str, int, bool], sender: dict[str, Any], other: dict[str, Any]) -> None:
    stage = case[2]
    assert sender["sharded"] == other["sharded"] == (stage == 3)
    assert sender["same"], "other bits than those of the model converted at once"
    assert other["same"], "a rank that keeps nothing got a tensor"
    assert sender["layers"] <= 2.2
    assert other["layers"] <= 1
    if stage == 3:
        assert other["layers"] > 0.1, "what is gathered is counted"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    sender, other = ranks(tmp_path_factory.mktemp("models"), CASES, deadline=300)
    return dict(zip(CASES, zip(sender, other, strict=True), strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_ranks_stream_the_bits_of_the_model_and_hold_two_layers_and_one(found, case):
    check(case, *found[case])


@pytest.mark.parametrize("family", MEASURED)
def test_what_vllm_packs_for_nccl_is_every_byte_once_and_little_beside_the_stream(family, monkeypatch):
    from vllm.distributed.weight_transfer import packed_tensor

    model = made(family, torch.bfloat16, **LARGE[family])
    stream = WeightStream(model)
    described = stream.described(torch.bfloat16)
    sent: list[int] = []
    stub = SimpleNamespace(synchronize=lambda: None)
    monkeypatch.setattr(packed_tensor, "_get_streams", lambda device, buffers: (stub,) * buffers)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    with Memory() as memory:
        packed_tensor.packed_nccl_broadcast_producer(
            stream.tensors(torch.bfloat16),
            SimpleNamespace(broadcast=lambda tensor, src: sent.append(tensor.nbytes)),
            src=0,
            post_iter_func=lambda pair: pair[1],
            buffer_size_bytes=max(tensor.nbytes for tensor in described.values()),
        )
    assert len(sent) > 3
    assert sum(sent) == sum(tensor.nbytes for tensor in described.values())
    assert memory.peak <= 2.2 * largest_layer(model)
