"""Everything a run says, in one place: files, trackers and console."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from rlpost import atomic, events
from rlpost.config import Config
from rlpost.faults import DeadlineError
from rlpost.observe.alarms import Alarm
from rlpost.observe.console import Console, Interval
from rlpost.observe.rollouts import write_rollouts
from rlpost.observe.run_folder import RunFolder
from rlpost.observe.sinks import MetricsFile, Sink, make_sinks, read_metrics
from rlpost.types import Prompt, Rollout


class Recorder:
    """Owns the run folder, metrics.jsonl, the trackers and the console; a context manager that closes them all.

    metrics.jsonl is the memory: the evaluations and the seconds of a run that was resumed are read from it, so that
    summary.json covers the whole run. Not to be able to write it is an error. A tracker only shows the run: one that
    fails once it has started gets nothing more from this process, which is said once.
    """

    def __init__(
        self, folder: RunFolder, config: Config, console: Console | None = None, resumed_at: int | None = None
    ) -> None:
        """Start recording into `folder`.

        Args:
            console: one that may speak already; made from `observe.console` by default.
            resumed_at: the step of the checkpoint a resumed run continues from. Lines and rollouts of later steps
                are removed, and the line of an evaluation between it and the next: they will be made again. With -1
                nothing is left: there is no checkpoint, and all is made again.

        Raises:
            RunFolderError: if another process writes the folder.
            ConfigError: if a tracker's package is not installed.
        """
        self.folder = folder
        self.console = console or Console(config.observe.console, config.ends_with)
        self._seed = config.seed
        self._keep_rollouts = config.observe.rollouts
        self._sinks: list[Sink] = []
        with ExitStack() as opened:  # what was opened is closed again if the next part fails
            opened.callback(folder.close)
            folder.lock()
            self._metrics = MetricsFile(folder.metrics)
            opened.callback(self._metrics.close)
            if resumed_at is not None:
                self._rewind(resumed_at)
            rows = read_metrics(folder.metrics)
            self._elapsed_before = max((row.get("time/elapsed", 0.0) for row in rows), default=0.0)
            self._started = time.monotonic()
            self._told: Exception | None = None
            self._last_step = max((row["step"] for row in rows), default=0)
            plain = config.model_dump(mode="json")
            for sink in make_sinks(config.observe.sinks, folder, plain, resumed_at):
                opened.callback(self._close, sink)
                self._sinks.append(sink)
            opened.enter_context(self.console)
            self._opened = opened.pop_all()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close console, trackers, metrics.jsonl and the lock, each even if another fails to."""
        self._opened.close()

    @property
    def seconds(self) -> float:
        """Seconds the run has taken, with those before a resume; what a resume undid is not counted."""
        return self._elapsed_before + time.monotonic() - self._started

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a finished step; `time/elapsed`, the run's seconds, is added."""
        metrics = {**metrics, "time/elapsed": self.seconds}
        self._metrics.log(step, metrics)
        self._last_step = step
        self._send(step, metrics)
        self.console.step(step, metrics)

    def doing(self) -> str:
        """What the run does now, in words."""
        return f"{self.console.doing or 'its start'}, step {self._last_step + 1}"

    def event(self, kind: events.Kind, what: str, step: int | None = None, who: str | None = None, **more: Any) -> None:
        """Add a line to events.jsonl, with the time and what the run was doing. A disk that does not take it is a warning.

        Args:
            step: that under way by default.
            who: such as `engine 1`.
            more: what else is known, as values of JSON.
        """
        step = self._last_step + 1 if step is None else step
        phase = self.console.doing or None
        try:
            events.append(self.folder.events, kind, what, step=step, phase=phase, who=who, **more)
        except OSError as error:  # it is told of something that is worse, often
            self.console.warn(f"{self.folder.events} lacks an event ({error.strerror}): {kind}: {what}")

    def warned(self, alarm: Alarm) -> None:
        """Say an alarm whose action is to warn, and add its event."""
        self.console.warn(str(alarm))
        self.event("alarm", str(alarm), step=alarm.step, metric=alarm.metric, value=alarm.value, action="warn")

    def fault(self, error: Exception) -> None:
        """Add the event that an error is, once, however many places tell of it on its way."""
        if error is self._told:
            return
        self._told = error
        kind: events.Kind = "fault"
        more: dict[str, Any] = {}
        if isinstance(error, Alarm):
            kind, more = "alarm", {"metric": error.metric, "value": error.value, "action": "checkpoint+stop"}
        elif isinstance(error, DeadlineError):
            kind = "deadline"
        cause = getattr(error, "cause", None) or error  # what an actor raised, and not all that Ray says around it
        first, _, rest = "\n".join([str(cause), *getattr(error, "__notes__", ())]).partition("\n")
        more |= {"error": type(cause).__name__, **({"more": rest} if rest else {})}
        self.event(kind, first, who=getattr(error, "who", None), **more)

    def rollouts(
        self,
        step: int,
        rollouts: Sequence[Rollout],
        prompts: Mapping[str, Prompt],
        advantages: Sequence[float | None],
        learned: Sequence[bool],
    ) -> None:
        """Write rollouts/step_<step>.parquet, unless `observe.rollouts` is false; see `write_rollouts`."""
        if self._keep_rollouts:
            write_rollouts(self.folder.rollout_file(step), rollouts, prompts, advantages, learned, step)

    def evaluation(
        self, when: str, step: int, results: Mapping[str, Interval], counts: Mapping[str, float] | None = None
    ) -> None:
        """Record an evaluation: `eval/<name>` with `/low` and `/high`, in a line of its own that has `when`.

        Args:
            when: "before" and "after" go to summary.json; any other word only to the metrics.
            results: {name: (value, low, high)}, such as `passk.summarize` returns.
            counts: what has no interval, as `eval/<name>` alone.
        """
        metrics = {f"eval/{name}": value for name, value in (counts or {}).items()}
        for name, (value, low, high) in results.items():
            metrics |= {f"eval/{name}": value, f"eval/{name}/low": low, f"eval/{name}/high": high}
        self._metrics.log(step, {**metrics, "time/elapsed": self.seconds}, when=when)
        self._send(step, metrics)
        self.console.evaluation(f"evaluation {when} (step {step})", results)

    def finish(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """Write summary.json and show it; returns what was written.

        `eval`, `steps`, `seconds` and `seed` are filled in; `summary` adds to them or overrides them.
        """
        evaluations = self._evaluations()
        written = {
            "eval": evaluations,
            "steps": self._last_step,
            "seconds": self.seconds,
            "seed": self._seed,
            **summary,
        }
        atomic.write_json(self.folder.summary, written)
        self.console.summary(
            evaluations.get("before", {}),
            evaluations.get("after", {}),
            written["steps"],
            written["seconds"],
            {
                "run": self.folder.path,
                "summary": self.folder.summary,
                "metrics": self.folder.metrics,
                "rollouts": self.folder.rollouts,
                "checkpoints": self.folder.checkpoints,
            },
        )
        return written

    def _evaluations(self) -> dict[str, dict[str, Interval]]:
        found: dict[str, dict[str, Interval]] = {}
        for row in read_metrics(self.folder.metrics):
            if row.get("when") not in ("before", "after"):
                continue
            names = [key.removesuffix("/low").removeprefix("eval/") for key in row if key.endswith("/low")]
            found[row["when"]] = {
                name: (row[f"eval/{name}"], row[f"eval/{name}/low"], row[f"eval/{name}/high"]) for name in names
            }
        return found

    def _send(self, step: int, metrics: Mapping[str, float]) -> None:
        for sink in [*self._sinks]:
            try:
                sink.log(step, metrics)
            except Exception as error:  # noqa: BLE001 - a full disk or a server's 500 is no reason to stop training
                self._drop(sink, error)

    def _close(self, sink: Sink) -> None:
        try:
            sink.close()
        except Exception as error:  # noqa: BLE001 - as above; the run is over and its files are whole
            if sink in self._sinks:
                self._drop(sink, error)

    def _drop(self, sink: Sink, error: Exception) -> None:
        """Not tried again: a server that is down may cost minutes at every step."""
        self._sinks.remove(sink)
        self.console.warn(
            f"observe.sinks: {sink.name} failed and gets nothing more until the run is resumed: "
            f"{type(error).__name__}: {error}; all metrics are in {self.folder.metrics}"
        )

    def _rewind(self, step: int) -> None:
        self._metrics.truncate_after(step)
        for path in self.folder.rollouts.glob("step_*.parquet"):
            number = path.stem.removeprefix("step_")
            # A copy under another name is somebody's.
            if number.isdecimal() and int(number) > step and path == self.folder.rollout_file(int(number)):
                path.unlink()
