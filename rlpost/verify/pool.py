"""The verifier pool: rollouts in, rollouts with verdicts out, whatever the verifiers do.

Promises:
- every future ends: with the scored rollout, or with a `VerifierError` when the pool is closed or cannot go on;
- a verdict takes at most its verifier's time-out from the moment its work begins, then the worker's process group is
  killed, reaped and replaced, and whatever else waited there goes back to the front of the queue, unblamed;
- what the completion can cause is wrong, what it cannot cause is unverified, never a zero reward.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import TYPE_CHECKING, Any

from rlpost.types import Prompt, Rollout, Verdict
from rlpost.verify.process import WorkerProcess
from rlpost.verify.protocol import STATUSES, VerifierError
from rlpost.verify.task import Failure, Item, Tally, Task, described, encoded, outcome_of

if TYPE_CHECKING:
    from rlpost import config

MAX_BATCH = 16
SPAWN_ATTEMPTS = 3
TIMEOUT_ATTEMPTS = 2  # once more alone, so that a loaded machine is not held against the completion
JOIN_SECONDS = 60.0


class VerifierPool:
    """Worker processes that score rollouts with every verifier of `specs`.

    Thread-safe. A future's done-callbacks run on the pool's threads and must be short.

        with VerifierPool(config.verifiers, config.verifier_pool) as pool:
            scored = pool.submit(rollout, prompt).result(timeout=60)
    """

    def __init__(
        self, specs: Sequence[config.VerifierSpec], pool: config.VerifierPool, start_deadline: float = 120.0
    ) -> None:
        """`start_deadline`: seconds a worker process may take to load the verifiers, at first and when replaced."""
        self._specs = list(specs)
        self._weights = {spec.name: spec.weight for spec in specs}
        self._settings = pool
        self._start_deadline = start_deadline
        self._loads = [{"name": spec.name, "params": spec.params} for spec in specs]
        self._lock = threading.Condition()
        self._queue: deque[Task] = deque()
        self._pending: set[Item] = set()
        self._workers: set[WorkerProcess] = set()
        self._threads: list[threading.Thread] = []
        self._stopped: VerifierError | None = None
        self._closing = threading.Event()  # set with `_stopped`
        self._tallies = {spec.name: Tally() for spec in specs}
        self._restarts = 0
        self._numbers = itertools.count()

    def __enter__(self) -> VerifierPool:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------------ the public part

    def start(self) -> None:
        """Start the workers and wait until they have loaded the verifiers.

        Raises:
            VerifierError: a verifier does not load (as soon as that is known), or not within `start_deadline`.
        """
        if self._threads:
            raise VerifierError("this verifier pool was started before; make a new one")
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

    def submit(self, rollout: Rollout, prompt: Prompt) -> Future[Rollout]:
        """Score a rollout; the future gives `rollout.scored(...)`. It cannot be cancelled.

        An aborted rollout is unverified by every verifier without being run, and is not counted in `stats`.

        Raises:
            VerifierError: the pool is not running, or the prompt's reference or metadata is not plain JSON.
        """
        future: Future[Rollout] = Future()
        future.set_running_or_notify_cancel()
        if rollout.finish_reason == "abort":
            aborted = {spec.name: Verdict("unverified", None, "aborted") for spec in self._specs}
            future.set_result(rollout.scored(aborted, self._weights))
            return future
        sample = encoded(rollout, prompt)
        item = Item(rollout, {spec.name: None for spec in self._specs}, future)
        tasks = [
            Task(item, spec, number, b'{"id":%d,"verifier":%d,"sample":%s}\n' % (number, index, sample))
            for index, (spec, number) in enumerate(zip(self._specs, self._numbers, strict=False))
        ]
        with self._lock:
            if self._stopped is not None:
                raise VerifierError(f"cannot score {described(rollout)}: {self._stopped}")
            if not self._threads:
                raise VerifierError(f"cannot score {described(rollout)}: the verifier pool is not started")
            self._pending.add(item)
            self._queue.extend(tasks)
            self._lock.notify(len(tasks))
        return future

    def stats(self) -> dict[str, float]:
        """Counts since the last call.

        For each verifier `verifier/<name>/correct|wrong|partial|unverified`, `.../timeouts` (workers killed, retries
        included) and, when it gave a verdict, `.../seconds_mean`; `verifier/restarts` are the workers replaced because
        they were killed or died.
        """
        with self._lock:
            tallies, self._tallies = self._tallies, {name: Tally() for name in self._tallies}
            restarts, self._restarts = self._restarts, 0
        values: dict[str, float] = {"verifier/restarts": restarts}
        for name, tally in tallies.items():
            values |= {f"verifier/{name}/{status}": tally.statuses[status] for status in STATUSES}
            values[f"verifier/{name}/timeouts"] = tally.timeouts
            if total := tally.statuses.total():
                values[f"verifier/{name}/seconds_mean"] = tally.seconds / total
        return values

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
                    worker = WorkerProcess(self._loads)
                except OSError as error:
                    problem = f"the process cannot be started: {error}"
                    continue
                self._workers.add(worker)
            try:
                worker.wait_ready(self._start_deadline)
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
        raise VerifierError(f"no verifier worker could load {', '.join(self._weights)}: {problem}")

    def _discard(self, worker: WorkerProcess) -> int:
        with self._lock:
            self._workers.remove(worker)
        return worker.kill()

    def _serve(self, worker: WorkerProcess) -> Failure | None:
        """Score with one worker until it is used up, fails, or the pool stops."""
        served = 0
        while served < self._settings.recycle_after and (batch := self._take()):
            if not worker.quiet():  # it died while it had nothing to do: no item is to blame
                self._give_back(batch)
                with self._lock:
                    self._restarts += 1
                return None
            worker.send(b"".join(task.line for task in batch))
            served += len(batch)
            while batch:
                task, started = batch[0], time.monotonic()
                try:
                    outcome = outcome_of(task, worker.receive(started + task.spec.timeout))
                except TimeoutError as error:
                    cause, text = "timeout", str(error)
                except EOFError as error:
                    cause, text = "crash", str(error)
                except ValueError as error:
                    cause, text = "invalid_reply", str(error)
                else:
                    batch.popleft()
                    if isinstance(outcome, Verdict):
                        self._finish(task, outcome)
                    else:
                        self._try_again(task, "exception", outcome, time.monotonic() - started)
                    continue
                batch.popleft()
                self._give_back(batch)
                return Failure(task, cause, text, time.monotonic() - started)
        return None

    def _take(self) -> deque[Task]:
        """The next tasks for one worker; none when the pool has stopped. A task that failed before comes alone."""
        with self._lock:
            self._lock.wait_for(lambda: self._queue or self._stopped)
            if self._stopped is not None:
                return deque()
            # Batches save round trips while the queue is long; at its end they would only keep work from idle workers.
            size = max(1, min(MAX_BATCH, len(self._queue) // (2 * self._settings.workers)))
            batch = deque([self._queue.popleft()])
            while len(batch) < size and not batch[0].alone and not self._queue[0].alone:
                batch.append(self._queue.popleft())
            return batch

    def _give_back(self, batch: deque[Task]) -> None:
        with self._lock:
            self._queue.extendleft(reversed(batch))
            self._lock.notify(len(batch))

    def _failed(self, failure: Failure, pid: int, code: int) -> None:
        with self._lock:
            if self._stopped is not None:
                return
            self._restarts += 1
            if failure.cause == "timeout":
                self._tallies[failure.task.spec.name].timeouts += 1
        details = {"error": failure.text, "worker": pid, "exit_code": code}
        self._try_again(failure.task, failure.cause, details, failure.seconds)

    def _try_again(self, task: Task, cause: str, details: Mapping[str, Any], seconds: float) -> None:
        """The blame rule: again while attempts are left, then wrong if the completion caused it, else unverified."""
        task.failures[cause] += 1
        allowed = TIMEOUT_ATTEMPTS if cause == "timeout" else self._settings.retries + 1
        if task.failures[cause] < allowed:
            with self._lock:
                self._queue.append(task)
                self._lock.notify()
            return
        details = {"verifier": task.spec.name, "prompt_id": task.item.rollout.prompt_id, **details}
        if cause in ("timeout", "crash"):
            self._finish(task, Verdict("wrong", 0.0, cause, None, {}, details, seconds, task.failures.total()))
        else:
            self._finish(task, Verdict("unverified", None, cause, None, {}, details, seconds, task.failures.total()))

    def _finish(self, task: Task, verdict: Verdict) -> None:
        item = task.item
        with self._lock:
            tally = self._tallies[task.spec.name]
            tally.statuses[verdict.status] += 1
            tally.seconds += verdict.seconds
            item.verdicts[task.spec.name] = verdict
            verdicts = {name: v for name, v in item.verdicts.items() if v is not None}
            if len(verdicts) < len(self._specs) or item not in self._pending:
                return
            self._pending.remove(item)
        item.future.set_result(item.rollout.scored(verdicts, self._weights))

    def _stop(self, error: VerifierError) -> None:
        """Stop for good; the first reason stays."""
        with self._lock:
            if self._stopped is not None:
                return
            self._stopped = error
            self._closing.set()
            abandoned = list(self._pending)
            self._pending.clear()
            self._queue.clear()
            for worker in self._workers:
                worker.interrupt()
            self._lock.notify_all()
        for item in abandoned:
            item.future.set_exception(VerifierError(f"{described(item.rollout)} was not scored: {error}"))
