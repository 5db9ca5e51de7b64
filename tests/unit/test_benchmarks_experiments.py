"""The comparisons of benchmarks/: their statistics, the runs they ask for, and how they go on after a stop."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from rlpost.config import ConfigError, dump, load, split_arguments
from rlpost.observe import RunFolder
from rlpost.run.roles import Roles
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def modules() -> Iterator[SimpleNamespace]:
    """The modules of the folder, imported as its programs import each other."""
    import importlib

    names = ("experiments", "diversity", "likelihood_rewards")
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
        for name in names:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def experiments(modules: SimpleNamespace) -> ModuleType:
    return modules.experiments


# ------------------------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99])
def test_the_t_quantile_is_the_closed_form_where_there_is_one(experiments: ModuleType, level: float):
    cauchy = math.tan(math.pi * level / 2)
    two = level * math.sqrt(2 / (1 - level**2))
    # P(|T| <= t) = u (3 - u^2) / 2 with u = t / sqrt(t^2 + 4): a cubic, solved by its trigonometric root.
    u = 2 * math.cos(math.acos(-level) / 3 + 4 * math.pi / 3)
    four = 2 * u / math.sqrt(1 - u * u)
    found = [experiments.t_quantile(level, freedom) for freedom in (1, 2, 4)]
    assert found == pytest.approx([cauchy, two, four], rel=1e-10)


@pytest.mark.parametrize(
    ("freedom", "tabled"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (30, 2.042)]
)
def test_the_t_quantile_is_that_of_the_tables(experiments: ModuleType, freedom: int, tabled: float):
    assert experiments.t_quantile(0.95, freedom) == pytest.approx(tabled, abs=5e-4)


def test_the_t_quantile_goes_to_that_of_the_normal_distribution(experiments: ModuleType):
    assert experiments.t_quantile(0.95, 100_000) == pytest.approx(1.959964, abs=1e-4)


@pytest.mark.parametrize(("level", "freedom"), [(0.0, 3), (1.0, 3), (0.95, 0)])
def test_a_quantile_that_does_not_exist_is_refused(experiments: ModuleType, level: float, freedom: int):
    with pytest.raises(ValueError, match="no quantile"):
        experiments.t_quantile(level, freedom)


def test_a_spread_is_the_mean_its_t_interval_and_the_range(experiments: ModuleType):
    spread = experiments.Spread.of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (spread.mean, spread.least, spread.most, spread.seeds) == (3.0, 1.0, 5.0, 5)
    assert spread.half == pytest.approx(2.776445 * math.sqrt(2.5 / 5), rel=1e-6)
    assert spread.high - spread.mean == pytest.approx(spread.mean - spread.low)
    assert spread.text(1) == "3.0 ± 2.0 (1.0 to 5.0)"


def test_a_single_seed_has_no_interval(experiments: ModuleType):
    spread = experiments.Spread.of([0.25])
    assert spread.half is None
    assert (spread.low, spread.high) == (-math.inf, math.inf)
    assert spread.text(2, signed=True) == "+0.25"
    with pytest.raises(ValueError, match="no seeds"):
        experiments.Spread.of([])


def test_what_a_seed_does_to_both_methods_is_gone_from_their_difference(experiments: ModuleType):
    seed_effect = {0: 0.0, 1: 10.0, 2: -7.0}
    gain = {0: 0.1, 1: 0.2, 2: 0.3}
    values = {
        "base": {s: {"x": e} for s, e in seed_effect.items()},
        # In another order, and with a measure that the base does not have.
        "new": {s: {"x": seed_effect[s] + gain[s], "y": 1.0} for s in (2, 0, 1)},
    }
    found = experiments.differences(values, "base")
    assert found.keys() == {"new"}
    assert found["new"].keys() == {"x"}
    assert found["new"]["x"].mean == pytest.approx(0.2)
    assert found["new"]["x"].half == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)
    unpaired = experiments.over_seeds(values)
    assert unpaired["new"]["x"].half > 10
    assert unpaired["new"].keys() == {"x", "y"}


def test_differences_need_the_same_seeds_and_a_baseline_that_is_there(experiments: ModuleType):
    values = {"base": {0: {"x": 1.0}}, "new": {0: {"x": 1.0}, 1: {"x": 2.0}}}
    with pytest.raises(ValueError, match=r"new has seeds \[0, 1\], base \[0\]"):
        experiments.differences(values, "base")
    with pytest.raises(ValueError, match="no baseline 'bass' among base, new"):
        experiments.differences(values, "bass")


@pytest.mark.parametrize(
    ("expected", "values", "verdict"),
    [
        ("below", [-0.3, -0.2, -0.25], "seen"),
        ("below", [0.3, 0.2, 0.25], "contradicted"),
        ("below", [-0.3, 0.2, 0.0], "not seen: the interval holds 0"),
        ("above", [0.3, 0.2, 0.25], "seen"),
        ("above", [-0.3, -0.2, -0.25], "contradicted"),
        ("not below", [-0.3, -0.2, -0.25], "contradicted"),
        ("not below", [0.3, 0.2, 0.25], "seen"),
        ("not below", [-0.01, 0.01, 0.0], "not contradicted: a loss of up to 0.025 is possible"),
        ("above", [0.3], "open: one seed has no interval"),
    ],
)
def test_an_expectation_is_seen_only_when_the_interval_says_so(
    experiments: ModuleType, expected: str, values: list[float], verdict: str
):
    claim = experiments.Claim("new", "x", expected, "base")
    assert claim.verdict(experiments.Spread.of(values)) == verdict


# ------------------------------------------------------------------------------------------------- what is asked for


def plans(modules: SimpleNamespace, *given: str) -> list:
    return [
        (module, module.plan(module.parse_arguments(given), "/models/warm"))
        for module in (modules.diversity, modules.likelihood_rewards)
    ]


def test_an_experiment_is_a_command_that_loads_as_its_configuration(experiments: ModuleType, tmp_path: Path):
    overrides = {"model.path": "/m", "model.create": None, "warmup": None, "learner.lr": 1e-5, "evaluation": {"k": [1]}}
    file = ROOT / "configs" / "quickstart.yaml"
    experiment = experiments.Experiment("bench", "grpo", 3, (file,), overrides)
    verb, *arguments = experiment.arguments(tmp_path)
    assert verb == "train"
    files, settings = split_arguments(arguments)
    assert files == [str(file)]
    config = load(files, settings)
    assert config == experiment.config(tmp_path)
    assert (config.name, config.seed, config.runs_dir) == ("bench-grpo-3", 3, str(tmp_path))
    assert (config.model.path, config.model.create, config.warmup) == ("/m", None, None)
    assert (config.learner.lr, config.evaluation.k) == (1e-5, [1])


def test_every_planned_run_is_one_that_rlpost_accepts(modules: SimpleNamespace, tmp_path: Path):
    for module, plan in plans(modules, "--seeds", "1"):
        bases = modules.experiments.bases(
            module.BENCHMARK, module.CONFIG, module.shared_settings(module.parse_arguments([])), 2, "/models/warm"
        )
        for experiment in [*bases, *plan]:
            Roles(experiment.config(tmp_path))


def test_all_methods_have_the_same_budget(modules: SimpleNamespace, tmp_path: Path):
    for _, plan in plans(modules, "--seeds", "1", "--steps", "7", "--prompts", "32", "--eval-prompts", "20"):
        budgets = set()
        for experiment in plan:
            c = experiment.config(tmp_path)
            assert c.data.groups.no_signal == "keep"
            le, ro, ev = c.learner, c.rollout, c.evaluation
            sampled = (c.steps, le.prompts_per_step, le.optimizer_steps_per_batch, ro.samples_per_prompt)
            judged = (ev.prompts, ev.samples_per_prompt, *ev.k)
            budgets.add((*sampled, *judged, le.lr, c.objective.aggregation, c.model.path))
        assert len(budgets) == 1
        assert next(iter(budgets))[:5] == (7, 32, 1, 8, 20)


def test_the_methods_of_the_diversity_comparison_differ_in_their_divergence(modules: SimpleNamespace, tmp_path: Path):
    options = ("--seeds", "1", "--coef", "0.07", "--eta-js", "0.5")
    plan = modules.diversity.plan(modules.diversity.parse_arguments(options), None)
    found = {
        e.method: [(r.divergence, r.source, r.coef) for r in e.config(tmp_path).objective.regularizers] for e in plan
    }
    assert found == {
        "grpo": [],
        "grpo_rkl": [("k2", "on_policy", 0.07)],
        "dph_forward_kl": [("forward_kl", "rehearsal", 0.02)],
        "dph_js": [("js", "rehearsal", 0.5)],
        "gpg": [],
    }
    strategies = {e.method: e.config(tmp_path).data.strategy for e in plan}
    assert strategies["dph_js"].params["prompts"] == strategies["dph_forward_kl"].params["prompts"] == 512


def test_all_methods_of_a_seed_come_before_the_next_seed(modules: SimpleNamespace):
    plan = modules.diversity.plan(modules.diversity.parse_arguments(["--seeds", "2", "--methods", "gpg", "grpo"]), None)
    assert [e.name for e in plan] == ["diversity-gpg-0", "diversity-grpo-0", "diversity-gpg-1", "diversity-grpo-1"]


def test_seeds_share_a_base_or_have_each_their_own(modules: SimpleNamespace, tmp_path: Path):
    file = ROOT / "configs" / "quickstart.yaml"
    shared = [e.config(tmp_path) for e in modules.experiments.bases("b", file, {}, 3, "/models/warm")]
    own = [e.config(tmp_path) for e in modules.experiments.bases("b", file, {}, 3, None)]
    assert [c.model.path for c in shared] == [None, "/models/warm", "/models/warm"]
    assert [c.warmup is None for c in shared] == [False, True, True]
    assert [c.model.path for c in own] == [None, None, None]
    assert all((c.steps, c.evaluation.before, c.evaluation.after) == (0, True, False) for c in [*shared, *own])


def test_greedy_evaluations_are_runs_without_a_step_on_the_trained_weights(modules: SimpleNamespace, tmp_path: Path):
    module = modules.likelihood_rewards
    trained = module.plan(module.parse_arguments(["--seeds", "1"]), None)
    for before, experiment in zip(trained, module.greedy(trained, ["/a", "/b", "/c"]), strict=True):
        config = experiment.config(tmp_path)
        assert experiment.name == f"likelihood_rewards-{before.method}-greedy-0"
        assert (config.steps, config.warmup, config.model.create) == (0, None, None)
        ev = config.evaluation
        assert (ev.temperature, ev.samples_per_prompt, ev.k, ev.prompts) == (0, 1, [1], 150)
    assert config.model.path == "/c"


# ------------------------------------------------------------------------------------------------------ going on


EVALUATION = {"pass@1": [0.5, 0.4, 0.6], "nll": [1.0, 0.9, 1.1]}


class Fake:
    """In place of `rlpost train`: makes the folder of a run as it would be, and remembers what was asked."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.cut_off_in: str | None = None

    def __call__(self, arguments: list[str], log: Path, deadline: float) -> None:
        assert arguments[0] == "train"
        config = load(*split_arguments(arguments[1:]))
        self.names.append(str(config.name))
        folder = RunFolder.create(config.runs_dir, config.name, dump(config), arguments, config.seed)
        rows = [
            {"step": 1, "time/elapsed": 30.0, "time/total": 4.0, "length/mean": 10.0},
            {"step": 2, "time/elapsed": 36.0, "time/total": 6.0, "length/mean": 12.0},
            {"step": 2, "when": "after", "time/elapsed": 50.0},
        ]
        folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
        folder.close()
        if config.name == self.cut_off_in:
            raise KeyboardInterrupt
        folder.summary.write_text(json.dumps({"eval": {"after": EVALUATION}, "seconds": 51.0, "steps": 2, "base": "b"}))


def some(experiments: ModuleType, *, seeds: int = 3, **overrides: object) -> list:
    file = ROOT / "configs" / "quickstart.yaml"
    return [experiments.Experiment("b", "grpo", seed, (file,), overrides) for seed in range(seeds)]


def test_finished_runs_are_not_run_again_and_one_that_was_cut_off_is(experiments: ModuleType, tmp_path: Path):
    fake, said = Fake(), []
    runner = experiments.Runner(tmp_path, 60, said.append, fake)
    fake.cut_off_in = "b-grpo-1"
    with pytest.raises(KeyboardInterrupt):
        runner.run(some(experiments))
    assert fake.names == ["b-grpo-0", "b-grpo-1"]

    fake.names, fake.cut_off_in = [], None
    (tmp_path / "b-grpo-1" / "half").touch()
    runner.run(some(experiments))
    assert fake.names == ["b-grpo-1", "b-grpo-2"]
    assert not (tmp_path / "b-grpo-1" / "half").exists()
    assert any("b-grpo-1 was cut off" in line for line in said)

    fake.names = []
    runner.run(some(experiments))
    assert fake.names == []


def test_a_finished_run_with_other_settings_is_not_mixed_in(experiments: ModuleType, tmp_path: Path):
    fake = Fake()
    runner = experiments.Runner(tmp_path, 60, lambda _: None, fake)
    runner.run(some(experiments, seeds=1, steps=5))
    with pytest.raises(SystemExit, match=r"other settings \(steps\): give another --runs-dir"):
        runner.run(some(experiments, seeds=2, steps=6))
    assert fake.names == ["b-grpo-0"]


def test_nothing_starts_when_one_of_the_configurations_cannot_run(experiments: ModuleType, tmp_path: Path):
    fake = Fake()
    file = ROOT / "configs" / "quickstart.yaml"
    bad = experiments.Experiment("b", "bad", 0, (file,), {"learner.rank": 2})
    with pytest.raises(ConfigError, match=r"learner\.rank"):
        experiments.Runner(tmp_path, 60, print, fake).run([*some(experiments), bad])
    assert fake.names == []


def test_a_folder_that_another_process_writes_is_not_removed(experiments: ModuleType, tmp_path: Path):
    fake = Fake()
    with_lock = RunFolder.create(tmp_path, "b-grpo-0", "", [], 0)
    try:
        with pytest.raises(ConfigError, match="being written by another process"):
            experiments.Runner(tmp_path, 60, print, fake).run(some(experiments, seeds=1))
    finally:
        with_lock.close()
    assert fake.names == []
    assert with_lock.manifest.exists()


def test_a_run_that_ends_without_results_is_an_error(experiments: ModuleType, tmp_path: Path):
    runner = experiments.Runner(tmp_path, 60, lambda _: None, lambda *_: None)
    with pytest.raises(SystemExit, match=r"b-grpo-0 ended without .*summary\.json"):
        runner.run(some(experiments))


def test_a_failure_shows_the_end_of_the_log(experiments: ModuleType, tmp_path: Path):
    log = tmp_path / "logs" / "b-grpo-0.log"
    with pytest.raises(SystemExit) as failed:
        experiments.execute(["train", "nowhere.yaml"], log, 60)
    assert "'nowhere.yaml' does not exist" in str(failed.value)
    assert "b-grpo-0 ended with exit code 2" in str(failed.value)
    assert str(log) in str(failed.value)


def test_a_run_that_takes_too_long_is_stopped(experiments: ModuleType, tmp_path: Path):
    with pytest.raises(SystemExit, match=r"was stopped after 0\.01 seconds"):
        experiments.execute(["list", "methods"], tmp_path / "slow.log", 0.01)


# ------------------------------------------------------------------------------------------------------- reports


@pytest.fixture
def report(experiments: ModuleType, tmp_path: Path):
    """Of two methods with three seeds, as their finished runs say."""
    file = ROOT / "configs" / "quickstart.yaml"
    runs = [experiments.Experiment("b", m, s, (file,), {}) for m in ("base", "new") for s in range(3)]
    runner = experiments.Runner(tmp_path / "runs", 60, lambda _: None, Fake())
    runner.run(runs)
    values, found = experiments.gathered(runner, runs)
    for seed, row in values["new"].items():
        row["pass@1"] += 0.1 + 0.01 * seed
    measures = (experiments.Measure("pass@1", "pass@1"), experiments.Measure("step_seconds", "s per step", 1))
    claim = experiments.Claim("new", "pass@1", "above", "base")
    labels = {"base": "the base", "new": "the new"}
    return experiments.Report("Results", "As run.", values, found, measures, ("base",), labels, (claim,))


def test_a_run_is_measured_by_its_summary_and_its_metrics(experiments: ModuleType, report):
    expected = {"pass@1": 0.5, "nll": 1.0, "steps": 2, "setup_seconds": 26.0, "step_seconds": 5.0, "length": 11.0}
    assert report.values["base"][0] == pytest.approx(expected)
    assert report.over_prompts() == pytest.approx({"pass@1": 0.1, "nll": 0.1})


def test_the_tables_have_the_methods_their_differences_and_what_was_expected(report):
    results, less, expected = (rows for _, rows in report.tables())
    assert results[0] == ["", "pass@1", "s per step"]
    assert results[1] == ["the base", "0.500 ± 0.000 (0.500 to 0.500)", "5.0 ± 0.0 (5.0 to 5.0)"]
    assert results[3] == ["one run, over prompts", "± 0.100", "–"]
    half = 4.302653 * 0.01 / math.sqrt(3)
    difference = f"+0.110 ± {half:.3f} (+0.100 to +0.120)"
    assert less[1:] == [["the new", difference, "+0.0 ± 0.0 (+0.0 to +0.0)"]]
    assert expected[1] == ["the new", "pass@1", "above the base", difference, "seen"]


def test_the_json_has_every_number(report, tmp_path: Path):
    out = tmp_path / "results" / "b.json"
    report.write_json(out, {"seeds": 3})
    written = json.loads(out.read_text())
    assert written["settings"] == {"seeds": 3}
    assert written["over_seeds"]["base"]["pass@1"]["mean"] == 0.5
    assert written["less_base"]["new"]["pass@1"]["mean"] == pytest.approx(0.11)
    assert written["runs"]["b-new-2"]["over_prompts"]["nll"] == [1.0, 0.9, 1.1]


def test_a_page_that_is_there_keeps_all_but_its_results(experiments: ModuleType, report, tmp_path: Path):
    pytest.importorskip("matplotlib", reason="matplotlib is needed for the plots only")
    page = tmp_path / "b.md"
    report.write_page(page, "# Title\n\nWhat was done.\n")
    first, plot = page.read_text(), (tmp_path / "b.svg").read_bytes()
    assert first.startswith("# Title\n\nWhat was done.\n\n## Results\n")
    assert "![Results](b.svg)" in first
    assert "| the base | 0.500 ± 0.000 (0.500 to 0.500) |" in first
    assert experiments.UNREAD in first

    page.write_text(first.replace(experiments.UNREAD, "Nothing was lost.").replace("the base | 0.500", "the base | 9"))
    report.write_page(page, "# Another title")
    assert page.read_text() == first.replace(experiments.UNREAD, "Nothing was lost.")
    assert (tmp_path / "b.svg").read_bytes() == plot, "the same numbers give the same plot"

    page.write_text("# A page of another kind\n")
    with pytest.raises(ValueError, match="between which results go"):
        report.write_page(page, "")


def test_the_notes_say_what_was_run(modules: SimpleNamespace):
    options = ["--seeds", "2", "--steps", "9", "--eta-js", "0.5", "--methods", "grpo", "dph_js"]
    note = modules.diversity.note(modules.diversity.parse_arguments(options))
    assert "2 seed(s) of 9 steps with 64 prompts each" in note
    assert "DPH, JS 0.5" in note
    assert "reverse KL" not in note
    assert isinstance(modules.likelihood_rewards.note(modules.likelihood_rewards.parse_arguments([])), str)


def test_the_expectations_are_about_the_methods_that_were_run(modules: SimpleNamespace):
    claims = modules.diversity.claims(["grpo", "dph_js"])
    assert [(c.method, c.measure, c.expected, c.baseline) for c in claims] == [
        ("grpo", "pass@64", "below", "base"),
        ("dph_js", "pass@64", "not below", "base"),
        ("dph_js", "pass@64", "above", "grpo"),
        ("dph_js", "pass@1", "not below", "grpo"),
    ]
    assert all(c.baseline == "base" for c in modules.diversity.claims(["gpg", "dph_js"]))


def test_a_count_below_one_is_refused(experiments: ModuleType):
    with pytest.raises(argparse.ArgumentTypeError, match="0 is less than 1"):
        experiments.positive("0")
