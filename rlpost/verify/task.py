"""The pool's records, what crosses to a worker, and what comes back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rlpost.types import Prompt, Rollout, Verdict
from rlpost.verify.protocol import VerifierError

if TYPE_CHECKING:
    from rlpost import config


@dataclass(eq=False)
class Item:
    """A rollout on its way to its verdicts."""

    rollout: Rollout
    verdicts: dict[str, Verdict | None]  # in the order of the configuration; None is still to come
    future: Future[Rollout]


@dataclass(eq=False)
class Task:
    """One verdict to get: an item and one verifier."""

    item: Item
    spec: config.VerifierSpec
    id: int
    line: bytes
    failures: Counter[str] = field(default_factory=Counter)  # by cause: timeout, crash, exception, invalid_reply

    @property
    def alone(self) -> bool:
        return self.failures.total() > 0


@dataclass
class Failure:
    """What ended a worker's service: `task` was running when it happened, for `seconds`."""

    task: Task
    cause: str
    text: str
    seconds: float


@dataclass
class Tally:
    statuses: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    timeouts: int = 0


def described(rollout: Rollout) -> str:
    """The rollout's name in messages."""
    return f"prompt {rollout.prompt_id!r} sample {rollout.sample}"


def encoded(rollout: Rollout, prompt: Prompt) -> bytes:
    """The sample as its verifiers see it, in JSON.

    Raises:
        VerifierError: the reference or the metadata is not plain JSON.
    """
    sample = {
        "response": rollout.text,
        "reference": prompt.reference,
        "prompt": prompt.text,
        "prompt_id": prompt.id,
        "finish_reason": rollout.finish_reason,
        "token_count": len(rollout.response_ids),
        "metadata": dict(prompt.metadata),
    }
    try:
        return json.dumps(sample).encode()
    except (TypeError, ValueError) as error:
        raise VerifierError(f"prompt {prompt.id!r}: its reference and metadata must be plain JSON: {error}") from error


def outcome_of(task: Task, reply: Mapping[str, Any]) -> Verdict | Mapping[str, Any]:
    """The verdict in a worker's reply, or the exception the verifier raised.

    Raises:
        ValueError: the reply is neither, or belongs to another task.
    """
    try:
        if reply["id"] != task.id:
            raise ValueError(f"a reply to item {reply['id']} came instead of {task.id}")
        if "exception" in reply:
            return dict(reply["exception"])
        return Verdict(**reply["verdict"] | {"details": reply["details"], "attempts": task.failures.total() + 1})
    except (KeyError, TypeError) as error:
        raise ValueError(f"a verifier worker sent {str(reply)[:200]}: {error!r}") from error
