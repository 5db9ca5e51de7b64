"""Every configuration for GPUs is rehearsed, and what would break its real run breaks its rehearsal, by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlpost.exit_codes import BAD_USAGE, FAULT
from tests.conftest import ROOT
from tests.rehearsals import planted, rehearse

EIGHT, THIRTY_TWO = "qwen2.5_7b_math_8gpu", "qwen3_30b_a3b_math_32gpu"
FILES = sorted(path.stem for path in (ROOT / "configs").glob("*gpu*.yaml"))


@pytest.mark.parametrize("file", FILES)
def test_what_is_shipped_for_gpus_passes(file: str, tmp_path: Path) -> None:
    ended = rehearse(file, to=tmp_path / "all")
    assert ended.code == 0, ended.out[-3000:] + ended.error[-3000:]
    assert list((tmp_path / "all" / "export").glob("*.safetensors"))


def test_engines_that_join_the_transfer_as_one_rank_are_found(tmp_path: Path) -> None:
    code = planted(tmp_path / "code", "rlpost/learner/transfer.py", "1 + engine * self._workers", "1")
    ended = rehearse(EIGHT, to=tmp_path / "all", code=code)
    assert ended.code == FAULT, ended.out[-3000:]
    assert "the weight transfer did not start" in ended.error
    assert "processes by rank" in ended.error
    assert "rollout.engines: 2" in ended.error


def test_an_engine_whose_workers_ray_is_to_place_is_found(tmp_path: Path) -> None:
    named = 'arguments["distributed_executor_backend"] = "mp"'
    code = planted(tmp_path / "code", "rlpost/rollout/request.py", named, "pass")
    ended = rehearse(THIRTY_TWO, to=tmp_path / "all", code=code)
    assert ended.code == FAULT, ended.out[-3000:]
    assert "the engines did not start" in ended.error
    assert "rollout.tensor_parallel: 2" in ended.error


def test_attention_that_lets_sequences_of_several_rows_see_each_other_is_found(tmp_path: Path) -> None:
    told = 'in (NAME, "flash_attention_2")'
    code = planted(tmp_path / "code", "rlpost/learner/attention.py", told, "in (NAME,)")
    ended = rehearse(EIGHT, "model.attention=flash_attention_2", to=tmp_path / "all", code=code)
    assert ended.code == BAD_USAGE, ended.out[-3000:]
    assert "model.attention: flash_attention_2" in ended.error
    assert "not those of 2" in ended.error


def test_a_micro_batch_that_a_gpu_cannot_hold_is_found(tmp_path: Path) -> None:
    ended = rehearse(EIGHT, "learner.tokens_per_micro_batch=524288", "--gpu-memory", "80", to=tmp_path / "all")
    assert ended.code == BAD_USAGE, ended.out[-3000:]
    assert "learner.tokens_per_micro_batch" in ended.error
