from __future__ import annotations

import json
import os

import numpy as np
import pytest

from rewards.ensemble import LabelModel, fit, fit_from_rollouts, read, verify, write
from rlpost.observe.rollouts import write_rollouts
from rlpost.types import Prompt, Rollout, Verdict
from rlpost.verify.protocol import bind, to_verdict

NAMES = ("a", "b", "c", "d", "e")
TPR = np.array([0.90, 0.80, 0.70, 0.85, 0.65])
FPR = np.array([0.15, 0.30, 0.25, 0.10, 0.40])
ROWS = 5000
PROBLEMS = np.arange(ROWS) // 8


def votes(seed=0, balance=0.5, rows=ROWS, tpr=TPR, fpr=FPR):
    """Votes of verifiers that err independently of each other given the truth, and the truth."""
    rng = np.random.default_rng(seed)
    truth = rng.random(rows) < balance
    return (rng.random((rows, len(tpr))) < np.where(truth[:, None], tpr, fpr)).astype(float), truth


def continuous_scores(seed=0, balance=0.4):
    rng = np.random.default_rng(seed)
    truth = rng.random(ROWS) < balance
    shift, spread = [1.0, 0.8, 0.5, 0.6, 20.0], [0.8, 0.6, 0.7, 1.0, 12.0]
    return np.where(truth[:, None], shift, 0.0) + rng.normal(size=(ROWS, 5)) * spread, truth


def accuracy(posterior, truth):
    return float(((posterior > 0.5) == truth).mean())


def calibration_gaps(posterior, truth, fewest=100):
    bins = np.minimum((posterior * 10).astype(int), 9)
    return [
        abs(posterior[bins == b].mean() - truth[bins == b].mean()) for b in range(10) if (bins == b).sum() >= fewest
    ]


def rates(model):
    return np.array([model.tpr[name] for name in NAMES]), np.array([model.fpr[name] for name in NAMES])


# ---------------------------------------------------------------------------------------------------------- estimates


@pytest.mark.parametrize("given", [True, False], ids=["balance_given", "balance_estimated"])
@pytest.mark.parametrize("refine", [True, False], ids=["likelihood", "moments"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_recovers_true_and_false_positive_rates_within_003_without_labels(seed, refine, given):
    scores, _ = votes(seed)
    model = fit(scores, PROBLEMS, 0.5 if given else None, names=NAMES, refine=refine)
    tpr, fpr = rates(model)
    assert np.abs(tpr - TPR).max() < 0.03
    assert np.abs(fpr - FPR).max() < 0.03
    assert abs(model.class_balance - 0.5) < 0.03


@pytest.mark.parametrize("refine", [True, False], ids=["likelihood", "moments"])
@pytest.mark.parametrize("balance", [0.1, 0.3, 0.8])
def test_the_error_vanishes_as_rows_grow_at_any_balance(balance, refine):
    rows = 60_000
    scores, _ = votes(4, balance, rows)
    model = fit(scores, np.arange(rows), names=NAMES, refine=refine)
    tpr, fpr = rates(model)
    assert max(np.abs(tpr - TPR).max(), np.abs(fpr - FPR).max(), abs(model.class_balance - balance)) < 0.015


@pytest.mark.parametrize("balance", [0.1, 0.3, 0.5, 0.8])
def test_beats_majority_vote_and_every_single_verifier(balance):
    scores, truth = votes(5, balance)
    ours = accuracy(fit(scores, PROBLEMS).predict(scores), truth)
    assert ours > accuracy(scores.mean(axis=1), truth) + 0.005
    assert ours > max(accuracy(column, truth) for column in scores.T)


def test_is_close_to_the_best_that_knowing_the_true_rates_allows():
    scores, truth = votes(6, 0.4)
    odds = scores @ np.log(TPR / FPR) + (1 - scores) @ np.log((1 - TPR) / (1 - FPR)) + np.log(0.4 / 0.6)
    assert accuracy(fit(scores, PROBLEMS).predict(scores), truth) > accuracy(1 / (1 + np.exp(-odds)), truth) - 0.01


@pytest.mark.parametrize("balance", [0.2, 0.5])
def test_the_posterior_is_calibrated_on_other_responses(balance):
    model = fit(votes(7, balance)[0], PROBLEMS)
    scores, truth = votes(8, balance, 50_000)
    gaps = calibration_gaps(model.predict(scores), truth)
    assert len(gaps) >= 6
    assert max(gaps) < 0.08
    assert abs(model.predict(scores).mean() - truth.mean()) < 0.03


@pytest.mark.parametrize("settings", [{}, {"normalise": "quantile"}, {"winsorize": 0.05}], ids=str)
def test_continuous_scores_of_different_scale_combine_into_a_calibrated_posterior_better_than_votes(settings):
    scores, truth = continuous_scores()
    model = fit(scores, PROBLEMS, kind="continuous", **settings)
    posterior = model.predict(scores)
    assert abs(model.class_balance - 0.4) < 0.04
    assert max(calibration_gaps(posterior, truth)) < 0.1
    assert accuracy(posterior, truth) > accuracy(fit(scores, PROBLEMS, **settings).predict(scores), truth) + 0.02


def test_continuous_ranks_as_the_regression_on_the_scores_does():
    scores, truth = continuous_scores()
    ours = fit(scores, PROBLEMS, kind="continuous", max_weight=1000).predict(scores)
    centred = scores - scores.mean(axis=0)
    weights = np.linalg.solve(centred.T @ centred, centred.T @ (truth - truth.mean()))  # with the labels
    ranks = [np.argsort(np.argsort(x)) for x in (ours, centred @ weights)]
    assert np.corrcoef(ranks)[0, 1] > 0.99


def test_per_problem_normalisation_sees_through_problems_that_shift_all_scores():
    scores, truth = continuous_scores()
    shifted = scores + np.random.default_rng(0).normal(size=ROWS // 8)[PROBLEMS][:, None] * [4, 3, 3, 4, 60]
    right = {}
    for normalise in ("per_problem", "minmax"):
        posterior = fit(shifted, PROBLEMS, 0.4, kind="continuous", normalise=normalise, max_dependence=None).predict(
            shifted, PROBLEMS
        )
        groups = np.where(np.isnan(posterior), 0.4, posterior).reshape(-1, 8)
        mixed = truth.reshape(-1, 8).any(axis=1) & ~truth.reshape(-1, 8).all(axis=1)
        best = groups.argmax(axis=1)
        right[normalise] = truth.reshape(-1, 8)[np.arange(len(best)), best][mixed].mean()
    assert right["per_problem"] > right["minmax"] + 0.2
    with pytest.raises(ValueError, match="needs the problem of every row"):
        fit(scores, PROBLEMS, normalise="per_problem").predict(scores)


def test_a_balance_that_is_given_stays():
    assert fit(votes(5, 0.3)[0], PROBLEMS, 0.25).class_balance == 0.25


def test_a_vote_is_yes_from_the_threshold_on_and_by_rank_as_well_when_scores_are_yes_and_no():
    scores, _ = votes(5, 0.8)
    plain = fit(scores, PROBLEMS)
    assert fit(scores / 2, PROBLEMS, normalise="none", threshold=0.5).tpr == plain.tpr
    assert fit(scores, PROBLEMS, normalise="quantile").tpr == plain.tpr


def test_winsorize_cuts_off_outliers_but_not_a_rare_yes():
    for outlier in (1e6, -1e6):
        scores, _ = continuous_scores()
        scores[0] = outlier
        with pytest.raises(ValueError, match="at least 3 are needed"):
            fit(scores, PROBLEMS)
        assert len(fit(scores, PROBLEMS, winsorize=0.01).kept) == 5
    rare, _ = votes(5, 0.1, tpr=TPR, fpr=FPR / 100)
    rare[:, 0] = rare[:, 0] * (np.random.default_rng(0).random(ROWS) < 0.5)
    assert rare[:, 0].mean() < 0.05
    assert "0" in fit(rare, PROBLEMS, winsorize=0.05).kept


# ------------------------------------------------------------------------------------------ what must make no difference


@pytest.mark.parametrize("kind", ["binary", "continuous"])
def test_the_order_of_verifiers_and_of_responses_makes_no_difference(kind):
    scores, _ = votes(9, 0.3)
    scores[np.random.default_rng(0).random(scores.shape) < 0.1] = np.nan
    scores = np.column_stack([scores, scores[:, 0], 1 - scores[:, 1]])
    names = [*NAMES, "twin", "liar"]
    columns, rows = [4, 6, 2, 5, 0, 3, 1], np.random.default_rng(1).permutation(ROWS)
    one = fit(scores, PROBLEMS, names=names, kind=kind)
    other = fit(scores[rows][:, columns], PROBLEMS[rows], names=[names[j] for j in columns], kind=kind)
    assert set(other.kept) == set(one.kept)
    np.testing.assert_allclose(other.predict(scores[:, columns]), one.predict(scores), atol=1e-5)


def test_a_monotone_change_of_scale_makes_no_difference_to_ranks_and_a_linear_one_none_to_minmax():
    scores, _ = continuous_scores()
    for normalise, changed in (("quantile", np.exp(scores / 10)), ("minmax", 7 * scores - 3)):
        one, other = (fit(x, PROBLEMS, normalise=normalise).predict(x) for x in (scores, changed))
        np.testing.assert_allclose(one, other, atol=1e-6)


# ------------------------------------------------------------------------------------------------- which ones count


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (lambda v, y, rng: np.ones(ROWS), "always or nearly always"),
        (lambda v, y, rng: (np.arange(ROWS) > 8) * 1.0, "always or nearly always"),
        (lambda v, y, rng: np.full(ROWS, np.nan), "scored 0 responses"),
        (lambda v, y, rng: np.where(np.arange(ROWS) < 20, v[:, 0], np.nan), "scored 20 responses"),
        (lambda v, y, rng: (rng.random(ROWS) < 0.5) * 1.0, "with the truth"),
        (lambda v, y, rng: (rng.random(ROWS) < np.where(y, 0.2, 0.7)) * 1.0, "with the truth"),
        (lambda v, y, rng: v[:, 3], "depends on 'd'"),
        (lambda v, y, rng: np.where(rng.random(ROWS) < 0.1, 1 - v[:, 1], v[:, 1]), "depends on 'b'"),
    ],
    ids=["constant", "nearly_constant", "silent", "almost_silent", "chance", "worse_than_chance", "copy", "near_copy"],
)
def test_a_verifier_that_adds_nothing_is_dropped_and_changes_nothing(extra, reason):
    scores, truth = votes(10, 0.4)
    more = np.column_stack([scores, extra(scores, truth, np.random.default_rng(0))])
    alone, model = fit(scores, PROBLEMS, names=NAMES), fit(more, PROBLEMS, names=[*NAMES, "x"])
    assert model.kept == NAMES
    assert reason in model.dropped["x"]
    np.testing.assert_allclose(model.predict(more), alone.predict(scores), atol=1e-9)


def test_of_an_original_and_its_copy_the_anchor_stays_and_of_one_and_its_opposite_the_one_that_is_right():
    scores, _ = votes(10, 0.4)
    with_copy = np.column_stack([scores, scores[:, 3]])
    assert "d" in fit(with_copy, PROBLEMS, names=[*NAMES, "x"], anchor="x").dropped
    with_opposite = np.column_stack([scores, 1 - scores[:, 3]])
    for name in ("A", "x"):
        assert fit(with_opposite, PROBLEMS, names=[*NAMES, name]).kept == NAMES


def test_without_the_check_for_dependence_copies_of_one_verifier_count_several_times():
    scores, truth = votes(11)
    copies = np.column_stack([scores, scores[:, 4], scores[:, 4]])
    checked, unchecked = (fit(copies, PROBLEMS, max_dependence=bound) for bound in (0.5, None))
    assert len(checked.kept) == 5
    assert len(unchecked.kept) == 7
    assert accuracy(checked.predict(copies), truth) > accuracy(unchecked.predict(copies), truth)


def test_independent_verifiers_are_never_dropped():
    for seed in range(10):
        for balance in (0.1, 0.5, 0.8):
            assert fit(votes(seed, balance)[0], PROBLEMS).dropped == {}


def test_marginals_choose_by_the_share_of_yes_and_fall_back_to_all():
    tpr, fpr = np.array([0.5, 0.6, 0.55, 0.98, 0.95]), np.array([0.02, 0.05, 0.04, 0.6, 0.55])
    hard, easy, even = (votes(12, balance, 20_000, tpr, fpr)[0] for balance in (0.1, 0.9, 0.5))
    problems = np.arange(20_000)

    def kept(scores, marginals):
        return fit(scores, problems, names=NAMES, marginals=marginals).kept

    assert kept(hard, "large") == ("a", "b", "c")
    assert kept(hard, "adaptive") == ("a", "b", "c")
    assert kept(even, "adaptive") == kept(even, "all") == NAMES
    assert kept(hard, "small") == NAMES  # only two say yes to more than half
    assert kept(easy, "adaptive") == kept(easy, "small") == ("b", "d", "e")
    assert kept(easy, "none") == NAMES


def test_fewer_than_three_verifiers_that_can_be_used_are_an_error_that_says_why():
    scores, _ = votes()
    scores[:, 2:] = 1.0
    with pytest.raises(
        ValueError, match=r"2 verifiers can be used and at least 3 are needed.*c: always or nearly always says the same"
    ):
        fit(scores, PROBLEMS, names=NAMES)
    noise = (np.random.default_rng(0).random((ROWS, 4)) < 0.5) * 1.0
    with pytest.raises(ValueError, match="their agreement says nothing"):
        fit(noise, PROBLEMS, min_correlation=0.3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_balance": 1.0}, "class_balance: 1.0 is not between"),
        ({"names": ["a"] * 5}, "names: 1 different names for 5"),
        ({"names": NAMES, "anchor": "z"}, "anchor: 'z' is none of"),
        ({"problem_ids": [1, 2]}, "problem_ids: 2 for 5000 rows"),
        ({"scores": np.full((ROWS, 5), np.inf)}, "infinite"),
        ({"scores": np.zeros(ROWS)}, "shape"),
        ({"scores": votes(rows=199)[0], "problem_ids": PROBLEMS[:199]}, "199 responses; at least 200"),
        ({"kind": "votes"}, "kind: unknown 'votes'"),
        ({"normalise": "z"}, "normalise: unknown 'z'"),
        ({"marginals": "z"}, "marginals: unknown 'z'"),
        ({"winsorize": 0.5}, "winsorize: 0.5 is not in"),
        ({"max_weight": 0}, "max_weight: 0 is not above"),
        ({"max_dependence": -1}, "max_dependence: -1 is not above"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit(**{"scores": votes()[0], "problem_ids": PROBLEMS} | arguments)


# ---------------------------------------------------------------------------------------------------- missing scores


def test_a_missing_score_is_no_vote_and_the_rates_are_still_recovered():
    scores, truth = votes(13)
    holes = scores.copy()
    holes[np.random.default_rng(0).random(scores.shape) < 0.3] = np.nan
    model = fit(holes, PROBLEMS, names=NAMES)
    tpr, fpr = rates(model)
    assert max(np.abs(tpr - TPR).max(), np.abs(fpr - FPR).max()) < 0.05
    posterior = model.predict(holes)
    assert (np.isnan(posterior) == np.isnan(holes).all(axis=1)).all()
    assert np.isnan(posterior).any()
    seen = ~np.isnan(posterior)
    assert max(calibration_gaps(posterior[seen], truth[seen])) < 0.1


def test_responses_that_nobody_scored_teach_nothing():
    scores, _ = votes(13, 0.3)
    more = np.vstack([scores, np.full((ROWS, 5), np.nan)])
    one, other = fit(scores, PROBLEMS), fit(more, np.arange(len(more)))
    np.testing.assert_allclose([other.class_balance, *other.high, *other.low], [one.class_balance, *one.high, *one.low])


def test_with_one_vote_the_posterior_is_bayes_rule_on_that_vote():
    model = fit(votes(14)[0], PROBLEMS, names=NAMES)
    p, tpr, fpr = model.class_balance, model.tpr["b"], model.fpr["b"]
    nothing = np.nan
    found = model.predict([[nothing, 1, nothing, nothing, nothing], [nothing, 0, nothing, nothing, nothing]])
    right, wrong = p * tpr / (p * tpr + (1 - p) * fpr), p * (1 - tpr) / (p * (1 - tpr) + (1 - p) * (1 - fpr))
    np.testing.assert_allclose(found, [right, wrong])


def test_two_verifiers_that_never_score_the_same_response_do_not_stop_the_rest():
    scores, _ = votes(15)
    more = np.column_stack([scores, votes(15, rows=ROWS)[0][:, 0]])
    more[: ROWS // 4 * 3, 0], more[ROWS // 4 * 3 :, 5] = np.nan, np.nan
    model = fit(more, PROBLEMS, names=[*NAMES, "x"])
    assert "fewer than 30 responses scored together" in model.dropped["a"]
    assert set(model.kept) == {"b", "c", "d", "e", "x"}


# ----------------------------------------------------------------------------------------------- limits to an attack


def test_no_verifier_moves_the_log_odds_by_more_than_max_weight():
    sure = np.array([0.99, 0.7, 0.7, 0.7, 0.7]), np.array([0.01, 0.3, 0.3, 0.3, 0.3])
    scores, _ = votes(16, 0.5, ROWS, *sure)
    free, capped = (fit(scores, PROBLEMS, names=NAMES, max_weight=weight) for weight in (100.0, 1.0))
    assert np.abs(free.log_odds(scores)[0]).max() > 3
    assert np.abs(capped.log_odds(scores)[0]).max() <= 1.0
    fooled = [[1, 0, 0, 0, 0]]  # a policy that has learned to please the strong one alone
    assert free.predict(fooled)[0] > 0.5 > capped.predict(fooled)[0]


def test_an_anchor_that_says_no_caps_the_posterior_and_one_that_is_silent_leaves_none():
    scores, _ = votes(17)
    model = fit(scores, PROBLEMS, names=NAMES, anchor="e", anchor_cap=0.05)
    free = fit(scores, PROBLEMS, names=NAMES)
    assert free.predict([[1, 1, 1, 1, 0]])[0] > 0.9
    assert model.predict([[1, 1, 1, 1, 0]])[0] == 0.05
    assert model.predict([[1, 1, 1, 1, 1]])[0] == free.predict([[1, 1, 1, 1, 1]])[0]
    assert model.predict([[0, 0, 0, 0, 0]])[0] == free.predict([[0, 0, 0, 0, 0]])[0]
    assert np.isnan(model.predict([[1, 1, 1, 1, np.nan]])[0])


def test_an_anchor_that_was_constant_when_fitted_still_caps():
    scores, _ = votes(18)
    scores[:, 4] = 1.0
    model = fit(scores, PROBLEMS, names=NAMES, anchor="e")
    assert "e" in model.dropped
    assert model.predict([[1, 1, 1, 1, 0]])[0] == model.settings.anchor_cap


def test_an_anchor_says_which_class_is_the_right_one_when_most_verifiers_are_worse_than_chance():
    scores, truth = votes(19)
    good = (np.random.default_rng(0).random((ROWS, 2)) < np.where(truth[:, None], 0.75, 0.2)).astype(float)
    scores = np.column_stack([1 - scores[:, [0, 1, 2, 4]], scores[:, 3], good])
    names = [*"abcedfg"]
    assert set(fit(scores, PROBLEMS, names=names).kept) == set("abce")
    model = fit(scores, PROBLEMS, names=names, anchor="d")
    assert set(model.kept) == set("dfg")
    assert abs(model.tpr["d"] - TPR[3]) < 0.05


# ------------------------------------------------------------------------------------------------- versions and files


def test_the_version_is_the_content_a_refit_on_other_rollouts_changes_it_and_on_the_same_does_not():
    one, same, other = (fit(votes(seed)[0], PROBLEMS) for seed in (20, 20, 21))
    assert one.version == same.version
    assert one.version != other.version
    assert fit(votes(20)[0], PROBLEMS, max_weight=3.0).version != one.version


@pytest.mark.parametrize(
    "settings",
    [{}, {"kind": "continuous", "normalise": "quantile"}, {"anchor": "a", "max_dependence": None, "winsorize": 0.1}],
    ids=str,
)
def test_a_state_and_a_file_hold_all_of_a_model(settings, tmp_path):
    scores = votes(22)[0] if settings.get("kind") != "continuous" else continuous_scores()[0]
    model = fit(np.column_stack([scores, np.ones(ROWS)]), PROBLEMS, names=[*NAMES, "x"], **settings)
    write(model, tmp_path / "m.json")
    for again in (LabelModel.load(json.loads(json.dumps(model.state_dict()))), read(tmp_path / "m.json")):
        assert again == model
        assert again.version == model.version
        more = np.column_stack([scores, np.ones(ROWS)])
        np.testing.assert_array_equal(again.predict(more), model.predict(more))
    assert [p.name for p in tmp_path.iterdir()] == ["m.json"]


def test_a_file_that_was_changed_or_is_something_else_is_refused(tmp_path):
    state = fit(votes()[0], PROBLEMS).state_dict()
    path = tmp_path / "m.json"
    for changed, message in (
        ({**state, "class_balance": 0.9}, "changed after it was fitted"),
        ({**state, "format": 99}, "format 99"),
        ({"format": 1, "version": "x"}, "not the state of a label model"),
    ):
        path.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=message):
            read(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"m\.json"):
        read(path)


# ------------------------------------------------------------------------------------------------------ as a verifier


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "m.json"
    write(fit(votes(23)[0], PROBLEMS, names=NAMES), path)
    return str(path)


def test_verify_gives_the_posterior_and_says_which_model_gave_it(model_file):
    model = read(model_file)
    given = {"a": 1.0, "b": 0.0, "c": None, "d": 1.0, "e": 0.0, "another": 0.5}
    result = verify(given, model_file, NAMES)
    assert result["score"] == model.predict([[1, 0, np.nan, 1, 0]])[0]
    assert result["reason"] == f"model {model.version}"
    assert result["details"]["unverified"] == ["c"]
    assert result["components"]["c"] == 0.0
    prior = np.log(model.class_balance / (1 - model.class_balance))
    assert 1 / (1 + np.exp(-prior - sum(result["components"].values()))) == pytest.approx(result["score"])
    assert verify(given, model_file, NAMES[::-1])["score"] == result["score"]


def test_verify_with_a_threshold_is_right_or_wrong(model_file):
    yes, no = dict.fromkeys(NAMES, 1.0), dict.fromkeys(NAMES, 0.0)
    assert to_verdict(verify(yes, model_file, NAMES, threshold=0.5)).status == "correct"
    assert to_verdict(verify(no, model_file, NAMES, threshold=0.5)).status == "wrong"
    assert to_verdict(verify(yes, model_file, NAMES)).status == "partial"


def test_verify_is_unverified_when_nobody_has_a_verdict_and_never_zero(model_file):
    verdict = to_verdict(verify(dict.fromkeys(NAMES), model_file, NAMES, threshold=0.5))
    assert (verdict.status, verdict.score, verdict.reason) == ("unverified", None, "no_votes")


def test_verify_takes_its_arguments_by_name_as_any_verifier(model_file):
    call = bind("ensemble", verify, {"of": list(NAMES), "model": model_file})
    sample = dict.fromkeys(("response", "reference", "prompt", "prompt_id", "finish_reason", "token_count"), "")
    result = call({**sample, "metadata": {"verdicts": dict.fromkeys(NAMES, 1.0)}})
    assert result["score"] > 0.9


def test_verify_scores_with_a_model_that_replaces_the_file_unless_a_version_is_asked_for(model_file):
    yes = dict.fromkeys(NAMES, 1.0)
    old = read(model_file).version
    assert verify(yes, model_file, NAMES, version=old)["details"]["model"] == old
    write(fit(votes(24)[0], PROBLEMS, names=NAMES), model_file)
    os.utime(model_file, ns=(1, 1))
    new = read(model_file).version
    assert verify(yes, model_file, NAMES)["details"]["model"] == new != old
    with pytest.raises(ValueError, match=f"is version {new}, not {old}"):
        verify(yes, model_file, NAMES, version=old)


def test_verify_raises_on_a_configuration_that_cannot_work(model_file, tmp_path):
    yes = dict.fromkeys(NAMES, 1.0)
    with pytest.raises(ValueError, match="was fitted on a, b, c, d, e"):
        verify(yes, model_file, NAMES[:4])
    with pytest.raises(ValueError, match="no verdict of e was given"):
        verify({name: 1.0 for name in NAMES[:4]}, model_file, NAMES)
    with pytest.raises(FileNotFoundError):
        verify(yes, str(tmp_path / "none.json"), NAMES)
    write(fit(continuous_scores()[0], PROBLEMS, names=NAMES, normalise="per_problem"), tmp_path / "p.json")
    with pytest.raises(ValueError, match="normalises each problem's scores"):
        verify(yes, str(tmp_path / "p.json"), NAMES)


# -------------------------------------------------------------------------------------------------- from recorded runs


def record(path, step, seed):
    scores, _ = votes(seed, 0.5, 400)
    prompts, rollouts = {}, []
    for number, row in enumerate(scores):
        prompt = Prompt(f"p{number // 8}", "?", np.zeros(1, np.int32))
        prompts[prompt.id] = prompt
        said = {name: Verdict("correct" if v else "wrong", v) for name, v in zip(NAMES, row.tolist(), strict=True)}
        if number % 5 == 0:
            said["c"] = Verdict("unverified", None, "exception")
        aborted = number == 7
        if aborted:
            said = {name: Verdict("unverified", None, "aborted") for name in NAMES}
        tokens = np.zeros(1, np.int32)
        rollout = Rollout(
            prompt_id=prompt.id, group=number // 8, sample=number % 8, prompt_ids=tokens, response_ids=tokens,
            logprobs=np.zeros(1, np.float32), versions=tokens, finish_reason="abort" if aborted else "stop",
            text="", seed=0,
        )  # fmt: skip
        rollouts.append(rollout.scored(said, dict.fromkeys(NAMES, 0.0)))
    nothing = [None] * len(rollouts)
    write_rollouts(path / f"step_{step:06d}.parquet", rollouts, prompts, nothing, [False] * len(rollouts), step)
    scores[::5, 2] = np.nan
    return np.delete(scores, 7, axis=0)


def test_fits_on_a_runs_rollouts_with_unverified_as_missing_and_aborted_left_out(tmp_path):
    recorded = [record(tmp_path, step, seed=30 + step) for step in range(4)]
    out = tmp_path / "m.json"
    pattern = str(tmp_path / "step_*.parquet")
    model = fit_from_rollouts(pattern, NAMES, out, class_balance=0.5)
    expected = fit(np.vstack(recorded), ["-"] * sum(map(len, recorded)), 0.5, names=NAMES)
    assert model == expected == read(out)
    assert fit_from_rollouts(pattern, NAMES, out, last=2, max_weight=2.0).rows == len(recorded[2]) + len(recorded[3])
    assert read(out).settings.max_weight == 2.0
    assert read(out).version != model.version


def test_rollouts_that_are_not_there_and_verifiers_that_never_scored_are_named(tmp_path):
    with pytest.raises(ValueError, match="no file matches"):
        fit_from_rollouts(str(tmp_path / "*.parquet"), NAMES, tmp_path / "m.json")
    record(tmp_path, 0, seed=1)
    with pytest.raises(ValueError, match=r"judge scored no rollout .*there: a, b, c, d, e"):
        fit_from_rollouts(str(tmp_path / "*.parquet"), [*NAMES, "judge"], tmp_path / "m.json")
