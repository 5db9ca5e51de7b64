"""The part of the schema that says what is learned: roles by name, with their parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from rlpost.config.names import (
    ADVANTAGES,
    CORRECTIONS,
    DIVERGENCES,
    F_DIVERGENCES,
    LIKELIHOODS,
    POLICY_LOSSES,
    REFERENCES,
    REWEIGHTERS,
    SCHEDULES,
    SELECTORS,
    TERMS,
    TRANSFORMS,
    UNANCHORED,
    known_name,
)
from rlpost.config.paths import Code
from rlpost.config.section import Aggregation, Coefficient, Component, Named, SampleSource, Section, Selectors
from rlpost.user_code import nearest


class Weighted(Section):
    """A summand of the loss: its coefficient, and which samples and tokens it is about. Extra keys are its parameters.

    The denominators of the aggregation count all samples of `source`; `where` then leaves tokens out of the sum.
    """

    model_config = ConfigDict(extra="allow")
    coef: Coefficient = 1.0
    source: SampleSource = Field("on_policy", description="where its samples come from")
    where: Selectors = Field(default_factory=list, description="only tokens that all these selectors choose")
    aggregation: Aggregation | None = Field(None, description="objective.aggregation by default")

    @property
    def params(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    @property
    def entry(self) -> str:
        """The name of its divergence or loss."""
        raise NotImplementedError


class Regularizer(Weighted):
    """A divergence to an anchor, or an entropy, in the loss or in the reward."""

    divergence: Code
    coef: Coefficient
    anchor: str = Field("frozen", description="a name in objective.references, or a kind of reference")
    form: Literal["sampled", "generator", "full"] | None = Field(
        None,
        description="an f-divergence on samples of the policy, on stored samples of the anchor, or exactly, over the "
        "whole vocabulary; generator for source: rehearsal, else sampled",
    )
    placement: Literal["loss", "reward"] = "loss"

    @property
    def entry(self) -> str:
        return self.divergence


class Term(Weighted):
    """Another loss beside the policy loss: likelihood of given answers, preferences."""

    loss: Code
    anchor: str = Field("frozen", description="of losses that compare with one")

    @property
    def entry(self) -> str:
        return self.loss


class StdFilter(Section):
    """Leaves out groups whose rewards spread less than `share` of the average spread of earlier steps (RLPR)."""

    decay: float = Field(0.99, ge=0, lt=1, description="weight of the past in the average")
    share: float = Field(0.5, gt=0)
    average_from: int = Field(6, ge=1, description="step from which the average is kept")
    filter_from: int = Field(11, ge=1, description="step from which groups are left out")


class Likelihood(Section):
    """A reward from the policy's own likelihood of the reference answer, given the reasoning that it sampled.

    A response is cut before `marker`; what stands there is the reasoning z. The learner then scores
    `z + marker + reference + close`, with the end-of-sequence token where `close` is empty. The reward counts beside
    the verifiers' by `weight`. With the reference answer come samples of source `reference`, for the term
    `reference_nll`; the policy loss is held to the tokens of z, or credits the whole response (`credit`).
    """

    name: Code
    marker: str = Field(description="where the answer begins, as the model writes it")
    close: str = Field("", description="what ends the answer")
    weight: float = 1.0
    clip: tuple[float, float] | None = Field(None, description="bounds of the reward")
    answer_weight: Literal["reward", "one", "zero", "group"] | None = Field(
        None, description="weight of the reference answer's own likelihood; by default that of the named method"
    )
    credit: Literal["reasoning", "response"] | None = Field(
        None, description="tokens the policy loss credits: those of z, or all; by default that of the named method"
    )
    std_filter: StdFilter | None = None
    scorer: str = Field("learner", description="learner, or the name of a reference that scores in its place")
    params: dict[str, Any] = Field(default_factory=dict, description="parameters of the named reward")

    @model_validator(mode="after")
    def _known(self) -> Likelihood:
        known_name("objective.likelihood.name", self.name, LIKELIHOODS)
        if not self.marker:
            raise ValueError("objective.likelihood.marker must not be empty: it tells where the reasoning ends")
        return self


class Objective(Section):
    """total = aggregate(policy_loss) + sum of coef * aggregate(term) + sum of coef * aggregate(divergence)."""

    advantage: Named = Component(name="grpo")
    transforms: list[Named] = Field(default_factory=list, description="applied to the advantages one after the other")
    corrections: list[Named] = Field(
        default_factory=list, description="factors for what the engine sampled otherwise than the learner would have"
    )
    proximal: Literal["learner", "behavior"] = Field(
        "learner", description="what the policy loss takes its ratio to: the learner's own log-probs or the engine's"
    )
    policy_loss: Named | None = Component(name="ppo_clip")
    terms: list[Term] = Field(default_factory=list)
    regularizers: list[Regularizer] = Field(default_factory=list)
    references: dict[str, Named] = Field(
        default_factory=dict, description="anchors by a name of your choice: {slow: {name: ema, decay: 0.99}}"
    )
    reweight: Named | None = Field(None, description="shifts weight between the terms of the loss")
    likelihood: Likelihood | None = None
    aggregation: Aggregation = "token_mean"

    @model_validator(mode="after")
    def _known(self) -> Objective:
        known_name("objective.advantage", self.advantage.name, ADVANTAGES, self.advantage.params)
        for key, names, known in (
            ("transforms", self.transforms, TRANSFORMS),
            ("corrections", self.corrections, CORRECTIONS),
        ):
            for i, entry in enumerate(names):
                known_name(f"objective.{key}.{i}", entry.name, known, entry.params)
        if self.policy_loss is not None:
            if self.policy_loss.name in TERMS:
                raise ValueError(
                    f"objective.policy_loss: {self.policy_loss.name} is a term, not a surrogate over sampled data: "
                    f"set objective.policy_loss: null and objective.terms: [{{loss: {self.policy_loss.name}, source: ...}}]"
                )
            known_name("objective.policy_loss", self.policy_loss.name, POLICY_LOSSES, self.policy_loss.params)
        if self.reweight is not None:
            known_name("objective.reweight", self.reweight.name, REWEIGHTERS)
        for name, reference in self.references.items():
            known_name(f"objective.references.{name}", reference.name, REFERENCES)
        for i, r in enumerate(self.regularizers):
            known_name(f"objective.regularizers.{i}.divergence", r.divergence, DIVERGENCES, r.params)
        for i, t in enumerate(self.terms):
            known_name(f"objective.terms.{i}.loss", t.loss, TERMS, t.params)
        for key, summand in self.summands():
            _check_summand(f"objective.{key}", summand, [*self.references, *REFERENCES])
            if isinstance(summand, Regularizer):
                _check_form(f"objective.{key}", summand, self.reference(summand.anchor))
                _check_placement(f"objective.{key}", summand)
        if self.policy_loss is None and not self.terms and not self.regularizers:
            raise ValueError("objective has no policy_loss, no terms and no regularizers: there is nothing to learn")
        return self

    def summands(self) -> list[tuple[str, Term | Regularizer]]:
        """Terms and regularizers with the key each stands under."""
        terms = [(f"terms.{i}", t) for i, t in enumerate(self.terms)]
        return [*terms, *((f"regularizers.{i}", r) for i, r in enumerate(self.regularizers))]

    def anchor_models(self) -> list[str]:
        """Anchors that are models of their own, as far as it can be told without building the objective."""
        used = {s.anchor for _, s in self.summands() if s.entry not in UNANCHORED}
        if self.advantage.name == "f_dpg":
            used.add(str(self.advantage.params.get("anchor", "frozen")))
        if self.likelihood is not None:
            used |= {self.likelihood.scorer} - {"learner"}
        return sorted(a for a in used if self.reference(a).name not in ("old_policy", "cached"))

    def reference(self, anchor: str) -> Component:
        """What kind of reference an anchor's name stands for."""
        return self.references.get(anchor, Component(name=anchor))


def _check_summand(key: str, summand: Term | Regularizer, anchors: Sequence[str]) -> None:
    if isinstance(summand.coef, Component):
        known_name(f"{key}.coef", summand.coef.name, SCHEDULES)
        if summand.coef.name == "adaptive_kl" and isinstance(summand, Term):
            raise ValueError(f"{key}.coef: adaptive_kl follows a divergence, which a term does not measure")
        if summand.coef.name == "dads" and (
            summand.source != "on_policy" or (isinstance(summand, Regularizer) and summand.placement == "reward")
        ):
            raise ValueError(f"{key}.coef: dads weighs on-policy samples in the loss by their advantages")
    for selector in summand.where:
        known_name(f"{key}.where", selector.name, SELECTORS)
    if summand.anchor not in anchors:
        raise ValueError(
            f"{key}.anchor: unknown anchor {summand.anchor!r}{nearest(summand.anchor, anchors)} "
            f"(known: {', '.join(anchors)})"
        )
    if summand.anchor == "cached" and summand.source != "rehearsal":
        raise ValueError(f"{key}.anchor: cached log-probs come with source: rehearsal, not with {summand.source}")


def _check_form(key: str, r: Regularizer, anchor: Component) -> None:
    if r.form in ("generator", "full") and r.divergence not in F_DIVERGENCES:
        raise ValueError(f"{key}.form: {r.form} is of an f-divergence ({', '.join(F_DIVERGENCES)})")
    on_anchor_samples = r.form == "generator" or (r.form is None and r.source == "rehearsal")
    if r.form == "generator" and r.source != "rehearsal":
        raise ValueError(f"{key}.form: generator is an expectation over samples of the anchor: set source: rehearsal")
    if r.source == "rehearsal" and not on_anchor_samples and r.form != "full":
        raise ValueError(f"{key}.form: sampled is an expectation over samples of the policy; source: rehearsal is not")
    stored = anchor.name == "cached" or (anchor.name == "frozen" and anchor.params.get("path") is None)
    if r.divergence in F_DIVERGENCES and on_anchor_samples and not stored:
        raise ValueError(
            f"{key}.anchor: {r.anchor} did not sample what is rehearsed, the policy at the start of the run did, and "
            "form: generator is an expectation over samples of the anchor: set anchor: cached"
        )
    if on_anchor_samples and r.params.get("is_weight", "none") != "none":
        raise ValueError(
            f"{key}.is_weight: it is about samples of an older policy, and form: generator takes those of the anchor: "
            "leave it out"
        )
    if r.form == "full" and anchor.name in ("cached", "old_policy"):
        raise ValueError(f"{key}.form: full needs the anchor's whole distribution, and {r.anchor} is log-probs alone")


def _check_placement(key: str, r: Regularizer) -> None:
    if r.placement == "loss":
        return
    if r.divergence in ("k2", "k3", "k3_st"):
        raise ValueError(f"{key}.divergence: {r.divergence} has the gradient of no KL in the reward: take k1")
    if r.source != "on_policy" or r.form == "full":
        raise ValueError(f"{key}.placement: reward is for on-policy samples, in form: sampled")
    ignored: dict[str, Any] = {"where": [s.name for s in r.where] or None, "aggregation": r.aggregation}
    if r.divergence in DIVERGENCES and r.params.get("is_weight") != "none":
        ignored["is_weight"] = r.params.get("is_weight")
    for name, value in ignored.items():
        if value is not None:
            raise ValueError(
                f"{key}.{name}: {value} would do nothing with placement: reward, where each token's divergence is taken "
                f"from its reward: leave {name} out, or set placement: loss"
            )
