"""The code verifier: what counts as the program, the shapes of tests it takes, and what it says when one fails."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rewards import _code_programs
from rewards._code_codec import Malformed, TooLarge, dumps, loads, shown
from rewards._code_programs import Comparison, near, same_output
from rewards._code_rules import RULES, rules_of
from rewards._code_run import Run
from rewards._code_task import code_task, task_of
from rewards.code import check_task, extract, verify
from rlpost.verify.protocol import bind, to_verdict, traits_of
from rlpost.verify.sandbox import Outcome

SAMPLE = [
    json.loads(line) for line in (Path(__file__).parents[1] / "data" / "mbpp_sample.jsonl").read_text().splitlines()
]
DOUBLE = "def double(x):\n    return 2 * x\n"
DOUBLED = ["assert double(2) == 4", "assert double('ab') == 'abab'"]


def reason(verdict):
    return verdict.get("reason", "")


# ---------------------------------------------------------------------------------------------------------- the answer


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("x = 1", "x = 1"),
        ("So:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```python\nx = 1\n```\nbetter:\n```python\nx = 2\n```", "x = 2\n"),
        ("```python\nx = 1\n```\nIt prints\n```\n1\n```", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```py\nx = 1\n```", "x = 1\n"),
        ("```Python\r\nx = 1\r\n```", "x = 1\n"),
        ("- first\n  ```python\n  if x:\n      y\n  ```", "if x:\n    y\n"),
        ("```python\nx = 1", "x = 1"),
        ("<think>\n```python\nx = 1\n```\n</think>\n```python\nx = 2\n```", "x = 2\n"),
        ("<think>\n```python\nx = 1\n```", ""),
        ("    return x\n", "    return x\n"),
        ("~~~python\nx = 1\n~~~", "x = 1\n"),
        ("````python\nx = 1\n````", "x = 1\n"),
        ("```python\nx = 1```", "x = 1"),
    ],
)
def test_the_program_is_the_last_python_block_or_the_only_one_or_all(response, program):
    assert extract(response)[0] == program


MAIN = "def f(x):\n    return x + 1\n"


@pytest.mark.parametrize(
    ("response", "program"),
    [
        (f"```python\n{MAIN}```\nExample usage:\n```python\nprint(f(1))\n```", MAIN),
        (f"```python\n{MAIN}```\nTests:\n```python\ndef test_f():\n    assert f(1) == 2\n```", MAIN),
        (f"```python\nf = None\n```\nBetter:\n```python\n{MAIN}```", MAIN),
        (f"```\n{MAIN}```\n```python\nprint(f(2))\n```", MAIN),
        (
            "```python\nclass Solution:\n    def f(self, x): return x\n```\n```python\nprint(Solution().f(1))\n```",
            "class Solution:\n    def f(self, x): return x\n",
        ),
        (
            '```python\ndef f(x):\n    """Adds.\n\n    ```\n    f(1)\n    ```\n    """\n    return x + 1\n```',
            'def f(x):\n    """Adds.\n\n    ```\n    f(1)\n    ```\n    """\n    return x + 1\n',
        ),
        (f"```python\n{MAIN}```\nOutput:\n```text\n2\n```", MAIN),
        (f"```python\n{MAIN}```\n```python\nf(1) ===\n```", MAIN),
        (f"```python\nimport math\n{MAIN}```\n```python\nassert f(1) == 2\n```", f"import math\n{MAIN}"),
    ],
)
def test_the_program_is_the_block_that_defines_what_the_tests_call(response, program):
    assert extract(response, names=["f"])[0] == program


def test_a_program_of_several_blocks():
    response = "```python\nclass A: pass\n```\nand\n```python\ndef f(): return A()\n```\n```python\nprint(f())\n```"
    assert extract(response, names=["A", "f"])[0] == "class A: pass\n\ndef f(): return A()\n"


def test_a_program_on_standard_input_is_the_block_that_reads_it():
    response = "```python\nprint(int(input()) + 1)\n```\nWith 1 it prints:\n```python\n2\n```"
    assert extract(response)[0] == "print(int(input()) + 1)\n"


@pytest.mark.parametrize("response", ["", "  \n", "I do not know how to double a number.", "<think>def double(x):"])
def test_no_program_is_wrong_with_no_answer(response):
    verdict = verify(response, test_list=DOUBLED)
    assert (verdict["score"], reason(verdict)) == (0.0, "no_answer")


# ---------------------------------------------------------------------------------------------------- shapes of tests


@pytest.mark.parametrize("row", SAMPLE, ids=lambda row: str(row["task_id"]))
def test_mbpp_references_pass_by_the_columns_names(row):
    sample = {"response": row["code"], "reference": None, "prompt": row["text"], "prompt_id": "p", "token_count": 1}
    columns = {key: row[key] for key in ("test_list", "test_setup_code")}
    verdict = to_verdict(bind("code", verify, {})({**sample, "finish_reason": "stop", "metadata": columns}))
    assert verdict.status == "correct", verdict
    assert verdict.components == {"tests_passed": len(row["test_list"]), "tests_total": len(row["test_list"])}


@pytest.mark.parametrize("row", SAMPLE, ids=lambda row: str(row["task_id"]))
def test_mbpp_references_broken_on_purpose_fail(row):
    """The functions the tests call return what no test expects."""
    task = code_task(tuple(row["test_list"]), (row["test_setup_code"],) if row["test_setup_code"] else (), "", None)
    functions = [name for name in task.names if name not in ("Node", "Pair")]
    broken = row["code"] + "".join(f"\n{name} = lambda *a, **k: 'no test expects this'" for name in functions)
    verdict = verify(broken, mode="fraction", **{k: row[k] for k in ("test_list", "test_setup_code")})
    assert (verdict["score"], reason(verdict)) == (0.0, "mismatch")


HEAD = '''from typing import List


def helper(xs: List[int]) -> int:
    return sum(xs)


def total(xs: List[int], start: int = 0) -> int:
    """Add up.

    >>> total([1, 2])
    3
    """
'''
CHECK = """

METADATA = {'author': 'x'}


def check(candidate):
    assert candidate([1, 2]) == 3, "first"
    assert candidate([1, 2], start=4) == 7
    assert abs(candidate([0.1, 0.2]) - 0.3) < 1e-9
    assert True, "never counted"
"""
LOOPS = """
def check(candidate):
    import random
    for size in range(5):
        xs = [random.randint(0, 9) for _ in range(size)]
        assert candidate(xs) == helper(xs)
"""


@pytest.mark.parametrize("test", [CHECK, LOOPS], ids=["literals", "loops"])
@pytest.mark.parametrize(
    "response",
    [
        "    return start + sum(xs)\n",
        "```python\ndef total(xs: List[int], start: int = 0) -> int:\n    return start + sum(xs)\n```",
        "from __future__ import annotations\ndef total(xs: List[int], start=0):\n    return start + sum(xs)",
    ],
    ids=["continues the prompt", "whole function", "future import"],
)
def test_humaneval_rows_by_prompt_entry_point_and_check(response, test):
    verdict = verify(response, prompt=HEAD, test=test, entry_point="total", mode="fraction")
    assert verdict["score"] == 1.0, verdict
    assert verdict["components"]["tests_total"] == (3 if test is CHECK else 5)
    wrong = verify(response.replace("start + sum", "start - sum"), prompt=HEAD, test=test, entry_point="total")
    assert (wrong["score"], reason(wrong)) == (0.0, "mismatch")


def test_what_the_prompt_defines_is_the_prompts_when_tests_use_it():
    response = HEAD + "    return 0\n\ndef helper(xs):\n    return 0\n"
    assert verify(response, prompt=HEAD, test=LOOPS, entry_point="total")["score"] == 0.0


APPS = {"inputs": ["2 3\n", "10 -4\n"], "outputs": ["5\n", "6\n"]}
ADD = "a, b = map(int, input().split())\nprint(a + b)\n"


@pytest.mark.parametrize(
    "columns",
    [
        {"input_output": json.dumps(APPS)},
        {"input_output": {"inputs": [["2 3"], ["10 -4"]], "outputs": [["5"], ["6"]]}},
        APPS,
        {
            "public_tests": {"input": ["2 3\n"], "output": ["5\n"]},
            "private_tests": {"input": ["10 -4"], "output": ["6"]},
        },
        {"public_test_cases": json.dumps([{"input": i, "output": o} for i, o in zip(*APPS.values(), strict=True)])},
        {"tests": APPS},
        {"reference": APPS},
    ],
    ids=["APPS", "lists of lines", "two columns", "CodeContests", "LiveCodeBench", "tests", "reference"],
)
def test_programs_on_standard_input_and_output(columns):
    verdict = verify(f"```python\n{ADD}```", **columns)
    assert (verdict["score"], verdict["components"]) == (1.0, {"tests_passed": 2, "tests_total": 2})
    half = verify(ADD.replace("a + b", "5"), **columns, mode="fraction")
    assert (half["score"], reason(half)) == (0.5, "mismatch")
    assert verify(ADD.replace("a + b", "5"), **columns)["score"] == 0.0


@pytest.mark.parametrize(
    "columns",
    [
        {"input_output": {"fn_name": "add", "inputs": [[2, [3]], [0, [1]]], "outputs": [[5], [1]]}},
        {
            "fn_name": "add",
            "public_test_cases": [{"input": "2\n[3]", "output": "5"}, {"input": "0\n[1]", "output": "1"}],
        },
    ],
    ids=["APPS", "LiveCodeBench"],
)
@pytest.mark.parametrize(
    "response",
    ["def add(a, b):\n    return a + b[0]", "class Solution:\n    def add(self, a, b):\n        return a + b[0]"],
    ids=["function", "method"],
)
def test_functions_called_with_inputs(columns, response):
    assert verify(response, **columns)["score"] == 1.0
    wrong = verify(response.replace("a + b[0]", "str(a + b[0])"), **columns, mode="fraction")
    assert (wrong["score"], reason(wrong)) == (0.0, "mismatch")


@pytest.mark.parametrize(
    ("columns", "value", "right"),
    [
        ({"input_output": {"fn_name": "f", "inputs": [[1], [2]], "outputs": [[5], [5]]}}, 5, True),
        ({"input_output": {"fn_name": "f", "inputs": [[1], [2]], "outputs": [[5], [5]]}}, [5], True),
        ({"input_output": {"fn_name": "f", "inputs": [[1]], "outputs": [[[]]]}}, [], True),
        ({"input_output": {"fn_name": "f", "inputs": [[1], [2]], "outputs": [[5], [5, 5]]}}, 5, False),
        ({"fn_name": "f", "inputs": [[1]], "outputs": [[5]]}, 5, False),
        ({"fn_name": "f", "inputs": [[1]], "outputs": [[[]]]}, [], False),
        ({"fn_name": "f", "inputs": [[1]], "outputs": [[5]]}, [5], True),
        ({"fn_name": "f", "public_test_cases": [{"input": "1", "output": "[5]"}]}, 5, False),
        ({"tests": {"fn_name": "f", "inputs": [[1]], "outputs": [[5]]}}, 5, False),
    ],
)
def test_a_list_of_one_value_is_that_value_only_where_apps_may_have_made_the_list(columns, value, right):
    verdict = verify(f"def f(x):\n    return {value!r}", **columns, mode="fraction")
    assert verdict["score"] == float(right), verdict


@pytest.mark.parametrize(
    ("output", "expected", "settings", "same"),
    [
        ("1 2 \r\n3\n\n", "1 2\n3", {}, True),
        ("1 2 3", "1 2\n3", {}, False),
        ("1 2 3", "1 2\n3", {"compare": "tokens"}, True),
        ("1  2", "1 2", {}, False),
        ("0.3333333", "0.33333333333", {}, False),
        ("0.3333333", "0.33333333333", {"float_tolerance": 1e-6}, True),
        ("0.3334", "0.33333333333", {"float_tolerance": 1e-6}, False),
        ("0.5 1", "0.50 1", {"float_tolerance": 1e-6, "compare": "tokens"}, True),
        ("nan", "1", {"float_tolerance": 1e-6}, False),
        ("", "", {}, True),
    ],
)
def test_how_output_is_compared(output, expected, settings, same):
    verdict = verify(f"import sys\nsys.stdout.write({output!r})", inputs=[""], outputs=[expected], **settings)
    assert verdict["score"] == float(same)


def test_exit_is_there_as_in_any_python():
    assert verify("print(1)\nexit()\nprint(2)", inputs=[""], outputs=["1"])["score"] == 1.0
    assert (
        verify(
            "def double(x):\n    try:\n        exit()\n    except SystemExit:\n        return 2 * x", test_list=DOUBLED
        )["score"]
        == 1.0
    )


TEST_FILE = """
from solution import Stack, double

def test_double():
    assert double(4) == 8

def test_stack():
    stack = Stack()
    stack.push([1])
    stack.push((2, {3}))
    assert stack.pop() == (2, {3})
    assert stack.pop() == [1]
    try:
        stack.pop()
        assert False
    except IndexError as error:
        assert "empty" in str(error)
"""
STACK = (
    DOUBLE
    + """
class Stack:
    def __init__(self):
        self.items = []
    def push(self, item):
        self.items.append(item)
    def pop(self):
        if not self.items:
            raise IndexError("empty stack")
        return self.items.pop()
"""
)


def test_test_functions_classes_and_exceptions():
    assert verify(STACK, tests=TEST_FILE)["score"] == 1.0
    for old, new in (("IndexError(", "KeyError("), ("items.pop()", "items[0]"), ("2 * x", "x")):
        assert verify(STACK.replace(old, new), tests=TEST_FILE)["score"] == 0.0


def test_arguments_changed_in_place_are_seen_by_the_tests():
    tests = ["xs = [[3], [1]]\nys = xs[0]\nassert order(xs) is None\nassert xs == [[1, 0], [3, 0]]"]
    good = "def order(xs):\n    xs.sort()\n    for x in xs:\n        x.append(0)"
    assert verify(good, tests=tests)["score"] == 1.0
    assert verify(good.replace("xs.sort()", "xs = sorted(xs)"), tests=tests)["score"] == 0.0


def test_results_feed_later_calls():
    tests = [
        "assert decode(encode('abc')) == 'abc'",
        "n = size()\nassert n == 2\nfor i in range(n):\n    assert item(i) == i",
    ]
    good = "def encode(s): return s[::-1]\ndef decode(s): return s[::-1]\ndef size(): return 2\ndef item(i): return i"
    assert verify(good, tests=tests, mode="fraction")["components"] == {"tests_passed": 4, "tests_total": 4}
    assert verify(good.replace("return i", "return 0"), tests=tests, mode="fraction")["score"] == 0.75


@pytest.mark.parametrize(
    "value", ["iter([1, 2])", "(i for i in (1, 2))", "map(int, '12')", "dict(a=1, b=2).values()", "range(1, 3)"]
)
def test_lazy_results_cross_as_what_they_yield(value):
    assert verify(f"def f(x): return {value}", test_list=["assert list(f(0)) == [1, 2]"])["score"] == 1.0


def test_a_fraction_or_decimal_is_compared_as_python_compares_it():
    program = "from decimal import Decimal\nfrom fractions import Fraction\ndef f(x): return {}"
    for value, right in (("Fraction(x, 2)", 1.0), ("Decimal('0.5')", 1.0), ("Fraction(x, 3)", 0.0)):
        assert verify(program.format(value), test_list=["assert f(1) == 0.5"])["score"] == right


# ------------------------------------------------------------------------------------------------------------- reasons


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("def double(x):\n    return 3 * x", "mismatch"),
        ("```python\ndef double(x:\n```", "syntax_error"),
        ("```python\ndef double(x):\x00\n```", "syntax_error"),
        ("```python\n" + "(" * 5000 + "\n```", "syntax_error"),
        ("def double(x):\n    return undefined", "runtime_error"),
        ("def treble(x):\n    return 3 * x", "runtime_error"),
        ("raise ValueError(1)", "runtime_error"),
        ("def double(x):\n    return double(x)", "runtime_error"),
        ("def double(x):\n    import os; os._exit(0)", "runtime_error"),
        ("def double(x):\n    return [0] * 10**10", "memory"),
        ("def double(x):\n    return 'x' * 10**7", "output_limit"),
        ("def double(x):\n    return [0] * 10**6", "output_limit"),
        ("def double(x):\n    x = []\n    x.append(x)\n    return x", "output_limit"),
        ("def double(x):\n    while True:\n        pass", "candidate_timeout"),
        ("while True:\n    pass", "candidate_timeout"),
        ("def double(x):\n    return 2 * x\n#" + "x" * 10**6, "output_limit"),
    ],
)
def test_the_first_failures_reason(response, expected):
    verdict = verify(response, test_list=DOUBLED, seconds=1.0)
    assert (verdict["score"], reason(verdict)) == (0.0, expected)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("print(1", "no_answer"),
        ("```python\nprint(1\n```", "syntax_error"),
        ("print(2)", "mismatch"),
        ("1 / 0", "runtime_error"),
        ("print(1); import sys; sys.exit(3)", "runtime_error"),
        ("x = bytearray(10**11)", "memory"),
        ("while True: print('x' * 10000)", "output_limit"),
        ("input(); input()", "runtime_error"),
        ("while True: pass", "candidate_timeout"),
    ],
)
def test_the_first_failures_reason_of_a_program(response, expected):
    verdict = verify(response, inputs=["1\n"], outputs=["1\n"], seconds=1.0)
    assert (verdict["score"], reason(verdict)) == (0.0, expected)


def test_a_failure_leaves_the_other_tests_their_chance_in_mode_fraction():
    tests = ["assert f(1) == 1", "assert f(2) == 2", "assert f(3) == 3", "assert f(4) == 4"]
    program = "import os\ndef f(x):\n    {}\n    return x"
    for fault in ("if x == 2: 1 / 0", "if x == 2: os._exit(0)", "while x == 2: pass", "if x == 2: return 'x' * 10**7"):
        verdict = verify(program.format(fault), test_list=tests, mode="fraction", seconds=1.0)
        assert verdict["components"] == {"tests_passed": 3, "tests_total": 4}, verdict
        assert verify(program.format(fault), test_list=tests, seconds=1.0)["score"] == 0.0


PAIRS = "def check(candidate):\n" + "".join(f"    r = candidate({n})\n    assert r == {n + 1}\n" for n in range(1, 5))
LOOP = "def check(candidate):\n    for n in range(1, 5):\n        r = candidate(n)\n        assert r == n + 1\n"


@pytest.mark.parametrize("test", [PAIRS, LOOP], ids=["pairs", "loop"])
@pytest.mark.parametrize(
    ("body", "score"),
    [
        ("return x + 1", 1.0),
        ("return 2", 0.25),
        ("if x > 1: raise ValueError\n    return 2", 0.25),
        ("import os\n    if x > 1: os._exit(0)\n    return 2", 0.25),
        ("raise ValueError", 0.0),
    ],
)
def test_a_crash_before_an_assertion_leaves_no_fewer_tests_to_pass(test, body, score):
    verdict = verify(f"def f(x):\n    {body}", test=test, entry_point="f", mode="fraction")
    assert (verdict["score"], verdict["components"]["tests_total"]) == (score, 4), verdict


def test_a_right_program_does_not_answer_for_assertions_on_another_path():
    test = "def check(candidate):\n    if candidate(1) == 2:\n        assert candidate(2) == 3\n    else:\n        assert False\n"
    assert verify("def f(x):\n    return x + 1", test=test, entry_point="f", mode="fraction")["score"] == 1.0


def test_output_may_be_as_long_as_what_is_expected():
    lines = "\n".join(map(str, range(200_000)))
    assert len(lines) > 2**20
    printing = "for i in range(200_000): print(i)"
    assert verify(printing, inputs=[""], outputs=[lines])["score"] == 1.0
    assert reason(verify(f"while True:\n    {printing}", inputs=[""], outputs=[lines])) == "output_limit"
    lists = {"fn_name": "f", "inputs": [[60_000]] * 4, "outputs": [list(range(60_000))] * 4}
    assert verify("def f(n): return list(range(n))", **lists, mode="fraction")["score"] == 1.0


# ------------------------------------------------------------------------------------------- the rules of a benchmark

SOLUTION = "class Solution:\n    def f(self, x: List[int]) -> int:\n        return Counter(x).most_common(1)[0][0]"
CASES = [{"input": "[1, 1, 2]", "output": "1", "testtype": "functional"}]


@pytest.mark.parametrize(
    "columns",
    [
        {"public_test_cases": CASES, "fn_name": "f"},
        {"public_test_cases": json.dumps(CASES), "fn_name": "f"},
        {"public_test_cases": json.dumps(CASES), "metadata": '{"func_name": "f"}'},
        {"input_output": {"fn_name": "f", "inputs": [[[1, 1, 2]]], "outputs": [1]}},
        {"fn_name": "f", "inputs": [[[3, 3]]], "outputs": [3]},
        {"entry_point": "Solution().f", "test": "def check(candidate):\n    assert candidate(x=[3, 3]) == 3\n"},
    ],
)
def test_a_solution_of_a_contest_has_its_imports(columns):
    assert verify(SOLUTION, **columns)["score"] == 1.0
    assert verify(SOLUTION.replace("[0][0]", "[0][1]"), **columns)["score"] == 0.0


@pytest.mark.parametrize(
    ("output", "expected", "same"),
    [
        ("1.50", "1.5", True),
        ("1.5", "1.50", True),
        (" 5", "5", True),
        ("5", " 5 ", True),
        ("5\n", "5", True),
        ("1.50 2", "1.5 2.0", True),
        ("1.5", "1.5000001", False),
        ("50000000000000001", "50000000000000000", False),
        ("a", "b", False),
        ("1\n2", "1 2", False),
        ("nan", "nan", True),
        ("0x5", "5", False),
    ],
)
def test_livecodebench_compares_numbers_and_not_how_they_are_written(output, expected, same):
    rules = RULES["livecodebench"]
    assert same_output(output, expected, Comparison(rules.compare, rules.float_tolerance, rules.numbers)) is same


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        ({"public_test_cases": []}, "livecodebench"),
        ({"test": "def check(candidate): ...", "entry_point": "f"}, "humaneval"),
        ({"test": "def check(candidate): ...", "entry_point": "Solution().f"}, "leetcode"),
        ({"test": "class T(unittest.TestCase): ...", "entry_point": "task_func"}, "bigcodebench"),
        ({"test_list": ["assert f(1)"]}, "mbpp"),
        ({"input_output": {}}, "apps"),
        ({"public_tests": {}, "generated_tests": {}}, "codecontests"),
        ({"tests": "from solution import f\ndef test_f(): ..."}, "kodcode"),
        ({"tests": ["assert f(1)"]}, "plain"),
    ],
)
def test_the_columns_choose_the_rules(columns, name):
    assert rules_of(columns) == name


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (50000000000000001, 50000000000000000, False),
        (10**400 + 1, 10**400, False),
        (10**400, 10**400, True),
        (0.1 + 0.2, 0.3, True),
        (3, 3.0000000001, True),
        (10**400, 1.5, False),
    ],
)
def test_a_tolerance_is_for_decimals(a, b, same):
    assert near(a, b, 1e-6) is same


def test_a_tolerance_leaves_integers_exact_in_outputs_and_examples():
    tolerant = Comparison("tokens", 1e-6)
    assert not same_output("50000000000000001", "50000000000000000", tolerant)
    assert same_output("0.30000000000000004", "0.3", tolerant)
    columns = {"fn_name": "f", "inputs": [[1]], "outputs": [50000000000000000], "float_tolerance": 1e-6}
    assert verify("def f(x): return 50000000000000001", **columns)["score"] == 0.0
    assert verify("def f(x): return 50000000000000000.0", **columns)["score"] == 1.0


def test_dev_stdin_is_the_input():
    program = "print(sum(map(int, open('/dev/stdin').read().split())) + len(input().split()))"
    assert verify(program, inputs=["1 2\n"], outputs=["5"])["score"] == 1.0


def test_a_traceback_says_nothing_of_this_machine():
    program = "import json\njson.loads('{')"
    said = verify(program, inputs=[""], outputs=["1"])["details"]["error"]
    assert 'File "decoder.py"' in said
    assert not re.search(r'File "/', said)


def test_the_stack_and_processes_are_settings():
    deep = "import sys\nsys.setrecursionlimit(10**6)\ndef f(n): return 0 if n == 0 else 1 + f(n - 1)\nprint(f(int(input())))"
    assert verify(deep, inputs=["20000"], outputs=["20000"], stack_mb=256)["score"] == 1.0
    starts = "import subprocess\nprint(subprocess.run(['echo', 'a'], capture_output=True, text=True).stdout)"
    assert verify(starts, inputs=[""], outputs=["a"])["score"] == 0.0
    assert verify(starts, inputs=[""], outputs=["a"], processes=True)["score"] == 1.0


# -------------------------------------------------------------------------------------------------- the row's own fault


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"test_list": []},
        {"reference": "a text"},
        {"test_list": ["assert double(2 == 4"]},
        {"test_list": ["assert 1 == 1"]},
        {"test_list": ["assert no_such_module.half(double(2)) == 2"], "test_setup_code": "import no_such_module"},
        {"test_list": DOUBLED, "test_setup_code": "1 / 0"},
        {"tests": 3},
        {"tests": "{not json"},
        {"inputs": ["1"], "outputs": []},
        {"inputs": ["1"]},
        {"inputs": ["1"], "outputs": ["1"], "test_list": DOUBLED},
        {"inputs": [[1]], "outputs": [[0] * 300_000], "fn_name": "double"},
        {"test": "def check(candidate):\n    pass", "entry_point": "double"},
    ],
)
def test_a_row_without_usable_tests_is_unverified(columns):
    verdict = to_verdict(verify(DOUBLE, **columns))
    assert (verdict.status, verdict.reason) == ("unverified", "bad_reference")
    assert verdict.details["error"]


def test_a_response_cannot_make_itself_unverified():
    loop = {"test_list": ["for x in double(2):\n    assert x == 1"]}
    setup = {"test_setup_code": "node = Node(1)", "test_list": ["assert double(node) == 2"]}
    keys = {"test_list": ["assert {1: 2}[double(2)] == 2"]}
    found = {"test_list": ["d = {1: 2}\nassert d[double(2)] == 2"]}
    examples = {"input_output": {"inputs": [[1]], "outputs": [2], "fn_name": "double"}}
    huge = "def double(x):\n    return 10**5000"
    forged = 'import os\nfor fd in range(64):\n    try: os.write(fd, b\'[0, "raise", {"int": "0x1%s"}, {"int": "0x1%s"}]\\n\')\n    except OSError: pass\n'
    forged = forged % ("0" * 6000, "0" * 6000) + DOUBLE
    for tests, program in (
        *((tests, program) for tests in (keys, found, examples) for program in (huge, forged)),
        (loop, "def double(x):\n    return []"),
        (setup, "def Node(x):\n    raise SyntaxError('broken')\n" + DOUBLE),
        (setup, "def Node(x):\n    raise ImportError('broken')\n" + DOUBLE),
    ):
        verdict = verify(program, **tests)
        assert verdict["score"] == 0.0, verdict


@pytest.mark.parametrize("settings", [{"mode": "most"}, {"compare": "bytes"}, {"language": "cobol"}])
def test_a_wrong_setting_is_an_error_that_names_it(settings):
    with pytest.raises(ValueError, match=next(iter(settings.values()))):
        verify(DOUBLE, test_list=DOUBLED, **settings)


SQUARES = {"inputs": [[12], [20], [31]], "outputs": [144, 400, 961], "fn_name": "f"}
ASSERTED = ["assert f(12) == 144", "assert f(20) == 400", "assert f(31) == 961"]


@pytest.mark.parametrize("tests", [{"test_list": ASSERTED}, {"input_output": SQUARES}], ids=["asserts", "examples"])
def test_a30_a_program_that_knows_its_tests_is_marked_and_loses_nothing(tests):
    honest = verify("def f(x):\n    return x * x", **tests)
    assert honest["score"] == 1
    assert "hardcode_suspect" not in honest.get("details", {})
    told = verify("def f(x):\n    return {12: 144, 20: 400, 31: 961}[x]", **tests)
    assert (told["score"], told["details"]["hardcode_suspect"]) == (1, True)


def test_check_task_runs_the_reference():
    row = SAMPLE[1]
    assert check_task(row) is None
    assert "no reference solution" in check_task({"test_list": DOUBLED})
    assert "fails: mismatch" in check_task({**row, "code": "def similar_elements(a, b):\n    return ()"})
    apply = {"code": "def apply(f, x):\n    return f(x)"}
    assert check_task({**apply, "test_list": ["assert apply(lambda x: x + 1, 1) == 2"]}) is None
    assert "type Thread" in check_task(
        {**apply, "test_list": ["import threading\nassert apply(str, threading.Thread()) != ''"]}
    )
    assert "fails" in check_task(
        {"code": "import os\ndef f():\n    return os.urandom(8)", "test_list": ["assert f() == b'12345678'"]}
    )


# ------------------------------------------------------------------------------------------------------ other languages

CPP = "#include <iostream>\nint main() { int a, b; std::cin >> a >> b; std::cout << a + b << std::endl; }\n"


def test_cpp_by_command_template():
    assert verify(f"```cpp\n{CPP}```", language="cpp", **APPS)["score"] == 1.0
    wrong = verify(f"```cpp\n{CPP.replace('a + b', 'a - b')}```", language="cpp", **APPS)
    assert (wrong["score"], reason(wrong)) == (0.0, "mismatch")
    broken = verify("```cpp\nint main() { return nothing; }\n```", language="cpp", **APPS)
    assert (broken["score"], reason(broken)) == (0.0, "compile_error")


@pytest.mark.parametrize(("mb", "score"), [(12, 1.0), (17, 0.0), (20, 0.0), (40, 0.0)])
def test_a_compiled_program_too_large_to_be_run_is_its_authors_fault(mb, score):
    program = f'#include <stdio.h>\nvolatile char a[{mb}u << 20] = {{7}};\nint main(void) {{ printf("%d", a[0]); }}'
    verdict = verify(f"```c\n{program}\n```", language="c", inputs=[""], outputs=["7"])
    assert (verdict["score"], reason(verdict)) == (score, "" if score else "output_limit")


def test_a_compilers_time_comes_on_top():
    class Box:
        def command(self, argv, **_):
            compiling = "base64" in argv[-1]
            return Outcome("ok", 0, b"eA==" if compiling else b"1", b"", *[1000.0 if compiling else 0.0] * 2)

    run = Run(True, 5.0, 1024, 1.0)
    run.box = Box()
    task = task_of({}, None, "", [], [], None, ([""], ["1"]), None)
    results = _code_programs.programs(run, "", _code_programs.LANGUAGES["c"], task, Comparison())
    assert [result.reason for result in results] == [""]


def test_the_time_of_a_verdict_is_processor_time():
    class Busy:
        def run(self, source, **_):
            return Outcome("ok", 0, b"", b"", 50.0, 0.6)

    run = Run(True, 5.0, 1024, 1.0)
    run.box = Busy()
    run.python("", b"", run.limits())
    assert not run.over
    run.python("", b"", run.limits())
    assert run.over


def test_any_language_by_its_commands():
    settings = {"language": "shell", "file": "main.sh", "run_command": "sh main.sh"}
    assert verify("```shell\nread a b; echo $((a + b))\n```", **settings, **APPS)["score"] == 1.0


def test_a_language_that_is_not_installed_is_nobodys_wrong_answer():
    with pytest.raises(RuntimeError, match="'no-such-compiler', which language 'x' needs, is not installed"):
        verify("x", language="x", file="x", run_command="no-such-compiler x", **APPS)


# ----------------------------------------------------------------------------------------------------------- the codec

VALUES = [
    None, True, 0, -1, 2**53, -(2**64), 16**3000, 0.1, -0.0, float("inf"), "", "ä\ud800\x00", b"\x00\xff", bytearray(b"a"),
    1 + 2j, [], [1, [2]], (), (1, (2,)), {}, {(1, "a"): [None], 2: {}}, set(), {1, (2, 3)}, frozenset({1}), range(2, 9, 3),
    int, list,
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:20])
def test_plain_data_crosses_unchanged(value):
    back = loads(dumps(value))
    assert type(back) is type(value)
    assert repr(back) == repr(value)


def test_whatever_a_program_returns_can_be_shown():
    for value in (10**5000, [10**5000], KeyError(10**5000), "a" * 500, ValueError("a" * 500), "\ud800"):
        assert shown(value)
        assert len(shown(value, 100)) <= 100


def test_the_version_is_of_all_files_of_the_verifier(tmp_path, monkeypatch):
    import importlib.util

    versions = set()
    for name, changed in (("one", ""), ("two", ""), ("three", "_code_programs.py")):
        folder = tmp_path / name
        folder.mkdir()
        for path in (Path(__file__).parents[2] / "rewards").glob("*code*.py"):
            text = path.read_text() + ("# changed\n" if path.name == changed else "")
            (folder / path.name).write_text(text)
        spec = importlib.util.spec_from_file_location(f"code_{name}", folder / "code.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        versions.add(traits_of(module.verify).version)
    assert len(versions) == 2


def test_a_subclass_crosses_as_its_base():
    class Any(int):
        def __eq__(self, other):
            return True

        __hash__ = int.__hash__

    back = loads(dumps([Any(3)]))
    assert type(back[0]) is int
    assert back == [3]
    assert back != [4]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1", '{"unknown": 1}', '{"set": [[]]}', '{"int": "x"}', '{"type": "object2"}', '{"dict": [[1]]}', '{"tuple": 1}',
     '{"range": [1, 2, 0]}', '{"bytes": "0"}', '{"Fraction": "1/0"}', '{"set": [1], "list": []}', "9" * 5000, '{"date": 3}'],
)  # fmt: skip
def test_what_is_no_encoding_is_refused(text):
    with pytest.raises(Malformed):
        loads(text)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[" * 200 + "]" * 200, str([0] * 300_000), '{"range": [0, 9999999999, 1]}']
)
def test_what_is_too_large_is_refused(text):
    with pytest.raises(TooLarge):
        loads(text)


def test_a_hostile_text_that_would_take_long_is_refused():
    same_hash = json.dumps({"set": [{"int": hex(n * (2**61 - 1))} for n in range(5000)]})
    for text in (same_hash, '{"Fraction": "1e999999999"}', '{"Decimal": "1e999999999"}'):
        with pytest.raises(TooLarge):
            loads(text, hostile=True)
