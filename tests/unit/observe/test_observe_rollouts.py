"""What was sampled comes back from its file as it was."""

import json
import os
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from rlpost.observe import read_rollouts, write_rollouts
from rlpost.observe.rollouts import SCHEMA, combined_status
from rlpost.types import Prompt, Rollout, Verdict

CORRECT, WRONG = Verdict("correct", 1.0, "equal", extracted="4"), Verdict("wrong", 0.0)
UNVERIFIED = Verdict("unverified", None, "worker lost")
PROMPTS = {"p": Prompt(id="p", text="2+2=", token_ids=np.arange(4, dtype=np.int32), reference={"answer": "4"})}


def rollout(sample: int = 0, tokens: int = 3, **given) -> Rollout:
    ids = np.arange(tokens, dtype=np.int32)
    return Rollout(
        prompt_id="p",
        group=7,
        sample=sample,
        prompt_ids=np.arange(4, dtype=np.int32),
        response_ids=ids,
        logprobs=np.full(tokens, -0.5, np.float32),
        versions=ids + 5,
        finish_reason=given.pop("finish_reason", "stop"),
        text="vier: 四\n",
        seed=2**32 - 1,
        **given,
    )


def test_every_column_holds_what_the_rollout_held(tmp_path: Path) -> None:
    path = tmp_path / "step_000012.parquet"
    scored = rollout(raw="vier: 四\n<eos>").scored({"math": CORRECT}, {"math": 1.0})
    write_rollouts(path, [scored], PROMPTS, [0.7], [True], step=12)
    table = read_rollouts(path)
    assert table.schema.equals(SCHEMA)
    (row,) = table.to_pylist()
    assert json.loads(row.pop("verdicts")) == {
        "math": {"status": "correct", "score": 1.0, "reason": "equal", "extracted": "4"}
    }
    assert json.loads(row.pop("reference")) == {"answer": "4"}
    assert row == {
        "step": 12,
        "group": 7,
        "sample": 0,
        "prompt_id": "p",
        "prompt": "2+2=",
        "response": "vier: 四\n",
        "prompt_tokens": 4,
        "response_tokens": 3,
        "finish_reason": "stop",
        "reward": 1.0,
        "status": "correct",
        "advantage": 0.7,
        "learned": True,
        "version_min": 5,
        "version_max": 7,
        "seed": 2**32 - 1,
        "logprob_sum": -1.5,
        "response_raw": "vier: 四\n<eos>",
        "prompt_ids": [0, 1, 2, 3],
        "response_ids": [0, 1, 2],
        "logprobs": [-0.5, -0.5, -0.5],
        "versions": [5, 6, 7],
    }


def test_what_is_not_known_is_null_and_never_zero(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    lost = rollout(0).scored({"math": UNVERIFIED}, {"math": 1.0})
    aborted = rollout(1, tokens=0, finish_reason="abort")
    write_rollouts(path, [lost, aborted], PROMPTS, [None, None], [False, False], step=1)
    table = read_rollouts(path)
    assert table["reward"].to_pylist() == [None, None]
    assert table["advantage"].to_pylist() == [None, None]
    assert table["status"].to_pylist() == ["unverified", None]
    assert table["version_min"].to_pylist() == [5, None]
    assert table["logprob_sum"].to_pylist() == [-1.5, 0.0]


def test_a_step_without_rollouts_is_an_empty_table_of_the_same_columns(tmp_path: Path) -> None:
    write_rollouts(tmp_path / "r.parquet", [], {}, [], [], step=1)
    table = read_rollouts(tmp_path / "r.parquet")
    assert (table.num_rows, table.schema) == (0, SCHEMA)


def test_a_reference_json_cannot_hold_is_its_text(tmp_path: Path) -> None:
    prompts = {"p": Prompt("p", "when?", np.zeros(1, np.int32), reference=date(2026, 1, 2))}
    write_rollouts(tmp_path / "r.parquet", [rollout()], prompts, [None], [False], step=1)
    assert read_rollouts(tmp_path / "r.parquet")["reference"].to_pylist() == ['"2026-01-02"']


def test_hostile_text_in_a_verdict_is_kept(tmp_path: Path) -> None:
    hostile = "\ud800\x00 \"}'"  # a lone surrogate is no UTF-8
    scored = rollout().scored({"math": Verdict("wrong", 0.0, hostile)}, {"math": 1.0})
    write_rollouts(tmp_path / "r.parquet", [scored], PROMPTS, [0.0], [True], step=1)
    (verdicts,) = read_rollouts(tmp_path / "r.parquet")["verdicts"].to_pylist()
    assert json.loads(verdicts)["math"]["reason"] == hostile


@pytest.mark.parametrize(
    ("verdicts", "status"),
    [
        ((), None),
        ((CORRECT,), "correct"),
        ((CORRECT, CORRECT), "correct"),
        ((WRONG, WRONG), "wrong"),
        ((CORRECT, WRONG), "partial"),
        ((CORRECT, UNVERIFIED), "unverified"),
    ],
)
def test_several_verdicts_combine_into_one_status(verdicts, status) -> None:
    assert combined_status({str(i): v for i, v in enumerate(verdicts)}) == status


def test_lengths_that_differ_and_unknown_prompts_are_errors_that_leave_no_file(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    with pytest.raises(ValueError, match="1 rollouts but 2 advantages and 1 learned"):
        write_rollouts(path, [rollout()], PROMPTS, [0.1, 0.2], [True], step=1)
    with pytest.raises(ValueError, match="first is 'p'"):
        write_rollouts(path, [rollout()], {}, [0.1], [True], step=1)
    assert os.listdir(tmp_path) == []
