"""Groups on their way: submitted to the fleet, scored by the verifier pool, collected step by step, all accounted for."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, TypeVar

from rlpost.faults import DeadlineError
from rlpost.rollout.request import SampleRequest, Sampling, sample_seed
from rlpost.types import Group, Pending, Prompt, Rollout

if TYPE_CHECKING:
    from rlpost.rollout.fleet import Fleet
    from rlpost.verify import VerifierPool
    from rlpost.verify.remote import ClusterPool

T = TypeVar("T")
GLANCE = 1.0  # seconds between two looks after the engines


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


@dataclass(frozen=True)
class InFlight:
    """A group on its way.

    Attributes:
        sampled: done when the engine is.
        scored: the group, once the verifiers are done too.
    """

    id: int
    step: int
    prompt: Prompt
    seeds: tuple[int, ...]
    sampled: Future[list[Rollout]]
    scored: Future[Group]

    def pending(self) -> Pending:
        """As it is now: with what came of it, where something did."""
        whole = self.scored.done() and self.scored.exception() is None
        return Pending(self.id, self.step, self.prompt, self.seeds, self.scored.result() if whole else None)


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
        self._flights: dict[int, list[InFlight]] = {}  # by step, in order of submission
        self._drawn: dict[int, Counter[str]] = {}  # by step, how many samples of each prompt were asked for

    def submit(self, prompt: Prompt, step: int, samples: int, sampling: Sampling) -> None:
        """Start a group for `step`; `collect(step, ...)` will have it."""
        seeds = self._seeds(self.seed, step, prompt, samples, self._drawn.setdefault(step, Counter()))
        self._depart(self._start(self._number(), step, prompt, seeds, sampling, routes=True))

    def resume(self, pending: Pending, sampling: Sampling) -> None:
        """As `submit`, of a group that an earlier process submitted: what came of it is taken, or it is started again."""
        self._drawn.setdefault(pending.step, Counter())[pending.prompt.id] += len(pending.seeds)
        if (group := pending.group) is None:
            self._depart(self._start(pending.id, pending.step, pending.prompt, pending.seeds, sampling, routes=True))
        else:
            sampled, scored = _done(list(group.rollouts)), _done(group)
            self._depart(InFlight(pending.id, pending.step, pending.prompt, pending.seeds, sampled, scored))

    def collect(self, step: int, count: int) -> list[Group]:
        """The next `count` groups of `step`, scored, in order of submission.

        They leave the account's `running`; the caller says `consumed` or `dropped` of each.
        """
        flights = self._flights.setdefault(step, [])
        taken = [flights.pop(0) for _ in range(min(count, len(flights)))]
        groups = self._results([flight.scored for flight in taken], f"the groups of step {step}")
        self.account.running -= sum(len(g.rollouts) for g in groups)
        return groups

    def forget(self, step: int) -> None:
        """Nothing more is wanted of a step."""
        del self._flights[step], self._drawn[step]

    def in_flight(self) -> list[InFlight]:
        """What no step has taken yet, step by step in order of submission."""
        return [flight for step in sorted(self._flights) for flight in self._flights[step]]

    def drain(self) -> None:
        """Wait until the engines are done with all that is in flight, so that none of it meets other weights."""
        self._results([flight.sampled for flight in self.in_flight()], "sequences to end before an update")

    def settle(self, flights: Sequence[InFlight]) -> None:
        """Wait for the verdicts on what the engines are done with. One that fails is left to who collects it."""
        scoring = [f.scored for f in flights if f.sampled.done() and f.sampled.exception() is None]
        late = wait(scoring, timeout=self._patience).not_done
        if late:
            self._expired(len(scoring) - len(late), len(scoring), "the verdicts on what is in flight")

    def state_dict(self) -> dict[str, int]:
        """What was done; what is in flight is `in_flight`'s."""
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
        flights = [
            self._start(self._number(), -1, p, self._seeds(seed, -1, p, samples, drawn), sampling, routes=False)
            for p in prompts
        ]
        return self._results([flight.scored for flight in flights], "the groups of an evaluation")

    def _number(self) -> int:
        self._next_group += 1
        return self._next_group - 1

    def _seeds(self, seed: int, step: int, prompt: Prompt, samples: int, drawn: Counter[str]) -> tuple[int, ...]:
        """The next seeds of a prompt in a step, which are counted in `drawn`."""
        first = drawn[prompt.id]
        drawn[prompt.id] += samples
        return tuple(sample_seed(seed, step, prompt.id, i) for i in range(first, first + samples))

    def _depart(self, flight: InFlight) -> None:
        self._flights.setdefault(flight.step, []).append(flight)
        self.account.submitted += len(flight.seeds)
        self.account.running += len(flight.seeds)

    def _start(
        self, group_id: int, step: int, prompt: Prompt, seeds: tuple[int, ...], sampling: Sampling, routes: bool
    ) -> InFlight:
        request = SampleRequest(
            prompt_id=prompt.id,
            group=group_id,
            prompt_ids=prompt.token_ids,
            seeds=seeds,
            sampling=sampling,
            deadline=self.deadline,
            routes=routes,
        )
        whole: Future[Group] = Future()

        def sampled(future: Future[list[Rollout]]) -> None:
            try:
                at, rollouts = time.monotonic(), future.result()
                scoring = self.pool.submit_group(rollouts, prompt)
            except Exception as error:  # noqa: BLE001 - a callback's error would be lost: hand it to who collects
                whole.set_exception(error)
                return
            left = Countdown(len(scoring))

            def scored(_: Future[Rollout]) -> None:
                if left.down() > 0:
                    return
                failed = next((f.exception() for f in scoring if f.exception() is not None), None)
                if failed is not None:
                    whole.set_exception(failed)
                else:
                    whole.set_result(Group(group_id, step, prompt, tuple(f.result() for f in scoring), at))

            for f in scoring:
                f.add_done_callback(scored)

        asked = self.fleet.submit(request)
        asked.add_done_callback(sampled)
        return InFlight(group_id, step, prompt, seeds, asked, whole)

    @property
    def _patience(self) -> float:
        return self.deadline + 60  # seconds: engines give up at the deadline; verifiers have their own

    def _results(self, futures: Sequence[Future[T]], what: str) -> list[T]:
        """Of all, in their order; or what one of them raised, as soon as it has."""
        expires = time.monotonic() + self._patience
        while not all(f.done() for f in futures) and (left := expires - time.monotonic()) > 0:
            done, _ = wait(futures, timeout=min(GLANCE, left), return_when=FIRST_EXCEPTION)
            if any(f.exception() for f in done):
                break
            if self.fleet.attend():
                expires = time.monotonic() + self._patience  # what was lost is sampled from its beginning
        came = [f for f in futures if f.done()]
        if failed := next((e for f in came if (e := f.exception()) is not None), None):
            raise failed
        if len(came) < len(futures):
            self._expired(len(came), len(futures), what)
        return [f.result() for f in futures]

    def _expired(self, came: int, of: int, what: str) -> NoReturn:
        raise DeadlineError(f"waited {self._patience:.0f} s for {what}: {came} of {of} came (rollout.deadline)")


def _done(result: T) -> Future[T]:
    future: Future[T] = Future()
    future.set_result(result)
    return future
