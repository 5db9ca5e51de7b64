"""An actor that ends or fails while it is needed: which one, what it said last, and what the others were doing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rlpost.actors import Member, Sight, Whereabouts, look
from rlpost.exit_codes import FAULT
from rlpost.faults import DeadlineError

PATIENCE = 20.0  # seconds for a look at all of them together
RAISED_BY = re.compile(r"\(pid=(\d+), ip=([^,)]+)")


class LostActorError(RuntimeError):
    """An engine or a rank is gone.

    Attributes:
        who: its name; None where it is none of those asked about.
    """

    exit_code = FAULT

    def __init__(self, message: str, who: str | None) -> None:
        super().__init__(message)
        self.who = who


@contextmanager
def accounted(members: Sequence[Member]) -> Iterator[None]:
    """Say of an actor that dies, raises or does not answer what its machine knows of it.

    Raises:
        LostActorError: in the place of what Ray raises when an actor's process is gone. Whatever an actor raises, and a
            deadline that ran out, pass with a note.
    """
    import ray

    try:
        yield
    except ray.exceptions.RayActorError as error:
        lost = next((member for member in members if member.actor == error.actor_id), None)
        who = lost.name if lost is not None else None
        raise LostActorError(f"{_said(error)}\n{account(members, lost)}", who) from error
    except ray.exceptions.RayTaskError as error:
        if not hasattr(getattr(error, "cause", error), "exit_code"):  # a refusal says all there is to say
            error.add_note(account(members, raiser(members, error)))
        raise
    except DeadlineError as error:
        error.add_note(account(members, None))
        raise


def account(members: Sequence[Member], lost: Member | None) -> str:
    """In lines: the end of the log of the one that is lost, and what each of the others is doing."""
    seen = _look(members)
    lines = []
    if lost is not None:
        where, sight = seen[lost.name]
        lines.append(f"It was {lost.name}, {_at(where)}.")
        if sight is not None and sight.lines:
            lines += ["The end of its log:", *(f"    {line}" for line in sight.lines)]
        if sight is not None and sight.gpus:
            lines.append(f"GPU memory of its machine now: {', '.join(sight.gpus)}")
    others = [member for member in members if member is not lost]
    if others:
        lines.append(f"The {'others' if lost else 'actors'}:")
    for member in others:
        where, sight = seen[member.name]
        doing = "nothing can be seen of its machine" if sight is None else sight.doing or "gone"
        lines.append(f"    {member.name}, {_at(where)}{f': {doing}' if where else ''}")
    return "\n".join(lines)


def _at(where: Whereabouts | None) -> str:
    if where is None:
        return "which never said where it runs"
    return f"process {where.pid} on {where.host}, log {' and '.join(where.logs) or 'unknown'}"


def _said(error: Exception) -> str:
    """What Ray says, without the identities and its list of common causes."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if not re.match(r"(class_name|actor_id|namespace|pid|ip|name):", line)]
    return " ".join(kept).partition(" Some common causes")[0]


def raiser(members: Sequence[Member], error: Exception) -> Member | None:
    """Who raised it: Ray tells the process in its text alone."""
    if (found := RAISED_BY.search(str(error))) is None:
        return None
    places = ((member, _where(member)) for member in members)
    return next((member for member, at in places if at and (str(at.pid), at.host) == found.groups()), None)


def _where(member: Member) -> Whereabouts | None:
    import ray

    try:
        where: Whereabouts = ray.get(member.found, timeout=1.0)
    except ray.exceptions.RayError:  # it died, or hangs, before it could say
        return None
    return where


def _look(members: Sequence[Member]) -> dict[str, tuple[Whereabouts | None, Sight | None]]:
    """Each seen from its own machine, all at the same time; a machine that does not answer in time shows nothing."""
    from rlpost.cluster import on_nodes

    seen: dict[str, tuple[Whereabouts | None, Sight | None]] = {member.name: (None, None) for member in members}
    found = {member.name: at for member in members if (at := _where(member)) is not None}
    answers = on_nodes(look, [(at.node, (at,)) for at in found.values()], PATIENCE)
    for (name, at), answer in zip(found.items(), answers, strict=True):
        seen[name] = at, answer if isinstance(answer, Sight) else None
    return seen
