"""The schema of a run, and how a YAML file becomes one.

Importable, and able to reject a bad file, without torch, ray or vllm. Each quantity has one name:
`prompts_per_step`, `samples_per_prompt`, `optimizer_steps_per_batch`, `tokens_per_micro_batch`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from rlpost.user_code import nearest

# What the registries hold, so that a name can be refused without importing torch; a test keeps the two in step.
ADVANTAGES = ("grpo",)
POLICY_LOSSES = ("ppo_clip", "sft")
DIVERGENCES = ("k1", "k2", "k3")
REFERENCES = ("frozen",)
VERIFIERS = ("math", "reasoning_gym", "exact", "format", "countdown")

Aggregation = Literal["seq_mean_token_mean", "token_mean", "seq_mean_token_sum_norm", "seq_mean_token_sum"]
DType = Literal["float32", "bfloat16"]


class ConfigError(ValueError):
    """A configuration that cannot run. The message names the key, the value, the place and the fix."""


def _known_name(key: str, name: str, known: Iterable[str]) -> None:
    """Accept a built-in name, or `file.py:function` / `package.module:function` whose file, when it is one, exists."""
    known = list(known)
    if name in known:
        return
    origin, colon, attribute = name.partition(":")
    if colon and attribute:
        if origin.endswith(".py") and not Path(origin).expanduser().is_file():
            raise ValueError(f"{key}: file {origin!r} does not exist (relative paths start at the current directory)")
        return
    if key.startswith("verifiers") and name in _entry_points():
        return
    raise ValueError(
        f"{key}: unknown name {name!r}{nearest(name, known)} (known: {', '.join(known)}, or file.py:function)"
    )


def _entry_points() -> set[str]:
    from importlib.metadata import entry_points

    return {e.name for e in entry_points(group="rlpost.verifiers")}


class Section(BaseModel):
    """A part of the file. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


class Component(Section):
    """A registry entry by name, with its parameters: `grpo`, `{name: ppo_clip, low: 0.2}`, `my_file.py:function`."""

    model_config = ConfigDict(extra="allow")
    name: str

    @property
    def params(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


def _component(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Named = Annotated[Component, BeforeValidator(_component)]


class CreateModel(Section):
    """A small model with random weights, made when none is there: for CPUs, tests and first tries.

    `config` is a Hugging Face model configuration (`model_type` and its sizes); the vocabulary comes from the
    tokenizer. `tokenizer` is a string of characters, each one token, or `bytes` for any text.
    """

    config: dict[str, Any]
    tokenizer: str = "bytes"
    seed: int = 0


class Lora(Section):
    """Low-rank adapters by peft; only they are trained, and they are merged on export and for the engine."""

    rank: int = Field(16, gt=0)
    alpha: float = Field(32, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: list[str] | Literal["all-linear"] = "all-linear"


class Model(Section):
    """The policy: a folder or a Hugging Face id, or a small one made on the spot."""

    path: str | None = None
    create: CreateModel | None = None
    dtype: DType = "bfloat16"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    lora: Lora | None = None
    trust_remote_code: bool = False
    parameters: float | None = Field(None, gt=0, description="count, for `rlpost plan` when the model is not on disk")

    @model_validator(mode="after")
    def _one_origin(self) -> Model:
        if (self.path is None) == (self.create is None):
            raise ValueError(
                "give either model.path (a folder or Hugging Face id) or model.create, not both or neither"
            )
        return self


class Source(Section):
    """Where rows come from and which column means what.

    `prompt`, `reference`, `completion` and `id` are a column's name, or a template when they contain braces:
    `"{numbers} {target}:"`; nested values as `{metadata[target]}`.
    """

    source: Literal["jsonl", "parquet", "hf", "reasoning_gym"]
    path: str | None = None
    name: str | None = Field(None, description="configuration of a Hugging Face data set")
    split: str = "train"
    task: str | None = Field(None, description="reasoning-gym task")
    params: dict[str, Any] = Field(default_factory=dict, description="parameters of the reasoning-gym task")
    size: int | None = Field(None, gt=0, description="how many rows a procedural task makes")
    seed: int = 0
    limit: int | None = Field(None, gt=0, description="at most this many rows")
    prompt: str | None = None
    reference: str | None = None
    completion: str | None = None
    id: str | None = None
    metadata: list[str] = Field(default_factory=list, description="other columns the verifiers get, by name")

    @model_validator(mode="after")
    def _complete(self) -> Source:
        if self.source == "reasoning_gym":
            if not self.task or not self.size:
                raise ValueError("a reasoning_gym source needs `task` and `size`")
            self.prompt = self.prompt or "question"
            self.reference = self.reference or "answer"
        else:
            if not self.path:
                raise ValueError(f"a {self.source} source needs `path`")
            if not self.prompt:
                raise ValueError(
                    f"a {self.source} source needs `prompt`: the column, or a template such as '{{question}}'"
                )
            if self.source != "hf" and not Path(self.path).expanduser().exists():
                raise ValueError(f"path {self.path!r} does not exist (relative paths start at the current directory)")
        return self


class Template(Section):
    """How a row becomes what the model reads."""

    kind: Literal["plain", "chat"] = "plain"
    prompt: str = Field("{prompt}", description="plain: the text around the prompt; chat: the user's message")
    system: str | None = None

    @model_validator(mode="after")
    def _has_prompt(self) -> Template:
        if "{prompt}" not in self.prompt:
            raise ValueError("template.prompt must contain {prompt}")
        if self.system is not None and self.kind == "plain":
            raise ValueError("template.system needs template.kind: chat; write it into template.prompt otherwise")
        return self


class Groups(Section):
    """What happens to a group of samples that teaches nothing, or is not whole.

    no_signal: every usable sample has the same reward. incomplete: fewer than two usable samples.
    keep: learn from it all the same (its advantages are zero); drop: leave it out; refill: drop it and sample
    another prompt for the same step, at most `max_rounds` times a step. Every drop is counted.
    """

    no_signal: Literal["keep", "drop", "refill"] = "keep"
    incomplete: Literal["drop", "refill"] = "drop"
    max_rounds: int = Field(4, ge=1)


class Data(Section):
    """Prompts to learn from and prompts to be judged by."""

    train: Source
    test: Source | None = None
    holdout: int | float | None = Field(
        None, gt=0, description="rows (int) or share (float) of train kept for evaluation"
    )
    template: Template = Template()
    max_prompt_tokens: int = Field(512, gt=0, description="longest prompt, template included")
    too_long: Literal["drop", "error"] = "drop"
    shuffle: bool = Field(True, description="a new order each epoch, by the seed; else the order of the data")
    bad_rows: Literal["error", "skip"] = "error"
    bad_rows_budget: int = Field(0, ge=0, description="with bad_rows: skip, how many rows may be bad")
    groups: Groups = Groups()

    @model_validator(mode="after")
    def _one_test(self) -> Data:
        if self.test is not None and self.holdout is not None:
            raise ValueError("give data.test or data.holdout, not both")
        if isinstance(self.holdout, float) and not self.holdout < 1:
            raise ValueError("data.holdout as a share must be below 1; give an int for a number of rows")
        if self.bad_rows == "skip" and self.bad_rows_budget == 0:
            raise ValueError("data.bad_rows: skip needs data.bad_rows_budget, the number of rows that may be bad")
        return self


class VerifierSpec(Component):
    """A verifier by short name, entry point, or `file.py:function`; extra keys are passed to it by name."""

    weight: float = 1.0
    timeout: float = Field(10.0, gt=0, description="seconds a verdict may take before the worker is killed")


class VerifierPool(Section):
    workers: int = Field(2, ge=1, description="verifier processes")
    retries: int = Field(1, ge=0, description="how often a killed or broken item is tried again")
    recycle_after: int = Field(5000, ge=1, description="items after which a worker process is replaced")


class Rollout(Section):
    """The engines and how they sample.

    There is no top_p or top_k here: under truncation the learner's log-probs are of another distribution.
    """

    engines: int = Field(1, ge=1, description="vLLM engines")
    tensor_parallel: int = Field(1, ge=1, description="GPUs of one engine")
    samples_per_prompt: int = Field(8, ge=1)
    temperature: float = Field(1.0, gt=0, description="of the distribution sampled from; the learner uses the same")
    max_tokens: int = Field(512, ge=1, description="longest response")
    stop: list[str] = Field(
        default_factory=list, description="strings that end a response, beside the end-of-sequence token"
    )
    max_staleness: int = Field(
        0, ge=0, description="weight versions a consumed token may be behind; 1 or more overlaps"
    )
    dtype: DType | None = Field(None, description="model.dtype by default")
    max_sequences: int = Field(256, ge=1, description="sequences an engine decodes at once")
    enforce_eager: bool | None = Field(None, description="true on CPU, false on GPU by default")
    prefix_caching: bool = Field(True, description="share the keys and values of a common prompt")
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1, description="share of a GPU vLLM may take")
    kv_cache_gb: float = Field(1.0, gt=0, description="CPU only")
    threads: int | None = Field(None, ge=1, description="CPU threads of an engine; the cores divided by the engines")
    weight_transfer: Literal["auto", "object_store", "nccl", "ipc"] = "auto"
    deadline: float = Field(1800.0, gt=0, description="seconds one step's sampling may take")
    sync_deadline: float = Field(600.0, gt=0, description="seconds a weight update may take")
    engine_args: dict[str, Any] = Field(default_factory=dict, description="passed to vLLM's EngineArgs as they are")


class Regularizer(Section):
    """A divergence to an anchor, added to the loss with a coefficient."""

    model_config = ConfigDict(extra="allow")
    divergence: str
    coef: float = Field(gt=0)
    anchor: str = "frozen"

    @property
    def params(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Objective(Section):
    advantage: Named = Component(name="grpo")
    policy_loss: Named = Component(name="ppo_clip")
    regularizers: list[Regularizer] = Field(default_factory=list)
    aggregation: Aggregation = "token_mean"

    @model_validator(mode="after")
    def _known(self) -> Objective:
        _known_name("objective.advantage", self.advantage.name, ADVANTAGES)
        _known_name("objective.policy_loss", self.policy_loss.name, POLICY_LOSSES)
        for i, r in enumerate(self.regularizers):
            _known_name(f"objective.regularizers.{i}.divergence", r.divergence, DIVERGENCES)
            _known_name(f"objective.regularizers.{i}.anchor", r.anchor, REFERENCES)
        return self


class Optimizer(Section):
    """AdamW and its schedule. `lr` rises linearly over `warmup_steps`, then follows `schedule` to `steps`."""

    lr: float = Field(1e-6, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(0, ge=0, description="optimizer steps over which lr rises from 0")
    min_lr_ratio: float = Field(0.0, ge=0, le=1, description="share of lr the schedule ends at")
    weight_decay: float = Field(0.0, ge=0, description="decoupled, as in AdamW")
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    grad_clip: float = Field(1.0, ge=0, description="0 is no clipping")


class Learner(Optimizer):
    """The DeepSpeed ranks and how a batch is cut for them."""

    ranks: int = Field(1, ge=1, description="DeepSpeed ranks, one GPU (or actor on CPU) each")
    zero_stage: Literal[0, 1, 2, 3] = Field(
        0, description="what is sharded over ranks: 1 optimizer, 2 and gradients, 3 and weights"
    )
    prompts_per_step: int = Field(64, ge=1, description="prompts sampled and learned from in a step")
    optimizer_steps_per_batch: int = Field(1, ge=1, description="updates made of one batch of samples")
    tokens_per_micro_batch: int = Field(8192, ge=1, description="tokens of one forward pass, padding included")
    layout: Literal["packed", "padded"] = Field("packed", description="sequences end to end in rows, or one a row")
    row_tokens: int | None = Field(
        None, ge=1, description="packed: length of a row of sequences; tokens_per_micro_batch (one row) by default"
    )
    logits_chunk_tokens: int = Field(1024, ge=1, description="tokens whose vocabulary-wide logits are held at once")
    gradient_checkpointing: bool = Field(False, description="make activations again in the backward pass")
    offload_optimizer: bool = Field(False, description="keep the optimizer in CPU memory")
    threads: int | None = Field(None, ge=1, description="CPU threads of a rank; the cores divided by the ranks")
    deadline: float = Field(1800.0, gt=0, description="seconds one update may take")
    deepspeed: dict[str, Any] = Field(
        default_factory=dict, description="merged over the DeepSpeed configuration we make"
    )


class Sft(Optimizer):
    """Supervised warm-up on worked examples (`completion`), with the same learner."""

    train: Source
    steps: int = Field(gt=0)
    prompts_per_step: int = Field(128, ge=1)
    lr: float = Field(1e-3, gt=0)

    @model_validator(mode="after")
    def _has_completion(self) -> Sft:
        if not self.train.completion:
            raise ValueError("warm-up needs `completion` in its source: the column or template of the worked example")
        return self


class Evaluation(Section):
    """pass@k on the held-out prompts, before, every `every` steps, and after."""

    every: int = Field(0, ge=0, description="0: only before and after")
    before: bool = True
    after: bool = True
    samples_per_prompt: int = Field(8, ge=1)
    k: list[int] = Field(default_factory=lambda: [1, 8])
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    prompts: int | None = Field(None, gt=0, description="at most this many held-out prompts")

    @model_validator(mode="after")
    def _enough_samples(self) -> Evaluation:
        if self.k and max(self.k) > self.samples_per_prompt:
            raise ValueError(
                f"pass@{max(self.k)} needs at least {max(self.k)} samples: raise evaluation.samples_per_prompt "
                f"({self.samples_per_prompt}) or lower evaluation.k"
            )
        return self


class Checkpoint(Section):
    every: int = Field(50, ge=0, description="steps between saves; 0 saves only at the end and on Ctrl-C")
    keep: int = Field(2, ge=1, description="how many of the newest stay")


class Observe(Section):
    sinks: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(default_factory=lambda: ["tensorboard"])  # type: ignore[arg-type]
    rollouts: bool = Field(True, description="write every step's rollouts as Parquet")
    console: Literal["auto", "live", "plain", "off"] = "auto"


class Alarms(Section):
    """What stops a run that is wrong but would stay green. Exit code 4; the newest checkpoint stays as it was."""

    mismatch_logp_abs_max: float | None = Field(
        None, gt=0, description="engine against learner on the same weights; 1e-3 in float32, else off by default"
    )
    mismatch_kl: float = Field(0.05, gt=0, description="KL(engine || learner) over tokens of the same weights")
    unverified_share: float = Field(0.05, ge=0, le=1, description="share of a step's verdicts that may be unverified")
    no_signal_steps: int = Field(20, ge=1, description="steps in a row without one group that has a signal")


class Cluster(Section):
    """Where it runs. `address: null` starts a private Ray on this machine; `auto` or a URL joins a running one."""

    address: str | None = None
    nodes: int = Field(1, ge=1)
    gpus_per_node: int = Field(0, ge=0, description="0 runs on CPU")
    colocate: bool = Field(False, description="engines and learner ranks share GPUs; weights travel by CUDA IPC")
    cpus_per_engine: float = Field(1.0, gt=0, description="CPUs Ray sets aside for an engine")
    cpus_per_rank: float = Field(1.0, gt=0, description="CPUs Ray sets aside for a rank")
    object_store_gb: float = Field(1.0, gt=0, description="of a private Ray")
    start_deadline: float = Field(600.0, gt=0, description="seconds the actors may take to start")


class Config(Section):
    """A whole run."""

    name: str | None = None
    runs_dir: str = "runs"
    seed: int = 0
    steps: int = Field(100, ge=0)
    model: Model
    data: Data
    verifiers: list[VerifierSpec] = Field(min_length=1)
    verifier_pool: VerifierPool = VerifierPool()
    warmup: Sft | None = None
    rollout: Rollout = Rollout()
    objective: Objective = Objective()
    learner: Learner = Learner()
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpoint = Checkpoint()
    observe: Observe = Observe()
    alarms: Alarms = Alarms()
    cluster: Cluster = Cluster()

    @model_validator(mode="before")
    @classmethod
    def _verifiers_by_name(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("verifiers"), list):
            value = {**value, "verifiers": [_component(v) for v in value["verifiers"]]}
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        _check_batch(self)
        _check_placement(self)
        _check_method(self)
        return self

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
    def weight_transfer(self) -> Literal["object_store", "nccl", "ipc"]:
        """The transport in force, with `auto` resolved."""
        if self.rollout.weight_transfer != "auto":
            return self.rollout.weight_transfer
        if not self.on_gpu:
            return "object_store"
        return "ipc" if self.cluster.colocate else "nccl"


def _check_batch(c: Config) -> None:
    le, ro = c.learner, c.rollout
    samples = le.prompts_per_step * ro.samples_per_prompt
    if le.prompts_per_step % le.optimizer_steps_per_batch:
        raise ValueError(
            f"learner.prompts_per_step {le.prompts_per_step} does not divide by learner.optimizer_steps_per_batch "
            f"{le.optimizer_steps_per_batch}: every optimizer step takes the same number of whole groups"
        )
    if samples // le.optimizer_steps_per_batch < le.ranks:
        raise ValueError(
            f"learner.ranks {le.ranks} is more than the samples of one optimizer step: prompts_per_step "
            f"{le.prompts_per_step} x samples_per_prompt {ro.samples_per_prompt} / optimizer_steps_per_batch "
            f"{le.optimizer_steps_per_batch} = {samples // le.optimizer_steps_per_batch}"
        )
    if le.tokens_per_micro_batch < c.max_sequence_tokens:
        raise ValueError(
            f"learner.tokens_per_micro_batch {le.tokens_per_micro_batch} cannot hold one sequence of "
            f"data.max_prompt_tokens + rollout.max_tokens = {c.max_sequence_tokens} tokens: raise it"
        )
    if le.row_tokens is not None and not c.max_sequence_tokens <= le.row_tokens <= le.tokens_per_micro_batch:
        raise ValueError(
            f"learner.row_tokens {le.row_tokens} must lie between the longest sequence ({c.max_sequence_tokens}) and "
            f"learner.tokens_per_micro_batch ({le.tokens_per_micro_batch})"
        )


def _check_placement(c: Config) -> None:
    cl, ro, le = c.cluster, c.rollout, c.learner
    if not c.on_gpu:
        for key, wrong in (
            ("cluster.colocate: true", cl.colocate),
            ("rollout.weight_transfer: " + ro.weight_transfer, ro.weight_transfer in ("nccl", "ipc")),
            ("rollout.tensor_parallel: " + str(ro.tensor_parallel), ro.tensor_parallel > 1),
            ("model.attention: flash_attention_2", c.model.attention == "flash_attention_2"),
        ):
            if wrong:
                raise ValueError(f"{key} needs GPUs: set cluster.gpus_per_node")
        return
    have, engines, ranks = cl.nodes * cl.gpus_per_node, ro.engines * ro.tensor_parallel, le.ranks
    if ro.tensor_parallel > cl.gpus_per_node:
        raise ValueError(
            f"rollout.tensor_parallel {ro.tensor_parallel} is more than cluster.gpus_per_node {cl.gpus_per_node}"
        )
    if cl.colocate:
        if ro.tensor_parallel != 1 or ro.engines != ranks:
            raise ValueError(
                "cluster.colocate pairs one engine with one rank on a GPU: set rollout.tensor_parallel: 1 and "
                f"rollout.engines: {ranks} (learner.ranks)"
            )
        need, what = ranks, f"learner.ranks {ranks} (shared with the engines)"
    else:
        need, what = (
            engines + ranks,
            (f"rollout.engines {ro.engines} x rollout.tensor_parallel {ro.tensor_parallel} + learner.ranks {ranks}"),
        )
    if need > have:
        raise ValueError(
            f"{what} = {need} GPUs, but cluster.nodes {cl.nodes} x cluster.gpus_per_node {cl.gpus_per_node} = {have}"
        )


def _check_method(c: Config) -> None:
    if c.objective.policy_loss.name == "sft":
        raise ValueError("objective.policy_loss: sft is for `rlpost sft` and `warmup`, not for sampled data")
    if c.objective.advantage.name == "grpo" and c.rollout.samples_per_prompt < 2:
        raise ValueError(
            "objective.advantage: grpo compares the samples of a group: set rollout.samples_per_prompt >= 2"
        )
    names = [v.name for v in c.verifiers]
    if len(set(names)) != len(names):
        raise ValueError(f"verifiers are named by their name, which must be unique; got {names}")
    for i, v in enumerate(c.verifiers):
        _known_name(f"verifiers.{i}.name", v.name, VERIFIERS)
    if all(v.weight == 0 for v in c.verifiers):
        raise ValueError("every verifier has weight 0: there is no reward")
    if "reasoning_gym" in names and c.data.train.source != "reasoning_gym":
        raise ValueError("the reasoning_gym verifier scores rows of a reasoning_gym source; data.train is another")
    if (c.evaluation.before or c.evaluation.after or c.evaluation.every) and not (c.data.test or c.data.holdout):
        raise ValueError(
            "evaluation needs held-out prompts: give data.test or data.holdout, or set evaluation.before and "
            "evaluation.after to false and evaluation.every to 0"
        )


# ---------------------------------------------------------------------------------------------- files and overrides


def load(paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> Config:
    """Read YAML files, later ones over earlier ones, then `key=value` overrides, and check the result.

    Raises:
        ConfigError: with every problem found, one a line, each naming key, value and fix.
    """
    merged: dict[str, Any] = {}
    for path in paths:
        merged = _merge(merged, _read_yaml(Path(path)))
    for override in overrides:
        merged = _merge(merged, _parse_override(override))
    return parse(merged, origin=", ".join(str(p) for p in paths))


def parse(values: Mapping[str, Any], origin: str = "the configuration") -> Config:
    """Check a nested mapping against the schema."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, values, origin)) from None


def dump(config: Config) -> str:
    """The resolved configuration as YAML; `load` of it gives the same configuration."""
    return yaml.safe_dump(config.model_dump(mode="json", exclude_none=False), sort_keys=False, allow_unicode=True)


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        near = nearest(path.name, [p.name for p in path.parent.glob("*.y*ml")]) if path.parent.is_dir() else ""
        raise ConfigError(f"configuration file {str(path)!r} does not exist{near}")
    try:
        values = yaml.load(path.read_text(), Loader=_UniqueKeys)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of keys to values, not {type(values).__name__}")
    return values


class _UniqueKeys(yaml.SafeLoader):
    """YAML that refuses a key given twice, and reads 1e-6 as the number it is meant to be."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_UniqueKeys.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, raw = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {text!r} must look like key=value, for example learner.lr=1e-6")
    try:
        value = yaml.load(raw, Loader=_UniqueKeys)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {text!r}: the value is not valid YAML: {error}") from None
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _merge(low: Any, high: Any) -> Any:
    """`high` over `low`: mappings by key, a list's items by index (`verifiers.0.weight=2`), all else replaced.

    A bare name that gets keys is an entry with that name: `grpo` and `{eps: 1e-4}` make `{name: grpo, eps: 1e-4}`.
    """
    if isinstance(low, str) and isinstance(high, dict) and high:
        low = {"name": low}
    if isinstance(low, dict) and isinstance(high, dict):
        return {**low, **{k: _merge(low[k], v) if k in low else v for k, v in high.items()}}
    if isinstance(low, list) and isinstance(high, dict) and high and all(str(k).isdigit() for k in high):
        merged = list(low)
        for index, value in high.items():
            if int(index) >= len(merged):
                raise ConfigError(f"override index {index}: the list has {len(merged)} items")
            merged[int(index)] = _merge(merged[int(index)], value)
        return merged
    return high


def _explain(error: ValidationError, values: Mapping[str, Any], origin: str) -> str:
    lines = [f"{origin} cannot run:"]
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "(whole file)"
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            known = _keys_at(item["loc"][:-1])
            fix = nearest(str(item["loc"][-1]), known) or f" (known here: {', '.join(sorted(known))})"
            lines.append(f"  {key}: unknown key, value {item['input']!r}{fix}")
        elif item["type"] == "missing":
            lines.append(f"  {key}: missing; it has no default")
        elif item["type"] == "value_error":
            lines.append(f"  {key}: {message}")
        else:
            lines.append(f"  {key}: {message}, got {item['input']!r} ({type(item['input']).__name__})")
    return "\n".join(lines)


def _keys_at(location: Sequence[str | int]) -> list[str]:
    """The keys the schema knows at a place in the file."""
    model: Any = Config
    for part in location:
        if isinstance(part, int) or model is None:
            continue
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        model = next(iter(_sections(annotation)), None)
    return list(model.model_fields) if model is not None else []


def _sections(annotation: Any) -> Iterable[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _sections(argument)
