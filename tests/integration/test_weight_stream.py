"""Two DeepSpeed ranks stream their weights: the bits of the model that was loaded, and never more than a layer or two."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.weight_streams import LARGE, MEASURED, made

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
