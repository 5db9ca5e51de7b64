"""`benchmarks/step.py` runs rlpost, TRL and the floor on the same work and says what each took."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(300),
]

STEPS, TOKENS = 2, 6


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """(what was printed, what was written) of a small run."""
    pytest.importorskip("trl", reason="TRL is needed for the benchmark only")
    out = tmp_path_factory.mktemp("benchmark") / "step.json"
    sizes = {"steps": STEPS, "warmup": 1, "prompts": 4, "samples": 2, "tokens": TOKENS, "deadline": 120}
    options = [text for name, value in sizes.items() for text in (f"--{name}", str(value))]
    ended = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "step.py"), *options, "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout, json.loads(out.read_text())


def test_every_side_has_positive_seconds_for_each_of_its_phases_and_each_measured_step(benchmark):
    phases = {
        "rlpost": {"generate", "verify", "learn", "sync", "total"},
        "TRL": {"generate", "verify", "learn", "total"},
        "floor": {"generate", "learn", "total"},
    }
    sides = benchmark[1]["sides"]
    assert sides.keys() == phases.keys()
    for name, side in sides.items():
        assert len(side["steps"]) == STEPS
        for step in side["steps"]:
            assert step.keys() == phases[name] | {"other", "length"}
            assert all(step[phase] > 0 for phase in phases[name])
            assert sum(step[p] for p in phases[name] - {"total"}) <= step["total"]


def test_every_side_samples_responses_of_the_same_length(benchmark):
    for side in benchmark[1]["sides"].values():
        assert [step["length"] for step in side["steps"]] == [TOKENS] * STEPS


def test_the_ratios_are_those_of_the_median_totals(benchmark):
    result = benchmark[1]
    total = {name: side["median"]["total"] for name, side in result["sides"].items()}
    assert result["ratios"]["TRL/rlpost"]["total"] == pytest.approx(total["TRL"] / total["rlpost"])
    assert result["ratios"]["rlpost/floor"]["total"] == pytest.approx(total["rlpost"] / total["floor"])


def test_the_table_names_the_sides_the_phases_the_ratios_and_the_machine(benchmark):
    printed, result = benchmark
    words = ("rlpost", "TRL", "floor", "TRL/rlpost", "rlpost/floor", "generate", "verify", "learn", "sync", "other")
    assert [word for word in words if word not in printed] == []
    assert f"{result['machine']['cores']} cores" in printed
