"""Rewards that need a forward pass: how likely the learner finds the reference answer after a sampled reasoning.

A response is cut before the marker that begins its answer. What stands there is the reasoning z; in place of the
model's own answer comes the reference, and its tokens are scored. `LikelihoodReward` makes the sequences to score, and
rewards and samples out of the scores; what the rewards are is in `rlpost.objective.likelihood`.

The scores are the learner's, with the weights at hand and the sampling temperature: the engine's may be older, and its
numerics are others. Log-probs of the answer given z are a function of the policy, so each step scores anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rlpost import config
from rlpost.config import Component, ConfigError
from rlpost.data.errors import DataError
from rlpost.data.tokenizer import unknown_characters
from rlpost.meter import Meter
from rlpost.objective.likelihood import LIKELIHOODS, LikelihoodInputs, StdFilter, group_weights
from rlpost.types import Group, Prompt, Rollout, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Score = Callable[[Sequence[Sample]], list[np.ndarray]]


@dataclass(frozen=True)
class Cut:
    """Where a response is cut.

    Attributes:
        found: whether the marker is in it.
        kept: how many of its tokens end before the marker: z. All of them when it was not found.
        rest: the characters between those tokens and the marker, of a token that reaches into it.
        closed: whether the answer that begins at the marker also ends.
    """

    found: bool
    kept: int
    rest: str
    closed: bool


@dataclass(frozen=True)
class Answer:
    """The reference answer after a reasoning.

    Attributes:
        kept: tokens of the response before the marker, as of `Cut`.
        context: int32, prompt, z, and the marker.
        tokens: int32, the reference answer and what closes it.
        weight: of its own likelihood.
    """

    kept: int
    context: np.ndarray
    tokens: np.ndarray
    weight: float = 0.0

    def sample(self, group: int) -> Sample:
        return Sample.given(self.context, self.tokens, "reference", group, weight=self.weight)


class LikelihoodReward:
    """Adds the likelihood of the reference answer to the rewards of a step's groups.

    The answer that is scored is the reference followed by `close`, or by the end-of-sequence token where `close` is
    empty: of "4" and "42", neither is then a part of the other, and the probabilities of all answers sum to 1.

    Args:
        settings: `objective.likelihood`.
        tokenizer: the run's.

    Raises:
        ConfigError: the named reward or a parameter is wrong, a logarithm has no lower bound, or the tokenizer cannot
            write the marker or the close.
    """

    def __init__(self, settings: config.Likelihood, tokenizer: PreTrainedTokenizerBase) -> None:
        self.settings = settings
        self.tokenizer = tokenizer
        self.std_filter = StdFilter(**settings.std_filter.model_dump()) if settings.std_filter else None
        name = settings.name
        self._entry = LIKELIHOODS.create(Component(name=name, **settings.params))
        needs_base = LIKELIHOODS.trait(name, "needs_base", False)
        self._needs_base = bool(needs_base(settings.params) if callable(needs_base) else needs_base)
        self._credit = settings.credit or LIKELIHOODS.trait(name, "credit", "reasoning")
        _check(settings)
        self._end = self._check_tokenizer()
        self._closing = self._decode(self._encode(settings.close))  # empty as well where a special token closes
        self._step: int | None = None
        self._answers: dict[tuple[int, int], Answer] = {}
        self._meter = Meter()

    # --------------------------------------------------------------------------------------------------- the cut

    def cut(self, rollout: Rollout) -> Cut:
        """Where the reasoning of a response ends: before the first marker in its text."""
        ids = rollout.response_ids.tolist()
        text = self._decode(ids)
        at = text.find(self.settings.marker)
        if at < 0:
            return Cut(found=False, kept=len(ids), rest="", closed=False)
        kept = self._whole_tokens(ids, text, at)
        answer = text[at + len(self.settings.marker) :]
        closed = self._closing in answer if self._closing else rollout.finish_reason == "stop"
        return Cut(found=True, kept=kept, rest=text[len(self._decode(ids[:kept])) : at], closed=closed)

    def mask(self, rollout: Rollout) -> np.ndarray:
        """bool (R,): the tokens of the response that the reward credits.

        Those of z, for a reward that depends on z alone; a response without the marker is z as a whole. All tokens, for
        the rewards that are published so (`avg_prob`, `nover`).
        """
        if self._credit == "response":
            return np.ones(len(rollout.response_ids), bool)
        known = self._answers.get((rollout.group, rollout.sample))  # a cut takes some milliseconds
        kept = known.kept if known is not None else self.cut(rollout).kept
        return np.arange(len(rollout.response_ids)) < kept

    def restricted(self, samples: Sequence[Sample], groups: Sequence[Group]) -> list[Sample]:
        """These samples, the on-policy ones held to the tokens that the reward credits.

        An empty reasoning stays in the mean over samples, or the halves of the gradient would be out of proportion: its
        answer is in that over the answers.

        Args:
            groups: where the on-policy samples come from.
        """
        rollouts = {(r.group, r.sample): r for g in groups for r in g.rollouts}
        found = []
        for sample in samples:
            if sample.source == "on_policy":
                mask = self.mask(rollouts[sample.group, sample.number])
                before = np.ones_like(mask) if sample.mask is None else sample.mask
                sample = replace(sample, mask=before & mask, empty=bool(before.any() and not mask.any()))
            found.append(sample)
        return found

    # -------------------------------------------------------------------------------------------------- rewards

    def apply(self, groups: Sequence[Group], score: Score) -> list[Group]:
        """These groups with `weight * clip(likelihood)` added to the reward of every usable rollout.

        All samples of a group are compared, so a group comes whole and once; the groups of a step may come in several
        calls.

        Args:
            score: log-probs of the response tokens of each sample, by the learner or what scores in its place.

        Raises:
            DataError: a prompt has no reference answer, or one that the tokenizer cannot write.
            ValueError: a score or a reward is not finite.
        """
        if groups and groups[0].step != self._step:
            self._step = groups[0].step
            self._answers.clear()
        cases = [(g, r) for g in groups for r in g.rollouts if r.usable]
        if not cases:
            return list(groups)
        plain = {g.id: self._answer(g.prompt) for g in groups}
        cuts = [self.cut(r) for _, r in cases]
        answers = [self._after(g.prompt, r, cut, plain[g.id]) for (g, r), cut in zip(cases, cuts, strict=True)]
        batch = self._inputs(cases, cuts, answers, plain, score)
        rewards, weights = self._rewards(batch)
        for (_, r), answer, weight in zip(cases, answers, weights.tolist(), strict=True):
            self._answers[r.group, r.sample] = replace(answer, weight=weight)
        added = {(r.group, r.sample): reward for (_, r), reward in zip(cases, rewards.tolist(), strict=True)}

        def rewarded(r: Rollout) -> Rollout:
            if not r.usable or r.reward is None:
                return r
            return replace(r, reward=r.reward + self.settings.weight * added[r.group, r.sample])

        return [replace(g, rollouts=tuple(rewarded(r) for r in g.rollouts)) for g in groups]

    def samples(self, groups: Sequence[Group]) -> list[Sample]:
        """The reference answer after each usable rollout of these groups, which `apply` was given in this step.

        Its weight is the answer's, times `weight`. The answer of a response without the marker is among them, with
        weight 0 and right after the prompt: the mean over samples is one over as many. None when all weights are 0.
        """
        found = [(r.group, self._answers[r.group, r.sample]) for g in groups for r in g.rollouts if r.usable]
        if all(answer.weight == 0 for _, answer in found):
            return []
        return [answer.sample(group) for group, answer in found]

    def keep(self, groups: Sequence[Group]) -> list[bool]:
        """Which of these groups the filter leaves; call it once a step, with all groups that `apply` has rewarded."""
        if self.std_filter is None:
            return [True] * len(groups)
        stds = [float(np.std([x for x in g.rewards if x is not None] or [0.0])) for g in groups]
        keep: list[bool] = self.std_filter.keep(torch.tensor(stds, dtype=torch.float64)).tolist()
        self._meter.mean("likelihood/filtered", keep.count(False), len(keep))
        return keep

    def longest(self, prompts: Sequence[Prompt], response_limit: int) -> int:
        """No sequence that is scored or learned from, for these prompts, has more tokens than this.

        Args:
            response_limit: the longest response there can be.

        Raises:
            DataError: a prompt has no reference answer, or one that the tokenizer cannot write.
        """
        return response_limit + max((len(p.token_ids) + len(self._written(p)) for p in prompts), default=0)

    def metrics(self) -> dict[str, float]:
        """Of what happened since the last call, named `likelihood/...`:

        mean: of the reward, before its bounds and its weight. found: share of responses with the marker. clipped: share
        of rewards that a bound held. logp: mean log-prob of an answer token. answer_tokens: mean length of an answer.
        rest_dropped: responses of which characters before the marker were left out, see `_after`. filtered: share of
        groups that the filter left out.
        """
        values, self._meter = self._meter.values(), Meter()
        return values

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {"std_filter": self.std_filter.state_dict() if self.std_filter is not None else None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            ValueError: one of the two has a filter and the other none.
        """
        if (state["std_filter"] is None) != (self.std_filter is None):
            raise ValueError("the saved run and this one differ in whether groups are filtered by their spread")
        if self.std_filter is not None:
            self.std_filter.load_state_dict(state["std_filter"])

    # ------------------------------------------------------------------------------------------------- sequences

    def _reference(self, prompt: Prompt) -> str:
        """The reference answer as text; the first of several."""
        value = prompt.reference
        if isinstance(value, list | tuple):
            value = value[0] if value else None
        if not isinstance(value, str | Real) or not str(value):
            raise DataError(
                f"prompt {prompt.id!r}: the likelihood reward needs a reference answer, a text or a number, and there "
                f"is {prompt.reference!r}: name its column in data.train.reference"
            )
        return str(value)

    def _written(self, prompt: Prompt, rest: str = "") -> list[int]:
        """Tokens of `rest`, marker, reference and close."""
        reference = self._reference(prompt)
        text = rest + self.settings.marker + reference + self.settings.close
        ids = self._encode(text)
        if unknown := unknown_characters(text, ids, self.tokenizer):
            raise DataError(f"prompt {prompt.id!r}: the tokenizer has no token for {unknown}, reference {reference!r}")
        return ids + self._end

    def _answer(self, prompt: Prompt, rest: str = "") -> tuple[list[int], list[int]]:
        """Tokens of `rest` and marker; tokens of reference and close. One that spans the two is the answer's."""
        before = rest + self.settings.marker
        ids = self._written(prompt, rest)
        split = self._whole_tokens(ids, before + self._reference(prompt), len(before))
        return ids[:split], ids[split:]

    def _after(self, prompt: Prompt, rollout: Rollout, cut: Cut, plain: tuple[list[int], list[int]]) -> Answer:
        """The reference after the reasoning of a response.

        z stays as it was sampled; the characters of a token that reaches into the marker are tokenized anew, with all
        that follows. Where that takes more tokens than the response had, they are left out, so that `longest` holds.
        """
        z = rollout.response_ids[: cut.kept].tolist() if cut.found else []
        head, tokens = plain
        if cut.rest:
            with_rest = self._answer(prompt, cut.rest)
            if sum(map(len, with_rest)) + len(z) <= sum(map(len, plain)) + len(rollout.response_ids):
                head, tokens = with_rest
            else:
                self._meter.sum("likelihood/rest_dropped", 1)
        context = np.array([*rollout.prompt_ids.tolist(), *z, *head], np.int32)
        return Answer(cut.kept, context, np.array(tokens, np.int32))

    def _whole_tokens(self, ids: list[int], text: str, end: int) -> int:
        """How many of `ids`, whose text begins like `text`, end at or before its character `end`."""
        low, high = 0, len(ids)
        while low < high:
            middle = (low + high + 1) // 2
            if len(self._decode(ids[:middle])) <= end:
                low = middle
            else:
                high = middle - 1
        # A character of several tokens is whole only after the last of them.
        while not text.startswith(self._decode(ids[:low])):
            low -= 1
        return low

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _decode(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _check_tokenizer(self) -> list[int]:
        """What ends every answer beside the text of `close`: the end-of-sequence token, or nothing."""
        marker, close = self.settings.marker, self.settings.close
        # Twice, so that a space which the tokenizer puts before a text is seen in the middle.
        if self._decode(self._encode(marker) * 2) != marker * 2:
            raise ConfigError(
                f"objective.likelihood.marker {marker!r}: the tokenizer does not give it back as text, it reads "
                f"{self._decode(self._encode(marker) * 2)!r} twice: take characters it knows, and no special token"
            )
        if close:
            again = self.tokenizer.decode(
                self._encode(close) * 2, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
            if again != close * 2:
                raise ConfigError(f"objective.likelihood.close {close!r}: the tokenizer has no tokens for it")
            return []
        if self.tokenizer.eos_token_id is None:
            raise ConfigError(
                "objective.likelihood.close: nothing ends the answer, because the tokenizer has no eos token: set close"
            )
        return [self.tokenizer.eos_token_id]

    # --------------------------------------------------------------------------------------------------- scores

    def _inputs(
        self,
        cases: Sequence[tuple[Group, Rollout]],
        cuts: Sequence[Cut],
        answers: Sequence[Answer],
        plain: Mapping[int, tuple[list[int], list[int]]],
        score: Score,
    ) -> LikelihoodInputs:
        """What the entry gets, of one scoring pass for all answers that are scored."""
        found = [i for i, cut in enumerate(cuts) if cut.found]
        asked = [answers[i].sample(cases[i][1].group) for i in found]
        bases: dict[int, int] = {}
        if self._needs_base:
            for g, _ in (cases[i] for i in found):
                if g.id not in bases:
                    head, tokens = plain[g.id]
                    context = np.array([*g.prompt.token_ids.tolist(), *head], np.int32)
                    bases[g.id] = len(asked)
                    asked.append(Answer(0, context, np.array(tokens, np.int32)).sample(g.id))
        scores = score(asked) if asked else []
        if [len(s) for s in scores] != [len(s.response_ids) for s in asked]:
            raise ValueError("the scorer must return one log-prob for each response token of each sample")
        for sample, values in zip(asked, scores, strict=True):
            if not np.isfinite(values).all():
                raise ValueError(f"group {sample.group}: a log-prob of the reference answer is not finite")
        rows: list[np.ndarray] = [np.zeros(0)] * len(cases)
        for row, i in enumerate(found):
            rows[i] = scores[row]
        logp, mask = _padded(rows)
        base_logp, base_mask = None, None
        if self._needs_base:
            empty: np.ndarray = np.zeros(0)
            base_logp, base_mask = _padded([scores[bases[g.id]] if g.id in bases else empty for g, _ in cases])
        return LikelihoodInputs(
            logp=logp,
            mask=mask,
            group=torch.tensor([r.group for _, r in cases], dtype=torch.int64),
            found=torch.tensor([cut.found for cut in cuts], dtype=torch.bool),
            reasoning_lengths=torch.tensor([cut.kept for cut in cuts], dtype=torch.int64),
            formatted=torch.tensor([cut.closed for cut in cuts], dtype=torch.bool),
            base_logp=base_logp,
            base_mask=base_mask,
            floor=self.settings.clip[0] if self.settings.clip is not None else None,
        )

    def _rewards(self, batch: LikelihoodInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """(B,) bounded rewards and (B,) weights of the answers, these times `weight`."""
        given = self._entry(batch)
        weights = given.answer_weights
        match self.settings.answer_weight:
            case "reward":
                weights = torch.where(batch.found, given.rewards, 0.0)
            case "one":
                weights = batch.found.double()
            case "zero":
                weights = torch.zeros_like(given.rewards)
            case "group":
                weights = group_weights(batch)
        for what, values in (("rewards", given.rewards), ("answer_weights", weights)):
            if values.shape != batch.found.shape or not values.isfinite().all():
                raise ValueError(
                    f"likelihood reward {self.settings.name!r}: {what} must be {len(batch.found)} finite numbers, got "
                    f"{values.tolist()}"
                )
        rewards = given.rewards.double()
        bounded = rewards.clamp(*self.settings.clip) if self.settings.clip is not None else rewards
        meter, count = self._meter, len(rewards)
        meter.mean("likelihood/mean", float(rewards.sum()), count)
        meter.mean("likelihood/found", int(batch.found.sum()), count)
        meter.mean("likelihood/answer_tokens", int(batch.mask.sum()), int(batch.found.sum()))
        meter.mean("likelihood/logp", float(batch.total.sum()), int(batch.mask.sum()))
        if self.settings.clip is not None:
            meter.mean("likelihood/clipped", int((bounded != rewards).sum()), count)
        return bounded, weights.double() * self.settings.weight


def _check(settings: config.Likelihood) -> None:
    """What can be said of the settings once the entry's traits are known."""
    name, clip = settings.name, settings.clip
    if clip is not None and not clip[0] < clip[1]:
        raise ConfigError(f"objective.likelihood.clip {clip}: the lower bound must be below the upper one")
    unbounded = LIKELIHOODS.trait(name, "unbounded", False)
    if unbounded and (clip is None or not np.isfinite(clip[0])):
        raise ConfigError(
            f"objective.likelihood.clip {clip}: {name} is a logarithm, and of a response without the marker that of 0: "
            "give bounds, such as [-20, 0]"
        )
    if unbounded and settings.answer_weight == "reward":
        raise ConfigError(
            f"objective.likelihood.answer_weight: reward: that of {name} is negative and would make the reference "
            "answer less likely; take one, zero or group"
        )
    if not LIKELIHOODS.trait(name, "linear", True) and settings.weight != 1:
        raise ConfigError(
            f"objective.likelihood.weight {settings.weight}: {name} goes through a log-mean-exp, where a factor is "
            "another objective; set it to 1"
        )


def _padded(rows: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of log-probs as (B, L) float64, zeros beyond their ends, and bool (B, L), where there are values."""
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max(initial=0)) < lengths[:, None]
    logp = np.zeros(mask.shape)
    logp[mask] = np.concatenate(rows)
    return torch.from_numpy(logp), torch.from_numpy(mask)
