"""A row that no response could be verified on is found when the data is loaded, and named by its number."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rlpost import config
from rlpost.config import Data
from rlpost.data import DataError, load_prompts, make_tokenizer
from rlpost.types import Prompt
from rlpost.verify import VerifierError, VerifierPool, references
from rlpost.verify.protocol import load
from rlpost.verify.references import checker
from rlpost.verify.registry import resolve

OURS = """
import os, time


def score(response, reference):
    return 1.0


def check(reference, level=0):
    if reference == "loop":
        time.sleep(600)
    if reference == "exit":
        os._exit(3)
    if reference == "raise":
        raise KeyError(reference)
    return "no such level" if level > 2 else None


score.check = check


def asked(response, reference):
    if reference == "odd":
        return {"score": None, "reason": "bad_reference"}
    return 0.0


asked.check = True


def graded(response, reference):
    return 1.0


graded.check = lambda reference: {"sure": reference}


async def later(response):
    return 1.0


later.check = True
"""


@pytest.fixture
def ours(tmp_path):
    (tmp_path / "ours.py").write_text(OURS)
    return f"{tmp_path}/ours.py"


def problems(*specs, rows, **settings):
    """What is wrong with rows of (reference, metadata)."""
    prompts = [Prompt(f"p{i}", "q", np.zeros(1, np.int32), row, None, data) for i, (row, data) in enumerate(rows)]
    found = [config.VerifierSpec.model_validate(spec if isinstance(spec, dict) else {"name": spec}) for spec in specs]
    return [one.problem for one in checker(found, config.VerifierPool(workers=2, retries=0, **settings))(prompts)]


def test_a_users_own_check_is_asked_and_one_that_hangs_crashes_or_raises_names_the_row(ours, monkeypatch):
    monkeypatch.setattr(references, "SECONDS", 5.0)
    rows = [("a", {}), ("a", {"level": 3}), ("loop", {}), ("exit", {}), ("raise", {}), ("b", {"level": 1})]
    found = problems({"name": f"{ours}:score", "timeout": 2.0}, rows=rows)
    assert [why is None for why in found] == [True, False, False, False, False, True]
    assert found[1].endswith("ours.py:score': no such level")
    assert found[2] == "its check takes longer than 5 s"
    assert "exit code 3" in found[3]
    assert "KeyError('raise')" in found[4]


def test_a_verifier_may_be_asked_itself_and_when_keeps_to_its_rows(ours):
    spec = {"name": f"{ours}:asked", "when": {"kind": "mine"}}
    rows = [("odd", {"kind": "mine"}), ("odd", {"kind": "another"}), ("even", {"kind": "mine"})]
    assert [why is None for why in problems(spec, "format", rows=rows)] == [False, True, True]


def test_what_a_check_measures_is_said_over_the_rows_and_what_is_no_number_is_the_rows_fault(ours, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"q": f"what {i}", "a": a}) + "\n" for i, a in enumerate((0.5, 0.25, 0.75, "so")))
    )
    check = checker([config.VerifierSpec(name=f"{ours}:graded")], config.VerifierPool(workers=1))
    sets = load_prompts(data_of(path, bad_rows="skip", bad_rows_budget=1), make_tokenizer("what 0123"), 0, check)
    lines = sets.report.lines()
    assert any(line.endswith("ours.py:graded': sure: 0.50 on average, least 0.25 (row 2)") for line in lines), lines
    assert any("row 4" in line and "could not convert" in line for line in lines), lines


def test_a_check_that_is_async_is_refused_with_the_name(ours):
    with pytest.raises(VerifierError, match=r"ours.py:later': `check` must be True or a function that is not async"):
        load(f"{ours}:later", resolve(f"{ours}:later"), {})


def test_where_no_verifier_has_a_check_nothing_is_reported(ours):
    assert problems("format", rows=[(None, {})] * 3) == [None] * 3
    assert problems("format", rows=[]) == []


@pytest.mark.parametrize(
    ("name", "good", "bad", "says"),
    [
        ("math", ("1/2", {}), (r"\frac{", {}), "cannot be read"),
        ("exact", ("a", {}), (None, {}), "no reference"),
        ("choice", ("B", {}), ("7!", {}), "not among"),
        ("regex", ("a+", {}), ("(", {}), "no regular expression"),
        ("json_schema", ({"type": "object"}, {}), ({"type": "fish"}, {}), "fish"),
        ("countdown", (None, {"numbers": [1, 2], "target": 3}), (None, {"numbers": [1]}), "needs"),
        (
            "code",
            (None, {"test_list": ["assert double(2) == 4"], "code": "def double(x): return 2 * x"}),
            (None, {"test_list": ["assert double(2) == 4"], "code": "def double(x): return 3 * x"}),
            "its reference solution fails: mismatch",
        ),
        (
            "code",
            (None, {"tests": {"inputs": ["1"], "outputs": ["1"]}}),
            (None, {"tests": {"inputs": ["1"], "outputs": [""]}}),
            "an empty program passes",
        ),
        ("code", (None, {"test_list": ["assert f(1)"]}), (None, {"test_list": ["assert f("]}), "do not parse"),
        (
            "sql",
            ("SELECT a FROM t", {"database": "CREATE TABLE t (a); INSERT INTO t VALUES (1)"}),
            ("SELECT b FROM t", {"database": "CREATE TABLE t (a); INSERT INTO t VALUES (1)"}),
            "no such column",
        ),
    ],
)
def test_verifiers_that_ship_say_what_is_wrong_with_a_row(name, good, bad, says):
    check = load(name, resolve(name), {}).check
    rows = [{"reference": row, "prompt": "", "prompt_id": "p", "metadata": data} for row, data in (good, bad)]
    assert not isinstance(check(rows[0]), str)
    assert says in check(rows[1])


def data_of(path, **more):
    source = {"source": "jsonl", "path": str(path), "prompt": "q", "reference": "a"}
    return Data.model_validate({"train": source, **more})


def test_a_bad_reference_is_a_bad_row_by_the_policy_of_the_data(tmp_path):
    path = tmp_path / "rows.jsonl"
    references = ["5", r"\frac{", "x+1", "10^{10^{10}}"]
    path.write_text("".join(json.dumps({"q": f"what {i}", "a": a}) + "\n" for i, a in enumerate(references)))
    tokenizer = make_tokenizer("what 0123")
    check = checker([config.VerifierSpec(name="math")], config.VerifierPool(workers=1))
    with pytest.raises(DataError, match=r"(?s)2 of 4 rows are bad.*row 2.*'math'.*cannot be read.*row 4.*too large"):
        load_prompts(data_of(path), tokenizer, 0, check)
    sets = load_prompts(data_of(path, bad_rows="skip", bad_rows_budget=2), tokenizer, 0, check)
    assert [prompt.reference for prompt in sets.train] == ["5", "x+1"]
    assert "2 bad" in "\n".join(sets.report.lines())


def test_a_verifier_listed_twice_is_refused_with_a_way_out_that_works():
    twice = [config.VerifierSpec(name="exact"), config.VerifierSpec(name="exact")]
    with pytest.raises(VerifierError, match=r"'exact' is listed twice.*\{name: exact, label: second, \.\.\.\}"):
        VerifierPool(twice, config.VerifierPool())
    specs = [config.VerifierSpec(name="exact"), config.VerifierSpec(name="exact", label="second")]
    with VerifierPool(specs, config.VerifierPool(workers=1)):
        pass
