"""The verifier pool on the cluster: one actor on each node, each with the processes of a `VerifierPool`.

Promises: as those of the pool; and a group whose actor is lost is scored again on another node, at most
`verifier_pool.retries` times, then it is unverified with the reason `node_lost`. A lost actor is started anew, on its own
node or, when that is gone, elsewhere. An actor never holds more than `HELD` rollouts for each of its processes.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from rlpost.types import Prompt, Rollout, Verdict
from rlpost.verify.plan import chosen_by
from rlpost.verify.pool import JOIN_SECONDS, VerifierPool, environment
from rlpost.verify.protocol import VerifierError
from rlpost.verify.task import Tally, described, encoded, summary

if TYPE_CHECKING:
    from rlpost import config

HELD = 32
REVIVALS = 3  # attempts to start a lost actor anew before its node is given up
STATS_SECONDS = 30.0
NOTHING: np.ndarray = np.zeros(0, np.int8)


class NodePool:
    """What runs on a node, as a Ray actor: a pool, and text and verdicts on the wire instead of whole rollouts."""

    def __init__(
        self,
        specs: list[dict[str, Any]],
        settings: dict[str, Any],
        deadline: float,
        folder: str,
        environment: dict[str, str],
    ) -> None:
        """`folder`: where relative paths of verifiers start. `environment`: the driver's, as far as `env` names it."""
        from rlpost import config

        if not os.path.isdir(folder):
            raise VerifierError(
                f"folder {folder} of the driver is not on this node: share it, or run the pool on the driver"
            )
        os.chdir(folder)
        os.environ.update(environment)
        self._pool = VerifierPool(
            [config.VerifierSpec.model_validate(spec) for spec in specs],
            config.VerifierPool.model_validate(settings),
            deadline,
        )
        self._pool.start()

    async def ready(self) -> str:
        """Ray's identity of the machine it came to be on."""
        import ray

        found: str = ray.get_runtime_context().get_node_id()
        return found

    async def sandbox(self) -> dict[str, Any] | None:
        return self._pool.sandbox

    async def score(self, rollouts: list[Rollout], prompt: Prompt, whole: bool) -> list[Rollout]:
        submit = self._pool.submit_group if whole else lambda r, p: [self._pool.submit(r[0], p)]
        return list(await asyncio.gather(*map(asyncio.wrap_future, submit(rollouts, prompt))))

    async def drain(self) -> tuple[dict[str, Tally], int, int]:
        return self._pool.drain()

    async def close(self) -> None:
        self._pool.close()


@dataclass(eq=False)
class Job:
    """Rollouts of one prompt on their way to a node and back."""

    rollouts: list[Rollout]
    prompt: Prompt
    whole: bool
    futures: list[Future[Rollout]]
    lost: int = 0
    avoid: Node | None = None


@dataclass(eq=False)
class Node:
    """A node of the cluster and its actor; None while there is none to send to.

    Attributes:
        host: the node that the actor is on, which is another one where its own is gone.
    """

    id: str
    actor: Any = None
    host: str = ""
    up: bool = False
    jobs: set[Job] = field(default_factory=set)
    revivals: int = 0

    @property
    def held(self) -> int:
        return sum(len(job.rollouts) for job in self.jobs)


class ClusterPool:
    """`VerifierPool` over all nodes that have `verifier_pool.workers` CPUs to spare; Ray must be connected.

    Thread-safe. Callbacks of futures run on the pool's one thread and must be short.
    """

    def __init__(
        self, specs: Sequence[config.VerifierSpec], pool: config.VerifierPool, start_deadline: float = 120.0
    ) -> None:
        self._specs = list(specs)
        self._settings = pool
        self._start_deadline = start_deadline
        self._lock = threading.RLock()
        self._nodes: list[Node] = []
        self._waiting: deque[Job] = deque()
        self._stopped: VerifierError | None = None
        self._lost = 0
        # Ray's own threads must not wait, and what follows a reply may ask Ray for more: a thread of our own does it.
        self._events: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._attend, name="verifier-nodes", daemon=True)

    def __enter__(self) -> ClusterPool:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------------ the public part

    def start(self) -> None:
        """Start an actor on each node, and wait until those that find room have loaded the verifiers.

        Raises:
            VerifierError: a verifier does not load, or no node had room within `start_deadline`.
        """
        import ray

        if self._nodes:
            raise VerifierError("this verifier pool was started before; make a new one")
        self._environment = {key: value for spec in self._specs for key, value in environment(spec).items()}
        workers = self._settings.workers
        ids = [n["NodeID"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU", 0) >= workers]
        self._nodes = [Node(id) for id in ids]
        self._thread.start()
        try:
            readies = {node: self._launch(node) for node in self._nodes}
            done, late = wait_for(readies.values(), timeout=self._start_deadline)
            for ready in done:
                if (error := ready.exception()) is not None:
                    raise VerifierError(f"a node's verifier pool did not start: {_cause(error)}") from error
            if not done:
                raise VerifierError(
                    f"no node had {workers} free CPUs for verifiers within {self._start_deadline:g} s ({len(late)} of "
                    f"{len(ray.nodes())} nodes are large enough): lower verifier_pool.workers, or set where: driver"
                )
            with self._lock:
                for node in [node for node, ready in readies.items() if ready in late]:
                    self._nodes.remove(node)
                    ray.kill(node.actor)
                for node in self._nodes:
                    node.up, node.host = True, readies[node].result()
        except BaseException:
            self.close()
            raise

    @property
    def sandbox(self) -> dict[str, Any] | None:
        """As `VerifierPool.sandbox`: of the node where it is worth least."""
        import ray

        with self._lock:
            asked = [node.actor.sandbox.remote() for node in self._nodes if node.up]
        found = [one for one in ray.get(asked, timeout=STATS_SECONDS) if one is not None]
        return max(found, key=lambda one: one["tier"], default=None)

    def submit(self, rollout: Rollout, prompt: Prompt) -> Future[Rollout]:
        """As `VerifierPool.submit`; that a verifier looks at groups fails the future."""
        return self._submit([rollout], prompt, whole=False)[0]

    def submit_group(self, rollouts: Sequence[Rollout], prompt: Prompt) -> list[Future[Rollout]]:
        """As `VerifierPool.submit_group`."""
        return self._submit(list(rollouts), prompt, whole=True) if rollouts else []

    def stats(self) -> dict[str, float]:
        """As `VerifierPool.stats`, over all nodes; `verifier/nodes` have an actor, `verifier/nodes_lost` lost theirs.

        What a lost actor had counted is lost with it.
        """
        import ray

        with self._lock:
            up = [node for node in self._nodes if node.up]
            lost, self._lost = self._lost, 0
            waiting = sum(len(job.rollouts) for job in self._waiting)
        drained = {node.actor.drain.remote(): node for node in up}
        tallies = {spec.label: Tally() for spec in self._specs}
        restarts = 0
        done, _ = ray.wait(list(drained), num_returns=len(drained), timeout=STATS_SECONDS) if drained else ([], [])
        for reference in done:
            try:
                found, replaced, queued = ray.get(reference)
            except ray.exceptions.RayActorError:
                self._events.put(partial(self._lose, drained[reference]))
                continue
            restarts, waiting = restarts + replaced, waiting + queued
            for name, tally in found.items():
                tallies[name].add(tally)
        return {
            "verifier/restarts": restarts,
            "verifier/waiting": waiting,
            "verifier/nodes": len(up),
            "verifier/nodes_lost": lost,
            **summary(tallies),
        }

    def close(self) -> None:
        """Kill the actors, and with them their processes; what is not scored yet fails with `VerifierError`."""
        import ray

        self._stop(VerifierError("the verifier pool was closed"))
        with self._lock:
            actors = [node.actor for node in self._nodes if node.actor is not None]
            self._nodes = []
        for actor in actors:
            ray.kill(actor)
        if self._thread.is_alive():
            self._events.put(None)
            self._thread.join(JOIN_SECONDS)

    def _attend(self) -> None:
        while (event := self._events.get()) is not None:
            try:
                event()
            except BaseException as error:  # a fault of ours: loud, and nobody is left waiting
                self._stop(VerifierError(f"the verifier pool failed: {error!r}"))
                raise

    # ---------------------------------------------------------------------------------------------------- jobs to nodes

    def _submit(self, rollouts: list[Rollout], prompt: Prompt, whole: bool) -> list[Future[Rollout]]:
        encoded(rollouts[0], prompt)  # refuses here, and not on the node, what is not JSON
        futures: list[Future[Rollout]] = [Future() for _ in rollouts]
        for future in futures:
            future.set_running_or_notify_cancel()
        with self._lock:
            if self._stopped is not None:
                raise VerifierError(f"cannot score {described(rollouts[0])}: {self._stopped}")
            if not self._nodes:
                raise VerifierError(f"cannot score {described(rollouts[0])}: the verifier pool is not started")
            self._waiting.append(Job(rollouts, prompt, whole, futures))
        self._dispatch()
        return futures

    def _dispatch(self) -> None:
        """Send what waits to the nodes that hold least, as far as they have room."""
        room = HELD * self._settings.workers
        while True:
            with self._lock:
                free = [node for node in self._nodes if node.up and node.held < room]
                if not self._waiting or not free:
                    return
                job = self._waiting.popleft()
                node = min(free, key=lambda n: (n is job.avoid, n.held))
                node.jobs.add(job)
                prompt = Prompt(
                    job.prompt.id, job.prompt.text, NOTHING, job.prompt.reference, None, job.prompt.metadata
                )
                reply = node.actor.score.remote([_slim(r) for r in job.rollouts], prompt, job.whole).future()
            reply.add_done_callback(
                lambda reply, node=node, job=job: self._events.put(partial(self._replied, node, job, reply))
            )

    def _replied(self, node: Node, job: Job, reply: Future[list[Rollout]]) -> None:
        import ray

        error = reply.exception()
        with self._lock:
            if job not in node.jobs:  # closed
                return
            node.jobs.remove(job)
        if error is None:
            node.revivals = 0
            for rollout, scored, future in zip(job.rollouts, reply.result(), job.futures, strict=True):
                weights = {s.label: s.weight for s in self._specs if s.label in scored.verdicts}
                future.set_result(rollout.scored(scored.verdicts, weights))
        elif not isinstance(error, ray.exceptions.RayTaskError):  # the actor, its node, or the way there
            self._lose(node)
            self._again(node, job, error)
        else:
            for rollout, future in zip(job.rollouts, job.futures, strict=True):
                future.set_exception(VerifierError(f"{described(rollout)} was not scored: {_cause(error)}"))
        self._dispatch()

    def _again(self, node: Node, job: Job, error: BaseException) -> None:
        job.lost += 1
        job.avoid = node
        if job.lost <= self._settings.retries:
            with self._lock:
                if self._stopped is None:
                    self._waiting.appendleft(job)
                    return
        details = {"error": str(error)[:500], "prompt_id": job.prompt.id}
        verdict = Verdict("unverified", None, "node_lost", details=details, attempts=job.lost)
        chosen = chosen_by(job.prompt, self._specs)
        specs = [s for s in chosen if s.applies(job.prompt.metadata)] or chosen
        for rollout, future in zip(job.rollouts, job.futures, strict=True):
            future.set_result(rollout.scored({s.label: verdict for s in specs}, {s.label: s.weight for s in specs}))

    # ------------------------------------------------------------------------------------------------- actors come and go

    def _launch(self, node: Node) -> Future[str]:
        """A new actor for a node; the future ends when it has loaded the verifiers."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # Soft, so that the actor of a node that is gone can start on another.
        here = NodeAffinitySchedulingStrategy(node.id, soft=node.revivals > 0)
        node.actor = (
            ray.remote(NodePool)
            .options(num_cpus=self._settings.workers, max_concurrency=100_000, scheduling_strategy=here)
            .remote(
                [spec.model_dump() for spec in self._specs],
                self._settings.model_dump(),
                self._start_deadline,
                os.getcwd(),
                self._environment,
            )
        )
        ready: Future[str] = node.actor.ready.remote().future()
        return ready

    def _lose(self, node: Node) -> None:
        """A node's actor died: start another one, and see whether those that share its machine are still there."""
        with self._lock:
            if not node.up or self._stopped is not None:
                return
            node.up = False
            self._lost += 1
            beside = [other for other in self._nodes if other.up and other.host == node.host]
            for other in beside:
                other.up = False  # what it would be sent now might be lost a second time
        for other in beside:
            asked = other.actor.ready.remote().future()
            asked.add_done_callback(
                lambda asked, other=other, actor=other.actor: self._events.put(
                    partial(self._answered, other, actor, asked)
                )
            )
        self._revive(node)

    def _answered(self, node: Node, actor: Any, asked: Future[str]) -> None:
        """What the actor of a node says when it is asked whether it is still there."""
        with self._lock:
            if self._stopped is not None or node not in self._nodes or node.actor is not actor:
                return
            node.up = True
        if asked.exception() is not None:
            self._lose(node)
        else:
            self._dispatch()

    def _revive(self, node: Node) -> None:
        import ray

        with self._lock:
            if self._stopped is not None or node not in self._nodes:
                return
            node.revivals += 1
            if node.revivals > REVIVALS:
                self._nodes.remove(node)
                if self._nodes:
                    return
        if node.revivals > REVIVALS:
            self._stop(VerifierError(f"the last verifier node was lost and did not come back in {REVIVALS} attempts"))
            return
        ray.kill(node.actor)  # if it is only out of reach, its CPUs are wanted for the next
        ready = self._launch(node)
        late = threading.Timer(self._start_deadline, self._events.put, [partial(self._late, node, node.actor)])
        late.daemon = True
        late.start()

        def revived() -> None:
            late.cancel()
            if ready.exception() is not None:
                self._revive(node)
                return
            with self._lock:
                node.up, node.host = self._stopped is None and node in self._nodes, ready.result()
            self._dispatch()

        ready.add_done_callback(lambda _: self._events.put(revived))

    def _late(self, node: Node, actor: Any) -> None:
        """An actor that finds no room in time: its `ready` fails, and `revived` tries again."""
        import ray

        with self._lock:
            wanted = self._stopped is None and node.actor is actor and not node.up
        if wanted:
            ray.kill(actor)

    def _stop(self, error: VerifierError) -> None:
        with self._lock:
            if self._stopped is not None:
                return
            self._stopped = error
            abandoned = [*self._waiting, *(job for node in self._nodes for job in node.jobs)]
            self._waiting.clear()
            for node in self._nodes:
                node.jobs.clear()
                node.up = False
        for job in abandoned:
            for rollout, future in zip(job.rollouts, job.futures, strict=True):
                future.set_exception(VerifierError(f"{described(rollout)} was not scored: {error}"))


def _slim(rollout: Rollout) -> Rollout:
    """What verifiers see of a rollout: its text, how it ended, and how many tokens it has."""
    zeros: np.ndarray = np.zeros(len(rollout.response_ids), np.int8)
    return Rollout(
        prompt_id=rollout.prompt_id,
        group=rollout.group,
        sample=rollout.sample,
        prompt_ids=NOTHING,
        response_ids=zeros,
        logprobs=zeros,
        versions=zeros,
        finish_reason=rollout.finish_reason,
        text=rollout.text,
        raw=rollout.raw,
        seed=rollout.seed,
    )


def _cause(error: BaseException) -> BaseException | Mapping[str, Any]:
    """The error as it was raised on the node, out of Ray's wrapping."""
    return getattr(error, "cause", None) or error
