"""Responses cut before their answer, the sequences that are scored, and what the scores become."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rlpost.config import ConfigError, Likelihood
from rlpost.data import DataError, make_tokenizer
from rlpost.learner.batch import Batch
from rlpost.run.likelihood import LikelihoodReward
from rlpost.types import Group, Prompt, Rollout, Sample

MARKER, CLOSE = "<answer>", "</answer>"


def bpe():
    """A small byte-level BPE tokenizer, with tokens that reach over the marker's borders: ".<" and ">("."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    corpus = ["So it is 12.<answer>(12)</answer>", "wait é, so <answer>7</answer>", "the answer is... <answer>3"] * 50
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", clean_up_tokenization_spaces=False)


BPE = bpe()
BYTES = make_tokenizer("bytes")
LETTERS = make_tokenizer("0123456789+-*/()= <answer>")
TOKENIZERS = [BPE, BYTES, LETTERS]
EACH = pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=["bpe", "bytes", "letters"])


def encode(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def decode(tokenizer, ids):
    return tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def rollout(tokenizer, text, *, group=0, sample=0, reward=0.0, finish="stop", prompt="1+1=", ids=None):
    ids = np.array(encode(tokenizer, text) if ids is None else ids, np.int32)
    return Rollout(
        prompt_id=f"p{group}",
        group=group,
        sample=sample,
        prompt_ids=np.array(encode(tokenizer, prompt), np.int32),
        response_ids=ids,
        logprobs=np.zeros(len(ids), np.float32),
        versions=np.zeros(len(ids), np.int32),
        finish_reason=finish,
        text=decode(tokenizer, ids),
        seed=0,
        reward=reward,
    )


def make_group(tokenizer, texts, *, reference="2", number=0, step=1, prompt="1+1=", rewards=None):
    ids = np.array(encode(tokenizer, prompt), np.int32)
    rewards = rewards or [0.0] * len(texts)
    return Group(
        number,
        step,
        Prompt(f"p{number}", prompt, ids, reference=reference),
        tuple(
            rollout(tokenizer, text, group=number, sample=i, reward=reward, prompt=prompt)
            for i, (text, reward) in enumerate(zip(texts, rewards, strict=True))
        ),
    )


def reward(tokenizer=BYTES, name="prob", **given):
    given = {"marker": MARKER, "close": CLOSE, **given}
    return LikelihoodReward(Likelihood(name=name, **given), tokenizer)


class Scorer:
    """Log-probs that depend on how long a sequence is: `each * (1 + tokens of the context)`; remembers what it saw."""

    def __init__(self, each=-0.001):
        self.each = each
        self.seen: list[Sample] = []

    def __call__(self, samples):
        self.seen += samples
        return [np.full(len(s.response_ids), self.each * (1 + len(s.prompt_ids)), np.float32) for s in samples]


# ------------------------------------------------------------------------------------------------------ the cut


def check_cut(tokenizer, ids, reference="(12)"):
    """Everything that must hold of a response's cut and of the sequence made of it."""
    made = reward(tokenizer)
    one = rollout(tokenizer, "", ids=ids)
    cut, text = made.cut(one), decode(tokenizer, ids)
    assert cut.found == (MARKER in text)
    mask = made.mask(one)
    assert mask.dtype == bool
    assert mask.tolist() == [True] * cut.kept + [False] * (len(ids) - cut.kept)
    if not cut.found:
        assert (cut.kept, cut.rest) == (len(ids), "")
        return cut
    before = text[: text.index(MARKER)]
    assert decode(tokenizer, ids[: cut.kept]) + cut.rest == before
    whole = [k for k in range(len(ids) + 1) if before.startswith(decode(tokenizer, ids[:k]))]
    assert cut.kept == max(whole)  # no further token ends before the marker

    group = Group(0, 1, Prompt("p0", "", one.prompt_ids, reference=reference), (one,))
    scorer = Scorer()
    made.apply([group], scorer)
    [sample] = scorer.seen
    context = sample.prompt_ids.tolist()
    start = [*one.prompt_ids.tolist(), *ids[: cut.kept]]
    assert context[: len(start)] == start
    assert len(context) + len(sample.response_ids) <= made.longest([group.prompt], len(ids))
    if "likelihood/rest_dropped" not in made.metrics():
        head, answer = context[len(one.prompt_ids) :], sample.response_ids.tolist()
        assert decode(tokenizer, head + answer) == before + MARKER + reference + CLOSE
        assert (before + MARKER).startswith(decode(tokenizer, head))
        assert not (before + MARKER).startswith(decode(tokenizer, [*head, answer[0]]))  # the answer begins here
    return cut


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=12), st.text(max_size=6))
@example("so.", "")
@example("é", "7</answer>")
@example("12.", "<answer>")
def test_the_cut_of_written_text_bpe_and_bytes(before, after):
    for tokenizer in (BPE, BYTES):
        check_cut(tokenizer, encode(tokenizer, before + MARKER + after))
        check_cut(tokenizer, encode(tokenizer, before))


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="0123456789+-*/()= <>", max_size=12))
def test_the_cut_of_written_text_by_characters(before):
    check_cut(LETTERS, encode(LETTERS, before + MARKER + "1"))
    check_cut(LETTERS, encode(LETTERS, before))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, len(BPE) - 1), max_size=10), st.lists(st.integers(0, len(BPE) - 1), max_size=3))
def test_the_cut_of_any_tokens_with_broken_characters_and_specials(before, after):
    check_cut(BPE, [*before, *encode(BPE, MARKER), *after])
    check_cut(BPE, [*before, *after])


def test_a_token_that_reaches_into_the_marker_is_written_anew():
    ids = encode(BPE, "So it is 12.<answer>(9)")
    tokens = BPE.convert_ids_to_tokens(ids)
    assert ".<" in tokens  # the case at hand
    cut = check_cut(BPE, ids)
    assert cut.rest == "."
    assert decode(BPE, ids[: cut.kept]) == "So it is 12"


def test_a_token_that_reaches_from_the_marker_into_the_answer_is_the_answers():
    made, scorer = reward(BPE), Scorer()
    assert ">(" in BPE.convert_ids_to_tokens(encode(BPE, MARKER + "(12)"))
    made.apply([make_group(BPE, ["so <answer>7"], reference="(12)")], scorer)
    assert decode(BPE, scorer.seen[0].prompt_ids).endswith("<answer")
    assert decode(BPE, scorer.seen[0].response_ids) == ">(12)" + CLOSE


def test_half_a_character_is_no_part_of_the_reasoning():
    pieces = [b"", b"a", b"\xc3", b"\xa9#", b"\xa9", b"#", b"1"]  # the second half of "é" comes with the marker

    class Pieces:
        eos_token_id, unk_token_id = 0, None

        def __call__(self, text, add_special_tokens=False):
            return {"input_ids": [pieces.index(bytes([b])) for b in text.encode()]}

        def decode(self, ids, **given):
            return b"".join(pieces[i] for i in ids).decode(errors="replace")

    made = LikelihoodReward(Likelihood(name="prob", marker="#"), Pieces())
    cut = made.cut(rollout(Pieces(), "", ids=[1, 2, 3, 6], prompt="a"))
    assert (cut.kept, cut.rest) == (1, "é")


def test_the_first_marker_counts():
    cut = reward().cut(rollout(BYTES, "a<answer>1</answer> b<answer>2"))
    assert (cut.kept, cut.rest, cut.closed) == (1, "", True)


def test_characters_that_would_make_the_sequence_too_long_are_left_out():
    # One token of four characters, the last of which is the marker, comes back as one token for each.
    names = ["<eos>", "a", "b", "c", "#", "1", "abc#"]

    class Splitting:
        eos_token_id, unk_token_id = 0, None

        def __call__(self, text, add_special_tokens=False):
            return {"input_ids": [names.index(c) for c in text]}

        def decode(self, ids, **given):
            return "".join(names[i] for i in ids if i)

    made = LikelihoodReward(Likelihood(name="prob", marker="#"), Splitting())
    one = rollout(Splitting(), "", ids=[names.index("abc#")], prompt="a")
    prompt = Prompt("p0", "", one.prompt_ids, reference="1")
    scorer = Scorer()
    made.apply([Group(0, 1, prompt, (one,))], scorer)
    assert made.cut(one).rest == "abc"
    assert scorer.seen[0].prompt_ids.tolist() == [names.index("a"), names.index("#")]
    assert made.metrics()["likelihood/rest_dropped"] == 1
    assert len(scorer.seen[0].prompt_ids) + len(scorer.seen[0].response_ids) <= made.longest([prompt], 1)


# --------------------------------------------------------------------------------------------- what is scored


@EACH
def test_the_context_is_prompt_reasoning_and_marker_and_the_answer_is_reference_and_close(tokenizer):
    made, scorer = reward(tokenizer), Scorer()
    made.apply([make_group(tokenizer, ["(1+1)<answer>3</answer>"])], scorer)
    [sample] = scorer.seen
    assert decode(tokenizer, sample.prompt_ids) == "1+1=(1+1)<answer>"
    assert decode(tokenizer, sample.response_ids) == "2</answer>"
    assert (sample.source, sample.group) == ("reference", 0)


@EACH
def test_without_a_close_the_end_of_sequence_ends_the_answer(tokenizer):
    made, scorer = reward(tokenizer, close=""), Scorer()
    made.apply([make_group(tokenizer, ["(1+1)<answer>3"], reference=[42, "two"])], scorer)
    assert scorer.seen[0].response_ids[-1] == tokenizer.eos_token_id
    assert decode(tokenizer, scorer.seen[0].response_ids) == "42"  # the first of several references


def test_the_answers_of_a_text_sum_to_1_because_they_end():
    # Over characters "0" and "1" and an end, with a policy that writes each with its probability at every place.
    chance = {"0": 0.3, "1": 0.2, "end": 0.5}
    tokenizer = make_tokenizer("01#")
    made = LikelihoodReward(Likelihood(name="prob", marker="#"), tokenizer)
    names = {encode(tokenizer, "0")[0]: "0", encode(tokenizer, "1")[0]: "1", tokenizer.eos_token_id: "end"}

    def score(samples):
        return [np.log([chance[names[int(t)]] for t in s.response_ids]) for s in samples]

    total = chance["end"]  # the empty answer
    for length in range(1, 9):
        for n in range(2**length):
            group = make_group(tokenizer, ["0#1"], reference=f"{n:0{length}b}", prompt="1")
            total += made.apply([group], score)[0].rewards[0]
    assert total == pytest.approx(1 - 0.5**9, abs=1e-9)


def test_a_response_without_the_marker_is_not_scored():
    made, scorer = reward(), Scorer()
    groups = made.apply([make_group(BYTES, ["no answer", "nor here"])], scorer)
    assert scorer.seen == []
    assert groups[0].rewards == [0, 0]
    assert made.samples(groups) == []


def test_the_base_is_the_answer_right_after_the_prompt_once_a_group():
    made, scorer = reward(name="avg_prob", params={"over_base": True}), Scorer(each=-0.01)
    groups = [make_group(BYTES, ["<answer>3", "12<answer>3", "none"]), make_group(BYTES, ["none"], number=1)]
    found = made.apply(groups, scorer)
    assert [decode(BYTES, s.prompt_ids) for s in scorer.seen] == ["1+1=<answer>", "1+1=12<answer>", "1+1=<answer>"]
    # This scorer likes short contexts, so reasoning adds nothing.
    assert found[0].rewards == [0, 0, 0]
    made, scorer = reward(name="avg_prob", params={"over_base": True}), Scorer(each=+0.01)
    rewards = made.apply(groups, scorer)[0].rewards
    assert rewards == pytest.approx([0, math.exp(0.15) - math.exp(0.13), 0], abs=1e-6)


# ----------------------------------------------------------------------------------------- rewards and samples


def probabilities(samples_or_scorer):
    return [math.exp(float(x.sum())) for x in samples_or_scorer]


def test_the_likelihood_counts_beside_the_verifiers_by_its_weight():
    made, scorer = reward(weight=0.5), Scorer()
    group = make_group(BYTES, ["1<answer>3", "none", "11<answer>"], rewards=[1.0, 0.25, 0.0])
    [found] = made.apply([group], scorer)
    p, q = probabilities(Scorer()(scorer.seen))
    assert p != q
    assert found.rewards == pytest.approx([1 + 0.5 * p, 0.25, 0.5 * q], abs=1e-6)
    assert [s.weight for s in made.samples([found])] == pytest.approx([0.5 * p, 0, 0.5 * q], abs=1e-6)
    assert group.rewards == [1, 0.25, 0]  # the groups given are left as they are


def test_an_unusable_rollout_stays_so_and_is_in_no_comparison():
    made, scorer = reward(name="nover"), Scorer()
    group = make_group(BYTES, ["1<answer>3</answer>", "22<answer>3</answer>", "3<answer>3</answer>"])
    lost = (group.rollouts[0], rollout(BYTES, "22<answer>3", sample=1, reward=None), group.rollouts[2])
    [found] = made.apply([Group(0, 1, group.prompt, lost)], scorer)
    assert found.rewards == [1, None, 1]  # equals share the worse rank: 0, and 1 for the form
    assert len(scorer.seen) == 2
    assert made.samples([found]) == []


def test_clip_bounds_the_reward_and_stands_for_a_missing_marker_and_leaves_the_weights():
    made, scorer = reward(name="logprob", clip=(-0.15, 0.0)), Scorer()
    group = make_group(BYTES, ["1<answer>3", "1" * 40 + "<answer>3", "none"])
    [found] = made.apply([group], scorer)
    logp = [float(x.sum()) for x in Scorer()(scorer.seen)]
    assert logp[1] < -0.15 < logp[0] < 0
    assert found.rewards == pytest.approx([logp[0], -0.15, -0.15], abs=1e-6)
    assert [s.weight for s in made.samples([found])] == [1, 1, 0]
    metrics = made.metrics()
    assert metrics["likelihood/clipped"] == pytest.approx(1 / 3)
    assert metrics["likelihood/found"] == pytest.approx(2 / 3)
    assert metrics["likelihood/answer_tokens"] == len("2</answer>")
    assert metrics["likelihood/logp"] == pytest.approx(sum(logp) / 20, abs=1e-6)
    assert metrics["likelihood/mean"] == pytest.approx((sum(logp) - 0.15) / 3, abs=1e-6)
    assert made.metrics() == {}


@pytest.mark.parametrize(
    ("kind", "weights"), [("one", [1, 1, 0]), ("zero", None), ("group", "softmax"), ("reward", "p"), (None, "p")]
)
def test_the_weight_of_the_answer_can_be_chosen(kind, weights):
    made, scorer = reward(answer_weight=kind), Scorer()
    found = made.apply([make_group(BYTES, ["1<answer>3", "1111<answer>3", "none"])], scorer)
    p = np.array(probabilities(Scorer()(scorer.seen)))
    expected = [*(3 * p / p.sum()), 0] if weights == "softmax" else [*p, 0] if weights == "p" else weights
    samples = made.samples(found)
    assert [s.weight for s in samples] == (pytest.approx(expected, abs=1e-6) if expected else [])


def test_samples_are_those_of_the_groups_that_were_kept_one_for_each_usable_rollout():
    made = reward()
    groups = made.apply([make_group(BYTES, ["1<answer>3", "none"], number=n) for n in (4, 5)], Scorer())
    groups += made.apply([make_group(BYTES, ["1<answer>3"], number=6)], Scorer())  # a refill of the same step
    samples = made.samples([groups[1], groups[2]])
    assert [(s.group, s.source, s.weight > 0) for s in samples] == [
        (5, "reference", True),
        (5, "reference", False),
        (6, "reference", True),
    ]
    assert decode(BYTES, samples[1].prompt_ids) == "1+1=<answer>"
    made.apply([make_group(BYTES, ["1<answer>3"], number=7, step=2)], Scorer())
    with pytest.raises(KeyError):
        made.samples([groups[1]])  # of a step that is over


def test_the_policy_loss_is_held_to_the_reasoning_of_on_policy_samples():
    made = reward()
    group = make_group(BYTES, ["12<answer>3", "none"])
    before = np.array([False] + [True] * (len(group.rollouts[0].response_ids) - 1))
    samples = [Sample.on_policy(r) for r in group.rollouts]
    samples[0] = Sample(**{**vars(samples[0]), "mask": before})
    stored = Sample.given(np.ones(1, np.int32), np.ones(2, np.int32), "rehearsal", 9)
    fresh = made.restricted([*samples, stored], [group])
    made.apply([group], Scorer())
    found = made.restricted([*samples, stored], [group])
    assert all(np.array_equal(a.mask, b.mask) for a, b in zip(fresh[:2], found[:2], strict=True))
    assert found[0].mask.tolist() == [False, True] + [False] * 9
    assert found[1].mask.tolist() == [True] * 4
    assert found[2] is stored


def test_a_reasoning_without_a_token_counts_as_one_and_a_sample_that_was_masked_before_does_not():
    made = reward()
    group = make_group(BYTES, ["<answer>3", "12<answer>3", "<answer>3"])
    samples = [Sample.on_policy(r) for r in group.rollouts]
    samples[2] = replace(samples[2], mask=np.zeros(len(samples[2].response_ids), bool))  # its routes are damaged
    made.apply([group], Scorer())
    found = made.restricted(samples, [group])
    assert [s.mask.sum() for s in found] == [0, 2, 0]
    assert [s.empty for s in found] == [True, False, False]
    counts = Batch.from_samples([*found[:2], *made.samples([group])[:2]]).counts()
    assert (counts["policy_loss"][0], counts["reference"][0]) == (2, 2)


@pytest.mark.parametrize("name", ["avg_prob", "nover"])
def test_rewards_that_are_published_so_credit_the_whole_response(name):
    assert reward(name=name).mask(rollout(BYTES, "12<answer>3")).all()


def test_an_answer_is_well_formed_when_it_is_closed_or_where_nothing_closes_it_when_it_ends():
    closed = reward()
    assert closed.cut(rollout(BYTES, "1<answer>2</answer>")).closed
    assert not closed.cut(rollout(BYTES, "1</answer><answer>2")).closed
    ends = reward(close="")
    assert ends.cut(rollout(BYTES, "1<answer>2")).closed
    assert not ends.cut(rollout(BYTES, "1<answer>2", finish="length")).closed
    assert not ends.cut(rollout(BYTES, "1")).closed


# ----------------------------------------------------------------------------------------------- filter and state


def test_the_filter_sees_the_rewards_with_the_likelihood_and_its_state_is_kept():
    made = reward(std_filter={"average_from": 1, "filter_from": 2})
    groups = made.apply(
        [make_group(BYTES, ["1<answer>3", "none"]), make_group(BYTES, ["none"] * 2, number=1)], Scorer()
    )
    assert made.keep(groups) == [True, True]
    again = reward(std_filter={"average_from": 1, "filter_from": 2})
    again.load_state_dict(made.state_dict())
    assert again.keep(groups) == made.keep(groups) == [True, False]
    assert made.metrics()["likelihood/filtered"] == 0.25  # of the four groups since the last call
    assert reward().keep(groups) == [True, True]
    with pytest.raises(ValueError, match="filtered"):
        reward().load_state_dict(made.state_dict())
    reward().load_state_dict(reward().state_dict())


# --------------------------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize("reference", [None, [], "", {"answer": 1}])
def test_a_prompt_without_a_reference_is_an_error_that_names_it(reference):
    group = make_group(BYTES, ["1<answer>3"], reference=reference)
    with pytest.raises(DataError, match="'p0'"):
        reward().apply([group], Scorer())
    with pytest.raises(DataError, match="'p0'"):
        reward().longest([group.prompt], 8)


def test_a_reference_that_the_tokenizer_cannot_write_is_an_error_that_names_the_prompt():
    with pytest.raises(DataError, match=r"'p0'.*'x'"):
        reward(LETTERS).apply([make_group(LETTERS, ["1<answer>3"], reference="x")], Scorer())


def test_longest_is_the_longest_prompt_with_its_answer_and_a_whole_response():
    made = reward(close="")
    prompts = [make_group(BYTES, [], reference=r, prompt=p).prompt for r, p in [("123", "1"), ("1", "1234")]]
    assert made.longest(prompts, 10) == 10 + 4 + len(MARKER) + 1 + 1
    assert made.longest([], 10) == 10


def test_a_tokenizer_that_puts_a_space_before_every_text_is_refused():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model = Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(["<unk>", "▁", "#"])}, merges=[], unk_token="<unk>"))
    model.pre_tokenizer, model.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    spacing = PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<unk>")
    with pytest.raises(ConfigError, match="marker"):
        reward(spacing, marker="#", close="")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "logprob"}, "clip"),
        ({"clip": (0, 0)}, "clip"),
        ({"name": "avg_logprob", "clip": (-9, 0), "answer_weight": "reward"}, "answer_weight"),
        ({"name": "jepo", "clip": (-9, 0), "weight": 0.5}, "weight"),
        ({"params": {"low": 1}}, "low"),
        ({"tokenizer": LETTERS, "marker": "####"}, "marker"),
        ({"tokenizer": BPE, "marker": "<eos>"}, "marker"),
        ({"tokenizer": LETTERS, "close": "end"}, "close"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_the_start(given, message):
    with pytest.raises(ConfigError, match=message):
        reward(**given)


def test_a_special_token_may_close_the_answer():
    made, scorer = reward(BPE, close="<eos>"), Scorer()
    made.apply([make_group(BPE, ["1<answer>3"])], scorer)
    assert scorer.seen[0].response_ids.tolist()[-1] == BPE.eos_token_id
    assert made.cut(rollout(BPE, "1<answer>3")).closed


def test_scores_that_are_not_finite_or_of_another_length_are_refused():
    group = make_group(BYTES, ["1<answer>3"])
    with pytest.raises(ValueError, match="finite"):
        reward().apply([group], lambda samples: [np.full(len(s.response_ids), -np.inf) for s in samples])
    with pytest.raises(ValueError, match="log-prob for each"):
        reward().apply([group], lambda samples: [np.zeros(1) for s in samples])


def test_a_reward_of_your_own_is_used_like_a_built_in_one_and_must_be_finite(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from rlpost.objective.likelihood import Likelihoods\n"
        "def scaled(batch, *, by: float):\n"
        "    return Likelihoods(by * batch.found.double(), batch.found.double())\n"
    )
    made = reward(name=f"{file}:scaled", params={"by": 3.0})
    assert made.apply([make_group(BYTES, ["1<answer>3", "none"])], Scorer())[0].rewards == [3, 0]
    with pytest.raises(ValueError, match="finite"):
        reward(name=f"{file}:scaled", params={"by": "inf"}).apply([make_group(BYTES, ["1<answer>3"])], Scorer())
