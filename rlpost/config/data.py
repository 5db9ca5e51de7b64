"""Data of a run: sources, how their rows become prompts, which groups are learned from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from rlpost.config.paths import ConfiguredPath, HubPath, LocalPath, unreadable
from rlpost.config.section import AtKey, Component, Named, OneOrNamed, Section

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
