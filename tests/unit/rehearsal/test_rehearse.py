"""What a rehearsal needs, makes, says and refuses, before anything of it starts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlpost.commands import rehearse as verb
from rlpost.config import Config, ConfigError, load, parse
from rlpost.memory import Memory
from rlpost.rehearsal import switch
from rlpost.rehearsal.model import make_small, original
from rlpost.rehearsal.rows import columns_of, made, with_rows
from rlpost.rehearsal.scale import Change
from rlpost.rehearsal.scorer import arbitrary
from tests import tiny_models
from tests.conftest import ROOT, tiny

EIGHT = ROOT / "configs" / "qwen2.5_7b_math_8gpu.yaml"


def ready(config: Config, elsewhere: bool, weights: bool) -> Any:
    """What `checked` gives where the model is out of reach."""
    return SimpleNamespace(config=config, facts=None, lines=[])


def test_a_model_in_a_folder_is_made_small_with_its_own_tokenizer(tmp_path: Path) -> None:
    tiny_models.make(tmp_path / "theirs", tokenizer="0123456789", num_hidden_layers=5, hidden_size=256)
    config = parse(tiny(model={"path": str(tmp_path / "theirs"), "create": None}))
    found = original(config)
    count, sizes = make_small(found, tmp_path / "small", seed=0)
    assert found.source is not None
    assert sizes["num_hidden_layers"] == (5, 2)
    assert sizes["hidden_size"] == (256, 64)
    assert "vocab_size" not in sizes  # it is the tokenizer's
    assert (tmp_path / "small" / "tokenizer.json").read_text() == (tmp_path / "theirs" / "tokenizer.json").read_text()
    assert count < 200_000


@pytest.mark.usefixtures("shipped_verifiers_load")
def test_a_folder_without_weights_is_enough(tmp_path: Path) -> None:
    from rlpost.run.check import checked

    tiny_models.make(tmp_path / "theirs", tokenizer=tiny()["model"]["create"]["tokenizer"])
    (tmp_path / "theirs" / "model.safetensors").unlink()
    config = parse(tiny(model={"path": str(tmp_path / "theirs"), "create": None}))
    facts = checked(config, elsewhere=True, weights=False).facts
    assert facts is not None
    assert facts.dtypes == ()
    with pytest.raises(ConfigError, match="it has no weights"):
        checked(config, elsewhere=True)


def test_of_a_model_out_of_reach_the_published_sizes_are_taken_and_that_is_said() -> None:
    found = original(load([EIGHT]))
    assert found.config.model_type == "qwen2"
    assert found.config.num_hidden_layers == 28
    assert "cannot be had here" in found.said
    assert "made tokenizer" in found.said


def test_a_model_that_nothing_is_known_of_is_refused_by_its_key() -> None:
    with pytest.raises(ConfigError, match=r"model\.path 'nobody/knows'.*give model\.path=FOLDER"):
        original(load([EIGHT], ["model.path=nobody/knows"]))


def test_a_family_that_engines_on_cpus_do_not_serve_is_refused(tmp_path: Path) -> None:
    tiny_models.make(tmp_path / "theirs")
    tiny_models.edit(tmp_path / "theirs" / "config.json", model_type="jamba", architectures=["JambaForCausalLM"])
    with pytest.raises(ConfigError, match=r"model\.path .*cannot be rehearsed: engines on CPUs do not serve jamba"):
        original(parse(tiny(model={"path": str(tmp_path / "theirs"), "create": None})))


def test_data_out_of_reach_is_made_up_of_the_same_columns_and_that_is_said(tmp_path: Path) -> None:
    config, changes = with_rows(load([EIGHT]), tmp_path)
    assert [change.key for change in changes] == ["data.train.path", "data.test.path"]
    assert all("cannot be had" in change.why for change in changes)
    row = json.loads(Path(str(config.data.test_sources[""].path)).read_text().splitlines()[0])
    assert row.keys() == {"problem", "answer", "unique_id"}


def test_data_that_is_here_is_the_users(tmp_path: Path) -> None:
    config = parse(tiny())
    assert with_rows(config, tmp_path) == (config, [])
    assert not list(tmp_path.iterdir())


def test_rows_cannot_be_made_for_verifiers_that_run_tests(tmp_path: Path) -> None:
    config = load([EIGHT], ["verifiers=[code]"])
    with pytest.raises(ConfigError, match=r"data\.train\.path.*verifier code.*data\.train\.source=jsonl"):
        with_rows(config, tmp_path)


def test_made_rows_fill_templates_too() -> None:
    assert columns_of("{question} ({meta[level]}) {a.b}") == ["question", "meta", "a"]
    source = load([EIGHT]).data.train_sources[""].model_copy(update={"prompt": "Q: {problem}", "metadata": ["level"]})
    assert all(row.keys() == {"problem", "answer", "level"} for row in made(source, 0))


def test_scores_of_a_rehearsal_differ_within_a_group_and_are_always_the_same() -> None:
    scores = [arbitrary(response, "What is 1 + 2?") for response in ("3", "4", "")]
    assert len(set(scores)) == 3
    assert all(0 <= score <= 1 for score in scores)
    assert scores == [arbitrary(response, "What is 1 + 2?") for response in ("3", "4", "")]


def test_gpus_are_stood_in_for_while_a_rehearsal_lasts_and_no_longer() -> None:
    config = load([EIGHT])
    assert (switch.stood_in(config), switch.computes_on_gpu(config)) == (False, True)
    with switch.rehearsing():
        assert (switch.stood_in(config), switch.computes_on_gpu(config)) == (True, False)
    assert (switch.stood_in(config), switch.computes_on_gpu(config)) == (False, True)


def test_the_specs_of_a_rehearsal_compute_on_cpus_and_send_as_on_gpus() -> None:
    from rlpost.run.roles import Roles
    from rlpost.run.start import engine_spec, learner_spec

    config = load([EIGHT])
    with switch.rehearsing():
        specs = engine_spec(config, "model"), learner_spec(config, Roles(config), "model", 0)
    assert [(spec.on_gpu, spec.stand_in) for spec in specs] == [(False, True)] * 2
    assert specs[0].weight_transfer == "nccl"
    real = engine_spec(config, "model")
    assert (real.on_gpu, real.stand_in) == (True, False)


def test_a_machine_with_a_gpu_or_its_vllm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    verb.check_machine()
    monkeypatch.setattr(verb.device, "present", lambda: True)
    with pytest.raises(ConfigError, match="this machine has a GPU"):
        verb.check_machine()
    monkeypatch.undo()

    def lacking(name: str) -> str:
        raise verb.PackageNotFoundError(name)

    monkeypatch.setattr(verb, "version", lacking)
    with pytest.raises(ConfigError, match="vLLM built for CPUs"):
        verb.check_machine()


def test_a_folder_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--to .* is there already"):
        verb.rehearse(load([EIGHT]), [], to=tmp_path)


def test_what_does_not_fit_a_gpu_is_refused_by_its_key_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []
    said = "learner.tokens_per_micro_batch 1048576: a rank's GPU takes 99 GiB and has 80: set 16384"
    memory = Memory([], [], {}, None, problems=[said])
    monkeypatch.setattr(verb, "checked", ready)
    monkeypatch.setattr(verb, "memory_of", lambda config, facts, gib: asked.append(gib) or memory)
    with pytest.raises(ConfigError, match=re.escape(said)):
        verb.rehearse(load([EIGHT]), [], gpu_memory=80, to=tmp_path / "new")
    assert asked == [80]
    assert "== failed after" in capsys.readouterr().out
    assert not (tmp_path / "new").exists()


def test_what_was_changed_and_how_long_it_took_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    said = verb._Report()
    with said.phase("the first"):
        said.changes([Change("rollout.engines", 4, 2), Change("learner.lr", 1e-6, 1e-3, "to see [it] move")])
    said.phases()
    out = capsys.readouterr().out
    assert "  rollout.engines: 4 -> 2\n" in out
    assert "learner.lr: 1e-06 -> 0.001  (to see [it] move)" in out
    assert out.count("the first") == 2


def test_the_part_of_a_run_that_fails_says_what_the_rehearsal_ends_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from contextlib import nullcontext

    seen: list[Any] = []
    monkeypatch.setattr(verb, "fake_nodes", lambda config: nullcontext("127.0.0.1:1"))
    monkeypatch.setattr(verb, "checked", ready)
    monkeypatch.setattr(verb, "memory_of", lambda *given: None)
    monkeypatch.setattr(verb.train, "start", lambda config, command: seen.append(config) or 0)
    monkeypatch.setattr(verb.train, "proceed", lambda run, overrides: seen.append(overrides) or 4)
    assert verb.rehearse(load([EIGHT]), [], to=tmp_path / "new") == 4
    assert seen[0].cluster.address == "127.0.0.1:1"
    assert seen[1:] == [["steps=3"]]
    assert str(tmp_path / "new") in capsys.readouterr().out
    assert (tmp_path / "new" / "model" / "config.json").is_file()
