"""The states of an engine, and which may follow which. There is no way back from the dead but by a new process."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """What the driver holds an engine to be."""

    HEALTHY = "healthy"  # it serves
    SUSPECT = "suspect"  # it left a question unanswered: it is sent nothing new
    DEAD = "dead"  # whatever is left of it is killed
    RESTARTING = "restarting"  # a process in its place loads the model
    STALE = "stale"  # it has its model, and not the weights of the version that the others serve


NEXT: dict[State, frozenset[State]] = {
    State.HEALTHY: frozenset({State.SUSPECT}),
    State.SUSPECT: frozenset({State.HEALTHY, State.DEAD}),
    State.DEAD: frozenset({State.RESTARTING}),
    State.RESTARTING: frozenset({State.STALE, State.DEAD}),
    State.STALE: frozenset({State.HEALTHY, State.DEAD}),
}


class ForbiddenMoveError(RuntimeError):
    """A change of state that there is no edge for: a defect of rlpost."""


class Health:
    """The state of one engine. A new one is about to load its model."""

    def __init__(self, state: State = State.RESTARTING) -> None:
        self.state = state

    def to(self, state: State) -> None:
        """
        Raises:
            ForbiddenMoveError: there is no such edge.
        """
        if state not in NEXT[self.state]:
            allowed = " or ".join(sorted(NEXT[self.state]))
            raise ForbiddenMoveError(f"an engine that is {self.state} cannot become {state}, only {allowed}")
        self.state = state

    def doubt(self) -> None:
        """It left something unanswered. What does not serve yet has nothing to lose."""
        if self.state is State.HEALTHY:
            self.to(State.SUSPECT)

    def trust(self) -> None:
        """It answered."""
        if self.state is State.SUSPECT:
            self.to(State.HEALTHY)

    def die(self) -> None:
        """It is lost, from whatever state it was in."""
        self.doubt()
        self.to(State.DEAD)
