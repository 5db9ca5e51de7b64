"""The whole path through the command a user types: real Ray, vLLM, DeepSpeed and verifier processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rlpost.config import load
from rlpost.models.load import load_tokenizer
from rlpost.models.source import ModelSource
from tests.conftest import COUNTDOWN, ROOT

pytestmark = pytest.mark.integration


def rlpost(*arguments: object, faults: str = "", expect: int = 0, timeout: float = 300) -> subprocess.CompletedProcess:
    """Run the command from the repository's root and check its exit code."""
    done = subprocess.run(
        command(*arguments), env=environment(faults), cwd=ROOT, text=True, capture_output=True, timeout=timeout
    )
    assert done.returncode == expect, f"exit {done.returncode}, expected {expect}\n{done.stdout}\n{done.stderr}"
    return done


# An anchor that moves, coefficients that follow what is measured, and weights that do: all have state.
STATEFUL: dict = {
    "references": {"slow": {"name": "ema", "decay": 0.5}},
    "regularizers": [
        {"divergence": "k2", "anchor": "slow", "coef": {"name": "adaptive_kl", "initial": 0.1, "target": 1e-4}}
    ],
    "terms": [{"loss": "sft", "source": "sft", "coef": 0.5}],
    "reweight": {"name": "recap", "window": 2},
}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "rlpost.cli", *map(str, arguments)]


def environment(faults: str = "") -> dict[str, str]:
    """Without a compiler and without what was compiled before: on a CPU nothing needs one to run."""
    return {**os.environ, "RLPOST_FAULTS": faults, "CXX": "false", "TORCH_EXTENSIONS_DIR": "/dev/null"}


def metrics(run: Path, evaluations: bool = False) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [r for r in rows if ("when" in r) == evaluations]


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """A folder of runs in which the warm-up is made once."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def config(shared, write_config):
    """Write a tiny configuration whose run has a name of its own and whose warmed-up model is shared."""

    def write(name: str, **changes: object) -> tuple[Path, Path]:
        return write_config(f"{name}.yaml", name=name, runs_dir=str(shared), **changes), shared / name

    return write


def test_a_run_trains_evaluates_records_saves_exports_and_is_evaluated_again(config, tmp_path):
    path, run = config("whole", objective={"regularizers": [{"divergence": "k3", "coef": 0.01}]}, steps=4)
    done = rlpost("train", path)
    assert "evaluation before" in done.stdout
    assert str(run / "summary.json") in done.stdout

    rows = metrics(run)
    assert [r["step"] for r in rows] == [1, 2, 3, 4]
    for row in rows:
        assert row["mismatch/logp_abs_max"] < 1e-4, "fp32 engine and learner must agree at every step"
        assert row["samples/submitted"] == row["samples/consumed"] + row["samples/dropped"] + row["samples/running"]
        for name in (
            "reward/mean", "train/pass@1", "length/mean", "mismatch/kl", "kl/k3", "entropy", "grad_norm", "lr",
            "staleness/max", "verifier/countdown/correct", "tokens_per_second", "time/generate", "time/verify",
            "time/learn", "time/sync", "time/total",
        ):  # fmt: skip
            assert name in row, name
    assert rows[0]["kl/k3"] == pytest.approx(0, abs=1e-9), "the policy starts at its reference"
    assert rows[3]["kl/k3"] > 0

    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["eval"]) == {"before", "after"}
    assert len(summary["eval"]["after"]["pass@1"]) == 3
    assert (summary["steps"], summary["seed"]) == (4, 0)

    table = pq.read_table(run / "rollouts" / "step_000002.parquet").to_pylist()
    assert len(table) == 8 * 4
    assert {r["status"] for r in table} <= {"correct", "wrong"}
    assert all(r["prompt"].endswith(":") and r["version_min"] == 1 for r in table)
    tokenizer = load_tokenizer(ModelSource(str(run / "checkpoints" / "step_000004" / "model")))
    for r in table:
        assert len(r["response_ids"]) == len(r["logprobs"]) == len(r["versions"]) == r["response_tokens"]
        assert r["response_raw"] == tokenizer.decode(r["response_ids"])
        assert r["response"] == tokenizer.decode(r["response_ids"], skip_special_tokens=True)
        assert r["prompt"] == tokenizer.decode(r["prompt_ids"], skip_special_tokens=True)
        assert r["response_raw"].endswith("<eos>") == (r["finish_reason"] == "stop")
    groups = {r["group"] for r in table}
    for group in groups:
        advantages = [r["advantage"] for r in table if r["group"] == group]
        assert sum(advantages) == pytest.approx(0, abs=1e-5)

    exported = tmp_path / "exported"
    done = rlpost("export", run, "--to", exported)
    assert "transformers: log-probs against the learner's: mean" in done.stdout
    assert "vllm: log-probs against the learner's: mean" in done.stdout
    assert (exported / "tokenizer.json").is_file()
    rlpost("export", run, "--to", exported, expect=2)

    out = tmp_path / "eval.json"
    rlpost("eval", run, "--k", "1,2", "--seeds", "0,1", "--limit", "6", "--out", out)
    found = json.loads(out.read_text())
    assert set(found["seeds"]) == {"0", "1"}
    assert found["pass"]["pass@1"][0] <= found["pass"]["pass@2"][0]
    assert found["decoding"]["temperature"] == 1.0
    assert found["on"] == "test"
    done = rlpost("eval", exported, "--config", path, "--k", "1", "--limit", "4", "--on", "train")
    assert "4 prompts of data.train, which are learned from" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["on"] == "train"

    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps({"q": f"[{i}, 2] {i + 2}:", "a": f"{i} + 2"}) + "\n" for i in range(1, 6)))
    done = rlpost(
        "eval", exported, "--data", problems, "--prompt", "q", "--reference", "a", "--verifier", "exact",
        "--k", "1,4", "--max-tokens", "12",
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["prompts"], found["on"]) == (5, "data")


@pytest.mark.long
def test_rewards_rise_on_an_easy_task(config):
    path, run = config(
        "learns",
        steps=30,
        warmup={"steps": 120},  # until a tenth of the samples is right: there is something to reinforce
        learner={"lr": 4e-4, "prompts_per_step": 16},
        evaluation={"before": False, "after": False},
        checkpoint={"every": 0},
    )
    rlpost("train", path)
    rewards = [r["reward/mean"] for r in metrics(run)]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.1


def test_generation_overlaps_learning_within_the_staleness_bound(config):
    path, run = config("stale", steps=5, rollout={"max_staleness": 1}, evaluation={"before": False, "after": False})
    rlpost("train", path)
    rows = metrics(run)
    assert [r["staleness/max"] for r in rows] == [0, 1, 1, 1, 1]
    assert rows[1]["samples/running"] == 8 * 4
    assert rows[-1]["samples/running"] == 0


@pytest.mark.long
def test_two_engines_and_two_ranks_under_zero_3_run_the_same_loop(config, tmp_path):
    path, run = config("spread", evaluation={"before": False, "after": False}, rollout={"temperature": 0.8})
    rlpost(
        "train",
        path,
        "rollout.engines=2",
        "learner.ranks=2",
        "learner.zero_stage=3",
        "learner.layout=packed",
        "steps=3",
    )
    assert load([run / "config.yaml"]).model.attention == "varlen", "`auto`, for packed rows"
    assert all(r["mismatch/logp_abs_max"] < 1e-4 for r in metrics(run))
    rlpost("export", run, "--to", tmp_path / "model")


def test_weights_that_never_arrive_set_off_the_alarm_by_step_two(config):
    path, run = config("skipped", evaluation={"before": False, "after": False}, checkpoint={"every": 1})
    done = rlpost("train", path, faults="sync.skip@step>=1", expect=4)
    assert "mismatch/logp_abs_max_fresh" in done.stderr
    assert metrics(run)[-1]["step"] <= 2


def test_a_killed_run_resumes_at_the_right_step_rate_data_weights_and_state_of_every_role(config):
    settings: dict = {
        "steps": 6,
        "learner": {"schedule": "cosine", "warmup_steps": 1},
        "evaluation": {"before": False, "after": False},
        "data": {"strategy": {"name": "replay_mixture", "source": {**COUNTDOWN, "size": 40, "seed": 4}, "per_step": 4}},
        "objective": STATEFUL,
    }
    path, straight = config("straight", **settings)
    rlpost("train", path)
    path, killed = config("killed", **settings)
    rlpost("train", path, faults="driver.kill@step=5", expect=-signal.SIGKILL)
    assert sorted(p.name for p in (killed / "checkpoints").glob("step_*")) == ["step_000002", "step_000004"]
    done = rlpost("resume", killed)
    assert "from step_000004" in done.stdout
    expected, found = metrics(straight), metrics(killed)
    assert [r["step"] for r in found] == [1, 2, 3, 4, 5, 6]
    for a, b in zip(expected, found, strict=True):
        assert a["lr"] == pytest.approx(b["lr"], rel=1e-12)
        assert prompts(straight, a["step"]) == prompts(killed, b["step"])
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)
        for name in ("kl/k2", "coef/k2", "coef/sft", "coef/policy_loss", "loss/sft", "samples/sft"):
            assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-6), name
    assert len({row["coef/k2"] for row in found}) > 3, "the coefficient adapts"
    assert len({row["coef/sft"] for row in found}) > 1, "terms are reweighted"
    rlpost("resume", killed, expect=3)


def prompts(run: Path, step: int) -> list[str]:
    return pq.read_table(run / "rollouts" / f"step_{step:06d}.parquet")["prompt_id"].to_pylist()


def test_ctrl_c_stops_after_the_step_with_a_checkpoint_and_the_run_can_go_on(config):
    path, run = config("stopped", steps=200, checkpoint={"every": 0}, evaluation={"before": False, "after": False})
    process = subprocess.Popen(
        command("train", path),
        env=environment(),
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 300
        while not (run / "metrics.jsonl").is_file() or not metrics(run):
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < deadline, "no step within five minutes"
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to every process of the run
        out, _ = process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 6, out
    stopped = metrics(run)[-1]["step"]
    assert f"stopped after step {stopped}" in out
    rlpost("resume", run, f"steps={stopped + 1}")
    assert metrics(run)[-1]["step"] == stopped + 1


def test_a_loss_of_the_users_own_trains(config, tmp_path):
    file = tmp_path / "my_losses.py"
    file.write_text(
        "from rlpost.objective import TermOutputs\n"
        "def fancy(batch, *, sharpness: float = 1.0):\n"
        "    loss = -sharpness * batch.advantages * batch.logp\n"
        "    return TermOutputs(loss, means={'fancy/credit': batch.advantages})\n"
    )
    path, run = config("own-loss", evaluation={"before": False, "after": False})
    rlpost("train", path, f"objective.policy_loss={{name: {file}:fancy, sharpness: 2.0}}")
    assert len(metrics(run)) == 3
    assert all("fancy/credit" in row for row in metrics(run))


def test_real_questions_go_through_to_a_verdict_each(tmp_path):
    rlpost("train", "configs/gsm8k_tiny_cpu.yaml", f"runs_dir={tmp_path}", "name=gsm8k")
    tables = [pq.read_table(p).to_pylist() for p in sorted((tmp_path / "gsm8k" / "rollouts").glob("*.parquet"))]
    assert len(tables) == 3
    sample = (ROOT / "tests" / "data" / "gsm8k_sample.jsonl").read_text().splitlines()
    real = {f"Question: {json.loads(line)['question']}\nAnswer:" for line in sample}
    for row in (r for table in tables for r in table):
        assert row["prompt"] in real
        assert row["status"] in ("correct", "wrong")
        assert "math" in json.loads(row["verdicts"])


def test_a_verifier_that_breaks_is_masked_counted_and_stops_the_run(config, tmp_path):
    (tmp_path / "broken.py").write_text("def score(response, reference):\n    raise ValueError('no dictionary')\n")
    path, run = config(
        "broken", verifiers=[{"name": f"{tmp_path}/broken.py:score"}], evaluation={"before": False, "after": False}
    )
    done = rlpost("train", path, expect=4)
    assert "unverified" in done.stderr
    row = pq.read_table(run / "rollouts" / "step_000001.parquet").to_pylist()[0]
    assert row["reward"] is None
    assert "no dictionary" in row["verdicts"]


def test_programs_are_run_in_the_sandbox_and_scored(tmp_path):
    rlpost(
        "train",
        "configs/gsm8k_tiny_cpu.yaml",
        f"runs_dir={tmp_path}",
        "name=mbpp",
        "data.train={path: tests/data/mbpp_sample.jsonl, prompt: text, reference: code, id: task_id, "
        "metadata: [test_list, test_setup_code]}",
        "data.holdout=null",
        "verifiers=[code]",
    )
    rows = metrics(tmp_path / "mbpp")
    assert len(rows) == 3
    assert all(row["verifier/code/wrong"] == 16 and row["verifier/code/unverified"] == 0 for row in rows)


@pytest.mark.long
def test_a_verifier_that_hangs_on_some_rows_costs_those_rows_and_not_the_run(config, tmp_path):
    (tmp_path / "hangs.py").write_text(
        "import time\n"
        "def score(response, reference, prompt_id):\n"
        "    if sum(prompt_id.encode()) % 6 == 0:\n"
        "        time.sleep(1000)\n"
        "    return float(len(response) % 2)\n"
    )
    path, run = config(
        "hangs",
        verifiers=[{"name": f"{tmp_path}/hangs.py:score", "timeout": 1.0}],
        verifier_pool={"workers": 2, "retries": 0},
        evaluation={"before": False, "after": False},
    )
    rlpost("train", path)
    rows = metrics(run)
    assert len(rows) == 3
    name = f"verifier/{tmp_path}/hangs.py:score"
    assert sum(row[f"{name}/timeouts"] for row in rows) > 0
    assert sum(row[f"{name}/rows_hung"] for row in rows) > 0
    assert all(row[f"{name}/unverified"] == row[f"{name}/hangs_on_row"] for row in rows), "masked and counted"
    assert all(sum(row[f"{name}/{s}"] for s in ("correct", "wrong", "partial", "unverified")) == 32 for row in rows)
    for path in sorted((run / "rollouts").glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            said = json.loads(row["verdicts"]).popitem()[1]
            assert (row["reward"] is None) == (said["reason"] == "hangs_on_row")


def test_supervised_learning_alone_leaves_a_model(config):
    path, run = config("sft", warmup={"steps": 5})
    rlpost("sft", path)
    assert (run / "model" / "model.safetensors").is_file()
