"""What is saved of a run that is about to end by an alarm or a fault: the last step that is done, if the learner is well."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rlpost.actors import Crews
from rlpost.faults import wait
from rlpost.observe import Alarm
from rlpost.run.lost import LostActorError, accounted, raiser

if TYPE_CHECKING:
    from rlpost.run.training import Run

ANSWER = 30.0  # seconds for ranks that have nothing to do to say that they are there


@contextmanager
def saved_on_the_way_out(run: Run) -> Iterator[None]:
    """Save the last finished step of a run that breaks in here, and say so, or why not.

    For a fault that is an ordinary checkpoint. For an alarm it is one that only who asks for it gets: the run is wrong,
    and the step may be what is wrong with it.
    """
    console = run.recorder.console
    try:
        with accounted(Crews(run.fleet.crew, run.learner.crew), run.recorder.folder.logs, run.recorder.doing):
            yield
    except Exception as error:
        run.recorder.fault(error)
        phase = console.doing
        try:
            console.warn(_save(run, error))
        finally:
            console.phase(phase)  # what was done when it broke, for whoever tells of it
        raise


def _save(run: Run, error: Exception) -> str:
    """Save if it can be; what became of it."""
    if not _is_learners(run, error):
        try:
            if run.close_step is not None:  # learned, and the engines do not have it: who resumes gives it to them
                run.close_step()
        except Alarm as alarm:
            run.recorder.fault(alarm)
            error = alarm
        except Exception as failed:  # noqa: BLE001 - as below; then the learner is not at the last finished step
            run.recorder.console.warn(f"the step under way cannot be finished: {type(failed).__name__}: {failed}")
    unsealed = _unsealed(run)
    step = run.finished.step if run.finished is not None else 0
    last, folder = run.store.last, run.recorder.folder.path
    if not step or last == step:
        return (
            f"nothing is left to save; go on with: rlpost resume {folder}"
            if step
            else "no step was done: nothing to save"
        )
    why = None
    if not run.intact:
        why = "the learner is on its way to another step"
    elif _is_learners(run, error):
        why = "it is the learner that broke"
    else:
        try:
            wait([member.handle.__ray_ready__.remote() for member in run.learner.crew], ANSWER, "the learner to answer")
            saved = run.save(alarm=isinstance(error, Alarm))
            run.store.join()
        except Exception as failed:  # noqa: BLE001 - the run ends by what broke first; this is said beside it
            why = f"{type(failed).__name__}: {failed}"
    if why is not None:
        before = f"the newest checkpoint is of step {last}" if last is not None else "there is no checkpoint"
        before += unsealed
        return f"step {step} is not saved ({why}); {before}: rlpost resume {folder}"
    if isinstance(error, Alarm):
        return (
            f"step {step} is saved as {saved.path.name}, which a resume passes over: rlpost resume {folder} --step {step} "
            f"goes on from it, rlpost resume {folder} from before"
        )
    return f"step {step} is saved as {saved.path.name}: rlpost resume {folder}"


def _unsealed(run: Run) -> str:
    """Wait for the checkpoint under way; what went wrong with it, which does not keep this step from being saved."""
    try:
        run.store.join()
    except Exception as failed:  # noqa: BLE001 - the run ends by what broke first; this is said beside it
        return f"; the checkpoint before could not be written: {failed}"
    return ""


def _is_learners(run: Run, error: Exception) -> bool:
    """Whether a rank died or raised it."""
    crew = run.learner.crew
    if isinstance(error, LostActorError):
        return error.who in {member.name for member in crew}
    return raiser(crew, error) is not None
