"""What a verifier must keep, checked on a user's own rows: the same verdict every time, none too slow, no bad input fatal.

Everything is scored by the real pool, in worker processes:

    checks = contract(spec, cases, score(spec, cases))
    assert all(check.passed for check in checks)
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import pickle
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np

from rlpost.config import VerifierPool as Settings
from rlpost.config import VerifierSpec
from rlpost.types import FinishReason, Prompt, Rollout, Verdict
from rlpost.verify.pool import VerifierPool
from rlpost.verify.protocol import SAMPLE_FIELDS, Bound, Traits, load, to_verdict
from rlpost.verify.registry import resolve
from rlpost.verify.task import ON_ROW

SAMPLE = 200  # rows that are scored again; all rows are scored once before
ENOUGH = 40  # scorings a pass: fewer rows are repeated, or a verdict that changes now and then would go unseen
GIVE_UP = 5  # problems of one check after which more of the same would only cost time
MAX_DETAILS = 100_000  # characters; the worker cuts longer details
# The pool's reasons when a worker had to be killed, or died.
LATE, DIED = ("timeout", ON_ROW["timeout"]), ("crash", ON_ROW["crash"])
STOPPED = (*LATE, *DIED)


@dataclass(frozen=True)
class Case:
    """One thing to score, and how messages call it, such as `row 12`.

    `group`: cases of one value are the responses to one prompt, for a group verifier; None is a group of its own.
    """

    name: str
    rollout: Rollout
    prompt: Prompt
    group: str | None = None


@dataclass(frozen=True)
class Check:
    """One promise of a verifier: kept when there are no `problems`; `notes` are worth a look but no failure."""

    name: str
    tried: str
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return not self.problems


def make_case(
    name: str,
    response: str,
    reference: Any = None,
    *,
    raw: str | None = None,
    prompt: str = "",
    prompt_id: str | None = None,
    finish_reason: FinishReason = "stop",
    tokens: int = 0,
    metadata: Mapping[str, Any] | None = None,
    group: str | None = None,
) -> Case:
    """A case from what a verifier sees of a sample.

    Args:
        raw: the response with its special tokens, where that is known, for a verifier that asks for it.
        tokens: the response's length in tokens, which the verifier gets as `token_count`.
        prompt_id: `name` by default.
        metadata: the row's other columns; plain JSON data.
    """
    ids: np.ndarray = np.zeros(tokens, np.int32)
    asked = Prompt(prompt_id or name, prompt, np.zeros(0, np.int32), reference, None, dict(metadata or {}))
    rollout = Rollout(
        prompt_id=asked.id,
        group=0,
        sample=0,
        prompt_ids=asked.token_ids,
        response_ids=ids,
        logprobs=np.zeros(tokens, np.float32),
        versions=ids,
        finish_reason=finish_reason,
        text=response,
        raw=raw,
        seed=0,
    )
    return Case(name, rollout, asked, group)


def score(
    spec: VerifierSpec,
    cases: Sequence[Case],
    *,
    workers: int = 2,
    retries: int = 1,
    start_deadline: float = 120.0,
    progress: Callable[[int], object] | None = None,
) -> list[Verdict]:
    """A verdict for each case, from a pool of its own.

    Args:
        start_deadline: seconds a worker may take to load the verifier.
        progress: called with 1 for each verdict, in the order of `cases`.

    Raises:
        VerifierError: the verifier does not load, or the pool cannot go on.
    """
    with pool_of(spec, workers, retries, start_deadline) as pool:
        return list(scored(pool, spec, cases, progress))


def contract(
    spec: VerifierSpec,
    cases: Sequence[Case],
    first: Sequence[Verdict],
    *,
    workers: int = 2,
    seed: int = 0,
    start_deadline: float = 120.0,
) -> list[Check]:
    """All checks of a verifier, in the order of a report.

    Args:
        cases: the rows, at least one; each is scored alone, whatever its group.
        first: the verdicts of `score` on them.
        workers: processes of the concurrency check; at least 2 are used.
        seed: of the choice of rows that are scored again, and of their order.

    Raises:
        ValueError: no cases, or not one verdict a case.
        VerifierError: as `score`.
    """
    if not cases or len(cases) != len(first):
        raise ValueError(f"contract: {len(cases)} cases with {len(first)} verdicts; it takes one verdict for each case")
    rows = [(replace(case, group=None), verdict) for case, verdict in zip(cases, first, strict=True)]
    # Right answers first: what a bad answer or a missing reference changes is seen best from there.
    good = sorted(
        ((case, verdict) for case, verdict in rows if verdict.score is not None and verdict.reason not in STOPPED),
        key=lambda row: row[1].status != "correct",
    )
    run = functools.partial(score, spec, retries=0, start_deadline=start_deadline)
    # A row that hung or crashed is a finding already; scoring it again and again only costs time.
    alive = [row for row in rows if row[1].reason not in STOPPED]
    chosen = sorted(random.Random(seed).sample(range(len(alive)), min(SAMPLE, len(alive))))
    seen = [alive[index] for index in chosen]
    again = [case for case, _ in seen]
    with pool_of(spec, max(2, workers), 0, start_deadline) as pool:
        checks = [_blame(pool, spec, rows, good), _timeout(spec, rows), _bad_input(pool, spec, good)]
        traits = pool.traits[spec.label]
    if traits.isolate:
        results, deterministic = _replies(seen, traits)
    else:
        results, deterministic = _results(spec, again, start_deadline)
    return [*checks, *_repeatable(run, again, max(2, workers), seed, deterministic), results]


def pool_of(spec: VerifierSpec, workers: int = 2, retries: int = 1, start_deadline: float = 120.0) -> VerifierPool:
    """A pool of one verifier, loaded.

    Nothing is kept: each scoring is one of the verifier, not of the pool's memory.

    Raises:
        VerifierError: the verifier does not load.
    """
    return VerifierPool([spec], Settings(workers=workers, retries=retries, cache_mb=0), start_deadline)


def scored(
    pool: VerifierPool, spec: VerifierSpec, cases: Sequence[Case], progress: Callable[[int], object] | None = None
) -> Iterator[Verdict]:
    """A verdict for each case from a pool that is open, as `score`."""
    groups: dict[Any, list[int]] = {}
    for index, case in enumerate(cases):
        groups.setdefault(index if case.group is None else case.group, []).append(index)
    futures: dict[int, Future[Rollout]] = {}
    for indices in groups.values():
        scored = pool.submit_group([cases[i].rollout for i in indices], cases[indices[0]].prompt)
        futures.update(zip(indices, scored, strict=True))
    for index in range(len(cases)):
        yield futures[index].result().verdicts[spec.label]
        if progress is not None:
            progress(1)


# ------------------------------------------------------------------------------------------------- the rows as they are


def _blame(
    pool: VerifierPool,
    spec: VerifierSpec,
    rows: Sequence[tuple[Case, Verdict]],
    good: Sequence[tuple[Case, Verdict]],
) -> Check:
    """No response ends the worker, and none makes its own verdict impossible.

    Which of the two is at fault is found by trying: when the same row has a verdict with another response, the
    response caused it.
    """
    problems = [
        f"{case.name} ends the worker process ({verdict.details.get('error', '')}, exit code "
        f"{verdict.details.get('exit_code')})"
        for case, verdict in rows
        if verdict.reason in DIED
    ]
    notes = []
    others = [case.rollout.text for case, _ in good[:2]] + ["I do not know."]
    # Of what hung or crashed on all responses of a group it is known already.
    undecided = [(c, v) for c, v in rows if v.status == "unverified" and v.reason not in ON_ROW.values()]
    for case, verdict in undecided[: 4 * GIVE_UP]:
        tried = [_with(case, case.name, response=text) for text in others if text != case.rollout.text]
        if any(v.score is not None and v.reason not in STOPPED for v in scored(pool, spec, tried)):
            problems.append(f"{case.name} is unverified because of its response ({why(verdict)}); give a low score")
        else:
            notes.append(
                f"{case.name} is unverified whatever the response ({why(verdict)}): bad data, or a bad verifier"
            )
    tried_what = f"{len(rows)} rows, {len(undecided)} of them unverified"
    return Check("blame", tried_what, tuple(problems), tuple(notes))


def _timeout(spec: VerifierSpec, rows: Sequence[tuple[Case, Verdict]]) -> Check:
    late = [case.name for case, verdict in rows if verdict.reason in LATE]
    problems = [f"{name} takes longer than the time-out of {spec.timeout:g} s" for name in late]
    in_time = [(verdict.seconds, case.name) for case, verdict in rows if verdict.reason not in LATE]
    notes = []
    if in_time and max(in_time)[0] > spec.timeout / 2:
        seconds, name = max(in_time)
        notes.append(f"{name} takes {seconds:.3g} s, over half the time-out: a loaded machine may miss it")
    slowest = f", the slowest in time took {max(in_time)[0]:.3g} s" if in_time else ""
    return Check("time-out", f"{len(rows)} rows against {spec.timeout:g} s{slowest}", tuple(problems), tuple(notes))


# ------------------------------------------------------------------------------------------------------------ bad input

LARGE = {
    "a response of 1 MB of words": "word " * 200_000,
    "a response of 1 MB of digits": "9" * 1_000_000,
    "a response of 1 MB of brackets": "(" * 1_000_000,
    "a response of 1 MB of white space": " " * 1_000_000,
}
SMALL = {
    "an empty response": "",
    "a response of white space": " \n\t\u2003",
    "null characters": "\x00\x00",
    "half a surrogate pair": "\ud800",
    "text from right to left, emoji, combining marks": "\u202e\u05d0\u05d1 \U0001f469\u200d\U0001f52c e\u0301\u0301\u0301",
    "unfinished markup": "\\boxed{ <answer> ```python {",
    "unfinished JSON": '{"answer": ',
    "JSON of another shape": "[null, {}, [[]]]",
    "format and regex characters": "%s %d {} {0} \\1 (?P<n>[",
}
# What `float`, `int`, `eval` and `Fraction` stumble over.
ANSWERS = {
    "nan": "nan",
    "infinity": "-inf",
    "a float too large": "1e999",
    "a superscript digit": "²",
    "a division by zero": "1/0",
    "an integer of 5000 digits": "7" * 5000,
    "an endless power": "9**9**9**9",
    "code that ends the process that runs it": "__import__('os')._exit(3)",
}
FORMS = ("{}", "\\boxed{{{}}}", "<answer>{}</answer>", "#### {}", "The answer is {}.")


def _bad_input(pool: VerifierPool, spec: VerifierSpec, good: Sequence[tuple[Case, Verdict]]) -> Check:
    """Nothing a model can write keeps it from a verdict, and no missing data ends the worker."""
    if not good:
        return Check("bad input", "nothing: no row has a verdict", ("no row has a verdict to start from",))
    case, verdict = good[0]
    problems: list[str] = []
    notes: list[str] = []
    tried = 0
    for group in _bad_responses(case, verdict):
        tried += len(group)
        for bad, said in zip(group, scored(pool, spec, group), strict=True):
            if said.reason == "timeout":
                problems.append(f"{bad.name}: takes longer than the time-out of {spec.timeout:g} s")
            elif said.reason == "crash":
                problems.append(f"{bad.name}: ends the worker process")
            elif said.score is None:
                problems.append(f"{bad.name}: unverified ({why(said)}); what a model can write needs a score")
            elif said.status == "correct" and not bad.rollout.text.strip():
                notes.append(f"{bad.name}: correct")
        if len(problems) >= GIVE_UP:
            notes.append(f"stopped after {tried} inputs with {len(problems)} problems")
            break
    missing = [
        _with(case, f"{case.name} without a reference", reference=None),
        _with(case, f"{case.name} with an empty reference", reference=""),
        _with(case, f"{case.name} with null in every other column", metadata=dict.fromkeys(case.prompt.metadata)),
    ]
    for bad, said in zip(missing, scored(pool, spec, missing), strict=True):
        if said.reason in STOPPED:
            problems.append(f"{bad.name}: {said.reason} instead of no verdict")
        # A verdict that stays is one of a verifier that does not look at it.
        elif bad.prompt.reference is None and said.score is not None and not same(said, verdict):
            notes.append(f"{bad.name}: {told(said)}; return None for what the data lacks")
    return Check("bad input", f"{tried} responses, {len(missing)} gaps in the data", tuple(problems), tuple(notes))


def _bad_responses(case: Case, verdict: Verdict) -> Iterator[list[Case]]:
    """Groups of cases, each to be finished before the next is begun."""
    yield [_with(case, f"{case.name} with {name}", response=text) for name, text in SMALL.items()]
    forms = list(FORMS)
    # In the answer's own place, a bad answer is found whatever form the verifier looks for.
    response, answer = case.rollout.text, verdict.extracted
    for name, text in ANSWERS.items():
        texts = [form.format(text) for form in forms]
        if answer and answer in response:
            texts.append(text.join(response.rsplit(answer, 1)))
        yield [_with(case, f"{case.name} with {name} ({short(text_)})", response=text_) for text_ in texts]
    yield [_with(case, f"{case.name} with {name}", response=text) for name, text in LARGE.items()]


# ---------------------------------------------------------------------------------------------------------- repeatable


def _repeatable(
    run: Callable[..., list[Verdict]], cases: Sequence[Case], workers: int, seed: int, deterministic: bool
) -> list[Check]:
    """Twice in two processes in the same order, then in several processes in another order."""
    if not cases:
        said = ("every row hangs or ends the worker",)
        return [Check("determinism", "nothing", said), Check("concurrency", "nothing", said)]
    order = list(range(len(cases))) * math.ceil(ENOUGH / len(cases))
    alone = [[cases[i] for i in order] for _ in range(2)]
    once, twice = (run(part, workers=1) for part in alone)
    seen: dict[int, Verdict] = {}
    changed: dict[int, str] = {}
    for index, verdict in [*zip(order, once, strict=True), *zip(order, twice, strict=True)]:
        if not same(seen.setdefault(index, verdict), verdict):
            changed.setdefault(index, f"{cases[index].name}: {told(seen[index])}, then {told(verdict)}")
    together = random.Random(seed).sample(order, len(order))
    moved: dict[int, str] = {}
    for index, verdict in zip(together, run([cases[i] for i in together], workers=workers), strict=True):
        if index not in changed and not same(seen[index], verdict):
            moved[index] = f"{cases[index].name}: {told(seen[index])}, but {told(verdict)} in another order"
    rows = f"{len(cases)} rows, {len(order)} scorings"
    checks = []
    for name, where, found in (
        ("determinism", "in each of two processes", changed),
        ("concurrency", f"in 1 and in {workers} processes", moved),
    ):
        problems, notes = [found[index] for index in sorted(found)], []
        if problems and not deterministic:
            notes = [f"{len(problems)} rows change their verdict; it says of itself `deterministic = False`"]
            problems = []
        elif problems and changed and found is moved:
            notes = ["its verdicts change in one process already, so this may be no fault of its own"]
        checks.append(Check(name, f"{rows} {where}", tuple(problems), tuple(notes)))
    return checks


def same(one: Verdict, other: Verdict) -> bool:
    """Whether two verdicts say the same of a sample; `details` and times may differ."""
    if (one.status, one.reason, one.extracted) != (other.status, other.reason, other.extracted):
        return False
    if one.components.keys() != other.components.keys():
        return False
    pairs = [(one.score or 0.0, other.score or 0.0)]
    pairs += [(value, other.components[key]) for key, value in one.components.items()]
    return all(math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12) for a, b in pairs)


# ------------------------------------------------------------------------------------------------------------- results


def _results(spec: VerifierSpec, cases: Sequence[Case], start_deadline: float) -> tuple[Check, bool]:
    """What the verifier returns is plain data, seen before the pool has made a verdict of it.

    Also whether it claims to be deterministic, as verifiers do that say nothing of it.
    """
    own = {"verifier": spec.name, "verifier_params": spec.params, "verifier_timeout": spec.timeout}
    raw_spec = VerifierSpec(name=f"{__name__}:raw", timeout=spec.timeout, env=spec.env, **own)
    verdicts = score(raw_spec, cases, workers=1, retries=0, start_deadline=start_deadline) if cases else []
    problems = [
        f"{case.name}: {problem}"
        for case, verdict in zip(cases, verdicts, strict=True)
        for problem in verdict.details.get("problems", ())
    ]
    claims = all(verdict.details.get("deterministic", True) for verdict in verdicts)
    return Check("results", f"{len(cases)} rows", tuple(problems)), claims


def _replies(rows: Sequence[tuple[Case, Verdict]], traits: Traits) -> tuple[Check, bool]:
    """As `_results` of an isolated verifier: out of its sandbox come verdicts, which say what was wrong with a result."""
    problems = [f"{case.name}: {said.reason}" for case, said in rows if said.reason.startswith("invalid_result")]
    problems += [f"{case.name}: details are not JSON" for case, said in rows if "not_json" in said.details]
    problems += [f"{case.name}: details are too long" for case, said in rows if "too_long" in said.details]
    return Check("results", f"{len(rows)} rows", tuple(problems)), traits.deterministic


def raw(verifier: str, verifier_params: Mapping[str, Any], verifier_timeout: float, **sample: Any) -> Any:
    """A verifier in whose place it runs: `details["problems"]` is what is wrong with what that one returns."""
    bound = _bound(verifier, json.dumps(verifier_params), verifier_timeout)
    columns = {key: value for key, value in sample.items() if key not in SAMPLE_FIELDS}
    results = bound.call([{**{key: sample[key] for key in SAMPLE_FIELDS}, "metadata": columns}])
    if not inspect.isawaitable(results):
        return _inspected(bound, results)

    async def later() -> dict[str, Any]:
        return _inspected(bound, await results)

    return later()


@functools.cache
def _bound(name: str, params: str, timeout: float) -> Bound:
    return load(name, resolve(name), json.loads(params), timeout)


def _inspected(bound: Bound, results: Sequence[Any]) -> dict[str, Any]:
    if isinstance(results[0], Exception):  # how a batched verifier says that one of its samples failed
        raise results[0]
    found = {"problems": problems_of(results[0]), "deterministic": bound.traits.deterministic}
    return {"score": 1.0, "details": found}


def problems_of(result: Any) -> list[str]:
    """What keeps a verifier's result from being stored and sent: each a sentence; none for a good one."""
    problems = []
    value = result.get("score") if isinstance(result, Mapping) else getattr(result, "score", result)
    if isinstance(value, Real) and not math.isfinite(float(value)):
        problems.append(f"the score is {value}, not a finite number")
    elif (verdict := to_verdict(result)).reason.startswith("invalid_result"):
        problems.append(verdict.reason)
    details = result.get("details") if isinstance(result, Mapping) else getattr(result, "details", None)
    try:
        size = len(json.dumps(details, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        problems.append(f"details are not JSON: {error}")
    else:
        if size > MAX_DETAILS:
            problems.append(f"details are {size} characters long; {MAX_DETAILS} are kept")
    try:
        pickle.loads(pickle.dumps(result))
    except Exception as error:  # noqa: BLE001 - an object may raise anything while it is pickled
        problems.append(f"it cannot be pickled: {error!r}")
    return problems


# -------------------------------------------------------------------------------------------------------------- helpers


def why(verdict: Verdict) -> str:
    """The reason of a verdict, and the error behind it when there is one."""
    error = verdict.details.get("error")
    return f"{verdict.reason}: {short(str(error), 160)}" if error else verdict.reason


def told(verdict: Verdict) -> str:
    """A verdict in a few words."""
    said = verdict.status if verdict.score is None else f"{verdict.status} {verdict.score:g}"
    about = [verdict.reason] if verdict.reason else []
    if verdict.extracted is not None:
        about.append(f"answer {short(verdict.extracted)}")
    return f"{said} ({', '.join(about)})" if about else said


def short(text: str, length: int = 40) -> str:
    """The text on one line and not longer than `length`."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def _with(case: Case, name: str, **changes: Any) -> Case:
    """The case alone, with another `response`, `reference` or `metadata`."""
    rollout = replace(case.rollout, text=changes.pop("response"), raw=None) if "response" in changes else case.rollout
    return Case(name, rollout, replace(case.prompt, **changes))
