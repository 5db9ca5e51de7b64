"""Does a mixture of experts train more stably when the learner replays the engine's routes?

    python benchmarks/moe_stability.py --write docs/moe_stability.md

See benchmarks/README.md for what is compared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments import (
    ROOT,
    Claim,
    Experiment,
    Measure,
    Report,
    Runner,
    bases,
    common,
    execute,
    finish,
    over_seeds,
    parser,
    positive,
    size,
    starting_from,
    summary,
)

from rlpost import atomic
from rlpost.observe import RunFolder
from rlpost.observe.sinks import read_metrics

BENCHMARK = "moe_stability"
CONFIG = ROOT / "configs" / "moe_tiny_cpu.yaml"
ALARM = 4  # exit code of a run that an alarm ended
LABELS = {"off": "no replay", "r3": "R3", "r2": "R2", "tis": "TIS"}
COLOURS = {"off": "tab:red", "r3": "tab:blue", "r2": "tab:green", "tis": "tab:orange"}
VARIANTS: dict[str, dict[str, Any]] = {
    "off": {"routing.replay": "off"},
    "r3": {"routing.replay": "r3"},
    "r2": {"routing.replay": "r2"},
    "tis": {
        "routing.replay": "off",
        "objective.corrections": [{"name": "importance", "level": "token", "mode": "truncate", "high": 2.0}],
    },
}
MEASURES = (
    Measure("reward", "reward, last fifth"),
    Measure("best", "best reward"),
    Measure("pass@1", "held-out pass@1"),
    Measure("collapsed", "collapsed", digits=2),
    Measure("kl", "KL, 10⁻³ nats"),
    Measure("f2", "F(2), 10⁻³"),
    Measure("agreement", "routings that agree"),
    Measure("entropy", "entropy, last fifth"),
    Measure("grad_norm", "gradient norm"),
    Measure("step_seconds", "s per step", digits=2),
)
CURVES = {"reward/mean": "reward", "mismatch/kl": "KL(engine ‖ learner), nats", "entropy": "entropy, nats a token"}
LOGARITHMIC = ("mismatch/kl",)
# What the mismatch does to training is what is looked at, so no alarm may end a run because of it.
NO_ALARM = 1e9


def main() -> None:
    arguments = parse_arguments()
    runner = Runner(arguments.runs_dir, arguments.deadline, execute=keeping_alarms)
    model = base(runner, arguments)
    os.environ["RLPOST_FAULTS"] = f"router.noise:{arguments.noise:g}" if arguments.noise else ""
    experiments = plan(arguments, model)
    runner.run(experiments)
    report = made_report(runner, experiments, arguments)
    finish(report, arguments, INTRODUCTION)


def parse_arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    made = parser("GRPO on a small mixture of experts with disturbed routers.", BENCHMARK, seeds=3, methods=VARIANTS)
    made.set_defaults(methods=["off", "r3"], steps=60, prompts=32, eval_prompts=100, deadline=3600)
    made.add_argument("--noise", type=float, default=0.1, help="of the engine's routers, a share of their spread")
    made.add_argument("--updates", type=positive, default=4, help="optimizer steps a batch")
    made.add_argument("--lr", type=float, default=1e-4, help="learning rate")
    made.add_argument("--warmup-steps", type=positive, default=500, help="steps on worked examples, before all")
    made.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the learner")
    return made.parse_args(given)


# --------------------------------------------------------------------------------------------------------------- runs


def base(runner: Runner, arguments: argparse.Namespace) -> str:
    """Folder of the warmed-up model that all runs start from; its routers are not disturbed."""
    os.environ.pop("RLPOST_FAULTS", None)
    settings = {**shared_settings(arguments), "warmup.steps": arguments.warmup_steps}
    first = bases(BENCHMARK, CONFIG, settings, 1, None)
    runner.run(first)
    model: str = summary(runner.folder(first[0]))["base"]
    return model


def shared_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Overrides of all runs."""
    return {
        **common(arguments),
        "model.dtype": arguments.dtype,
        "learner.lr": arguments.lr,
        "learner.optimizer_steps_per_batch": arguments.updates,
        "alarms": {"mismatch_kl": NO_ALARM, "no_signal_steps": arguments.steps + 1},
        "evaluation": {"before": False, "samples_per_prompt": 4, "k": [1, 4], "prompts": arguments.eval_prompts},
    }


def plan(arguments: argparse.Namespace, model: str) -> list[Experiment]:
    """All runs that train: every variant with one seed before the next seed.

    The disturbance is no part of a configuration, so it is part of a run's name: one with another is another run.
    """
    alike = {
        **shared_settings(arguments),
        **starting_from(model),
        "evaluation.before": False,
        "evaluation.after": True,
    }
    return [
        Experiment(f"{BENCHMARK}-noise{arguments.noise:g}", variant, seed, (CONFIG,), {**alike, **VARIANTS[variant]})
        for seed in range(arguments.seeds)
        for variant in arguments.methods
    ]


def keeping_alarms(arguments: Sequence[str], log: Path, deadline: float) -> None:
    """`execute`, for which a run that an alarm ended is a result: its summary says so.

    Raises:
        SystemExit: it ended in another way than well or by an alarm.
    """
    try:
        execute(arguments, log, deadline)
    except SystemExit as stop:
        if f"ended with exit code {ALARM};" not in str(stop):
            raise
        folder = RunFolder(log.parent.parent / log.stem)
        atomic.write_json(folder.summary, {"eval": {}, "stopped": str(stop), "seconds": 0.0})


# ------------------------------------------------------------------------------------------------------------ numbers


def collapsed(rewards: Sequence[float], stopped: bool) -> bool:
    """Whether a run is a collapse, as defined before the first was run: an alarm stopped it, or the mean reward of its
    last fifth of steps is below half of the best moving average over as many steps."""
    width = fifth(rewards)
    windows = [statistics.fmean(rewards[i : i + width]) for i in range(len(rewards) - width + 1)]
    return stopped or windows[-1] < max(windows) / 2


def fifth(values: Sequence[Any]) -> int:
    """How many steps the last fifth has."""
    return max(1, round(len(values) / 5))


def numbers(rows: Sequence[Mapping[str, float]], found: Mapping[str, Any]) -> dict[str, float]:
    """Of one run, by measure.

    Args:
        rows: metrics of its steps.
        found: its summary.
    """
    rewards, width = column(rows, "reward/mean"), fifth(rows)
    averages = [statistics.fmean(rewards[i : i + width]) for i in range(len(rewards) - width + 1)]
    made = {
        "reward": averages[-1],
        "best": max(averages),
        "collapsed": float(collapsed(rewards, "stopped" in found)),
        "step_seconds": statistics.fmean(column(rows, "time/total")),
    }
    for key, name, scale in (("kl", "mismatch/kl", 1e3), ("f2", "mismatch/f2", 1e3), ("grad_norm", "grad_norm", 1.0)):
        made[key] = scale * statistics.fmean(column(rows, name))
    made["entropy"] = statistics.fmean(column(rows, "entropy")[-width:])
    if agreement := column(rows, "routing/agreement"):
        made["agreement"] = statistics.fmean(agreement)
    if after := found["eval"].get("after"):
        made["pass@1"] = after["pass@1"][0]
    return made


def column(rows: Sequence[Mapping[str, float]], name: str) -> list[float]:
    """A metric of the steps that have it: one from which nothing was learned has no loss and no mismatch."""
    return [row[name] for row in rows if name in row]


def steps_of(folder: RunFolder) -> list[dict[str, Any]]:
    return [row for row in read_metrics(folder.metrics) if "when" not in row]


def claims(variants: Sequence[str]) -> tuple[Claim, ...]:
    """What the paper of R3 (arXiv 2510.11370) leads one to expect against training without replay."""
    if "off" not in variants:
        return ()
    made = [Claim("r3", m, "below", "off") for m in ("kl", "f2", "collapsed")] if "r3" in variants else []
    if "r3" in variants:
        made += [Claim("r3", "reward", "above", "off"), Claim("r3", "pass@1", "above", "off")]
    return tuple(made)


# ------------------------------------------------------------------------------------------------------------- report


@dataclass(frozen=True)
class Curves(Report):
    """The report of experiments, with a plot over steps and a reading of its own.

    Attributes:
        steps: metrics of the steps, by variant and seed.
    """

    steps: Mapping[str, Mapping[int, Sequence[Mapping[str, float]]]] = field(default_factory=dict)

    def reading(self) -> list[str]:
        """What the numbers say."""
        said = []
        for variant, seeds in self.values.items():
            ended = [seed for seed, row in seeds.items() if row["collapsed"]]
            named = f" (seed {', '.join(map(str, ended))})" if ended else ""
            said.append(f"{self.labels[variant]}: {len(ended)} of {len(seeds)} runs collapsed{named}.")
        if self.claims:
            _, *rows = self._expectations()
            said += [f"{row[0]}, {row[1]} {row[2]}: {row[4]} ({row[3]})." for row in rows]
            if not any(row["collapsed"] for row in self.values["off"].values()):
                said.append(
                    "No run without replay collapsed, so these runs cannot show that replay prevents a collapse."
                )
        if within := paired(self.steps.get("r3", {})):
            said.append(within)
        return said

    def write_page(self, path: Path, introduction: str) -> None:
        """The whole page, and the plot beside it."""
        plot = path.with_suffix(".svg")
        self.plot(plot)
        parts = [introduction.strip(), "## Results", f"![{self.title}]({plot.name})"]
        for title, (headings, *rows) in self.tables():
            lines = [headings, ["---"] * len(headings), *rows]
            parts.append(f"**{title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
        parts += [self.note, HOW_TO_READ, "## Reading", "\n".join(f"- {line}" for line in self.reading())]
        path.write_text("\n\n".join(parts) + "\n")

    def plot(self, path: Path) -> None:
        """A panel for each curve: by step the mean over seeds, and the least and most of them."""
        import matplotlib
        from matplotlib.figure import Figure

        with matplotlib.rc_context({"svg.hashsalt": "rlpost", "svg.fonttype": "none", "font.size": 9}):
            figure = Figure(figsize=(3.4 * len(CURVES), 2.9), layout="constrained")
            axes = figure.subplots(1, len(CURVES), squeeze=False)[0]
            for axis, (name, title) in zip(axes, CURVES.items(), strict=True):
                for variant, seeds in self.steps.items():
                    at, mean, least, most = band([by_step(rows, name) for rows in seeds.values()])
                    axis.plot(at, mean, color=COLOURS[variant], label=self.labels[variant], linewidth=1.2)
                    axis.fill_between(at, least, most, color=COLOURS[variant], alpha=0.2, linewidth=0)
                if name in LOGARITHMIC:
                    axis.set_yscale("log")
                axis.set_title(title, fontsize=9)
                axis.set_xlabel("step")
                axis.grid(alpha=0.3)
            figure.legend(*axis.get_legend_handles_labels(), loc="outside right center", frameon=False)
            figure.savefig(path, format="svg", metadata={"Date": None})


def by_step(rows: Sequence[Mapping[str, float]], name: str) -> dict[int, float]:
    return {int(row["step"]): row[name] for row in rows if name in row}


def band(seeds: Sequence[Mapping[int, float]]) -> tuple[list[int], list[float], list[float], list[float]]:
    """(steps, mean, least, most) over the seeds that have a step; runs that ended earlier have no further part."""
    at = sorted({step for seed in seeds for step in seed})
    values = [[seed[step] for seed in seeds if step in seed] for step in at]
    return at, [statistics.fmean(v) for v in values], [min(v) for v in values], [max(v) for v in values]


def paired(runs: Mapping[int, Sequence[Mapping[str, float]]]) -> str | None:
    """With and without replay on the same micro-batches of the same R3 runs; None where it was not measured."""
    rows = [
        row for steps in runs.values() for row in steps if "mismatch_live/kl" in row and "mismatch_replay/kl" in row
    ]
    if not rows:
        return None
    live, replay = (statistics.fmean(row[f"mismatch_{how}/kl"] for row in rows) for how in ("live", "replay"))
    return (
        f"Within the R3 runs, on the first micro-batch of each step: KL {live:.2e} nats with live routers and {replay:.2e} "
        f"with replay, {live / replay if replay else float('inf'):.3g} times less; with the router noise, a part of what "
        "is left is the noise in the weights of the experts, which replay does not take away."
    )


def made_report(runner: Runner, experiments: Sequence[Experiment], arguments: argparse.Namespace) -> Curves:
    """The report of finished runs."""
    values: dict[str, dict[int, dict[str, float]]] = {}
    steps: dict[str, dict[int, list[dict[str, Any]]]] = {}
    runs: dict[str, Any] = {}
    for experiment in experiments:
        folder = runner.folder(experiment)
        found, rows = summary(folder), steps_of(folder)
        steps.setdefault(experiment.method, {})[experiment.seed] = rows
        values.setdefault(experiment.method, {})[experiment.seed] = numbers(rows, found)
        manifest = json.loads(folder.manifest.read_text())
        runs[experiment.name] = {
            "measured": values[experiment.method][experiment.seed],
            "over_prompts": found["eval"].get("after", {}),
            "stopped": found.get("stopped"),
            "by_step": {
                name: [row.get(name) for row in rows]
                for name in (*CURVES, "mismatch/f2", "grad_norm", "routing/agreement")
            },
            **{key: manifest[key] for key in ("versions", "git") if key in manifest},
        }
    baselines = ("off",) if "off" in values and len(values) > 1 else ()
    return Curves(
        "Training with disturbed routers",
        note(arguments),
        values,
        runs,
        MEASURES,
        baselines,
        LABELS,
        usable(claims(arguments.methods), values),
        steps=steps,
    )


def usable(expected: Sequence[Claim], values: Mapping[str, Mapping[int, Mapping[str, float]]]) -> tuple[Claim, ...]:
    """The claims whose measure all runs of both variants have."""
    measured = over_seeds(values)
    return tuple(c for c in expected if c.measure in measured[c.method] and c.measure in measured[c.baseline])


def note(arguments: argparse.Namespace) -> str:
    """What was run, in a sentence or two."""
    return (
        f"{size(arguments)}; one warmed-up model for all runs; {arguments.updates} optimizer steps a batch, learning rate "
        f"{arguments.lr:g}, learner in {arguments.dtype}, engine in bfloat16, its routers with noise of {arguments.noise:g} "
        "of their spread, drawn anew with every weight update and alike in all runs."
    )


HOW_TO_READ = (
    "Mean over seeds ± half of its 95 % t-interval (least to most of the seeds). KL, F(2), agreement and gradient norm "
    "are means over all steps; agreement is known only where routes are replayed. A collapse counts 1."
)
INTRODUCTION = """\
# Stability of a mixture of experts

Does training with several updates a batch stay stable when engine and learner choose different experts, and does
replaying the engine's choice (R3, arXiv 2510.11370) help?

```bash
python benchmarks/moe_stability.py --write docs/moe_stability.md
```

Made by that command, all of it.

The model and the task are those of [configs/moe_tiny_cpu.yaml](../configs/moe_tiny_cpu.yaml): Countdown with three
numbers and a small mixture of experts, GRPO with clipping. The routers that the engine gets are disturbed
(`RLPOST_FAULTS=router.noise`), in all runs alike, so that the two choose differently more often than rounding alone would
have them. What samples for the held-out evaluation is disturbed too. With replay the learner takes the engine's choice
and weighs the experts with its own routers.

A run has collapsed when the mean reward of its last fifth of steps is below half of its best moving average over as many
steps, or when an alarm stopped it. The alarms for the mismatch and for steps without a signal are out of the way
(`alarms.mismatch_kl`, `alarms.no_signal_steps`): with their defaults they could end such runs before they collapse.

The curves are the mean over seeds, and the least and most of them. KL is that between the engine and the learner as it
learns: with replay, under replay.
"""


if __name__ == "__main__":
    main()
