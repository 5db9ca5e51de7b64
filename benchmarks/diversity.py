"""Does reinforcement learning cost diversity, and do divergences that cover the base's modes keep it?

    python benchmarks/diversity.py --write docs/diversity.md

See benchmarks/README.md for what is compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from experiments import (
    METHODS,
    ROOT,
    Claim,
    Experiment,
    Measure,
    Report,
    Runner,
    common,
    finish,
    gathered,
    parser,
    run_bases,
    size,
    starting_from,
)

BENCHMARK = "diversity"
CONFIG = ROOT / "configs" / "quickstart.yaml"
SAMPLES, KS = 64, (1, 8, 64)
LABELS = {
    "base": "base",
    "grpo": "GRPO without KL",
    "grpo_rkl": "GRPO, reverse KL",
    "dph_forward_kl": "DPH, forward KL",
    "dph_js": "DPH, JS",
    "gpg": "GPG",
}
OVERLAYS = {"grpo": "grpo", "grpo_rkl": "grpo", "dph_forward_kl": "dph_forward_kl", "dph_js": "dph_js", "gpg": "gpg"}
WITHOUT_COVER = ("grpo", "grpo_rkl", "gpg")
MEASURES = (
    *(Measure(f"pass@{k}", f"pass@{k}") for k in KS),
    Measure("nll", "entropy, nats a token"),
    Measure("distinct_correct", "distinct correct", digits=2),
    Measure("setup_seconds", "s before step 1", digits=1, plotted=False),
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
    values, runs = gathered(runner, [*experiments, *trained])
    baselines = ("base", "grpo") if "grpo" in arguments.methods and len(arguments.methods) > 1 else ("base",)
    title = "Held-out results, temperature 1"
    expected = claims(arguments.methods)
    report = Report(title, note(arguments), values, runs, MEASURES, baselines, LABELS, expected)
    finish(report, arguments, INTRODUCTION)


def parse_arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    made = parser("Diversity of methods on the quickstart's Countdown model.", BENCHMARK, seeds=5, methods=OVERLAYS)
    made.add_argument("--coef", type=float, default=0.05, help="coefficient of the reverse KL")
    made.add_argument("--eta-forward-kl", type=float, help="DPH's coefficient; by default that of its overlay")
    made.add_argument("--eta-js", type=float, help="DPH's coefficient; by default that of its overlay")
    return made.parse_args(given)


def shared_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Overrides of all runs. With one optimizer step a batch the ratio is 1, so clip ranges, which differ, never act;
    how tokens are averaged would differ too, and is made the same."""
    return {
        **common(arguments),
        "objective.aggregation": "token_mean",
        "evaluation": {"samples_per_prompt": SAMPLES, "k": list(KS), "prompts": arguments.eval_prompts},
    }


def particular(method: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Overrides of one method, over its overlay."""
    if method == "grpo":
        return {"objective.regularizers": []}
    if method == "grpo_rkl":
        return {"objective.regularizers": [{"divergence": "k2", "anchor": "frozen", "coef": arguments.coef}]}
    if method in ("dph_forward_kl", "dph_js"):
        eta = arguments.eta_forward_kl if method == "dph_forward_kl" else arguments.eta_js
        return {
            "data.strategy.prompts": 512,  # what is tried for the partition comes on top of the common budget
            **({"objective.regularizers.0.coef": eta} if eta is not None else {}),
        }
    return {}


def plan(arguments: argparse.Namespace, model: str | None) -> list[Experiment]:
    """All runs that train: every method with one seed before the next seed.

    Args:
        model: folder of the base; None: each seed warms one up, or finds the one it made.
    """
    alike = {
        **shared_settings(arguments),
        **(starting_from(model) if model else {}),
        "evaluation.before": False,
        "evaluation.after": True,
    }
    return [
        Experiment(
            BENCHMARK,
            method,
            seed,
            (CONFIG, METHODS / f"{OVERLAYS[method]}.yaml"),
            {**alike, **particular(method, arguments)},
        )
        for seed in range(arguments.seeds)
        for method in arguments.methods
    ]


def claims(methods: Sequence[str]) -> tuple[Claim, ...]:
    """What DPH-RL (arXiv 2509.07430) leads one to expect of the methods that were run."""
    k = f"pass@{KS[-1]}"
    made = [Claim(m, k, "below", "base") for m in methods if m in WITHOUT_COVER]
    for method in methods:
        if method not in WITHOUT_COVER:
            made.append(Claim(method, k, "not below", "base"))
            if "grpo" in methods:
                made += [Claim(method, k, "above", "grpo"), Claim(method, "pass@1", "not below", "grpo")]
    return tuple(made)


def note(arguments: argparse.Namespace) -> str:
    """What was run, in a sentence or two."""
    start = "one warmed-up model for all seeds" if arguments.shared_base else "a model warmed up for each seed"
    given = {"dph_forward_kl": arguments.eta_forward_kl, "dph_js": arguments.eta_js}
    coefs = [f"{LABELS[name]} {eta:g}" for name, eta in given.items() if eta is not None and name in arguments.methods]
    if "grpo_rkl" in arguments.methods:
        coefs.insert(0, f"{LABELS['grpo_rkl']} {arguments.coef:g}")
    others = f" Coefficients: {'; '.join(coefs)}; others as in the overlays." if coefs else ""
    return f"{size(arguments)}; {start}; {SAMPLES} responses to each of {arguments.eval_prompts} prompts.{others}"


INTRODUCTION = f"""\
# Diversity

Does reinforcement learning cost pass@{KS[-1]} while it raises pass@1, and do divergences that cover the modes of the base
keep it, as DPH-RL (arXiv 2509.07430) says?

```bash
python benchmarks/diversity.py --write docs/diversity.md
```

The model and the task are those of [the quickstart](../configs/quickstart.yaml): Countdown with three numbers. Every
method samples the same number of prompts and responses in each step and makes one update of them; tokens are averaged
alike, and with one update no clip range acts. Groups without a signal are kept: GPG does not sample further ones. The
reverse KL is k2 to the base. DPH tries 512 prompts before its first step, 9 responses each, and rehearses stored
responses beside those of the step, one for eight: that comes on top, and what it costs is in the seconds.

The entropy is the mean of -log p over sampled tokens; distinct correct is the number of different correct responses to
a prompt.
"""


if __name__ == "__main__":
    main()
