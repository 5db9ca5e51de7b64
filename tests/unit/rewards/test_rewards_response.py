"""One reading of a response for all verifiers: what is said after the thought, its blocks, its `<answer>`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards._response import THOUGHTS, Fence, answer_tag, fences, visible

# -------------------------------------------------------------------------------------------------------------- visible


@pytest.mark.parametrize(("opening", "closing"), THOUGHTS)
def test_only_what_follows_the_last_thought_is_visible(opening, closing):
    assert visible(f"{opening}7{closing}8") == "8"
    assert visible(f"7{closing}8") == "8"  # the chat template has opened it
    assert visible(f"{opening}7{closing}8{opening}9{closing}10") == "10"
    assert visible(f"{opening}7{closing}").strip() == ""
    assert visible(f"{opening}7") is None
    assert visible(f"{opening}7{closing}8{opening}wait") is None
    assert visible(f"{opening.upper()}7{closing.lower()}8") == "8"


def test_a_thought_ends_as_often_as_it_says():
    assert visible("<think>a</think>b</think>c") == "c"
    assert visible("<think>a<think>b</think>c") == "c"
    assert visible("<think>a</think>b<|begin_of_thought|>c") is None


@pytest.mark.parametrize(
    ("response", "seen"),
    [
        ("<reasoning>7</reasoning>8", "8"),
        ("\n<reasoning>\n7\n</reasoning>\n<answer>8</answer>", "\n<answer>8</answer>"),
        ("7</reasoning>8", "8"),
        ("<reasoning>7", None),
        ("<scratchpad>7</scratchpad>8<scratchpad>9</scratchpad>10", "10"),
        ("<answer>8</answer><reasoning>7</reasoning>", "<answer>8</answer><reasoning>7</reasoning>"),
        ("<think>a</think><reasoning>7</reasoning>8", "8"),
        ("<|im_start|>assistant\n<reasoning>7</reasoning>8", "8"),
    ],
)
def test_a_reasoning_tag_is_a_thought_where_the_response_begins_with_it(response, seen):
    assert visible(response) == seen


@pytest.mark.parametrize(
    "text",
    [
        'Write "<think>" and then "</think>".', "The tag `<think>` opens it.", "x < 3 and [1, 2]", r"\langle x | y \rangle",
        "a <|x|> b", "<b>bold</b>", "f('</think>')", "`<|im_end|>` ends it", "thinking is hard", "a | b", "<", "[", "",
        "```python\ns = s.replace('', '<|im_end|></s>')\n```", "<user> says", "In HTML `</s>` closes",
    ],
)  # fmt: skip
def test_text_that_only_speaks_of_marks_or_looks_like_them_is_left_alone(text):
    assert visible(text) == text


@pytest.mark.parametrize(
    ("response", "seen"),
    [
        (r"<|begin_of_solution|>\boxed{7}<|end_of_solution|>", r"\boxed{7}"),
        (r"In HTML </s> closes. \boxed{7}", r"In HTML  closes. \boxed{7}"),
        ("7<|im_end|>", "7"),
        ("7</s></s>\n<|endoftext|>", "7"),
        ("7<end_of_turn>\n", "7"),
        ("7<｜end▁of▁sentence｜>", "7"),
        ("<|start_header_id|>assistant<|end_header_id|>\n\n7<|eot_id|>", "\n\n7"),
        ("7<|im_end|>\n<|im_start|>user\nAnd 8?<|im_end|>\n<|im_start|>assistant\n8", "7"),
        ("7<end_of_turn>\n<start_of_turn>user\n8?", "7"),
        ("<|channel|>analysis<|message|>9<|end|><|start|>assistant<|channel|>final<|message|>7<|return|>", "7"),
        ("```python\nprint('</s>')\n```<|im_end|>", "```python\nprint('</s>')\n```"),
    ],
)
def test_tokens_of_chat_formats_go_and_what_follows_them_stays(response, seen):
    assert visible(response) == seen


# --------------------------------------------------------------------------------------------------------------- answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer> 7 </answer>", "7"),
        ("<answer>8</answer> no, <answer>7</answer> done", "7"),
        ("<ANSWER>7</Answer>", "7"),
        ("<answer><answer>7</answer></answer>", "7"),
        ("I write it in `<answer>` tags: <answer>7</answer>, as `<answer>` asks.", "7"),
        ("<answer>8</answer><answer>7", ""),
        ("<answer></answer>", ""),
        ("7</answer>", None),
        ("7", None),
    ],
)
def test_the_answer_is_in_the_last_tag(text, answer):
    assert answer_tag(text) == answer


# --------------------------------------------------------------------------------------------------------------- fences


def blocks(text: str) -> list[tuple[str, str, bool]]:
    return [(fence.info, fence.body, fence.closed) for fence in fences(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```python\na\n```", [("python", "a\n", True)]),
        ("```\na\n```\n\n```sql\nb\n```\nc", [("", "a\n", True), ("sql", "b\n", True)]),
        ("~~~JSON\na\n~~~", [("json", "a\n", True)]),
        ("``` Python \r\na\r\n```\r\n", [("python", "a\n", True)]),
        ("```python title=\"x\"\na\n```", [("python", "a\n", True)]),
        ("```{.python}\na\n```", [("python", "a\n", True)]),
        ("```c++\na\n```", [("c++", "a\n", True)]),
        ("```sql\na```", [("sql", "a", True)]),
        ("```sql\na;``` \nResult:\n```\nJoe\n```", [("sql", "a;", True), ("", "Joe\n", True)]),
        ("```json\n{\"a\": 1}```", [("json", "{\"a\": 1}", True)]),
        ("```python\na\n``` That is it.\nb", [("python", "a\n", True)]),
        ("```python\na", [("python", "a", False)]),
        ("```python", [("python", "", False)]),
        ("```python\na\n```python\nb\n```", [("python", "a\n", False), ("python", "b\n", True)]),
        ("````python\n```\na\n```\n````", [("python", "```\na\n```\n", True)]),
        ("~~~\n```\na\n```\n~~~", [("", "```\na\n```\n", True)]),
        ("```\na\n~~~\n```", [("", "a\n~~~\n", True)]),
        ("```markdown\n```python\na\n```\nb\n```", [("markdown", "```python\na\n```\nb\n", True)]),
        ("1. So:\n   ```python\n   if a:\n       b\n   ```", [("python", "if a:\n    b\n", True)]),
        ("- ```python\n  a\n  ```", [("python", "  a\n", True)]),
        ("Here it is: ```python\na\n```", [("python", "a\n", True)]),
        ("Here it is:```\na\n```", [("", "a\n", True)]),
        ("```SELECT 1```", [("", "SELECT 1", True)]),
        ("Use ```a``` or `b`.", []),
        ("``a``", []),
        ("", []),
    ],
)  # fmt: skip
def test_blocks_are_found_as_models_write_them(text, expected):
    assert blocks(text) == expected


@pytest.mark.parametrize(
    "code",
    [
        'def f():\n    """So:\n\n    ```\n    f()\n    ```\n    """\n',
        "def f():\n    '''So:\n    ```python\n    f()\n    ```\n    '''\n",
        '"""\n```\nf()\n```\n"""\nx = 1\n',
        "/// ```\n/// f()\n/// ```\nfn f() {}\n",
        "/**\n * ```js\n * f()\n * ```\n */\n",
        "# as in ```\nx = 1\n",
        "s = '```'\n",
        "s = '``` ```'\n",
    ],
)
def test_a_fence_in_a_docstring_or_a_comment_closes_nothing(code):
    assert blocks(f"So:\n```python\n{code}```\nDone.") == [("python", code, True)]


def test_quotes_that_never_end_do_not_keep_a_block_open():
    assert blocks('```python\n"""\na\n```\nb\n```python\nc\n```') == [
        ("python", '"""\na\n', True),
        ("python", "c\n", True),
    ]


@given(st.lists(st.sampled_from(["```", "````", "~~~", "python", "\n", "\n", " ", "a", '"""', "'''", "- ", "md", ":"])))
def test_blocks_are_in_order_and_apart_and_lie_where_they_say(pieces):
    text = "".join(pieces)
    position = 0
    for fence in fences(text):
        assert position <= fence.start <= fence.end <= len(text)
        assert all(line.strip() in text[fence.start : fence.end] for line in fence.body.split("\n"))
        position = fence.end


def test_a_block_says_where_it_is():
    text = "a\n```py\nb\n```\nc"
    (fence,) = fences(text)
    assert fence == Fence("py", "b\n", 2, 13, True)
    assert text[fence.start : fence.end] == "```py\nb\n```"


# --------------------------------------------------------------------------------------------------------------- length

REPEATED = (
    "```python\n", "```\n", "````\n", "```", "~~~\n", "`", "~", "<answer>", "<answer>\n", "</answer>", "<think>", "</think>",
    "<reasoning>", "<", "<|", "<|im_start|>", "<|a_", "</s>", "<｜", "[", '"""\n', '```\n"""\n', "```\n'''\n\"\"\"\n", " ", "\t",
    "\n", "- ", "1. ", "a```\n", "x: ```\n", "```md\n", "```md\n```a\n", "`<think>`", "'</s>'", "\r\n", "a",
)  # fmt: skip


@pytest.mark.parametrize("piece", REPEATED)
def test_long_runs_of_anything_are_read(piece):
    # Time that grows with the square of it would be seen as a test that does not end.
    for text in (piece * (2**16 // len(piece)), "```python\n" + piece * (2**16 // len(piece)) + "\n```</think>x</s>"):
        visible(text)
        fences(text)
        answer_tag(text)
