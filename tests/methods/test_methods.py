"""Five real steps of the methods of configs/methods: Ray, vLLM, DeepSpeed and verifier processes, a small model.

Four of them by default; `make methods`, or RLPOST_METHODS=all, runs every file, RLPOST_METHODS=grpo,dapo those named.
All runs share one Ray and the warmed-up model of their base.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from rlpost import exit_codes
from tests.conftest import ROOT

pytestmark = pytest.mark.integration

FOLDER = ROOT / "configs" / "methods"
STEPS = 5


@dataclass(frozen=True)
class Case:
    """How a method is tried.

    Attributes:
        metrics: its own, which must appear in some step. No other metric of their families may.
        overrides: what makes it act within five steps on little data.
        base: the configuration it is laid over.
        says: what the run must print.
    """

    metrics: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    base: str = "quickstart"
    says: str = ""


# Metrics of these families come of what a method has beside the policy loss, so a method must not have any but its own.
FAMILIES = (
    "kl", "divergence", "loss", "coef", "where", "transform", "correction", "likelihood", "strategy", "preference",
    "factor",
)  # fmt: skip
CLIP = ("clip/low", "clip/high")
PAIRS = ("samples/pair", "strategy/pairs", "strategy/groups_without_pair")


def term(label: str, *families: str) -> tuple[str, ...]:
    """Metrics of a term or a divergence in the loss."""
    return f"loss/{label}", f"coef/{label}", *(f"{family}/{label}" for family in families)


def dph(divergence: str) -> Case:
    own = ("samples/rehearsal", "strategy/mastered", "strategy/rehearsed", "strategy/rehearsal_epochs")
    few = ("data.strategy.samples=2", "data.strategy.threshold=1", "data.strategy.prompts=48")
    return Case((*term(divergence, "divergence"), *CLIP, "clip/dual", *own), few)


def likelihood(*more: str, overrides: tuple[str, ...] = ()) -> Case:
    read = tuple(f"likelihood/{name}" for name in ("mean", "found", "logp", "answer_tokens"))
    return Case((*read, *more), overrides, base="reasoning")


REFERENCE = (*term("reference_nll"), "samples/reference")
RPG = Case(("divergence/rpg", *CLIP, "clip/dual"))
CASES = {
    "grpo": Case((*term("k3", "kl"), *CLIP)),
    "dr_grpo": Case(CLIP),
    "dapo": Case(CLIP),
    "gspo": Case(CLIP),
    "cispo": Case(("clip/high",)),
    "rloo": Case(("kl/k1", "coef/k1")),
    "reinforce_pp": Case(("kl/k1", "coef/k1", *CLIP)),
    "reinforce_pp_baseline": Case((*term("k2", "kl"), *CLIP)),
    "gpg": Case(("ratio/mean",)),
    "minirl": Case((*CLIP, "clip/cap")),
    **{f"dph_{d}": dph(d) for d in ("forward_kl", "js", "alpha", "reverse_kl")},
    **{f"rpg_{d}{style}": RPG for d in ("fkl", "ufkl", "rkl", "urkl") for style in ("", "_reinforce")},
    "kdrl": Case((*term("k2", "kl"), *CLIP)),
    "prorl": Case(
        (*term("k3", "kl"), *CLIP),
        ("objective.references.recent.every=3", "evaluation.every=2"),
        says="anchor recent moves to the policy",
    ),
    "prorl_v2": Case(
        (*term("k2", "kl"), *CLIP, *(f"correction/importance_{k}" for k in ("kept", "mean", "clipped", "clamped"))),
        ("objective.references.recent.every=3",),
        says="anchor recent moves to the policy",
    ),
    "gtpo": Case(("transform/entropy_filtered", "transform/conflict_share")),
    "grpo_d": Case((*term("k3", "kl"), *CLIP)),
    "recap": Case(
        (*term("sft"), "coef/policy_loss", "samples/sft", "strategy/replayed", "strategy/replay_epochs", *CLIP),
        ("objective.reweight.window=2", "data.strategy.per_step=16", "data.strategy.source.size=100"),
    ),
    "apo": Case((*term("k3", "kl"), "transform/stcr_share", "transform/stcr_max", *CLIP)),
    "f_dpg": Case(("ratio/mean",)),
    "f_dpo": Case((*term("f_dpo", "preference/accuracy", "preference/margin"), *PAIRS)),
    "h_dpo": Case((*term("h_dpo", "preference/accuracy", "preference/margin"), *PAIRS)),
    "iterative_rpo": Case(
        (*term("dpo", "preference/accuracy", "preference/margin"), *term("sft"), "where/sft", *PAIRS),
        ("objective.references.last.every=2",),
        says="anchor last moves to the policy",
    ),
    "salsa": Case((*term("k2", "kl"), *CLIP)),
    "verifree": likelihood(*REFERENCE),
    "logprob": likelihood(*REFERENCE, "likelihood/clipped"),
    "rlpr": likelihood(
        *CLIP, "likelihood/filtered",
        overrides=("objective.likelihood.std_filter.average_from=1", "objective.likelihood.std_filter.filter_from=2"),
    ),
    "jepo": likelihood(*REFERENCE, "likelihood/clipped"),
    "nover": likelihood(*CLIP, *term("k3", "kl"), overrides=("objective.references.proxy.every=2",)),
    "trice": Case(
        (*term("sft"), "samples/success_memory", *(f"strategy/{k}" for k in ("remembered", "accepted", "recalled"))),
    ),
    "dco": Case(
        (*term("dco", "factor"), "samples/sft", "strategy/replayed", "strategy/replay_epochs"),
        ("data.strategy.per_step=16", "data.strategy.source.size=300"),
    ),
    "tis": Case((*CLIP, *(f"correction/importance_{k}" for k in ("kept", "mean", "clipped", "clamped")))),
    "icepop": Case((*CLIP, *(f"correction/importance_{k}" for k in ("kept", "mean", "clipped", "clamped")))),
}  # fmt: skip
SAMPLE = ("dph_js", "gtpo", "iterative_rpo", "verifree")

SMALL: dict = {
    "steps": STEPS,
    "data": {"train": {"size": 400}, "test": {"size": 16}},
    "warmup": {"train": {"size": 1500}, "prompts_per_step": 64, "lr": 2e-3, "warmup_steps": 5},
    "verifier_pool": {"workers": 1},
    "rollout": {"samples_per_prompt": 4, "max_tokens": 16, "max_sequences": 64, "kv_cache_gb": 0.2, "deadline": 120},
    "learner": {"prompts_per_step": 16, "tokens_per_micro_batch": 1024},
    "evaluation": {"before": False, "after": False, "samples_per_prompt": 2, "k": [1, 2], "prompts": 8},
    "checkpoint": {"every": 0},
    "observe": {"sinks": [], "rollouts": False, "console": "plain"},
}
EASY = {"min_numbers": 2, "max_numbers": 2}
SMALLER: dict[str, dict] = {
    "quickstart": {
        "data": {"train": {"params": EASY}, "test": {"params": EASY}},
        "warmup": {"train": {"params": EASY}, "steps": 80},
    },
    "reasoning": {"warmup": {"steps": 120}},
}


def chosen() -> list[str]:
    """Names of the methods to run, by RLPOST_METHODS."""
    asked = os.environ.get("RLPOST_METHODS", ",".join(SAMPLE))
    names = sorted(CASES) if asked == "all" else [name.strip() for name in asked.split(",")]
    unknown = sorted(set(names) - set(CASES))
    if unknown:
        raise ValueError(f"RLPOST_METHODS names {unknown}; known: all, {', '.join(sorted(CASES))}")
    return names


@dataclass
class Runs:
    """Where all runs go, and how one is made."""

    folder: Path
    address: str
    environment: dict[str, str]
    said: str = ""
    small: dict[str, list[Path]] = field(default_factory=dict)

    def files(self, base: str) -> list[Path]:
        """A base and what makes it small."""
        if base not in self.small:
            made = [ROOT / "configs" / f"{base}.yaml"]
            for name, values in ((f"small-{base}", SMALL), (f"smaller-{base}", SMALLER[base])):
                made.append(self.folder / f"{name}.yaml")
                made[-1].write_text(yaml.safe_dump(values))
            self.small[base] = made
        return self.small[base]

    def run(self, verb: str, base: str, name: str, *more: object) -> Path:
        """A run's folder, after `rlpost VERB` with exit code 0."""
        own = [f"name={name}", f"runs_dir={self.folder}", f"cluster.address={self.address}"]
        command = [sys.executable, "-m", "rlpost.cli", verb, *map(str, self.files(base)), *map(str, more), *own]
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=300)
        self.said = done.stdout
        assert done.returncode == exit_codes.DONE, (
            f"rlpost {verb} of {name}: exit {done.returncode}\n{done.stderr[-3000:]}"
        )
        return self.folder / name


# Ray in a process of its own, which ends with its input; every run joins and leaves it.
HEAD = """
import ray, sys
ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
         object_store_memory=500 * 2**20)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
ray.shutdown()
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    # Workers get the environment of the head, not of the run that joins it.
    environment = {
        **os.environ,
        "DS_ACCELERATOR": "cpu",
        "RAY_worker_niceness": "0",
        # Ray makes a token of its own for a head that is given none, and nobody else could join it.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
    }
    head = subprocess.Popen(
        [sys.executable, "-c", HEAD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
        cwd=ROOT,
    )
    assert head.stdin is not None
    assert head.stdout is not None
    try:
        address = head.stdout.readline().strip()
        assert address, "Ray did not start"
        yield Runs(tmp_path_factory.mktemp("methods"), address, environment)
    finally:
        head.stdin.close()
        head.wait(60)


@pytest.mark.parametrize("name", chosen())
def test_a_method_runs_and_its_own_terms_act(name: str, runs: Runs):
    case = CASES[name]
    overrides = [*case.overrides]
    if name == "salsa":
        member = runs.run("sft", case.base, "soup-member", "seed=1", "model.create.seed=-1")
        overrides.append(f"objective.references.soup.members=[null, {member / 'model'}]")
    if "refill" in (FOLDER / f"{name}.yaml").read_text():
        overrides.append("data.groups.max_rounds=2")
    folder = runs.run("train", case.base, name, FOLDER / f"{name}.yaml", *overrides)
    assert case.says in runs.said

    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in lines if "when" not in row]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    numbers = [(key, v) for row in rows for key, v in row.items() if isinstance(v, int | float)]
    assert [(key, v) for key, v in numbers if not math.isfinite(v)] == []
    found = {key for row in rows for key in row}
    assert set(case.metrics) - found == set()
    assert {key for key in found if key.startswith(tuple(f"{f}/" for f in FAMILIES))} - set(case.metrics) == set()
    assert any(row.get("grad_norm", 0) > 0 for row in rows), "nothing was learned"
    check(name, rows)


def check(name: str, rows: list[dict]) -> None:
    """What can be told of some methods from their numbers."""

    def series(metric: str) -> list[float]:
        return [row[metric] for row in rows if metric in row]

    if name == "kdrl":
        assert series("coef/k2") == pytest.approx([5e-3 - 5e-5 * i for i in range(STEPS)], rel=1e-9)
        assert series("kl/k2")[0] == pytest.approx(0, abs=1e-9), "the teacher is the start"
    if name == "grpo_d":
        assert series("coef/k3") == pytest.approx([1e-4 + (1e-2 - 1e-4) * i / (STEPS - 1) for i in range(STEPS)])
    if name == "recap":
        sft, policy = series("coef/sft"), series("coef/policy_loss")
        assert sft[:4] == policy[:4] == [1, 1, 1, 1]
        assert sft[4] + policy[4] == pytest.approx(2)
        assert sft[4] != 1
    if name == "apo":
        assert all(0 < coef <= 1e-3 for coef in series("coef/k3"))
    if name == "salsa":
        assert series("kl/k2")[0] > 1e-6, "the soup is not the start"
    if name.startswith("dph_"):
        assert abs(series(f"divergence/{name.removeprefix('dph_')}")[0]) < 1e-5, (
            "the stored log-probs are the learner's"
        )
    if name in ("tis", "icepop", "prorl_v2"):
        assert series("correction/importance_mean") == pytest.approx([1] * STEPS, abs=1e-3), "engine and learner agree"
    if name in ("verifree", "rlpr"):
        assert all(0 <= reward <= 1 for reward in series("likelihood/mean"))
    if name in ("logprob", "jepo"):
        assert all(-20 <= reward <= 0 for reward in series("likelihood/mean"))


def test_every_file_has_a_case_and_the_sample_is_among_them():
    assert sorted(CASES) == sorted(file.stem for file in FOLDER.glob("*.yaml"))
    assert set(SAMPLE) <= set(CASES)
