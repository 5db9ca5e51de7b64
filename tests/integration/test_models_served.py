"""A model of the hub's cache whose tokenizer and network are code that comes with it, through a whole run."""

import json
import shutil
from pathlib import Path

import yaml

from rlpost import cli, exit_codes
from rlpost.models.load import eos_token_ids
from rlpost.models.source import ModelSource
from tests.conftest import tiny
from tests.tiny_models import edit, into_hub_cache, with_own_code, with_own_tokenizer


def test_a_hub_model_with_its_own_code_trains_is_saved_and_is_exported_as_itself(tmp_path: Path, monkeypatch):
    tokenizer = with_own_tokenizer(tmp_path / "t")
    rows = json.loads((tokenizer / "config.json").read_text())["vocab_size"]
    folder = with_own_code(tmp_path / "m", vocab_size=rows)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    for name in ("letters.txt", "tokenization_letters.py", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder / name)
    edit(folder / "generation_config.json", eos_token_id=[2, 30])
    into_hub_cache(folder, tmp_path / "hub", "acme/own")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    model = {"path": "acme/own", "create": None, "trust_remote_code": True}
    values = {
        **tiny(runs_dir=str(tmp_path / "runs"), steps=1, name="own", evaluation={"before": False, "after": False})
    }
    values |= {"warmup": None, "model": {**model, "dtype": "float32"}}
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(values))
    assert cli.run(["train", str(file)]) == exit_codes.DONE
    run = tmp_path / "runs" / "own"
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["revision"] == "c" * 40
    saved = run / "checkpoints" / "step_000001" / "model"
    assert eos_token_ids(ModelSource(str(saved), trust_remote_code=True)) == [2, 30]
    assert json.loads((saved / "config.json").read_text())["architectures"] == ["OwnForCausalLM"]
    assert {"modeling_own.py", "configuration_own.py", "tokenization_letters.py", "letters.txt"} <= {
        path.name for path in saved.iterdir()
    }
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "gone"))
    assert cli.run(["export", str(run), "--to", str(tmp_path / "out"), "--check", "transformers"]) == exit_codes.DONE
