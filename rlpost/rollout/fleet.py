"""The engines as the driver sees them: where to send a prompt, and how all of them get new weights.

One that is lost is replaced while the driver waits for any (`repair`), has the weights of the others before it serves, and
is asked again what it was asked. Replacing is up to the driver's main thread; any thread may submit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import ray

from rlpost import config
from rlpost.actors import ActorGoneError
from rlpost.config import DType
from rlpost.faults import failpoint
from rlpost.rollout.health import State
from rlpost.rollout.repair import Repair
from rlpost.rollout.request import EngineSpec, SampleRequest
from rlpost.rollout.seat import EnginesGoneError, Flight, Loss, Places, Seat
from rlpost.rollout.watch import LateError, Watch, loss_of
from rlpost.types import Rollout

if TYPE_CHECKING:
    from rlpost.learner.group import LearnerGroup
    from rlpost.weights import Probe


T = TypeVar("T")


class Fleet:
    """Starts the engines, hands groups to the least busy, and moves all of them from version to version.

    Args:
        slots: for each engine its place: (placement group, bundle index) or None for anywhere.
        repair: how engines are watched and replaced.
    """

    def __init__(
        self,
        spec: EngineSpec,
        slots: Sequence[tuple[Any, int] | None],
        cpus: float,
        gpus: float,
        sync_deadline: float,
        start_deadline: float,
        repair: config.Repair | None = None,
    ) -> None:
        self.spec = spec
        self.version = 0
        self.learned = 0  # the version of the weights that the learner holds, where it is ahead
        self.sync_deadline = sync_deadline
        self._start_deadline = start_deadline
        settings = repair or config.Repair()
        self._watch = Watch(settings, job=sync_deadline)
        self._repair = Repair(Places(spec, slots, cpus, gpus), self._watch, settings, start_deadline)
        self._learner: LearnerGroup | None = None  # to which vLLM's own transfer is connected
        # Gives engines the weights of a version: as they start those of the folder, which are there already.
        self._fit: Callable[[int, Sequence[Seat]], None] = lambda _version, _seats: None

    @property
    def dtype(self) -> DType:
        """What the engines compute in."""
        return self.spec.dtype

    @property
    def engines(self) -> list[Any]:
        """Ray's handles, by number."""
        return [seat.handle for seat in self._seats]

    @property
    def crew(self) -> list[Any]:
        """The engines by name. The list is kept: those that are replaced are replaced in it."""
        return self._repair.crew

    @property
    def _seats(self) -> list[Seat]:
        return self._repair.seats

    def says(self, say: Callable[[str, str], None]) -> None:
        """What to do when an engine is lost or replaced: it is given who, such as `engine 1`, and what goes on after that."""
        self._repair.say = say

    def ready(self) -> dict[str, Any]:
        """Wait until every engine has its model. Returns what the first says of itself (`Engine.start`).

        Raises:
            AdaptersRefusedError: the engines cannot serve the adapters they were to.
            ActorGoneError: one died.
        """
        try:
            started = self._repair.ready()
            what = "the engines' tensor names"
            refs = {seat.handle.readable.remote(): seat for seat in started}
            readable = self._watch.wait(refs, self._seats, self._start_deadline, what)
        except EnginesGoneError as gone:
            seat, loss = next(iter(gone.lost.items()))
            raise ActorGoneError(seat.member, f"{seat.member.name} {loss.why}") from gone
        self._readable = {n: s for n, s in readable[0].items() if all(r.get(n) == s for r in readable)}
        self._repair.serve()
        first: dict[str, Any] = ray.get(started[0].starting)
        return first

    def connect(self, learner: LearnerGroup) -> None:
        """Set up the transport of weights, where it needs setting up."""
        if self.spec.adapters is None and self.spec.weight_transfer != "object_store":
            self._learner = learner
            self._join()

    def submit(self, request: SampleRequest) -> Future[list[Rollout]]:
        """Sample a group on the engine with the fewest running groups; on another one again, where that is lost.

        What it would wait for is done by `attend`.
        """
        future: Future[list[Rollout]] = Future()
        self._send(Flight(request, future))
        return future

    def attend(self) -> bool:
        """Look after the engines, every second or so while samples are waited for. Returns whether one was replaced.

        Raises:
            ActorGoneError: one is lost, and was replaced too often.
        """
        lost = self._watch.look(self._seats)
        if lost:
            # The weights that others may still sample with, nobody has any more.
            version = max(self.version, self.learned)
            self._replace(lost, lambda: self._fit(version, self._repair.stale()))
        return bool(lost)

    def sync(self, learner: LearnerGroup, version: int, dtype: DType) -> dict[str, float]:
        """Give every engine the learner's weights, or its adapters alone, and let it serve them as `version`.

        An engine that is lost is replaced, and all are given the weights again. One that did not take them serves
        nothing: it raises, here and on any request.

        Returns:
            {"sync/survived": which share of what was trained the engines now hold}, empty before anything was.
        """
        self._fit = partial(self._learned, learner, dtype)
        try:
            self._fit(version, self._seats)
        except EnginesGoneError as gone:
            self._replace(gone.lost, lambda: self._fit(version, self._seats))
        self.version = version
        share = None if failpoint("sync.skip", version) else learner.survived()
        return {} if share is None else {"sync/survived": share}

    def load_adapters(self, arrays: dict[str, np.ndarray], probes: dict[str, Probe], version: int) -> None:
        """Serve given adapters, without a learner."""
        self._fit = partial(self._given, ray.put(arrays), probes)
        self._fit(version, self._seats)
        self.version = version

    def stats(self) -> dict[str, float]:
        """Since the last call: engines that were replaced, and the seconds that the driver was busy with that."""
        repair = self._repair
        found = {"engines/replaced": float(repair.replaced), "time/repair": repair.seconds}
        repair.replaced, repair.seconds = 0, 0.0
        return found

    def shutdown(self) -> None:
        for seat in self._seats:
            if self.spec.tensor_parallel > 1:  # vLLM's workers talk through shared memory
                self._repair.kill(seat)
            else:
                ray.kill(seat.handle)

    # ------------------------------------------------------------------------------------------------ sampling

    def _send(self, flight: Flight) -> None:
        serving = [seat for seat in self._seats if seat.health.state is State.HEALTHY]
        seat = min(serving or self._seats, key=lambda seat: len(seat.flights))
        group = flight.request.group
        seat.flights[group] = flight
        reply: Future[list[Rollout]] = seat.handle.generate.remote(flight.request).future()

        def done(_: Future[list[Rollout]]) -> None:
            error = reply.exception()
            if error is not None and (loss := loss_of(error)) is not None:
                seat.loss = loss  # the flight stays with it, to be taken from there
            elif self._repair.taken(seat, group):
                if error is not None:
                    flight.future.set_exception(error)
                else:
                    flight.future.set_result(reply.result())

        reply.add_done_callback(done)

    def _replace(self, lost: Mapping[Seat, Loss], fit: Callable[[], None]) -> None:
        def finish() -> None:
            self._join()
            fit()
            self._repair.serve()

        orphans = self._repair.replace(lost, finish)
        for flight in orphans:
            self._send(flight)

    # ------------------------------------------------------------------------------------------------- weights

    def _join(self) -> None:
        """Connect all engines to the ranks anew, where vLLM's own transfer goes: it knows no engine that comes later."""
        if (learner := self._learner) is not None:
            spec, engines = self.spec, self.engines
            self._beside(lambda: learner.connect(spec.weight_transfer, engines, spec.tensor_parallel, self.dtype))

    def _learned(self, learner: LearnerGroup, dtype: DType, version: int, seats: Sequence[Seat]) -> None:
        """Give the learner's weights to these; to all where vLLM's own transfer goes, which leaves out nobody."""
        if failpoint("sync.skip", version):
            probes: dict[str, Any] | None = None
        elif self.spec.adapters is not None:  # a few megabytes, whatever way the base would take
            arrays, probes = learner.adapters(dtype, version)
            self._all(seats, "load_adapters", arrays, version, what="load adapters")
        elif self.spec.weight_transfer == "object_store":
            parts, probes = learner.weights(dtype, self._readable, version)
            self._all(seats, "load_weights", version, *parts, what="load weights")
        else:
            seats = self._seats
            self._present()
            probes = self._beside(lambda: learner.send_weights(dtype, self._readable, version, self.sync_deadline))
        self._all(seats, "accept_version", version, probes, what="accept a weight version")

    def _present(self) -> None:
        """See that nobody is lost before ranks begin: under ZeRO they would be left in the middle of their collectives."""
        refs = {seat.handle.beat.remote(): seat for seat in self._seats}
        self._watch.wait(refs, self._seats, self.sync_deadline, "the engines to say that they are there")

    def _given(self, arrays: Any, probes: dict[str, Probe], version: int, seats: Sequence[Seat]) -> None:
        """Give adapters that no learner changes to these."""
        self._all(seats, "load_adapters", arrays, version, what="load adapters")
        self._all(seats, "accept_version", version, probes, what="accept a weight version")

    def _all(self, seats: Sequence[Seat], method: str, *args: Any, what: str) -> None:
        """Call these, and watch all. One that is late is lost: it would be so for whatever is asked of it next."""
        refs = {getattr(seat.handle, method).remote(*args): seat for seat in seats}
        try:
            self._watch.wait(refs, self._seats, self.sync_deadline, f"engines to {what}")
        except LateError as late:
            why = Loss(f"did not {what} within {self.sync_deadline:g} s (rollout.sync_deadline)", error=True)
            raise EnginesGoneError({seat: why for seat in late.late}) from late

    def _beside(self, work: Callable[[], T]) -> T:
        return self._watch.beside(work, self._seats, self._repair.kill)
