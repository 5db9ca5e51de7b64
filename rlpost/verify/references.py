"""Rows that cannot be verified, found when the data is loaded: the verifiers' own `check`, asked in worker processes.

    problems = checker(config.verifiers, config.verifier_pool)(prompts)

The checks run as verdicts do, in a `VerifierPool`, so one that hangs or crashes is ended, and the row named.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rlpost.types import Checked, Prompt, Rollout, Verdict
from rlpost.verify.pool import VerifierPool
from rlpost.verify.protocol import ROW_FIELDS, SAMPLE_FIELDS, Bound, VerifierError, load
from rlpost.verify.registry import resolve

if TYPE_CHECKING:
    from rlpost import config

NONE: np.ndarray = np.zeros(0, np.int32)
BATCH = 32
NAME = f"{__name__}:rows"
# The first row a worker is asked about waits for the verifiers to be loaded too, which their own time-outs do not count.
SECONDS = 60.0


def checker(
    specs: Sequence[config.VerifierSpec], settings: config.VerifierPool, start_deadline: float = 120.0
) -> Callable[[Sequence[Prompt]], list[Checked]]:
    """What says of each prompt why one of the verifiers cannot verify it, if so, and how well they can.

    It raises VerifierError: a verifier does not load, or its sandbox fails.
    """
    return lambda prompts: _checked(specs, settings, start_deadline, prompts)


def _checked(
    specs: Sequence[config.VerifierSpec],
    settings: config.VerifierPool,
    start_deadline: float,
    prompts: Sequence[Prompt],
) -> list[Checked]:
    from rlpost.config import VerifierSpec

    if not prompts:
        return []
    # What is asked of a row is what its source's verifiers check: each choice of verifiers is a check of its own.
    choices = {chosen: f"{NAME} {i}" for i, chosen in enumerate(dict.fromkeys(p.verifiers for p in prompts))}
    timeout = max(SECONDS, *(s.timeout for s in specs))
    checks = [
        VerifierSpec.model_validate(
            {
                "name": NAME,
                "label": label,
                "timeout": timeout,
                "env": sorted({name for s in specs for name in s.env}),
                "batch_size": BATCH,
                "verifiers": [
                    {"name": s.name, "params": s.params, "timeout": s.timeout, "isolate": s.isolate, "when": s.when}
                    for s in specs
                    if not chosen or s.label in chosen
                ],
            }
        )
        for chosen, label in choices.items()
    ]
    rows = [replace(prompt, verifiers=(choices[prompt.verifiers],)) for prompt in prompts]
    with VerifierPool(checks, settings.model_copy(update={"cache_mb": 0}), start_deadline) as pool:
        # One row of each choice tells whether there is anything to ask.
        first = {row.verifiers: pool.submit(_nothing(row), row) for row in reversed(rows)}
        idle = {chosen for chosen, f in first.items() if not _only(f.result()).details.get("checks", True)}
        futures = [None if row.verifiers in idle else pool.submit(_nothing(row), row) for row in rows]
        return [Checked() if future is None else _found(future.result(), timeout) for future in futures]


def _nothing(prompt: Prompt) -> Rollout:
    """An empty response, which no check looks at."""
    return Rollout(prompt.id, 0, 0, NONE, NONE, np.zeros(0, np.float32), NONE, "stop", "", 0)


def _only(rollout: Rollout) -> Verdict:
    (verdict,) = rollout.verdicts.values()
    return verdict


def _found(rollout: Rollout, timeout: float) -> Checked:
    verdict = _only(rollout)
    return Checked(_problem(rollout.prompt_id, verdict, timeout), verdict.details.get("measures", {}))


def _problem(prompt_id: str, verdict: Verdict, timeout: float) -> str | None:
    if verdict.status == "unverified":
        raise VerifierError(
            f"the check of prompt {prompt_id!r} fails: {verdict.reason}: {verdict.details.get('error', '')}"
        )
    if verdict.reason == "timeout":
        return f"its check takes longer than {timeout:g} s"
    if verdict.reason == "crash":
        return f"its check ends the process (exit code {verdict.details.get('exit_code')})"
    return verdict.reason or None


def rows(samples: Sequence[Mapping[str, Any]], verifiers: Sequence[Mapping[str, Any]]) -> list[Any]:
    """As a verifier: 0.0 with the first problem as the reason, 1.0 without; `checks`: whether there was one to ask."""
    bound = _loaded(json.dumps(verifiers))
    return [_asked(bound, sample) for sample in samples]


rows.batched = True  # type: ignore[attr-defined]


def _asked(bound: Sequence[tuple[config.VerifierSpec, Bound]], sample: Mapping[str, Any]) -> Any:
    from rlpost.verify.sandbox import SandboxError

    columns = {key: value for key, value in sample.items() if key not in SAMPLE_FIELDS}
    row = {**{key: sample[key] for key in ROW_FIELDS}, "metadata": columns}
    measures: dict[str, float] = {}
    for spec, one in bound:
        if one.check is None or not spec.applies(columns):
            continue
        problem: str | None = None
        try:
            found = one.check(row)
            if isinstance(found, Mapping):
                measures |= {f"verifier {spec.name!r}: {name}": float(value) for name, value in found.items()}
            else:
                problem = found
        except SandboxError as error:
            return error
        except Exception as error:  # noqa: BLE001 - whatever it is, the row cannot be used
            problem = f"its check fails: {error!r}"
        if problem:
            return {"score": 0.0, "reason": f"verifier {spec.name!r}: {problem}"}
    details = {"checks": any(one.check is not None for _, one in bound), "measures": measures}
    return {"score": 1.0, "details": details}


@functools.cache
def _loaded(verifiers: str) -> list[tuple[config.VerifierSpec, Bound]]:
    from rlpost.config import VerifierSpec

    found = []
    for asked in json.loads(verifiers):
        bound = load(asked["name"], resolve(asked["name"]), asked["params"], asked["timeout"], asked["isolate"])
        found.append((VerifierSpec.model_validate({"name": asked["name"], "when": asked["when"]}), bound))
    return found
