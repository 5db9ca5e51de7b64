"""The schema of a run: one class for each section of the file.

Each quantity has one name: `prompts_per_step`, `samples_per_prompt`, `optimizer_steps_per_batch`,
`tokens_per_micro_batch`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from rlpost.config.checks import (
    check_batch,
    check_best,
    check_evaluation,
    check_method,
    check_optimizer,
    check_placement,
    check_routing,
)
from rlpost.config.data import Data, ScoredSource, TemplatedSource, TestSource
from rlpost.config.duration import Duration
from rlpost.config.model import Model
from rlpost.config.objective import Objective
from rlpost.config.overrides import check_overrides
from rlpost.config.paths import OutputPath, RunName
from rlpost.config.section import AtKey, Component, DType, OneOrNamed, Section, as_component

Beta = Annotated[float, Field(ge=0, lt=1)]


class VerifierSpec(Component):
    """A verifier by short name, entry point, or `file.py:function`; extra keys are passed to it by name."""

    label: str = Field(
        "",
        description="what verdicts, metrics and `verifiers` of a source call it; `name` by default, so one verifier may "
        "stand here twice with other parameters",
    )
    weight: float = 1.0
    timeout: float = Field(
        10.0, gt=0, description="seconds a verdict may take before the worker is killed; 75 for code, 105 in C++"
    )
    when: dict[str, Any] = Field(
        default_factory=dict,
        description="score only rows whose metadata columns have these values; a list holds several",
    )
    batch_size: int = Field(16, ge=1, le=128, description="most samples a batched verifier gets at once")
    raw: bool | None = Field(
        None,
        description="whether it gets responses with special tokens, the end of sequence included; by default as it says "
        "itself (`verify.raw = True`), else without",
    )
    isolate: bool | None = Field(
        None,
        description="whether it runs in the sandbox, each answer in a process of its own; by default as it says itself "
        "(`verify.isolate = True`, as reasoning_gym and the adapters do), else in the worker",
    )
    concurrency: int | None = Field(None, ge=1, description="workers that may run it at once; all by default")
    env: list[str] = Field(
        default_factory=list, description="environment variables it sees beside the harmless ones, such as an API key"
    )

    @model_validator(mode="before")
    @classmethod
    def _programs_take_longer(cls, value: Any) -> Any:
        # Above what the verifier itself allows a program in all: else the pool kills the worker, warm sandbox and all.
        if isinstance(value, dict) and value.get("name") == "code" and "timeout" not in value:
            return {**value, "timeout": 75.0 if value.get("language", "python") == "python" else 105.0}
        return value

    @model_validator(mode="after")
    def _called_by_its_name(self) -> VerifierSpec:
        self.label = self.label or str(self.name)
        return self

    def applies(self, metadata: Mapping[str, Any]) -> bool:
        """Whether it scores samples of a row with these columns."""
        for column, wanted in self.when.items():
            values = wanted if isinstance(wanted, list) else [wanted]
            if column not in metadata or metadata[column] not in values:
                return False
        return True


class VerifierPool(Section):
    workers: int = Field(2, ge=1, le=1024, description="verifier processes; on each node when `where` is cluster")
    where: Literal["driver", "cluster"] = Field(
        "driver", description="beside the driver, or on each node of the cluster"
    )
    retries: int = Field(1, ge=0, description="how often a killed or broken item is tried again")
    recycle_after: int = Field(5000, ge=1, description="items after which a worker process is replaced")
    memory_mb: int = Field(4096, gt=0, description="resident memory past which an idle worker process is replaced")
    allow_unsafe: bool = Field(
        False, description="run what the model wrote even where the sandbox cannot keep it from this machine's files"
    )
    cache_mb: int = Field(64, ge=0, description="memory for verdicts of answers seen before; 0 scores each anew")


class Repair(Section):
    """How engines are watched while the driver waits for them, and how often one that is lost is replaced."""

    heartbeat: float = Field(
        3.0,
        gt=0,
        le=600,
        description="seconds between two questions to each engine; one that is stopped leaves two open",
    )
    silence: float = Field(
        60.0, gt=0, description="seconds until an engine that answers nothing, and is not stopped, is given up"
    )
    stall: float = Field(
        300.0,
        gt=0,
        description="seconds one decoding step may take, with the prefill of what is new and its compilation",
    )
    restarts: int = Field(
        3, ge=0, le=1000, description="times an engine is replaced within an hour; 0 ends the run with the first loss"
    )


class Rollout(Section):
    """The engines and how they sample.

    There is no top_p or top_k here: under truncation the learner's log-probs are of another distribution.
    """

    engines: int = Field(1, ge=1, le=2**16, description="vLLM engines")
    tensor_parallel: int = Field(1, ge=1, description="GPUs of one engine, which cannot span nodes")
    samples_per_prompt: int = Field(8, ge=1, le=2**24)
    temperature: float = Field(1.0, gt=0, description="of the distribution sampled from; the learner uses the same")
    max_tokens: int = Field(512, ge=1, description="longest response")
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=list, description="strings that end a response, beside the end-of-sequence token"
    )
    max_staleness: int = Field(
        0, ge=0, description="weight versions a consumed token may be behind; 1 or more overlaps"
    )
    updates: Literal["between", "within"] = Field(
        "between",
        description="what an overlapping update meets. between: it waits until what is in flight is sampled, so that a "
        "sequence has one version, and a run is exact where its engines are; within: it falls between two tokens, and no "
        "engine waits for the longest sequence",
    )
    dtype: DType | None = Field(None, description="model.dtype by default")
    max_sequences: int | None = Field(
        None,
        ge=1,
        le=2**24,
        description="sequences an engine decodes at once; 256 on CPU, as vLLM has it for the memory of a GPU (1,024 from "
        "70 GiB on, 256 on an A100 and below) by default",
    )
    enforce_eager: bool | None = Field(None, description="true on CPU, false on GPU by default")
    prefix_caching: bool = Field(True, description="share the keys and values of a common prompt")
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1, description="share of a GPU vLLM may take")
    kv_cache_gb: float = Field(1.0, gt=0, description="CPU only")
    threads: int | None = Field(
        None, ge=1, description="CPU threads of an engine; its part of the cores of its machine"
    )
    weight_transfer: Literal["auto", "object_store", "nccl", "ipc"] = Field(
        "auto",
        description="how new weights reach the engines. auto: object_store (shared memory of Ray) on CPU; on GPUs nccl, a "
        "broadcast from rank 0 to all engines, or with cluster.colocate ipc (CUDA), each engine from the rank on its GPU",
    )
    adapters: Literal["auto", "merged"] = Field(
        "auto",
        description="with model.lora: engines serve adapters as they are where they can, else merged; merged: always. "
        "Merged weights are in float32 where rollout.dtype does not say otherwise and the engine can",
    )
    deadline: float = Field(1800.0, gt=0, description="seconds one step's sampling may take")
    sync_deadline: float = Field(600.0, gt=0, description="seconds a weight update may take")
    repair: Repair = Repair()
    engine_args: dict[str, Any] = Field(
        default_factory=dict,
        description="passed to vLLM's EngineArgs; what would change which tokens are drawn is refused",
    )


class Optimizer(Section):
    """AdamW and its schedule. `lr` rises linearly over `warmup_steps`, then follows `schedule` to `steps`."""

    lr: float = Field(1e-6, gt=0, le=10)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(0, ge=0, description="optimizer steps over which lr rises from 0")
    min_lr_ratio: float = Field(0.0, ge=0, le=1, description="share of lr the schedule ends at")
    weight_decay: float = Field(0.0, ge=0, description="decoupled, as in AdamW")
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    grad_clip: float = Field(1.0, ge=0, description="0 is no clipping")


class Learner(Optimizer):
    """The DeepSpeed ranks and how a batch is cut for them."""

    ranks: int = Field(1, ge=1, description="DeepSpeed ranks, one GPU (or actor on CPU) each")
    zero_stage: Literal[0, 1, 2, 3] = Field(
        0,
        description="what is sharded over ranks: 1 optimizer, 2 and gradients, 3 and weights; in bfloat16 1 by default, and "
        "at least 1",
    )
    prompts_per_step: int = Field(64, ge=1, le=2**24, description="prompts sampled and learned from in a step")
    optimizer_steps_per_batch: int = Field(1, ge=1, description="updates made of one batch of samples")
    tokens_per_micro_batch: int = Field(8192, ge=1, description="tokens of one forward pass, padding included")
    layout: Literal["packed", "padded"] = Field(
        "packed",
        description="sequences end to end in rows, or one a row: what a model's family allows is in families.md",
    )
    row_tokens: int | None = Field(
        None, ge=1, description="packed: length of a row of sequences; tokens_per_micro_batch (one row) by default"
    )
    logits_chunk_tokens: int = Field(1024, ge=1, description="tokens whose vocabulary-wide logits are held at once")
    gradient_checkpointing: bool = Field(False, description="make activations again in the backward pass")
    offload_optimizer: bool = Field(False, description="keep the optimizer in CPU memory; zero_stage 1 or more")
    threads: int | None = Field(None, ge=1, description="CPU threads of a rank; its part of the cores of its machine")
    deadline: float = Field(1800.0, gt=0, description="seconds one update may take")
    deepspeed: dict[str, Any] = Field(
        default_factory=dict,
        description="merged over the DeepSpeed configuration we make; what would change the meaning of a step is refused",
    )

    @property
    def longest(self) -> int:
        """Tokens of a row at most: the longest sequence there can be, or sequences that belong together."""
        return self.row_tokens or self.tokens_per_micro_batch


class Routing(Section):
    """Mixture-of-experts models: whether the learner chooses the experts that were chosen before.

    off: the live router. r3: the experts the engine chose while sampling (rollout routing replay). r2: those the
    learner chose when it scored the batch before the update. Weights of the experts always come from the live router.
    """

    replay: Literal["off", "r2", "r3"] = "off"
    invalid: Literal["live", "mask", "fail"] = Field(
        "live",
        description="a sample whose routes are damaged: its tokens without one use the live router, or it is not "
        "learned from, or the run stops",
    )
    compare_every: int = Field(
        1, ge=0, description="r3: steps between micro-batches that are measured with and without replay; 0: never"
    )


class Sft(Optimizer):
    """Supervised warm-up on worked examples (`completion`), with the same learner."""

    train: OneOrNamed[TemplatedSource]
    steps: int = Field(gt=0)
    prompts_per_step: int = Field(128, ge=1, le=2**24)
    lr: float = Field(1e-3, gt=0, le=10)

    @model_validator(mode="after")
    def _has_completion(self) -> Sft:
        for name, source in self.sources.items():
            if not source.completion:
                needs = ValueError("warm-up needs `completion`: the column or template of the worked example")
                raise AtKey(f"train.{name}".rstrip("."), needs)
        return self

    @property
    def sources(self) -> dict[str, TemplatedSource]:
        """By name; by "" where there is one without a name."""
        return self.train if isinstance(self.train, dict) else {"": self.train}


class Evaluation(Section):
    """pass@k on the held-out prompts, before, every `every` steps, and after."""

    every: int = Field(0, ge=0, description="0: only before and after")
    before: bool = True
    after: bool = True
    samples_per_prompt: int = Field(8, ge=1)
    k: list[Annotated[int, Field(ge=1)]] = Field(default_factory=lambda: [1, 8], min_length=1)
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    prompts: int | None = Field(None, gt=0, description="at most this many held-out prompts")

    @model_validator(mode="after")
    def _enough_samples(self) -> Evaluation:
        if max(self.k) > self.samples_per_prompt:
            raise ValueError(
                f"pass@{max(self.k)} needs at least {max(self.k)} samples: raise evaluation.samples_per_prompt "
                f"({self.samples_per_prompt}) or lower evaluation.k"
            )
        return self


class Best(Section):
    """Checkpoints that stay because an evaluation said so; each evaluated step is saved. Of equal ones the newest."""

    metric: str = Field(description="of an evaluation, such as pass@1; NAME/pass@1 where test sets have names")
    mode: Literal["max", "min"] = "max"
    keep: int = Field(1, ge=1, description="how many of the best stay")


class Checkpoint(Section):
    every: int = Field(50, ge=0, description="steps between saves; 0 saves only at the end and on Ctrl-C")
    minutes: float | None = Field(
        None, gt=0, description="also save with the first step that ends so long after the last save; also in a warm-up"
    )
    keep: int = Field(2, ge=1, description="how many of the newest stay")
    keep_every: int | None = Field(None, ge=1, description="steps of whose multiples the checkpoints stay for good")
    best: Best | None = None
    mirror: str | None = Field(
        None,
        pattern=r"^[a-z][a-z0-9+]*://.+",
        description="URL of a folder (s3://, gs://, ...) that sealed checkpoints are uploaded to, and resumed from",
    )


class Resume(Section):
    """What one `rlpost resume` takes of a checkpoint; all of it by default. The key is not kept for the next.

    model: the weights. optimizer: its state, and the place in the learning rate's schedule. data: the place in the data,
    and what the strategy knows of prompts. roles: coefficients, anchors, alarms. What is not taken begins anew.
    """

    only: list[Literal["model", "optimizer", "data", "roles"]] | None = Field(
        None, min_length=1, description="parts that are taken, model among them"
    )

    @model_validator(mode="after")
    def _model_is_taken(self) -> Resume:
        if self.only is not None and "model" not in self.only:
            raise ValueError(
                f"resume.only: {self.only} leaves the model out, which is what a run is resumed for: add model, or start "
                "a new run"
            )
        return self

    def takes(self, part: Literal["model", "optimizer", "data", "roles"]) -> bool:
        return self.only is None or part in self.only


class Observe(Section):
    sinks: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(default_factory=lambda: ["tensorboard"])  # type: ignore[arg-type]
    rollouts: bool = Field(True, description="write every step's rollouts as Parquet")
    console: Literal["auto", "live", "plain", "off"] = "auto"


class Alarms(Section):
    """What stops a run that is wrong but would stay green, with exit code 4 and its step saved apart, or is a warning.

    What is held against the run's own past (`kl` to `stall`) is a warning by default, all else stops the run.
    """

    mismatch_logp_abs_max: float | None = Field(
        None, gt=0, description="engine against learner on the same weights; 1e-3 in float32, else off by default"
    )
    mismatch_kl: float = Field(0.05, gt=0, description="KL(engine || learner) over tokens of the same weights")
    sync_survived: float | None = Field(
        None,
        ge=0,
        le=1,
        description="least share of what was trained that the engines may hold; 0.9 with model.lora, else off by default",
    )
    unverified_share: float = Field(
        0.05, ge=0, le=1, description="share of a verifier's last 256 verdicts that may be unverified"
    )
    hung_rows_share: float = Field(
        0.25,
        ge=0,
        le=1,
        description="share of a verifier's last 256 rows on which it may time out or crash, whatever the answer",
    )
    no_signal_steps: int = Field(20, ge=1, description="steps in a row without one group that has a signal")
    route_coverage: float = Field(
        0.95, ge=0, le=1, description="with routing.replay: least share of a step's tokens that have their routes"
    )
    route_agreement: float = Field(
        0.5, ge=0, le=1, description="with routing.replay: least share of tokens whose experts the routers would choose"
    )
    dead_experts: float | None = Field(
        None, ge=0, le=1, description="largest share of a layer's experts that may get no token in a step"
    )
    router_load_entropy: float | None = Field(
        None, ge=0, le=1, description="least entropy of a step's expert loads, over that of equal loads; mean of layers"
    )
    kl: float | None = Field(2.0, gt=0, description="mean divergence from the anchor, in nats a token")
    entropy_fall: float | None = Field(
        0.98, gt=0, lt=1, description="share of the entropy of the first 5 steps that may be lost, 3 steps in a row"
    )
    entropy_rise: float | None = Field(
        10.0, gt=1, description="how many times the entropy of the first 5 steps it may become, 3 steps in a row"
    )
    grad_norm_spike: float | None = Field(
        50.0, gt=1, description="how many times its median of 50 steps a gradient norm may be"
    )
    reward_fall: float | None = Field(
        0.5,
        gt=0,
        description="share of the best mean reward of 10 steps that may be lost, beyond the noise of both means",
    )
    memory_slope_mb: float | None = Field(
        32.0, gt=0, description="MiB a step by which driver, engines and ranks of its machine may grow over 50 steps"
    )
    stall: float | None = Field(
        20.0, gt=1, description="how many times the median time of 50 steps one may take, where that is over a minute"
    )
    actions: dict[str, Literal["warn", "checkpoint+stop"]] = Field(
        default_factory=dict,
        description="what follows, by key of this section, such as `entropy_fall: checkpoint+stop`",
    )

    @field_validator("actions")
    @classmethod
    def _of_this_section(cls, actions: dict[str, str]) -> dict[str, str]:
        keys = [key for key in cls.model_fields if key != "actions"]
        for key in actions:
            if key not in keys:
                raise ValueError(f"alarms.actions.{key}: there is no such alarm; there are {', '.join(keys)}")
        return actions

    def action(self, key: str | None) -> Literal["warn", "checkpoint+stop"]:
        """What follows when the alarm of a key goes off; None is of those that have none, and stop."""
        trends = ("kl", "entropy_fall", "entropy_rise", "grad_norm_spike", "reward_fall", "memory_slope_mb", "stall")
        return self.actions.get(key or "", "warn" if key in trends else "checkpoint+stop")


class Cluster(Section):
    """Where it runs. `address: null` starts a private Ray on this machine; `auto` or a URL joins a running one."""

    address: str | None = None
    nodes: int = Field(1, ge=1)
    gpus_per_node: int = Field(0, ge=0, description="0 runs on CPU")
    gpu_memory_gb: float | None = Field(
        None,
        gt=0,
        description="GiB of each GPU, such as 80; what cannot fit is refused before anything starts",
    )
    colocate: bool = Field(False, description="engines and learner ranks share GPUs; weights travel by CUDA IPC")
    cpus_per_engine: float = Field(1.0, gt=0, description="CPUs Ray sets aside for an engine")
    cpus_per_rank: float = Field(1.0, gt=0, description="CPUs Ray sets aside for a rank")
    object_store_gb: float = Field(1.0, gt=0, description="of a private Ray")
    start_deadline: float = Field(600.0, gt=0, description="seconds the actors may take to start")
    elastic: bool = Field(
        False,
        description="start with fewer engines where the cluster has no room for all, as after the loss of a node; never with "
        "fewer ranks",
    )


@dataclass(frozen=True)
class TestSet:
    """How a test set is asked: as it says itself, and as `evaluation` and `rollout` say where it does not."""

    __test__ = False

    samples_per_prompt: int
    k: tuple[int, ...]
    max_tokens: int
    prompts: int | None

    @classmethod
    def of(cls, source: TestSource | None, evaluation: Evaluation, max_tokens: int) -> TestSet:
        return cls(
            samples_per_prompt=(source and source.samples_per_prompt) or evaluation.samples_per_prompt,
            k=tuple((source and source.k) or evaluation.k),
            max_tokens=(source and source.max_tokens) or max_tokens,
            prompts=(source and source.prompts) or evaluation.prompts,
        )


class Config(Section):
    """A whole run."""

    name: RunName | None = Field(None, description="of the run's folder in runs_dir; made of the time by default")
    runs_dir: OutputPath = "runs"
    seed: int = 0
    steps: int | None = Field(
        None, ge=0, description="how long to train; 100 where neither `epochs` nor data.mix.until says it"
    )
    epochs: float | None = Field(
        None,
        gt=0,
        description="how often to see the prompts of data.train, in place of `steps`: rounded up to whole steps",
    )
    time_limit: Duration | None = Field(
        None,
        description="such as 3h50m, or seconds, from the start of the command: it stops with a checkpoint and exit code 6 "
        "when another step and a save would not fit",
    )
    model: Model
    data: Data
    verifiers: list[VerifierSpec] = Field(min_length=1)
    verifier_pool: VerifierPool = VerifierPool()
    warmup: Sft | None = None
    rollout: Rollout = Rollout()
    objective: Objective = Objective()
    learner: Learner = Learner()
    routing: Routing = Routing()
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpoint = Checkpoint()
    resume: Resume = Resume()
    observe: Observe = Observe()
    alarms: Alarms = Alarms()
    cluster: Cluster = Cluster()
    _last_step: int | None = PrivateAttr(None)

    @model_validator(mode="before")
    @classmethod
    def _verifiers_by_name(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("verifiers"), list):
            value = {**value, "verifiers": [as_component(v) for v in value["verifiers"]]}
        return value

    @model_validator(mode="after")
    def _one_length(self) -> Config:
        if self.steps is not None and self.epochs is not None:
            raise ValueError(
                f"steps: {self.steps} and epochs: {self.epochs:g} both say how long to train: give one, and null for the "
                "other"
            )
        if self.steps is None and self.epochs is None:
            if self.data.mix.until == "forever":
                self.steps = 100
            else:
                self.epochs = 1.0
        return self

    @model_validator(mode="after")
    def _masters_in_float32(self) -> Config:
        # Under stage 0 DeepSpeed keeps no float32 sums of bfloat16 gradients, and its first Adam step is 0.77 of one.
        if self.model.dtype == "bfloat16" and "zero_stage" not in self.learner.model_fields_set:
            self.learner = self.learner.model_copy(update={"zero_stage": 1})
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        check_batch(self)
        check_optimizer(self)
        check_placement(self)
        check_method(self)
        check_evaluation(self)
        check_routing(self)
        check_best(self)
        check_overrides(self)
        return self

    def ending(self, step: int) -> Config:
        """This configuration, known to end with this step. What the file says stays as it is."""
        known = self.model_copy()
        known._last_step = step
        return known

    @property
    def length(self) -> dict[str, Any]:
        """What the file says of how long to train."""
        return {"steps": self.steps, "epochs": self.epochs, "until": self.data.mix.until}

    @property
    def ends_with(self) -> int | None:
        """The last step; None while only the prompts can tell."""
        return self.steps if self._last_step is None else self._last_step

    @property
    def last_step(self) -> int:
        """The last step.

        Raises:
            RuntimeError: `epochs` says it, and the prompts are not loaded yet.
        """
        if self.ends_with is None:
            raise RuntimeError(
                f"epochs: {self.epochs} is a number of steps once the prompts are loaded, and not before"
            )
        return self.ends_with

    @property
    def test_sets(self) -> dict[str, TestSet]:
        """What evaluations ask, by name; by "" where there is one without a name."""
        ev = self.evaluation
        named = list(self.data.train_sources) if self.data.holdout else []
        own: Mapping[str, TestSource | None] = self.data.test_sources or dict.fromkeys(named)
        return {name: TestSet.of(source, ev, self.rollout.max_tokens) for name, source in own.items()}

    def judge_of(self, source: ScoredSource) -> str:
        """Label of the verifier that says what is correct of a source's rows."""
        return source.verifiers[0] if source.verifiers else self.verifiers[0].label

    @property
    def evaluated(self) -> list[str]:
        """Names of the pass@k that evaluations give: `pass@1`, or `sums/pass@1` of the test set `sums`."""
        return [f"{name}/pass@{k}".lstrip("/") for name, test in self.test_sets.items() for k in test.k]

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is written of this step, on the way to the last."""
        every, evaluated = self.checkpoint.every, self.evaluation.every if self.checkpoint.best else 0
        return any(n > 0 and step % n == 0 for n in (every, evaluated))

    @property
    def on_gpu(self) -> bool:
        return self.cluster.gpus_per_node > 0

    @property
    def rollout_dtype(self) -> DType:
        return self.rollout.dtype or self.model.dtype

    @property
    def max_sequence_tokens(self) -> int:
        return self.data.max_prompt_tokens + self.rollout.max_tokens

    @property
    def max_served_tokens(self) -> int:
        """The longest sequence an engine must hold: evaluations may have longer responses than training."""
        longest = max([self.rollout.max_tokens, *(test.max_tokens for test in self.test_sets.values())])
        return self.data.max_prompt_tokens + longest

    @property
    def weight_transfer(self) -> Literal["object_store", "nccl", "ipc"]:
        """The transport in force, with `auto` resolved."""
        if self.rollout.weight_transfer != "auto":
            return self.rollout.weight_transfer
        if not self.on_gpu:
            return "object_store"
        return "ipc" if self.cluster.colocate else "nccl"
