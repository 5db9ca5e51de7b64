"""What an exported model is compared with."""

import json

import numpy as np
import pytest
import yaml

from rlpost.checkpoint import Store
from rlpost.commands import export
from rlpost.commands.export import Difference
from rlpost.config import ConfigError
from rlpost.exit_codes import DONE, FAULT
from rlpost.models.load import load_causal_lm
from rlpost.models.save import save_pretrained
from rlpost.models.source import ModelSource
from rlpost.observe import RunFolder
from tests.archives import archive
from tests.conftest import tiny
from tests.tiny_models import make


@pytest.fixture
def scored(monkeypatch):
    """Log-probs of a stand-in model: -1 at temperature 1, -2 at others; vLLM's are off by `wrong`."""

    def at(wrong: float = 0.0) -> None:
        def transformers(model, probe, dtype, temperatures):
            return [[np.full(3, -1.0 if t == 1 else -2.0) for _ in probe["sequences"]] for t in temperatures]

        def vllm(model, probe, dtype):
            return [np.full(3, -1.0 + wrong) for _ in probe["sequences"]]

        monkeypatch.setattr(export, "transformers_logp", transformers)
        monkeypatch.setattr(export, "vllm_logp", vllm)

    return at


@pytest.mark.parametrize(("temperature", "saved"), [(1.0, -1.0), (0.6, -2.0)])
def test_vllm_is_compared_at_temperature_1_whatever_the_rollouts_were_sampled_at(scored, temperature, saved):
    probe = {"temperature": temperature, "sequences": [{"logp": [saved] * 3}] * 2}
    scored()
    assert export.by_transformers("m", probe, "float32") == export.by_vllm("m", probe, "float32") == Difference(0, 0)
    scored(wrong=0.25)
    assert export.by_vllm("m", probe, "float32") == Difference(0.25, 0.25, 0.25)
    lost = {**probe, "sequences": [{"logp": [saved - 0.5] * 3}]}
    assert export.by_vllm("m", lost, "float32").mean == pytest.approx(0.75 if temperature == 1 else 0.5)


@pytest.fixture
def run(tmp_path):
    """A run of a bfloat16 model whose logits are large, with one checkpoint.

    Its probe has log-probs of the same weights computed in float32: two ways to compute a model differ as much.
    """
    import torch

    folder = make(tmp_path / "base", tie_word_embeddings=False, initializer_range=0.1)
    source = ModelSource(str(folder))
    wide = load_causal_lm(source, torch.bfloat16).float().eval()
    wide.lm_head.weight.data *= 6  # logits of up to 22
    drawn = np.random.default_rng(0)
    sequences = []
    for _ in range(8):
        tokens = drawn.integers(4, 30, 40)
        with torch.no_grad():
            logp = torch.log_softmax(wide(torch.tensor(tokens)[None]).logits[0, :-1], -1)
        found = logp.gather(-1, torch.tensor(tokens[1:, None]))[7:, 0]
        sequences.append({"prompt": tokens[:8].tolist(), "response": tokens[8:].tolist(), "logp": found.tolist()})
    values = yaml.safe_dump(tiny(model={"dtype": "bfloat16"}))
    with RunFolder.create(tmp_path / "runs", "run", values, ["rlpost", "train"], 0) as made:
        path = made.path

    def fill(draft):
        tensors = {name: t.bfloat16() for name, t in wide.state_dict().items()}
        described = {name: t.to("meta") for name, t in tensors.items()}
        save_pretrained(draft / "model", source, described, tensors.items(), torch.bfloat16)
        (draft / "deepspeed" / "state").mkdir(parents=True)
        (draft / "deepspeed" / "state" / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(archive())
        (draft / "probe.json").write_text(json.dumps({"temperature": 1.0, "sequences": sequences}))

    Store(made.checkpoints, made.run_id).write(1, {"step": 1, "ranks": 1, "zero_stage": 1}, fill)
    return path


def test_a_good_model_in_bfloat16_is_exported_however_far_its_most_unlikely_token_is_off(run, tmp_path, capsys):
    assert export.run(run, tmp_path / "out", None, "transformers") == DONE
    largest = float(capsys.readouterr().out.split("largest ")[1].split()[0])
    assert largest > 0.15, "of rounding alone"
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize(("dtype", "part"), [(None, "not those that were saved"), ("float32", "another model")])
def test_an_export_of_which_one_tensor_was_changed_is_refused(run, tmp_path, capsys, monkeypatch, dtype, part):
    """By one bit, where bits can be compared; a lost layer is seen in the log-probs alone, too."""
    from safetensors.torch import load_file, save_file

    write = export._write

    def damaged(saved, draft, *rest):
        write(saved, draft, *rest)
        tensors = load_file(draft / "model.safetensors")
        weight = tensors["model.layers.1.mlp.down_proj.weight"]
        if dtype is None:
            weight.view(weight.dtype).flatten()[0] *= 1.01
        else:
            weight.zero_()
        save_file(tensors, draft / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr(export, "_write", damaged)
    if dtype is not None:
        monkeypatch.setattr(export, "changed", lambda *_: [])
    assert export.run(run, tmp_path / "out", None, "transformers", dtype=dtype) == FAULT
    assert part in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_an_export_goes_to_a_new_folder_or_leaves_nothing(run, tmp_path, capsys, monkeypatch):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("kept")
    with pytest.raises(ConfigError, match="is there already: name a new folder"):
        export.run(run, tmp_path / "taken", None, "transformers")
    assert [p.name for p in (tmp_path / "taken").iterdir()] == ["mine"]

    def full(saved, draft, *rest):
        draft.mkdir()
        (draft / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "_write", full)
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(OSError, match="No space left"):
        export.run(run, tmp_path / "out", None, "transformers")
    assert sorted(p.name for p in tmp_path.iterdir()) == before, "half an export looks like none"


def test_another_dtype_is_the_rounding_of_what_was_saved(run, tmp_path):
    assert export.run(run, tmp_path / "out", None, "transformers", dtype="float32") == DONE
    saved = run / "checkpoints" / "step_000001" / "model"
    assert export.changed(saved, tmp_path / "out", "float32") == []
    assert len(export.changed(tmp_path / "out", saved, "float32")) > 0, "bfloat16 was not asked for"
