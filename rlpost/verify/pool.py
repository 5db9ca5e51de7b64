"""The verifier pool: rollouts in, rollouts with verdicts out, whatever the verifiers do.

Promises:
- every future ends: with the scored rollout, or with a `VerifierError` when the pool is closed or cannot go on;
- a verdict takes at most its verifier's time-out from the moment its work begins, then the worker's process group is
  killed, reaped and replaced, and whatever else waited there goes back to the front of the queue, unblamed;
- what the completion can cause is wrong, what it cannot cause is unverified, never a zero reward: time-outs or crashes
  on all samples of a group are the row's or the verifier's doing, those on some of them are theirs;
- at most `MAX_CALLS` calls, or one batch, are with a worker at a time.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import TYPE_CHECKING, Any

from rlpost.types import Prompt, Rollout, Verdict
from rlpost.verify.cache import VerdictCache, prefix, shared
from rlpost.verify.plan import Plan, made_of
from rlpost.verify.process import WorkerProcess
from rlpost.verify.protocol import Traits, VerifierError
from rlpost.verify.task import ON_ROW, Backlog, Call, Failure, Item, Tally, Task, described, outcomes_of, summary

if TYPE_CHECKING:
    from rlpost import config

SPAWN_ATTEMPTS = 3
TIMEOUT_ATTEMPTS = 2  # once more alone, so that a loaded machine is not held against the completion
JOIN_SECONDS = 60.0


class VerifierPool:
    """Worker processes that score rollouts with the verifiers of `specs` that apply to them.

    Thread-safe. A future's done-callbacks run on the pool's threads, or on the one that submits when the verdicts are
    known already, and must be short.

        with VerifierPool(config.verifiers, config.verifier_pool) as pool:
            scored = pool.submit(rollout, prompt).result(timeout=60)
    """

    def __init__(
        self, specs: Sequence[config.VerifierSpec], pool: config.VerifierPool, start_deadline: float = 120.0
    ) -> None:
        """
        Args:
            start_deadline: seconds a worker process may take to load the verifiers, at first and when replaced.

        Raises:
            VerifierError: two verifiers have one label.
        """
        if twice := [name for name, count in Counter(spec.label for spec in specs).items() if count > 1]:
            raise VerifierError(
                f"verifier {twice[0]!r} is listed twice, and verdicts are kept by label. Give one of them another: "
                f"{{name: {twice[0]}, label: second, ...}}"
            )
        self._specs = list(specs)
        self._settings = pool
        self._start_deadline = start_deadline
        self._lock = threading.Condition()
        self._plan: Plan | None = None  # known when the first worker has loaded the verifiers
        self._backlog = Backlog([], pool.workers)
        self._cache: VerdictCache[Task] = VerdictCache(pool.cache_mb * 2**20)
        self._pending: set[Item] = set()
        self._workers: set[WorkerProcess] = set()
        self._threads: list[threading.Thread] = []
        self._stopped: VerifierError | None = None
        self._closing = threading.Event()  # set with `_stopped`
        self._tallies = {spec.label: Tally() for spec in specs}
        self._restarts = 0
        self._sandbox: dict[str, Any] | None = None

    def __enter__(self) -> VerifierPool:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------------ the public part

    def start(self) -> None:
        """Start the workers and wait until they have loaded the verifiers.

        Raises:
            VerifierError: a verifier does not load (as soon as that is known), or not within `start_deadline`; a
                variable of `env` is not set; a verifier needs the verdict of one that is not there, or of itself; one
                runs programs, and the sandbox is of tier D, which `allow_unsafe` does not permit.
        """
        if self._threads:
            raise VerifierError("this verifier pool was started before; make a new one")
        self._loads = [
            {
                "name": s.name,
                "params": s.params,
                "timeout": s.timeout,
                "isolate": s.isolate,
                "env": environment(s),
            }
            for s in self._specs
        ]
        readies: list[Future[None]] = [Future() for _ in range(self._settings.workers)]
        self._threads = [
            threading.Thread(target=self._run, args=(ready,), name=f"verifier-{i}", daemon=True)
            for i, ready in enumerate(readies)
        ]
        for thread in self._threads:
            thread.start()
        try:
            # Each thread keeps the deadline itself; the factor is for its attempts.
            patience = SPAWN_ATTEMPTS * self._start_deadline + JOIN_SECONDS
            done, late = wait(readies, timeout=patience, return_when=FIRST_EXCEPTION)
            for ready in done:
                ready.result()
            if late:
                raise VerifierError(f"{len(late)} of {len(readies)} verifier workers did not start in {patience} s")
        except BaseException:
            self.close()
            raise

    @property
    def sandbox(self) -> dict[str, Any] | None:
        """{"tier", "layers"} of what verifiers run programs in; None when none of them does, or before `start`."""
        return self._sandbox

    def submit(self, rollout: Rollout, prompt: Prompt) -> Future[Rollout]:
        """Score a rollout; the future gives `rollout.scored(...)`. It cannot be cancelled.

        An aborted rollout is unverified by every verifier without being run. One that no verifier with a weight applies
        to is unverified, with the reason `no_verifier`.

        Raises:
            VerifierError: the pool is not running, the prompt's reference or metadata is not plain JSON, or a verifier
                looks at groups.
        """
        plan = self._running(rollout)
        grouping = [e.spec.label for e in plan.applying(prompt) if e.traits.mode == "group"]
        if grouping:
            raise VerifierError(f"verifier {grouping[0]!r} looks at all responses of a group: use submit_group")
        return self.submit_group([rollout], prompt)[0]

    def submit_group(self, rollouts: Sequence[Rollout], prompt: Prompt) -> list[Future[Rollout]]:
        """Score all responses of a group to one prompt; as `submit`, and for group verifiers too.

        A group verifier gets the responses that were not aborted. Its time-out or crash cannot be laid to one of
        several responses, and makes them unverified, as that of a service does. Where any other verifier times out or
        crashes and scores another response, it is wrong (`timeout`, `crash`); where it scores none of two or more, they
        are unverified (`hangs_on_row`, `crashes_on_row`). So such a verdict may come as late as the last of its group.
        """
        if not rollouts:
            return []
        plan = self._running(rollouts[0])
        items = plan.items(rollouts, prompt)
        live = [item for item in items if item.rollout.finish_reason != "abort"]
        tasks = plan.tasks(live, prompt)
        for task in tasks:
            if (
                task.entry.traits.deterministic
                and task.entry.traits.mode != "group"
                and not task.entry.traits.dependent
            ):
                task.key = self._cache.key(task.entry.prefix, task.entry.sample(task.items[0]))
        with self._lock:
            if self._stopped is not None:
                raise VerifierError(f"cannot score {described(rollouts[0])}: {self._stopped}")
            for item in live:
                self._pending.add(item)
            known = [found for task in tasks if task.needs == 0 and (found := self._enqueue(task)) is not None]
            done = self._settle(known) + [item for item in live if not tasks]
            self._pending.difference_update(done)
        for item in [*done, *(item for item in items if item.rollout.finish_reason == "abort")]:
            item.future.set_result(item.scored())
        return [item.future for item in items]

    @property
    def needs(self) -> dict[str, tuple[str, ...]]:
        """The columns of a row without which each verifier, by label, cannot be called; once it is started."""
        with self._lock:
            return {e.spec.label: tuple(e.traits.needs) for e in self._plan.entries} if self._plan else {}

    @property
    def traits(self) -> dict[str, Traits]:
        """What each verifier is, by label; once it is started."""
        with self._lock:
            return {e.spec.label: e.traits for e in self._plan.entries} if self._plan else {}

    def stats(self) -> dict[str, float]:
        """Counts and times since the last call.

        For each verifier `verifier/<name>/timeouts` (workers killed), `.../errors` (exceptions, crashes, replies that
        are none; like time-outs, retries included) and `.../cache_hits`;
        when it worked out a verdict, `.../seconds_mean|p50|p99` of its work and `.../wait_mean|p50|p99` from when it could
        have begun until a worker took it, in seconds. `verifier/restarts` are the workers replaced because they were
        killed or died, `verifier/waiting` the tasks that no worker has taken yet.
        """
        tallies, restarts, waiting = self.drain()
        return {"verifier/restarts": restarts, "verifier/waiting": waiting, **summary(tallies)}

    def drain(self) -> tuple[dict[str, Tally], int, int]:
        """What `stats` is made of, counted from zero again: tallies by verifier, restarts, tasks that wait."""
        with self._lock:
            tallies, self._tallies = self._tallies, {name: Tally() for name in self._tallies}
            restarts, self._restarts = self._restarts, 0
            return tallies, restarts, len(self._backlog)

    def close(self) -> None:
        """Kill the workers and wait for their threads; what is not scored yet fails with `VerifierError`."""
        self._stop(VerifierError("the verifier pool was closed"))
        for thread in self._threads:
            thread.join(JOIN_SECONDS)
            if thread.is_alive():
                raise VerifierError(f"thread {thread.name} did not end within {JOIN_SECONDS} s of closing the pool")

    # -------------------------------------------------------------------------------------------- a worker's own thread

    def _run(self, ready: Future[None]) -> None:
        try:
            worker = self._spawn()
            ready.set_result(None)
            while True:
                try:
                    failure = self._serve(worker)
                finally:
                    code = self._discard(worker)
                if failure:
                    self._failed(failure, worker.pid, code)
                worker = self._spawn()
        except VerifierError as error:  # closed, or there is no way to have a worker
            self._stop(error)
            if not ready.done():
                ready.set_exception(error)
        except BaseException as error:  # a fault of ours: loud, and nobody is left waiting
            self._stop(VerifierError(f"the verifier pool failed: {error!r}"))
            if not ready.done():
                ready.set_exception(error)
            raise

    def _spawn(self) -> WorkerProcess:
        """A worker that has loaded the verifiers."""
        problem = ""
        for attempt in range(SPAWN_ATTEMPTS):
            self._closing.wait(timeout=attempt)  # a machine short of memory or processes may recover
            with self._lock:
                if self._stopped is not None:
                    raise self._stopped
                try:
                    worker = WorkerProcess(self._loads, self._settings.allow_unsafe)
                except OSError as error:
                    problem = f"the process cannot be started: {error}"
                    continue
                self._workers.add(worker)
            try:
                self._loaded(worker.wait_ready(self._start_deadline), worker.sandbox)
                return worker
            except VerifierError:
                self._discard(worker)
                raise
            except TimeoutError:
                self._discard(worker)
                problem = f"not ready within {self._start_deadline} s"
                break
            except (EOFError, ValueError) as error:
                problem = f"{error} (exit code {self._discard(worker)})"
        raise VerifierError(f"no verifier worker could load {', '.join(self._tallies)}: {problem}")

    def _loaded(self, traits: Sequence[Traits], sandbox: dict[str, Any] | None) -> None:
        """What the verifiers are is known in the workers only: nothing of theirs is imported here."""
        with self._lock:
            self._sandbox = sandbox
            if self._plan is None:
                keys = [prefix(s.name, t.version, s.params) for s, t in zip(self._specs, traits, strict=True)]
                self._plan = made_of(self._specs, traits, keys)
                self._backlog = Backlog(self._plan.entries, self._settings.workers)

    def _discard(self, worker: WorkerProcess) -> int:
        with self._lock:
            self._workers.remove(worker)
        return worker.kill()

    def _serve(self, worker: WorkerProcess) -> Failure | None:
        """Score with one worker until it is used up, fails, or the pool stops."""
        served = 0
        while served < self._settings.recycle_after and (calls := self._take()):
            entry = calls[0].entry
            try:
                if not worker.quiet():  # it died while it had nothing to do: no item is to blame
                    self._give_back(calls)
                    with self._lock:
                        self._restarts += 1
                    return None
                worker.send(b"".join(call.line() for call in calls))
                served += sum(len(task.items) for call in calls for task in call.tasks)
                if failure := self._listen(worker, calls):
                    return failure
            finally:
                with self._lock:
                    self._backlog.done(entry)
                    self._lock.notify()
            if worker.resident_mb() > self._settings.memory_mb:
                break
        return None

    def _listen(self, worker: WorkerProcess, calls: deque[Call]) -> Failure | None:
        """Hear what becomes of the calls that a worker was given."""
        while calls:
            call, started = calls[0], time.monotonic()
            try:
                outcomes = outcomes_of(call, worker.receive(started + call.entry.patience))
            except TimeoutError as error:
                cause, text = "timeout", str(error)
            except EOFError as error:
                cause, text = "crash", str(error)
            except ValueError as error:
                cause, text = "invalid_reply", str(error)
            else:
                calls.popleft()
                scored: list[tuple[Task, list[Verdict]]] = []
                for task, outcome in zip(call.tasks, outcomes, strict=True):
                    if isinstance(outcome, Mapping):
                        cause = outcome.get("cause", "exception")  # else what ended it in the sandbox
                        self._erred(call, task, cause, outcome, time.monotonic() - started)
                    else:
                        scored.append((task, outcome))
                self._finish(scored)
                continue
            calls.popleft()
            self._give_back(calls)
            return Failure(call, cause, text, time.monotonic() - started)
        return None

    def _take(self) -> deque[Call]:
        """The next calls for one worker, all of one verifier; none when the pool has stopped."""
        with self._lock:
            self._lock.wait_for(lambda: self._stopped or self._backlog.ready())
            if self._stopped is not None:
                return deque()
            calls = self._backlog.take()
            now = time.monotonic()
            self._tallies[calls[0].entry.spec.label].waits += [now - t.queued for call in calls for t in call.tasks]
            return calls

    def _give_back(self, calls: deque[Call]) -> None:
        with self._lock:
            self._backlog.give_back(calls)
            self._lock.notify(len(calls))

    def _failed(self, failure: Failure, pid: int, code: int) -> None:
        with self._lock:
            if self._stopped is not None:
                return
            self._restarts += 1
            if failure.cause == "timeout":
                self._tallies[failure.call.entry.spec.label].timeouts += 1
        details = {"error": failure.text, "worker": pid, "exit_code": code}
        for task in failure.call.tasks:
            self._erred(failure.call, task, failure.cause, details, failure.seconds)

    def _erred(self, call: Call, task: Task, cause: str, details: Mapping[str, Any], seconds: float) -> None:
        """The blame rule: again while attempts are left, then wrong if the completion caused it, else unverified."""
        batch = len(call.tasks) > 1  # then which of them it was is found out one by one
        task.failures["batch" if batch else cause] += 1
        allowed = TIMEOUT_ATTEMPTS if cause == "timeout" else self._settings.retries + 1
        with self._lock:
            if cause != "timeout":
                self._tallies[task.entry.spec.label].errors += 1
            if batch or task.failures[cause] < allowed:
                if self._stopped is None:
                    self._backlog.add(task, time.monotonic())
                    self._lock.notify()
                return
        traits, rollout = task.entry.traits, task.items[0].rollout
        details = {"verifier": task.entry.spec.label, "prompt_id": rollout.prompt_id, **details}
        task.stopped = cause in ON_ROW and len(task.items) == 1 and not traits.service
        status, score = ("wrong", 0.0) if task.stopped else ("unverified", None)
        verdict = Verdict(status, score, cause, None, {}, details, seconds, task.failures.total())  # type: ignore[arg-type]
        self._finish([(task, [verdict] * len(task.items))])

    # --------------------------------------------------------------------------------------------- verdicts to futures

    def _enqueue(self, task: Task) -> tuple[Task, list[Verdict]] | None:
        """Under the lock: put a task into the queue, unless its verdict is known, or on its way for another."""
        if task.key is not None:
            if (verdict := self._cache.find(task.key)) is not None:
                self._tallies[task.entry.spec.label].cache_hits += 1
                return task, [verdict]
            if not self._cache.lead(task.key, task):
                self._tallies[task.entry.spec.label].cache_hits += 1
                return None
        self._backlog.add(task, time.monotonic())
        self._lock.notify()
        return None

    def _finish(self, scored: list[tuple[Task, list[Verdict]]]) -> None:
        with self._lock:
            for task, verdicts in list(scored):
                if task.key is not None and self._stopped is None:
                    # What is the machine's doing may be otherwise next time; those who wait already share it.
                    sound = verdicts[0].status != "unverified" and not task.alone
                    for follower in self._cache.arrived(task.key, verdicts[0], keep=sound):
                        follower.stopped = task.stopped
                        scored.append((follower, [shared(verdicts[0])]))
            done = self._settle(scored)
            self._pending.difference_update(done)
        for item in done:
            item.future.set_result(item.scored())

    def _settle(self, scored: list[tuple[Task, list[Verdict]]]) -> list[Item]:
        """Under the lock: note verdicts, begin what waited for them; the items that now have all of theirs."""
        done = []
        known: list[tuple[Task, list[Verdict]]] = []
        for task, verdicts in scored:
            known += [(task, verdicts)] if task.siblings is None else task.siblings.decided(task, verdicts[0])
        for task, verdicts in known:
            name = task.entry.spec.label
            tally = self._tallies[name]
            for item, verdict in zip(task.items, verdicts, strict=True):
                if not verdict.cached:
                    tally.seconds.append(verdict.seconds)
                item.verdicts[name] = verdict
                if item not in self._pending:  # the pool has stopped
                    continue
                for dependent in item.dependents.get(name, ()):
                    dependent.needs -= 1
                    if dependent.needs == 0:
                        self._enqueue(dependent)  # these have no key, so nothing of theirs is known yet
                if None not in item.verdicts.values():
                    done.append(item)
        return done

    def _running(self, rollout: Rollout) -> Plan:
        with self._lock:
            if self._stopped is not None:
                raise VerifierError(f"cannot score {described(rollout)}: {self._stopped}")
            if self._plan is None:
                raise VerifierError(f"cannot score {described(rollout)}: the verifier pool is not started")
            return self._plan

    def _stop(self, error: VerifierError) -> None:
        """Stop for good; the first reason stays."""
        with self._lock:
            if self._stopped is not None:
                return
            self._stopped = error
            self._closing.set()
            abandoned = list(self._pending)
            self._pending.clear()
            self._backlog.clear()
            self._cache.clear()
            for worker in self._workers:
                worker.interrupt()
            self._lock.notify_all()
        for item in abandoned:
            item.future.set_exception(VerifierError(f"{described(item.rollout)} was not scored: {error}"))


def environment(spec: config.VerifierSpec) -> dict[str, str]:
    """The variables a verifier is let see.

    Raises:
        VerifierError: one is not set.
    """
    for name in spec.env:
        if name not in os.environ:
            raise VerifierError(
                f"verifier {spec.name!r}: env names {name!r}, which is not set; export it before the run"
            )
    return {name: os.environ[name] for name in spec.env}
