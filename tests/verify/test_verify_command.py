"""`rlpost verify` on a user's own files: what it finds, what it says, and its exit codes. And the page that shows it."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from rlpost.checkpoint import Store
from rlpost.cli import run
from rlpost.config import load, split_arguments
from rlpost.exit_codes import ALARM, BAD_USAGE, DONE, NOTHING_TO_DO
from rlpost.observe import RunFolder
from rlpost.observe.rollouts import write_rollouts
from rlpost.types import Prompt, Rollout, Verdict
from tests.archives import archive
from tests.conftest import tiny

ROOT = Path(__file__).parents[2]
MINE = """
import os, random, time


def score(response, reference, tolerance=0.0):
    if "slow" in response:
        time.sleep(600)
    if "die" in response:
        os._exit(7)
    words = response.split()
    try:
        answer = float(words[-1])
    except (IndexError, ValueError):
        return {"score": 0.0, "reason": "no_answer"}
    return {"score": float(abs(answer - float(reference)) <= tolerance), "extracted": words[-1]}


def flaky(response, reference):
    return random.random() < 0.5


def most_common(responses, reference):
    return [responses.count(r) * 2 > len(responses) for r in responses]


most_common.group = True


def echo(**sample):
    return {"score": 1.0, "details": sample, "extracted": f"{sample['token_count']} {sample.get('level')}"}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def numbers(count: int, **more: object) -> list[dict]:
    return [{"response": f"it is {i}", "reference": str(i), **more} for i in range(count)]


def verify(*arguments: object) -> int:
    return run(["verify", *map(str, arguments)])


def found(*arguments: object, expect: int = DONE) -> dict:
    """What `--out` holds."""
    assert verify(*arguments, "--out", "out.json") == expect
    return json.loads(Path("out.json").read_text())


# ---------------------------------------------------------------------------------- what a verifier's author looks for


def test_a_planted_slow_row_is_found(folder, capsys):
    rows = numbers(20)
    rows[6]["response"] = "slow 6"
    report = found("mine.py:score", "--data", write(folder / "r.jsonl", rows), "--timeout", 3)
    assert max(report["verdicts"], key=lambda row: row["seconds"])["row"] == "row 7"
    assert report["verdicts"][6]["reason"] == "timeout"
    assert report["statuses"] == {"correct": 19, "wrong": 1, "partial": 0, "unverified": 0}
    said = capsys.readouterr().out
    assert re.search(r"slowest: 5 rows\n +row 7: wrong 0 in .*timeout", said)


def test_a_slow_row_breaks_the_contract(folder, capsys):
    rows = numbers(8)
    rows[6]["response"] = "slow 6"
    assert verify("mine.py:score", "--data", write(folder / "r.jsonl", rows), "--timeout", 3, "--contract") == ALARM
    said = capsys.readouterr().out
    assert "row 7 takes longer than the time-out of 3 s" in said
    assert "FAILED: contract: time-out" in said


def test_a_crashing_row_is_found(folder, capsys):
    rows = numbers(20)
    rows[10]["response"] = "die 10"
    data = write(folder / "r.jsonl", rows)
    report = found("mine.py:score", "--data", data)
    assert [(row["row"], row["reason"]) for row in report["verdicts"] if row["error"]] == [("row 11", "crash")]
    assert "no verdict, killed or crashed: 1 rows\n    row 11: wrong 0" in capsys.readouterr().out
    assert verify("mine.py:score", "--data", data, "--contract") == ALARM
    assert "row 11 ends the worker process" in capsys.readouterr().out


@pytest.mark.parametrize(("kind", "reason"), [("slow", "hangs_on_row"), ("die", "crashes_on_row")])
def test_a_group_without_one_verdict_is_laid_to_its_row_and_is_exit_4(folder, capsys, kind, reason):
    rows = [
        {"response": f"{text} {i}", "reference": "1", "q": q}
        for q, text in (("a", "it is"), ("b", kind))
        for i in (1, 2)
    ]
    data = write(folder / "r.jsonl", rows)
    report = found("mine.py:score", "--data", data, "--group", "q", "--timeout", 3, expect=ALARM)
    assert [(row["status"], row["reason"]) for row in report["verdicts"][2:]] == [("unverified", reason)] * 2
    assert "50.0% of the rows are unverified" in capsys.readouterr().out
    more = ["--contract", "--max-unverified", 1]
    report = found("mine.py:score", "--data", data, "--group", "q", "--timeout", 3, *more, expect=ALARM)
    broken = {"slow": "time-out", "die": "blame"}[kind]
    assert f"contract: {broken}" in report["failures"]
    problems = {check["name"]: check["problems"] for check in report["contract"]}[broken]
    assert [problem[:5] for problem in problems] == ["row 3", "row 4"]


def test_a_verifier_that_ends_its_process_on_every_row_is_at_fault(folder, capsys):
    rows = [{"response": f"die {i}", "reference": "1"} for i in range(3)]
    assert verify("mine.py:score", "--data", write(folder / "r.jsonl", rows)) == ALARM
    assert "FAILED: no row has a verdict: the verifier times out or crashes on each" in capsys.readouterr().out


def test_a_row_on_which_the_verifier_raises_is_found(folder, capsys):
    rows = numbers(30)
    rows[3]["reference"] = "three"
    report = found("mine.py:score", "--data", write(folder / "r.jsonl", rows))
    assert report["verdicts"][3] | {"seconds": 0} == {
        "row": "row 4",
        "status": "unverified",
        "score": None,
        "reason": "exception",
        "extracted": None,
        "seconds": 0,
        "attempts": 2,
        "label": None,
        "response": "it is 3",
        "error": "exception: ValueError(\"could not convert string to float: 'three'\")",
    }
    assert "row 4: unverified" in capsys.readouterr().out


def test_a_nondeterministic_verifier_is_found_and_named_with_the_row(folder, capsys):
    assert verify("mine.py:flaky", "--data", write(folder / "r.jsonl", numbers(12)), "--contract") == ALARM
    said = capsys.readouterr().out
    assert said.startswith("mine.py:flaky on 12 rows")
    assert re.search(
        r"contract: determinism +BROKEN .*\n    row \d+: (correct 1, then wrong 0|wrong 0, then correct 1)", said
    )


def test_a_good_verifier_keeps_its_contract(folder, capsys):
    assert (
        verify("exact", "--data", write(folder / "r.jsonl", [{"response": "1", "reference": "1"}]), "--contract")
        == DONE
    )
    said = capsys.readouterr().out
    assert len(re.findall("contract: .* kept", said)) == 6
    assert "FAILED" not in said


# ------------------------------------------------------------------------------------------------- labels and shares


def test_the_confusion_against_labels_and_its_rates(folder, capsys):
    rows = [
        *[{"response": "a", "reference": "a", "right": True}] * 6,
        *[{"response": "b", "reference": "a", "right": "yes"}] * 2,
        *[{"response": "a", "reference": "a", "right": 0}] * 1,
        *[{"response": "b", "reference": "a", "right": "Wrong"}] * 3,
        *[{"response": "a", "reference": None, "right": False}] * 1,
        *[{"response": "b", "reference": "a", "right": None}] * 2,
    ]
    data = write(folder / "r.jsonl", rows)
    labels = found("exact", "--data", data, "--label", "right", "--max-unverified", 1)["labels"]
    assert labels == {
        "from": "right",
        "true_positive": 6,
        "false_negative": 2,
        "false_positive": 1,
        "true_negative": 3,
        "unverified_positive": 0,
        "unverified_negative": 1,
        "unlabelled": 2,
        "true_positive_rate": 0.75,
        "false_positive_rate": 0.25,
        "error_rate": 0.25,
    }
    said = capsys.readouterr().out
    assert "TPR 75.00%, FPR 25.00%, errors 25.00%; 2 rows without a label" in said
    assert "against the label: 3 rows\n    row 7: wrong 0" in said


def test_too_many_errors_or_unverified_rows_are_exit_4(folder, capsys):
    rows = [{"response": "a", "reference": "a", "right": i > 0} for i in range(10)]
    data = write(folder / "r.jsonl", rows)
    assert verify("exact", "--data", data, "--label", "right") == DONE
    assert verify("exact", "--data", data, "--label", "right", "--max-errors", 0.1) == DONE
    assert verify("exact", "--data", data, "--label", "right", "--max-errors", 0.09) == ALARM
    assert "10.0% of the labels disagree, more than --max-errors 0.09" in capsys.readouterr().out
    assert verify("exact", "--data", data, "--max-errors", 0.5) == ALARM
    assert "no row has both a label and a verdict" in capsys.readouterr().out
    rows[0]["reference"] = None
    write(data, rows)
    assert verify("exact", "--data", data) == ALARM
    assert "10.0% of the rows are unverified, more than --max-unverified 0.05" in capsys.readouterr().out
    assert verify("exact", "--data", data, "--max-unverified", 0.1) == DONE


# ------------------------------------------------------------------------------------------------------------- reading


def test_columns_templates_parameters_and_limits(folder):
    rows = [{"said": "10.5", "row": {"answer": "10"}}, {"said": "12", "row": {"answer": "10"}}]
    arguments = ["mine.py:score", "--data", write(folder / "r.jsonl", rows), "--response", "said"]
    report = found(*arguments, "--reference", "{row[answer]}", "--param", "tolerance=1")
    assert [row["status"] for row in report["verdicts"]] == ["correct", "wrong"]
    assert report["params"] == {"tolerance": 1}
    assert found(*arguments, "--reference", "{row[answer]}", "--limit", 1)["rows"] == 1


def test_other_columns_go_to_the_verifier_by_name(folder, capsys):
    rows = [{"response": "one two", "level": 3}, {"response": "x", "token_count": 7, "level": None}]
    report = found("mine.py:echo", "--data", write(folder / "r.jsonl", rows))
    assert [row["extracted"] for row in report["verdicts"]] == ["2 3", "7 None"]
    assert "no column 'reference' and no --reference" in capsys.readouterr().out


def test_a_group_verifier_sees_the_rows_of_a_group(folder):
    rows = [{"response": r, "reference": None, "prompt": p} for p, r in ["pa", "qb", "pa", "qc", "pb", "qd"]]
    data = write(folder / "r.jsonl", rows)
    report = found("mine.py:most_common", "--data", data, "--group", "prompt")
    assert [row["status"] for row in report["verdicts"]] == ["correct", "wrong", "correct", "wrong", "wrong", "wrong"]
    assert found("mine.py:most_common", "--data", data)["statuses"]["correct"] == 6  # each alone


def test_a_parquet_file_is_read_and_a_column_json_cannot_hold_is_left_out(folder, capsys):
    table = pa.table({"response": ["a", "b"], "reference": ["a", "a"], "when": pa.array([0, 1], pa.timestamp("s"))})
    pq.write_table(table, folder / "r.parquet")
    assert found("exact", "--data", "r.parquet")["statuses"]["correct"] == 1
    assert "column 'when' is left out: a datetime is not JSON data" in capsys.readouterr().out


def rollout(prompt: Prompt, text: str, status: str | None, **changes: object) -> Rollout:
    one = np.zeros(1, np.int32)
    verdicts = {}
    if status is not None:
        score = {"correct": 1.0, "wrong": 0.0, "unverified": None}[status]
        verdicts = {"exact": Verdict(status, score)}  # type: ignore[arg-type]
    values = {"finish_reason": "stop", "reward": None, **changes}
    return Rollout(
        prompt.id, 0, 0, one, one, one.astype(np.float32), one, text=text, seed=0, verdicts=verdicts, **values
    )


@pytest.fixture
def recorded(folder) -> Path:
    """A run's folder with two steps of rollouts: one verdict that `exact` would not give, one aborted rollout."""
    path = folder / "runs" / "mine"
    (path / "rollouts").mkdir(parents=True)
    verifiers = [{"name": "exact", "casefold": True, "timeout": 5}]
    (path / "config.yaml").write_text(yaml.safe_dump(tiny(verifiers=verifiers, data={"train": tiny_rows(folder)})))
    prompt = Prompt("p1", "a?", np.zeros(1, np.int32), reference="a")
    steps = [
        [rollout(prompt, "a", "correct"), rollout(prompt, "b", "wrong"), rollout(prompt, "A", "correct")],
        [rollout(prompt, "b", "correct"), rollout(prompt, "", None, finish_reason="abort")],
    ]
    for number, rollouts in enumerate(steps, 1):
        file = path / "rollouts" / f"step_{number:06d}.parquet"
        write_rollouts(file, rollouts, {"p1": prompt}, [None] * len(rollouts), [False] * len(rollouts), number)
    return path


def tiny_rows(folder: Path) -> dict:
    """A source that is not procedural, so that a run's other columns are not looked for."""
    write(folder / "rows.jsonl", [{"prompt": "a?", "reference": "a"}])
    nothing = dict.fromkeys(["task", "size", "completion"])
    return {**nothing, "source": "jsonl", "path": "rows.jsonl", "prompt": "prompt"}


def test_a_run_is_scored_again_with_its_settings_and_compared_with_its_verdicts(recorded, capsys):
    report = found("exact", "--data", recorded)
    assert report["params"] == {"casefold": True}
    assert report["timeout"] == 5
    assert [row["row"] for row in report["verdicts"]] == [
        *(f"step_000001.parquet row {i}" for i in (1, 2, 3)),
        "step_000002.parquet row 1",
    ]
    assert [row["status"] for row in report["verdicts"]] == ["correct", "wrong", "correct", "wrong"]
    labels = report["labels"]
    assert labels["from"] == "recorded verdicts of exact"
    assert (labels["true_positive"], labels["false_negative"], labels["true_negative"]) == (2, 1, 1)
    assert "1 aborted rollouts are left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("data", "rows"), [("rollouts", 4), ("rollouts/step_000001.parquet", 3), ("rollouts/step_000002.parquet", 1)]
)
def test_rollouts_are_found_by_their_folder_and_by_file(recorded, data, rows):
    report = found("exact", "--data", recorded / data)
    assert report["rows"] == rows
    assert report["params"] == {"casefold": True}


def test_a_run_s_rows_for_another_verifier_are_left_out(recorded, capsys):
    config = yaml.safe_load((recorded / "config.yaml").read_text())
    config["verifiers"][0]["when"] = {"kind": "exact"}
    (recorded / "config.yaml").write_text(yaml.safe_dump(config))
    assert verify("exact", "--data", recorded) == NOTHING_TO_DO
    assert "4 rows are left out: the verifier is for those with {'kind': 'exact'}" in capsys.readouterr().out


def test_a_run_s_other_columns_come_from_its_data(folder):
    """`countdown` needs the row's numbers, which the rollouts do not hold."""
    from rlpost.config import Data
    from rlpost.data import load_prompts, make_tokenizer

    tokenizer = make_tokenizer("0123456789+-*/()[], :")
    prompts = load_prompts(Data.model_validate(tiny()["data"]), tokenizer, 0).train[:3]
    with RunFolder.create(folder / "runs", "numbers", yaml.safe_dump(tiny()), ["rlpost", "train"], 0) as made:
        run_folder = made.path

    def fill(draft: Path) -> None:
        tokenizer.save_pretrained(draft / "model")
        for name in ("model/model.safetensors", "deepspeed/state/mp_rank_00_model_states.pt"):
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            (draft / name).write_bytes(archive())

    Store(made.checkpoints, made.run_id).write(1, {"step": 1, "ranks": 1, "zero_stage": 0}, fill)
    rollouts = [rollout(p, p.metadata["entry"]["metadata"]["expression"], None) for p in prompts]
    nothing, by_id = [None] * 3, {p.id: p for p in prompts}
    write_rollouts(run_folder / "rollouts" / "step_000001.parquet", rollouts, by_id, nothing, [False] * 3, 1)
    assert found("countdown", "--data", run_folder)["statuses"]["correct"] == 3


def test_what_is_given_goes_before_what_the_run_says(recorded):
    report = found("exact", "--data", recorded, "--param", "casefold=false", "--timeout", 9)
    assert (report["params"], report["timeout"]) == ({"casefold": False}, 9)
    assert report["statuses"]["correct"] == 1


# -------------------------------------------------------------------------------------------------------- exit codes


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["exact"], "Missing option '--data'"),
        (["exact", "--data", "nowhere.jsonl"], "--data nowhere.jsonl does not exist"),
        (["exact", "--data", "mine.py"], "must be a .jsonl or .parquet file"),
        (["exact", "--data", "."], "is a folder without rollouts"),
        (["exact", "--data", "r.jsonl", "--response", "said"], "no column 'said'"),
        (["exact", "--data", "other.jsonl"], "name the column of the responses by --response"),
        (["exact", "--data", "r.jsonl", "--label", "right"], "has no column 'right' for --label"),
        (["exact", "--data", "r.jsonl", "--label", "response"], "row 1: --label 'response' is 'it is 0'"),
        (["exact", "--data", "r.jsonl", "--group", "all"], "row 2: its reference is not that of row 1"),
        (["exact", "--data", "bad.jsonl"], "bad.jsonl has 2 rows that cannot be scored"),
        (["exact", "--data", "counts.jsonl"], "row 1: token_count is 'many'; it must be the number"),
        (["exact", "--data", "counts.jsonl"], "counts.jsonl has 4 rows that cannot be scored"),
        (["exact", "--data", "r.jsonl", "--param", "strip"], "must look like key=value"),
        (["exact", "--data", "r.jsonl", "--param", "timeout=3"], "timeout is a setting of the pool"),
        (["exact", "--data", "r.jsonl", "--param", "stripe=true"], "takes no 'stripe'"),
        (["exact", "--data", "r.jsonl", "--workers", "0"], "--workers"),
        (["exakt", "--data", "r.jsonl"], "no verifier 'exakt'"),
        (["exakt", "--data", "other.jsonl"], "no verifier 'exakt'"),  # whose columns are wrong, too
        (["mine.py:scor", "--data", "r.jsonl"], "has no 'scor'"),
        (["gone.py:score", "--data", "r.jsonl"], "gone.py does not exist"),
    ],
)
def test_bad_usage_is_exit_2_and_says_what_to_change(folder, capsys, arguments, says):
    write(folder / "r.jsonl", numbers(2, all=1))
    write(folder / "other.jsonl", [{"completion": "1"}])
    write(folder / "counts.jsonl", [{"response": "1", "token_count": count} for count in ("many", -1, 2.5, True)])
    (folder / "bad.jsonl").write_text('{"response": "1"}\nnot json\n[1]\n')
    assert verify(*arguments) == BAD_USAGE
    captured = capsys.readouterr()
    assert says in " ".join((captured.err + captured.out).replace("│", " ").split())


def test_no_row_is_exit_3(folder, capsys):
    (folder / "empty.jsonl").write_text("\n")
    assert verify("exact", "--data", "empty.jsonl") == NOTHING_TO_DO
    assert "empty.jsonl has no row to score" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------ the page


def blocks(language: str) -> list[str]:
    page = (ROOT / "docs" / "verifiers.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which a reader has copied the page's files, beside the repository's."""
    for name in ("configs", "tests", "rewards"):
        (tmp_path / name).symlink_to(ROOT / name)
    for block in blocks("python"):
        (tmp_path / block.splitlines()[0].removeprefix("# ")).write_text(block)
    (responses,) = blocks("jsonl")
    (tmp_path / "my_responses.jsonl").write_text(responses)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def page_commands() -> list[list[str]]:
    return [shlex.split(line)[1:] for block in blocks("bash") for line in block.splitlines()]


def test_the_page_s_verifier_says_what_the_page_says(reader, capsys):
    command = next(c for c in page_commands() if c[0] == "verify")
    assert run(command) == DONE
    said = " ".join(capsys.readouterr().out.split())
    (shown,) = blocks("text")
    for line in shown.splitlines():
        assert " ".join(line.split()) in said


def test_the_page_s_training_run_gets_the_page_s_verifier(reader):
    command = next(c for c in page_commands() if c[0] == "train")
    config = load(*split_arguments(command[1:]))
    assert [spec.name for spec in config.verifiers] == ["my_rewards.py:score"]
    source = config.data.train
    rows = [json.loads(line) for line in Path(str(source.path)).read_text().splitlines()]
    write(
        reader / "own.jsonl",
        [{"response": f"it is {r[source.reference]}", "reference": r[source.reference]} for r in rows],
    )
    assert found(config.verifiers[0].name, "--data", "own.jsonl")["statuses"]["correct"] == len(rows)


def test_the_page_s_second_look_is_at_that_run(reader):
    train, second = (c for c in page_commands() if c[0] == "train" or "runs/mine" in c)
    config = load(*split_arguments(train[1:]))
    assert second == ["verify", config.verifiers[0].name, "--data", f"{config.runs_dir}/{config.name}"]


def test_the_page_s_configuration_scores_with_both_of_its_verifiers(reader):
    (block,) = blocks("yaml")
    for spec in yaml.safe_load(block)["verifiers"]:
        params = [
            x for key, v in spec.items() if key not in ("name", "weight", "timeout") for x in ("--param", f"{key}={v}")
        ]
        assert found(spec["name"], "--data", "my_responses.jsonl", *params)["statuses"]["correct"] >= 1


def test_the_page_s_adapted_function_scores(reader):
    report = found("my_trl_rewards.py:score", "--data", "my_responses.jsonl", "--label", "right")
    assert report["labels"]["false_positive"] == 0
    assert report["labels"]["true_positive"] == 1  # it compares text, so 9.99 is not 10
