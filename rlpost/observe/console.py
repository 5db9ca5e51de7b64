"""What a person sees while a run runs: a live panel on a terminal, one line a step elsewhere."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

from rich.console import Console as RichConsole
from rich.console import Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

Mode = Literal["auto", "live", "plain", "off"]
Interval = tuple[float, float, float]

PHASES = ("generate", "verify", "learn", "drain", "sync", "total")
_AT_TIMES = ("drain",)  # where sampling overlaps learning
_SHOWN = (
    ("reward", "reward/mean"),
    ("pass@1", "train/pass@1"),
    ("length", "length/mean"),
    ("mismatch", "mismatch/logp_abs_max"),
    ("entropy", "entropy"),
    ("grad norm", "grad_norm"),
    ("lr", "lr"),
    ("staleness", "staleness/max"),
    ("tokens/s", "tokens_per_second"),
)
_TREND = 40  # steps the sparkline shows
_COLUMNS = 5
_RECENT = 20  # steps whose median time predicts the time left


class Console:
    """The run's voice. A context manager: leaving it, also by an exception, gives the terminal back as it was.

    Args:
        mode: "live" is a panel that stays in place, "plain" one line a step, "off" only warnings; "auto" is live on
            a terminal and plain elsewhere.
        total_steps: of the whole run; None while that is not known, until `lasts`.
        out: where to write; standard output by default.
    """

    def __init__(self, mode: Mode, total_steps: int | None, out: RichConsole | None = None) -> None:
        self._out = out or RichConsole()
        self.mode: Mode = mode if mode != "auto" else ("live" if self._out.is_terminal else "plain")
        self._total_steps = total_steps or 0
        self._step = 0
        # The panel is drawn by a thread of rich: what it reads is replaced whole, never changed in place.
        self._metrics: dict[str, float] = {}
        self._rewards: tuple[float, ...] = ()
        self._seconds: tuple[float, ...] = ()
        self._phase = ""
        self._phase_since = time.monotonic()
        self._announced: set[str] = set()
        self._live: Live | None = None

    @property
    def doing(self) -> str:
        """What happens now, as `phase` was told."""
        return self._phase

    def lasts(self, total_steps: int) -> None:
        """How many steps the whole run has."""
        self._total_steps = total_steps

    def __enter__(self) -> Console:
        if self.mode == "live" and self._live is None:
            self._live = Live(console=self._out, get_renderable=self._panel, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the live panel as it stands and show the cursor again."""
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of a finished step; what is missing is shown as `-`."""
        self._step = step
        self._metrics = dict(metrics)
        if "reward/mean" in metrics:
            self._rewards = (*self._rewards, metrics["reward/mean"])[-_TREND:]
        if "time/total" in metrics:
            self._seconds = (*self._seconds, metrics["time/total"])[-_RECENT:]
        if self._live is not None:
            self._live.refresh()
        elif self.mode != "off":
            self._print(self._line())

    def phase(self, text: str) -> None:
        """Say what happens now, such as "starting engines"; without a panel each text is said once, not every step."""
        self._phase, self._phase_since = text, time.monotonic()
        if self._live is None and self.mode != "off" and text not in self._announced:
            self._announced.add(text)
            self._print(text)

    def info(self, text: str) -> None:
        if self.mode != "off":
            self._print(text)

    def warn(self, text: str) -> None:
        """Say what may be wrong; shown in every mode."""
        self._print(f"warning: {text}", style="yellow")

    def evaluation(self, title: str, table: Mapping[str, Interval]) -> None:
        """Show an evaluation: {name: (value, low, high)}."""
        self.info(f"{title}  " + "  ".join(f"{name} {_interval(interval)}" for name, interval in table.items()))

    def summary(
        self,
        before: Mapping[str, Interval],
        after: Mapping[str, Interval],
        steps: int,
        seconds: float,
        paths: Mapping[str, str | Path],
    ) -> None:
        """The end of a run: evaluations before and after with their 95% intervals, totals, and what lies where."""
        if self.mode == "off":
            return
        self.close()
        rows = [("", "before [95%]", "after [95%]", "difference")] if before or after else []
        for name in dict.fromkeys([*before, *after]):
            both = name in before and name in after
            difference = f"{after[name][0] - before[name][0]:+.3f}" if both else "-"
            rows.append((name, _interval(before.get(name)), _interval(after.get(name)), difference))
        first = max((len(row[0]) for row in rows), default=0)
        for row in rows:
            self._print(f"{row[0]:<{first}}  {row[1]:<20}  {row[2]:<20}  {row[3]}")
        self._print(f"{steps} steps in {_duration(seconds)}")
        width = max((len(name) for name in paths), default=0)
        for name, path in paths.items():
            self._print(f"{name:<{width}}  {path}")

    def _print(self, text: str, style: str | None = None) -> None:
        # Not markup: texts hold brackets, and paths must stay on one line to be copied.
        self._out.print(Text(text, style=style or ""), soft_wrap=True, highlight=False)

    def _line(self) -> str:
        parts = [f"step {self._step}/{self._total_steps}"]
        parts += [f"{label} {_number(self._metrics.get(name))}" for label, name in self._numbers()]
        parts += self._times()
        return "  ".join([*parts, f"left {self._left()}"])

    def _times(self) -> list[str]:
        seconds = {phase: self._metrics.get(f"time/{phase}") for phase in PHASES}
        shown = {phase: s for phase, s in seconds.items() if s is not None or phase not in _AT_TIMES}
        return [f"{phase} {_seconds(s)}" for phase, s in shown.items()]

    def _numbers(self) -> list[tuple[str, str]]:
        """(label, metric) of what is shown, each divergence under its own name."""
        divergences = sorted(name for name in self._metrics if name.startswith("kl/")) or ["kl"]
        shown = list(_SHOWN)
        shown[3:3] = [(name, name) for name in divergences]
        return shown

    def _left(self) -> str:
        if self._step >= self._total_steps:
            return "0s"
        if not self._seconds:
            return "-"
        return _duration(statistics.median(self._seconds) * (self._total_steps - self._step))

    def _panel(self) -> RenderableType:
        progress = Table.grid(padding=(0, 1), expand=True)
        progress.add_column(no_wrap=True)
        progress.add_column(ratio=1)
        progress.add_column(no_wrap=True)
        bar = ProgressBar(total=max(1, self._total_steps), completed=self._step)
        progress.add_row(f"step {self._step}/{self._total_steps}", bar, f"left {self._left()}")

        cells = [(label, _number(self._metrics.get(name))) for label, name in self._numbers()]
        grid = Table.grid(padding=(0, 2))
        for _ in range(_COLUMNS):
            grid.add_column(min_width=10)  # so that the panel does not jump from step to step
        for start in range(0, len(cells), _COLUMNS):
            chunk = cells[start : start + _COLUMNS]
            grid.add_row(*(Text(label, style="dim") for label, _ in chunk))
            grid.add_row(*(Text(value, style="bold") for _, value in chunk))

        times = "  ".join(self._times())
        phase = f"{self._phase} ({_duration(time.monotonic() - self._phase_since)})" if self._phase else ""
        return Panel(
            Group(progress, grid, Text(f"reward  {self._trend()}"), Text(times)),
            title="rlpost",
            subtitle=Text(phase),
        )

    def _trend(self) -> str:
        if not self._rewards:
            return "-"
        ends = f"{_number(self._rewards[0])} → {_number(self._rewards[-1])}"
        if not self._out.encoding.startswith("utf"):
            return ends.replace("→", "to")
        return f"{sparkline(self._rewards)}  {ends}"


def sparkline(values: Sequence[float]) -> str:
    """A bar of one character for each value, from the lowest to the highest; a value that is not finite is `?`."""
    bars = "▁▂▃▄▅▆▇█"
    finite = [v for v in values if abs(v) < float("inf")]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    scale = (len(bars) - 1) / (high - low) if high > low else 0.0
    return "".join(bars[round((v - low) * scale)] if abs(v) < float("inf") else "?" for v in values)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.4g}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}s"


def _interval(interval: Sequence[float] | None) -> str:
    return "-" if interval is None else "{:.3f} [{:.3f}, {:.3f}]".format(*interval)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
