"""What stops a run that is wrong but would stay green."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from rlpost.config import Alarms
from rlpost.exit_codes import ALARM
from rlpost.observe.trends import Trends
from rlpost.verify.protocol import STATUSES
from rlpost.verify.task import ON_ROW
from rlpost.weights import LEAST_SURVIVING

# Shares of verdicts and of rows are taken over the newest steps with this many, so that small steps count together,
# and as if there had been this many where there are fewer: else one unlucky item would be a large share.
RECENT = 256
# Rows on which a verifier hangs or crashes, whatever the answer, cost time: many at the start need not become `RECENT`.
MIN_ROWS = 32
FP32_LOGP_ABS_MAX = 1e-3

_LOOK_MISMATCH = (
    "engine and learner disagree on the same weights: look at the last weight sync, model.dtype against "
    "rollout.dtype, rollout.temperature, and mismatch/* in metrics.jsonl"
)


class Alarm(Exception):
    """The run is wrong. The command ends with `exit_code` after a checkpoint.

    Attributes:
        step, metric, value: what was seen where; value is None when the metric is missing.
        threshold: what it was held against, in words.
        look: where to look first.
        key: of the `alarms` section, whose action is taken; None where there is none, and the run stops.
    """

    exit_code = ALARM

    def __init__(
        self, step: int, metric: str, value: float | None, threshold: str, look: str, key: str | None = None
    ) -> None:
        super().__init__(step, metric, value, threshold, look, key)
        self.key = key
        self.step, self.metric, self.value, self.threshold, self.look = step, metric, value, threshold, look

    def __str__(self) -> str:
        value = "missing" if self.value is None else f"{self.value:g}"
        return f"alarm at step {self.step}: {self.metric} is {value}, {self.threshold}. {self.look}"


class Watch:
    """Checks the metrics of every step against the `alarms` section.

    Metrics it reads, beside those of metrics.jsonl: `mismatch/logp_abs_max_fresh` and `mismatch/kl_fresh`, over
    tokens sampled with the learner's current weights and absent when there are none; `groups/with_signal`, how many
    groups of the step have rewards that differ; `samples/learned`, how many of the samples that engines gave count in
    the loss.
    """

    def __init__(self, alarms: Alarms, dtype_is_fp32: bool, replay: str = "off", adapters: bool = False) -> None:
        """
        Args:
            adapters: whether adapters are trained: then an update that does not arrive is a fault, while in a full
                training in bfloat16 small steps wait in the optimizer until they are large enough.
            dtype_is_fp32: whether both engine and learner compute in float32, where they agree to rounding.
            replay: `routing.replay`.
        """
        self._alarms = alarms
        self._replay = replay
        self._logp_limit = alarms.mismatch_logp_abs_max
        if self._logp_limit is None and dtype_is_fp32:
            self._logp_limit = FP32_LOGP_ABS_MAX
        self._least_survived = alarms.sync_survived
        if self._least_survived is None and adapters:
            self._least_survived = LEAST_SURVIVING
        self._without_signal = 0
        # By what is counted, of each recent step how many are bad, and how many there are; the newest last.
        self._recent: dict[str, list[tuple[float, float]]] = {}
        self._trends = Trends(alarms)
        self._warned: set[str] = set()  # of the step before: one that goes on is said once

    def check(self, step: int, metrics: Mapping[str, float]) -> list[Alarm]:
        """Hold a step's metrics against the section.

        Returns:
            what is wrong, or missing though it must be there, whose action is to warn, and was not wrong a step before.

        Raises:
            Alarm: the first whose action is to stop, when every check has seen the step.
        """
        checks = (
            self._check_finite,
            self._check_verdicts,
            self._check_routes,  # before the mismatch: wrong routes are one cause of it, and the clearer one
            self._check_mismatch,
            self._check_survived,
            self._check_signal,
            self._check_experts,
        )
        found = [alarm for check in checks if (alarm := _caught(check, step, metrics)) is not None]
        found += [Alarm(step, f.metric, f.value, f.against, f.look, f.key) for f in self._trends.check(metrics)]
        for alarm in found:
            if self._alarms.action(alarm.key) == "checkpoint+stop":
                raise alarm
        before, self._warned = self._warned, {alarm.metric for alarm in found}
        return [alarm for alarm in found if alarm.metric not in before]

    def state_dict(self) -> dict[str, Any]:
        return {"without_signal": self._without_signal, "recent": self._recent, "trends": self._trends.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._without_signal = int(state["without_signal"])
        self._recent = {what: [(bad, n) for bad, n in steps] for what, steps in state.get("recent", {}).items()}
        self._trends.load_state_dict(state.get("trends", {}))

    def _check_finite(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            watched = name in ("loss", "grad_norm") or name.startswith(("loss/", "mismatch/"))
            if watched and not math.isfinite(value):
                look = "Look at the rollouts of this step, learner.lr and learner.grad_clip"
                raise Alarm(step, name, value, "which is not a finite number", look)

    def _check_mismatch(self, step: int, metrics: Mapping[str, float]) -> None:
        if _required(step, metrics, "samples/learned") > 0:
            _required(step, metrics, "mismatch/logp_abs_max")
            _required(step, metrics, "mismatch/kl")
        for name, key, limit in (
            ("mismatch/logp_abs_max_fresh", "mismatch_logp_abs_max", self._logp_limit),
            ("mismatch/kl_fresh", "mismatch_kl", self._alarms.mismatch_kl),
        ):
            if limit is not None and name in metrics and metrics[name] > limit:
                raise Alarm(step, name, metrics[name], f"above alarms.{key} {limit:g}", _LOOK_MISMATCH, key)

    def _check_survived(self, step: int, metrics: Mapping[str, float]) -> None:
        name, least = "sync/survived", self._least_survived
        if least is not None and name in metrics and metrics[name] < least:
            look = (
                "What is sampled is not what is trained: the update is rounded away on its way into the engines' dtype. "
                "Set rollout.dtype: float32, or let engines serve adapters (rollout.adapters: auto)"
            )
            raise Alarm(step, name, metrics[name], f"below alarms.sync_survived {least:g}", look, "sync_survived")

    def _check_verdicts(self, step: int, metrics: Mapping[str, float]) -> None:
        """Each verifier by itself: a sample that one of them cannot score is lost, and some are for few rows."""
        for key in [name for name in metrics if name.startswith("verifier/") and name.endswith("/unverified")]:
            verifier = key.removesuffix("/unverified")
            name = verifier.removeprefix("verifier/")
            self._check_hung(
                step, name, metrics.get(f"{verifier}/rows_hung", 0.0), metrics.get(f"{verifier}/rows", 0.0)
            )
            on_row = sum(metrics.get(f"{verifier}/{reason}", 0.0) for reason in ON_ROW.values())
            verdicts = sum(metrics.get(f"{verifier}/{status}", 0.0) for status in STATUSES) - on_row
            found, total = self._recently(key, metrics[key] - on_row, verdicts)
            if found / max(total, RECENT) > self._alarms.unverified_share:
                look = f"{name} breaks on its own: look at `reason` in this step's rollouts and at the verifier's log"
                limit = (
                    f"above alarms.unverified_share {self._alarms.unverified_share:g} ({found:g} of its last {total:g})"
                )
                raise Alarm(
                    step, f"share of unverified verdicts of {name}", found / total, limit, look, "unverified_share"
                )

    def _check_hung(self, step: int, name: str, hung: float, rows: float) -> None:
        found, total = self._recently(f"verifier/{name}/rows", hung, rows)
        most = self._alarms.hung_rows_share
        if found / max(total, MIN_ROWS) > most:
            look = (
                f"Look at {' and '.join(f'`{reason}`' for reason in ON_ROW.values())} in the rollouts, and at these "
                "rows with `rlpost verify`; or raise its timeout"
            )
            limit = f"above alarms.hung_rows_share {most:g} ({found:g} of its last {total:g}, whatever the answer)"
            raise Alarm(
                step, f"share of rows on which {name} hangs or crashes", found / total, limit, look, "hung_rows_share"
            )

    def _recently(self, what: str, bad: float, count: float) -> tuple[float, float]:
        """How many are bad, and how many there are, in the newest steps that hold `RECENT`; this one is added."""
        steps = self._recent.setdefault(what, [])
        if count:
            steps.append((bad, count))
        while sum(of for _, of in steps[1:]) >= RECENT:
            steps.pop(0)
        return sum(n for n, _ in steps), sum(of for _, of in steps)

    def _check_signal(self, step: int, metrics: Mapping[str, float]) -> None:
        has_signal = _required(step, metrics, "groups/with_signal") > 0
        self._without_signal = 0 if has_signal else self._without_signal + 1
        if self._without_signal >= self._alarms.no_signal_steps:
            look = "Every group's rewards are equal, so nothing is learned: look at the rollouts; easier or harder data"
            limit = f"for {self._without_signal} steps in a row (alarms.no_signal_steps {self._alarms.no_signal_steps})"
            raise Alarm(step, "groups/with_signal", 0.0, limit, look, "no_signal_steps")

    def _check_routes(self, step: int, metrics: Mapping[str, float]) -> None:
        """A run that asked for replay gets it, with the routes of its own tokens."""
        if self._replay == "off":
            return
        learned = _required(step, metrics, "samples/learned") > 0
        asked = f"though routing.replay is {self._replay}"
        look = "The learner used its live routers: look at routing/* in metrics.jsonl and at rollout.engine_args"
        name, least = "routing/coverage", self._alarms.route_coverage
        if self._replay == "r3" and (name in metrics or learned) and _required(step, metrics, name) < least:
            limit = f"below alarms.route_coverage {least:g}, {asked}"
            raise Alarm(step, name, metrics[name], limit, look, "route_coverage")
        if not learned:
            return
        if _required(step, metrics, "routing/replayed") == 0:
            raise Alarm(step, "routing/replayed", 0.0, asked, look)
        name, least = "routing/agreement", self._alarms.route_agreement
        if _required(step, metrics, name) < least:
            look = (
                "The routers would have chosen other experts, as if the routes were another token's or another model's: "
                "look at routing/agreement/* and mismatch_live/* in metrics.jsonl, and at staleness/max"
            )
            raise Alarm(step, name, metrics[name], f"below alarms.route_agreement {least:g}", look, "route_agreement")

    def _check_experts(self, step: int, metrics: Mapping[str, float]) -> None:
        """Experts stay alive."""
        look = "The routers send tokens to few experts: look at router/* in metrics.jsonl and at learner.lr"
        most, least_entropy = self._alarms.dead_experts, self._alarms.router_load_entropy
        if most is not None and metrics.get("router/dead", 0.0) > most:
            limit = f"above alarms.dead_experts {most:g}"
            raise Alarm(step, "router/dead", metrics["router/dead"], limit, look, "dead_experts")
        name = "router/load_entropy"
        if least_entropy is not None and metrics.get(name, 1.0) < least_entropy:
            limit = f"below alarms.router_load_entropy {least_entropy:g}"
            raise Alarm(step, name, metrics[name], limit, look, "router_load_entropy")


def _caught(check: Callable[[int, Mapping[str, float]], None], step: int, metrics: Mapping[str, float]) -> Alarm | None:
    try:
        check(step, metrics)
    except Alarm as alarm:
        return alarm
    return None


def _required(step: int, metrics: Mapping[str, float], name: str) -> float:
    """A metric without which a check cannot run: a check that could not run is a failure."""
    if name not in metrics:
        raise Alarm(step, name, None, "so its check cannot run", "The step must report it; this is a defect of rlpost")
    return metrics[name]
