"""IFEval by IFEval: its published cases, its oddities, and rows that its checker could not check."""

from __future__ import annotations

import json

import pytest

from rewards import _ifeval, _instructions_own, instructions
from tests.conftest import ROOT

CASES = [json.loads(line) for line in (ROOT / "tests" / "data" / "ifeval_cases.jsonl").read_text().splitlines()]


def follows(name: str, args: dict, response: str) -> bool:
    verdict = instructions.verify(response, [{"id": name, "args": args}])
    assert verdict["score"] is not None, verdict
    return verdict["score"] == 1.0


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_a_published_case_has_its_published_verdict(case):
    assert follows(case["id"], case["args"], case["response"]) == case["followed"]


# Where rules that look alike would say something else.
ODD = [
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "First.\n***\nSecond.", "First.\n\nSecond."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "***\na\n***\nb\n***", "a\n***\n***\nb"),
    ("startend:end_checker", {"end_phrase": "help with?"}, '"… help with?"', "help with? No."),
    ("startend:quotation", {}, '"… help with?"', "“so”"),
    ("detectable_format:json_format", {}, '```JSON\n{"a": 1}\n```', '```python\n{"a": 1}\n```'),
    ("detectable_format:json_format", {}, '```\n{"a": 1}```', "{a: 1}"),
    ("combination:two_responses", {}, "a\n******\nb\n******", "a\n******\n******\nb"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "So. **P.S.** more", "ps more"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "p. p. s", "P.S."),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Why so?"}, "WHY SO?", "So: why so?"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "don't well", "well known"),
    ("keywords:existence", {"keywords": ["red"]}, "It was REDdish", "It was blue"),
    ("keywords:frequency", {"keyword": "a", "frequency": 3, "relation": "at least"}, "aaa", "aa"),
    ("keywords:forbidden_words", {"forbidden_words": ["red"]}, "reddish", "It is red."),
    ("keywords:existence", {"keywords": ["U.S."]}, "in the u.s. of", "in the us"),
    ("keywords:letter_frequency", {"letter": "#", "let_frequency": 2, "let_relation": "at least"}, "#a #b", "#a"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n  - b\n**c**", "* a\n• b"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* **b**", "**a** ** **"),
    ("detectable_format:constrained_response", {}, "My answer is no. Or so.", "no"),
    ("detectable_format:multiple_sections", {"section_spliter": "Section", "num_sections": 2}, "Section 1 Section2", "SECTION 1 SECTION 2"),
    ("detectable_format:title", {}, "a <<so>> b", "<< >>"),
    ("punctuation:no_comma", {}, "a， b", "a, b"),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, "I CANNOT-DO it", "A well-known fact"),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "less than"}, "WELL-KNOWN", "DON'T"),
    ("change_case:english_capital", {}, "THIS IS ALL WRITTEN IN ENGLISH", "DIES IST ALLES AUF DEUTSCH GESCHRIEBEN WORDEN"),
    ("change_case:english_lowercase", {}, "all of this is written in english", "esto es todo en minúsculas y en español"),
    ("language:response_language", {"language": "de"}, "Das ist ein ganz gewöhnlicher Satz.", "This is a quite ordinary sentence."),
    ("language:response_language", {"language": "hi"}, "123", "An English sentence is here."),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"}, "a\n\n'then, b", "a\n\n\n\nthen b"),
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": "at least"}, "Dr. No came. He saw! Did he?", "Dr. No came to the U.S. Army. So."),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[] and [b]", "[a [b]"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "args", "followed", "broken"), ODD)
def test_its_rules_are_its_own(name, args, followed, broken):
    assert follows(name, args, followed)
    assert not follows(name, args, broken)


def test_all_instructions_of_the_registry_are_there_and_tried_and_told_of():
    tried = {case["id"] for case in CASES} | {name for name, *_ in ODD}
    assert len(_ifeval.RULES) == 25
    assert tried == set(_ifeval.RULES)
    assert all(f":{name.partition(':')[2]}" in instructions.verify.__doc__ for name in _ifeval.RULES)
    assert not set(_ifeval.RULES) & set(_instructions_own.CHECKS)


ROW = {
    "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
    # As a table has them: each row has the arguments of all instructions.
    "kwargs": [
        {"num_words": None, "relation": None},
        {"num_words": 2.0, "relation": "at least", "keywords": None},
    ],
}


def test_rows_are_taken_by_their_columns_and_the_log_says_so(capsys):
    instructions._say_once.cache_clear()
    assert instructions.verify("so, it is", **ROW)["score"] == 0.5
    assert instructions.verify("so it is", **{key: json.dumps(value) for key, value in ROW.items()})["score"] == 1.0
    assert instructions.verify("so", "not looked at", **ROW, all_or_nothing=True)["score"] == 0.0
    assert instructions.verify("<think>so it is", **ROW)["reason"] == "no_answer"
    assert capsys.readouterr().err.count("mode ifeval") == 1


@pytest.mark.parametrize(
    ("name", "args", "named"),
    [
        ("keywords:rhyme", {}, "keywords:rhyme"),
        ("length_constraints:number_words", {"num_words": 3}, "needs relation"),
        ("length_constraints:number_words", {"num_words": 3, "relation": "at most"}, "relation is 'at most'"),
        ("length_constraints:number_words", {"num_words": -1, "relation": "at least"}, "num_words is -1"),
        ("length_constraints:number_words", {"num_words": "3", "relation": "at least"}, "num_words is '3'"),
        ("keywords:existence", {}, "needs keywords"),
        ("keywords:existence", {"keywords": []}, "keywords is []"),
        ("keywords:existence", {"keywords": ["("]}, "no regular expression"),
        ("keywords:existence", {"keywords": ["(a)\\1"]}, "linear"),
        ("keywords:letter_frequency", {"letter": "ab", "let_frequency": 1, "let_relation": "at least"}, "one character"),
        ("punctuation:no_comma", {"count": 1}, "takes no count"),
        ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 1, "nth_paragraph": 2, "first_word": "a"}, "beyond"),
        ("startend:end_checker", {"end_phrase": None}, "needs end_phrase"),
    ],
)  # fmt: skip
def test_a_row_that_the_published_checker_would_guess_at_cannot_be_verified(name, args, named):
    verdict = instructions.verify("text", instruction_id_list=[name], kwargs=[args])
    assert verdict["reason"] == "bad_reference"
    assert named in verdict["details"]["error"]


@pytest.mark.parametrize(
    "row", [{"instruction_id_list": ["punctuation:no_comma"]}, {**ROW, "kwargs": [{}]}, {"instruction_id_list": [], "kwargs": []}]
)  # fmt: skip
def test_columns_that_do_not_fit_cannot_be_verified(row):
    assert instructions.verify("text", **row)["reason"] == "bad_reference"


def test_loosely_followed_is_as_published():
    given = {"instruction_id_list": ["startend:end_checker"], "kwargs": [{"end_phrase": "That is all."}]}
    assert instructions.verify("So. *That is all.*\nBye", **given)["score"] == 0.0
    assert instructions.verify("So. *That is all.*\nBye", **given, strict=False)["score"] == 1.0
