from __future__ import annotations

import random

import pytest
import reasoning_gym

from rewards import countdown, exact, format, reasoning_gym_task, template

# ---------------------------------------------------------------------------------------------------------- countdown


def countdown_rows(n):
    return list(reasoning_gym.create_dataset("countdown", size=n, seed=7, min_numbers=3, max_numbers=4))


def random_expression(rng, numbers):
    if len(numbers) == 1:
        return rng.choice(["{}", "{}", "({})", "-{}"]).format(numbers[0])
    cut = rng.randrange(1, len(numbers))
    left, right = random_expression(rng, numbers[:cut]), random_expression(rng, numbers[cut:])
    return rng.choice(["{}+{}", "({} - {})", "{} * {}", "({})/({})"]).format(left, right)


def test_countdown_agrees_with_reasoning_gyms_own_scorer():
    rng = random.Random(0)
    theirs = reasoning_gym.get_score_answer_fn("countdown")
    seen = {True: 0, False: 0}
    for row in countdown_rows(60):
        numbers = row["metadata"]["numbers"]
        answers = [row["answer"], f"({row['answer']})", f"{row['answer']} + 0", row["answer"] + "+1", "1 2", "(1", ""]
        for _ in range(4):
            some = rng.sample(numbers, rng.choice([len(numbers), len(numbers), len(numbers) - 1]))
            answers.append(random_expression(rng, some))
        for answer in answers:
            right = theirs(answer=answer, entry=row) == 1.0
            assert (countdown.verify(answer, entry=row)["score"] == 1.0) == right, (answer, row["metadata"])
            seen[right] += 1
    assert min(seen.values()) > 50


@pytest.mark.parametrize("answer", ["(1+2)*3", " 3*(2+1) ", "<answer>3 * (1 + 2)</answer>", "-(-1-2)*3"])
def test_countdown_accepts_any_expression_of_the_numbers_that_makes_the_target(answer):
    assert countdown.verify(answer, numbers=[1, 2, 3], target=9)["score"] == 1.0


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "no_answer"),
        ("<answer></answer>", "no_answer"),
        ("1+2+3", "wrong_value"),
        ("3*3", "wrong_numbers"),
        ("3*(1+2)+3-3", "wrong_numbers"),
        ("9", "wrong_numbers"),
        ("1/(3-2-1)", "division_by_zero"),
        ("3**2*1", "not_arithmetic"),
        ("3*3//1", "not_arithmetic"),
        ("3*(1+2) = 9", "not_arithmetic"),
        ("the answer is 3*(1+2)", "not_arithmetic"),
        ("3(1+2)", "not_arithmetic"),
        ("3*(1+2", "not_arithmetic"),
        ("3*(01+2)", "not_arithmetic"),
        ("3*(1+2)\n", ""),
        ("3*(1\n+2)", "not_arithmetic"),
        ("(" * 140 + "3*(1+2)" + ")" * 140, ""),
        ("-" * 298 + "1", "wrong_numbers"),
        ("1+" * 500, "too_long"),
        ("__import__('os')", "not_arithmetic"),
        ("3*(1+٢)", "not_arithmetic"),
    ],
)
def test_countdown_says_why_an_expression_is_wrong(answer, reason):
    assert countdown.verify(answer, numbers=[1, 2, 3], target=9)["reason"] == reason


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("<think>hm</think>3*(1+2)", ""),
        ("<think>3+4</think><answer>3*(1+2)</answer>", ""),
        ("<|begin_of_thought|>hm<|end_of_thought|><|begin_of_solution|>3*(1+2)<|end_of_solution|>", ""),
        ("<think><answer>3*(1+2)</answer></think>I give up.", "not_arithmetic"),
        ("<think><answer>3*(1+2)</answer> wait", "no_answer"),
        ("<answer>3*(1+2)</answer></think>", "no_answer"),
        ("<answer>1+2</answer> or <answer>3*(1+2)", "no_answer"),
        ("<answer>" * 100_000, "no_answer"),
    ],
)
def test_countdown_does_not_pay_for_what_was_only_thought(response, reason):
    assert countdown.verify(response, numbers=[1, 2, 3], target=9)["reason"] == reason


def test_countdown_is_exact():
    assert countdown.verify("1/3*3", numbers=[1, 3, 3], target=1)["score"] == 1.0
    assert countdown.verify("10000000/3", numbers=[10000000, 3], target=3333333)["reason"] == "wrong_value"


def test_countdown_without_a_task_is_unverified():
    assert countdown.verify("1+2")["score"] is None


# -------------------------------------------------------------------------------------------------------------- exact


@pytest.mark.parametrize(
    ("response", "reference", "params", "score"),
    [
        ("7", "7", {}, 1.0),
        (" 7\n", 7, {}, 1.0),
        ("7 ", "7", {"strip": False}, 0.0),
        ("Paris", "paris", {}, 0.0),
        ("Paris", "paris", {"casefold": True}, 1.0),
        ("x=1, x=2", "2", {"extract": r"x=(\d)"}, 1.0),
        ("x=1, x=2", "x=2", {"extract": r"x=\d"}, 1.0),
        ("nothing", "2", {"extract": r"x=(\d)"}, 0.0),
    ],
)
def test_exact_compares_text(response, reference, params, score):
    assert exact.verify(response, reference, **params)["score"] == score


def test_exact_without_a_reference_is_unverified():
    assert exact.verify("7", None)["score"] is None


# ------------------------------------------------------------------------------------------------------------- format


def test_format_matches_the_whole_response_or_a_part():
    pattern = r"<think>.*</think>\s*<answer>.*</answer>"
    response = "<think>a\nb</think>\n<answer>c</answer>"
    assert format.verify(response, pattern)["score"] == 1.0
    assert format.verify(f"{response} more", pattern) == {"score": 0.0, "reason": "no_match"}
    assert format.verify(f"{response} more", pattern, full=False)["score"] == 1.0


# ------------------------------------------------------------------------------------------------------ reasoning_gym


@pytest.mark.parametrize("task", ["chain_sum", "leg_counting", "gcd", "countdown"])
def test_reasoning_gym_accepts_its_own_answers_and_no_others(task):
    for entry in reasoning_gym.create_dataset(task, size=3, seed=1):
        for response in (entry["answer"], f"thinking <answer> {entry['answer']} </answer>"):
            assert reasoning_gym_task.verify(response, task, entry)["score"] == 1.0
        assert reasoning_gym_task.verify("no idea", task, entry)["score"] < 1.0


def test_reasoning_gym_can_take_the_response_as_it_is():
    entry = reasoning_gym.create_dataset("chain_sum", size=1, seed=1)[0]
    tagged = f"thinking <answer>{entry['answer']}</answer>"
    assert reasoning_gym_task.verify(tagged, "chain_sum", entry, answer_tag=False)["score"] < 1.0


def test_a_reasoning_gym_scorer_that_the_response_breaks_is_wrong_but_a_broken_row_is_an_error():
    entry = reasoning_gym.create_dataset("prime_factorization", size=1, seed=1)[0]
    result = reasoning_gym_task.verify("two times three", "prime_factorization", entry)
    assert (result["score"], result["reason"]) == (0.0, "scorer_failed")
    with pytest.raises(KeyError):
        reasoning_gym_task.verify("two times three", "prime_factorization", {})


# ----------------------------------------------------------------------------------------------------------- template


@pytest.mark.parametrize(
    ("response", "reference", "score"), [("so 4", 4, 1.0), ("so 5", "4", 0.0), ("", 4, 0.0), ("so 4", "four", None)]
)
def test_the_template_is_a_working_verifier(response, reference, score):
    assert template.verify(response, reference)["score"] == score
