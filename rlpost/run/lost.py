"""An actor that ends, fails or keeps others waiting: which one, of what, what it said last, and what the others were doing."""

from __future__ import annotations

import faulthandler
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rlpost.actors import ActorGoneError, Member, Sight, Whereabouts, look, said
from rlpost.exit_codes import FAULT
from rlpost.faults import DeadlineError

PATIENCE = 20.0  # seconds for a look at all of them together
RAISED_BY = re.compile(r"\(pid=(\d+), ip=([^,)]+)")
FATAL = re.compile(
    r"(?:\*\*\* |Fatal Python error: .*?)(SIG[A-Z]+|Segmentation fault|Aborted|Bus error|Illegal instruction)"
)
STARVED = re.compile(r"running low on memory|OutOfMemory|OUT_OF_MEMORY", re.IGNORECASE)
NODE = re.compile(r"node (?:has |was )?(?:died|terminated|dead)|NODE_DIED", re.IGNORECASE)
CUT = re.compile(r"The actor \S+ is unavailable")  # Ray's ActorUnavailableError: it is not known to be dead
CODE = re.compile(r"exit(?:ed with| code:?|_code=)\s*(?:exit )?(?:code )?(\d+)", re.IGNORECASE)

Seen = Mapping[str, tuple[Whereabouts | None, Sight | None]]


class LostActorError(RuntimeError):
    """An engine or a rank is gone, or stopped, or what carries them is.

    Attributes:
        who: its name; None where it is none of those asked about.
    """

    exit_code = FAULT

    def __init__(self, message: str, who: str | None) -> None:
        super().__init__(message)
        self.who = who


@contextmanager
def accounted(
    members: Sequence[Member], logs: Path | None = None, doing: Callable[[], str] = lambda: ""
) -> Iterator[None]:
    """Say of an actor that dies, raises or does not answer what its machine knows of it.

    Args:
        logs: the run's folder for them: what all were doing when a wait ran out goes there.
        doing: what the driver does, in words such as `sampling, step 3`.

    Raises:
        LostActorError: in the place of what Ray raises when an actor's process or what carries it is gone, of an
            `ActorGoneError`, and of a deadline that ran out for one that is stopped. Whatever an actor raises, and any other
            deadline that ran out, pass with a note.
    """
    import ray

    try:
        yield
    except ActorGoneError as error:
        told = account(members, _look(members), error.member)
        raise LostActorError(f"{error}{_while(doing)}\n{told}", error.member.name) from error
    except ray.exceptions.RayActorError as error:
        lost = next((member for member in members if member.actor == error.actor_id), None)
        seen = _look(members)
        name = lost.name if lost is not None else "an actor"
        at, sight = seen[lost.name] if lost is not None else (None, None)
        cause, remedy = cause_of(str(error), sight)
        where = f" ({_at(at)})" if lost is not None else ""
        raise LostActorError(
            f"{name}{where} is gone{_while(doing)}: {cause}. {remedy}\n{account(members, seen, lost)}\nRay says: {said(error)}",
            lost.name if lost is not None else None,
        ) from error
    except ray.exceptions.RayTaskError as error:
        # A refusal says all there is to say; a note may be there from within.
        if not hasattr(getattr(error, "cause", error), "exit_code") and not hasattr(error, "__notes__"):
            raised = raiser(members, error)
            error.add_note(account(members, _look(members), raised))
            if raised is not None:
                error.who = raised.name
        raise
    except ray.exceptions.RayError as error:
        cause, remedy = cause_of(str(error), None)
        raise LostActorError(
            f"Ray itself broke{_while(doing)} ({type(error).__name__}): {said(error)}. {remedy}", "ray"
        ) from error
    except DeadlineError as error:
        if hasattr(error, "__notes__"):
            raise
        seen = _look(members)
        kept = f"\nWhere all of them were: {write_stacks(logs, seen)}" if logs is not None else ""
        stopped = [member for member in members if (sight := seen[member.name][1]) is not None and sight.state == "T"]
        if stopped:
            at = seen[stopped[0].name][0]
            names = " and ".join(f"{member.name} ({_at(seen[member.name][0])})" for member in stopped)
            raise LostActorError(
                f"{names} is stopped{_while(doing)} (SIGSTOP, or a debugger), and what waits for it waits in vain: {error}. "
                f"`kill -CONT {at.pid if at else 'PID'}` there lets it go on; `rlpost resume` starts anew from the newest "
                f"checkpoint\n{account(members, seen, stopped[0])}{kept}",
                stopped[0].name,
            ) from error
        error.add_note(f"{account(members, seen, None)}{kept}")
        raise


def cause_of(said: str, sight: Sight | None) -> tuple[str, str]:
    """Of what an actor's process died, and what to do about it.

    Args:
        said: what Ray says.
        sight: of the actor; None where its machine shows nothing.
    """
    more = "`rlpost plan` says what the parts need: give them more memory, or put fewer on a machine"
    if NODE.search(said):
        return "its node is gone", "Look at that machine and at Ray on it; `rlpost resume` takes another node"
    if CUT.search(said):
        return "it cannot be reached: the link to its machine is cut, or it is too busy to answer", (
            "Look at the network between the machines; `rlpost resume` goes on"
        )
    if STARVED.search(said):
        return "out of memory (Ray's monitor ended it before the kernel would)", more
    if sight is not None and sight.killed:
        return f"out of memory, it seems: the kernel killed {sight.killed} of its cgroup since it began", more
    last = "\n".join(sight.lines) if sight is not None else ""
    if (fatal := FATAL.search(last)) is not None:
        return f"a fatal signal ({fatal[1]}), by its log", "Its log has where; `rlpost resume` goes on"
    if (code := CODE.search(said)) is not None:
        return f"exit code {code[1]}", "Its log says why; `rlpost resume` goes on"
    if sight is None:
        return "for no reason that can be seen, as its machine shows nothing", "Look at that machine; `rlpost resume`"
    return (
        "its process ended without a word, as by SIGKILL from outside or os._exit; its cgroup counts none killed for memory",
        "Somebody's `kill -9`, a scheduler, or a memory limit above its cgroup (`dmesg`); `rlpost resume` goes on",
    )


def write_stacks(logs: Path, seen: Seen) -> Path:
    """Write where every thread of the driver and of these actors is into a file. Returns it."""
    with tempfile.NamedTemporaryFile("w", prefix="stacks_", suffix=".txt", dir=logs, delete=False) as file:
        file.write("driver\n")
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)
        for name, (where, sight) in seen.items():
            doing = "nothing can be seen of its machine" if sight is None else sight.doing or "gone"
            file.write(f"\n{name}, {_at(where)}: {doing}\n{sight.stacks if sight is not None else ''}")
    return Path(file.name)


def account(members: Sequence[Member], seen: Seen, lost: Member | None) -> str:
    """In lines: the end of the log of the one that is lost, and what each of the others is doing."""
    lines = []
    if lost is not None:
        where, sight = seen[lost.name]
        lines.append(f"It was {lost.name}, {_at(where)}, log {_logs(where)}.")
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
        lines.append(f"    {member.name}, {_at(where)}{f', log {_logs(where)}: {doing}' if where else ''}")
    return "\n".join(lines)


def _while(doing: Callable[[], str]) -> str:
    return f" in {said}" if (said := doing()) else ""


def _at(where: Whereabouts | None) -> str:
    if where is None:
        return "which never said where it runs"
    return f"process {where.pid} on {where.host}"


def _logs(where: Whereabouts | None) -> str:
    return " and ".join(where.logs if where is not None else ()) or "unknown"


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


def _look(members: Sequence[Member]) -> Seen:
    """Each seen from its own machine, all at the same time; a machine that does not answer in time shows nothing."""
    import ray

    from rlpost.cluster import on_nodes

    seen: dict[str, tuple[Whereabouts | None, Sight | None]] = {member.name: (None, None) for member in members}
    found = {member.name: at for member in members if (at := _where(member)) is not None}
    try:
        answers = on_nodes(look, [(at.node, (at,)) for at in found.values()], PATIENCE)
    except ray.exceptions.RayError as error:  # Ray goes down too
        answers = [error] * len(found)
    for (name, at), answer in zip(found.items(), answers, strict=True):
        seen[name] = at, answer if isinstance(answer, Sight) else None
    return seen
