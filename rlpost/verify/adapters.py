"""Reward functions written for other trainers, as verifiers.

In a file of one's own, named in the configuration as `my_rewards.py:score`:

    from rlpost.verify.adapters import from_trl
    from their_package.rewards import accuracy_reward

    score = from_trl(accuracy_reward)

Each adapter takes the function, or its name as `file.py:function` or `module:function`. What the function raises is
let through, so the sample is unverified; some of these trainers make it a reward of zero.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from numbers import Real
from typing import Any

from rewards._response import answer_tag as last_tag
from rewards._response import visible
from rlpost.verify import expressions
from rlpost.verify.protocol import VerifierError
from rlpost.verify.registry import resolve

Verify = Callable[..., Any]


def from_verl(function: Verify | str, data_source: str = "") -> Verify:
    """`compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs) -> float | dict`, sync or async.

    `ground_truth` is the sample's reference; `data_source`, `extra_info` and other arguments the function names are
    columns of those names, or keys of the configuration. A dict's numbers beside `score` become components, the rest
    details.
    """
    function = _function(function)

    def verify(response: str, reference: Any, **sample: Any) -> Any:
        given = {
            "data_source": sample.get("data_source", data_source),
            "solution_str": response,
            "ground_truth": reference,
            "extra_info": sample.get("extra_info"),
        }
        return _then(function(**_accepted(function, given, sample)), _verl_result)

    return _isolated(verify, _needed(function, "data_source", "solution_str", "ground_truth", "extra_info"))


def _verl_result(result: Any) -> Any:
    if not isinstance(result, Mapping):
        return _number(result)
    if "score" not in result:
        raise VerifierError(f"a verl reward function returned a dict with {', '.join(result)}; it must have 'score'")
    return {"score": _number(result["score"]), **_parts({k: v for k, v in result.items() if k != "score"})}


def from_trl(function: Verify | str, reference: str = "solution", conversational: bool = False) -> Verify:
    """`f(prompts, completions, **columns) -> list[float | None]`, sync or async; None is unverified.

    Called with a batch of one. Every column is given by its name, as a list of one value; only those the function
    names, unless it takes `**kwargs`.

    Args:
        reference: the name under which the function expects the sample's reference.
        conversational: give prompt and completion as lists of one chat message instead of text.

    Raises:
        VerifierError: the function needs `completion_ids` (verifiers see text), or does not return one value.
    """
    function = _function(function)
    needed = inspect.signature(function).parameters.get("completion_ids")
    if needed is not None and needed.default is needed.empty:
        raise VerifierError(f"{_name(function)} needs completion_ids, and a verifier sees the text only")

    def verify(response: str, prompt: str = "", **sample: Any) -> Any:
        given = {
            "prompts": [[{"role": "user", "content": prompt}] if conversational else prompt],
            "completions": [[{"role": "assistant", "content": response}] if conversational else response],
        }
        columns = {key: [value] for key, value in sample.items()}
        columns[reference] = [sample.get("reference")]
        result = function(**_accepted(function, given, columns, everything=True))
        return _then(result, functools.partial(_only, function))

    return _isolated(verify, _needed(function, "prompts", "completions", reference))


def from_reasoning_gym(task: Any, answer_tag: bool = True) -> Verify:
    """A data set of reasoning-gym, or a task's name: `score_answer(answer, entry) -> float`.

    The entry is the column `entry`, which a reasoning_gym source gives, or else the reference when that is a mapping.
    A response on which the scorer fails is wrong when it works on the entry's own answer.

    Args:
        answer_tag: of what follows the thought, take what stands in the last `<answer>` when there is one.

    Raises:
        VerifierError: `task` is neither; or, when called, the sample has no entry.
    """
    scorer = _scorer(task)

    def verify(response: str, reference: Any = None, entry: Mapping[str, Any] | None = None) -> dict[str, Any]:
        row = entry if entry is not None else reference
        if not isinstance(row, Mapping):
            raise VerifierError("a reasoning-gym scorer needs the row's entry: name the column in data.train.metadata")
        return scored_by(scorer, response, row, answer_tag)

    return _isolated(verify, ())


def scored_by(
    scorer: Callable[..., Any], response: str, entry: Mapping[str, Any], answer_tag: bool = True
) -> dict[str, Any]:
    """What a scorer of reasoning-gym says of a response. It fails wrong where it works on the entry's own answer.

    What the scorer evaluates of the answer must be an expression, or else the answer could say its own score.

    Raises:
        Exception: whatever the scorer raises on both.
    """
    text = visible(response) or ""
    tagged = last_tag(text) if answer_tag else None
    answer = (text if tagged is None else tagged).strip()
    try:
        with expressions.only():
            score = scorer(answer=answer, entry=entry)
        return {"score": float(score), "extracted": answer}
    # Scorers raise whatever they like. One that works on the row's own answer was broken by the response.
    except Exception as error:  # noqa: BLE001
        scorer(answer=entry["answer"], entry=entry)
        return {"score": 0.0, "reason": "scorer_failed", "extracted": answer, "details": {"error": repr(error)}}


def from_openrlhf(function: Verify | str) -> Verify:
    """`reward_func(queries, prompts, labels, **kwargs) -> dict(rewards, scores, extra_logs)`, or a tensor of rewards.

    Called with a batch of one; a query is the prompt with the response behind it, the label is the reference. The
    score is `rewards`; numbers in `scores` and `extra_logs` become components.
    """
    function = _function(function)

    def verify(response: str, reference: Any = None, prompt: str = "", **sample: Any) -> Any:
        given = {"queries": [prompt + response], "prompts": [prompt], "labels": [reference]}
        return _then(function(**_accepted(function, given, sample)), read)

    def read(result: Any) -> Any:
        if not isinstance(result, Mapping):
            return _only(function, result)
        if "rewards" not in result:
            raise VerifierError(f"{_name(function)} returned a dict with {', '.join(result)}; it must have 'rewards'")
        more = {**result.get("extra_logs", {}), **{k: v for k, v in result.items() if k == "scores"}}
        parts = _parts({key: _plain(value) for key, value in more.items()})
        return {"score": _only(function, result["rewards"]), **parts}

    return _isolated(verify, _needed(function, "queries", "prompts", "labels"))


# -------------------------------------------------------------------------------------------------------------- helpers


def _isolated(verify: Verify, needs: Sequence[str]) -> Verify:
    """Nobody here knows what the function does with an answer."""
    verify.isolate = True  # type: ignore[attr-defined]
    verify.needs = needs  # type: ignore[attr-defined]
    return verify


def _function(function: Verify | str) -> Verify:
    found = resolve(function) if isinstance(function, str) else function
    if not callable(found):
        raise VerifierError(f"{function!r} is not a function, nor the name of one as file.py:function")
    return found


def _name(function: Verify) -> str:
    return getattr(function, "__qualname__", repr(function))


def _scorer(task: Any) -> Callable[..., Any]:
    if isinstance(task, str):
        import reasoning_gym

        return reasoning_gym.get_score_answer_fn(task)
    if not callable(getattr(task, "score_answer", None)):
        raise VerifierError(f"{task!r} is neither a reasoning-gym data set nor the name of a task")
    return task.score_answer


def _accepted(
    function: Verify, given: Mapping[str, Any], more: Mapping[str, Any], everything: bool = False
) -> dict[str, Any]:
    """The arguments of `given` and `more` that the function names; with `**kwargs` all `given`, or `everything`.

    Raises:
        VerifierError: the function needs one that is not there.
    """
    arguments = inspect.signature(function).parameters
    values = {**more, **given}
    named = [a for a in arguments.values() if a.kind not in (a.VAR_KEYWORD, a.VAR_POSITIONAL)]
    missing = [a.name for a in named if a.default is a.empty and a.name not in values]
    if missing:
        raise VerifierError(
            f"{_name(function)} needs {', '.join(missing)}, which this sample does not have (it has "
            f"{', '.join(sorted(values))}); name the column in data.train.metadata"
        )
    names = {a.name for a in named}
    if any(a.kind is a.VAR_KEYWORD for a in arguments.values()):
        names |= values.keys() if everything else given.keys()
    return {key: value for key, value in values.items() if key in names}


def _needed(function: Verify, *given: str) -> list[str]:
    """What the function asks of a sample, which the signature of its wrapper does not tell."""
    arguments = inspect.signature(function).parameters.values()
    named = [a for a in arguments if a.kind not in (a.VAR_KEYWORD, a.VAR_POSITIONAL)]
    return [a.name for a in named if a.default is a.empty and a.name not in given]


def _then(result: Any, use: Callable[[Any], Any]) -> Any:
    """`use(result)`, after waiting for it when the function is async."""
    if not inspect.isawaitable(result):
        return use(result)

    async def later(awaitable: Awaitable[Any]) -> Any:
        return use(await awaitable)

    return later(result)


def _only(function: Verify, result: Any) -> float | None:
    """The one value of a batch of one."""
    values = _plain(result)
    values = list(values) if isinstance(values, list | tuple) else [values]
    if len(values) != 1:
        raise VerifierError(f"{_name(function)} returned {len(values)} values for one sample")
    return _number(values[0])


def _plain(value: Any) -> Any:
    """Tensors and arrays as lists and numbers; a list of one as its value."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return _plain(value[0]) if isinstance(value, list | tuple) and len(value) == 1 else value


def _number(value: Any) -> float | None:
    value = _plain(value)
    if value is None or isinstance(value, Real):
        return None if value is None else float(value)
    raise VerifierError(f"a reward function returned {value!r:.200} as its score, not a number or None")


def _parts(values: Mapping[str, Any]) -> dict[str, Any]:
    """Finite numbers as `components`, everything else as `details`."""
    numbers = {key: float(v) for key, v in values.items() if isinstance(v, Real) and math.isfinite(v)}
    return {"components": numbers, "details": {key: value for key, value in values.items() if key not in numbers}}
