"""The heartbeat: each engine is asked what it does while the driver waits for any, and by its silence known to be lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import ray

from rlpost import config
from rlpost.actors import said
from rlpost.cluster import on_nodes
from rlpost.faults import DeadlineError, begun
from rlpost.rollout.engine import Beat, EngineDownError
from rlpost.rollout.health import State
from rlpost.rollout.remains import stopped
from rlpost.rollout.seat import EnginesGoneError, Loss, Seat

T = TypeVar("T")
GLANCE = 1.0  # seconds between two looks while something is waited for
LOOK = 10.0  # seconds for another machine to say whether a process is stopped
WATCHED = (State.HEALTHY, State.SUSPECT, State.STALE)


@dataclass
class Question:
    """The one question that an engine has before it.

    Attributes:
        open: the answer to come; None between two questions.
        silent: seconds it has been left open, of those in which the driver looked.
        looked: at how many of them its process was looked for.
        stalls: answers in a row that say the same turn takes too long.
    """

    open: Any = None
    asked: float = float("-inf")
    glanced: float = 0.0
    silent: float = 0.0
    looked: float = 0.0
    stalls: int = 0


class Watch:
    """
    Args:
        job: seconds a job of an engine's, such as a part of a weight update, may take.
    """

    def __init__(self, settings: config.Repair, job: float) -> None:
        self._settings, self._job = settings, job
        self._questions: WeakKeyDictionary[Seat, Question] = WeakKeyDictionary()

    def look(self, seats: Collection[Seat]) -> dict[Seat, Loss]:
        """Those that are lost, as far as is known without waiting."""
        now = time.monotonic()
        found = {seat: self._ask(seat, now) for seat in seats if seat.health.state in WATCHED}
        return {seat: loss for seat, loss in found.items() if loss is not None}

    def wait(self, refs: Mapping[Any, Seat], seats: Collection[Seat], seconds: float, what: str) -> list[Any]:
        """What these answer, in order, while all are watched.

        Args:
            refs: each asked of one of `seats`.

        Raises:
            EnginesGoneError: some were lost meanwhile.
            DeadlineError: after so many seconds; it notes the seats that were late.
        """
        began, pending = time.monotonic(), list(refs)
        while pending:
            left = seconds - (time.monotonic() - began)
            done, pending = ray.wait(pending, num_returns=len(pending), timeout=max(0.0, min(GLANCE, left)))
            lost = self.look(seats)
            for ref in done:
                if (loss := lost_by(ref)) is not None:
                    lost[refs[ref]] = loss
            if lost:
                raise EnginesGoneError(lost)
            if pending and left <= 0:
                late = [refs[ref] for ref in pending]
                raise LateError(
                    f"waited {seconds:.0f} s for {what}: {len(late)} of {len(refs)} did not answer "
                    f"({', '.join(seat.member.name for seat in late[:8])}); deadline {seconds:.0f} s",
                    late,
                )
        return [ray.get(ref) for ref in refs]

    def beside(self, work: Callable[[], T], seats: Collection[Seat], kill: Callable[[Seat], None]) -> T:
        """Do what waits for engines by itself, and watch them meanwhile.

        Args:
            kill: ends one that is lost, so that nobody waits for its answer.

        Raises:
            EnginesGoneError: some were lost; what `work` raised is its cause.
        """
        done = begun(work, "beside the engines")
        lost: dict[Seat, Loss] = {}
        while not done.done():
            wait_for([done], timeout=GLANCE)
            for seat, loss in self.look([seat for seat in seats if seat not in lost]).items():
                lost[seat] = loss
                kill(seat)
        error = done.exception()
        if error is not None:
            lost |= self._left([seat for seat in seats if seat not in lost], bool(lost))
        if lost:
            raise EnginesGoneError(lost) from error
        return done.result()

    def _left(self, seats: Collection[Seat], others: bool) -> dict[Seat, Loss]:
        """Who is lost after a failure of all: who has died, and then also who still waits in a collective with it.

        Args:
            others: whether somebody is known to be lost.
        """
        lost: dict[Seat, Loss] = {}
        until = time.monotonic() + max(2 * self._settings.heartbeat, LOOK)
        waiting = list(seats)
        while waiting and time.monotonic() < until:
            refs = {seat.handle.beat.remote(): seat for seat in waiting}
            ray.wait(list(refs), num_returns=len(refs), timeout=GLANCE)
            beats = {seat: answer(ref) for ref, seat in refs.items()}
            lost |= {seat: beat for seat, beat in beats.items() if isinstance(beat, Loss)}
            idle = [s for s, beat in beats.items() if isinstance(beat, Beat) and beat.doing != "working"]
            waiting = [seat for seat in waiting if seat not in lost and seat not in idle]
            if waiting:
                time.sleep(0.2)
        if lost or others:
            lost |= {seat: Loss("was left waiting for an engine that is lost") for seat in waiting}
        return lost

    def _ask(self, seat: Seat, now: float) -> Loss | None:
        if seat.loss is not None:
            return seat.loss
        question = self._questions.setdefault(seat, Question())
        # While the driver does something else, or is itself stopped, nobody is silent.
        passed, question.glanced = min(now - question.glanced, 2 * GLANCE), now
        if question.open is None:
            if now - question.asked >= self._settings.heartbeat:
                question.open, question.asked, question.silent, question.looked = seat.handle.beat.remote(), now, 0, 0
            return None
        found = answer(question.open)
        if found is None:
            question.silent += passed
            return self._silence(seat, question)
        question.open = None
        if isinstance(found, Loss):
            return found
        seat.health.trust()
        return self._judged(question, found)

    def _silence(self, seat: Seat, question: Question) -> Loss | None:
        every = self._settings.heartbeat
        if question.silent < every:
            return None
        seat.health.doubt()
        if question.silent >= self._settings.silence:
            return Loss(f"has not answered for {question.silent:.0f} s (rollout.repair.silence)")
        if question.silent >= 2 * every and question.silent - question.looked >= every:
            question.looked = question.silent
            if is_stopped(seat):
                return Loss(f"is stopped (SIGSTOP) and has not answered for {question.silent:.0f} s")
        return None

    def _judged(self, question: Question, beat: Beat) -> Loss | None:
        if beat.broken is not None:
            return Loss(f"failed: {beat.broken}", error=True)
        limit = {"sampling": self._settings.stall, "working": self._job}.get(beat.doing)
        question.stalls = question.stalls + 1 if limit is not None and beat.since > limit else 0
        if limit is None or question.stalls < 2:  # once may be of a machine that slept
            return None
        turn, key = ("decoding step", "repair.stall") if beat.doing == "sampling" else ("job", "sync_deadline")
        return Loss(f"has been in one {turn} for more than {limit:g} s (rollout.{key})", error=True)


class LateError(DeadlineError):
    """A wait for engines that ran out, and for whom."""

    def __init__(self, message: str, late: list[Seat]) -> None:
        super().__init__(message)
        self.late = late


def answer(ref: Any) -> Beat | Loss | None:
    """What was answered; the loss of who was asked; None as long as nothing was."""
    if not ray.wait([ref], timeout=0)[0]:
        return None
    beat: Beat | Loss = lost_by(ref) or ray.get(ref)
    return beat


def lost_by(ref: Any) -> Loss | None:
    """Whether a reply that is there says that the engine is lost.

    Raises:
        what the engine raised of something else.
    """
    try:
        ray.get(ref, timeout=0)
    except Exception as error:
        if (loss := loss_of(error)) is None:
            raise
        return loss
    return None


def loss_of(error: BaseException) -> Loss | None:
    """The loss of an engine that an error of a call tells of; None where it is the engine's answer."""
    if isinstance(error, ray.exceptions.RayActorError):
        return Loss(f"is gone: {said(error)}")
    cause = getattr(error, "cause", None)
    return Loss(f"failed: {cause}", error=True) if isinstance(cause, EngineDownError) else None


def is_stopped(seat: Seat) -> bool:
    """Whether its process is stopped, as its machine sees it."""
    if not seat.processes:
        return False
    (found,) = on_machine(seat, stopped, seat.processes)
    return found is True


def on_machine(seat: Seat, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work` gives on the engine's machine, or the RayError that says why not."""
    where = ray.get(seat.member.found, timeout=GLANCE)  # it was ready, so it has said so
    if where.node == ray.get_runtime_context().get_node_id():
        return [work(*arguments)]
    return on_nodes(work, [(where.node, arguments)], LOOK)
