"""One place loads a model's parts, from wherever it is, and writes them so that it is the same one again."""

import ast
import json
from pathlib import Path

import pytest
import torch

from rlpost.config import ConfigError, Model
from rlpost.models.load import config_values, eos_token_ids, load_causal_lm, load_config, load_tokenizer
from rlpost.models.save import save_pretrained
from rlpost.models.source import ModelSource, OutOfReachError
from rlpost.models.weights import WeightsError, parameter_count, tensors_on_disk
from tests.conftest import ROOT
from tests.tiny_models import edit, into_hub_cache, make, with_own_code, with_own_tokenizer


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture(autouse=True)
def nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(prompt: str = "") -> str:
        raise AssertionError(f"asked on standard input: {prompt}")

    monkeypatch.setattr("builtins.input", asked)


def saved(source: ModelSource, folder: Path, dtype: torch.dtype = torch.float32) -> ModelSource:
    """The model written anew, as a checkpoint of a run is."""
    tensors = {name: t.detach() for name, t in load_causal_lm(source, dtype).state_dict().items()}
    save_pretrained(folder, source, {n: t.to("meta") for n, t in tensors.items()}, tensors.items(), dtype)
    return ModelSource(str(folder), trust_remote_code=source.trust_remote_code)


def same_logits(one: ModelSource, other: ModelSource) -> bool:
    ids = torch.arange(4, 20)[None]
    first, second = (load_causal_lm(s, torch.float32).eval()(ids).logits for s in (one, other))
    return torch.equal(first, second)


def test_nothing_else_in_rlpost_loads_a_part_of_a_model():
    calls = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / "rlpost").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in ("from_pretrained", "get_config_dict")
        and ast.unparse(node.value) != "PeftModel"  # put on a model that was loaded there
    ]
    assert {call.partition(":")[0] for call in calls} == {"rlpost/models/load.py"}, calls


# ---------------------------------------------------------------------------------------------------------- places


def test_a_model_of_the_hubs_cache_is_the_same_one_in_every_part(tmp_path, cache):
    folder = make(tmp_path / "m")
    edit(folder / "generation_config.json", eos_token_id=[2, 30])
    into_hub_cache(folder, cache, "acme/tiny")
    hub, plain = ModelSource("acme/tiny"), ModelSource(str(folder))
    assert load_tokenizer(hub).get_vocab() == load_tokenizer(plain).get_vocab()
    assert load_config(hub).hidden_size == 64
    assert eos_token_ids(hub) == [2, 30]
    assert same_logits(hub, plain)
    assert parameter_count(hub.folder()) == parameter_count(folder)


def test_end_tokens_of_a_hub_model_stay_with_it_when_it_is_saved(tmp_path, cache):
    folder = make(tmp_path / "m")
    edit(folder / "generation_config.json", eos_token_id=[2, 30], temperature=0.6, do_sample=False)  # seldom consistent
    into_hub_cache(folder, cache, "acme/tiny")
    written = saved(ModelSource("acme/tiny"), tmp_path / "out")
    assert eos_token_ids(written) == [2, 30]
    assert (tmp_path / "out" / "generation_config.json").read_text() == (folder / "generation_config.json").read_text()
    assert not any(file.is_symlink() for file in (tmp_path / "out").iterdir())


def test_a_revision_of_a_hub_model_is_taken_and_one_that_is_not_there_is_named(tmp_path, cache):
    into_hub_cache(make(tmp_path / "a", seed=1), cache, "acme/tiny", "a" * 40)
    into_hub_cache(make(tmp_path / "b", seed=2), cache, "acme/tiny", "b" * 40, ref="v2")
    model = Model.model_validate({"path": "acme/tiny", "revision": "v2"})
    assert same_logits(ModelSource.of(model), ModelSource(str(tmp_path / "b")))
    assert ModelSource.of(model).pinned() == ModelSource("acme/tiny", "b" * 40)
    assert ModelSource("acme/tiny").pinned().revision == "a" * 40
    assert ModelSource.of(model, str(tmp_path / "a")).revision is None, "a checkpoint is of no revision"
    with pytest.raises(OutOfReachError, match=r"model.path 'acme/tiny', model.revision 'v3'.*not in the cache"):
        load_tokenizer(ModelSource("acme/tiny", "v3"))
    with pytest.raises(ConfigError, match=r"model.revision: v2, but model.path .* is a folder"):
        load_config(ModelSource(str(tmp_path / "a"), "v2"))


@pytest.mark.parametrize("spelled", ["~/models/m", "$MODELS/m", "${MODELS}/m"])
def test_a_path_may_begin_at_home_or_with_a_variable_in_every_part(spelled, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MODELS", str(tmp_path / "models"))
    plain = ModelSource(str(make(tmp_path / "models" / "m")))
    source = ModelSource.of(Model.model_validate({"path": spelled}))
    assert load_tokenizer(source).get_vocab() == load_tokenizer(plain).get_vocab()
    assert eos_token_ids(source) == [2]
    assert same_logits(source, plain)
    assert same_logits(saved(source, tmp_path / "out"), plain)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("./models/lama", r"model.path './models/lama': no such folder, did you mean 'llama'\?"),
        ("models/lama", r"model.path 'models/lama': no folder of that name, did you mean 'llama'\?"),
        ("models/llama/config.json", r"model.path 'models/llama/config.json' is a file: give the folder"),
        ("models", r"model.path 'models' has no config.json"),
    ],
)
def test_a_path_that_is_no_model_is_named_with_the_nearest_one(path, message, tmp_path, monkeypatch, cache):
    make(tmp_path / "models" / "llama")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message) as error:
        load_config(ModelSource(path))
    assert not isinstance(error.value, OutOfReachError)


def test_a_folder_that_holds_a_model_further_down_says_which_to_give(tmp_path):
    make(tmp_path / "run" / "checkpoints" / "step_000002" / "model")
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoints" / "step_000002"):
        with pytest.raises(ConfigError, match=r"give .*step_000002/model"):
            load_config(ModelSource(str(folder)))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="an adapter of peft"):
        load_config(ModelSource(str(adapter)))


# ------------------------------------------------------------------------------------------------------------ code


def test_a_tokenizer_that_comes_as_code_is_run_only_when_allowed_and_travels(tmp_path):
    folder = with_own_tokenizer(tmp_path / "m")
    with pytest.raises(ConfigError, match=r"model.trust_remote_code: false.*tokenization_letters.py"):
        load_tokenizer(ModelSource(str(folder)))
    source = ModelSource(str(folder), trust_remote_code=True)
    ids = load_tokenizer(source)("1 + 1 = ?")["input_ids"]
    assert eos_token_ids(source) == [2]
    written = saved(source, tmp_path / "out")
    assert load_tokenizer(written)("1 + 1 = ?")["input_ids"] == ids
    assert same_logits(written, source)


def test_a_network_that_comes_as_code_is_run_only_when_allowed_and_travels(tmp_path):
    folder = with_own_code(tmp_path / "m")
    for load in (load_config, eos_token_ids, lambda s: load_causal_lm(s, torch.float32)):
        with pytest.raises(ConfigError, match=r"model.trust_remote_code: false.*modeling_own.py"):
            load(ModelSource(str(folder)))
    source = ModelSource(str(folder), trust_remote_code=True)
    assert type(load_causal_lm(source, torch.float32)).__name__ == "OwnForCausalLM"
    written = saved(source, tmp_path / "out")
    assert same_logits(written, source)
    assert config_values(written)["architectures"] == ["OwnForCausalLM"]


# ----------------------------------------------------------------------------------------------------------- saved


def test_a_saved_model_is_its_source_but_for_weights_and_dtype(tmp_path):
    folder = make(tmp_path / "m")
    edit(folder / "config.json", eos_token_id=[2, 7], note="kept", dtype=None, torch_dtype="float16")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    tokenizer = load_tokenizer(ModelSource(str(folder)))
    tokenizer.add_tokens(["<think>"])
    tokenizer.save_pretrained(folder)
    (folder / "vocab.txt").write_text("also there")
    (folder / "optimizer.pt").write_bytes(b"not of the model")
    source = ModelSource(str(folder))
    written = saved(source, tmp_path / "out", torch.bfloat16)
    before, after = config_values(source), config_values(written)
    assert after.pop("dtype") == "bfloat16"
    assert before.pop("torch_dtype") == "float16"
    assert after == before
    assert {tensor.dtype for tensor in tensors_on_disk(tmp_path / "out").values()} == {"BF16"}
    assert load_tokenizer(written)("<think>", add_special_tokens=False)["input_ids"] == [len(tokenizer) - 1]
    chat = [{"role": "user", "content": "hello"}]
    assert load_tokenizer(written).apply_chat_template(chat, tokenize=False) == "hello!"
    assert eos_token_ids(written) == [2, 7]
    assert (tmp_path / "out" / "vocab.txt").is_file()
    assert not (tmp_path / "out" / "optimizer.pt").exists()


# --------------------------------------------------------------------------------------------------------- weights


def test_weights_that_are_not_there_are_not_drawn(tmp_path):
    folder = make(tmp_path / "m", tie_word_embeddings=False)
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    head = tensors.pop("lm_head.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"the checkpoint has no lm_head.weight, which LlamaForCausalLM needs"):
        load_causal_lm(ModelSource(str(folder)), torch.float32)
    save_file({**tensors, "lm_head.weight": head[:-1].clone()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"lm_head.weight"):
        load_causal_lm(ModelSource(str(folder)), torch.float32)


def test_what_is_wrong_with_weights_on_disk_is_told_from_their_headers(tmp_path):
    folder = make(tmp_path / "m")
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    assert parameter_count(folder) == sum(
        p.numel() for p in load_causal_lm(ModelSource(str(folder)), torch.float32).parameters()
    )
    for content, message in (
        (whole[:-10], "is cut off"),
        (b"", "is cut off"),
        (b"<html>not found</html>", "is cut off, or no"),
    ):
        file.write_bytes(content)
        with pytest.raises(WeightsError, match=message):
            tensors_on_disk(folder)
    file.rename(folder / "model-00001-of-00002.safetensors")
    with pytest.raises(WeightsError, match="the download or the copy is not whole"):
        tensors_on_disk(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}})
    )
    with pytest.raises(WeightsError, match="1 of 2 files of weights are missing, model-00002"):
        tensors_on_disk(folder)
    index.write_text('{"weight_map": {"a"')
    with pytest.raises(WeightsError, match="cut off"):
        tensors_on_disk(folder)
    for part in folder.glob("model*"):
        part.unlink()
    with pytest.raises(WeightsError, match="no weights"):
        tensors_on_disk(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(WeightsError, match="pickles"):
        tensors_on_disk(folder)
    with pytest.raises(ConfigError, match="model cannot be loaded"):
        load_causal_lm(ModelSource(str(folder)), torch.float32)
