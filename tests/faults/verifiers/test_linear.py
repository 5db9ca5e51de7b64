"""Nothing is quadratic: a megabyte of whatever a degenerate policy repeats is judged in time linear in its length."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest

from rewards import (
    choice,
    code,
    countdown,
    exact,
    format,
    instructions,
    json_schema,
    language,
    length,
    math_equivalence,
    overlong,
    regex,
    repetition,
    sql,
)  # fmt: skip
from rewards._response import answer_tag, fences, visible
from rlpost.verify.adapters import scored_by
from rlpost.verify.judge import _result
from rlpost.verify.registry import BUILT_IN

SCHEMA = {
    "type": ["object", "array", "string", "number"],
    "properties": {"a": {"type": "string", "pattern": "^(a+)+$"}},
    "patternProperties": {"(a|aa)+b": False},
    "uniqueItems": True,
}
IFEVAL = {
    "keywords:existence": {"keywords": ["red", "U.S."]},
    "keywords:frequency": {"keyword": "a", "frequency": 3, "relation": "at least"},
    "keywords:forbidden_words": {"forbidden_words": ["red"]},
    "keywords:letter_frequency": {"letter": "e", "let_frequency": 2, "let_relation": "less than"},
    "language:response_language": {"language": "en"},
    "length_constraints:number_sentences": {"num_sentences": 3, "relation": "at least"},
    "length_constraints:number_paragraphs": {"num_paragraphs": 3},
    "length_constraints:number_words": {"num_words": 3, "relation": "at least"},
    "length_constraints:nth_paragraph_first_word": {"num_paragraphs": 2, "nth_paragraph": 1, "first_word": "a"},
    "detectable_content:number_placeholders": {"num_placeholders": 3},
    "detectable_content:postscript": {"postscript_marker": "P.S."},
    "detectable_format:number_bullet_lists": {"num_bullets": 3},
    "detectable_format:number_highlighted_sections": {"num_highlights": 3},
    "detectable_format:multiple_sections": {"section_spliter": "Section", "num_sections": 3},
    "combination:repeat_prompt": {"prompt_to_repeat": "Why?"},
    "startend:end_checker": {"end_phrase": "That is all."},
    "change_case:capital_word_frequency": {"capital_frequency": 3, "capital_relation": "less than"},
    "combination:two_responses": {},
    "change_case:english_lowercase": {},
    "detectable_format:json_format": {},
    "detectable_format:title": {},
    "detectable_format:constrained_response": {},
}
OWN = {
    "words": {"count": 3}, "sentences": {"count": 3}, "paragraphs": {"count": 3}, "first_word": {"number": 1, "word": "a"},
    "keywords": {"keywords": ["red"]}, "letter_frequency": {"letter": "e", "count": 3}, "capital_words": {"count": 3},
    "starts_with": {"text": "a"}, "forbidden_characters": {"characters": "!"}, "bullets": {"count": 3}, "numbered_list": {"count": 3},
    "highlights": {"count": 3}, "sections": {"count": 3}, "title": {}, "json": {}, "one_of": {"options": ["a"]}, "postscript": {},
    "placeholders": {"count": 3}, "repeat_prompt": {"text": "a"}, "two_responses": {}, "no_comma": {},
}  # fmt: skip


def _ask(rules: dict) -> list[dict]:
    return [{"id": name, "args": args} for name, args in rules.items()]


# What a verifier reads of a response; what it then runs in a sandbox is bounded there.
READ: dict[str, Callable[[str], object]] = {
    "math": lambda text: math_equivalence.verify(text, "7"),
    "exact": lambda text: exact.verify(text, "7", extract=r"x=(\d+)\s*$"),
    "format": lambda text: format.verify(text, r"<think>.*</think>\s*(\w+\s)*<answer>.*</answer>"),
    "regex": lambda text: regex.verify(text, pattern=r"(\w+\s?)*!", extract=r"(?:answer|```\w*)\s*(.*?)\s*(?:```|$)"),
    "choice": lambda text: choice.verify(text, "B", options=["A triangle", "Paris", "x", "y"]),
    "code": lambda text: code.extract(text, ("python",)),
    "sql": sql.extract,
    "countdown": lambda text: countdown.verify(text, numbers=[1, 2], target=3),
    "reasoning_gym": lambda text: scored_by(lambda answer, entry: 0.0, text, {"answer": "7"}),
    "instructions": lambda text: instructions.verify(
        text, _ask({f"rlpost:{name}": args for name, args in OWN.items()})
    ),
    "instructions of IFEval": lambda text: instructions.verify(text, _ask(IFEVAL)),
    "json_schema": lambda text: json_schema.verify(text, schema=SCHEMA),
    "length": lambda text: length.verify(text, 3, long=9),
    "overlong": lambda text: overlong.verify(text, 3, max_length=9, cache=2),
    "repetition": repetition.verify,
    "language": language.verify,
    "judge": lambda text: _result({"choices": [{"message": {"content": text}}]}, r"\D*(\d+)\D*", 10.0, 0.0),
    "the reading of a response": lambda text: (visible(text), fences(text), answer_tag(text)),
}
PIECES = (
    # fences and tags
    "```", "```\n", "```python\n", "````\n", "~~~\n", "```json\n{}\n", "```md\n", "a```\n", "x: ```\n", "`", '```\n"""\n',
    "<answer>", "<answer>\n", "</answer>", "<answer>1</answer>", "<think>", "</think>", "<thinking>", "<reasoning>", "<",
    "<|im_start|>", "<|begin_of_solution|>", "<|a_", "</s>", "<｜", "[INST]", "`<think>`",
    # brackets, digits, blanks, signs
    "(", ")", "[", "]", "{", "}", "()", "[]", "{}", "(a", "[a", "<<a", "<<", "9", "1,", "1.", "1/", "-1", "1 ", " ", "\t", "\n", "\r\n",
    "\n\n", " \n", "a", "a ", "a\n", "A or ", "A, ", "A. ", ".", ". ", "..a", "!?x", ",", "-", "--", "*", "**", "**a", "* ", "***\n", "_", "$", "$$", "%", "# ",
    "#### ", "= ", "'", "'a", "n't", '"', '\\"', "\\", "x.y@z", "http://a",
    # letters that are more than one, marks that combine
    "é", "e\u0301", "\u0301", "好", "\u200b", "\ud800", "İ", "ﬁ", "\0", "🙂",
    # mathematics, JSON, programs, queries, lists
    "\\boxed{", "\\boxed{}", "\\boxed{{}", "\\boxed{7} ", "\\frac", "\\frac{", "\\text{", "\\left(", "\\[", "\\(", "$x", "x^", "x_", "+x", "\\\\",
    '{"a":', '[1,', '"a",', '{"a": "', "def f(", "SELECT ", "WITH a AS (", "'' ", "/* ", "-- ", "# a\n", "if a:\n",
    "the answer is ", "answer is \n", "Option A is ", "final answer: 7. ", "答案是", "P.S.", "Section 1", "Section ", "- a\n", "1. a\n", "******", "x=1", "x=", "Mr. ",
)  # fmt: skip
SHORT, LONG, MEGABYTE = 2**11, 2**15, 2**20  # characters
MARGIN = 4  # of what linear time would be; from SHORT to LONG a quadratic reading has 16 times as much
QUICKEST = 0.003  # seconds; what takes less is not measured well


def seconds(read: Callable[[str], object], piece: str, length: int) -> float:
    text = piece * (length // len(piece))
    begin = time.process_time()
    read(text)
    return time.process_time() - begin


def grows_linearly(read: Callable[[str], object], piece: str, short: int, long: int) -> bool:
    bound = MARGIN * (long // short) * max(seconds(read, piece, short), QUICKEST)
    # Once more for a machine that was busy.
    return any(seconds(read, piece, long) <= bound for _ in range(2))


def test_every_verifier_is_tried():
    assert set(READ) >= set(BUILT_IN) - {"ensemble"}  # which reads verdicts alone


@pytest.mark.parametrize("name", READ)
def test_twice_the_text_takes_twice_the_time_up_to_a_megabyte(name):
    read = READ[name]
    read("warm")
    assert not [piece for piece in PIECES if not grows_linearly(read, piece, SHORT, LONG)]
    slowest = max(PIECES, key=lambda piece: seconds(read, piece, LONG))
    assert grows_linearly(read, slowest, LONG, MEGABYTE), slowest


def test_a_quadratic_reading_would_be_seen():
    assert not grows_linearly(lambda text: re.search("a+b", text), "a", SHORT, LONG)
