"""Comparisons of methods by whole runs: `rlpost train` once for each method and seed, and what the seeds say.

Runs come one after the other, each in a process of its own. One that is finished is not run again, so that a comparison
that was cut off goes on where it stopped.

Importable without torch, ray or vllm.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from rlpost import atomic
from rlpost.config import Config, load
from rlpost.observe import RunFolder
from rlpost.observe.sinks import read_metrics

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
METHODS = ROOT / "configs" / "methods"
LEVEL = 0.95

Values = Mapping[str, Mapping[int, Mapping[str, float]]]
"""Numbers by method, seed and measure."""


# ------------------------------------------------------------------------------------------------------------- runs


@dataclass(frozen=True)
class Experiment:
    """One run: a configuration, overlays and overrides.

    Attributes:
        benchmark, method, seed: make its name.
        files: the configuration, then what goes over it.
        overrides: by dotted key; over the files.
    """

    benchmark: str
    method: str
    seed: int
    files: tuple[Path, ...]
    overrides: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"{self.benchmark}-{self.method}-{self.seed}"

    def settings(self, runs: Path) -> list[str]:
        """The overrides as `key=value`, the value in JSON, which YAML reads; name, seed and place of the run last."""
        everything = {**self.overrides, "seed": self.seed, "name": self.name, "runs_dir": str(runs)}
        return [f"{key}={json.dumps(value)}" for key, value in everything.items()]

    def arguments(self, runs: Path) -> list[str]:
        """Of `rlpost`."""
        return ["train", *map(str, self.files), *self.settings(runs)]

    def config(self, runs: Path) -> Config:
        """
        Raises:
            ConfigError: it cannot run.
        """
        return load(self.files, self.settings(runs))


def execute(arguments: Sequence[str], log: Path, deadline: float) -> None:
    """Run `rlpost` in a process of its own, its output in `log`.

    Raises:
        SystemExit: it failed or took longer than `deadline` seconds; with the last lines of its output.
    """
    # A Ray cluster that is up for something else must not take part.
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with log.open("w") as output:
            code = subprocess.run(
                [sys.executable, "-m", "rlpost.cli", *arguments],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=deadline,
                check=False,
            ).returncode
        ended = f"ended with exit code {code}" if code else None
    except subprocess.TimeoutExpired:
        ended = f"was stopped after {deadline:g} seconds; more are given by --deadline"
    if ended:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-40:])
        sys.exit(f"{tail}\n\n{log.stem} {ended}; the last lines of {log} are above")


class Runner:
    """Runs experiments that are not finished yet; their folders and logs lie in `runs`."""

    def __init__(
        self,
        runs: Path,
        deadline: float,
        say: Callable[[str], None] = print,
        execute: Callable[[Sequence[str], Path, float], None] = execute,
    ) -> None:
        """
        Args:
            deadline: seconds each run may take.
            execute: runs `rlpost` with these arguments, a log and a deadline.
        """
        self.runs = runs.expanduser().resolve()
        self.deadline = deadline
        self.say = say
        self.execute = execute

    def folder(self, experiment: Experiment) -> RunFolder:
        return RunFolder(self.runs / experiment.name)

    def run(self, experiments: Iterable[Experiment]) -> None:
        """Run them in this order. Each configuration is checked before the first one starts.

        Raises:
            SystemExit: a run failed, or one of this name is there that was made with other settings.
            ConfigError: a configuration cannot run, or another process is writing its folder.
        """
        experiments = list(experiments)
        configs = [e.config(self.runs) for e in experiments]
        pending = [e for e, config in zip(experiments, configs, strict=True) if not self.is_finished(e, config)]
        if done := len(experiments) - len(pending):
            self.say(f"{done} of {len(experiments)} runs are finished already in {self.runs}")
        for number, experiment in enumerate(pending, start=1):
            self.discard_unfinished(experiment)
            self.say(f"[{number}/{len(pending)}] {experiment.name} ...")
            began = time.monotonic()
            log = self.runs / "logs" / f"{experiment.name}.log"
            self.execute(experiment.arguments(self.runs), log, self.deadline)
            if not self.folder(experiment).summary.is_file():
                sys.exit(f"{experiment.name} ended without {self.folder(experiment).summary}; its output is in {log}")
            self.say(f"[{number}/{len(pending)}] {experiment.name}: {time.monotonic() - began:.0f} s")

    def is_finished(self, experiment: Experiment, config: Config) -> bool:
        """Whether its results are there; a run of its name with other settings is refused, not taken for it."""
        folder = self.folder(experiment)
        if not folder.summary.is_file():
            return False
        now, then = config.model_dump(mode="json"), load([folder.config]).model_dump(mode="json")
        if changed := sorted(differing(now, then)):
            sys.exit(
                f"{folder.path} is a finished run with other settings ({', '.join(changed)}): give another --runs-dir, "
                "or remove the folder to run it again"
            )
        return True

    def discard_unfinished(self, experiment: Experiment) -> None:
        """Remove what a run that was cut off has left: `rlpost train` begins in no folder that holds a run."""
        folder = self.folder(experiment)
        if not folder.path.exists():
            return
        folder.lock()  # refused while another process writes it
        try:
            self.say(f"{experiment.name} was cut off: it starts again")
            shutil.rmtree(folder.path)
        finally:
            folder.close()


def differing(one: Any, other: Any, place: str = "") -> list[str]:
    """Dotted keys at which two nested mappings differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = dict.fromkeys([*one, *other])
        return [
            found for key in keys for found in differing(one.get(key), other.get(key), f"{place}.{key}".lstrip("."))
        ]
    return [] if one == other else [place]


# ---------------------------------------------------------------------------------------------------------- results


def summary(folder: RunFolder) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(folder.summary.read_text())
    return loaded


def evaluation(folder: RunFolder) -> dict[str, list[float]]:
    """[value, low, high] of the last evaluation of a run, by name; the interval is over prompts."""
    found = summary(folder)["eval"]
    last: dict[str, list[float]] = found.get("after") or found["before"]
    return last


def measured(folder: RunFolder) -> dict[str, float]:
    """The last evaluation of a run in numbers, and what it took.

    Beside what `rlpost.run.evaluation` measures: `steps`; `setup_seconds`, all before the first step; `step_seconds`, the
    mean over steps; `length`, the mean number of tokens in the responses of the last five steps, sampled to learn from.
    """
    numbers = {name: interval[0] for name, interval in evaluation(folder).items()}
    steps = [row for row in read_metrics(folder.metrics) if "when" not in row]
    numbers["steps"] = len(steps)
    if steps:
        numbers["setup_seconds"] = steps[0]["time/elapsed"] - steps[0]["time/total"]
        numbers["step_seconds"] = statistics.fmean(row["time/total"] for row in steps)
        numbers["length"] = statistics.fmean(row["length/mean"] for row in steps[-5:])
    return numbers


# ------------------------------------------------------------------------------------------------------- statistics


def t_quantile(level: float, freedom: int) -> float:
    """t with P(|T| <= t) = `level` for Student's T with a whole number of degrees of freedom.

    With theta = atan(t / sqrt(n)) the probability is a finite sum of powers of cos(theta) (Abramowitz and Stegun,
    26.7.3 and 26.7.4), which rises with theta: it is bisected.

    Raises:
        ValueError: unless 0 < level < 1 and freedom >= 1.
    """
    if not 0 < level < 1 or freedom < 1:
        raise ValueError(f"no quantile for level {level} and {freedom} degrees of freedom")

    def within(theta: float) -> float:
        cosine, odd = math.cos(theta), freedom % 2
        power, total = (cosine if odd else 1.0), 0.0
        for i in range(1 + odd, freedom, 2):
            total += power
            power *= cosine**2 * i / (i + 1)
        return 2 / math.pi * (theta + math.sin(theta) * total) if odd else math.sin(theta) * total

    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < level else (low, middle)
    return math.tan(low) * math.sqrt(freedom)


@dataclass(frozen=True)
class Spread:
    """A number over seeds.

    Attributes:
        mean: over seeds.
        half: half the width of the 95 % t-interval of the mean; None with a single seed, which has no spread.
        least, most: of all seeds.
        seeds: how many.
    """

    mean: float
    half: float | None
    least: float
    most: float
    seeds: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """
        Raises:
            ValueError: there are none.
        """
        values = list(values)
        if not values:
            raise ValueError("nothing was measured: the mean of no seeds is not defined")
        n = len(values)
        half = t_quantile(LEVEL, n - 1) * statistics.stdev(values) / math.sqrt(n) if n > 1 else None
        return cls(statistics.fmean(values), half, min(values), max(values), n)

    @property
    def low(self) -> float:
        """Lower end of the interval; minus infinity where there is none."""
        return self.mean - self.half if self.half is not None else -math.inf

    @property
    def high(self) -> float:
        return self.mean + self.half if self.half is not None else math.inf

    def text(self, digits: int, signed: bool = False) -> str:
        sign = "+" if signed else ""
        mean = f"{self.mean:{sign}.{digits}f}"
        if self.half is None:
            return mean
        return f"{mean} ± {self.half:.{digits}f} ({self.least:{sign}.{digits}f} to {self.most:{sign}.{digits}f})"


Spreads = dict[str, dict[str, Spread]]
"""By method and measure."""


def over_seeds(values: Values) -> Spreads:
    """Each measure that all seeds of a method have."""
    return {
        method: {name: Spread.of(row[name] for row in seeds.values()) for name in _shared(seeds.values())}
        for method, seeds in values.items()
    }


def differences(values: Values, baseline: str) -> Spreads:
    """Of every other method less the baseline, seed by seed: what a seed does to both is gone from the interval.

    Raises:
        ValueError: there is no such method, or another has other seeds.
    """
    if baseline not in values:
        raise ValueError(f"no baseline {baseline!r} among {', '.join(values)}")
    base = values[baseline]
    found: Spreads = {}
    for method, seeds in values.items():
        if method == baseline:
            continue
        if seeds.keys() != base.keys():
            raise ValueError(
                f"{method} has seeds {sorted(seeds)}, {baseline} {sorted(base)}: differences are of the same seeds"
            )
        names = _shared([*seeds.values(), *base.values()])
        found[method] = {name: Spread.of(row[name] - base[seed][name] for seed, row in seeds.items()) for name in names}
    return found


def _shared(rows: Iterable[Mapping[str, float]]) -> list[str]:
    """The names that all rows have, in the order of the first."""
    first, *rest = rows
    return [name for name in first if all(name in row for row in rest)]


@dataclass(frozen=True)
class Claim:
    """What a paper leads one to expect of the difference between two methods in one measure."""

    method: str
    measure: str
    expected: Literal["below", "above", "not below"]
    baseline: str

    def verdict(self, found: Spread) -> str:
        """What the 95 % interval of the difference says of it. That nothing is lost can be refuted, not shown."""
        if found.half is None:
            return "open: one seed has no interval"
        if self.expected == "not below":
            if found.high < 0:
                return "contradicted"
            return "seen" if found.low >= 0 else f"not contradicted: a loss of up to {-found.low:.3f} is possible"
        if found.low <= 0 <= found.high:
            return "not seen: the interval holds 0"
        return "seen" if (found.high < 0) == (self.expected == "below") else "contradicted"


# ---------------------------------------------------------------------------------------------------------- reports


@dataclass(frozen=True)
class Measure:
    """A column: the key of the number, its title, digits after the point; `plotted` has a panel of the plot."""

    key: str
    title: str
    digits: int = 3
    plotted: bool = True


@dataclass(frozen=True)
class Report:
    """What the runs of a benchmark say, ready to be shown.

    Attributes:
        note: what was run.
        runs: by name, what each was measured at, with its intervals over prompts.
        baselines: methods that the others are compared with.
        labels: of the methods, in the order of the rows.
    """

    title: str
    note: str
    values: Values
    runs: Mapping[str, Mapping[str, Any]]
    measures: tuple[Measure, ...]
    baselines: tuple[str, ...]
    labels: Mapping[str, str]
    claims: tuple[Claim, ...] = ()

    def tables(self) -> list[tuple[str, list[list[str]]]]:
        """(title, rows); the first row has the headings."""
        made = [(self.title, self._rows(over_seeds(self.values), signed=False))]
        for baseline in self.baselines:
            title = f"Difference to {self.labels[baseline]}, paired by seed"
            made.append((title, self._rows(differences(self.values, baseline), signed=True)))
        if self.claims:
            made.append(("What was expected", self._expectations()))
        return made

    def _rows(self, spreads: Spreads, signed: bool) -> list[list[str]]:
        measures = [m for m in self.measures if any(m.key in row for row in spreads.values())]
        rows = [["", *(m.title for m in measures)]]
        for method, row in spreads.items():
            cells = [row[m.key].text(m.digits, signed) if m.key in row else "–" for m in measures]
            rows.append([self.labels[method], *cells])
        if not signed:
            half = self.over_prompts()
            cells = [f"± {half[m.key]:.{m.digits}f}" if m.key in half else "–" for m in measures]
            rows.append(["one run, over prompts", *cells])
        return rows

    def _expectations(self) -> list[list[str]]:
        rows = [["method", "measure", "expected", "difference", "found"]]
        titles = {m.key: m.title for m in self.measures}
        for claim in self.claims:
            found = differences(self.values, claim.baseline)[claim.method][claim.measure]
            expected = f"{claim.expected} {self.labels[claim.baseline]}"
            label, title = self.labels[claim.method], titles[claim.measure]
            rows.append([label, title, expected, found.text(3, signed=True), claim.verdict(found)])
        return rows

    def over_prompts(self) -> dict[str, float]:
        """Half the width of the bootstrap interval over prompts, the mean of all runs, by measure."""
        found: dict[str, list[float]] = {}
        for run in self.runs.values():
            for name, (_, low, high) in run["over_prompts"].items():
                found.setdefault(name, []).append((high - low) / 2)
        return {name: statistics.fmean(halves) for name, halves in found.items()}

    def show(self, console: Console) -> None:
        for title, (headings, *rows) in self.tables():
            table = Table(title=title, title_justify="left")
            for heading in headings:
                table.add_column(heading, justify="right" if heading else "left")
            for row in rows:
                table.add_row(*(cell.replace(" (", "\n(") for cell in row))  # the range below, or columns are cut
            console.print(table)
        console.print(f"{self.note}\n{HOW_TO_READ}", highlight=False)

    def write_json(self, path: Path, settings: Mapping[str, Any]) -> None:
        """All numbers, with the settings of the benchmark."""
        path.parent.mkdir(parents=True, exist_ok=True)
        plain = {"over_seeds": over_seeds(self.values)}
        plain |= {f"less_{baseline}": differences(self.values, baseline) for baseline in self.baselines}
        found = {
            name: {method: {key: asdict(s) for key, s in row.items()} for method, row in spreads.items()}
            for name, spreads in plain.items()
        }
        atomic.write_json(path, {"settings": settings, **found, "runs": self.runs})

    def write_page(self, path: Path, introduction: str) -> None:
        """A page in Markdown with the tables and, beside it, the plot. Of a page that is there only these are renewed.

        Args:
            introduction: of a new page: heading and what was done.

        Raises:
            ValueError: the page has no place for results.
        """
        plot = path.with_suffix(".svg")
        self.plot(plot)
        parts = [BEGIN, f"![{self.title}]({plot.name})"]
        for title, (headings, *rows) in self.tables():
            lines = [headings, ["---"] * len(headings), *rows]
            parts.append(f"**{title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
        block = "\n\n".join([*parts, self.note, HOW_TO_READ, END])
        if not path.exists():
            path.write_text(f"{introduction.strip()}\n\n## Results\n\n{block}\n\n## Reading\n\n{UNREAD}\n")
            return
        before, begin, rest = path.read_text().partition(BEGIN)
        _, end, after = rest.partition(END)
        if not begin or not end:
            raise ValueError(f"{path} has no lines {BEGIN} and {END}, between which results go: add them")
        path.write_text(before + block + after)

    def plot(self, path: Path) -> None:
        """A panel for each measure: mean and interval of each method, a faint dot for each seed."""
        import matplotlib
        from matplotlib.figure import Figure

        spreads = over_seeds(self.values)
        panels = [m for m in self.measures if m.plotted]
        methods = list(self.values)[::-1]
        # The same numbers give the same file; text stays text, as outlines of letters would be most of the file.
        with matplotlib.rc_context({"svg.hashsalt": "rlpost", "svg.fonttype": "none", "font.size": 9}):
            figure = Figure(figsize=(2.2 * len(panels) + 1.5, 0.42 * len(methods) + 1.1), layout="constrained")
            axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
            for axis, measure in zip(axes, panels, strict=True):
                for row, method in enumerate(methods):
                    if measure.key not in spreads[method]:
                        continue
                    spread = spreads[method][measure.key]
                    seeds = [numbers[measure.key] for numbers in self.values[method].values()]
                    axis.plot(seeds, [row] * len(seeds), "o", color="tab:blue", alpha=0.25, markersize=4)
                    axis.errorbar(spread.mean, row, xerr=spread.half, fmt="o", color="tab:blue", capsize=3)
                reference = spreads[self.baselines[0]].get(measure.key)
                if reference is not None:
                    axis.axvline(reference.mean, color="grey", linestyle=":", linewidth=1)
                axis.set_title(measure.title, fontsize=9)
                axis.set_yticks(range(len(methods)), [self.labels[m] for m in methods])
                axis.grid(axis="x", alpha=0.3)
                axis.margins(y=0.1)
            figure.savefig(path, format="svg", metadata={"Date": None})


BEGIN, END = "<!-- results: written by the benchmark -->", "<!-- end of results -->"
UNREAD = "To be written: what of the expectations was seen, and what was not."
HOW_TO_READ = (
    "Mean over seeds ± half of its 95 % t-interval (least to most of the seeds). The last row of the first table is "
    "half of a single run's 95 % bootstrap interval over prompts. No correction is made for the number of comparisons."
)


# --------------------------------------------------------------------------------------------------------- a command


def parser(description: str, name: str, seeds: int, methods: Iterable[str]) -> argparse.ArgumentParser:
    """The options that all comparisons have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--seeds", type=positive, default=seeds, help="runs of each method; seeds 0, 1, ...")
    made.add_argument("--steps", type=positive, default=60, help="training steps")
    made.add_argument("--prompts", type=positive, default=64, help="prompts per step")
    made.add_argument("--eval-prompts", type=positive, default=150, help="held-out prompts")
    made.add_argument("--methods", nargs="+", choices=list(methods), default=list(methods), help="what is compared")
    made.add_argument(
        "--shared-base",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="all seeds start from one warmed-up model; or each from one of its own",
    )
    made.add_argument("--runs-dir", type=Path, default=ROOT / "runs" / name, help="where runs go, finished ones stay")
    made.add_argument("--threads", type=positive, help="CPU threads of engine and learner; by default rlpost's choice")
    made.add_argument("--deadline", type=positive, default=3600, help="seconds one run may take")
    made.add_argument("--out", type=Path, default=HERE / "results" / f"{name}.json", help="JSON file to write")
    made.add_argument("--write", type=Path, help="page to write tables and plot to, such as docs/" + name + ".md")
    return made


def positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def common(arguments: argparse.Namespace) -> dict[str, Any]:
    """Overrides of every run of a comparison: its size, one evaluation, and no records that nobody will read.

    Groups without a signal are kept by every method: none samples more, or learns from fewer, than another.
    """
    return {
        "steps": arguments.steps,
        "learner.prompts_per_step": arguments.prompts,
        "data.groups.no_signal": "keep",
        "checkpoint.every": 0,
        "observe.rollouts": False,
        "observe.sinks": [],
        "observe.console": "plain",
        **({f"{part}.threads": arguments.threads for part in ("rollout", "learner")} if arguments.threads else {}),
    }


def bases(benchmark: str, file: Path, overrides: Mapping[str, Any], seeds: int, shared: str | None) -> list[Experiment]:
    """The base of each seed as a run without a step, which warms it up and evaluates it.

    Args:
        shared: folder of a warmed-up model for all seeds but 0, which makes it; None: each seed makes its own.
    """
    alike = {**overrides, "steps": 0, "evaluation.before": True, "evaluation.after": False}
    return [
        Experiment(benchmark, "base", seed, (file,), {**alike, **(starting_from(shared) if shared and seed else {})})
        for seed in range(seeds)
    ]


def starting_from(model: str) -> dict[str, Any]:
    """Overrides to start from a model's folder."""
    return {"model.path": model, "model.create": None, "warmup": None}


def run_bases(
    runner: Runner, benchmark: str, file: Path, overrides: Mapping[str, Any], seeds: int, shared: bool
) -> tuple[list[Experiment], str | None]:
    """The finished bases, and the folder of the model that all seeds start from, if they share one."""
    if not shared:
        experiments = bases(benchmark, file, overrides, seeds, None)
        runner.run(experiments)
        return experiments, None
    first = bases(benchmark, file, overrides, 1, None)
    runner.run(first)
    model: str = summary(runner.folder(first[0]))["base"]
    experiments = bases(benchmark, file, overrides, seeds, model)
    runner.run(experiments)
    return experiments, model


def gathered(runner: Runner, experiments: Iterable[Experiment]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(values, runs) of finished experiments, as `Report` takes them."""
    values: dict[str, dict[int, dict[str, float]]] = {}
    runs: dict[str, Any] = {}
    for experiment in experiments:
        folder = runner.folder(experiment)
        numbers = measured(folder)
        values.setdefault(experiment.method, {})[experiment.seed] = numbers
        manifest = json.loads(folder.manifest.read_text())
        runs[experiment.name] = {
            "measured": numbers,
            "over_prompts": evaluation(folder),
            "seconds": summary(folder)["seconds"],
            **{key: manifest[key] for key in ("versions", "git") if key in manifest},
        }
    return values, runs


def size(arguments: argparse.Namespace) -> str:
    """How much was run, and where, as the beginning of a sentence."""
    return (
        f"{arguments.seeds} seed(s) of {arguments.steps} steps with {arguments.prompts} prompts each on "
        f"{os.cpu_count()} CPU cores"
    )


def finish(report: Report, arguments: argparse.Namespace, introduction: str) -> None:
    """Show, write the JSON and, when asked, the page."""
    console = Console(width=max(140, Console().width))
    report.show(console)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    report.write_json(arguments.out, settings)
    console.print(f"written to {arguments.out}", highlight=False)
    if arguments.write:
        report.write_page(arguments.write, introduction)
        console.print(f"written to {arguments.write} and {arguments.write.with_suffix('.svg')}", highlight=False)
