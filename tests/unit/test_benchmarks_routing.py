"""The benchmarks of routing replay: what they say of numbers, and the runs they ask for."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rlpost.config import load
from rlpost.meter import Meter
from rlpost.models.architecture import check_experts, experts_of, hf_config
from rlpost.objective.correction import importance
from rlpost.objective.mismatch import mismatch_metrics
from rlpost.objective.types import CreditInputs
from rlpost.observe import RunFolder
from rlpost.routing import bytes_per_token
from rlpost.run.check import checked
from tests.conftest import ROOT

LENGTHS = np.array([3, 1, 5, 4])


@pytest.fixture(scope="module")
def modules() -> Iterator[SimpleNamespace]:
    """The modules of the folder, imported as its programs import each other."""
    import importlib

    names = ("experiments", "routing", "moe_stability")
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
        for name in names:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def routing(modules: SimpleNamespace) -> ModuleType:
    return modules.routing


@pytest.fixture(scope="module")
def stability(modules: SimpleNamespace) -> ModuleType:
    return modules.moe_stability


def log_probs(seed: int = 0, spread: float = 0.6) -> tuple[np.ndarray, np.ndarray]:
    """Of an engine and a learner, float32, on the tokens of `LENGTHS`."""
    rng = np.random.default_rng(seed)
    engine = np.log(rng.uniform(0.05, 0.95, LENGTHS.sum()))
    return engine.astype(np.float32), (engine + spread * rng.standard_normal(len(engine))).astype(np.float32)


def wide(values: np.ndarray) -> torch.Tensor:
    """(responses, longest) of what is one after the other."""
    grid = np.zeros((len(LENGTHS), LENGTHS.max()))
    grid[np.arange(LENGTHS.max()) < LENGTHS[:, None]] = values
    return torch.from_numpy(grid)


# ----------------------------------------------------------------------------------------------------- the mismatch


def test_the_mismatch_is_what_runs_report(routing: ModuleType):
    engine, learner = log_probs()
    found = routing.mismatch(engine, learner)
    reported: Meter = mismatch_metrics(wide(learner), wide(engine), wide(np.ones(len(engine))).bool())
    values = reported.values()
    assert found["kl"] == pytest.approx(values["mismatch/kl"], rel=1e-6)
    assert found["f2"] == pytest.approx(values["mismatch/f2"])
    assert found["max"] == pytest.approx(values["mismatch/logp_abs_max"], rel=1e-6)


def test_the_mismatch_of_two_tokens_by_hand(routing: ModuleType):
    engine, learner = np.log([0.5, 0.4]), np.log([0.25, 0.41])
    found = routing.mismatch(engine, learner)
    assert found["kl"] == pytest.approx((0.5 - 1 + math.log(2) + 1.025 - 1 - math.log(1.025)) / 2)
    assert (found["f1.02"], found["f1.1"], found["f2"]) == (1.0, 0.5, 0.0)  # a factor of 2 is not above 2
    assert found["off"] == 0.5  # a hundredth is within 0.02
    assert found["max"] == pytest.approx(math.log(2))


def test_equal_policies_have_no_mismatch_and_need_no_weights(routing: ModuleType):
    engine, _ = log_probs()
    assert set(routing.mismatch(engine, engine).values()) == {0.0}
    assert routing.weighting(engine, engine, LENGTHS, 2.0) == {
        "left": 0.0,
        "bias": 0.0,
        "clipped": 0.0,
        "ess": pytest.approx(1.0),
        "ess_sequence": pytest.approx(1.0),
    }


# --------------------------------------------------------------------------------------------------------- weights


def test_the_weights_are_those_of_the_correction_that_runs_apply(routing: ModuleType):
    engine, learner = log_probs()
    there = wide(np.ones(len(engine))).bool()
    batch = CreditInputs(
        rewards=torch.zeros(len(LENGTHS), dtype=torch.float64),
        group=torch.zeros(len(LENGTHS), dtype=torch.int64),
        correct=torch.zeros(len(LENGTHS), dtype=torch.bool),
        truncated=torch.zeros(len(LENGTHS), dtype=torch.bool),
        tokens=torch.zeros_like(there, dtype=torch.int64),
        mask=there,
        max_tokens=int(LENGTHS.max()),
        old_logp=wide(learner),
        behavior_logp=wide(engine),
    )
    corrected = importance(batch, high=1.5)
    weights = corrected.weights[there].numpy()
    found = routing.weighting(engine, learner, LENGTHS, 1.5)
    rho = np.exp(np.subtract(learner, engine, dtype=np.float64))
    assert 0 < found["clipped"] < 1
    assert found["clipped"] == pytest.approx(corrected.metrics["correction/importance_clipped"])
    assert found["ess"] == pytest.approx(weights.sum() ** 2 / (len(weights) * (weights**2).sum()))
    assert found["bias"] == pytest.approx(np.abs(weights - rho).mean())


def test_weights_leave_only_what_they_cut_off(routing: ModuleType):
    engine, learner = log_probs()
    rho = np.exp(np.subtract(learner, engine, dtype=np.float64))
    without = routing.weighting(engine, learner, LENGTHS, None)
    loose = routing.weighting(engine, learner, LENGTHS, float(rho.max()) + 1)
    tight = routing.weighting(engine, learner, LENGTHS, 1.5)
    assert without["left"] == pytest.approx(routing.mismatch(engine, learner)["kl"])
    assert without["ess"] == without["ess_sequence"] == 1.0
    assert loose["left"] == loose["bias"] == loose["clipped"] == 0.0
    over = rho[rho > 1.5] / 1.5
    assert tight["left"] == pytest.approx(1.5 * (over - 1 - np.log(over)).sum() / len(rho))
    assert loose["ess"] < tight["ess"] < 1.0


def test_a_responses_weight_is_the_product_over_its_tokens(routing: ModuleType):
    engine, learner = log_probs()
    found = routing.weighting(engine, learner, LENGTHS, 2.0)["ess_sequence"]
    log_rho = np.subtract(learner, engine, dtype=np.float64)
    products = [math.exp(part.sum()) for part in np.split(log_rho, np.cumsum(LENGTHS)[:-1])]
    assert found == pytest.approx(sum(products) ** 2 / (len(products) * sum(p * p for p in products)))


def test_routes_differ_where_the_sets_do_whatever_their_order(routing: ModuleType):
    one = np.array([[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[0, 1], [0, 1]]], np.uint8)
    other = np.array([[[1, 0], [2, 4]], [[5, 4], [7, 6]], [[1, 2], [0, 2]]], np.uint8)
    found = routing.differing(one, other)
    assert found == {"routings": pytest.approx(3 / 6), "tokens": pytest.approx(2 / 3), "by_layer": [1 / 3, 2 / 3]}


# ------------------------------------------------------------------------------------------------- how much it lowers


def test_the_times_something_is_lowered_are_a_geometric_mean_with_an_interval(routing: ModuleType):
    found = routing.Lowered.of([8.0, 2.0, 4.0], [2.0, 1.0, 1.0])
    logs = [math.log(4), math.log(2), math.log(4)]
    assert found.mean == pytest.approx(math.exp(sum(logs) / 3))
    assert (found.least, found.most, found.pooled) == (2.0, 4.0, 3.5)
    assert found.low < 2 < found.mean < found.high
    assert found.verdict(2.0).startswith("met on average")
    assert found.verdict(found.low) == "met"
    assert found.verdict(5.0) == "not met"


def test_one_seed_has_no_interval(routing: ModuleType):
    found = routing.Lowered.of([8.0], [2.0])
    assert (found.mean, found.low) == (4.0, None)
    assert "one seed" in found.verdict(2.0)
    assert found.verdict(5.0) == "not met"


def test_where_nothing_is_left_the_number_of_tokens_decides(routing: ModuleType):
    few = routing.Lowered.of([2 / 1000], [0.0], [1000])
    many = routing.Lowered.of([30 / 1000, 10 / 500], [0.0, 0.0], [1000, 500])
    assert few.pooled == many.pooled == math.inf
    assert few.verdict(5.0).startswith("met on average")
    assert many.counted == pytest.approx(40 / -math.log(0.05))
    assert many.verdict(5.0) == "met"
    assert routing.plain(many)["pooled"] == "inf"
    json.dumps(routing.plain(many), allow_nan=False)


def test_nothing_before_and_nothing_after_says_nothing(routing: ModuleType):
    found = routing.Lowered.of([0.0, 0.0], [0.0, 0.0], [10, 10])
    assert found.text() == "0 / 0"
    assert found.verdict(2.0).startswith("open")


@pytest.mark.parametrize(("seen", "tabled"), [(0, 2.996), (1, 4.744), (2, 6.296), (10, 16.962), (100, 118.08)])
def test_the_most_likely_mean_is_that_of_the_tables(routing: ModuleType, seen: int, tabled: float):
    assert routing.most_likely(seen) == pytest.approx(tabled, rel=1e-3)


@pytest.mark.parametrize(
    ("ratios", "said"),
    [
        ([0.99, 0.991, 0.989, 0.99], "below 3%"),
        ([0.9, 0.901, 0.899, 0.9], "above 3%"),
        ([0.9, 1.05, 0.95, 1.0], "open whether below 3%"),
        ([0.99], "says nothing"),
    ],
)
def test_the_cost_of_capture_is_judged_by_its_interval(routing: ModuleType, ratios: list[float], said: str):
    assert said in routing.cost_verdict(ratios)


# ------------------------------------------------------------------------------------------------------ its report


def view(seed: int) -> dict[str, Any]:
    engine, far = log_probs(seed, spread=0.3)
    _, near = log_probs(seed, spread=0.03)
    differ = {"routings": 0.1, "tokens": 0.2, "by_layer": [0.05, 0.15]}
    return {"logp": {"none": far, "r2": far, "r3": near}, "engine": engine, "lengths": LENGTHS, "differ": differ}


def cell(routing: ModuleType, seed: int) -> dict[str, Any]:
    return {
        "family": "qwen3_moe",
        "seed": seed,
        "routing": {"layers": [0, 1], "top_k": 4, "experts": 16},
        "tokens": int(LENGTHS.sum()),
        "coverage": 1.0,
        "bytes_per_token": 6.0,
        **({"throughput": {128: {"on": [99.0, 98.0], "off": [100.0, 100.0]}}} if seed == 0 else {}),
        **{dtype: routing.numbers(view(seed)) for dtype in routing.DTYPES},
    }


def test_the_report_reads_its_own_numbers(routing: ModuleType, tmp_path: Path):
    arguments = routing.parse_arguments(["--seeds", "2", "--out", str(tmp_path / "r.json")])
    report = routing.Report([cell(routing, 0), cell(routing, 1)], arguments)
    (_, (headings, *rows)), *_ = report.tables()
    assert [row[0] for row in rows] == list(routing.LABELS.values())
    assert len({len(row) for row in [headings, *rows]}) == 1
    by_label = {row[0]: dict(zip(headings, row, strict=True)) for row in rows}
    assert by_label["TIS"]["KL"] == by_label["R2"]["KL"] == by_label["none"]["KL"] != by_label["R3"]["KL"]
    page = report.page()
    assert "bit-equal" in page
    assert "6 (at most 8)" in page
    assert "times lowered by R3. KL: " in page
    assert "open whether below 3%" in page
    report.write_json(arguments.out)
    assert json.loads(arguments.out.read_text())["cells"][1]["float32"]["r3"]["kl"] > 0


def test_the_page_says_which_command_made_it_and_what_it_did_not_measure(routing: ModuleType):
    given = ["--start", "random", "--prompts", "7", "--repeats", "0", "--families", "qwen3_moe", "mixtral"]
    made = cell(routing, 1)  # seed 1 has no throughput
    page = routing.Report([made], routing.parse_arguments(given)).page()
    shown = page.split("```bash\n")[1].split("\n```")[0].split()
    assert shown[:2] == ["python", "benchmarks/routing.py"]
    again = vars(routing.parse_arguments(shown[2:]))
    assert again == vars(routing.parse_arguments(given)) | {"write": Path("docs/routing_replay.md")}
    assert "--warmup-steps" not in shown
    assert "was not measured" in page


def test_an_r2_that_changes_something_is_called_wrong(routing: ModuleType):
    made = cell(routing, 0)
    made["float32"]["r2_moves"] = 0.25
    report = routing.Report([made], routing.parse_arguments([]))
    assert any("should be 0" in line for line in report.reading())


def test_every_family_is_a_mixture_of_experts_that_a_run_accepts(routing: ModuleType):
    arguments = routing.parse_arguments(["--runs-dir", "runs/nowhere"])
    for number, family in enumerate(routing.FAMILIES):
        config = routing.family_config(family, number, arguments)
        assert (config.seed, config.rollout_dtype, config.model.dtype) == (number, "bfloat16", "float32")
        check_experts(config)
        values = hf_config(config.model)
        assert values is not None
        experts = experts_of(values)
        assert experts is not None
        assert (experts.total, experts.per_token) == (16, 4)
        described = {"layers": list(range(experts.layers)), "top_k": 4, "experts": 16}
        assert routing.most_bytes(described) == bytes_per_token(experts)


# -------------------------------------------------------------------------------------------------- the whole runs


def rows(rewards: list[float], **more: float) -> list[dict[str, float]]:
    whole = {"mismatch/kl": 1e-3, "mismatch/f2": 2e-3, "entropy": 0.5, "grad_norm": 1.0, "time/total": 2.0, **more}
    return [{"step": i, "reward/mean": r, **whole} for i, r in enumerate(rewards, start=1)]


def test_a_collapse_is_a_last_fifth_below_half_of_the_best(stability: ModuleType):
    rising = [0.1 * i for i in range(1, 11)]
    assert not stability.collapsed(rising, stopped=False)
    assert stability.collapsed([*rising[:8], 0.3, 0.3], stopped=False)  # best 0.75 over two steps, 0.3 at the end
    assert not stability.collapsed([*rising[:8], 0.4, 0.4], stopped=False)
    assert not stability.collapsed([0.2, 0.2, 0.9, *[0.5] * 7], stopped=False)  # one lucky step is not the best average
    assert stability.collapsed(rising, stopped=True)
    assert not stability.collapsed([0.0] * 10, stopped=False)  # nothing was there to collapse


def test_a_run_is_measured_over_its_steps(stability: ModuleType):
    done = {"eval": {"after": {"pass@1": [0.4, 0.3, 0.5]}}}
    found = stability.numbers(rows([0.1, 0.2, 0.3, 0.4, 0.5], **{"routing/agreement": 0.9}), done)
    assert (found["reward"], found["best"], found["collapsed"], found["pass@1"]) == (0.5, 0.5, 0.0, 0.4)
    assert (found["kl"], found["f2"], found["agreement"]) == (pytest.approx(1.0), pytest.approx(2.0), 0.9)
    stopped = stability.numbers(rows([0.1, 0.2]), {"eval": {}, "stopped": "alarm"})
    assert stopped["collapsed"] == 1.0
    assert not {"pass@1", "agreement"} & stopped.keys()


def test_bands_go_on_with_the_seeds_that_are_left(stability: ModuleType):
    assert stability.band([{1: 1.0, 2: 2.0}, {1: 3.0}]) == ([1, 2], [2.0, 2.0], [1.0, 2.0], [3.0, 2.0])


def planned(stability: ModuleType, *given: str) -> list:
    arguments = stability.parse_arguments(["--seeds", "2", *given])
    return stability.plan(arguments, "some/model")


def test_variants_differ_in_replay_or_correction_alone(stability: ModuleType, modules: SimpleNamespace, tmp_path: Path):
    experiments = planned(stability, "--methods", "off", "r3", "r2", "tis")
    assert [(e.method, e.seed) for e in experiments[:4]] == [("off", 0), ("r3", 0), ("r2", 0), ("tis", 0)]
    configs = {e.method: e.config(tmp_path).model_copy(update={"name": None}) for e in experiments[:4]}
    plain = {method: config.model_dump(mode="json") for method, config in configs.items()}
    changed = {m: modules.experiments.differing(plain["off"], plain[m]) for m in ("r3", "r2", "tis")}
    assert changed == {"r3": ["routing.replay"], "r2": ["routing.replay"], "tis": ["objective.corrections"]}


def test_no_run_ends_by_an_alarm_for_what_is_looked_at(stability: ModuleType, tmp_path: Path):
    for experiment in planned(stability, "--steps", "7"):
        config = experiment.config(tmp_path)
        assert config.alarms.mismatch_kl >= 1e6
        assert config.alarms.no_signal_steps > config.steps
        assert config.learner.optimizer_steps_per_batch == 4
        assert config.model.path == "some/model"
        assert config.rollout_dtype == "bfloat16"
        checked(config.model_copy(update={"model": load([stability.CONFIG]).model}))


def test_runs_with_another_disturbance_are_other_runs(stability: ModuleType):
    names = [{e.name for e in planned(stability, "--noise", noise)} for noise in ("0.1", "0.3")]
    assert not names[0] & names[1]


def ending(code: int) -> Any:
    def execute(arguments: object, log: Path, deadline: float) -> None:
        raise SystemExit(f"the last lines\n\n{log.stem} ended with exit code {code}; the last lines are above")

    return execute


def test_a_run_that_an_alarm_ended_is_a_result(
    stability: ModuleType, modules: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = RunFolder(tmp_path / "some-run")
    folder.path.mkdir()
    monkeypatch.setattr(stability, "execute", ending(4))
    stability.keeping_alarms([], tmp_path / "logs" / "some-run.log", 1.0)
    assert "stopped" in modules.experiments.summary(folder)


def test_the_exit_code_of_an_alarm_is_told_by_what_runs_it(
    stability: ModuleType, modules: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexit 4\n")
    program.chmod(0o755)
    monkeypatch.setattr(modules.experiments.sys, "executable", str(program))
    (tmp_path / "run").mkdir()
    stability.keeping_alarms([], tmp_path / "logs" / "run.log", 60.0)
    assert (tmp_path / "run" / "summary.json").is_file()


def test_a_run_that_fails_otherwise_still_fails(stability: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stability, "execute", ending(1))
    with pytest.raises(SystemExit, match="exit code 1"):
        stability.keeping_alarms([], tmp_path / "logs" / "run.log", 1.0)


def curves(stability: ModuleType, off: list[list[float]], r3: list[list[float]]) -> Any:
    done = {"eval": {"after": {"pass@1": [0.4, 0.3, 0.5]}}}
    live = {"mismatch_live/kl": 4e-3, "mismatch_replay/kl": 1e-3}
    steps = {
        "off": {seed: rows(rewards, **{"mismatch/kl": 0.01 + 0.001 * seed}) for seed, rewards in enumerate(off)},
        "r3": {seed: rows(rewards, **live) for seed, rewards in enumerate(r3)},
    }
    values = {m: {s: stability.numbers(r, done) for s, r in seeds.items()} for m, seeds in steps.items()}
    runs = {"a run": {"over_prompts": done["eval"]["after"]}}
    expected = stability.usable(stability.claims(["off", "r3"]), values)
    return stability.Curves(
        "Title", "note", values, runs, stability.MEASURES, ("off",), stability.LABELS, expected, steps=steps
    )


def test_the_reading_says_what_was_seen_and_what_was_not(stability: ModuleType, tmp_path: Path):
    up, down = [0.1, 0.2, 0.3, 0.4, 0.5], [0.1, 0.4, 0.5, 0.2, 0.1]
    collapse = curves(stability, [down, down, down], [up, up, up]).reading()
    assert "no replay: 3 of 3 runs collapsed (seed 0, 1, 2)." in collapse
    assert any(line.startswith("R3, KL, 10⁻³ nats below no replay: seen") for line in collapse)
    assert any("4 times less" in line for line in collapse)
    calm = curves(stability, [up, up, up], [up, up, up])
    assert any("cannot show that replay prevents a collapse" in line for line in calm.reading())
    assert not any("cannot show" in line for line in collapse)


def test_the_page_has_its_plot_and_its_reading(stability: ModuleType, tmp_path: Path):
    page = tmp_path / "moe_stability.md"
    made = curves(stability, [[0.1, 0.2], [0.2, 0.3]], [[0.1, 0.2], [0.2, 0.3]])
    made.write_page(page, "# Heading")
    text = page.read_text()
    assert text.startswith("# Heading\n\n## Results\n\n![Title](moe_stability.svg)")
    assert "## Reading\n\n- no replay: 0 of 2 runs collapsed." in text
    assert page.with_suffix(".svg").read_text().count("step") >= len(stability.CURVES)


def test_the_note_says_what_was_disturbed(stability: ModuleType):
    said = stability.note(stability.parse_arguments(["--noise", "0.25", "--updates", "8"]))
    assert "noise of 0.25" in said
    assert "8 optimizer steps" in said


def test_both_commands_have_their_options(routing: ModuleType, stability: ModuleType):
    for module in (routing, stability):
        made = module.parse_arguments(["--threads", "1", "--write", "page.md"])
        assert isinstance(made, argparse.Namespace)
        assert (made.threads, made.write) == (1, Path("page.md"))
