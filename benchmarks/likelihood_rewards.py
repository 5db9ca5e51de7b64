"""Rewards from the likelihood of a reference answer against those of a verifier.

    python benchmarks/likelihood_rewards.py

See benchmarks/README.md for what is compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from experiments import (
    METHODS,
    ROOT,
    Experiment,
    Measure,
    Report,
    Runner,
    common,
    evaluation,
    finish,
    gathered,
    parser,
    run_bases,
    size,
    starting_from,
    summary,
)

from rlpost.observe import RunFolder

BENCHMARK = "likelihood_rewards"
CONFIG = ROOT / "configs" / "reasoning.yaml"
SAMPLES = 16
LABELS = {"base": "base", "rloo": "verifier, 0 or 1", "logprob": "log-prob", "verifree": "prob"}
MEASURES = (
    Measure("greedy", "pass@1, greedy"),
    Measure("pass@1", "pass@1, T = 1"),
    Measure("nll", "entropy, nats a token"),
    Measure("length", "response tokens", digits=2),
    Measure("step_seconds", "s per step", digits=2, plotted=False),
)


def main() -> None:
    arguments = parse_arguments()
    runner = Runner(arguments.runs_dir, arguments.deadline)
    experiments, model = run_bases(
        runner, BENCHMARK, CONFIG, shared_settings(arguments), arguments.seeds, arguments.shared_base
    )
    trained = plan(arguments, model)
    runner.run(trained)
    everything = [*experiments, *trained]
    decoded = greedy(everything, [final_model(runner.folder(e)) for e in everything])
    runner.run(decoded)
    values, runs = gathered(runner, everything)
    for experiment, argmax in zip(everything, decoded, strict=True):
        found = evaluation(runner.folder(argmax))["pass@1"]
        values[experiment.method][experiment.seed]["greedy"] = found[0]
        runs[experiment.name]["over_prompts"]["greedy"] = found
    baselines = ("base", "rloo") if "rloo" in arguments.methods and len(arguments.methods) > 1 else ("base",)
    report = Report("Held-out results", note(arguments), values, runs, MEASURES, baselines, LABELS)
    finish(report, arguments, INTRODUCTION)


def parse_arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    methods = [m for m in LABELS if m != "base"]
    return parser("Rewards from likelihoods against a verifier.", BENCHMARK, seeds=3, methods=methods).parse_args(given)


def shared_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        **common(arguments),
        "evaluation": {"samples_per_prompt": SAMPLES, "k": [1, SAMPLES], "prompts": arguments.eval_prompts},
    }


def plan(arguments: argparse.Namespace, model: str | None) -> list[Experiment]:
    """All runs that train: every reward with one seed before the next seed. They differ in the reward and what comes
    with it, so the overlay for the verifier goes without its divergence.

    Args:
        model: folder of the base; None: each seed warms one up, or finds the one it made.
    """
    alike = {
        **shared_settings(arguments),
        **(starting_from(model) if model else {}),
        "evaluation.before": False,
        "evaluation.after": True,
        "objective.regularizers": [],
    }
    return [
        Experiment(BENCHMARK, method, seed, (CONFIG, METHODS / f"{method}.yaml"), alike)
        for seed in range(arguments.seeds)
        for method in arguments.methods
    ]


def greedy(experiments: Iterable[Experiment], models: Iterable[str]) -> list[Experiment]:
    """Runs without a step that evaluate these models by their likeliest tokens."""
    return [
        replace(
            experiment,
            method=f"{experiment.method}-greedy",
            files=(CONFIG,),
            overrides={
                **experiment.overrides,
                **starting_from(model),
                "steps": 0,
                "evaluation.before": True,
                "evaluation.after": False,
                "evaluation": {
                    **experiment.overrides["evaluation"],
                    "samples_per_prompt": 1,
                    "k": [1],
                    "temperature": 0,
                },
            },
        )
        for experiment, model in zip(experiments, models, strict=True)
    ]


def final_model(folder: RunFolder) -> str:
    """The weights of a finished run: of its newest checkpoint, or those it started from if it took no step."""
    from rlpost import checkpoint

    found = summary(folder)
    if not found["steps"]:
        return str(found["base"])
    saved, rejected = checkpoint.Store(folder.checkpoints, folder.run_id).newest()
    if saved is None or saved.step != found["steps"]:
        raise FileNotFoundError(
            f"{folder.path} has no checkpoint of step {found['steps']} {rejected or ''}: remove the folder to run it again"
        )
    return str(saved.model)


def note(arguments: argparse.Namespace) -> str:
    """What was run, in a sentence."""
    start = "one warmed-up model for all seeds" if arguments.shared_base else "a model warmed up for each seed"
    return (
        f"{size(arguments)}; {start}; {SAMPLES} responses to each of {arguments.eval_prompts} prompts at temperature 1, "
        "and a greedy one."
    )


INTRODUCTION = """\
# Rewards from likelihoods

What is lost or gained when the reward is not a verifier's verdict on the sampled answer but the likelihood of the
reference answer after the sampled reasoning?

```bash
python benchmarks/likelihood_rewards.py --write docs/likelihood_rewards.md
```

The model and the task are those of [reasoning.yaml](../configs/reasoning.yaml): reduce a fraction, naming the common
factor first. All use leave-one-out advantages and no divergence, and sample the same number of prompts and responses in
each step for one update. The methods with likelihoods also teach the reference answer by its gradient: that is a part
of them. A verifier judges all evaluations.

The entropy is the mean of -log p over sampled tokens; response tokens are those of the last five training steps.
"""


if __name__ == "__main__":
    main()
