"""Adapters through the command a user types, in bfloat16: trained, served, saved, resumed, evaluated and exported as such."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from rlpost.models.adapters import adapter_of
from tests.integration.test_train import metrics, rlpost

pytestmark = pytest.mark.integration

LLAMA = {
    "dtype": "bfloat16",
    "lora": {"rank": 8, "alpha": 16},
    "create": {
        "config": {
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 512,
            "tie_word_embeddings": False,
        },
        "tokenizer": "0123456789+-*/()[], :",
    },
}


def test_adapters_are_served_saved_resumed_evaluated_and_exported_as_adapters(write_config, tmp_path):
    (tmp_path / "parity.py").write_text(
        "def parity(response, reference):\n    return sum(response.encode()) % 2 == 0\n"
    )
    path = write_config(
        "lora.yaml",
        verifiers=[f"{tmp_path}/parity.py:parity"],
        name="lora",
        runs_dir=str(tmp_path),
        model=LLAMA,
        warmup=None,
        steps=4,
        learner={"lr": 1e-4},
        evaluation={"before": False, "every": 3, "after": False},
        checkpoint={"every": 2},
    )
    run, again = tmp_path / "lora", tmp_path / "again"
    done = rlpost("train", path)
    assert "adapters: served by the engines as they are, in bfloat16" in done.stdout
    rows = metrics(run)
    assert len(rows) == 4
    for row in rows:
        assert row["mismatch/logp_abs_max_fresh"] < 1e-2
        assert 0.98 < row["sync/survived"] < 1, "rounded once, from what the optimizer holds"

    saved = run / "checkpoints" / "step_000004"
    assert sorted(p.name for p in (saved / "model").glob("adapter*")) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    found = adapter_of(saved / "model")
    assert found is not None
    assert found.source().folder().parent.name == ".models", "it says which weights it belongs to"
    tensors = load_file(saved / "model" / "adapter_model.safetensors")
    assert all(t.dtype == torch.float32 for t in tensors.values())
    assert all(t.any() for t in tensors.values()), "B too has been learned"
    state = sum(f.stat().st_size for f in (saved / "deepspeed" / "state").iterdir())
    assert state < 6 * sum(t.nbytes for t in tensors.values()), "the weights below are not in every checkpoint"

    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints" / "step_000004")
    rlpost("resume", again)
    resumed = again / "checkpoints" / "step_000004" / "model" / "adapter_model.safetensors"
    assert resumed.read_bytes() == (saved / "model" / "adapter_model.safetensors").read_bytes()

    rlpost("eval", run, "--k", "1", "--limit", "4", "--out", tmp_path / "eval.json")
    assert json.loads((tmp_path / "eval.json").read_text())["decoding"]["dtype"] == "bfloat16"

    done = rlpost("export", run, "--to", tmp_path / "adapter", "--adapter")
    assert "transformers: log-probs against the learner's: mean" in done.stdout
    assert "vllm: log-probs against the learner's: mean" in done.stdout
    done = rlpost("export", run, "--to", tmp_path / "narrow", "--check", "transformers", expect=2)
    said = " ".join((done.stdout + done.stderr).split())
    assert "--dtype bfloat16: only 0." in said
    assert "Export with --adapter, or --dtype float32" in said
    assert not (tmp_path / "narrow").exists()
    done = rlpost("export", run, "--to", tmp_path / "wide", "--dtype", "float32", "--check", "transformers")
    assert "merged into float32: 1.000 of what was trained survives" in done.stdout
