"""Adapters on engines and learners of several families: what is trained is what is served, however it gets there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from rlpost.cluster import Placement
from rlpost.commands.export import transformers_logp, vllm_logp
from rlpost.config import CreateModel, parse
from rlpost.models.create import create_model
from rlpost.models.source import ModelSource
from rlpost.rollout.engine import StaleEngineError
from rlpost.run.roles import Roles
from rlpost.run.start import Engines, learner_spec, start_learner
from rlpost.types import Rollout
from tests.conftest import tiny
from tests.integration.served import ask, learner_logp, nudge

pytestmark = pytest.mark.usefixtures("ray_cluster")

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
}
CASES: dict[str, dict[str, Any]] = {
    "qwen2-zero3-two-engines": dict(family="qwen2", tied=True, ranks=2, zero_stage=3, engines=2),
    "qwen3-zero2-rslora": dict(family="qwen3", ranks=2, zero_stage=2, lora={"rslora": True, "rank": 6, "alpha": 10}),
    "llama-zero1-some-targets": dict(family="llama", zero_stage=1, lora={"target_modules": ["q_proj", "up_proj"]}),
    "llama-float32": dict(family="llama", dtype="float32"),
    "dora": dict(family="llama", lora={"dora": True}, merged="vLLM serves no DoRA"),
    "no-lora-in-vllm": dict(family="gpt_neox", merged="vLLM's GPTNeoXForCausalLM has no LoRA"),
    "merged-by-request": dict(family="llama", rollout={"adapters": "merged"}, merged="rollout.adapters: merged"),
    "rank": dict(family="llama", lora={"rank": 513}, merged="vLLM holds adapters of rank 512 at most"),
}


@pytest.fixture(params=CASES)
def started(request, tmp_path):
    case = CASES[request.param]
    values = {"model_type": case["family"], "tie_word_embeddings": case.get("tied", False), **SIZES}
    create_model(CreateModel(config=values, tokenizer="0123456789+-*/()[], :"), tmp_path / "base")
    given = tiny(
        rollout={"engines": case.get("engines", 1), "threads": 1, **case.get("rollout", {})},
        learner={
            "lr": 1e-4,
            "threads": 1,
            "ranks": case.get("ranks", 1),
            **({"zero_stage": case["zero_stage"]} if "zero_stage" in case else {}),
        },
    )
    given["model"] = {
        "path": str(tmp_path / "base"),
        "dtype": case.get("dtype", "bfloat16"),
        "lora": {"rank": 8, "alpha": 16, **case.get("lora", {})},
    }
    config = parse({**given, "warmup": None})
    where = Placement([None] * config.rollout.engines, [None] * config.learner.ranks, 0, 0, group=None)
    engines = Engines(config, str(tmp_path / "base"), where)
    learner = start_learner(config, learner_spec(config, Roles(config), str(tmp_path / "base"), 0), where)
    learner.ready()
    engines.ready()
    yield case, config, engines, learner
    learner.shutdown()
    engines.shutdown()


def sampled(fleet: Any, first: int) -> list[Rollout]:
    futures = [fleet.submit(ask(first + i)) for i in range(2 * len(fleet.engines))]
    return [rollout for future in futures for rollout in future.result(timeout=120)]


def probe_of(rollouts: list[Rollout], logp: list[np.ndarray]) -> dict[str, Any]:
    return {
        "temperature": 1.0,
        "sequences": [
            {"prompt": r.prompt_ids.tolist(), "response": r.response_ids.tolist(), "logp": found.tolist()}
            for r, found in zip(rollouts, logp, strict=True)
        ],
    }


def test_what_is_trained_is_what_is_served(started, tmp_path, monkeypatch):
    case, config, engines, learner = started
    fleet = engines.fleet
    assert case.get("merged", "as they are") in engines.served()
    assert fleet.dtype == ("float32" if "merged" in case else config.model.dtype)

    first = fleet.sync(learner, 0, fleet.dtype)
    # DoRA's magnitudes are rounded when they are made, so that it begins beside its base.
    assert first == ({"sync/survived": 1.0} if config.model.lora.dora else {})
    assert learner_logp(learner, sampled(fleet, 0)) < 1e-2
    for step in range(1, 5):
        nudge(learner)
        survived = fleet.sync(learner, step, fleet.dtype)["sync/survived"]
        assert survived >= 0.98
        rollouts = sampled(fleet, 10 * step)
        assert learner_logp(learner, rollouts) < (1e-4 if config.model.dtype == "float32" else 1e-2)

    learner.save(tmp_path / "saved")
    saved, _ = learner.adapters("float32", 4)
    expected = {name: array.copy() for name, array in ray.get(saved).items()}
    nudge(learner)
    further, _ = learner.adapters("float32", 5)
    learner.load(tmp_path / "saved")
    for reference, (again, _) in ((expected, learner.adapters("float32", 4)),):
        assert all(np.array_equal(array, reference[name]) for name, array in ray.get(again).items())
    nudge(learner)
    again, _ = learner.adapters("float32", 5)
    assert all(np.array_equal(a, b) for a, b in zip(ray.get(further).values(), ray.get(again).values(), strict=True))

    if "merged" not in case:
        fleet.sync(learner, 5, fleet.dtype)
        with monkeypatch.context() as patch:
            patch.setattr(learner, "adapters", lambda dtype, version: (again, learner_probes(learner, fleet, version)))
            nudge(learner)
            with pytest.raises(StaleEngineError, match="probed tensors differ"):
                fleet.sync(learner, 6, fleet.dtype)  # the engines get what they had, and the learner has moved on


def learner_probes(learner: Any, fleet: Any, version: int) -> Any:
    return type(learner).adapters(learner, fleet.dtype, version)[1]


@pytest.mark.parametrize("started", ["qwen2-zero3-two-engines", "llama-zero1-some-targets"], indirect=True)
def test_a_saved_adapter_is_the_same_policy_for_peft_and_vllm(started, tmp_path):
    _, config, engines, learner = started
    engines.fleet.sync(learner, 0, "bfloat16")
    for _ in range(4):
        nudge(learner)
    learner.save(tmp_path / "saved")
    rollouts = sampled(engines.fleet, 0)[:4]
    probe = probe_of(rollouts, [r.logprobs for r in rollouts])
    source = ModelSource.of(config.model, str(Path(tmp_path / "saved" / "model")))
    (by_peft,) = transformers_logp(source, probe, "bfloat16", [1.0])
    by_vllm = vllm_logp(source, probe, "bfloat16")
    assert max(float(np.abs(a - b).max()) for a, b in zip(by_peft, by_vllm, strict=True)) < 1e-2
