"""`memory_of`: what a configuration takes, and what of it cannot fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlpost.config import Config
from rlpost.memory import engine, host, rank
from rlpost.memory.holders import GIB, Holder, Memory
from rlpost.memory.known import known_config
from rlpost.memory.remedies import problems
from rlpost.memory.shapes import Shapes, counted, shapes_of

if TYPE_CHECKING:
    from rlpost.models.facts import Facts


def memory_of(
    config: Config, facts: Facts | None, gpu_memory: float | None = None, served: bool = True
) -> Memory | None:
    """What a configuration takes of memory, by role and phase, at the size of its model. Starts nothing; a few seconds.

    `Memory.problems` says what cannot fit, each with the key to change; `rlpost.memory.table.tables` prints it.

    Args:
        config: as `rlpost.run.check.checked` gives it.
        facts: of the model, from there too; None where it is out of reach. Then the sizes in `rlpost.memory.known` stand
            in, or `model.parameters` alone, and `Memory.notes` says so.
        gpu_memory: GiB of a GPU; `cluster.gpu_memory_gb` by default. Without either nothing can be too much.
        served: whether there are engines, too.

    Returns:
        None where nothing is known of the model.
    """
    notes: list[str] = []
    shapes = _shapes(config, facts, notes)
    if shapes is None:
        return None
    gib = gpu_memory if gpu_memory is not None else config.cluster.gpu_memory_gb
    room = gib * GIB if gib is not None and config.on_gpu else None
    if config.on_gpu and room is None:
        notes.append("the cache, and whether all fits: set cluster.gpu_memory_gb, or give --gpu-memory")
    found = measured(config, shapes, room, notes, served)
    if room is not None:
        found.problems.extend(problems(config, lambda changed: measured(changed, shapes, room, [], served), found))
    return found


def measured(config: Config, shapes: Shapes, room: float | None, notes: list[str], served: bool = True) -> Memory:
    """As `memory_of`, of shapes that are known, without problems.

    Args:
        room: bytes of a GPU.
        notes: told what could not be counted.
    """
    what, both = "GPU" if config.on_gpu else "process", config.cluster.colocate and served
    own = None if both else room
    learning, cache = rank.phases(config, shapes, notes), None
    gpus = [Holder(f"a rank's {what}", learning, own)]
    if served:
        serving, cache = engine.phases(config, shapes, room, notes)
        gpus.append(Holder(f"an engine's {what}", serving, own))
        if both:
            gpus.append(Holder("the GPU of both", together(learning, serving), room))
    hosts = [Holder("a machine, beside its GPUs" if config.on_gpu else "the machine", host.phases(config, shapes))]
    return Memory(gpus, hosts, host.checkpoint(config, shapes), cache, notes)


def together(
    learning: dict[str, dict[str, float]], serving: dict[str, dict[str, float]]
) -> dict[str, dict[str, float]]:
    """An engine keeps all it has while the rank beside it learns, and both sync at once."""
    return {
        phase: {
            "the rank": sum(parts.values()),
            "the engine": sum(serving["sync" if phase == "sync" else "sample"].values()),
        }
        for phase, parts in learning.items()
    }


def _shapes(config: Config, facts: Facts | None, notes: list[str]) -> Shapes | None:
    if facts is not None:
        return shapes_of(config, facts.config, facts.where)
    where = f"model.path {config.model.path!r}"
    if (known := known_config(config.model.path)) is not None:
        notes.append(f"{where} is out of reach: counted by the sizes its config.json is known to have")
        return shapes_of(config, known, where)
    if (found := counted(config)) is not None:
        notes.append(f"{where} is out of reach: counted by model.parameters alone")
    return found
