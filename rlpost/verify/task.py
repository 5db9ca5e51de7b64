"""The pool's records: what is to be scored, what crosses to a worker, what comes back, what is counted."""

from __future__ import annotations

import itertools
import json
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rlpost.types import Prompt, Rollout, Verdict
from rlpost.verify.protocol import Traits, VerifierError

if TYPE_CHECKING:
    from rlpost import config

MAX_CALLS = 16  # a worker is never given more at once, so that little waits behind a slow one
KEPT_TIMES = 50_000  # of which percentiles are taken
SANDBOX_SECONDS = 60.0  # to replace a sandbox that was lost
# What ends a worker may be the answer's doing; by its name the reason where it befell all samples of a group.
ON_ROW = {"timeout": "hangs_on_row", "crash": "crashes_on_row"}


@dataclass(frozen=True)
class Entry:
    """A verifier of the pool: its place in the configuration, what it is, and whose verdicts it needs first."""

    index: int
    spec: config.VerifierSpec
    traits: Traits
    needs: tuple[str, ...]
    prefix: bytes  # of its keys in the cache

    @property
    def raw(self) -> bool:
        """Whether it gets responses with their special tokens."""
        return self.traits.raw if self.spec.raw is None else self.spec.raw

    @property
    def patience(self) -> float:
        """Seconds after which its worker is killed. Where a sandbox keeps the time-out, that is for the sandbox's faults."""
        return self.spec.timeout if not self.traits.isolate else 2 * self.spec.timeout + SANDBOX_SECONDS

    def sample(self, item: Item) -> bytes:
        """The item as this verifier sees it."""
        return item.raw if self.raw else item.sample


@dataclass(eq=False)
class Item:
    """A rollout on its way to its verdicts."""

    rollout: Rollout
    sample: bytes
    raw: bytes  # `sample` with special tokens; empty where no verifier asks for it
    verdicts: dict[str, Verdict | None]  # by label, the judge's first; None is still to come
    weights: dict[str, float]
    future: Future[Rollout]
    dependents: dict[str, list[Task]] = field(default_factory=dict)  # by the name of the verdict they wait for

    def scored(self) -> Rollout:
        return self.rollout.scored({name: v for name, v in self.verdicts.items() if v is not None}, self.weights)

    def scores(self, names: Iterable[str]) -> dict[str, float | None]:
        """The scores by name; None where there is no verdict, or one without a score."""
        found = {name: self.verdicts.get(name) for name in names}
        return {name: verdict.score if verdict is not None else None for name, verdict in found.items()}


@dataclass(eq=False)
class Siblings:
    """The tasks of one verifier for the several samples of a group.

    A time-out or a crash is the answer's doing when the verifier could score another answer to the same prompt, and
    else that of the row or the verifier. So a task that was stopped waits here until that is known.
    """

    undecided: int
    scored: bool = False
    stopped: list[tuple[Task, Verdict]] = field(default_factory=list)

    def decided(self, task: Task, verdict: Verdict) -> list[tuple[Task, list[Verdict]]]:
        """Note what became of a task; of which tasks the verdict is known now."""
        self.undecided -= 1
        known = [] if task.stopped else [(task, [verdict])]
        if task.stopped:
            self.stopped.append((task, verdict))
        elif verdict.score is not None:
            self.scored = True
        if self.scored or not self.undecided:
            blamed, self.stopped = self.stopped, []
            known += [(one, [said if self.scored else _on_row(said)]) for one, said in blamed]
        return known


def _on_row(verdict: Verdict) -> Verdict:
    """What befell every answer to the prompt."""
    return replace(verdict, status="unverified", score=None, reason=ON_ROW[verdict.reason])


@dataclass(eq=False)
class Task:
    """What one verifier is to say of one item, or of all items of a group."""

    entry: Entry
    items: tuple[Item, ...]
    key: bytes | None = None  # in the cache; None when its verdict must not be kept
    siblings: Siblings | None = None  # None where it is the only task of its verifier for the group
    needs: int = 0  # verdicts of other verifiers still to come
    order: int = 0
    queued: float = 0.0  # seconds of `time.monotonic`
    failures: Counter[str] = field(default_factory=Counter)  # by cause: timeout, crash, exception, invalid_reply, batch
    stopped: bool = False  # it ends with a time-out or a crash that may be the answer's doing

    @property
    def alone(self) -> bool:
        return self.failures.total() > 0


@dataclass(eq=False)
class Call:
    """What a worker is asked at once: one task, or several for a batched verifier."""

    id: int
    entry: Entry
    tasks: list[Task]

    def line(self) -> bytes:
        samples = [self._sample(item) for task in self.tasks for item in task.items]
        return b'{"id":%d,"verifier":%d,"samples":[%s]}\n' % (self.id, self.entry.index, b",".join(samples))

    def _sample(self, item: Item) -> bytes:
        sample = self.entry.sample(item)
        if not self.entry.traits.dependent:
            return sample
        return sample[:-1] + b',"verdicts":%s}' % json.dumps(item.scores(self.entry.needs)).encode()


@dataclass
class Failure:
    """What ended a worker's service: `call` was running when it happened, for `seconds`."""

    call: Call
    cause: str
    text: str
    seconds: float


class Backlog:
    """Tasks that wait for a worker, first come first served within the limits of each verifier.

    Not thread-safe: the pool's lock is around it.
    """

    def __init__(self, entries: Sequence[Entry], workers: int) -> None:
        self._entries = entries
        self._workers = workers
        self._queues: list[deque[Task]] = [deque() for _ in entries]
        self._running = [0] * len(entries)
        self._calls = 0
        self._tasks = 0

    def __len__(self) -> int:
        return sum(map(len, self._queues))

    def add(self, task: Task, now: float) -> None:
        task.order, task.queued = self._tasks, now
        self._tasks += 1
        self._queues[task.entry.index].append(task)

    def give_back(self, calls: Iterable[Call]) -> None:
        """What a worker was given and did not begin, to the front."""
        for task in reversed([task for call in calls for task in call.tasks]):
            self._queues[task.entry.index].appendleft(task)

    def ready(self) -> bool:
        return any(self._open(entry) for entry in self._entries)

    def take(self) -> deque[Call]:
        """What one worker does next, all of one verifier, which counts as running until `done`.

        The verifier is that of the task that waits longest. A task that failed before comes alone.
        """
        entry = min(filter(self._open, self._entries), key=lambda e: self._queues[e.index][0].order)
        queue = self._queues[entry.index]
        self._running[entry.index] += 1
        if entry.traits.mode == "batch":
            # A worker that is idle shall have its share of a short queue.
            size = min(entry.spec.batch_size, -(-len(queue) // self._workers))
            return deque([self._call(entry, self._together(queue, size))])
        # Several calls save round trips while the queue is long; at its end they would keep work from idle workers.
        size = max(1, min(MAX_CALLS, len(queue) // (2 * self._workers)))
        return deque(self._call(entry, [task]) for task in self._together(queue, size))

    def done(self, entry: Entry) -> None:
        self._running[entry.index] -= 1

    def clear(self) -> None:
        for queue in self._queues:
            queue.clear()

    def _open(self, entry: Entry) -> bool:
        limit = entry.spec.concurrency
        return bool(self._queues[entry.index]) and (limit is None or self._running[entry.index] < limit)

    def _together(self, queue: deque[Task], size: int) -> list[Task]:
        tasks = [queue.popleft()]
        while queue and len(tasks) < size and not tasks[0].alone and not queue[0].alone:
            tasks.append(queue.popleft())
        return tasks

    def _call(self, entry: Entry, tasks: list[Task]) -> Call:
        self._calls += 1
        return Call(self._calls, entry, tasks)


@dataclass
class Tally:
    """What is counted of one verifier between two calls of `stats`."""

    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT_TIMES))  # of verdicts that were worked out
    waits: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT_TIMES))  # seconds from submission to a worker
    timeouts: int = 0
    errors: int = 0
    cache_hits: int = 0

    def add(self, other: Tally) -> None:
        self.seconds += other.seconds
        self.waits += other.waits
        self.timeouts += other.timeouts
        self.errors += other.errors
        self.cache_hits += other.cache_hits


def summary(tallies: Mapping[str, Tally]) -> dict[str, float]:
    """The tallies as metrics, described at `VerifierPool.stats`."""
    values: dict[str, float] = {}
    for name, tally in tallies.items():
        values |= {
            f"verifier/{name}/timeouts": tally.timeouts,
            f"verifier/{name}/errors": tally.errors,
            f"verifier/{name}/cache_hits": tally.cache_hits,
        }
        for what, times in (("seconds", tally.seconds), ("wait", tally.waits)):
            if times:
                found = {"mean": np.mean(times), "p50": np.percentile(times, 50), "p99": np.percentile(times, 99)}
                values |= {f"verifier/{name}/{what}_{key}": float(value) for key, value in found.items()}
    return values


def described(rollout: Rollout) -> str:
    """The rollout's name in messages."""
    return f"prompt {rollout.prompt_id!r} sample {rollout.sample}"


def encoded(rollout: Rollout, prompt: Prompt, raw: bool = False) -> bytes:
    """The sample as its verifiers see it, in JSON; those that ask for the raw text, with `raw`.

    Raises:
        VerifierError: the reference or the metadata is not plain JSON.
    """
    sample = {
        "response": rollout.raw if raw and rollout.raw is not None else rollout.text,
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


def outcomes_of(call: Call, reply: Mapping[str, Any]) -> list[list[Verdict] | Mapping[str, Any]]:
    """For each task of a call its items' verdicts, or the exception that the verifier raised.

    Raises:
        ValueError: the reply is neither, or belongs to another call.
    """
    try:
        if reply["id"] != call.id:
            raise ValueError(f"a reply to call {reply['id']} came instead of {call.id}")
        if "exception" in reply:
            return [dict(reply["exception"]) for _ in call.tasks]
        outcomes = list(reply["outcomes"])
        if len(outcomes) != sum(len(task.items) for task in call.tasks):
            raise ValueError(f"{len(outcomes)} outcomes came of call {call.id}")
        ends = list(itertools.accumulate(len(task.items) for task in call.tasks))
        return [_outcome(t, outcomes[end - len(t.items) : end]) for t, end in zip(call.tasks, ends, strict=True)]
    except (KeyError, TypeError) as error:
        raise ValueError(f"a verifier worker sent {str(reply)[:200]}: {error!r}") from error


def _outcome(task: Task, replies: Sequence[Mapping[str, Any]]) -> list[Verdict] | Mapping[str, Any]:
    for reply in replies:
        if "exception" in reply:
            return dict(reply["exception"])
    attempts = task.failures.total() + 1
    return [Verdict(**reply["verdict"] | {"details": reply["details"], "attempts": attempts}) for reply in replies]
