"""The records that travel: `Prompt`, `Rollout`, `Verdict`; a `Group` of rollouts, and the `Sample` learned from.

All are immutable; arrays are numpy so that they move through Ray's object store without a copy.
Importable without torch, ray or vllm.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from rlpost.routing import Routes

Status = Literal["correct", "wrong", "partial", "unverified"]
FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True)
class Prompt:
    """One task.

    Attributes:
        id: stable across runs, restarts and order; derived from the content when the data has none.
        text: what the model reads, after the template.
        token_ids: int32 (P,), `text` tokenized.
        reference: what the verifier compares with; never shown to the model.
        completion: a worked example, for supervised warm-up only.
        metadata: other columns of the row, injected into verifiers by name. Plain JSON data.
        problem: digests of what is asked (`rlpost.data.identity`): prompts that share one are the same problem.
        source: name of the training or test source it comes from; empty where there is one without a name.
        verifiers: labels of the verifiers that score it, of which the first is its judge; empty for all.
    """

    id: str
    text: str
    token_ids: np.ndarray
    reference: Any = None
    completion: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    problem: tuple[str, ...] = ()
    source: str = ""
    verifiers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What one verifier says of one rollout.

    `score` is None exactly when `status` is "unverified": what the completion can cause is "wrong"; only what it
    cannot cause (a lost worker, a broken verifier, a bad reference) is "unverified", and never a reward of zero.
    """

    status: Status
    score: float | None
    reason: str = ""
    extracted: str | None = None
    components: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    attempts: int = 1
    cached: bool = False

    def __post_init__(self) -> None:
        if (self.score is None) != (self.status == "unverified"):
            raise ValueError(f"a verdict has score None exactly when unverified, got {self.status} with {self.score}")
        if self.score is not None and not np.isfinite(self.score):
            raise ValueError(f"a verdict's score must be finite, got {self.score}")


@dataclass(frozen=True)
class Checked:
    """What the verifiers say of a row before anything is sampled.

    Attributes:
        problem: why it cannot be verified; None: it can.
        measures: how well, by the verifiers' own measures, such as the share of wrong queries that one tells from right.
    """

    problem: str | None = None
    measures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Rollout:
    """One sampled response with everything that must stay aligned to its tokens.

    Attributes:
        prompt_id: `Prompt.id`.
        group: which submission of the prompt this belongs to; all samples of a group share it, no other does.
        sample: 0 .. samples_per_prompt - 1 within the group.
        prompt_ids: int32 (P,).
        response_ids: int32 (R,), including the end-of-sequence token when one was sampled.
        logprobs: float32 (R,), log-probability under the distribution really sampled from (after temperature).
        versions: int32 (R,), the weight version that sampled each token.
        finish_reason: "stop", "length" (hit max_tokens) or "abort" (the engine gave it up: not to be learned from).
        text: the response decoded, without special tokens.
        raw: the same with them, the one that ended it included; None where it is known by `text` alone.
        seed: the sampling seed, a pure function of (run seed, step, prompt, its samples of the step before this one).
        routes: the experts chosen for each token; None when they are not captured.
        verdicts: by the verifier's label, that of the prompt's judge first; empty until scored.
        reward: weighted sum of the verdicts' scores; None when not scored or any weighted verdict is unverified.
    """

    prompt_id: str
    group: int
    sample: int
    prompt_ids: np.ndarray
    response_ids: np.ndarray
    logprobs: np.ndarray
    versions: np.ndarray
    finish_reason: FinishReason
    text: str
    seed: int
    raw: str | None = None
    routes: Routes | None = None
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    reward: float | None = None

    def __post_init__(self) -> None:
        n = len(self.response_ids)
        if len(self.logprobs) != n or len(self.versions) != n:
            raise ValueError(
                f"rollout {self.prompt_id}#{self.sample}: {n} response tokens but {len(self.logprobs)} log-probs "
                f"and {len(self.versions)} weight versions"
            )
        if not np.isfinite(self.logprobs).all():
            raise ValueError(
                f"rollout {self.prompt_id}#{self.sample}: log-probs of {np.count_nonzero(~np.isfinite(self.logprobs))} of {n} "
                "tokens are not finite: the engine computes something that is not a number"
            )
        if self.routes is not None and len(self.routes) != len(self.prompt_ids) + n - 1:
            raise ValueError(
                f"rollout {self.prompt_id}#{self.sample}: {len(self.prompt_ids)} + {n} tokens need one row of routes "
                f"each but the last, got {len(self.routes)}"
            )

    @property
    def usable(self) -> bool:
        """Whether this sample may enter a group's statistics and the loss."""
        return self.finish_reason != "abort" and self.reward is not None and len(self.response_ids) > 0

    def judged(self, judge: str | None = None) -> Verdict:
        """What the verifier `judge` says; without it, or where it did not apply, what the prompt's own judge says.

        That is the first of the verifiers of the prompt's source that applied to the row.
        """
        if judge is not None and judge in self.verdicts:
            return self.verdicts[judge]
        return next(iter(self.verdicts.values()), Verdict("unverified", None, "no_verifier"))

    def scored(self, verdicts: Mapping[str, Verdict], weights: Mapping[str, float]) -> Rollout:
        """This rollout with its verdicts and the reward they give."""
        weighted = [(verdicts[name].score, weight) for name, weight in weights.items() if weight != 0]
        reward = (
            None if any(score is None for score, _ in weighted) else sum(s * w for s, w in weighted if s is not None)
        )
        return replace(self, verdicts=dict(verdicts), reward=reward)


@dataclass(frozen=True)
class Group:
    """All samples of one submission of a prompt, scored."""

    id: int
    step: int
    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    sampled_at: float = field(default_factory=time.monotonic)

    @property
    def rewards(self) -> list[float | None]:
        """Reward of each sample; None for one that may not be learned from."""
        return [r.reward if r.usable else None for r in self.rollouts]


@dataclass(frozen=True)
class Pending:
    """A group that a step was promised and has not taken yet.

    Attributes:
        id: `Group.id`.
        seeds: one for each sample.
        group: what came of it; None where it has to be sampled still.
    """

    id: int
    step: int
    prompt: Prompt
    seeds: tuple[int, ...]
    group: Group | None


@dataclass(frozen=True)
class Sample:
    """One sequence to learn from, from whatever source.

    Attributes:
        prompt_ids: int32 (P,), what stands before and is not learned from.
        response_ids: int32 (R,).
        source: one of `rlpost.config.SOURCES`.
        group: samples of one prompt, or the two of a pair, share a value that no others have.
        logprobs: float32 (R,), of the engine that sampled it; zeros where nothing did.
        versions: int32 (R,), weight version that sampled each token; -1 where none did.
        number: which sample of its group, for an on-policy one.
        reward: its reward, for a sample that has one.
        correct: what the first verifier said of it.
        truncated: whether the token limit ended it.
        weight: what stands for its advantage when no estimator credits it: 1; -1 for the loser of a pair.
        mask: bool (R,), False on tokens that are not to be learned from; None learns from all.
        empty: whether what is to be learned of it has no token, as a reasoning of none. Means over samples count it, as
            they count no other sample that is masked as a whole.
        anchors: float32 (R,) log-probs that were stored with it, by anchor ("cached").
        routes: the experts that were chosen while it was sampled; None where they are not known.
    """

    prompt_ids: np.ndarray
    response_ids: np.ndarray
    source: str
    group: int
    logprobs: np.ndarray
    versions: np.ndarray
    number: int = 0
    reward: float = 0.0
    correct: bool = False
    truncated: bool = False
    weight: float = 1.0
    mask: np.ndarray | None = None
    empty: bool = False
    anchors: Mapping[str, np.ndarray] = field(default_factory=dict)
    routes: Routes | None = None

    @classmethod
    def on_policy(cls, rollout: Rollout, judge: str | None = None) -> Sample:
        """A usable rollout as the policy loss learns from it.

        Args:
            judge: the verifier whose verdict says whether it is correct; its prompt's own by default.
        """
        return cls(
            prompt_ids=rollout.prompt_ids,
            response_ids=rollout.response_ids,
            source="on_policy",
            group=rollout.group,
            logprobs=rollout.logprobs,
            versions=rollout.versions,
            number=rollout.sample,
            reward=rollout.reward or 0.0,
            correct=rollout.judged(judge).status == "correct",
            truncated=rollout.finish_reason == "length",
            routes=rollout.routes,
        )

    @classmethod
    def given(
        cls,
        prompt_ids: np.ndarray,
        response_ids: np.ndarray,
        source: str,
        group: int,
        weight: float = 1.0,
        anchors: Mapping[str, np.ndarray] | None = None,
    ) -> Sample:
        """A response that the policy at hand did not sample: a worked example, a stored success, an answer."""
        return cls(
            prompt_ids=prompt_ids,
            response_ids=response_ids,
            source=source,
            group=group,
            logprobs=np.zeros(len(response_ids), np.float32),
            versions=np.full(len(response_ids), -1, np.int32),
            weight=weight,
            anchors=anchors or {},
        )
