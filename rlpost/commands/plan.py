"""`rlpost plan`: what a configuration asks for, without starting anything."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from rlpost.cluster import placement_plan
from rlpost.config import Config
from rlpost.exit_codes import BAD_USAGE, DONE
from rlpost.memory import memory_of
from rlpost.memory.table import lines, tables
from rlpost.models.architecture import experts_of, hf_config
from rlpost.models.facts import Facts
from rlpost.models.fits import longest
from rlpost.routing import bytes_per_token


def show(config: Config, gpu_memory: float | None = None) -> int:
    """Print the plan.

    Args:
        gpu_memory: GiB of a GPU, in place of `cluster.gpu_memory_gb`.

    Returns:
        `BAD_USAGE` where it does not fit.

    Raises:
        ConfigError, DataError, VerifierError: a run would be refused.
    """
    from rlpost.run.check import checked

    ready = checked(config, elsewhere=True)
    config = ready.config
    out = Console(soft_wrap=True)
    for line in ready.lines:
        out.print(line, highlight=False, markup=False)
    if ready.facts is not None:
        table = Table("model", "", box=None)
        for name, what in described(ready.facts, config).items():
            table.add_row(name, what)
        out.print(table)
    table = Table("batch", "", box=None)
    for name, value in batch_arithmetic(config).items():
        table.add_row(name, f"{value:,}")
    out.print(table)
    if config.ends_with is None and config.epochs is not None:
        out.print(f"steps of the run: known once the prompts of data.train are loaded (epochs: {config.epochs:g})")
    placed = placement_plan(config)
    table = Table(f"placement ({placed['strategy']})", "GPU", "CPU", box=None)
    for bundle in placed["bundles"]:
        table.add_row(bundle["for"], f"{bundle.get('GPU', 0):g}", f"{bundle['CPU']:g}")
    out.print(table)
    memory = memory_of(config, ready.facts, gpu_memory)
    if memory is None:
        out.print("memory: unknown; set model.parameters (a count), or give model.path as a folder")
    else:
        for each in tables(memory):
            out.print(each)
        for line in lines(memory):
            out.print(line, highlight=False, markup=False)
    out.print(f"weights travel by {config.weight_transfer}")
    if config.routing.replay == "r3":
        routes = routes_plan(config)
        if routes is None:
            out.print("routes: unknown; set model.experts, or give model.path as a folder")
        else:
            out.print(_sizes("routes, GiB at most", routes))
            out.print("groups that are refilled come on top")
    return BAD_USAGE if memory and memory.problems else DONE


def described(facts: Facts, config: Config) -> dict[str, str]:
    """What the model is, in words."""
    window = f", some layers see {facts.window:,} back" if facts.window else ""
    limit = f"{facts.positions:,}" if facts.positions else "no limit"
    return {
        "family": facts.family,
        "parameters": f"{facts.parameters:,}",
        "positions": f"{limit}{window}; {longest(config):,} are asked for",
        "attention": f"{config.model.attention} (it has {', '.join(facts.attention)})",
        "dtype": f"{' and '.join(facts.dtypes) or 'none'} on disk, {config.model.dtype} in the learner, "
        f"{config.rollout_dtype} in the engines",
        "vocabulary": f"{facts.tokens:,} tokens, {facts.rows:,} embeddings",
        "a response ends with": ", ".join(map(str, facts.end)),
    }


def _sizes(title: str, sizes: Mapping[str, float]) -> Table:
    """Bytes by what they are of, in GiB."""
    table = Table(title, "", box=None)
    for name, size in sizes.items():
        table.add_row(name, f"{size / 2**30:.2f}")
    return table


def batch_arithmetic(config: Config) -> dict[str, int]:
    """How many samples, tokens and optimizer steps a step and the run have."""
    le, ro = config.learner, config.rollout
    samples = le.prompts_per_step * ro.samples_per_prompt
    return {
        "prompts a step": le.prompts_per_step,
        "samples a step": samples,
        "samples an optimizer step": samples // le.optimizer_steps_per_batch,
        "samples a rank and optimizer step": -(-samples // le.optimizer_steps_per_batch // le.ranks),
        "tokens a step, at most": samples * config.max_sequence_tokens,
        "tokens a micro-batch, at most": le.tokens_per_micro_batch,
        **(
            {}
            if config.ends_with is None
            else {"optimizer steps of the run": config.ends_with * le.optimizer_steps_per_batch}
        ),
        "samples in flight, at most": samples * (1 + ro.max_staleness),
    }


def routes_plan(config: Config) -> dict[str, float] | None:
    """Bytes of the engines' routes by where they are while a step is learned from; None when the sizes are not known."""
    experts = config.model.experts
    if experts is None and (values := hf_config(config.model)) is not None:
        experts = experts_of(values)
    if experts is None:
        return None
    le, ro = config.learner, config.rollout
    each = bytes_per_token(experts)
    responses = each * le.prompts_per_step * ro.samples_per_prompt * ro.max_tokens
    prompts = each * le.prompts_per_step * config.data.max_prompt_tokens
    # A group's samples share their prompt's rows, but among the ranks each that has one of them gets those rows.
    step, shares = prompts + responses, prompts * min(le.ranks, ro.samples_per_prompt) + responses
    held = 1 + ro.max_staleness
    return {
        f"a step, {each:,} bytes a token": step,
        f"object store of the driver's node: {held} sampled, 1 dealt": held * step + shares,
        "memory of the driver": step + shares / le.ranks,
        "a rank's share": shares / le.ranks,
    }
