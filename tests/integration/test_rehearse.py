"""A configuration for eight GPUs, rehearsed without one: everything that it would do but compute on them."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from rlpost.config import load
from tests.conftest import ROOT
from tests.rehearsals import rehearse


def test_eight_gpus_are_rehearsed_on_none(tmp_path: Path) -> None:
    file = "qwen2.5_7b_math_8gpu"
    theirs = load([ROOT / "configs" / f"{file}.yaml"])
    ended = rehearse(file, to=tmp_path / "all")
    assert ended.code == 0, ended.out[-3000:] + ended.error[-3000:]
    run = tmp_path / "all" / "runs" / "rehearsal"
    config = load([run / "config.yaml"])
    # Two of each part, on fake GPUs of a node, and weights by NCCL's engines, as the user's would go.
    assert (config.rollout.engines, config.learner.ranks, config.cluster.gpus_per_node) == (2, 2, 4)
    assert (config.weight_transfer, config.learner.zero_stage) == ("nccl", 3)
    for said in (
        f"learner.ranks: {theirs.learner.ranks} -> 2",
        "a made tokenizer",
        "made rows",
        "2 rank(s), ZeRO 3, bfloat16; engines: 2",
    ):
        assert said in ended.out
    for phase in ("train: 2 steps and a save", "resume: one step more", "export"):
        assert f"== {phase}" in ended.out
    # Step 2 was being sampled while step 1 was learned from: an update in flight.
    versions = [pq.read_table(run / "rollouts" / f"step_{step:06d}.parquet").num_rows for step in (1, 2, 3)]
    assert versions == [16, 16, 16]
    assert list((tmp_path / "all" / "export").glob("*.safetensors"))
