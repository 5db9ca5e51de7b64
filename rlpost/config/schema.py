"""The schema of a run: one class for each section of the file.

Each quantity has one name: `prompts_per_step`, `samples_per_prompt`, `optimizer_steps_per_batch`,
`tokens_per_micro_batch`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, PrivateAttr, field_validator, model_validator

from rlpost.config.checks import check_batch, check_best, check_evaluation, check_method, check_placement, check_routing
from rlpost.config.objective import Objective
from rlpost.config.overrides import check_overrides
from rlpost.config.paths import ConfiguredPath, HubPath, LocalPath, OutputPath, RunName, unreadable
from rlpost.config.section import AtKey, Component, DType, Named, OneOrNamed, Section, as_component


class CreateModel(Section):
    """A small model with random weights, made when none is there: for CPUs, tests and first tries.

    `config` is a Hugging Face model configuration (`model_type` and its sizes); the vocabulary comes from the
    tokenizer. `tokenizer` is a string of characters, each one token, or `bytes` for any text.
    """

    config: dict[str, Any]
    tokenizer: str = "bytes"
    seed: int = 0

    @field_validator("tokenizer")
    @classmethod
    def _one_token_each(cls, value: str) -> str:
        if not value:
            raise ValueError("'' is no tokenizer: give bytes, or the characters that are one token each")
        if value != "bytes" and (twice := sorted({c for c in value if value.count(c) > 1})):
            raise ValueError(
                f"{value!r} holds {', '.join(map(repr, twice))} more than once: give each character once, or bytes"
            )
        return value


class Lora(Section):
    """Low-rank adapters by peft; only they are trained, and they are saved and served as adapters.

    Engines that cannot serve them get merged weights (`rollout.adapters`). Without dropout, as the whole learner:
    log-probs must be those of the policy that the engines serve.
    """

    rank: int = Field(16, gt=0)
    alpha: float = Field(32, gt=0, description="an update is scaled by alpha / rank")
    target_modules: list[str] | str = Field(
        "all-linear",
        description="last parts of module names, or one string as a regular expression of whole names; all-linear: "
        "every linear layer but the head",
    )
    dora: bool = Field(False, description="weight-decomposed adapters (DoRA); engines get them merged")
    rslora: bool = Field(False, description="scale by alpha / sqrt(rank) (rank-stabilized)")

    @property
    def scaling(self) -> float:
        """What the product of the factors is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class Experts(Section):
    """Sizes of a mixture of experts."""

    layers: int = Field(gt=0, description="how many have experts")
    per_token: int = Field(gt=0, description="experts a token goes to in each")
    total: int = Field(gt=1, description="experts of each")


class Model(Section):
    """The policy: a folder or a Hugging Face id, or a small one made on the spot."""

    path: HubPath | None = None
    revision: str | None = Field(None, description="branch, tag or commit of a Hugging Face id")
    create: CreateModel | None = None
    dtype: DType = "bfloat16"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    lora: Lora | None = None
    trust_remote_code: bool = Field(
        False, description="run the code that comes with a model or its tokenizer, in every process that loads them"
    )
    parameters: float | None = Field(None, gt=0, description="count, for `rlpost plan` when the model is not on disk")
    experts: Experts | None = Field(None, description="for `rlpost plan` when the model is not on disk")

    @model_validator(mode="after")
    def _one_origin(self) -> Model:
        if (self.path is None) == (self.create is None):
            raise ValueError(
                "give either model.path (a folder or Hugging Face id) or model.create, not both or neither"
            )
        return self


# Which sources know a key that not all of them have.
SOURCE_KEYS = {
    "path": ("jsonl", "json", "parquet", "hf"),
    "split": ("jsonl", "json", "parquet", "hf"),
    "field": ("json",),
    "name": ("hf",),
    "revision": ("hf",),
    "task": ("reasoning_gym",),
    "params": ("reasoning_gym",),
    "size": ("reasoning_gym",),
    "seed": ("reasoning_gym",),
}


class Source(Section):
    """Where rows come from and which column means what.

    `path` is a file (`jsonl`, `json`, `parquet`), a folder of such files, or for `hf` whatever `load_dataset` reads.
    A key that the kind of source has no use for is an error.

    `prompt`, `reference`, `completion` and `id` are a column's name, or a template when they contain braces:
    `"{numbers} {target}:"`; nested values as `{metadata[target]}`.
    """

    source: Literal["jsonl", "json", "parquet", "hf", "reasoning_gym"]
    path: HubPath | None = None
    name: str | None = Field(None, description="hf: configuration of the data set")
    split: str | None = Field(
        None, description="hf: train by default; of a folder: the files that are named by it, such as train-0.parquet"
    )
    revision: str | None = Field(None, description="hf: branch, tag or commit of the hub")
    field: str | None = Field(None, description="json: key of the list of rows, where the file is an object")
    task: str | None = Field(None, description="reasoning_gym: the task")
    params: dict[str, Any] = Field(default_factory=dict, description="reasoning_gym: parameters of the task")
    size: int | None = Field(None, gt=0, description="reasoning_gym: how many rows are made")
    seed: int | None = Field(None, description="reasoning_gym: other seeds, other rows; 0 by default")
    limit: int | None = Field(None, gt=0, description="at most this many rows")
    prompt: str | None = None
    reference: str | None = None
    completion: str | None = None
    id: str | None = None
    metadata: list[str] = Field(default_factory=list, description="other columns the verifiers get, by name")

    @model_validator(mode="after")
    def _complete(self) -> Source:
        for key in SOURCE_KEYS:
            if getattr(self, key) not in (None, {}) and self.source not in SOURCE_KEYS[key]:
                value, known = getattr(self, key), ", ".join(SOURCE_KEYS[key])
                no_use = (
                    f"{value!r}: a {self.source} source has no use for {key}, which belongs to {known}: leave it out"
                )
                raise AtKey(key, ValueError(no_use))
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
            if self.source != "hf":
                typed = self.path.typed if isinstance(self.path, ConfiguredPath) else self.path
                self.path = path = ConfiguredPath(self.path, "file", typed)
                if wrong := unreadable(path):
                    raise AtKey("path", ValueError(wrong))
            self._check_place(Path(self.path))
        return self

    def _check_place(self, path: Path) -> None:
        """Refuse what only a folder or the hub has."""
        if path.is_file() and self.source != "hf" and self.split is not None:
            why = f"{self.split!r}: {self.path} is one file, which has no splits: leave it out"
            raise AtKey("split", ValueError(why))
        for key in ("revision", *(["name"] if path.is_file() else [])):
            if path.exists() and getattr(self, key) is not None:
                why = f"{getattr(self, key)!r}: {self.path} is on this machine and has none: leave it out"
                raise AtKey(key, ValueError(why))


# What a chat template is given by itself, or decides how it is called.
TEMPLATE_ARGUMENTS = [
    "messages",
    "conversation",
    "tools",
    "documents",
    "chat_template",
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_dict",
    "return_assistant_tokens_mask",
    "tokenizer_kwargs",
    "sanitize_control_tokens",
]


class Template(Section):
    """How a row becomes what the model reads.

    A prompt that is a list of messages (role and content) needs `kind: chat` and goes to the chat template as it is, but
    for `prompt` around its last user message. A last message of the assistant is continued.
    """

    kind: Literal["plain", "chat"] = "plain"
    prompt: str = Field("{prompt}", description="plain: the text around the prompt; chat: the user's message")
    system: str | None = Field(None, description="chat: the system message, where a prompt has none of its own")
    chat_template: LocalPath | None = Field(
        None, description="chat: a file with a Jinja template, in place of the tokenizer's; saved with the model"
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="chat: values for the template's variables, such as {enable_thinking: false}; saved as its defaults",
    )

    @model_validator(mode="after")
    def _has_prompt(self) -> Template:
        if "{prompt}" not in self.prompt:
            raise ValueError("template.prompt must contain {prompt}")
        if self.system is not None and self.kind == "plain":
            raise ValueError("template.system needs template.kind: chat; write it into template.prompt otherwise")
        if self.kind == "plain" and (self.chat_template is not None or self.chat_template_kwargs):
            key = "chat_template" if self.chat_template is not None else "chat_template_kwargs"
            raise AtKey(key, ValueError("needs template.kind: chat; a plain template asks no chat template"))
        if self.chat_template is not None and not Path(self.chat_template).is_file():
            raise AtKey("chat_template", ValueError(f"{self.chat_template!r} is no file"))
        for name in self.chat_template_kwargs:
            if name in TEMPLATE_ARGUMENTS or not name.isidentifier():
                why = "is no variable of a template" if not name.isidentifier() else "is given by rlpost"
                raise AtKey(f"chat_template_kwargs.{name}", ValueError(f"{name!r} {why}: leave it out"))
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
    valid_fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="with no_signal: refill, the share of prompts_per_step that must have a signal; "
        "the rest of the step is filled with groups that have none",
    )


class Identity(Section):
    """When two prompts are the same problem, so that none is both taught and asked.

    They are when the model reads the same text, or is asked the same within another template. Forms of one character
    and kinds of quotes and dashes never make a difference, a reference or an id neither.
    """

    ignore_space: bool = Field(
        True, description="white space counts between two letters or digits alone, and there as one space"
    )
    ignore_case: bool = False
    ignore_template: bool = Field(
        True,
        description="a question is the same whatever stands around it: a system message, data.template, the words of a "
        "source's own template",
    )


class TemplatedSource(Source):
    """A source with a template of its own."""

    template: Template | None = Field(None, description="in place of data.template")

    @model_validator(mode="before")
    @classmethod
    def _of_a_plain_one(cls, value: Any) -> Any:
        return value.model_dump() if isinstance(value, Source) and not isinstance(value, cls) else value


class ScoredSource(TemplatedSource):
    """A source with verifiers of its own."""

    verifiers: list[str] | None = Field(
        None,
        min_length=1,
        description="labels of the entries of `verifiers` that score its rows; the first is its judge, which says what is "
        "correct. All, and the first of all, where it is left out",
    )

    @model_validator(mode="after")
    def _each_once(self) -> ScoredSource:
        if self.verifiers and len(set(self.verifiers)) < len(self.verifiers):
            raise AtKey("verifiers", ValueError(f"{self.verifiers} names a verifier twice"))
        return self


class TrainSource(ScoredSource):
    """Prompts to learn from."""

    weight: float = Field(1.0, gt=0, description="of several sources: its share of a step's prompts, over all weights")


class TestSource(ScoredSource):
    """Prompts to be judged by. What is left out is as `evaluation` and `rollout` say."""

    __test__ = False

    max_tokens: int | None = Field(None, ge=1, description="longest response; may be more than in training")
    samples_per_prompt: int | None = Field(None, ge=1)
    k: list[Annotated[int, Field(ge=1)]] | None = Field(None, min_length=1)
    prompts: int | None = Field(None, gt=0, description="at most this many of its prompts")


class Mix(Section):
    """How several training sources become one stream of prompts: by weight, to within one prompt of every step."""

    until: Literal["forever", "first_ends", "all_end"] = Field(
        "forever",
        description="each source begins anew when it ends; or the run ends with the step in which the first of them, or "
        "the last, has been seen whole (`epochs` times, where that is given)",
    )


class Data(Section):
    """Prompts to learn from and prompts to be judged by, each one source or several by name."""

    train: OneOrNamed[TrainSource]
    mix: Mix = Mix()
    test: OneOrNamed[TestSource] | None = None
    holdout: int | float | None = Field(
        None, gt=0, description="rows (int) or share (float) of train kept for evaluation"
    )
    template: Template = Template()
    max_prompt_tokens: int = Field(512, gt=0, description="longest prompt, template included")
    too_long: Literal["drop", "error"] = "drop"
    shuffle: bool = Field(True, description="a new order each epoch, by the seed; else the order of the data")
    bad_rows: Literal["error", "skip"] = "error"
    bad_rows_budget: int = Field(0, ge=0, description="with bad_rows: skip, how many rows may be bad")
    identity: Identity = Identity()
    groups: Groups = Groups()
    strategy: Named = Field(
        Component(name="uniform"), description="which prompts come next and what is learned from beside them"
    )

    @property
    def train_sources(self) -> dict[str, TrainSource]:
        """By name; by "" where there is one without a name."""
        return self.train if isinstance(self.train, dict) else {"": self.train}

    @property
    def test_sources(self) -> dict[str, TestSource]:
        """By name; by "" where there is one without a name. Empty with `holdout`, and without a test."""
        if self.test is None:
            return {}
        return self.test if isinstance(self.test, dict) else {"": self.test}

    def test_or_held_out(self, name: str) -> TrainSource | TestSource:
        """The source of a test set: its own, or the training source it is held out from."""
        return (self.test_sources or self.train_sources)[name]

    def sources(self) -> Iterator[tuple[str, TrainSource | TestSource]]:
        """Every source and its key: `data.train`, or `data.train.sums`."""
        for key, named in (("data.train", self.train_sources), ("data.test", self.test_sources)):
            for name, source in named.items():
                yield f"{key}.{name}".rstrip("."), source

    @model_validator(mode="after")
    def _one_test(self) -> Data:
        if self.test is not None and self.holdout is not None:
            raise ValueError("give data.test or data.holdout, not both")
        if isinstance(self.holdout, float) and not self.holdout < 1:
            raise ValueError("data.holdout as a share must be below 1; give an int for a number of rows")
        if self.bad_rows == "skip" and self.bad_rows_budget == 0:
            raise ValueError("data.bad_rows: skip needs data.bad_rows_budget, the number of rows that may be bad")
        return self

    @model_validator(mode="after")
    def _strategy_sources(self) -> Data:
        """A strategy's own data is a `Source` like any other: refused here, and its path is one of the file's."""
        extra = self.strategy.model_extra or {}
        for name, value in extra.items():
            if isinstance(value, dict) and value.get("source") in get_args(Source.model_fields["source"].annotation):
                try:
                    extra[name] = Source.model_validate(value)
                except ValueError as error:
                    raise AtKey(f"strategy.{name}", error) from None
        return self


class VerifierSpec(Component):
    """A verifier by short name, entry point, or `file.py:function`; extra keys are passed to it by name."""

    label: str = Field(
        "",
        description="what verdicts, metrics and `verifiers` of a source call it; `name` by default, so one verifier may "
        "stand here twice with other parameters",
    )
    weight: float = 1.0
    timeout: float = Field(
        10.0, gt=0, description="seconds a verdict may take before the worker is killed; 30 for code, 60 in C++"
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
    concurrency: int | None = Field(None, ge=1, description="workers that may run it at once; all by default")
    env: list[str] = Field(
        default_factory=list, description="environment variables it sees beside the harmless ones, such as an API key"
    )

    @model_validator(mode="before")
    @classmethod
    def _programs_take_longer(cls, value: Any) -> Any:
        # Above what the verifier itself allows a program in all: else the pool kills the worker, warm sandbox and all.
        if isinstance(value, dict) and value.get("name") == "code" and "timeout" not in value:
            return {**value, "timeout": 30.0 if value.get("language", "python") == "python" else 60.0}
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
    workers: int = Field(2, ge=1, description="verifier processes; on each node when `where` is cluster")
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


class Rollout(Section):
    """The engines and how they sample.

    There is no top_p or top_k here: under truncation the learner's log-probs are of another distribution.
    """

    engines: int = Field(1, ge=1, description="vLLM engines")
    tensor_parallel: int = Field(1, ge=1, description="GPUs of one engine")
    samples_per_prompt: int = Field(8, ge=1)
    temperature: float = Field(1.0, gt=0, description="of the distribution sampled from; the learner uses the same")
    max_tokens: int = Field(512, ge=1, description="longest response")
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
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
    adapters: Literal["auto", "merged"] = Field(
        "auto",
        description="with model.lora: engines serve adapters as they are where they can, else merged; merged: always. "
        "Merged weights are in float32 where rollout.dtype does not say otherwise and the engine can",
    )
    deadline: float = Field(1800.0, gt=0, description="seconds one step's sampling may take")
    sync_deadline: float = Field(600.0, gt=0, description="seconds a weight update may take")
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
    layout: Literal["packed", "padded"] = Field(
        "packed",
        description="sequences end to end in rows, or one a row: what a model's family allows is in families.md",
    )
    row_tokens: int | None = Field(
        None, ge=1, description="packed: length of a row of sequences; tokens_per_micro_batch (one row) by default"
    )
    logits_chunk_tokens: int = Field(1024, ge=1, description="tokens whose vocabulary-wide logits are held at once")
    gradient_checkpointing: bool = Field(False, description="make activations again in the backward pass")
    offload_optimizer: bool = Field(False, description="keep the optimizer in CPU memory")
    threads: int | None = Field(None, ge=1, description="CPU threads of a rank; the cores divided by the ranks")
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
    prompts_per_step: int = Field(128, ge=1)
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
    keep: int = Field(2, ge=1, description="how many of the newest stay")
    best: Best | None = None


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
    """What stops a run that is wrong but would stay green. Exit code 4; the newest checkpoint stays as it was."""

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
    def _fits_together(self) -> Config:
        check_batch(self)
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
