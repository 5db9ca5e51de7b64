"""The algorithm.

Sample groups of responses, score them, credit them, learn from them, give the engines the new weights; again.

There is one loop. With `rollout.max_staleness: 0` a step's prompts are sampled after the update before it. With s >= 1
the prompts of the next s steps are already being sampled while the learner learns: the same code, submitted earlier.
What is in flight when the learner is done ends first (`rollout.updates: between`), or goes on under the new weights
(`within`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from rlpost.data import still_missing
from rlpost.faults import failpoint, strike
from rlpost.learner.batch import Batch
from rlpost.rollout.request import sample_seed
from rlpost.run.clock import Clock
from rlpost.run.credit import Lesson, credited
from rlpost.run.nonfinite import batch_kept
from rlpost.stop import STOP
from rlpost.types import Group

if TYPE_CHECKING:
    from rlpost.run.training import Run


def train(run: Run) -> None:
    """Train until `run.last`, or until `run.stop_requested`. A finished step k leaves weights of version k everywhere."""
    config = run.config
    while run.step < run.last and not run.stop_requested:
        # Evaluated after the save of that step, so that an evaluation that fails costs no step that would be saved; and
        # with no save before the next step is done. So a checkpoint is always from before the evaluation of its step,
        # and a run that resumes from it comes by here and does again what the evaluation did to anchors.
        if config.evaluation.every and run.step and run.step % config.evaluation.every == 0:
            run.evaluate(f"step {run.step}")
        step = run.step + 1
        advance(run, step)
        if failpoint("driver.kill", step):
            run.kill()
        if run.saves(step):
            run.save()


def advance(run: Run, step: int) -> None:
    """One step. Samples and batch end with this call: the next step's need their room."""
    config, clock = run.config, Clock()

    run.say("sampling")
    for ahead in range(step, min(step + config.rollout.max_staleness, run.last) + 1):
        submit(run, ahead)
    groups = collect(run, step)
    clock.lap("generate", until=max((g.sampled_at for g in groups), default=None))
    clock.lap("verify")
    strike("driver.sampled", step)

    run.say("learning")
    kept = run.chosen(groups)
    run.strategy.observe(groups, run.referee)
    lesson = credit(run, kept, step)
    check_staleness(lesson, run.version, config.rollout.max_staleness)
    metrics = learn(run, lesson)
    clock.lap("learn")
    run.version = run.fleet.learned = step
    run.close_step = partial(close, run, step, groups, kept, lesson, metrics, clock)
    strike("driver.learned", step)

    if config.rollout.max_staleness and config.rollout.updates == "between":
        run.say("letting sequences end")
        run.sampler.drain()
        clock.lap("drain")
    run.say("syncing weights")
    metrics |= run.fleet.sync(run.learner, run.version, run.fleet.dtype)
    clock.lap("sync")
    strike("driver.synced", step)

    run.close_step()
    strike("driver.reported", step)


def close(
    run: Run,
    step: int,
    groups: Sequence[Group],
    kept: Sequence[Group],
    lesson: Lesson | None,
    metrics: dict[str, float],
    clock: Clock,
) -> None:
    """The end of a step. It is one when the learner has taken it, also if the engines are lost before they get it."""
    run.close_step = None
    settle(run, groups, kept)
    run.step = step
    run.adapt(metrics)
    run.report(groups, kept, lesson, metrics, clock.seconds())


def submit(run: Run, step: int) -> None:
    """Start sampling the prompts of a step, unless they already are."""
    if step <= run.submitted or step > run.last:
        return
    prompts, wanted = run.drawn.setdefault(step, []), run.config.learner.prompts_per_step
    prompts += [run.strategy.next() for _ in range(wanted - len(prompts))]  # after a resume they were drawn before
    resumed = run.pending.pop(step, [])
    for pending in resumed:
        run.sampler.resume(pending, run.sampling)
    for prompt in prompts[len(resumed) :]:
        run.sampler.submit(prompt, step, run.config.rollout.samples_per_prompt, run.sampling)
    run.submitted = step


def collect(run: Run, step: int) -> list[Group]:
    """All groups of a step, those that will be dropped included; refilled round by round where the policy says so."""
    policy, wanted = run.config.data.groups, run.config.learner.prompts_per_step
    groups: list[Group] = []
    missing = wanted
    for round_ in range(policy.max_rounds + 1):
        with STOP.prompt():  # who resumes samples the step again, to the same bits
            found = run.sampler.collect(step, missing)
        groups += run.rewarded(found)
        missing = still_missing([run.judge(g) for g in groups], wanted, policy)
        if not missing or round_ == policy.max_rounds:
            break
        for _ in range(missing):
            run.sampler.submit(run.strategy.next(), step, run.config.rollout.samples_per_prompt, run.sampling)
    run.sampler.forget(step)
    del run.drawn[step]
    return groups


def credit(run: Run, groups: Sequence[Group], step: int) -> Lesson | None:
    """What to learn from these groups: their samples and what the strategy adds, each token credited. None: nothing."""
    samples = run.samples(groups, step)
    if not samples:
        return None
    batch = run.scored(Batch.from_samples(samples))
    limit = run.config.rollout.max_tokens
    return credited(
        batch, samples, run.credit, step=step, seed=sample_seed(run.config.seed, step, "", 0), max_tokens=limit
    )


def check_staleness(lesson: Lesson | None, version: int, bound: int) -> None:
    """No consumed token may be more than `bound` weight versions old. The order of submission promises it."""
    versions: Iterable[int] = lesson.batch.versions if lesson is not None else ()
    oldest = min((int(v) for v in versions if v >= 0), default=version)
    if version - oldest > bound:
        raise RuntimeError(
            f"a token sampled with weights of version {oldest} reached the learner at version {version}: "
            f"staleness {version - oldest} is more than rollout.max_staleness {bound}"
        )


def learn(run: Run, lesson: Lesson | None) -> dict[str, float]:
    """One batch, `optimizer_steps_per_batch` optimizer steps. Without a token to learn from the weights stay."""
    if lesson is None or not lesson.batch.learned_tokens:
        run.recorder.console.warn(f"step {run.step + 1}: no sample to learn from; the weights stay as they are")
        return {}
    run.intact = False
    with batch_kept(run.recorder, lesson, run.step + 1) as metrics:
        metrics |= run.learner.update(lesson.batch, run.version, lesson.coefs).values()
    return {**metrics, **lesson.metrics}


def settle(run: Run, groups: Sequence[Group], kept: Sequence[Group]) -> None:
    """Every sample of the step was learned from or dropped; nothing is unaccounted for."""
    account, kept_ids = run.sampler.account, {g.id for g in kept}
    for g in groups:
        used = sum(r.usable for r in g.rollouts) if g.id in kept_ids else 0
        account.consumed += used
        account.dropped += len(g.rollouts) - used
    account.check()
