"""Ray: joined or started, and where each actor goes."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from rlpost.config import Config, ConfigError
from rlpost.stop import STOP

Parts = frozenset[Literal["engines", "ranks"]]
BOTH: Parts = frozenset(["engines", "ranks"])
ENGINES: Parts = frozenset(["engines"])
RANKS: Parts = frozenset(["ranks"])
WHO = {"engines": "rollout.engines", "ranks": "learner.ranks"}


class PlacementError(RuntimeError):
    """The cluster cannot hold what the configuration asks for."""


@dataclass(frozen=True)
class Placement:
    """A slot for each engine and each learner rank: (placement group, bundle), or None for anywhere on CPU.

    Of parts that were not asked for there are none. `engine_gpus` and `rank_gpus` are of one of them; less than 1 where
    an engine and a rank share a GPU.
    """

    engines: Sequence[tuple[Any, int] | None]
    ranks: Sequence[tuple[Any, int] | None]
    engine_gpus: float
    rank_gpus: float
    group: Any

    @property
    def engine_share(self) -> float:
        """The part of a GPU that is an engine's own; the rest is a rank's."""
        return self.engine_gpus if 0 < self.engine_gpus < 1 else 1.0

    def release(self) -> None:
        """Give the room back; whoever still is in it is killed."""
        import ray

        ray.util.remove_placement_group(self.group)


def placement_plan(config: Config, parts: Parts = BOTH) -> dict[str, Any]:
    """The bundles that will be asked of Ray, as plain data. Needs no cluster.

    Args:
        parts: who is to be started; room is asked for nobody else.
    """
    cl, ro, le = config.cluster, config.rollout, config.learner
    cpus = {"engine": cl.cpus_per_engine, "rank": cl.cpus_per_rank}
    engines, ranks = (count if part in parts else 0 for part, count in (("engines", ro.engines), ("ranks", le.ranks)))
    if not config.on_gpu:
        bundles = [{"for": f"engine {i}", "CPU": cpus["engine"]} for i in range(engines)]
        bundles += [{"for": f"rank {i}", "CPU": cpus["rank"]} for i in range(ranks)]
        return {"strategy": "PACK", "bundles": bundles}
    if cl.colocate and engines and ranks:
        both = cpus["engine"] + cpus["rank"]
        return {
            "strategy": "PACK",
            "bundles": [{"for": f"engine {i} and rank {i}", "GPU": 1, "CPU": both} for i in range(ranks)],
        }
    bundles = [{"for": f"engine {i}", "GPU": ro.tensor_parallel, "CPU": cpus["engine"]} for i in range(engines)]
    bundles += [{"for": f"rank {i}", "GPU": 1, "CPU": cpus["rank"]} for i in range(ranks)]
    return {"strategy": "PACK", "bundles": bundles}


@contextmanager
def connected(config: Config) -> Iterator[None]:
    """Join the cluster at `cluster.address`, or the one this job runs in, or start a private one; leave it after."""
    with session(config) as join:
        join()
        yield


@contextmanager
def session(config: Config) -> Iterator[Callable[[], None]]:
    """As `connected`, from the first call of what it gives on: what is refused before costs no start of Ray."""
    import ray

    def join() -> None:
        if not ray.is_initialized():
            _join(config)

    try:
        yield join
    finally:
        ray.shutdown()


def _join(config: Config) -> None:
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not config.on_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or every process that meets DeepSpeed warns of its choice
    address = config.cluster.address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address:
        options["address"] = address
    else:
        plan = placement_plan(config)
        # Ray runs workers at nice 15: whatever else the machine does would halve the speed of the actors.
        os.environ.setdefault("RAY_worker_niceness", "0")
        options |= {
            "address": "local",
            "num_cpus": max(os.cpu_count() or 1, int(sum(b["CPU"] for b in plan["bundles"]) + 0.999)),
            "object_store_memory": int(config.cluster.object_store_gb * 2**30),
            "include_dashboard": False,
        }
    try:
        with STOP.through_start_of_ray():
            ray.init(**options)
    except ConnectionError as error:
        raise ConfigError(f"{_key_of_address(config)}: {address!r}: no cluster can be joined there: {error}") from error


def _key_of_address(config: Config) -> str:
    return "cluster.address" if config.cluster.address else "the environment variable RAY_ADDRESS"


def endpoint(address: str) -> tuple[str, int] | None:
    """Host and port of HOST:PORT or ray://HOST:PORT; None of an address of another form."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        return None
    return host.strip("[]"), int(port)


def check_address(config: Config, elsewhere: bool = False, deadline: float = 3.0) -> None:
    """Refuse an address of no form that Ray knows, or at which nothing listens, where there is one to join.

    Args:
        elsewhere: only the form of `cluster.address` can be looked at; the cluster need not be seen from here.

    Raises:
        ConfigError: naming the key.
    """
    address = config.cluster.address or (None if elsewhere else os.environ.get("RAY_ADDRESS"))
    if address in (None, "", "auto", "local"):
        return
    key = _key_of_address(config)
    if (at := endpoint(str(address))) is None:
        raise ConfigError(f"{key}: {address!r} must be auto, HOST:PORT, or ray://HOST:PORT")
    if elsewhere:
        return
    try:
        socket.create_connection(at, timeout=deadline).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"{key}: {address!r}: nothing answers there ({error}): is the cluster up?") from None


def on_nodes(work: Callable[..., Any], asked: Sequence[tuple[str, tuple[Any, ...]]], patience: float) -> list[Any]:
    """What `work` gives on each of these nodes, all asked at the same time.

    Args:
        asked: Ray's identity of a node, and the arguments there.
        patience: seconds for all of them.

    Returns:
        in the place of an answer, of a node that is gone or too slow, the RayError that says so.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def answer(ref: Any) -> Any:
        try:
            return ray.get(ref, timeout=0)
        except ray.exceptions.RayError as error:
            return error

    remote = ray.remote(work)
    there = [NodeAffinitySchedulingStrategy(node, soft=False) for node, _ in asked]
    refs = [
        remote.options(num_cpus=0, max_retries=0, scheduling_strategy=strategy).remote(*arguments)
        for strategy, (_, arguments) in zip(there, asked, strict=True)
    ]
    if refs:
        ray.wait(refs, num_returns=len(refs), timeout=patience)
    return [answer(ref) for ref in refs]


def place(config: Config, parts: Parts = BOTH) -> Placement:
    """Reserve room for all actors of these parts; with `cluster.elastic`, where it does not come, for fewer engines.

    Raises:
        PlacementError: with what was asked for and what the cluster has, when it does not come within a deadline.
    """
    plan = placement_plan(config, parts)
    began = time.monotonic()
    group = _reserve(plan, min(60.0, config.cluster.start_deadline))
    fewer = config.rollout.engines
    while (
        group is None and config.cluster.elastic and parts == BOTH and (fewer := _engines_that_fit(config, fewer - 1))
    ):
        config = config.model_copy(update={"rollout": config.rollout.model_copy(update={"engines": fewer})})
        group = _reserve(placement_plan(config, parts), 5.0)
    if group is None:
        raise _no_room(plan, parts, time.monotonic() - began)
    ro, slots = config.rollout, [(group, i) for i in range(group.bundle_count)]
    if config.cluster.colocate and parts == BOTH:
        return Placement(slots, slots, engine_gpus=0.5, rank_gpus=0.5, group=group)
    engines = ro.engines if "engines" in parts else 0
    return Placement(
        engines=slots[:engines],
        ranks=slots[engines:],
        engine_gpus=ro.tensor_parallel if config.on_gpu else 0,
        rank_gpus=1 if config.on_gpu else 0,
        group=group,
    )


def _bundles(plan: dict[str, Any]) -> list[dict[str, float]]:
    return [{k: v for k, v in b.items() if k != "for"} for b in plan["bundles"]]


def _reserve(plan: dict[str, Any], seconds: float) -> Any:
    """A placement group of these bundles; None when it does not come in time."""
    import ray

    group = ray.util.placement_group(_bundles(plan), strategy=plan["strategy"])
    ready, _ = ray.wait([group.ready()], timeout=seconds)
    if ready:
        return group
    ray.util.remove_placement_group(group)
    return None


def _engines_that_fit(config: Config, most: int) -> int:
    """How many engines, at most `most`, the whole cluster's resources are enough for beside all ranks."""
    import ray

    have = ray.cluster_resources()
    for engines in range(most, 0, -1):
        fewer = config.model_copy(update={"rollout": config.rollout.model_copy(update={"engines": engines})})
        asked = _bundles(placement_plan(fewer))
        if all(sum(b.get(k, 0) for b in asked) <= have.get(k, 0) for k in ("GPU", "CPU")):
            return engines
    return 0


def _no_room(plan: dict[str, Any], parts: Parts, waited: float) -> PlacementError:
    import ray

    have, free = ray.cluster_resources(), ray.available_resources()
    asked = {k: sum(b.get(k, 0) for b in _bundles(plan)) for k in ("GPU", "CPU")}
    return PlacementError(
        f"waited {waited:.0f} s for room on the cluster. "
        + "; ".join(f"{k}: asked {asked[k]:g}, have {have.get(k, 0):g}, free {free.get(k, 0):g}" for k in asked)
        + f". Bundles: {plan['bundles']}. Lower {' or '.join(WHO[part] for part in sorted(parts))}, or add nodes."
    )


@dataclass(frozen=True)
class Threads:
    """CPU threads of an actor: as many as were asked for, or its part of the cores of the machine that it is on.

    Attributes:
        among: actors that compute on one machine at a time.
    """

    asked: int | None
    among: int = 1

    def here(self) -> int:
        """On this machine. A driver may have far fewer cores than the nodes."""
        return self.asked or max(1, (os.cpu_count() or 1) // self.among)


def threads(config: Config) -> tuple[Threads, Threads]:
    """CPU threads of an engine and of a rank. In turns they share all cores of a machine; overlapping, half each."""
    ro, le = config.rollout, config.learner
    sides = 1 if ro.max_staleness == 0 else 2
    # Where GPUs are, no more of them than a machine has GPUs for.
    gpus = config.cluster.gpus_per_node
    engines = min(ro.engines, gpus // ro.tensor_parallel) if config.on_gpu else ro.engines
    ranks = min(le.ranks, gpus) if config.on_gpu else le.ranks
    return Threads(ro.threads, sides * engines), Threads(le.threads, sides * ranks)


def set_thread_environment(count: int) -> None:
    """Say how many CPU threads this process computes with; before torch is imported.

    OpenMP's threads spin at every barrier. When another process wants the core, they spin until the kernel takes it
    away (4 ms an operation, measured as 20 times slower steps), so they are told to give up early.
    """
    os.environ["OMP_NUM_THREADS"] = str(count)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")
