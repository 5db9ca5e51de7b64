"""Engines that are lost: what is left of them killed, others started in their places, within a budget."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from threading import Lock

import ray

from rlpost import config
from rlpost.actors import ActorGoneError
from rlpost.rollout.health import State
from rlpost.rollout.remains import end
from rlpost.rollout.seat import EnginesGoneError, Flight, Loss, Places, Seat
from rlpost.rollout.watch import Watch, on_machine

HOUR = 3600.0


class Budget:
    """How often each engine may be replaced within an hour.

    An error that comes again is no accident: an engine that is lost by the same one twice within the hour is given up.
    """

    def __init__(self, restarts: int) -> None:
        self._restarts = restarts
        self._spent: dict[int, deque[tuple[float, Loss]]] = defaultdict(deque)

    def spend(self, number: int, loss: Loss, now: float) -> str | None:
        """Count a loss. Returns why this one is one too many.

        Args:
            now: seconds of a clock that only goes forward.
        """
        spent = self._spent[number]
        while spent and now - spent[0][0] > HOUR:
            spent.popleft()
        again = loss.error and any(before == loss for _, before in spent)
        spent.append((now, loss))
        if again:
            return "the same as before it was replaced"
        if len(spent) > self._restarts:
            return f"and was replaced {self._restarts} times in the last hour (rollout.repair.restarts)"
        return None


class Repair:
    """The seats of a fleet, and who sits there."""

    def __init__(self, places: Places, watch: Watch, settings: config.Repair, start_deadline: float) -> None:
        self._places, self._watch, self._start_deadline = places, watch, start_deadline
        self._budget = Budget(settings.restarts)
        self._lock = Lock()
        self.seats = [places.launch(number) for number in range(len(places))]
        self.crew = [seat.member for seat in self.seats]
        self._orphans: list[Flight] = []
        self.replaced = 0
        self.seconds = 0.0
        self.say: Callable[[str, str], None] = lambda _who, _what: None

    def replace(self, lost: Mapping[Seat, Loss], finish: Callable[[], None]) -> list[Flight]:
        """Others in the place of those that are lost, ready, and then `finish`: again from the start where that loses more.

        Returns:
            what they were sampling.

        Raises:
            ActorGoneError: the budget is spent.
            DeadlineError: an engine finds no room, or does not load its model in time.
        """
        began, names = time.monotonic(), []
        while lost:
            for seat, loss in lost.items():
                self._exchange(seat, loss)
                names.append(seat.member.name)
            try:
                self.ready()
                finish()
                lost = {}
            except EnginesGoneError as gone:
                lost = gone.lost
        seconds = time.monotonic() - began
        self.replaced, self.seconds = self.replaced + len(names), self.seconds + seconds
        orphans, self._orphans = self._orphans, []
        again = f"; {len(orphans)} groups are sampled again" if orphans else ""
        self.say(", ".join(names), f"replaced in {seconds:.1f} s{again}")
        return orphans

    def ready(self) -> list[Seat]:
        """Wait for those that start. Returns them; they are stale until they have the weights of the others."""
        starting = [seat for seat in self.seats if seat.health.state is State.RESTARTING]
        what = "the engines to load the model"
        self._watch.wait({seat.starting: seat for seat in starting}, self.seats, self._start_deadline, what)
        refs = {seat.handle.processes.remote(): seat for seat in starting}
        found = self._watch.wait(refs, self.seats, self._start_deadline, "the engines' processes")
        for seat, processes in zip(starting, found, strict=True):
            seat.processes = processes
            seat.health.to(State.STALE)
        return starting

    def stale(self) -> list[Seat]:
        return [seat for seat in self.seats if seat.health.state is State.STALE]

    def serve(self) -> None:
        """Those that were stale have the weights that they should."""
        for seat in self.stale():
            seat.health.to(State.HEALTHY)

    def kill(self, seat: Seat) -> None:
        """Kill what is left of an engine: its process also where it is stopped, and vLLM's workers."""
        if seat.processes:
            left = on_machine(seat, end, seat.processes)[0]
            if isinstance(left, list) and left:
                self.say(seat.member.name, f"processes {left} do not end, though killed")
        ray.kill(seat.handle)

    def _exchange(self, seat: Seat, loss: Loss) -> None:
        seat.health.die()
        enough = self._budget.spend(seat.number, loss, time.monotonic())
        self.kill(seat)
        if enough is not None:
            raise ActorGoneError(seat.member, f"{seat.member.name} {loss.why}, {enough}")
        self.say(seat.member.name, f"{loss.why}: it is being replaced")
        with self._lock:
            self._orphans += seat.flights.values()
            seat.flights = {}
        fresh = self._places.launch(seat.number)
        self.seats[seat.number], self.crew[seat.number] = fresh, fresh.member

    def taken(self, seat: Seat, group: int) -> bool:
        """Take a group that a seat has answered for; False where it was given to another meanwhile."""
        with self._lock:
            return seat.flights.pop(group, None) is not None
