"""Transforms against closed forms and hand-built groups, with gaps and padding that must not matter."""

import math
from dataclasses import replace

import pytest
import torch

from rlpost import config
from rlpost.config import Component, ConfigError
from rlpost.objective.selector import covariance
from rlpost.objective.transform import TRANSFORMS
from rlpost.objective.types import CreditInputs, Reshaped

LN2 = math.log(2)
NAN = math.nan


def real(rows):
    return torch.tensor(rows, dtype=torch.float64)


def batch(mask, **given):
    mask = torch.as_tensor(mask, dtype=torch.bool)
    n = len(mask)
    defaults = {
        "rewards": torch.zeros(n, dtype=torch.float64),
        "group": torch.zeros(n, dtype=torch.int64),
        "correct": torch.zeros(n, dtype=torch.bool),
        "truncated": torch.zeros(n, dtype=torch.bool),
        "tokens": torch.zeros(mask.shape, dtype=torch.int64),
    }
    seed = given.pop("seed", 0)
    given = {k: v if isinstance(v, torch.Tensor) else torch.tensor(v) for k, v in given.items()}
    return CreditInputs(mask=mask, max_tokens=mask.shape[1], seed=seed, **{**defaults, **given})


def reshape(name, advantages, inputs, **params):
    """The transform's result, with (B,) advantages given to every token, and zeros outside the mask."""
    advantages = inputs.per_token(torch.as_tensor(advantages, dtype=torch.float64))
    found = TRANSFORMS.create(Component(name=name, **params))(advantages, inputs)
    found = found if isinstance(found, Reshaped) else Reshaped(found)
    assert all(isinstance(v, float) and k.startswith("transform/") for k, v in found.metrics.items())
    return Reshaped(inputs.per_token(found.advantages), found.keep, found.metrics)


def test_the_names_are_those_the_configuration_knows():
    assert TRANSFORMS.names() == sorted(config.TRANSFORMS)


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("overlong", ()),
        ("stcr", ()),
        ("conflict_mask", ()),
        ("entropy_filter", ("entropy",)),
        ("entropy_shaping", ("entropy",)),
        ("top_entropy", ("entropy",)),
        ("clip_cov", ("old_logp",)),
    ],
)
def test_what_a_transform_needs_is_declared_and_refused_when_missing(name, needs):
    assert TRANSFORMS.trait(name, "needs", ()) == needs
    for needed in needs:
        with pytest.raises(ValueError, match=needed):
            reshape(name, [1.0], batch([[1]]))


def test_a_batch_without_tokens_stays_finite_and_empty():
    nothing = real([[NAN, NAN]])
    inputs = batch([[0, 0]], entropy=nothing, old_logp=nothing)
    for name in TRANSFORMS.names():
        found = reshape(name, [1.0], inputs)
        assert found.advantages.tolist() == [[0.0, 0.0]]
        assert all(math.isfinite(v) for v in found.metrics.values())


# overlong


def test_overlong_takes_truncated_samples_out_of_the_denominators_and_leaves_the_advantages():
    inputs = batch([[1, 0, 1], [1, 1, 1], [1, 0, 0]], truncated=[False, True, False])
    found = reshape("overlong", [1.0, -2.0, 3.0], inputs)
    assert found.keep.int().tolist() == [[1, 0, 1], [0, 0, 0], [1, 0, 0]]
    assert found.advantages.tolist() == [[1, 0, 1], [-2, -2, -2], [3, 0, 0]]
    assert found.metrics == {"transform/overlong_share": pytest.approx(1 / 3)}


def test_the_soft_penalty_is_not_a_transform():
    with pytest.raises(ConfigError, match="parameter 'mode', value 'penalty'"):
        TRANSFORMS.create(Component(name="overlong", mode="penalty"))


# stcr


def lengths(*each, width=8):
    return [[int(t < n) for t in range(width)] for n in each]


def test_stcr_scales_wrong_samples_by_their_excess_over_the_correct_ones_of_their_group():
    # Group 0: correct lengths 2 and 4, mean 3; wrong ones of 3, 2 and 7 exceed it by 0, 0 and 4.
    # Group 1 has no correct sample; group 2 has none but correct ones.
    inputs = batch(
        lengths(2, 4, 3, 2, 7, 8, 1, 8, 1),
        group=[0, 0, 0, 0, 0, 1, 1, 2, 2],
        correct=[True, True, False, False, False, False, False, True, True],
    )
    advantages = [1.0, 1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0]
    found = reshape("stcr", advantages, inputs, base=1.5)
    factor = 2 - 1.5**-4
    expected = inputs.per_token(real([1.0, 1.0, -1.0, -1.0, -factor, -1.0, -1.0, -1.0, -1.0]))
    torch.testing.assert_close(found.advantages, expected, rtol=0, atol=1e-12)
    assert found.metrics["transform/stcr_max"] == pytest.approx(factor, abs=1e-12)
    assert found.metrics["transform/stcr_share"] == pytest.approx(7 / 36)


def test_stcr_at_its_default_base_adds_about_one_percent_for_a_thousand_tokens():
    mask = torch.zeros(2, 1001, dtype=torch.bool)
    mask[0], mask[1, 0] = True, True
    found = reshape("stcr", [-1.0, 1.0], batch(mask, correct=[False, True]))
    assert found.advantages[0].unique().tolist() == pytest.approx([-(2 - 1.00001**-1000)], abs=1e-12)
    assert found.metrics["transform/stcr_max"] == pytest.approx(1.00995, abs=5e-6)


def test_stcr_counts_only_unmasked_tokens_and_is_bounded_by_2():
    with_gap = [[1, 0, 0, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0]]
    assert reshape("stcr", [-1.0, 1.0], batch(with_gap, correct=[False, True])).metrics["transform/stcr_max"] == 1
    long = reshape("stcr", [-1.0, 1.0], batch(lengths(8, 1), correct=[False, True]), base=1e300)
    assert long.advantages[0].tolist() == [-2.0] * 8


def test_stcr_never_encourages_a_wrong_sample_more():
    inputs = batch(lengths(8, 1), correct=[False, True])
    assert reshape("stcr", [1.0, -1.0], inputs, base=2.0).advantages[0].tolist() == [1.0] * 8


# conflict_mask

# A group of 4, read from the left and, in brackets, from the right:
#   A +  5 6 1 2 7 8      5 6 shared with B from the start; 7 8 with C, D from the end, then 2 shared with D
#   B -  5 6 3            its end 3 stands nowhere else
#   C -  5 9 4 7 8        5, then 9 breaks the run
#   D -  2 7 8            2 at the start stands nowhere else there
TOKENS = [[5, 6, 1, 2, 7, 8], [5, 6, 3], [5, 9, 4, 7, 8], [2, 7, 8]]
SIGNS = [1.0, -1.0, -1.0, -1.0]
FACTORS = [[2, 2, 1, 2, 2, 2], [0, 0, 1], [0, 1, 1, 0, 0], [0, 0, 0]]


def responses(rows, width=7, gap=None):
    """Tokens and mask of (B, width); `gap` puts a masked token 99 at that place of every row."""
    tokens, mask = torch.zeros(len(rows), width, dtype=torch.int64), torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        places = [t for t in range(width) if t != gap][: len(row)]
        tokens[i, places] = torch.tensor(row)
        mask[i, places] = True
    if gap is not None:
        tokens[:, gap] = 99
    return tokens, mask


def rows(values, mask):
    return [v[m].tolist() for v, m in zip(values, mask, strict=True)]


@pytest.mark.parametrize("gap", [None, 0, 1, 2])
def test_conflicts_of_a_group_built_by_hand_with_and_without_masked_tokens_between(gap):
    tokens, mask = responses(TOKENS, gap=gap)
    found = reshape("conflict_mask", SIGNS, batch(mask, tokens=tokens))
    expected = [[a * f for f in row] for a, row in zip(SIGNS, FACTORS, strict=True)]
    assert rows(found.advantages, mask) == expected
    assert found.metrics["transform/conflict_share"] == pytest.approx(13 / 17)


def test_the_published_code_squares_a_token_of_both_runs_and_divides_by_the_number_of_conflicts():
    # The two samples are equal but in sign: every token is in both runs. The third is in no conflict.
    tokens, mask = responses([[1, 2], [1, 2], [3, 4, 5]])
    plain = reshape("conflict_mask", [1.0, -1.0, -0.5], batch(mask, tokens=tokens), amplify=3.0)
    assert rows(plain.advantages, mask) == [[3, 3], [0, 0], [-0.5] * 3]
    code = reshape("conflict_mask", [1.0, -1.0, -0.5], batch(mask, tokens=tokens), amplify=3.0, compat="code")
    assert rows(code.advantages, mask) == [[4.5, 4.5], [0, 0], [-0.5] * 3]
    # In the group of 4, A has 5 conflict tokens, none of them in both runs, and one token that is in none.
    tokens, mask = responses(TOKENS)
    code = reshape("conflict_mask", SIGNS, batch(mask, tokens=tokens), compat="code")
    assert rows(code.advantages, mask)[0] == pytest.approx([0.4, 0.4, 0.2, 0.4, 0.4, 0.4], abs=1e-15)
    assert rows(code.advantages, mask)[1] == [0, 0, -0.5]


def test_conflicts_do_not_depend_on_the_order_of_samples_or_the_names_of_groups():
    tokens, mask = responses([*TOKENS, *TOKENS])
    signs = torch.tensor([*SIGNS, *(-s for s in SIGNS)], dtype=torch.float64)
    group = torch.tensor([0] * 4 + [1] * 4)
    direct = reshape("conflict_mask", signs, batch(mask, tokens=tokens, group=group)).advantages
    order = torch.tensor([6, 1, 4, 0, 7, 3, 2, 5])
    shuffled = batch(mask[order], tokens=tokens[order], group=(17 - 40 * group)[order])
    assert torch.equal(reshape("conflict_mask", signs[order], shuffled).advantages, direct[order])


def test_conflicts_stay_within_their_group():
    tokens, mask = responses([[1, 2], [1, 2]])
    found = reshape("conflict_mask", [1.0, -1.0], batch(mask, tokens=tokens, group=[0, 1]))
    assert rows(found.advantages, mask) == [[1, 1], [-1, -1]]
    assert found.metrics["transform/conflict_share"] == 0


@pytest.mark.parametrize("same", [0.0, 1.0, -1.0])
def test_a_group_of_equal_rewards_has_no_conflict(same):
    tokens, mask = responses([[1, 2], [1, 2]])
    found = reshape("conflict_mask", [same, same], batch(mask, tokens=tokens))
    assert rows(found.advantages, mask) == [[same] * 2] * 2
    assert found.metrics["transform/conflict_share"] == 0


def test_a_sample_without_credit_neither_makes_nor_breaks_a_conflict():
    tokens, mask = responses([[1, 2], [3, 2], [3, 4]])
    found = reshape("conflict_mask", [1.0, 0.0, -1.0], batch(mask, tokens=tokens))
    assert rows(found.advantages, mask) == [[1, 1], [0, 0], [-1, -1]]


def by_definition(tokens, mask, advantages, group, amplify):
    """lambda A as GTPO defines it, token by token."""
    result = advantages.clone()
    kept = [[t for t in range(mask.shape[1]) if mask[i, t]] for i in range(len(mask))]
    for i, places in enumerate(kept):
        conflict = set()
        for step in (1, -1):
            for k, t in enumerate(places[::step]):
                there = [
                    advantages[j, kept[j][::step][k]].item()
                    for j in range(len(mask))
                    if group[j] == group[i] and k < len(kept[j]) and tokens[j, kept[j][::step][k]] == tokens[i, t]
                ]
                if advantages[i, t] == 0 or not (any(a > 0 for a in there) and any(a < 0 for a in there)):
                    break
                conflict.add(t)
        for t in conflict:
            result[i, t] *= amplify if advantages[i, t] > 0 else 0.0
    return result


def test_conflicts_are_those_of_the_definition_on_random_batches():
    generator = torch.Generator().manual_seed(0)
    with_conflicts = 0
    for _ in range(40):
        tokens = torch.randint(0, 2, (9, 6), generator=generator)
        mask = torch.rand(9, 6, generator=generator) < 0.8
        group = torch.randint(0, 2, (9,), generator=generator)
        advantages = torch.randint(-1, 2, (9,), generator=generator).double()[:, None] * mask
        found = reshape("conflict_mask", advantages, batch(mask, tokens=tokens, group=group), amplify=1.3)
        expected = by_definition(tokens, mask, advantages, group, 1.3)
        torch.testing.assert_close(found.advantages, expected, rtol=0, atol=1e-12)
        share = (expected != advantages).sum() / mask.sum()
        assert found.metrics["transform/conflict_share"] == pytest.approx(float(share), abs=1e-6)
        with_conflicts += bool(share > 0)
    assert with_conflicts > 20  # a group whose samples all have one sign has none


def test_the_chain_of_gtpo_is_its_formula():
    """lambda_it delta_i (A_i - gamma <H>_i), lambda from A_i even where the entropy turned its sign, or delta_i = 0."""
    tokens, mask = responses([[1, 2, 3], [1, 5, 6], [1, 2, 9]])
    entropy = torch.where(mask, 0.5, NAN).double()
    entropy[2] = torch.where(mask[2], 0.75, NAN)
    inputs = batch(mask, tokens=tokens, entropy=entropy, rewards=real([1.0, 0.9, 0.0]))
    advantages = inputs.rewards - inputs.rewards.mean()
    chain = ["entropy_shaping", "entropy_filter", "conflict_mask"]
    for name in chain:
        params = {"entropy_shaping": {"gamma": 1.0}, "conflict_mask": {"sign": "return"}}.get(name, {})
        advantages = reshape(name, advantages, inputs, **params).advantages
    mean = 1.9 / 3
    first, second = 1 - mean - 0.5, 0.9 - mean - 0.5
    assert first < 0
    assert second < 0
    assert rows(advantages, mask)[0] == pytest.approx([2 * first, 2 * first, first], abs=1e-12)
    assert rows(advantages, mask)[1] == pytest.approx([2 * second, second, second], abs=1e-12)
    assert rows(advantages, mask)[2] == [0, 0, 0]


# entropy_filter, entropy_shaping


def test_samples_are_filtered_above_ln_2_and_not_at_it():
    entropy = real([[LN2, LN2, NAN], [LN2, LN2 + 1e-9, NAN], [2 * LN2, 77.0, 0.0], [NAN, NAN, NAN]])
    inputs = batch([[1, 1, 0], [1, 1, 0], [1, 0, 1], [0, 0, 0]], entropy=entropy)
    found = reshape("entropy_filter", [1.0, 2.0, -3.0, 4.0], inputs)
    assert found.advantages.tolist() == [[1, 1, 0], [0, 0, 0], [-3, 0, -3], [0, 0, 0]]
    assert found.keep is None  # filtered samples stay in the denominators
    assert found.metrics == {"transform/entropy_filtered": 0.25}


@pytest.mark.parametrize(("initial", "filtered"), [(None, 1.0), (0.0, 1.0), (LN2, 1.0), (LN2 + 1e-9, 0.0), (3.0, 0.0)])
def test_a_policy_that_began_above_the_threshold_is_not_filtered(initial, filtered):
    found = reshape("entropy_filter", [1.0], batch([[1]], entropy=real([[0.9]])), initial_entropy=initial)
    assert found.metrics["transform/entropy_filtered"] == filtered
    assert found.advantages.item() == 1 - filtered


def test_shaping_takes_gamma_times_the_mean_entropy_of_the_sample():
    inputs = batch([[1, 0, 1], [1, 1, 1], [0, 0, 0]], entropy=real([[1.0, NAN, 2.0], [0.0, 0.3, 0.6], [NAN] * 3]))
    found = reshape("entropy_shaping", [1.0, -1.0, 5.0], inputs).advantages
    expected = real([[0.85, 0.0, 0.85], [-1.03] * 3, [0.0] * 3])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert torch.equal(reshape("entropy_shaping", [1.0, -1.0, 5.0], inputs, gamma=0).advantages[0], real([1, 0, 1]))


# top_entropy


def test_only_the_tokens_of_highest_entropy_learn():
    entropy = real([[0.1, 0.9, 99.0, 0.4], [0.8, 0.2, 0.3, NAN]])
    inputs = batch([[1, 1, 0, 1], [1, 1, 1, 0]], entropy=entropy)
    zeroed = reshape("top_entropy", [1.0, -1.0], inputs, share=0.5)
    assert zeroed.advantages.tolist() == [[0, 1, 0, 1], [-1, 0, 0, 0]]
    assert zeroed.keep is None
    assert zeroed.metrics == {"transform/top_entropy_threshold": 0.4}
    dropped = reshape("top_entropy", [1.0, -1.0], inputs, share=0.5, drop=True)
    assert dropped.keep.int().tolist() == [[0, 1, 0, 1], [1, 0, 0, 0]]
    assert dropped.advantages.tolist() == [[1, 1, 0, 1], [-1, -1, -1, 0]]


def test_the_threshold_is_the_quantile_of_the_batch():
    generator = torch.Generator().manual_seed(5)
    entropy = torch.rand(10, 100, generator=generator, dtype=torch.float64)
    found = reshape("top_entropy", torch.ones(10), batch(torch.ones(10, 100), entropy=entropy))
    assert torch.equal(found.advantages == 1, entropy > entropy.quantile(0.8))
    assert found.advantages.sum() == 200


# clip_cov


def covariant(seed=0):
    """200 x 50 tokens with a gap in every row, and advantages that go with the log-probs here and there."""
    generator = torch.Generator().manual_seed(11)
    old = -3 * torch.rand(200, 50, generator=generator, dtype=torch.float64)
    mask = torch.ones(200, 50)
    mask[:, 7] = 0
    advantages = 2 * torch.randn(200, generator=generator, dtype=torch.float64)
    return advantages, batch(mask, old_logp=old.masked_fill(mask == 0, NAN), seed=seed)


def test_clip_cov_draws_its_share_of_all_tokens_from_those_between_the_bounds():
    advantages, inputs = covariant()
    before = inputs.per_token(advantages)
    values = covariance(before, inputs)
    between = inputs.mask & (values >= 1) & (values <= 5)
    found = reshape("clip_cov", advantages, inputs, share=0.01)
    changed = found.advantages != before
    assert int(changed.sum()) == 98  # 1 % of 9800 unmasked tokens
    assert (found.advantages[changed] == 0).all()
    assert between[changed].all()
    assert found.keep is None
    assert found.metrics["transform/clip_cov_share"] == pytest.approx(0.01)
    assert found.metrics["transform/clip_cov_candidates"] == pytest.approx(float(between.sum() / 9800))
    # Drawn, not the largest or the first: their mean covariance is near that of all candidates.
    pool, drawn = values[between], values[changed]
    z = float((drawn.mean() - pool.mean()) / (pool.std() / 98**0.5))
    assert abs(z) < 4
    assert not torch.equal(changed.flatten().nonzero()[:98], between.flatten().nonzero()[:98])


def test_clip_cov_is_a_function_of_the_seed():
    def clipped(seed):
        advantages, inputs = covariant(seed)
        return reshape("clip_cov", advantages, inputs, share=0.01).advantages

    torch.rand(3)  # the global generator has no part in it
    assert torch.equal(clipped(1), clipped(1))
    assert not torch.equal(clipped(1), clipped(2))


def test_clip_cov_takes_all_that_qualify_when_they_are_fewer_than_the_share_and_at_least_one():
    advantages, inputs = covariant()
    values = covariance(inputs.per_token(advantages), inputs)
    few = values[inputs.mask].sort().values[-3]
    found = reshape("clip_cov", advantages, inputs, share=0.01, low=float(few), high=1e9)
    assert torch.equal(found.advantages != inputs.per_token(advantages), inputs.mask & (values >= few))
    one = reshape("clip_cov", advantages, inputs, share=1e-9)
    assert int((one.advantages != inputs.per_token(advantages)).sum()) == 1
    none = reshape("clip_cov", advantages, inputs, low=1e6, high=1e9)
    assert torch.equal(none.advantages, inputs.per_token(advantages))


def test_clip_cov_without_a_signal_changes_nothing():
    _, inputs = covariant()
    assert reshape("clip_cov", torch.full((200,), 2.0), inputs).advantages.unique().tolist() == [0.0, 2.0]  # 0: masked
    assert reshape("clip_cov", torch.full((200,), 2.0), inputs).metrics["transform/clip_cov_share"] == 0


def test_bounds_the_wrong_way_round_are_refused():
    advantages, inputs = covariant()
    with pytest.raises(ConfigError, match=r"low 5\.0 is not below high 1\.0"):
        reshape("clip_cov", advantages, inputs, low=5.0, high=1.0)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("stcr", {"base": 1.0}),
        ("conflict_mask", {"amplify": -1}),
        ("conflict_mask", {"compat": "paper"}),
        ("entropy_filter", {"threshold": 0}),
        ("entropy_shaping", {"gamma": -0.1}),
        ("top_entropy", {"share": 0}),
        ("clip_cov", {"share": 2}),
    ],
)
def test_values_that_make_no_sense_are_refused_by_name(name, params):
    with pytest.raises(ConfigError, match=f"advantage transform '{name}': parameter '{next(iter(params))}'"):
        TRANSFORMS.create(Component(name=name, **params))


def test_what_stands_outside_the_mask_does_not_matter():
    generator = torch.Generator().manual_seed(2)
    mask = torch.rand(6, 9, generator=generator) < 0.7
    given = {
        "tokens": torch.randint(0, 3, (6, 9), generator=generator).masked_fill(~mask, 0),
        "group": torch.tensor([0, 0, 0, 1, 1, 1]),
        "correct": torch.tensor([True, False, True, False, False, True]),
        "old_logp": torch.randn(6, 9, generator=generator, dtype=torch.float64),
        "entropy": torch.rand(6, 9, generator=generator, dtype=torch.float64),
    }
    inputs = batch(mask, **given)
    spoiled = replace(
        inputs,
        tokens=inputs.tokens.masked_fill(~mask, 7),
        old_logp=inputs.old_logp.masked_fill(~mask, NAN),
        entropy=inputs.entropy.masked_fill(~mask, NAN),
    )
    advantages = torch.randn(6, generator=generator, dtype=torch.float64)
    params = {"top_entropy": {"share": 0.5}, "clip_cov": {"share": 0.5, "low": 0.1}}
    for name in TRANSFORMS.names():
        clean = reshape(name, advantages, inputs, **params.get(name, {}))
        dirty = reshape(name, advantages, spoiled, **params.get(name, {}))
        assert torch.equal(clean.advantages, dirty.advantages), name
        assert clean.metrics == dirty.metrics, name
