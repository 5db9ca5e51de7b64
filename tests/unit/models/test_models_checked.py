"""What a run asks of its model is compared with the model before anything starts, for plan as for train."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlpost import cli, exit_codes
from rlpost.config import Config, ConfigError, parse
from rlpost.run.check import checked
from tests.conftest import tiny
from tests.tiny_models import edit, into_hub_cache, make, with_own_code, with_own_tokenizer

pytestmark = pytest.mark.usefixtures("shipped_verifiers_load")


def run_of(folder: Path | str, **changes: Any) -> Config:
    """A run without a warm-up that starts from a model on disk."""
    model = {"path": str(folder), "create": None, "dtype": "float32", **changes.pop("model", {})}
    values = tiny(**changes)
    return parse({**values, "warmup": None, "model": model})


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return make(tmp_path / "m", tie_word_embeddings=False)


def rewrite(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", {"format": "pt"})


def test_a_model_that_fits_is_left_as_it_is_and_described(llama):
    ready = checked(run_of(llama))
    assert ready.config == run_of(llama, model={"attention": "sdpa"})
    assert ready.lines == []
    facts = ready.facts
    assert facts is not None
    assert (facts.family, facts.positions, facts.rows, facts.tokens) == ("llama", 128, 260, 260)
    assert (facts.end, facts.padding, facts.dtypes) == ((2,), 0, ("float32",))
    assert facts.attention == ("eager", "sdpa", "flash_attention_2", "varlen")
    assert facts.parameters == sum(t.numel() for t in load_file(llama / "model.safetensors").values())


@pytest.mark.parametrize("origin", ["path", "create", "hub"])
def test_more_tokens_than_the_model_has_positions_are_refused_with_the_sum(origin, llama, tmp_path, monkeypatch):
    lengths = {"data": {"max_prompt_tokens": 40}, "rollout": {"max_tokens": 120}}
    if origin == "create":
        values = tiny(**lengths)
        values["model"]["create"]["config"]["max_position_embeddings"] = 128
        config = parse(values)
    elif origin == "hub":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        into_hub_cache(llama, tmp_path / "hub", "acme/tiny")
        config = run_of("acme/tiny", **lengths)
    else:
        config = run_of(llama, **lengths)
    with pytest.raises(
        ConfigError, match=r"data.max_prompt_tokens 40 \+ rollout.max_tokens 120 = 160 .* 128 positions"
    ):
        checked(config)


def test_longer_responses_of_a_test_set_count_too(llama):
    test = {**tiny()["data"]["test"], "max_tokens": 120}
    with pytest.raises(ConfigError, match=r"data.test.max_tokens 120 = 144 tokens"):
        checked(run_of(llama, data={"test": test}))


@pytest.mark.parametrize(
    ("config", "allowed"),
    [
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, 256),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}}, 128),
        ({"sliding_window": 16, "model_type": "mistral"}, 128),
    ],
)
def test_positions_are_what_rope_makes_of_them_and_a_window_is_no_limit(config, allowed, tmp_path):
    folder = make(tmp_path / "m", **config)
    facts = checked(run_of(folder)).facts
    assert facts is not None
    assert facts.positions == allowed
    with pytest.raises(ConfigError, match=f"{allowed} positions"):
        checked(run_of(folder, data={"max_prompt_tokens": allowed}))


def test_a_model_without_a_limit_of_positions_has_none(tmp_path):
    folder = make(tmp_path / "m", model_type="bloom", n_layer=2, n_head=2)
    edit(folder / "config.json", max_position_embeddings=None)  # not one of its own
    facts = checked(run_of(folder, data={"max_prompt_tokens": 300})).facts
    assert facts is not None
    assert facts.positions is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["LlamaForSequenceClassification"]}, "is a LlamaForSequenceClassification .*no head"),
        ({"architectures": ["LlamaModel"]}, "is a LlamaModel"),
        ({"model_type": "lama"}, "no model_type 'lama', did you mean 'llama'"),
        ({"model_type": None}, "names no model_type"),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            r"quantized weights \(quantization_config: gptq\)",
        ),
        ({"model_type": "t5"}, "is no causal language model"),
        ({"model_type": "bert", "is_decoder": False}, "is an encoder"),
        ({"num_attention_heads": 3}, "is not a multiple of the number of attention heads"),
        ({"num_key_value_heads": 3}, "do not divide by num_key_value_heads 3"),
        ({"vocab_size": 250}, r"embed_tokens.weight is \(260, 64\) on disk, and \(250, 64\) by config.json"),
        ({"vision_config": {"hidden_size": 8}}, "is a model of more than text"),
        ({"eos_token_id": 999}, "eos_token_id 999 is no row of its 260 embeddings"),
    ],
)
def test_a_configuration_that_cannot_be_a_policy_is_refused_with_its_place(change, message, llama):
    edit(llama / "config.json", **change)
    with pytest.raises(ConfigError, match=message) as error:
        checked(run_of(llama))
    assert f"model.path {str(llama)!r}" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_type": "qwen22"},
            "model.create.config.model_type: transformers has no 'qwen22', did you mean 'qwen2'",
        ),
        ({"num_attention_heads": 3}, "model.create.config"),
        ({"vocab_size": 10}, "tokenizer has ids up to .* embeddings have 10 rows: leave vocab_size out"),
        ({"hidden_size": "big"}, "model.create.config"),
        ({"model_type": "bert"}, "model.create.config is an encoder"),
    ],
)
def test_a_model_to_be_made_is_looked_at_too(change, message):
    values = tiny()
    values["model"]["create"]["config"].update(change)
    with pytest.raises(ConfigError, match=message):
        checked(parse(values))


def test_more_tokens_than_rows_of_embeddings_are_refused(llama):
    tokenizer = json.loads((llama / "tokenizer.json").read_text())
    extra = {**tokenizer["added_tokens"][-1], "id": 260, "content": "<more>"}
    tokenizer["added_tokens"].append(extra)
    (llama / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match=r"tokenizer has ids up to 260, but its embeddings have 260 rows"):
        checked(run_of(llama))


def test_padded_embeddings_are_no_slip(tmp_path):
    facts = checked(run_of(make(tmp_path / "m", vocab_size=320))).facts
    assert facts is not None
    assert (facts.tokens, facts.rows) == (260, 320)


def test_weights_that_are_not_whole_are_refused_before_anything_loads_them(llama):
    rewrite(llama, lambda tensors: {name: t for name, t in tensors.items() if name != "lm_head.weight"})
    with pytest.raises(ConfigError, match=r"has no lm_head.weight, the head"):
        checked(run_of(llama))
    file = llama / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ConfigError, match="is cut off"):
        checked(run_of(llama))
    file.rename(llama / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="its weights are pickles"):
        checked(run_of(llama))
    (llama / "config.json").write_text('{"model_type": "lla')
    with pytest.raises(ConfigError, match=r"config.json is not JSON, perhaps cut off"):
        checked(run_of(llama))
    (llama / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"has no config.json"):
        checked(run_of(llama))


def test_an_adapter_in_the_folder_is_not_put_on_in_silence(llama):
    (llama / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds an adapter of peft"):
        checked(run_of(llama))


def test_an_attention_the_model_does_not_have_is_set_with_a_line_or_refused(tmp_path):
    folder = make(tmp_path / "m", model_type="gpt_oss", num_local_experts=2, head_dim=32)
    ready = checked(run_of(folder, model={"dtype": "bfloat16"}))
    assert ready.config.model.attention == "eager"
    assert "model.attention: set to eager, not sdpa, which gpt_oss does not have" in ready.lines
    bloom = make(tmp_path / "b", model_type="bloom", n_layer=2, n_head=2)
    wanted = {"model": {"attention": "flash_attention_2", "dtype": "bfloat16"}, "cluster": {"gpus_per_node": 2}}
    with pytest.raises(ConfigError, match=r"flash_attention_2, which bloom does not have: set"):
        checked(run_of(bloom, **wanted))


def test_weights_that_are_cast_are_said(llama):
    rewrite(llama, lambda tensors: {name: t.to(torch.float16) for name, t in tensors.items()})
    ready = checked(run_of(llama, model={"dtype": "bfloat16"}))
    assert ready.lines == ["model.dtype: weights are float16 on disk and are cast to bfloat16"]
    rewrite(llama, lambda tensors: {name: t.to(torch.float8_e4m3fn) for name, t in tensors.items()})
    with pytest.raises(ConfigError, match="weights of type F8_E4M3"):
        checked(run_of(llama))


def test_a_hub_model_stays_at_its_commit_and_one_out_of_reach_is_said_where_another_machine_may_have_it(
    llama, tmp_path, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    into_hub_cache(llama, tmp_path / "hub", "acme/tiny")
    assert checked(run_of("acme/tiny")).config.model.revision == "c" * 40
    away = run_of("acme/elsewhere")
    with pytest.raises(ConfigError, match="not in the cache of this machine"):
        checked(away)
    ready = checked(away, elsewhere=True)
    assert ready.facts is None
    assert ready.lines[0].startswith("not looked at: model.path 'acme/elsewhere'")
    (tmp_path / "hub" / "models--acme--tiny" / "snapshots" / ("c" * 40) / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="no weights"):
        checked(run_of("acme/tiny"))


def test_code_that_comes_with_a_model_is_asked_for_before_anything_starts(tmp_path):
    for folder in (with_own_tokenizer(tmp_path / "t"), with_own_code(tmp_path / "c")):
        with pytest.raises(ConfigError, match=r"model.trust_remote_code: false"):
            checked(run_of(folder))
        assert checked(run_of(folder, model={"trust_remote_code": True})).facts
    code = json.loads((folder / "config.json").read_text())["auto_map"]
    del code["AutoModel"]
    edit(folder / "config.json", auto_map=code)
    with pytest.raises(ConfigError, match="must name as AutoModel"):
        checked(run_of(folder, model={"trust_remote_code": True}))


def test_an_anchor_must_read_the_policys_tokens(llama, tmp_path):
    small = make(tmp_path / "small", tokenizer="0123456789")
    objective = {
        "references": {"big": {"name": "teacher", "path": str(small)}},
        "regularizers": [{"divergence": "k3", "anchor": "big", "coef": 0.1}],
    }
    with pytest.raises(ConfigError, match=r"objective.references.big: .* has 14 embeddings"):
        checked(run_of(llama, objective=objective))
    own = with_own_code(tmp_path / "own")
    objective["references"]["big"]["path"] = str(own)
    with pytest.raises(ConfigError, match=r"objective.references.big.trust_remote_code: false"):
        checked(run_of(llama, objective=objective))
    objective["references"]["big"]["trust_remote_code"] = True
    checked(run_of(llama, objective=objective))


def test_plan_and_train_refuse_alike_and_no_folder_stays(llama, write_config, tmp_path, capsys):
    file = write_config(warmup=None, model={"path": str(llama), "create": None})
    for command in ("plan", "train", "sft"):
        arguments = [command, str(file), "rollout.max_tokens=400", "name=slip"]
        assert cli.run(arguments) == exit_codes.BAD_USAGE
    assert not (tmp_path / "runs").exists()
    capsys.readouterr()
    assert cli.run(["plan", str(file)]) == exit_codes.DONE
    said = capsys.readouterr().out
    for part in ("llama", "128; 36 are asked for", "260 tokens, 260 embeddings", "float32 on disk"):
        assert part in said
