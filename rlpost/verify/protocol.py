"""What a verifier is, how its arguments are injected, and how what it returns becomes a `Verdict`.

A verifier is plain Python, sync or async, and need not import anything from here:

    def verify(response: str, reference, **sample) -> float | bool | dict | None
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, TypeVar

import numpy as np

from rlpost.types import Status, Verdict

SAMPLE_FIELDS = ("response", "reference", "prompt", "prompt_id", "finish_reason", "token_count")
RESULT_KEYS = ("score", "reason", "extracted", "components", "details", "status")
STATUSES = ("correct", "wrong", "partial", "unverified")
# `extracted` comes from the completion, which must not be able to flood the trainer's memory through it.
MAX_EXTRACTED = 2000

F = TypeVar("F", bound=Callable[..., Any])

REGISTERED: dict[str, Callable[..., Any]] = {}


class VerifierError(RuntimeError):
    """A verifier that cannot be found, loaded, called or kept alive. The message names it and the fix."""


def verifier(name: str) -> Callable[[F], F]:
    """Register the decorated function under `name`, so that `file.py:name` or `module:name` finds it.

    Raises:
        VerifierError: when another function has the name already.
    """

    def register(function: F) -> F:
        known = REGISTERED.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (function.__module__, function.__qualname__):
            raise VerifierError(
                f"verifier {name!r} is registered twice: by {known.__module__}.{known.__qualname__} and by "
                f"{function.__module__}.{function.__qualname__}; rename one"
            )
        REGISTERED[name] = function
        return function

    return register


def bind(name: str, function: Callable[..., Any], params: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Any]:
    """A verifier as a function of one sample: `SAMPLE_FIELDS` and `metadata` (the prompt's other columns).

    Each argument is taken by its name from, in this order, the sample's fields, the parameters of the configuration
    and the metadata. A function with `**kwargs` gets all of them. Whatever the function returns is returned as it is,
    a coroutine included.

    Raises:
        VerifierError: now, for a signature that cannot be filled by name or a parameter the function does not take;
            when called, for an argument without default that the sample does not have.
    """
    arguments = inspect.signature(function).parameters
    for argument in arguments.values():
        if argument.kind in (argument.POSITIONAL_ONLY, argument.VAR_POSITIONAL):
            raise VerifierError(
                f"verifier {name!r}: argument {str(argument)!r} cannot be filled by name; a verifier looks like "
                "`def verify(response, reference, **sample)`"
            )
    named = [a for a in arguments.values() if a.kind is not a.VAR_KEYWORD]
    takes_all = len(named) < len(arguments)
    required = [a.name for a in named if a.default is a.empty]
    for key in params:
        if key in SAMPLE_FIELDS:
            raise VerifierError(f"verifier {name!r}: {key!r} is filled from each sample and cannot be a parameter")
        if not takes_all and key not in arguments:
            raise VerifierError(f"verifier {name!r} takes no {key!r}; its arguments are {', '.join(arguments)}")

    def call(sample: Mapping[str, Any]) -> Any:
        values = {**sample["metadata"], **params, **{key: sample[key] for key in SAMPLE_FIELDS}}
        missing = [key for key in required if key not in values]
        if missing:
            raise VerifierError(
                f"verifier {name!r} needs {', '.join(missing)}, which this sample does not have (it has "
                f"{', '.join(sorted(values))}); name the column in data.train.metadata or give it as a parameter"
            )
        return (
            function(**values) if takes_all else function(**{a.name: values[a.name] for a in named if a.name in values})
        )

    return call


def to_verdict(result: Any) -> Verdict:
    """What a verifier returned, as a `Verdict`.

    A bool is correct (1.0) or wrong (0.0). A finite number keeps its value as the score: correct from 1 up, wrong from
    0 down, partial between. None is unverified. A dict holds `score` (as above) and optionally the other
    `RESULT_KEYS`. A `Verdict` stays what it is. All else, and NaN or infinity, is unverified: what a verifier means by it is
    not known, and a guess would be a reward.
    """
    if isinstance(result, Verdict):
        result = {key: getattr(result, key) for key in RESULT_KEYS}
    if not isinstance(result, Mapping):
        result = {"score": result}
    unknown = [key for key in result if key not in RESULT_KEYS]
    if unknown or "score" not in result:
        return _invalid(result, f"a dict with keys {list(result)}; it must have 'score' and may have {RESULT_KEYS[1:]}")
    score = result["score"]
    if score is not None:
        if not isinstance(score, Real | np.bool_):
            return _invalid(result, f"{type(score).__name__}, not a float, bool, dict or None")
        score = float(score)
        if not math.isfinite(score):
            return _invalid(result, f"the non-finite number {score}")
    status = result.get("status") or _status(score)
    if status not in STATUSES or (status == "unverified") != (score is None):
        return _invalid(result, f"status {status!r} with score {score}")
    components, details = result.get("components") or {}, result.get("details") or {}
    if not isinstance(components, Mapping) or not all(
        isinstance(v, Real) and math.isfinite(v) for v in components.values()
    ):
        return _invalid(result, "components that are not a dict of finite numbers")
    if not isinstance(details, Mapping):
        return _invalid(result, f"details of type {type(details).__name__}, not a dict")
    extracted = result.get("extracted")
    return Verdict(
        status=status,
        score=score,
        reason=str(result.get("reason") or ("no_verdict" if score is None else "")),
        extracted=None if extracted is None else str(extracted)[:MAX_EXTRACTED],
        components={str(key): float(value) for key, value in components.items()},
        details={str(key): value for key, value in details.items()},
    )


def _status(score: float | None) -> Status:
    if score is None:
        return "unverified"
    return "correct" if score >= 1 else "wrong" if score <= 0 else "partial"


def _invalid(result: Any, what: str) -> Verdict:
    return Verdict(
        "unverified",
        None,
        f"invalid_result: the verifier returned {what}"[:300],
        details={"returned": repr(result)[:300]},
    )
