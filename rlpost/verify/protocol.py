"""What a verifier is, how its arguments are injected, and how what it returns becomes a `Verdict`.

A verifier is plain Python, sync or async, and need not import anything from here:

    def verify(response: str, reference, **sample) -> float | bool | dict | None

Attributes of the function (`verify.group = True`, or arguments of `@verifier`) say what else it is:

    batched         `verify_batch(samples: list[dict], **params) -> list`: many samples at once, of any prompts; a function
                    of that name, or one beside `verify` in the module, needs no attribute
    group           `verify(responses: list[str], reference, **prompt) -> list`: all responses to one prompt at once
    deterministic   False: the same sample may get another verdict, so none is kept
    service         True: it waits for a service, so that a time-out is not the completion's doing
    version         what changes when its verdicts do; by default a digest of its file
    raw             True: `response` keeps special tokens, the end of sequence included; `raw` of the configuration goes
                    before
    isolate         True: it runs in a sandbox, in a process of its own for each answer; `isolate` of the configuration
                    goes before
    prepare         `prepare()`: called once, before the first answer, where it is isolated: what it makes is there for all
                    answers, and what an answer makes for none
    programs        True: it runs programs in `rlpost.verify.sandbox`, which is then started with it, or refused
    check           `check(reference, **row) -> str | dict | None`: why a row cannot be verified, or measures of how well it
                    can be, {"told_apart": 0.9}, reported over the rows; asked when the data is loaded;
                    a function of that name beside `verify` in the module needs no attribute. True: the verifier itself
                    is asked, with an empty response, and its reason `bad_reference` is the answer,
                    or the `measures` among its details

A verifier with an argument `verdicts` runs after others, and gets their scores by name.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar

import numpy as np

from rlpost.types import Status, Verdict

SAMPLE_FIELDS = ("response", "reference", "prompt", "prompt_id", "finish_reason", "token_count")
GROUP_FIELDS = ("responses", "reference", "prompt", "prompt_id", "finish_reasons", "token_counts")
BATCH_FIELDS = ("samples",)
ROW_FIELDS = ("reference", "prompt", "prompt_id")
EMPTY = {"response": "", "finish_reason": "stop", "token_count": 0}
RESULT_KEYS = ("score", "reason", "extracted", "components", "details", "status")
STATUSES = ("correct", "wrong", "partial", "unverified")
TRAITS = ("batched", "group", "deterministic", "service", "version", "programs", "check", "raw", "isolate", "prepare")
# These come from the completion, which must not be able to flood the trainer's memory through them.
MAX_EXTRACTED = 2000
MAX_REASON = 1000

F = TypeVar("F", bound=Callable[..., Any])

REGISTERED: dict[str, Callable[..., Any]] = {}


class VerifierError(RuntimeError):
    """A verifier that cannot be found, loaded, called or kept alive. The message names it and the fix."""


@dataclass(frozen=True)
class Traits:
    """What the pool must know of a verifier; see the attributes above.

    `dependent`: it has an argument `verdicts`. `version` is part of the key of a verdict that is kept. `service` is true
    of programs run by a service, too. `needs` are the arguments that only a row's columns (`metadata`) can give.
    """

    mode: Literal["single", "batch", "group"] = "single"
    dependent: bool = False
    deterministic: bool = True
    service: bool = False
    version: str = ""
    programs: bool = False
    raw: bool = False
    isolate: bool = False
    needs: Sequence[str] = ()


@dataclass(frozen=True)
class Bound:
    """A verifier ready to be called: samples in, as many results out (a coroutine from an async one).

    `check` says of a row (`ROW_FIELDS` and `metadata`) why it cannot be verified, or None; it is None itself where the
    verifier has none. `prepare` is to be called once before an isolated verifier is.
    """

    traits: Traits
    call: Callable[[Sequence[Mapping[str, Any]]], Any]
    check: Callable[[Mapping[str, Any]], str | Mapping[str, float] | None] | None = None
    prepare: Callable[[], object] | None = None


def verifier(name: str, **traits: Any) -> Callable[[F], F]:
    """Register the decorated function under `name`, so that `file.py:name` or `module:name` finds it.

    Args:
        traits: attributes to set on the function: `@verifier("novelty", group=True)`.

    Raises:
        VerifierError: when another function has the name already, or a trait is not one.
    """
    if unknown := [key for key in traits if key not in TRAITS]:
        raise VerifierError(
            f"verifier {name!r}: {unknown[0]!r} is no trait of a verifier; they are {', '.join(TRAITS)}"
        )

    def register(function: F) -> F:
        known = REGISTERED.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (function.__module__, function.__qualname__):
            raise VerifierError(
                f"verifier {name!r} is registered twice: by {known.__module__}.{known.__qualname__} and by "
                f"{function.__module__}.{function.__qualname__}; rename one"
            )
        for key, value in traits.items():
            setattr(function, key, value)
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
    fill = _filled(name, function, params, SAMPLE_FIELDS)
    return lambda sample: fill(sample["metadata"], _given(sample, *SAMPLE_FIELDS))


def load(
    name: str,
    function: Callable[..., Any],
    params: Mapping[str, Any],
    timeout: float | None = None,
    isolate: bool | None = None,
) -> Bound:
    """A verifier of whatever kind as a function of a list of samples, and what kind it is.

    Args:
        params: of the configuration. `of` is the pool's, for a verifier with `verdicts`, unless it takes that too.
        timeout: seconds a call may take, for a verifier that has an argument of that name.
        isolate: of the configuration; None: as the verifier says itself.

    Raises:
        VerifierError: as `bind`; `timeout` is not above the time that the verifier allows itself, which is its
            argument `total_seconds`; it is isolated and needs what an isolated one has not; or it is called for samples and
            does not return as many results.
    """
    module = _module(function)
    beside = module is not None and getattr(module, "verify", None) is function
    prepare = getattr(function, "prepare", None)
    check = _check(name, function, getattr(module, "check", None) if beside else None, params)
    if beside:
        function = getattr(module, "verify_batch", function)
    traits = traits_of(function)
    if traits.programs and params.get("sandbox") is not None:
        traits = replace(traits, service=True)
    traits = replace(traits, isolate=traits.isolate if isolate is None else isolate)
    if traits.isolate and (traits.service or traits.programs):
        raise VerifierError(
            f"verifier {name!r} {'waits for a service' if traits.service else 'runs programs'}, and is isolated, where "
            "there is no network and no sandbox: set `isolate: false` beside its name. Its code then runs in the worker, "
            "where an answer that it executes can do all that the trainer's user can"
        )
    arguments = inspect.signature(function).parameters
    params = {key: v for key, v in params.items() if key != "of" or not traits.dependent or key in arguments}
    if timeout is not None and "timeout" in arguments:
        params = {"timeout": timeout, **params}
    if timeout is not None and "total_seconds" in arguments:
        allowed = params.get("total_seconds", arguments["total_seconds"].default)
        if isinstance(allowed, int | float) and timeout <= allowed:
            raise VerifierError(
                f"verifier {name!r}: timeout {timeout:g} must be above its total_seconds {allowed:g}, or a slow program "
                f"ends the worker instead of being wrong: set timeout to {allowed + 10:g}, or {allowed + 40:g} where "
                "programs are compiled"
            )
    fields = {"single": SAMPLE_FIELDS, "group": GROUP_FIELDS, "batch": BATCH_FIELDS}[traits.mode]
    if traits.mode != "single" and fields[0] not in arguments and not any(map(_takes_all, arguments.values())):
        raise VerifierError(f"verifier {name!r} is {traits.mode}, so it must have an argument {fields[0]!r}")
    missing = {*getattr(function, "needs", ()), *_required(arguments)} - {*fields, *params, "verdicts"}
    if traits.mode == "batch" and missing:
        raise VerifierError(
            f"verifier {name!r} is batched, and gets `samples` and parameters of the configuration alone: its argument "
            f"{min(missing)!r} is neither. Take it from each sample, or set it beside the verifier's name"
        )
    traits = replace(traits, needs=tuple(sorted(missing)))
    if fields is SAMPLE_FIELDS:
        one = bind(name, function, params)
        return Bound(traits, lambda samples: _each(one(sample) for sample in samples), check, prepare)
    if traits.isolate and traits.mode == "batch":
        traits = replace(traits, mode="single")  # each answer has a process of its own
    fill = _filled(name, function, params, fields)
    values_of = _group if fields is GROUP_FIELDS else _batch

    def call(samples: Sequence[Mapping[str, Any]]) -> Any:
        metadata = samples[0]["metadata"] if fields is GROUP_FIELDS else {}
        result = fill(metadata, values_of(samples))
        return (
            _later(name, result, len(samples)) if inspect.isawaitable(result) else _listed(name, result, len(samples))
        )

    return Bound(traits, call, check, prepare)


def _check(
    name: str, function: Callable[..., Any], beside: Callable[..., Any] | None, params: Mapping[str, Any]
) -> Callable[[Mapping[str, Any]], str | Mapping[str, float] | None] | None:
    """A verifier's `check` as a function of a row; of the parameters it gets those it names."""
    check = getattr(function, "check", beside)
    if check is None or check is False:
        return None
    asked = function if check is True else check
    if not callable(asked) or inspect.iscoroutinefunction(asked):
        raise VerifierError(f"verifier {name!r}: `check` must be True or a function that is not async, got {check!r}")
    if check is True:
        verify = bind(name, function, params)
        return lambda row: _bad_reference(to_verdict(verify({**EMPTY, **row})))
    arguments = inspect.signature(check).parameters
    everything = any(a.kind is a.VAR_KEYWORD for a in arguments.values())
    known = {key: value for key, value in params.items() if everything or key in arguments}
    fill = _filled(f"{name}: check", check, known, ROW_FIELDS)
    return lambda row: fill(row["metadata"], {key: row[key] for key in ROW_FIELDS})


def _bad_reference(verdict: Verdict) -> str | Mapping[str, float] | None:
    if verdict.reason != "bad_reference":
        measures: Mapping[str, float] | None = verdict.details.get("measures")
        return measures
    return str(verdict.details.get("error") or "the reference cannot be used")


def traits_of(function: Callable[..., Any]) -> Traits:
    """What a verifier's attributes and signature say of it."""
    batched = getattr(function, "batched", getattr(function, "__name__", "") == "verify_batch")
    group = getattr(function, "group", False)
    if batched and group:
        raise VerifierError(f"{function!r} is both batched and group: a group verifier gets one group at a time")
    return Traits(
        mode="group" if group else "batch" if batched else "single",
        dependent="verdicts" in inspect.signature(function).parameters,
        deterministic=bool(getattr(function, "deterministic", True)),
        service=bool(getattr(function, "service", False)),
        version=_version(function),
        programs=bool(getattr(function, "programs", False)),
        raw=bool(getattr(function, "raw", False)),
        isolate=bool(getattr(function, "isolate", False)),
    )


def _version(function: Callable[..., Any]) -> str:
    if (given := getattr(function, "version", None)) is not None:
        return str(given)
    file = getattr(_module(function), "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12] if file else ""


def _module(function: Callable[..., Any]) -> ModuleType | None:
    return sys.modules.get(getattr(function, "__module__", None) or "")


def _given(sample: Mapping[str, Any], *fields: str) -> dict[str, Any]:
    return {key: sample[key] for key in (*fields, "verdicts") if key in sample}


def _group(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        **_given(samples[0], "reference", "prompt", "prompt_id"),
        "responses": [s["response"] for s in samples],
        "finish_reasons": [s["finish_reason"] for s in samples],
        "token_counts": [s["token_count"] for s in samples],
        **({"verdicts": [s["verdicts"] for s in samples]} if "verdicts" in samples[0] else {}),
    }


def _batch(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {"samples": [{**s["metadata"], **{key: s[key] for key in SAMPLE_FIELDS}} for s in samples]}
    if "verdicts" in samples[0]:
        values["verdicts"] = [s["verdicts"] for s in samples]
    return values


def _each(results: Any) -> Any:
    (result,) = results  # a single verifier is called for one sample
    return _wrapped(result) if inspect.isawaitable(result) else [result]


async def _wrapped(awaitable: Any) -> list[Any]:
    return [await awaitable]


async def _later(name: str, awaitable: Any, count: int) -> list[Any]:
    return _listed(name, await awaitable, count)


def _listed(name: str, results: Any, count: int) -> list[Any]:
    if not isinstance(results, list | tuple) or len(results) != count:
        what = f"{len(results)} results" if isinstance(results, list | tuple) else type(results).__name__
        raise VerifierError(f"verifier {name!r} returned {what} for {count} samples; it must return a list of {count}")
    return list(results)


def _takes_all(argument: inspect.Parameter) -> bool:
    return argument.kind is argument.VAR_KEYWORD


def _required(arguments: Mapping[str, inspect.Parameter]) -> list[str]:
    return [
        a.name for a in arguments.values() if a.default is a.empty and a.kind not in (a.VAR_KEYWORD, a.VAR_POSITIONAL)
    ]


def _filled(
    name: str, function: Callable[..., Any], params: Mapping[str, Any], fields: Sequence[str]
) -> Callable[[Mapping[str, Any], Mapping[str, Any]], Any]:
    """`function`, called with its arguments by name out of metadata, `params`, and the values of a sample's fields."""
    arguments = inspect.signature(function).parameters
    for argument in arguments.values():
        if argument.kind in (argument.POSITIONAL_ONLY, argument.VAR_POSITIONAL):
            raise VerifierError(
                f"verifier {name!r}: argument {str(argument)!r} cannot be filled by name; a verifier looks like "
                "`def verify(response, reference, **sample)`"
            )
    named = [a for a in arguments.values() if not _takes_all(a)]
    takes_all = len(named) < len(arguments)
    required = _required(arguments)
    for key in params:
        if key in fields or key == "verdicts":
            raise VerifierError(f"verifier {name!r}: {key!r} is filled from each sample and cannot be a parameter")
        if not takes_all and key not in arguments:
            raise VerifierError(f"verifier {name!r} takes no {key!r}; its arguments are {', '.join(arguments)}")

    def call(metadata: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
        values = {**metadata, **params, **given}
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
        reason=str(result.get("reason") or ("no_verdict" if score is None else ""))[:MAX_REASON],
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
