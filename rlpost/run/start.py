"""The parts of a run, started together and taken down again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from rlpost import checkpoint, cluster
from rlpost.actors import Crews
from rlpost.config import Config, ConfigError, DType
from rlpost.data import PromptSets, load_prompts, steps_until
from rlpost.data.chat import saved_template
from rlpost.learner.group import LearnerGroup
from rlpost.learner.spec import LearnerSpec
from rlpost.models.load import load_tokenizer
from rlpost.models.source import ModelSource
from rlpost.observe import Recorder, RunFolder
from rlpost.rehearsal import switch
from rlpost.rollout.adapters import AdapterSpec, AdaptersRefusedError
from rlpost.rollout.fleet import Fleet
from rlpost.rollout.request import EngineSpec
from rlpost.run.adapters import adapter_spec, merged_dtype
from rlpost.run.failed import starting
from rlpost.run.lab import RunLab
from rlpost.run.likelihood import LikelihoodReward
from rlpost.run.lost import accounted
from rlpost.run.roles import Roles
from rlpost.run.training import Run
from rlpost.types import Prompt
from rlpost.verify import VerifierPool, open_pool
from rlpost.verify.references import checker
from rlpost.verify.remote import ClusterPool

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Material:
    """What a run learns from and is judged by.

    Attributes:
        config: with its last step, which may depend on how many prompts there are.
        lines: what became of the rows.
    """

    config: Config
    prompts: PromptSets
    lines: list[str]


def read_data(config: Config, tokenizer: PreTrainedTokenizerBase) -> Material:
    """Read the prompts of a run: all that can be refused of its data is, while nothing is started, made or undone.

    Raises:
        ConfigError, DataError, VerifierError: naming key, value and fix.
    """
    prompts = load_prompts(config.data, tokenizer, config.seed, checker(config.verifiers, config.verifier_pool))
    lines = [*prompts.report.lines(), *repetitions(config, prompts.by_source)]
    _, differ = saved_template(config.data, config.data.train_sources.values())
    lines += [differ] if differ else []
    ended = config.ending(steps_of(config, prompts.by_source))
    if ended.ends_with != config.steps:
        lines.append(length(ended, prompts.by_source))
    if config.objective.likelihood is not None:
        check_answers_fit(config, LikelihoodReward(config.objective.likelihood, tokenizer), prompts.train)
    return Material(ended, prompts, lines)


@contextmanager
def running(
    material: Material,
    recorder: Recorder,
    store: checkpoint.Store,
    base: str,
    resume: checkpoint.Checkpoint | None,
    join: Callable[[], None],
) -> Iterator[Run]:
    """All parts of a run, started; taken down on the way out, whatever happened.

    Args:
        material: its configuration and prompts.
        store: where its checkpoints go.
        base: folder or id of the weights the run started from.
        resume: continue from this checkpoint.
        join: to a Ray cluster.
    """
    console, config, prompts = recorder.console, material.config, material.prompts
    tokenizer = load_tokenizer(ModelSource.of(config.model, base))
    console.lasts(config.last_step)
    roles = Roles(config)
    likelihood = None
    if config.objective.likelihood is not None:
        likelihood = LikelihoodReward(config.objective.likelihood, tokenizer)
    with ExitStack() as stack:
        console.phase("starting verifiers, engines and learner")
        join()
        placement = cluster.place(config)
        if (fewer := len(placement.engines)) < config.rollout.engines:
            console.warn(
                f"cluster.elastic: the cluster has no room for rollout.engines: {config.rollout.engines}; this start goes on "
                f"with {fewer}, and the next tries for all again"
            )
            config = config.model_copy(update={"rollout": config.rollout.model_copy(update={"engines": fewer})})
        pool = open_pool(config.verifiers, config.verifier_pool, config.cluster.start_deadline)
        stack.enter_context(pool)
        check_sandbox(pool, recorder)
        engines = Engines(config, base, placement)
        stack.callback(engines.shutdown)
        spec = learner_spec(config, roles, base, tokenizer.pad_token_id)
        if resume is not None and not config.resume.takes("optimizer"):
            if config.model.lora is None:
                spec = replace(spec, source=ModelSource.of(config.model, str(resume.model)))
            else:
                spec = replace(spec, adapter=str(resume.model))
        learner, model, engine = started(
            config, engines, lambda: start_learner(config, spec, placement), recorder.folder, stack
        )
        fleet = engines.fleet

        def changes(who: str, what: str) -> None:
            console.warn(f"{who}: {what}")
            recorder.event("engine", what, who=who)

        fleet.says(changes)
        stack.enter_context(accounted(Crews(fleet.crew, learner.crew), recorder.folder.logs, recorder.doing))
        check_same_routers(config, model["routing"], engine.get("routing"))
        with starting("the weight transfer", config, "rollout", "cluster", log=recorder.folder.logs):
            fleet.connect(learner)
        console.info(
            f"learner: {model['parameters'] / 1e6:.1f} M parameters ({model['trainable'] / 1e6:.1f} M trained) on "
            f"{config.learner.ranks} rank(s), ZeRO {config.learner.zero_stage}, {config.model.dtype}; engines: "
            f"{config.rollout.engines}, {fleet.dtype}, {engine['kv_tokens']:,} cached tokens each"
        )
        if config.model.lora is not None:
            console.info(engines.served())
        run = Run(config, recorder, store, prompts, learner, fleet, pool, base, tokenizer, roles, likelihood)
        run.strategy.attach(RunLab(run))
        if resume is not None:
            run.restore(resume)
        fleet.sync(learner, run.version, fleet.dtype)
        if resume is None or not config.resume.takes("data"):
            run.strategy.prepare(RunLab(run))
        yield run


def started(
    config: Config, engines: Engines, start: Callable[[], LearnerGroup], folder: RunFolder, stack: ExitStack
) -> tuple[LearnerGroup, dict[str, Any], dict[str, Any]]:
    """Start the learner and wait for it and for the engines, which are on their way.

    Args:
        start: makes the learner's ranks.
        folder: of the run; all ranks must see it.
        stack: takes the learner down.

    Returns:
        the learner, what it says of its model, and what an engine says (`LearnerGroup.ready`, `Fleet.ready`).

    Raises:
        ConfigError: `runs_dir` is not on all nodes.
        StartError: a part does not start.
    """
    crew = [*engines.fleet.crew]

    def serving() -> dict[str, Any]:
        with starting("the engines", config, "rollout", "model", log=folder.logs), accounted(crew, folder.logs):
            return engines.ready()

    # An engine takes what is gone from its GPU by the end of its start for its own, and ends where memory came back: one
    # that shares the GPU must have measured before a learner is there.
    engine = serving() if config.cluster.colocate else None
    with starting("the learner", config, "learner", "model", log=folder.logs), accounted(crew, folder.logs):
        learner = start()
        stack.callback(learner.shutdown)
        crew += learner.crew
        model = learner.ready()
    if unshared := learner.unshared(folder.path):
        raise ConfigError(unshared)
    return learner, model, engine or serving()


def steps_of(config: Config, prompts: Mapping[str, Sequence[Prompt]]) -> int:
    """The last step, by `steps`, `epochs` and `data.mix.until`. Refills and prompts passed over are not reckoned with.

    Args:
        prompts: by source.
    """
    wanted, until = config.learner.prompts_per_step, config.data.mix.until
    if until == "forever" and config.epochs is None:
        return config.last_step
    epochs = Fraction(str(config.epochs or 1))
    if until == "forever":
        return math.ceil(epochs * sum(map(len, prompts.values())) / wanted)
    weights = [config.data.train_sources[name].weight for name in prompts]
    ended = steps_until([*map(len, prompts.values())], weights, wanted, epochs, all_of=until == "all_end")
    return ended if config.steps is None else min(config.steps, ended)


def length(config: Config, prompts: Mapping[str, Sequence[Prompt]]) -> str:
    """How the length of a run came about."""
    said = {key: value for key, value in config.length.items() if value is not None}
    return (
        f"{', '.join(f'{key}: {value}' for key, value in said.items())} of {sum(map(len, prompts.values()))} prompts, "
        f"{config.learner.prompts_per_step} a step: the run ends with step {config.last_step}"
    )


def repetitions(config: Config, prompts: Mapping[str, Sequence[Prompt]]) -> list[str]:
    """What to say of each source that has fewer prompts than a step takes of it."""
    weights, lines = {name: config.data.train_sources[name].weight for name in prompts}, []
    for name, those in prompts.items():
        wanted = config.learner.prompts_per_step * weights[name] / sum(weights.values())
        have, times = len(those), wanted / len(those)
        if times > 1:
            often = f"{times:g} times" if times == int(times) else f"{int(times)} or {int(times) + 1} times"
            place, takes = f"data.train.{name}".rstrip("."), f"a step takes {wanted:g}{' of it' if name else ''}"
            lines.append(
                f"{place} has {have} {'prompt' if have == 1 else 'prompts'}, {takes}: each is drawn {often} a step, with "
                "other samples each time"
            )
    return lines


def check_sandbox(pool: VerifierPool | ClusterPool, recorder: Recorder) -> None:
    """Say what programs run in, where a verifier runs any; the pool has refused to start where that is not safe."""
    if (found := pool.sandbox) is not None:
        recorder.console.info(f"sandbox: tier {found['tier']}; in force: {', '.join(found['layers'])}")


def check_answers_fit(config: Config, likelihood: LikelihoodReward, prompts: Sequence[Prompt]) -> None:
    """Refuse, before anything is sampled, reference answers that a micro-batch could not hold."""
    longest = likelihood.longest(prompts, config.rollout.max_tokens)
    room = config.learner.longest
    if longest > room:
        raise ConfigError(
            f"prompt, response and reference answer may come to {longest} tokens, more than learner.row_tokens or "
            f"learner.tokens_per_micro_batch ({room}): raise it"
        )


def check_same_routers(config: Config, learner: dict[str, Any] | None, engine: dict[str, Any] | None) -> None:
    """Refuse to replay between an engine and a learner that number layers or experts differently."""
    if config.routing.replay == "r3" and learner != engine:
        raise RuntimeError(
            f"routing.replay: r3, but the engine's mixture-of-experts layers are {engine} and the learner's {learner}"
        )


class Engines:
    """The fleet of a run: with adapters where its engines can serve them, else for merged weights.

    Args:
        path: of the weights, below adapters where there are any.
        merged: path of weights for engines that cannot serve adapters, made when it is asked for; `path`, to be
            overwritten by an update, by default.
    """

    def __init__(
        self,
        config: Config,
        path: str,
        placement: cluster.Placement,
        max_model_len: int | None = None,
        merged: Callable[[DType], str] | None = None,
    ) -> None:
        self._config, self._path, self._where, self._merged = config, path, (placement, max_model_len), merged
        adapters = adapter_spec(config, path)
        asked = "rollout.adapters: merged" if config.rollout.adapters == "merged" else "rollout.dtype: float32"
        self._why_merged = "" if adapters is not None else asked
        self.fleet = self._start(adapters)

    def _start(self, adapters: AdapterSpec | None) -> Fleet:
        dtype, path = self._config.rollout_dtype, self._path
        if self._config.model.lora is not None and adapters is None:
            dtype = merged_dtype(self._config, self._path)
            path = self._merged(dtype) if self._merged else path
        placement, longest = self._where
        spec = engine_spec(self._config, path, longest, placement.engine_share)
        return start_fleet(self._config, replace(spec, adapters=adapters, dtype=dtype), placement)

    def ready(self) -> dict[str, Any]:
        """Wait for the engines; for others, where these cannot serve the adapters. Returns `Fleet.ready`."""
        try:
            return self.fleet.ready()
        except AdaptersRefusedError as refused:
            self._why_merged = str(getattr(refused, "cause", refused))
            self.fleet.shutdown()
            self.fleet = self._start(None)
            return self.fleet.ready()

    def served(self) -> str:
        """How the engines get what is trained, in a line."""
        if self.fleet.spec.adapters is not None:
            return f"adapters: served by the engines as they are, in {self.fleet.dtype}"
        return f"adapters: merged for the engines, in {self.fleet.dtype} ({self._why_merged})"

    def shutdown(self) -> None:
        self.fleet.shutdown()


def engine_spec(config: Config, path: str, max_model_len: int | None = None, share: float = 1.0) -> EngineSpec:
    """
    Args:
        share: the part of a GPU that is the engine's own.
    """
    ro = config.rollout
    return EngineSpec(
        source=ModelSource.of(config.model, path),
        dtype=config.rollout_dtype,
        max_model_len=max_model_len or config.max_served_tokens,
        max_sequences=ro.max_sequences or (None if config.on_gpu else 256),
        tensor_parallel=ro.tensor_parallel,
        enforce_eager=ro.enforce_eager if ro.enforce_eager is not None else not config.on_gpu,
        prefix_caching=ro.prefix_caching,
        gpu_memory_utilization=ro.gpu_memory_utilization * share,
        kv_cache_gb=ro.kv_cache_gb,
        threads=cluster.threads(config)[0],
        weight_transfer=config.weight_transfer,
        stop_strings=bool(ro.stop),
        on_gpu=switch.computes_on_gpu(config),
        stand_in=switch.stood_in(config),
        engine_args=ro.engine_args,
        head_dtype=config.model.head_dtype,
        capture_routes=config.routing.replay == "r3",
    )


def start_fleet(config: Config, spec: EngineSpec, placement: cluster.Placement) -> Fleet:
    return Fleet(
        spec,
        placement.engines,
        cpus=config.cluster.cpus_per_engine,
        gpus=placement.engine_gpus,
        sync_deadline=config.rollout.sync_deadline,
        start_deadline=config.cluster.start_deadline,
        repair=config.rollout.repair,
    )


def start_learner(config: Config, spec: LearnerSpec, placement: cluster.Placement) -> LearnerGroup:
    return LearnerGroup(
        spec,
        placement.ranks,
        cpus=config.cluster.cpus_per_rank,
        gpus=placement.rank_gpus,
        start_deadline=config.cluster.start_deadline,
    )


def learner_spec(config: Config, roles: Roles, path: str, pad_id: int) -> LearnerSpec:
    return LearnerSpec(
        source=ModelSource.of(config.model, path),
        anchors=roles.anchors(ModelSource.of(config.model, path)),
        model=config.model,
        learner=config.learner,
        objective=config.objective,
        total_steps=config.last_step * config.learner.optimizer_steps_per_batch,
        temperature=config.rollout.temperature,
        response_limit=config.rollout.max_tokens,
        pad_id=pad_id,
        seed=config.seed,
        on_gpu=switch.computes_on_gpu(config),
        stand_in=switch.stood_in(config),
        threads=cluster.threads(config)[1],
        routing=config.routing,
        longest=config.max_served_tokens,
    )
