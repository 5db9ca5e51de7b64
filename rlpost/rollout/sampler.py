"""Groups on their way: submitted to the fleet, scored by the verifier pool, collected step by step, all accounted for."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlpost.faults import DeadlineError
from rlpost.rollout.request import SampleRequest, Sampling, sample_seed
from rlpost.types import Group, Prompt, Rollout

if TYPE_CHECKING:
    from rlpost.rollout.fleet import Fleet
    from rlpost.verify import VerifierPool
    from rlpost.verify.remote import ClusterPool


@dataclass
class Account:
    """Where every sample is. `submitted == consumed + dropped + running` at all times."""

    submitted: int = 0
    consumed: int = 0
    dropped: int = 0
    running: int = 0

    def check(self) -> None:
        if self.submitted != self.consumed + self.dropped + self.running:
            raise RuntimeError(
                f"samples went missing: submitted {self.submitted} != consumed {self.consumed} + dropped {self.dropped} "
                f"+ running {self.running}"
            )


class Countdown:
    """How many are left, counted down by many threads."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._lock = threading.Lock()

    def down(self) -> int:
        with self._lock:
            self._left -= 1
            return self._left


class GroupSampler:
    """Prompts in, scored groups out.

    A prompt drawn again within a step gets its next samples: the first draw those of numbers 0 to n - 1, the second n
    to 2 n - 1. So two groups of one prompt are never copies of each other.

    Args:
        seed: the run's; a sample's seed depends on it, the step, the prompt and the sample's number alone.
        deadline: seconds one group may take to be sampled.
    """

    def __init__(self, fleet: Fleet, pool: VerifierPool | ClusterPool, seed: int, deadline: float) -> None:
        self.fleet = fleet
        self.pool = pool
        self.seed = seed
        self.deadline = deadline
        self.account = Account()
        self._next_group = 0
        self._done: dict[int, queue.Queue[Group | BaseException]] = {}
        self._drawn: dict[int, Counter[str]] = {}  # by step, how many samples of each prompt were asked for

    def submit(self, prompt: Prompt, step: int, samples: int, sampling: Sampling) -> None:
        """Start a group for `step`; `collect(step, ...)` will have it."""
        put = self._done.setdefault(step, queue.Queue()).put
        self._start(
            prompt, step, samples, sampling, self.seed, self._drawn.setdefault(step, Counter()), put, routes=True
        )
        self.account.submitted += samples
        self.account.running += samples

    def collect(self, step: int, count: int) -> list[Group]:
        """The next `count` groups of `step`, scored, in order of submission.

        They leave the account's `running`; the caller says `consumed` or `dropped` of each.
        """
        groups = self._take(self._done.setdefault(step, queue.Queue()), count, f"the groups of step {step}")
        self.account.running -= sum(len(g.rollouts) for g in groups)
        return groups

    def forget(self, step: int) -> None:
        """Nothing more is wanted of a step."""
        del self._done[step], self._drawn[step]

    def state_dict(self) -> dict[str, int]:
        """What was done. Samples still running are not in it: a resumed run samples them again."""
        return {
            "next_group": self._next_group,
            "consumed": self.account.consumed,
            "dropped": self.account.dropped,
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self._next_group = state["next_group"]
        consumed, dropped = state["consumed"], state["dropped"]
        self.account = Account(submitted=consumed + dropped, consumed=consumed, dropped=dropped)

    def sample_all(
        self,
        prompts: Sequence[Prompt],
        samples: int,
        sampling: Sampling,
        seed: int,
        drawn: Counter[str] | None = None,
    ) -> list[Group]:
        """Sample and score every prompt, outside the training account (evaluation), in the order of `prompts`.

        Nothing is learned from these samples: they bring no routes.

        Args:
            drawn: by prompt id how many samples earlier calls of this seed took, which are added to: this call's
                differ from theirs. None begins anew, as an evaluation does to be like the one before.
        """
        drawn = Counter() if drawn is None else drawn
        done: queue.Queue[Group | BaseException] = queue.Queue()
        for prompt in prompts:
            self._start(prompt, -1, samples, sampling, seed, drawn, done.put, routes=False)
        return self._take(done, len(prompts), "the groups of an evaluation")

    def _start(
        self,
        prompt: Prompt,
        step: int,
        samples: int,
        sampling: Sampling,
        seed: int,
        drawn: Counter[str],
        put: Callable[[Group | BaseException], None],
        routes: bool,
    ) -> None:
        group_id = self._next_group
        self._next_group += 1
        first = drawn[prompt.id]
        drawn[prompt.id] += samples
        request = SampleRequest(
            prompt_id=prompt.id,
            group=group_id,
            prompt_ids=prompt.token_ids,
            seeds=tuple(sample_seed(seed, step, prompt.id, i) for i in range(first, first + samples)),
            sampling=sampling,
            deadline=self.deadline,
            routes=routes,
        )

        def sampled(future: Future[list[Rollout]]) -> None:
            try:
                at, rollouts = time.monotonic(), future.result()
                scoring = self.pool.submit_group(rollouts, prompt)
            except Exception as error:  # noqa: BLE001 - a callback's error would be lost: hand it to who collects
                put(error)
                return
            left = Countdown(len(scoring))

            def scored(_: Future[Rollout]) -> None:
                if left.down() > 0:
                    return
                failed = next((f.exception() for f in scoring if f.exception() is not None), None)
                put(failed or Group(group_id, step, prompt, tuple(f.result() for f in scoring), at))

            for f in scoring:
                f.add_done_callback(scored)

        self.fleet.submit(request).add_done_callback(sampled)

    def _take(self, done: queue.Queue[Group | BaseException], count: int, what: str) -> list[Group]:
        expires = time.monotonic() + self.deadline + 60  # engines give up at the deadline; verifiers have their own
        groups = []
        for got in range(count):
            try:
                item = done.get(timeout=max(0.0, expires - time.monotonic()))
            except queue.Empty:
                raise DeadlineError(
                    f"waited {self.deadline + 60:.0f} s for {what}: {got} of {count} came (rollout.deadline)"
                ) from None
            if isinstance(item, BaseException):
                raise item
            groups.append(item)
        return sorted(groups, key=lambda g: g.id)
