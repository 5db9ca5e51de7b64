"""A verifier gets the text with special tokens when it asks for it, or the configuration does; all others without."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from rlpost import config
from rlpost.cli import run
from rlpost.exit_codes import DONE
from rlpost.observe import write_rollouts
from rlpost.types import Prompt
from rlpost.verify import VerifierPool
from tests.conftest import tiny
from tests.verify.conftest import make_sample

WAIT = 30.0
FILE = """
from rlpost.verify import verifier


def said(response):
    return {"score": 1.0, "details": {"said": response}}


def asks(response):
    return {"score": 1.0, "details": {"said": response}}


asks.raw = True


@verifier("all_of_them", group=True, raw=True)
def all_of_them(responses):
    return [{"score": 1.0, "details": {"said": response}} for response in responses]


def batch(samples):
    return [{"score": 1.0, "details": {"said": sample["response"]}} for sample in samples]


batch.batched = True


def after(response, verdicts):
    return {"score": 1.0, "details": {"said": response}}


def well_formed(response):
    return response.endswith("<eos>") and "<call>" in response
"""
TEXT, RAW = "2+1", "<call>2+1<eos>"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def told(*specs: dict, raw: str | None = RAW) -> list[str]:
    """What each verifier was told the response is."""
    pool = VerifierPool(
        [config.VerifierSpec.model_validate(spec) for spec in specs], config.VerifierPool(workers=1), WAIT
    )
    rollout, prompt = make_sample(TEXT)
    with pool:
        (future,) = pool.submit_group([replace(rollout, raw=raw)], prompt)
        return [verdict.details["said"] for verdict in future.result(WAIT).verdicts.values()]


def test_each_verifier_gets_the_text_it_asks_for(file: Path) -> None:
    names = ["said", "asks", "all_of_them", "batch", "after"]
    specs = [{"name": f"{file}:{name}"} for name in names]
    assert told(*specs) == [TEXT, RAW, RAW, TEXT, TEXT]
    assert told(*({**spec, "raw": True} for spec in specs)) == [RAW] * 5
    assert told(*({**spec, "raw": False} for spec in specs)) == [TEXT] * 5


def test_a_text_of_which_no_tokens_are_known_is_raw_as_it_is(file: Path) -> None:
    assert told({"name": f"{file}:asks"}, raw=None) == [TEXT]


def test_two_responses_that_differ_in_special_tokens_alone_are_two_for_who_sees_them(file: Path) -> None:
    specs = [config.VerifierSpec(name=f"{file}:{name}") for name in ("said", "well_formed")]
    specs[1] = specs[1].model_copy(update={"raw": True})
    rollout, prompt = make_sample(TEXT)
    with VerifierPool(specs, config.VerifierPool(workers=1), WAIT) as pool:
        rollouts = [replace(rollout, raw=raw, sample=i) for i, raw in enumerate((RAW, TEXT, RAW))]
        scored = [future.result(WAIT) for future in pool.submit_group(rollouts, prompt)]
    assert [one.verdicts[specs[1].name].score for one in scored] == [1.0, 0.0, 1.0]
    assert [one.verdicts[specs[0].name].cached for one in scored] == [False, True, True]


def test_recorded_rollouts_are_scored_with_the_text_their_verifier_asks_for(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"q": "?", "a": "1"}) + "\n")
    source = {"source": "jsonl", "path": "rows.jsonl", "prompt": "q", "reference": "a"}
    name = f"{file}:well_formed"
    values = {**tiny(), "data": {"train": source, "max_prompt_tokens": 24}, "warmup": None}
    values |= {"verifiers": [{"name": name, "raw": True}], "evaluation": {"before": False, "after": False}}
    folder = tmp_path / "runs" / "mine"
    (folder / "rollouts").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    rollout, _ = make_sample(TEXT)
    prompt = Prompt("p1", "?", np.zeros(1, np.int32), reference="1")
    kept = [replace(rollout, raw=raw, sample=i) for i, raw in enumerate((RAW, TEXT))]
    write_rollouts(folder / "rollouts" / "step_000001.parquet", kept, {"p1": prompt}, [None] * 2, [False] * 2, 1)

    def correct(*options: str) -> int:
        assert run(["verify", name, "--data", str(folder), "--out", "out.json", *options]) == DONE
        return int(json.loads((tmp_path / "out.json").read_text())["statuses"]["correct"])

    assert correct() == 1
    assert correct("--no-raw") == 0
