"""All that can be known to be wrong before anything starts: the same for `plan`, `train`, `sft`, `resume` and `submit`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rlpost import faults
from rlpost.checkpoint import room
from rlpost.config import Config, ConfigError
from rlpost.data.sources import check_files
from rlpost.models.facts import Facts, facts_of, outline_of
from rlpost.models.fits import check_length, check_outline, check_written, fitted, longest
from rlpost.models.source import ModelSource, OutOfReachError
from rlpost.run.inputs import check_inputs, check_tokens
from rlpost.run.passed_on import check_passed_on

if TYPE_CHECKING:
    from rlpost.run.roles import Roles


@dataclass(frozen=True)
class Checked:
    """
    Attributes:
        config: with what the model needs.
        facts: what the model is; None where it is out of reach from here.
        lines: what was set, what is cast, what could not be looked at.
    """

    config: Config
    facts: Facts | None = None
    lines: list[str] = field(default_factory=list)


def checked(
    config: Config,
    base: str | None = None,
    elsewhere: bool = False,
    served: bool = True,
    weights: bool = True,
    begins: bool = True,
) -> Checked:
    """Build every role once and look at every model, so that a wrong parameter, a broken file or a model that cannot do
    what is asked is refused.

    Args:
        base: the weights a resumed run started from.
        elsewhere: the run is to be on other machines, which may hold models that are out of reach here.
        served: whether engines are to serve the policy, too.
        weights: whether the policy's have to be here.
        begins: whether it is a new run, which has to find room on its disk. One that goes on may find it later.

    Raises:
        ConfigError: naming key, value and fix.
        DataError: a source has not the files it should have, or its first rows not the columns.
        VerifierError: a verifier does not load.
        FaultsError: RLPOST_FAULTS cannot be read.
    """
    faults.check()
    from rlpost.run.adapters import check_adapters
    from rlpost.run.roles import Roles

    check_files(config)
    check_inputs(config, elsewhere)
    made = base is None and config.model.create is not None
    source = None if made else ModelSource.of(config.model, base)
    try:
        check_written(config, source, served)
        outline = outline_of(config.model, source)
        check_outline(config, outline, served)  # first: it takes a second, and what follows imports torch
        roles = Roles(config)
        check_adapters(config)
        unseen = check_passed_on(config, elsewhere)
        facts = facts_of(config.model, outline, weights)
        config, lines = fitted(config, facts)
        _check_anchors(config, roles, facts)
        check_tokens(config, facts.tokenizer)
    except OutOfReachError as error:
        if not elsewhere:
            raise
        Roles(config)
        return Checked(config, None, [f"not looked at: {error}"])
    disk = _crowded(config, facts) if begins else None
    if elsewhere:
        unseen = [*unseen, *([f"on this machine {disk}"] if disk else [])]
    else:
        check_memory(config, facts, served)
        if disk:
            raise ConfigError(disk)
    return Checked(config, facts, [*lines, *unseen])


def check_memory(config: Config, facts: Facts | None, served: bool = True) -> None:
    """Refuse what GPUs of `cluster.gpu_memory_gb` have no room for. Not asked where that is left out.

    Args:
        served: whether engines are to serve the policy, too.

    Raises:
        ConfigError: naming the key, and a value with which it would fit.
    """
    if config.cluster.gpu_memory_gb is None or not config.on_gpu:
        return
    from rlpost.memory import memory_of

    memory = memory_of(config, facts, served=served)
    if memory is not None and memory.problems:
        raise ConfigError("\n".join(memory.problems))


def _crowded(config: Config, facts: Facts) -> str | None:
    """What is wrong with a disk that has no room for the checkpoints that are kept and the one being written."""
    from rlpost.memory.host import checkpoint
    from rlpost.memory.shapes import shapes_of

    kept, runs = config.checkpoint, Path(config.runs_dir)
    each = sum(checkpoint(config, shapes_of(config, facts.config, facts.where)).values())
    count = kept.keep + (kept.best.keep if kept.best is not None else 0) + 1
    if each * count <= (free := room.free(runs)):
        return None
    fits = int(free / each) - (count - kept.keep)
    less = f"set checkpoint.keep: {fits}, " if fits >= 1 else ""
    return (
        f"checkpoint.keep: {kept.keep}: {count} checkpoints of {room.size(each)}, with the one being written, take "
        f"{room.size(each * count)}, and {runs} has {room.size(free)} free: make room, {less}or set runs_dir to a larger disk"
    )


def _check_anchors(config: Config, roles: Roles, policy: Facts) -> None:
    """Refuse models to compare with that cannot read the policy's tokens, or are none."""
    own = policy.source or ModelSource("", key="model.create")
    for name, spec in roles.anchors(own).items():
        for source, _ in spec.origin:
            if source is own:
                continue
            anchor = facts_of(config.model, outline_of(config.model, source))
            if config.model.attention not in anchor.attention:
                raise ConfigError(
                    f"model.attention: {config.model.attention}, which objective.references.{name} ({anchor.family}) does not "
                    f"have: set model.attention: {' or '.join(anchor.attention[::-1])}"
                )
            if anchor.rows < policy.tokens:
                raise ConfigError(
                    f"objective.references.{name}: {str(source)!r} has {anchor.rows} embeddings, and the policy's tokenizer "
                    f"ids up to {policy.tokens - 1}: an anchor reads the policy's tokens, so it must have its tokenizer"
                )
            what = f"objective.references.{name}: data.max_prompt_tokens + rollout.max_tokens"
            check_length(anchor.positions, anchor.where, longest(config), what)
