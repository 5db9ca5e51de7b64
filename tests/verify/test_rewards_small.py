from __future__ import annotations

import json
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import (
    _instructions_own,
    choice,
    exact,
    format,
    instructions,
    json_schema,
    language,
    length,
    overlong,
    regex,
    repetition,
)
from rewards._patterns import compiled

# ------------------------------------------------------------------------------------------------------------- length


def length_of(tokens, **parameters):
    return length.verify("42", tokens, **parameters)["score"]


def test_linear_length_is_one_up_to_short_and_nothing_from_long():
    assert [length_of(n, short=10, long=20) for n in (0, 10, 15, 20, 99)] == [1.0, 1.0, 0.5, 0.0, 0.0]


def test_cosine_length_scores_right_and_wrong_answers_each_on_their_own_wave():
    def score(response, n, **more):
        return length.verify(
            response, n, kind="cosine", long=100, verifier="exact", reference="42", prompt="", prompt_id="p", **more
        )

    assert [score("42", n)["score"] for n in (0, 50, 100, 500)] == pytest.approx([1.0, 0.75, 0.5, 0.5])
    assert [score("41", n)["score"] for n in (0, 50, 100)] == pytest.approx([-1.0, -0.75, -0.5])
    assert score("42", 25)["score"] == pytest.approx(0.5 + 0.5 * (1 + math.cos(math.pi / 4)) / 2)
    assert score("42", 100, exceeded=-1.0)["score"] == -1.0
    assert score("41", 5)["reason"] == "mismatch"
    assert score(" X42", 0, verifier_params={"extract": r"\d+"})["score"] == 1.0


def test_cosine_length_is_unverified_where_the_answer_is():
    verdict = length.verify("42", 3, kind="cosine", long=9, verifier="exact")
    assert (verdict["score"], verdict["reason"]) == (None, "bad_reference")


def test_a_budget_of_tokens_is_an_upper_bound_or_a_target():
    assert [length_of(n, kind="max", budget=1000, alpha=0.001) for n in (0, 1000, 1500, 9000)] == [1.0, 0.5, 0.0, 0.0]
    assert [length_of(n, kind="exact", budget=1000, alpha=0.001) for n in (0, 1000, 1500)] == [-1.0, 0.0, -0.5]


@pytest.mark.parametrize(
    ("parameters", "key"),
    [
        ({"kind": "square"}, "kind is 'square'"),
        ({}, "short < long"),
        ({"short": 5, "long": 5}, "short < long"),
        ({"kind": "cosine", "long": 5}, "needs a verifier"),
        ({"kind": "max"}, "needs a budget"),
    ],
)
def test_length_refuses_parameters_it_cannot_use(parameters, key):
    with pytest.raises(ValueError, match=key):
        length_of(3, **parameters)


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.integers(1, 5000))
def test_a_longer_response_never_scores_more_than_a_shorter_one(a, b, long):
    a, b = sorted((a, b))
    assert length_of(a, long=long) >= length_of(b, long=long)
    assert length_of(a, kind="max", budget=long) >= length_of(b, kind="max", budget=long)
    assert overlong_of(a, max_length=long, cache=long) >= overlong_of(b, max_length=long, cache=long)


# ----------------------------------------------------------------------------------------------------------- overlong


def overlong_of(tokens, finish_reason="stop", **parameters):
    return overlong.verify("42", tokens, finish_reason, **parameters)["score"]


def test_overlong_falls_through_the_cache_as_in_dapo():
    lengths = (0, 16384, 18432, 20480, 30000)
    assert [overlong_of(n, max_length=20480, cache=4096) for n in lengths] == [0.0, 0.0, -0.5, -1.0, -1.0]
    assert overlong_of(20480, max_length=20480, cache=4096, factor=0.5) == -0.5
    assert overlong_of(7, "length", max_length=20480, cache=4096, truncated=-2.0) == -2.0
    assert overlong_of(7, "stop", max_length=20480, cache=4096, truncated=-2.0) == 0.0


def test_overlong_scales_the_score_of_another_verifier_when_the_response_was_cut_off():
    def score(response, finish_reason, **more):
        return overlong.verify(response, 9, finish_reason, verifier="exact", reference="42", **more)

    assert score("42", "stop")["score"] == 1.0
    assert score("42", "length")["score"] == 0.0
    assert score("42", "length", coefficient=0.25) == {
        "score": 0.25, "reason": "truncated", "extracted": "42", "details": {},
    }  # fmt: skip
    assert score("41", "stop")["reason"] == "mismatch"
    assert overlong.verify("42", 9, "length", verifier="exact")["score"] is None


@pytest.mark.parametrize("parameters", [{}, {"max_length": 5, "cache": 6}, {"max_length": 5, "cache": 0}])
def test_overlong_refuses_a_cache_that_is_none(parameters):
    with pytest.raises(ValueError, match="0 < cache <= max_length"):
        overlong_of(3, **parameters)


# --------------------------------------------------------------------------------------------------------- repetition


def test_repetition_costs_its_share_of_n_grams():
    assert repetition.verify("a b c d e f", n=2)["score"] == 0.0
    assert repetition.verify("a b a b a", n=2)["score"] == -0.5  # ab, ba, ab, ba
    assert repetition.verify("a b a b a", n=2, penalty=-0.2)["score"] == pytest.approx(-0.1)
    assert repetition.verify("a b a b a", n=2, free=0.5)["score"] == 0.0
    assert repetition.verify("a", n=2)["score"] == 0.0


@pytest.mark.parametrize("loop", ["the same again and ", "wait, ", "好的", "a", "!", "\\frac{1}{2} = ", "abc"])
def test_a_loop_of_anything_costs_nearly_all(loop):
    assert repetition.verify(loop * 2000)["score"] < -0.95


@given(st.text(max_size=300), st.integers(1, 6))
def test_the_penalty_is_between_nothing_and_all_and_saying_it_twice_costs_more(text, n):
    once, twice = (repetition.verify(t, n=n)["score"] for t in (text, f"{text}\n{text}"))
    assert -1 <= once <= 0
    assert twice <= once + 1e-9


# ----------------------------------------------------------------------------------------------------------- language


@pytest.mark.parametrize(
    ("response", "code", "share"),
    [
        ("All of it is English, naïve or not.", "en", 1.0),
        ("So x + 1 = 2 哈哈", "en", 0.5),
        ("所以答案是 $x = \\frac{1}{2}$。", "zh", 1.0),
        ("Значит, x = 2.", "ru", 1.0),
        ("答えは 3 です", "ja", 1.0),
        ("정답은 3입니다", "ko", 1.0),
        ("abcd абвг", "ru", 0.5),
        ("3 + 4 = 7", "en", 1.0),
        ("ᚠᚢᚦᚨ", "en", 0.0),
    ],
)
def test_the_share_of_letters_in_the_languages_script(response, code, share):
    assert language.verify(response, language=code)["score"] == pytest.approx(share)


def test_the_language_may_be_that_of_the_prompt():
    assert language.verify("答案是三", prompt="这是什么？", language="prompt")["score"] == 1.0
    assert language.verify("The answer is three", prompt="这是什么？", language="prompt")["score"] == 0.0
    assert language.verify("漢字だけ", prompt="これは何ですか", language="prompt")["score"] == 1.0


def test_a_minimum_makes_the_share_a_yes_or_no():
    assert language.verify("almost all of it и", language="en", minimum=0.9)["score"] == 1.0
    assert language.verify("half иииии", language="en", minimum=0.9)["score"] == 0.0
    assert language.verify("  ")["reason"] == "no_answer"
    with pytest.raises(ValueError, match="language is 'xx'"):
        language.verify("a", language="xx")


# ------------------------------------------------------------------------------------------------------------- choice

OPTIONS = ["Vitamin A", "A triangle", "Vitamin C", "Both A and C"]


@pytest.mark.parametrize(
    "response",
    ["B", "(B)", "**B**", "b", r"\boxed{B}", r"\boxed{\text{(B)}}", "<answer>B.</answer>", "So the answer is (B).",
     "Answer: B", "The correct answer is option B) A triangle", "**Answer:** B", "I would rule out A and C.\nB",
     "<think>\\boxed{A}</think>The answer is B.", "The answer is A. No: the answer is B.", "Answer: A triangle"],
)  # fmt: skip
def test_choice_finds_the_letter_however_it_is_given(response):
    assert choice.verify(response, "B", options=OPTIONS)["score"] == 1.0


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("The answer is A", "mismatch"),
        ("The answer is A or B", "hedged"),
        ("The answer is B or C", "hedged"),
        (r"\boxed{B, C}", "hedged"),
        ("<answer>A/B/C/D</answer>", "hedged"),
        ("Answer: (A) and (B)", "hedged"),
        ("The answer is not B", "no_answer"),
        ("The answer is F", "no_answer"),
        ("B might be it, who knows", "no_answer"),
        (r"\boxed{B} and so \boxed{", "no_answer"),
        ("<answer>B", "no_answer"),
        ("<think>\\boxed{B}", "no_answer"),
        ("", "no_answer"),
    ],
)
def test_choice_refuses_what_is_not_one_answer(response, reason):
    verdict = choice.verify(response, "B", options=OPTIONS)
    assert (verdict["score"], verdict["reason"]) == (0.0, reason)


@pytest.mark.parametrize("reference", ["B", "b", "(B)", 1, "A triangle", ["B"]])
def test_the_right_choice_may_be_a_letter_a_number_or_a_text(reference):
    assert choice.verify("The answer is B", reference, options=OPTIONS)["score"] == 1.0
    assert choice.verify("The answer is C", reference, options=OPTIONS)["score"] == 0.0


def test_several_right_choices_must_all_be_named():
    for reference in ("AC", "A, C", ["C", "A"]):
        assert choice.verify("The answer is C and A", reference)["score"] == 1.0
        assert choice.verify("The answer is A", reference)["reason"] == "mismatch"
        assert choice.verify("The answer is A, B, C", reference)["score"] == 0.0


@pytest.mark.parametrize("reference", ["F", "", None, 4, -1, True, {}, "the first"])
def test_a_choice_that_is_not_there_is_the_references_fault(reference):
    assert choice.verify("B", reference, options=OPTIONS)["reason"] == "bad_reference"


# -------------------------------------------------------------------------------------------------------------- regex


def test_regex_matches_the_answer_whole_or_in_part():
    assert regex.verify("<think>7</think> 42 ", pattern=r"\d+")["score"] == 1.0
    assert regex.verify("it is 42", pattern=r"\d+")["reason"] == "mismatch"
    assert regex.verify("it is 42", pattern=r"\d+", full=False)["score"] == 1.0
    assert regex.verify("x=1, x=42", reference=r"4\d", extract=r"x=(\d+)")["score"] == 1.0
    assert regex.verify("nothing", pattern=r"\d", extract=r"x=(\d+)")["reason"] == "no_answer"
    assert regex.verify("YES", pattern="yes", flags=["ignorecase"])["score"] == 1.0
    assert regex.verify("a" * 11, pattern="a*", max_length=10)["reason"] == "too_long"
    assert regex.verify("", pattern=".*")["reason"] == "no_answer"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>x=7</think>I give up", None), ("<think>x=7", None), ("<thinking>x=7</thinking>x=8", "8"),
        ("x=7</think>x=8", "8"), ("<|begin_of_thought|>x=7<|end_of_thought|>x=8", "8"),
    ],
)  # fmt: skip
def test_what_was_only_thought_is_not_extracted(text, answer):
    for verify, parameters in ((exact.verify, {"reference": "8"}), (regex.verify, {"pattern": "8"})):
        verdict = verify(text, extract=r"x=(\d)", **parameters)
        assert (verdict["score"], verdict.get("extracted")) == (float(answer == "8"), answer)
    assert exact.verify("<think>8</think>\n8", "8")["score"] == 1.0
    assert exact.verify("<think>8", "8")["reason"] == "no_answer"


@pytest.mark.parametrize(
    ("pattern", "flags"),
    [
        (r"\d+", []), (r"\D+", []), (r"\w+", []), (r"\W+", []), (r"\s+", []), (r"\S+", []), (r"[\w.]+$", []), (r"[^\s,]+", []),
        (r"^a.b$", ["dotall"]), (r"^a$", ["multiline"]), ("STRASSE|ÉT", ["ignorecase"]), (r"\w+\d", ["ascii"]), (r"\bé", []),
        (r"[]a]+", []), (r"[^]a]+", []), (r"(?<=a)b", []), (r"(a)\1", []), (r"a{,2}", []), (r"\u00e9", []), ("\\\\", []), (r"[\]\[]", []),
        (r"a\Z", []), (r"\.", []), (r"(?i)é", []), ("a|", []), (r"\s", ["ascii"]), (r"[\S]", []), (r"\t", []),
    ],
)  # fmt: skip
@given(st.text(st.sampled_from("aAbB1٣é É_.\n\t\x0b\x1c\u2003\\[]ß,-中"), max_size=12))
def test_an_expression_means_what_it_means_in_python(pattern, flags, text):
    options = sum((regex.FLAGS[flag] for flag in flags), start=re.NOFLAG)
    ours, theirs = compiled(pattern, options), re.compile(pattern, options)
    assert (ours.search(text) is None) == (theirs.search(text) is None)
    assert (ours.fullmatch(text) is None) == (theirs.fullmatch(text) is None)
    text = text.rstrip("\n")
    assert [m[0] for m in ours.finditer(text) if m[0]] == [m[0] for m in theirs.finditer(text) if m[0]]


def test_expressions_take_linear_time_where_they_can():
    text = "a" * 100_000
    assert regex.verify(text, pattern="(a+)+b", max_length=len(text))["reason"] == "mismatch"
    assert regex.verify(text, pattern=".", extract="(a*)*b")["reason"] == "no_answer"
    assert exact.verify(text, "b", extract="(a|aa)+$")["reason"] == "mismatch"
    assert format.verify(text, "(.*)*b")["score"] == 0.0


def test_an_expression_that_is_none_is_the_configurations_or_the_references_fault():
    with pytest.raises(ValueError, match="pattern"):
        regex.verify("a", pattern="(")
    with pytest.raises(ValueError, match="flags"):
        regex.verify("a", pattern="a", flags=["x"])
    assert regex.verify("a", reference="(")["reason"] == "bad_reference"
    assert regex.verify("a")["reason"] == "bad_reference"


# -------------------------------------------------------------------------------------------------------- json_schema

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ('{"name": "Ada", "age": 36}', ""),
        ('<think>{}</think>Here:\n```json\n{"name": "Ada", "age": 36}\n```\nDone.', ""),
        ('<answer>{"name": "```", "age": 1}</answer>', ""),
        ('{"name": "Ada"}', "invalid"),
        ('{"name": "Ada", "age": -1}', "invalid"),
        ('{"name": "Ada", "age": true}', "invalid"),
        ('{"name": "Ada", "age": 1, "age": 2}', "not_json"),
        ('{"name": "Ada", "age": NaN}', "not_json"),
        ('{"name": "Ada", "age": 1} or so', "not_json"),
        ("{'name': 'Ada', 'age': 1}", "not_json"),
        ("", "no_answer"),
        ("<answer>{}", "no_answer"),
        ("[" * 200_000, "too_deep"),
        ('{"a":' * 500 + "1" + "}" * 500, "too_deep"),
        ('{"name": "[[[[", "age": ' + "9" * 5000 + "}", "not_json"),
        ('{"name": "Ada", "age": 1' + " " * 1_000_001 + "}", "too_long"),
    ],
)
def test_json_is_read_strictly_and_held_against_the_schema(response, reason):
    verdict = json_schema.verify(response, schema=SCHEMA)
    assert (verdict["score"], verdict.get("reason", "")) == (float(not reason), reason)


def test_the_reference_may_be_the_schema_or_the_document():
    assert json_schema.verify("[1, 2]", reference='{"type": "array"}')["score"] == 1.0
    assert json_schema.verify("[1.0, 2]", reference=[1, 2], schema=True, compare=True)["score"] == 1.0
    assert json_schema.verify("[true, 2]", reference=[1, 2], schema=True, compare=True)["reason"] == "mismatch"


@pytest.mark.parametrize(
    "schema", [{"type": "nothing"}, "{", 3, {"$ref": "http://127.0.0.1:9/schema.json"}, {"$ref": "#/missing"}]
)
def test_a_schema_that_cannot_be_used_is_the_references_fault_and_none_is_fetched(schema):
    assert json_schema.verify("{}", reference=schema)["reason"] == "bad_reference"


@pytest.mark.parametrize(
    ("document", "divisor", "multiple"),
    [
        ("0.3", 0.1, True), ("1.1", 0.1, True), ("19.99", 0.01, True), ("4.35", 0.05, True), ("1e2", 0.1, True),
        ("0.35", 0.1, False), ("0.30001", 0.0001, False), ("7", 3.5, True), ("7", 2, False), ("-0.6", 0.2, True),
        ("9" * 400, 0.1, True), ("9" * 400, 0.7, False), ("1e400", 2, False), ("1e308", 1e-300, True), ("0", 0.1, True),
    ],
)  # fmt: skip
def test_multiples_are_of_the_numbers_as_written(document, divisor, multiple):
    assert json_schema.verify(document, schema={"type": "number", "multipleOf": divisor})["score"] == float(multiple)


@pytest.mark.parametrize(
    "response",
    [
        "```json\n[1]\n```\nResult:\n```\nJoe\n```",
        "```\nJoe\n```\n```JSON\n[1]\n```",
        "~~~json\n[1]\n~~~",
        "```json\n[1]```",
        "````json\n[1]\n````",
        "Here it is: ```json\n[1]\n```",
        "```json [1]```",
        "```[1]```",
        "[so] it is\n```json\n[1]\n```",
        "```python\n[2]\n```\n```\n[1]\n```",
        "<thinking>[2]</thinking>[1]",
        "<think>```json\n[2]\n```</think>\n```json\n[1]\n```<|im_end|>",
        "<answer>\n```json\n[1]\n```\n</answer>\n```json\n[2]\n```",
        '["```"]',
    ],
)
def test_the_document_is_the_block_marked_json(response):
    document = ["```"] if response == '["```"]' else [1]
    assert json_schema.verify(response, reference=document, schema=True, compare=True)["score"] == 1.0


def test_items_are_the_same_as_json_has_it_and_many_are_compared_at_once():
    assert json_schema.verify("[1, true, [1], {}]", schema={"uniqueItems": True})["score"] == 1.0
    assert json_schema.verify("[1, 1.0]", schema={"uniqueItems": True})["reason"] == "invalid"
    assert json_schema.verify('[{"a": 1, "b": 2}, {"b": 2, "a": 1}]', schema={"uniqueItems": True})["score"] == 0.0
    mixed = json.dumps([i if i % 2 else {"a": i} for i in range(40_000)])
    assert json_schema.verify(mixed, schema={"uniqueItems": True})["score"] == 1.0


def test_expressions_of_a_schema_take_linear_time():
    text = json.dumps("a" * 100_000)
    assert json_schema.verify(text, schema={"pattern": "^(a+)+$"})["score"] == 1.0
    assert json_schema.verify(text, schema={"pattern": "(a+)+b"})["reason"] == "invalid"
    rules = {"patternProperties": {"(a+)+b": False}}
    assert json_schema.verify(json.dumps({"a" * 100_000: 1}), schema=rules)["score"] == 1.0
    assert json_schema.verify('{"ab": 1}', schema=rules)["reason"] == "invalid"


# ------------------------------------------------------------------------------------------------------- instructions

FOLLOWED = [
    ("rlpost:words", {"count": 3}, "one two three", "one, two"),
    ("rlpost:words", {"count": 3, "relation": "less than"}, "one two", "one two three"),
    ("rlpost:sentences", {"count": 2, "relation": "exactly"}, "So, e.g. this. And that!", "Just this."),
    ("rlpost:sentences", {"count": 2, "relation": "exactly"}, "一。二。", "Pi is 3.14."),
    ("rlpost:paragraphs", {"count": 2}, "a\n\nb", "a\nb"),
    ("rlpost:paragraphs", {"count": 2, "separator": "***"}, "a\n***\nb", "a\n\nb"),
    ("rlpost:characters", {"count": 3, "relation": "at most"}, " abc ", "abcd"),
    ("rlpost:first_word", {"number": 2, "word": "then"}, "a\n\nThen b", "Then\n\na"),
    ("rlpost:keywords", {"keywords": ["red", "blue sky"]}, "Red, a blue sky", "reddish blue sky"),
    ("rlpost:forbidden_words", {"keywords": ["red"]}, "reddish", "It is red."),
    ("rlpost:keyword_frequency", {"keyword": "a", "count": 2, "relation": "exactly"}, "a b a", "a aa"),
    ("rlpost:letter_frequency", {"letter": "e", "count": 2, "relation": "at least"}, "Ee", "e"),
    ("rlpost:lowercase", {}, "all 3 small", "All small"),
    ("rlpost:uppercase", {}, "ALL 3", "ALl"),
    ("rlpost:capital_words", {"count": 1, "relation": "exactly"}, "I AM here", "I AM HERE"),
    ("rlpost:starts_with", {"text": "Well,"}, " well, yes", "Yes, well,"),
    ("rlpost:ends_with", {"text": "That is all."}, "So. That is all. ", "That is all. So."),
    ("rlpost:quotation", {}, '"so"', 'so "so"'),
    ("rlpost:no_comma", {}, "no such; thing", "a， b"),
    ("rlpost:forbidden_characters", {"characters": "!?"}, "calm.", "what?"),
    ("rlpost:bullets", {"count": 2}, "* a\n- b", "* a\n**b**\n---"),
    ("rlpost:numbered_list", {"count": 2}, "1. a\n2) b", "1. a\n2.5 b"),
    ("rlpost:highlights", {"count": 2}, "*a* and **b**", "*a* and ** **"),
    ("rlpost:sections", {"marker": "Part", "count": 2}, "Part 1\na\nPart 2\nb", "Part 1"),
    ("rlpost:title", {}, "<<A title>>\nText", "<< >>\n<A title>"),
    ("rlpost:json", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("rlpost:one_of", {"options": ["left", "right"]}, "Left", "left or right"),
    ("rlpost:postscript", {"marker": "P.S."}, "a\nP.S. b", "a P.S.\nP.S."),
    ("rlpost:placeholders", {"count": 2}, "[name], [street]", "[name] []"),
    ("rlpost:repeat_prompt", {"text": "Why?"}, "Why? So.", "Why?"),
    ("rlpost:two_responses", {}, "a\n******\nb", "a\n******\na"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "args", "followed", "broken"), FOLLOWED)
def test_an_instruction_is_followed_or_not(name, args, followed, broken):
    task = [{"id": name, "args": args}]
    assert instructions.verify(followed, task)["score"] == 1.0
    assert instructions.verify(broken, task)["score"] == 0.0
    assert instructions.verify(followed, json.dumps(task))["score"] == 1.0


def test_every_instruction_is_tried_above():
    assert {name for name, *_ in FOLLOWED} == set(_instructions_own.CHECKS)
    assert all(name in instructions.verify.__doc__ for name in _instructions_own.CHECKS)


def test_the_score_is_the_share_followed_or_all_or_nothing():
    tasks = [{"id": "rlpost:no_comma"}, {"id": "rlpost:lowercase"}]
    verdict = instructions.verify("<think>a, b</think>all small, here", tasks)
    assert verdict["score"] == 0.5
    assert verdict["components"] == {"0:rlpost:no_comma": 0.0, "1:rlpost:lowercase": 1.0}
    assert verdict["details"] == {"not_followed": ["rlpost:no_comma"]}
    assert instructions.verify("all small, here", tasks, all_or_nothing=True)["score"] == 0.0
    assert instructions.verify("all small", [], instructions=tasks, all_or_nothing=True)["score"] == 1.0
    assert instructions.verify("<think>all small", tasks)["reason"] == "no_answer"


def test_loosely_followed_is_without_the_first_or_last_line_or_asterisks():
    tasks = [{"id": "rlpost:starts_with", "args": {"text": "So"}}]
    assert instructions.verify("Sure, here it is:\n**So** it was.", tasks)["score"] == 0.0
    assert instructions.verify("Sure, here it is:\n**So** it was.", tasks, strict=False)["score"] == 1.0


@pytest.mark.parametrize(
    "tasks",
    [
        None, [], "", "{", [{"id": "no:such"}], ["x"], [{"id": "rlpost:keywords"}],
        [{"id": "rlpost:keywords", "args": {"keywords": []}}], [{"id": "rlpost:keywords", "args": {"keywords": [1]}}],
        [{"id": "rlpost:words", "args": {"count": "3"}}],
        [{"id": "rlpost:words", "args": {"count": 3, "relation": "about"}}],
        [{"id": "rlpost:no_comma", "args": {"count": 3}}],
    ],
)  # fmt: skip
def test_instructions_that_cannot_be_checked_are_the_references_fault(tasks):
    assert instructions.verify("text", tasks)["reason"] == "bad_reference"


# ------------------------------------------------------------------------------------------------------ hostile input

EVERY = {
    "length": lambda text: length.verify(text, 3, long=9),
    "overlong": lambda text: overlong.verify(text, 3, max_length=9, cache=2),
    "repetition": lambda text: repetition.verify(text),
    "language": lambda text: language.verify(text),
    "choice": lambda text: choice.verify(text, "B", options=OPTIONS),
    "regex": lambda text: regex.verify(text, pattern=r"\d+"),
    "json_schema": lambda text: json_schema.verify(text, schema=SCHEMA),
    "instructions": lambda text: [
        instructions.verify(text, [{"id": name, "args": args}]) for name, args, *_ in FOLLOWED
    ],
}
PIECES = (
    *(
        "a",
        "a ",
        " ",
        "\n",
        "\0",
        "\ud800",
        "é",
        "好",
        "*",
        "**a",
        "* ",
        ".",
        ". ",
        "..a",
        "!?x",
        "[",
        "[a",
        "<",
        "<<a",
    ),
    *(
        "{",
        '{"a":',
        '"',
        "\\",
        "\\boxed{",
        "\\boxed{{}",
        "```",
        "```\n",
        "```json\n",
        "<answer>",
        "<think>",
        "</think>",
    ),
    *("answer is ", "A or ", "A, ", "(", "P.S.", "Section 1", "- a\n", "1. a\n", "******", "-", "'a", "$", "9", "_"),
)


@pytest.mark.parametrize("name", EVERY)
def test_a_megabyte_of_everything_gets_a_verdict(name):
    EVERY[name]("".join(PIECES).replace("<think>", "") * 5000)


@settings(deadline=None, max_examples=100)
@given(st.text(st.characters(), max_size=200))
def test_any_text_gets_the_same_verdict_twice(text):
    for verify in EVERY.values():
        assert verify(text) == verify(text)
