"""Rollouts in flight: what a step was promised and has not taken yet, in one file of arrays.

    flight.safetensors
      document          uint8, JSON: whose it is, and of each group its prompt, seeds, texts and verdicts
      tokens, versions  int32, of all rollouts one after the other
      logprobs          float32, likewise
      routes.*          where experts were captured: `Routes.shared` of each group, `own` and `valid` of each rollout

Nothing in the file is run, and what it says of itself is checked before it is believed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rlpost.routing import Routes
from rlpost.types import FinishReason, Group, Pending, Prompt, Rollout, Status, Verdict

FILE = "flight.safetensors"
DTYPES = {"tokens": "int32", "versions": "int32", "logprobs": "float32", "document": "uint8"}


class FlightError(ValueError):
    """A file of rollouts in flight that cannot be read, or is not what its checkpoint says."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Verdict(_Record):
    status: Status
    score: int | float | None
    reason: str
    extracted: str | None
    components: dict[str, int | float]
    details: dict[str, Any]
    seconds: float
    attempts: int
    cached: bool

    @model_validator(mode="after")
    def _can_be(self) -> Self:
        self.verdict()
        return self

    def verdict(self) -> Verdict:
        return Verdict(**self.model_dump())


class _Routed(_Record):
    """Rows of `own` and of `valid`."""

    own: int = Field(ge=0)
    valid: int = Field(ge=0)


class _Rollout(_Record):
    tokens: int = Field(ge=0)
    finish_reason: FinishReason
    text: str
    raw: str | None
    reward: int | float | None
    verdicts: dict[str, _Verdict]
    routes: _Routed | None


class _Group(_Record):
    """`asked` is a digest of the prompt; `shared` the rows that the rollouts' routes have in common."""

    id: int
    step: int
    prompt: str
    asked: str
    seeds: list[int]
    rollouts: list[_Rollout] | None
    shared: int = Field(ge=0)


class _Document(_Record):
    format: Literal[1]
    run: str
    step: int
    made_with: dict[str, Any]
    groups: list[_Group]


@dataclass(frozen=True)
class Flight:
    """What was read.

    Attributes:
        made_with: the settings that decide what is sampled and scored, as the run had them.
    """

    made_with: dict[str, Any]
    _groups: list[_Group]
    _arrays: Mapping[str, np.ndarray]

    def drawn(self) -> dict[int, list[str]]:
        """By step the ids of the prompts, in order of submission."""
        found: dict[int, list[str]] = {}
        for group in self._groups:
            found.setdefault(group.step, []).append(group.prompt)
        return found

    def pending(self, prompts: Mapping[str, Prompt]) -> list[Pending]:
        """The groups of these prompts, in order. One whose prompt was another when it was asked has to be sampled again.

        Args:
            prompts: by id, all that are in `drawn`.

        Raises:
            FlightError: a rollout cannot be of its prompt.
        """
        rows = _Rows(self._arrays)
        try:
            return [_pending(g, prompts[g.prompt], rows) for g in self._groups]
        except ValueError as error:
            raise FlightError(f"{FILE}: {error}") from None


def save(folder: Path, run: str, step: int, made_with: Mapping[str, Any], groups: Sequence[Pending]) -> None:
    """Write what is in flight after `step` of the run with this id.

    Args:
        made_with: plain JSON data; see `Flight`.
    """
    from safetensors.numpy import save_file

    rollouts = [r for g in groups if g.group is not None for r in g.group.rollouts]
    document = {
        "format": 1,
        "run": run,
        "step": step,
        "made_with": dict(made_with),
        "groups": [_described(g) for g in groups],
    }
    routed = [r.routes for r in rollouts if r.routes is not None]
    shared = [s for g in groups if (s := _shared(g)) is not None]
    arrays = {
        "document": np.frombuffer(json.dumps(document, default=str).encode(), np.uint8),
        "tokens": _joined((r.response_ids for r in rollouts), "int32"),
        "versions": _joined((r.versions for r in rollouts), "int32"),
        "logprobs": _joined((r.logprobs for r in rollouts), "float32"),
    }
    if routed:
        arrays |= {
            "routes.shared": np.concatenate(shared),
            "routes.own": np.concatenate([routes.own for routes in routed]),
            "routes.valid": np.concatenate([routes.valid for routes in routed]),
        }
    save_file(arrays, folder / FILE)


def load(folder: Path, run: str, step: int) -> Flight:
    """Read what `save` wrote after `step` of the run with this id.

    Raises:
        FlightError: it cannot be read, is of another run or step, or its arrays are not as long as it says.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(folder / FILE)
        document = _Document.model_validate(json.loads(arrays["document"].tobytes()))
        for name, dtype in DTYPES.items():
            if arrays[name].dtype != dtype or arrays[name].ndim != 1:
                raise FlightError(f"{FILE}: {name} is {arrays[name].dtype} of {arrays[name].ndim} dimensions")
        _check_lengths(document, arrays)
    except (SafetensorError, OSError, KeyError, RecursionError) as error:
        raise FlightError(f"{FILE} cannot be read: {error!r}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise FlightError(f"{FILE} cannot be read: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except FlightError:
        raise
    except ValueError as error:
        raise FlightError(f"{FILE} cannot be read: {error}") from None
    if (document.run, document.step) != (run, step):
        raise FlightError(f"{FILE} is of run {document.run} after step {document.step}, not of {run} after step {step}")
    return Flight(document.made_with, document.groups, arrays)


def problems(folder: Path, files: Iterable[str], state: Mapping[str, Any], run: str) -> list[str]:
    """What is wrong with the rollouts in flight of a checkpoint, whose `state` says how many groups there are.

    A checkpoint that was written before these were kept has none, and says so by not having `flight`.
    """
    promised = state.get("flight", 0)
    if FILE not in files:
        return [f"no {FILE}"] if promised else []
    try:
        drawn = load(folder, run, state["step"]).drawn()
    except FlightError as error:
        return [str(error)]
    there = sum(map(len, drawn.values()))
    if there != promised:
        return [f"{FILE} has {there} groups in flight, state.json {promised}"]
    if other := [step for step, ids in drawn.items() if state["drawn"].get(str(step), [])[: len(ids)] != ids]:
        return [f"{FILE} and state.json differ in the prompts of step {other[0]}"]
    return []


class _Rows:
    """Takes each array from its beginning to its end."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._arrays = arrays
        self._taken = dict.fromkeys(arrays, 0)

    def next(self, name: str, count: int) -> np.ndarray:
        first = self._taken[name]
        self._taken[name] = first + count
        return self._arrays[name][first : first + count]


def _check_lengths(document: _Document, arrays: Mapping[str, np.ndarray]) -> None:
    rollouts = [r for g in document.groups for r in g.rollouts or []]
    routed = [r.routes for r in rollouts if r.routes is not None]
    tokens = sum(r.tokens for r in rollouts)
    wanted = {"tokens": tokens, "versions": tokens, "logprobs": tokens}
    if routed:
        wanted |= {
            "routes.shared": sum(g.shared for g in document.groups),
            "routes.own": sum(routes.own for routes in routed),
            "routes.valid": sum(routes.valid for routes in routed),
        }
    for name, rows in wanted.items():
        if len(arrays[name]) != rows:
            raise FlightError(f"{FILE}: {name} has {len(arrays[name])} rows where {rows} are spoken of")
    if wrong := next((g for g in document.groups if not g.shared and any(r.routes for r in g.rollouts or [])), None):
        raise FlightError(f"{FILE}: group {wrong.id} has routes and none of its prompt")
    if wrong := next((g for g in document.groups if g.rollouts is not None and len(g.rollouts) != len(g.seeds)), None):
        raise FlightError(f"{FILE}: group {wrong.id} has {len(wrong.seeds)} seeds, not one for each rollout")


def _asked(prompt: Prompt) -> str:
    """16 hex digits of all that decides what a prompt's samples and verdicts are."""
    said = [prompt.token_ids.tolist(), prompt.reference, dict(prompt.metadata), prompt.source, prompt.verifiers]
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _shared(pending: Pending) -> np.ndarray | None:
    """The routes of the prompt, one array for all samples of a group."""
    rollouts = pending.group.rollouts if pending.group is not None else ()
    return next((r.routes.shared for r in rollouts if r.routes is not None), None)


def _described(pending: Pending) -> dict[str, Any]:
    shared = _shared(pending)
    rollouts = None if pending.group is None else [_said(r) for r in pending.group.rollouts]
    return {
        "id": pending.id,
        "step": pending.step,
        "prompt": pending.prompt.id,
        "asked": _asked(pending.prompt),
        "seeds": list(pending.seeds),
        "rollouts": rollouts,
        "shared": 0 if shared is None else len(shared),
    }


def _said(r: Rollout) -> dict[str, Any]:
    return {
        "tokens": len(r.response_ids),
        "finish_reason": r.finish_reason,
        "text": r.text,
        "raw": r.raw,
        "reward": r.reward,
        "verdicts": {
            label: {name: getattr(verdict, name) for name in _Verdict.model_fields}
            for label, verdict in r.verdicts.items()
        },
        "routes": None if r.routes is None else {"own": len(r.routes.own), "valid": len(r.routes.valid)},
    }


def _pending(g: _Group, prompt: Prompt, rows: _Rows) -> Pending:
    shared = rows.next("routes.shared", g.shared) if g.shared else None
    parts = [_Part.of(r, shared, rows) for r in g.rollouts or []]
    group = None
    if g.rollouts is not None and g.asked == _asked(prompt):
        rollouts = tuple(part.rollout(g, number, prompt) for number, part in enumerate(parts))
        group = Group(g.id, g.step, prompt, rollouts)
    return Pending(g.id, g.step, prompt, tuple(g.seeds), group)


@dataclass(frozen=True)
class _Part:
    """A rollout's record and its arrays."""

    record: _Rollout
    tokens: np.ndarray
    logprobs: np.ndarray
    versions: np.ndarray
    routes: tuple[np.ndarray, np.ndarray, np.ndarray] | None

    @classmethod
    def of(cls, r: _Rollout, shared: np.ndarray | None, rows: _Rows) -> Self:
        tokens, logprobs, versions = (rows.next(name, r.tokens) for name in ("tokens", "logprobs", "versions"))
        if r.routes is None or shared is None:
            return cls(r, tokens, logprobs, versions, None)
        routes = shared, rows.next("routes.own", r.routes.own), rows.next("routes.valid", r.routes.valid)
        return cls(r, tokens, logprobs, versions, routes)

    def rollout(self, g: _Group, number: int, prompt: Prompt) -> Rollout:
        return Rollout(
            prompt_id=prompt.id,
            group=g.id,
            sample=number,
            prompt_ids=prompt.token_ids,
            response_ids=self.tokens,
            logprobs=self.logprobs,
            versions=self.versions,
            finish_reason=self.record.finish_reason,
            text=self.record.text,
            raw=self.record.raw,
            seed=g.seeds[number],
            routes=None if self.routes is None else Routes(*self.routes),
            verdicts={label: verdict.verdict() for label, verdict in self.record.verdicts.items()},
            reward=self.record.reward,
        )


def _joined(parts: Iterable[np.ndarray], dtype: str) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *parts])
