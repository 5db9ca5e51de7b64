"""A place in the fleet: the engine that sits there now, and what it was asked to sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlpost.actors import Member, crew
from rlpost.rollout.engine import Engine
from rlpost.rollout.health import Health
from rlpost.rollout.remains import Process
from rlpost.rollout.request import EngineSpec, SampleRequest
from rlpost.types import Rollout


@dataclass(frozen=True)
class Flight:
    """A group that an engine samples, and the future of who asked for it, whichever engine answers."""

    request: SampleRequest
    future: Future[list[Rollout]]


@dataclass(frozen=True)
class Loss:
    """Why an engine is given up.

    Attributes:
        why: goes on after its name.
        error: whether it is an error or a wait that ran out, which twice alike is no accident; else its process was.
    """

    why: str
    error: bool = False


class EnginesGoneError(RuntimeError):
    """Engines were lost while something was asked of them. For the fleet, which replaces them."""

    def __init__(self, lost: Mapping[Seat, Loss]) -> None:
        super().__init__("; ".join(f"{seat.member.name} {loss.why}" for seat, loss in lost.items()))
        self.lost = lost


@dataclass(eq=False)
class Seat:
    """An engine in its place, as long as this process of it lives.

    Attributes:
        starting: what `Engine.start` will say.
        processes: its own first, once it is ready.
        flights: by group.
        loss: what a reply said of its end.
    """

    number: int
    handle: Any
    member: Member
    starting: Any
    health: Health = field(default_factory=Health)
    processes: list[Process] = field(default_factory=list)
    flights: dict[int, Flight] = field(default_factory=dict)
    loss: Loss | None = None


class Places:
    """Where engines go.

    Args:
        slots: for each engine its place: (placement group, bundle index) or None for anywhere. Where a node is gone, Ray
            moves the bundle to another that has room.
    """

    def __init__(self, spec: EngineSpec, slots: Sequence[tuple[Any, int] | None], cpus: float, gpus: float) -> None:
        self._spec, self._slots = spec, slots
        self._resources: dict[str, Any] = dict(num_cpus=cpus, num_gpus=gpus)

    def launch(self, number: int) -> Seat:
        """A new engine in a place, which begins to load its model."""
        slot = self._slots[number]
        handle = (
            ray.remote(Engine)
            .options(
                max_concurrency=10_000,  # groups wait inside the engine, which batches them
                scheduling_strategy=PlacementGroupSchedulingStrategy(*slot) if slot else "DEFAULT",
                **self._resources,
            )
            .remote(self._spec, number)
        )
        (member,) = crew("engine", [handle], first=number)
        return Seat(number, handle, member, handle.start.remote())

    def __len__(self) -> int:
        return len(self._slots)
