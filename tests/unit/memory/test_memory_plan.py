"""What a configuration takes is known before it starts, and what cannot fit is refused with the key to change."""

from __future__ import annotations

import re
from typing import Any

import pytest
import ray

from rlpost import cli, exit_codes
from rlpost.config import Config, load, parse
from rlpost.memory import Memory, memory_of
from rlpost.memory.holders import GIB
from rlpost.memory.known import SIZES, known_config
from rlpost.memory.shapes import shapes_of
from tests.conftest import ROOT, merge, tiny

BIG = ROOT / "configs" / "qwen2.5_7b_math_8gpu.yaml"
SHARED = ROOT / "configs" / "qwen3_0.6b_gsm8k_1gpu.yaml"
# Sizes of a model of some size, made on the spot: whether it fits is asked before it is made.
LARGE = {
    "model_type": "qwen2",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
}
ON_GPUS = {
    "model": {"dtype": "bfloat16", "create": {"config": LARGE}},
    "cluster": {"nodes": 1, "gpus_per_node": 2, "gpu_memory_gb": 6},
}


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch):
    """The known models with two layers: their widths are what matters, and each layer takes time."""
    for path, sizes in SIZES.items():
        monkeypatch.setitem(SIZES, path, {**sizes, "num_hidden_layers": 2})


def planned(config: Config, gib: float | None = None) -> Memory:
    memory = memory_of(config, None, gib)
    assert memory is not None
    return memory


def holder(memory: Memory, name: str) -> Any:
    return next(h for h in memory.gpus if name in h.name)


@pytest.mark.parametrize(
    ("path", "count"),
    [
        ("Qwen/Qwen3-0.6B", 596_049_920),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
        ("Qwen/Qwen3-30B-A3B", 30_532_122_624),
    ],
)
def test_known_sizes_are_those_that_are_published(path: str, count: int):
    made = shapes_of(parse(tiny(model={"dtype": "bfloat16"})), known_config(path), "here")
    assert made.parameters == count


def test_a_model_of_7_billion_fits_80_gib_and_its_sync_holds_no_second_model():
    memory = planned(load([BIG]), 80)
    assert not memory.problems
    rank, weights = holder(memory, "rank"), 2 * 7_615_616_512
    steady = sum(rank.phases["sync"][part] for part in ("weights", "master weights", "moments", "gradient sums"))
    assert steady == pytest.approx((2 + 4 + 8 + 4) * 7_615_616_512 / 6)
    assert rank.total("sync") - steady < weights / 2
    assert 30 < rank.most / GIB < 40
    assert memory.cache is not None
    assert memory.cache.sequence == 5120 * 28 * 2 * 4 * 128 * 2
    assert sum(memory.checkpoint.values()) == pytest.approx((2 + 4 + 8) * 7_615_616_512)
    assert any("out of reach" in note for note in memory.notes)


def test_an_oversized_micro_batch_is_named_with_a_size_that_fits(shallow):
    config = load([BIG], ["learner.tokens_per_micro_batch=262144"])
    (problem,) = planned(config, 80).problems
    assert problem.startswith("learner.tokens_per_micro_batch 262144: a rank's GPU takes")
    value = re.search(r"set learner\.tokens_per_micro_batch: (\d+)$", problem)
    assert value is not None
    smaller = load([BIG], [f"learner.tokens_per_micro_batch={value[1]}"])
    assert not planned(smaller, 80).problems


def test_a_gpu_that_two_share_must_hold_both():
    assert not planned(load([SHARED]), 80).problems
    memory = planned(load([SHARED]), 20)
    both = holder(memory, "both")
    assert both.total("step") == holder(memory, "rank").total("step") + holder(memory, "engine").total("sample")
    (problem,) = memory.problems
    value = re.search(r"set rollout\.gpu_memory_utilization: (\S+)$", problem)
    assert value is not None
    assert not planned(load([SHARED], [f"rollout.gpu_memory_utilization={value[1]}"]), 20).problems


def test_an_engine_without_room_for_one_sequence_is_refused_with_its_key():
    problems = planned(load([BIG], ["rollout.gpu_memory_utilization=0.2"]), 80).problems
    assert len(problems) == 1
    assert problems[0].startswith("rollout.gpu_memory_utilization: 0.2 of a GPU leaves an engine")
    assert problems[0].endswith("set rollout.gpu_memory_utilization: 0.8")


def test_train_and_plan_refuse_alike_what_cannot_fit_and_nothing_is_started(write_config, tmp_path, capsys):
    path = write_config(**merge(ON_GPUS, {"warmup": None}))
    assert cli.run(["train", str(path)]) == exit_codes.BAD_USAGE
    said = " ".join(capsys.readouterr().err.split())
    assert "learner.zero_stage 1 on learner.ranks 1: a rank's GPU takes" in said
    assert not ray.is_initialized()
    assert not (tmp_path / "runs").exists()
    assert cli.run(["plan", str(path)]) == exit_codes.BAD_USAGE
    assert "does not fit: learner.zero_stage 1 on learner.ranks 1" in " ".join(capsys.readouterr().out.split())
    assert cli.run(["plan", str(path), "--gpu-memory", "80"]) == exit_codes.DONE


def test_without_the_memory_of_a_gpu_nothing_is_refused_and_the_plan_says_how_to_ask(shallow):
    memory = planned(load([BIG], ["cluster.gpu_memory_gb=null"]))
    assert not memory.problems
    assert any("set cluster.gpu_memory_gb, or give --gpu-memory" in note for note in memory.notes)


def test_of_a_model_out_of_reach_its_count_says_what_it_can_and_without_one_nothing_is_known():
    def at_hub(**more: Any) -> Config:
        return parse(merge(tiny(model={"create": None, "path": "nobody/has-this", **more}), {"warmup": None}))

    memory = planned(at_hub(parameters=1e9))
    assert holder(memory, "rank").phases["step"]["moments"] == 8e9
    assert any("are not counted" in note for note in memory.notes)
    assert memory_of(at_hub(), None) is None


def test_a_network_that_cannot_be_counted_is_said_to_be():
    from transformers import AutoConfig

    from rlpost.memory import rank

    notes: list[str] = []
    sizes = {key: LARGE[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    falcon = AutoConfig.for_model("falcon", **sizes, vocab_size=100)
    config = parse(tiny())
    phases = rank.phases(config, shapes_of(config, falcon, "here"), notes)
    assert "learn" in phases
    assert [note[:40] for note in notes] == ["activations and logits are not counted: "]


def test_adapters_alone_are_trained(shallow):
    config = load([BIG], ["model.lora={rank: 16}"])
    rank = holder(planned(config, 80), "rank")
    whole = holder(planned(load([BIG]), 80), "rank")
    assert rank.phases["step"]["moments"] < whole.phases["step"]["moments"] / 100
    assert rank.phases["step"]["weights"] == pytest.approx(whole.phases["step"]["weights"], rel=0.01)
