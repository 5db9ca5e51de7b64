"""A user's slips: each ends with 2 before anything starts, says the key, the value, the place and the fix, and leaves nothing.

The tables go through `train`, the last of them through every verb: what is said of a configuration is said of it by whichever
reads it.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from rlpost import cli, cluster
from rlpost.config import parse
from rlpost.config.other_names import OTHER_NAMES

pytestmark = pytest.mark.usefixtures("shipped_verifiers_load")
TINY = {
    "name": "x",
    "steps": 2,
    "model": {
        "dtype": "float32",
        "create": {
            "config": {
                "model_type": "qwen2",
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "max_position_embeddings": 128,
                "tie_word_embeddings": True,
            },
            "tokenizer": "0123456789+-*/()[], :=",
        },
    },
    "data": {
        "train": {"source": "jsonl", "path": "d/train.jsonl", "prompt": "question", "reference": "answer"},
        "max_prompt_tokens": 16,
    },
    "verifiers": ["exact"],
    "verifier_pool": {"workers": 1},
    "rollout": {"samples_per_prompt": 4, "max_tokens": 8, "max_sequences": 64},
    "learner": {"prompts_per_step": 4, "lr": 1e-3, "tokens_per_micro_batch": 1024, "layout": "padded"},
    "evaluation": {"before": False, "after": False},
    "checkpoint": {"every": 1},
    "observe": {"sinks": [], "console": "plain"},
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder, the current one: tiny.yaml, d/train.jsonl, rew.py. Nothing gets so far as to start Ray."""
    (tmp_path / "d").mkdir()
    rows = [{"question": f"1+{i}=", "answer": str(1 + i)} for i in range(1, 9)]
    (tmp_path / "d" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    (tmp_path / "rew.py").write_text("def score(response, reference=None):\n    return len(response) % 2 == 0\n")
    monkeypatch.chdir(tmp_path)

    def ray(*_: object) -> None:
        raise AssertionError("it got as far as Ray")

    monkeypatch.setattr(cluster, "session", ray)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], folder: Path, verb: str, *arguments: str) -> str:
    """What is said by a command that must end with 2 and leave nothing."""
    before = _files(folder)
    capsys.readouterr()
    code = cli.run([verb, *arguments])
    said = capsys.readouterr().err
    assert code == 2, f"exit {code}: {said}"
    assert "Traceback" not in said, said
    assert _files(folder) == before, said
    return said


def _files(folder: Path) -> list[str]:
    return sorted(str(p) for p in folder.rglob("*") if "__pycache__" not in p.parts)


def _laughs() -> str:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefghi", "bcdefghij", strict=True)]
    return "\n".join([*lines, "rollout: {engine_args: {x: *j}}\n"])


# What a second file holds, and what must be said of it.
FILES: dict[str, tuple[str | bytes, list[str]]] = {
    "braces twice": (
        "data: {train: {prompt: {{question}}}}\n",
        ["y.yaml, line 1", "data.train.prompt", "quote text with braces"],
    ),
    "a list as a key": ("? [a, b]\n: 1\n", ["line 1", "stands where a key must be"]),
    "an alias of nothing": ("steps: *nothing\n", ["line 1", "'nothing'", "quote text that begins with *"]),
    "a merge of a number": ("learner:\n  <<: 5\n", ["line 2", "must be a mapping"]),
    "an alias in itself": ("model: &a\n  path: *a\n", ["model.path", "leads back", "write the value out"]),
    "a list in itself": ("verifiers: &a [*a]\n", ["verifiers.0", "leads back"]),
    "a mapping in itself where all is taken": (
        "rollout:\n  engine_args: &a\n    x: *a\n",
        ["rollout.engine_args.x", "leads back"],
    ),
    "too deep": ("rollout: {engine_args: {x: " + "[" * 900 + "]" * 900 + "}}\n", ["line 1", "more than 40"]),
    "a billion laughs": (_laughs(), ["line 5", "50,000 are the most"]),
    "a tab": ("learner:\n\tlr: 1\n", ["line 2", "indent by spaces"]),
    "a key twice": ("steps: 1\nsteps: 2\n", ["line 2", "'steps' is given twice"]),
    "latin-1": ("# ok\nname: café\n".encode("latin-1"), ["y.yaml", "line 2", "0xe9", "UTF-8"]),
    "UTF-16": ("steps: 3\n".encode("utf-16"), ["y.yaml", "UTF-16", "save it as plain text in UTF-8"]),
    "bytes": (bytes(range(256)) * 4, ["y.yaml", "UTF-8"]),
    "a control character": ("name: a\x07b\n", ["y.yaml, line 1", "no text"]),
    "nothing": ("", ["y.yaml is empty"]),
    "a comment": ("# nothing\n", ["y.yaml is empty"]),
    "two documents": ("steps: 1\n---\nsteps: 2\n", ["line 2", "remove the line ---"]),
    "a list": ("- steps: 1\n", ["y.yaml must hold a mapping", "a list"]),
    "text": ("steps 3\n", ["y.yaml must hold a mapping", "'steps 3'"]),
    "a number as a key": ("1: 2\n", ["1: unknown key"]),
    "nothing as a key": ("~: 2\n", ["line 1", "'~'", "quote it"]),
    "on as a key": ("learner: {on: 2}\n", ["line 1", "learner", "'on'", "true or false"]),
    "a tag of Python": ("steps: !!python/object/apply:os.system ['x']\n", ["line 1", "steps", "remove it"]),
    "a tag of nobody": ("steps: !x 3\n", ["steps", "!x", "remove it"]),
    "a set": ("verifiers: !!set {exact, math}\n", ["verifiers", "!!set"]),
    "a tag that does not fit": ("steps: !!int x\n", ["y.yaml", "remove the tag"]),
    "a quote that does not end": ("name: 'x\n", ["y.yaml", "close the quote"]),
    "a colon in text": ("name: a: b\n", ["line 1", "quote text with a colon"]),
}

# Overrides after tiny.yaml, and what must be said.
OVERRIDES: dict[str, tuple[list[str], list[str]]] = {
    "not a number": (["learner.lr=.nan"], ["learner.lr", "finite", "nan"]),
    "not a number, as text": (["learner.lr=nan"], ["learner.lr", "finite", "'nan'"]),
    "an infinite bound": (
        ["objective.likelihood={name: jepo, marker: x, clip: [-.inf, 0]}"],
        ["objective.likelihood.clip.0", "finite"],
    ),
    "infinite": (["rollout.temperature=.inf"], ["rollout.temperature", "finite"]),
    "absurd": (["learner.lr=1000"], ["learner.lr", "1000", "less than or equal to 10"]),
    "too long a number": ([f"steps={'9' * 5000}"], ["override 'steps=999", "63 bits"]),
    "too large a number": ([f"seed={'9' * 30}"], ["override 'seed=999", "63 bits"]),
    "base sixty": (["steps=1:30"], ["steps", "'1:30'", "whole number"]),
    "yes for a number": (["steps=yes"], ["steps", "True", "yes, no, on, off"]),
    "no for a text": (["name=no"], ["name", "False", "quote text"]),
    "a number for a text": (["name=123"], ["name", '"123"', "quote it"]),
    "half a step": (["steps=1.5"], ["steps", "1.5", "whole number"]),
    "steps below zero": (["steps=-1"], ["steps", "-1"]),
    "a list for a section": (["learner=[1, 2]"], ["learner", "[1, 2]", "mapping"]),
    "null for a section": (["learner=null"], ["learner", "None", "leave the key out"]),
    "nothing": (["learner.lr="], ["learner.lr", "None", "leave the key out"]),
    "into a number": (["learner.lr.x=1"], ["learner.lr", "{'x': 1}"]),
    "an item that is not there": (["verifiers.5.weight=1"], ["verifiers.5", "1 items"]),
    "an item from the end": (["verifiers.-1.weight=1"], ["verifiers.-1", "counted from 0"]),
    "an item by a strange digit": (["verifiers.²=1"], ["verifiers", "list"]),
    "an item by name": (["verifiers.x.weight=1"], ["verifiers", "list"]),
    "dots alone": (["..=1"], ["'..=1'", "key=value"]),
    "two dots": (["learner..lr=1"], ["'learner..lr=1'", "key=value"]),
    "no key": (["=1"], ["'=1'", "key=value"]),
    "spaces": (["steps = 3"], ["'steps = 3'", "without spaces"]),
    "a space for the =": (["learner.lr", "1e-3"], ["'learner.lr' does not exist"]),
    "a key too deep": ([".".join("a" * 3000) + "=1"], ["override 'a.a.a", "key=value"]),
    "a value too deep": (["rollout.engine_args=" + "[" * 900], ["override 'rollout.engine_args=[[", "more than 40"]),
    "a Cyrillic letter": (["lеarner.lr=1"], ["lеarner: unknown key", "'learner'"]),
    "braces": (["data.train.prompt={question}"], ["data.train.prompt", "quote text with braces"]),
    "braces twice": (["data.train.prompt={{question}}"], ["override", "quote text with braces"]),
    "Hydra's removal": (["~learner.lr"], ["override '~learner.lr'", "leave learner.lr out of the file"]),
    "Hydra's removal with a value": (["~learner.lr=1"], ["override '~learner.lr=1'", "learner.lr=value"]),
    "Hydra's addition": (["+learner.lr=1"], ["override '+learner.lr=1'", "leave the + out"]),
    "no regular expression": (
        ["model.lora={target_modules: '['}"],
        ["model.lora.target_modules", "'['", "no regular expression"],
    ),
    "a beta of one": (["learner.betas=[0.9, 1.0]"], ["learner.betas.1", "less than 1", "1.0"]),
    "adapters of every rank": (["model.lora={rank: 100000}"], ["model.lora.rank", "4096", "100000"]),
    "a process for everyone": (["verifier_pool.workers=100000"], ["verifier_pool.workers", "1024", "100000"]),
    "more prompts than there are": (
        ["learner.prompts_per_step=1000000000000"],
        ["learner.prompts_per_step", "16777216", "1000000000000"],
    ),
    "a group of no samples": (["rollout.samples_per_prompt=0"], ["rollout.samples_per_prompt", "equal to 1", "0"]),
    "pass at more than is sampled": (
        ["evaluation={k: [8], samples_per_prompt: 4}"],
        ["evaluation", "pass@8", "raise evaluation.samples_per_prompt (4)"],
    ),
    "the same verifier twice": (["verifiers=[exact, exact]"], ["verifiers", "give one of them another label"]),
    "a model of no layers": (
        ["model.create.config.num_hidden_layers=0"],
        ["model.create.config.num_hidden_layers", "0 must be", "at least 1"],
    ),
    "layers by word": (["model.create.config.num_hidden_layers=two"], ["num_hidden_layers", "'two' must be"]),
    "half precision": (["model.dtype=fp16"], ["model.dtype", "'bfloat16'", "'fp16'"]),
    "a share of all": (["data.holdout=1.5"], ["data.holdout", "below 1"]),
    "an open brace": (["learner={lr: 1"], ["override 'learner={lr: 1'", "close what is open"]),
    "half a character": (["name=\udcff"], ["override", "no text"]),
    "a name that is a path": (["name=a/b"], ["name", "'a/b'", "runs_dir"]),
    "a name above": (["name=.."], ["name", "'..'"]),
    "a name of nothing": (["name=''"], ["name", "''"]),
    "a name of a space": (["name=' '"], ["name", "' '"]),
    "the name of the cache": (["name=.models"], ["name", "'.models'"]),
    "a name too long": ([f"name={'x' * 300}"], ["name", "at most 200 bytes"]),
    "a name with a null": (['name="a\\0b"'], ["name", "printable"]),
    "a name of two lines": (['name="a\\nb"'], ["name", "printable"]),
    "a dollar sign alone": (["runs_dir=a$"], ["runs_dir", "'a$'", "$$"]),
    "a variable that is not set": (["runs_dir=$NOT_SET/x"], ["runs_dir", "NOT_SET is not set", "export NOT_SET="]),
}

# As users of verl or TRL write it: the key is said to be unknown, and what is called so here.
ELSEWHERE: dict[str, tuple[str, list[str]]] = {
    "verl's samples": (
        "actor_rollout_ref.rollout.n=8",
        ["actor_rollout_ref: unknown key", "rollout.samples_per_prompt"],
    ),
    "samples": ("rollout.n=8", ["rollout.n: unknown key, value 8", "rollout.samples_per_prompt"]),
    "TRL's samples": ("num_generations=8", ["num_generations: unknown key", "rollout.samples_per_prompt"]),
    "the estimator": (
        "algorithm.adv_estimator=grpo",
        ["algorithm: unknown key", "adv_estimator", "objective.advantage"],
    ),
    "the actor's learning rate": ("actor.lr=1e-6", ["actor: unknown key", "lr of other systems is learner.lr"]),
    "TRL's learning rate": ("learning_rate=1e-6", ["learning_rate: unknown key, value 1e-06", "learner.lr"]),
    "the KL coefficient": (
        "objective.kl_coef=0.1",
        ["objective.kl_coef: unknown key, value 0.1", "objective.regularizers"],
    ),
    "epochs": ("trainer.total_epochs=3", ["trainer: unknown key", "total_epochs of other systems is epochs"]),
    "a slip of another name": (
        "learner.lerning_rate=1e-6",
        ["learner.lerning_rate: unknown key", "learning_rate of other systems is learner.lr here"],
    ),
    "files": ("data.train_files=d/train.jsonl", ["data.train_files: unknown key", "data.train.path"]),
    "the length of responses": ("data.max_response_length=8", ["data.max_response_length", "rollout.max_tokens"]),
    "two of them": ("trainer={nnodes: 1, save_freq: 5}", ["cluster.nodes", "checkpoint.every"]),
    "nothing to evaluate": ("evaluation.k=[]", ["evaluation.k", "at least 1", "[]"]),
    "characters twice": ("model.create.tokenizer=0+1-0", ["model.create.tokenizer", "'0' more than once"]),
    "no characters": ("model.create.tokenizer=''", ["model.create.tokenizer", "''", "bytes"]),
    "a space in a number": ("learner.lr=1e-6 x", ["learner.lr", "'1e-6 x'", "number"]),
}


@pytest.mark.parametrize("slip", FILES)
def test_a_slip_in_a_file_is_refused(project, capsys, slip):
    content, says = FILES[slip]
    (project / "y.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    said = refused(capsys, project, "train", "tiny.yaml", "y.yaml")
    assert all(part in said for part in says), said


@pytest.mark.parametrize("slip", OVERRIDES)
def test_a_slip_in_an_override_is_refused(project, capsys, slip):
    overrides, says = OVERRIDES[slip]
    said = refused(capsys, project, "train", "tiny.yaml", *overrides)
    assert all(part in said for part in says), said


@pytest.mark.parametrize("slip", ELSEWHERE)
def test_what_is_called_otherwise_elsewhere_is_refused_with_what_it_is_called_here(project, capsys, slip):
    override, says = ELSEWHERE[slip]
    said = refused(capsys, project, "plan", "tiny.yaml", override)
    assert all(part in said for part in says), said


def test_the_keys_that_other_names_lead_to_are_there(project):
    config = parse(TINY)
    for key in OTHER_NAMES.values():
        place = config
        if key.startswith(("the command", "data.t", "model.lora")):
            continue
        for part in key.partition(":")[0].split("."):
            assert part in type(place).model_fields, key
            place = getattr(place, part)


MADE: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "a folder": (lambda p: p.mkdir(), ["'y.yaml' is a folder"]),
    "a link to nothing": (lambda p: p.symlink_to("nowhere"), ["'y.yaml' is a link to nowhere"]),
    "a pipe": (os.mkfifo, ["'y.yaml' is no regular file"]),
    "not there": (lambda p: p.with_name("yy.yaml").write_text("steps: 1"), ["'y.yaml' does not exist", "'yy.yaml'"]),
    "data": (lambda p: p.write_bytes(b"#" * 2**23), ["'y.yaml' is larger than 4 MiB"]),
}


@pytest.mark.parametrize("made", MADE)
def test_what_is_no_configuration_file_is_said_to_be_what_it_is(project, capsys, made):
    make, says = MADE[made]
    make(project / "y.yaml")
    said = refused(capsys, project, "train", "tiny.yaml", "y.yaml")
    assert all(part in said for part in says), said


def test_what_is_meant_is_read_as_it_is_meant(project, capsys):
    """A byte order mark, a date as a name, a number with zeros before it, an equals sign in a file's name."""
    (project / "a=b.yaml").write_bytes("\ufeffname: 2026-01-02\nsteps: 010\nlearner: {lr: 1e-6}\nseed: 0x10\n".encode())
    assert cli.run(["plan", "tiny.yaml", "a=b.yaml"]) == 0
    config = cli.load_arguments(["tiny.yaml", "a=b.yaml"], [])
    assert (config.name, config.steps, config.learner.lr, config.seed) == ("2026-01-02", 10, 1e-6, 16)


def _write(name: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda p: (p / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def _nothing(p: Path) -> None:
    pass


OWN = ["verifiers=[v.py:score]"]
ROW = b'{"question": "1", "answer": "1"}'
# What is made in the folder, overrides, and what must be said: these look at files, and some start a verifier's process.
INPUTS: dict[str, tuple[Callable[[Path], object], list[str], list[str]]] = {
    "data that is not there": (
        _nothing,
        ["data.train.path=d/tain.jsonl"],
        ["data.train.path", "'d/tain.jsonl' does not exist"],
    ),
    "data that is a pipe": (
        lambda p: os.mkfifo(p / "f.jsonl"),
        ["data.train.path=f.jsonl"],
        ["data.train.path", "neither a file"],
    ),
    "data behind a broken link": (
        lambda p: (p / "l.jsonl").symlink_to("gone"),
        ["data.train.path=l.jsonl"],
        ["data.train.path", "'l.jsonl' is a link to gone"],
    ),
    "data of no rows": (_write("e.jsonl", ""), ["data.train.path=e.jsonl"], ["data.train", "e.jsonl", "has no rows"]),
    "a wrong column": (
        _nothing,
        ["data.train.prompt=qestion"],
        ["data.train.prompt: 'qestion'", "did you mean 'question'"],
    ),
    "a wrong column in a template": (_nothing, ["data.train.prompt='{qestion}?'"], ["data.train.prompt", "'question'"]),
    "a wrong reference": (
        _nothing,
        ["data.train.reference=x"],
        ["data.train.reference: 'x'", "known: answer, question"],
    ),
    "a wrong column for verifiers": (_nothing, ["data.train.metadata=[x]"], ["data.train.metadata: 'x'"]),
    "a template that does not close": (
        _nothing,
        ["data.train.prompt='{question'"],
        ["data.train.prompt", "'{question'"],
    ),
    "Parquet that is none": (_nothing, ["data.train.source=parquet"], ["data.train", "train.jsonl", "parquet"]),
    "zipped data": (
        lambda p: (p / "z.jsonl").write_bytes(gzip.compress(ROW)),
        ["data.train.path=z.jsonl"],
        ["data.train", "row 1"],
    ),
    "a table as JSON lines": (
        _write("t.jsonl", "question,answer\n1,2\n"),
        ["data.train.path=t.jsonl"],
        ["data.train", "row 1: not JSON"],
    ),
    "rows of another test": (
        _nothing,
        ["data.test={source: jsonl, path: d/train.jsonl, prompt: problem}"],
        ["data.test.prompt: 'problem'", "known: answer, question"],
    ),
    "rows of a strategy": (
        _nothing,
        [
            "data.strategy={name: replay_mixture, source: {source: jsonl, path: d/train.jsonl, prompt: question, completion: x}, per_step: 1}"
        ],
        ["data.strategy.source.completion: 'x'"],
    ),
    "a verifier that is not there": (_nothing, OWN, ["verifiers.0.name", "'v.py' does not exist"]),
    "a verifier without its function": (
        _write("v.py", "def sore(response): ...\n"),
        OWN,
        ["verifiers.0.name", "'score'", "'sore'"],
    ),
    "a verifier that is no Python": (
        _write("v.py", "def score(response:\n"),
        OWN,
        ["verifiers.0.name", "v.py", "line 1"],
    ),
    "a verifier that imports what is not there": (
        _write("v.py", "import nothere\ndef score(response): ...\n"),
        OWN,
        ["verifiers", "'v.py:score'", "nothere"],
    ),
    "a verifier that ends the program": (
        _write("v.py", "import sys\nsys.exit(3)\ndef score(response): ...\n"),
        OWN,
        ["verifiers", "'v.py:score'", "SystemExit(3)"],
    ),
    "a verifier's misspelt argument": (
        _write("v.py", "def score(response, refrence): ...\n"),
        OWN,
        ["verifiers.0", "'v.py:score'", "'refrence'", "did you mean 'reference'", "rows of data.train"],
    ),
    "a verifier of another program": (
        _write("v.py", "def score(a, b, c): ...\n"),
        OWN,
        ["verifiers.0", "argument 'a'", "response, reference, prompt", "verifiers.0.a", "data.train.metadata"],
    ),
    "a verifier of a batch with a column": (
        _write("v.py", "def verify_batch(samples, answer): ...\n"),
        ["verifiers=[v.py:verify_batch]", "data.train.metadata=[answer]"],
        ["verifiers", "'v.py:verify_batch' is batched", "argument 'answer'"],
    ),
    "a reward function of TRL with a column": (
        _write(
            "v.py",
            "from rlpost.verify.adapters import from_trl\ndef f(completions, anwser): ...\nscore = from_trl(f, 'answer')\n",
        ),
        OWN,
        ["verifiers.0", "argument 'anwser'", "data.train.metadata"],
    ),
    "rows chosen by a column": (
        _nothing,
        ["verifiers=[{name: exact, when: {kind: math}}]"],
        ["verifiers.0.when.kind", "'math'", "metadata of data.train"],
    ),
    "a strategy that wants what is not given": (
        _write(
            "l.py",
            "from rlpost.data.strategy import Strategy\nclass F(Strategy):\n    def __init__(self, depth): ...\n",
        ),
        ["data.strategy=l.py:F"],
        ["'l.py:F'", "missing depth", "set it"],
    ),
    "a loss that wants what is not given": (
        _write("l.py", "def f(batch, low): ...\n"),
        ["objective.policy_loss=l.py:f"],
        ["policy loss 'l.py:f'", "missing low", "set it"],
    ),
    "a head the engine does not take": (
        _nothing,
        ["model.create.config.head_dim=16"],
        ["model.create.config", "heads of 16", "head_dim: 32"],
    ),
    "prompts that are all too long": (
        _nothing,
        ["data.max_prompt_tokens=2"],
        ["data.train leaves no prompt to train on (data.max_prompt_tokens is 2: raise it)", "8 too long"],
    ),
    "a holdout of all there is": (_nothing, ["data.holdout=8"], ["data.holdout 8 takes 8 of 8 prompts of data.train"]),
    "a holdout of more rows than are looked at": (
        lambda p: (p / "m.jsonl").write_text(
            "".join(f'{{"question": "1+{i}=", "answer": "{i}"}}\n' for i in range(150))
        ),
        ["data.train.path=m.jsonl", "data.holdout=150"],
        ["data.holdout 150 takes all 150 rows of data.train", "lower it"],
    ),
    "a test of all that is learned from": (
        _nothing,
        ["data.test={source: jsonl, path: d/train.jsonl, prompt: question, reference: answer}"],
        ["data.train leaves no prompt to train on", "8 "],
    ),
    "characters without a token": (
        _write("c.jsonl", '{"question": "1 plus 1", "answer": "2"}\n'),
        ["data.train.path=c.jsonl"],
        ["data.train (jsonl c.jsonl)", "row 1", "no token for 'p', 'l', 'u', 's'"],
    ),
    "characters without a token to teach": (
        _write("c.jsonl", '{"question": "1+1=", "answer": "two"}\n'),
        ["warmup={train: {source: jsonl, path: c.jsonl, prompt: question, completion: answer}, steps: 1}"],
        ["warmup.train", "no token for 't', 'w', 'o'"],
    ),
    "a verifier that is a number": (_write("v.py", "score = 3\n"), OWN, ["verifiers", "not a function"]),
    "a verifier's argument": (_nothing, ["verifiers=[{name: exact, x: 1}]"], ["verifiers", "'exact' takes no 'x'"]),
    "a loss that ends the program": (
        _write("l.py", "import sys\nsys.exit(3)\ndef f(batch): ...\n"),
        ["objective.policy_loss=l.py:f"],
        ["policy loss", "l.py", "SystemExit: 3"],
    ),
    "a loss that takes nothing": (
        _write("l.py", "def f(): ...\n"),
        ["objective.policy_loss=l.py:f"],
        ["'l.py:f'", "must take (batch)"],
    ),
    "a strategy that is none": (
        _write("l.py", "class F: ...\n"),
        ["data.strategy=l.py:F"],
        ["data.strategy", "l.py:F", "derive"],
    ),
    "a coefficient that is a list": (
        _nothing,
        ["objective.regularizers=[{divergence: k3, coef: [1]}]"],
        ["objective.regularizers.0.coef: must be a number, got [1]"],
    ),
    "a parameter that is not a number": (
        _nothing,
        ["objective.policy_loss={name: ppo_clip, low: .nan}"],
        ["policy loss 'ppo_clip'", "'low'", "nan"],
    ),
    "runs in a file": (_nothing, ["runs_dir=tiny.yaml/x"], ["runs_dir", "'tiny.yaml/x'", "is no folder"]),
    "runs where nothing is written": (_nothing, ["runs_dir=/proc/x"], ["runs_dir", "'/proc/x'", "name another folder"]),
}


@pytest.mark.parametrize("slip", INPUTS)
def test_a_slip_in_what_a_run_reads_or_writes_is_refused(project, capsys, slip):
    make, overrides, says = INPUTS[slip]
    make(project)
    said = refused(capsys, project, "train", "tiny.yaml", *overrides)
    assert all(part in said for part in says), said


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "127.0.0.1:99999", "[::1]:9"])
def test_a_cluster_that_does_not_answer_is_refused_by_the_key_it_came_from(project, capsys, monkeypatch, address):
    said = refused(capsys, project, "train", "tiny.yaml", f"cluster.address='{address}'")
    assert f"cluster.address: {address!r}: nothing answers there" in said
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert f"RAY_ADDRESS: {address!r}: nothing answers there" in refused(capsys, project, "train", "tiny.yaml")


@pytest.mark.parametrize("address", ["1.2.3.4", "http://127.0.0.1:8265", "host:port"])
def test_an_address_that_is_none_is_refused_by_plan_too(project, capsys, address):
    for verb in ("plan", "train"):
        said = refused(capsys, project, verb, "tiny.yaml", f"cluster.address='{address}'")
        assert f"cluster.address: {address!r} must be auto, HOST:PORT" in said


# ------------------------------------------------------------------------------------------- runs that are resumed


def _run(project: Path, config: str | None = None, manifest: str | None = None, checkpoint: str | None = None) -> Path:
    """A run's folder that was started and stopped, with parts of it torn."""
    run = project / "runs" / "x"
    for part in ("checkpoints", "rollouts", "logs"):
        (run / part).mkdir(parents=True)
    sound = {
        "run_id": "a",
        "started": "2026-01-01",
        "seed": 0,
        "command": ["rlpost", "train"],
        "versions": {},
        "git": {},
    }
    (run / "manifest.json").write_text(json.dumps(sound) if manifest is None else manifest)
    (run / "config.yaml").write_text(yaml.safe_dump(TINY) if config is None else config)
    if checkpoint is not None:
        (run / "checkpoints" / "step_000003").mkdir()
        (run / "checkpoints" / "step_000003" / "manifest.json").write_text(checkpoint)
    return run


TORN = {
    "config.yaml": ({"config": "model: {"}, ["config.yaml, line 1"]),
    "an empty config.yaml": ({"config": ""}, ["config.yaml is empty"]),
    "manifest.json": ({"manifest": '{"run_id": '}, ["manifest.json", "cannot be read"]),
    "a checkpoint's manifest": ({"checkpoint": '{"step": 3, "fi'}, ["step_000003", "manifest.json cannot be read"]),
}


@pytest.mark.parametrize("torn", TORN)
def test_a_run_whose_files_are_torn_is_not_resumed_and_stays_as_it_is(project, capsys, torn):
    parts, says = TORN[torn]
    _run(project, **parts)
    said = refused(capsys, project, "resume", "runs/x", "steps=5")
    assert all(part in said for part in says), said


@pytest.mark.parametrize("folder", ["runs/none", "tiny.yaml", "d"])
def test_what_is_no_run_is_not_resumed(project, capsys, folder):
    assert str(project / folder) in refused(capsys, project, "resume", folder)


# ------------------------------------------------------------------------- ten more, through every command that reads them

EVERYWHERE: dict[str, tuple[str, list[str]]] = {
    "the configuration as data": ("data.train.path=tiny.yaml", ["data.train", "tiny.yaml", "not JSON"]),
    "a module for a file": ("verifiers=['reww:score']", ["verifiers", "'reww:score'", "No module named"]),
    "a typographic minus": ("learner.lr=1e−4", ["learner.lr", "must be a number", "'1e−4'"]),
    "a decimal comma": ("learner.lr=0,001", ["learner.lr", "'0,001'"]),
    "percent": ("data.holdout=10%", ["data.holdout", "'10%'", "number"]),
    "k for a thousand": ("rollout.max_tokens=8k", ["rollout.max_tokens", "'8k'"]),
    "a path for a source": ("data.test=d/train.jsonl", ["data.test", "mapping", "'d/train.jsonl'"]),
    "names by comma": ("verifiers=exact,math", ["verifiers", "must be a list", "'exact,math'"]),
    "a space at the end": (
        "data.train.reference='answer '",
        ["data.train.reference: 'answer '", "did you mean 'answer'"],
    ),
    "curly quotes": ("data.train.prompt=“question”", ["data.train.prompt", "did you mean 'question'"]),
    "a column in the template": ("data.template={prompt: '{question}'}", ["data.template", "must contain {prompt}"]),
    "all for a count": ("cluster.gpus_per_node=all", ["cluster.gpus_per_node", "'all'", "whole number"]),
}


@pytest.mark.parametrize("slip", EVERYWHERE)
def test_plan_train_resume_and_submit_refuse_alike(project, capsys, slip):
    override, says = EVERYWHERE[slip]
    _run(project)
    for verb, arguments in (
        ("plan", ["tiny.yaml", override]),
        ("train", ["tiny.yaml", override, "name=y"]),
        ("resume", ["runs/x", override]),
        ("submit", ["tiny.yaml", override, "--address", "http://127.0.0.1:9"]),
    ):
        said = refused(capsys, project, verb, *arguments)
        assert all(part in said for part in says), (verb, said)
