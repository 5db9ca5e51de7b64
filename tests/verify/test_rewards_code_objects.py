"""Programs of objects: what the tests may do with them, what is honestly left unverified, and what no object buys."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rewards import _code_pytest as stand_in
from rewards._code_codec import dumps, loads
from rewards.code import check, verify

SET = yaml.safe_load((Path(__file__).parents[1] / "data" / "code_objects.yaml").read_text())
QUICK = (
    "stack",
    "exception_tree",
    "endless_generator",
    "coroutines",
    "int_enumeration",
    "decorator",
    "objects_of_tests",
)


def verdict(program, tests, **columns):
    result = verify(program, tests=tests, **columns)
    return result["score"], result.get("reason"), result.get("details")


@pytest.mark.parametrize("case", [case for case in SET if case["name"] in QUICK], ids=lambda case: case["name"])
def test_an_honest_program_passes_and_one_step_from_it_does_not(case):
    columns = {key: case[key] for key in ("tests", "test", "entry_point") if key in case}
    assert verify(case["program"], **columns)["score"] == 1.0
    for old, new in case["wrong"].items():
        assert verify(case["program"].replace(old, new), **columns)["score"] == 0.0


@pytest.mark.parametrize("setup", ["root = Node(1)", "from solution import Node\nroot = Node(1)"])
def test_a_class_that_the_setup_makes_objects_of_is_the_programs_to_define(setup):
    columns = {"test_list": ["assert value(root) == 1"], "test_setup_code": setup}
    program = "class Node:\n    def __init__(self, v):\n        self.v = v\n\ndef value(node):\n    return node.v\n"
    assert check(**columns) is None
    assert check(**columns, code=program) is None
    assert verify("def value(node):\n    return 1\n", **columns)["score"] == 0.0


# ------------------------------------------------------------------------------------------- what no object can buy

TRICK = """
class {name}:
    def __init__(self, *a): self.a = a
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __contains__ = __lt__
    def __sub__(self, other): return self
    __rsub__ = __add__ = __radd__ = __mul__ = __sub__
    def __abs__(self): return self
    def __hash__(self): return 0
    def area(self): return {name}()
    def items(self): return {name}()
"""


@pytest.mark.parametrize(
    ("name", "test"),
    [
        ("solve", "assert solve(3) == 7"),
        ("solve", "r = solve(3)\nassert r in [7]"),
        ("solve", "for x in [3]:\n    assert 6 < solve(x) < 8"),
        ("solve", "for x in [3]:\n    assert abs(solve(x) - 7) < 1e-6"),
        ("solve", "for x in [3]:\n    assert 7 in solve(x)"),
        ("solve", "import pytest\nassert solve(3) == pytest.approx(7)"),
        (
            "solve",
            "import unittest\nclass T(unittest.TestCase):\n    def test(self):\n        self.assertAlmostEqual(solve(3), 7)",
        ),
        ("Circle", "c = Circle(1)\nassert abs(c.area() - 3.14159) < 1e-3"),
        ("Circle", "c = Circle(1)\nassert Circle(1) == Circle(1)"),
        ("Circle", "c = Circle(1)\nassert not Circle(1) != Circle(1)"),
    ],
)
def test_an_object_that_agrees_with_everything_passes_nothing(name, test):
    assert verify(TRICK.format(name=name), tests=[test])["score"] == 0.0


@pytest.mark.parametrize("answer", ["1", "[0]", "Yes()"])
def test_nor_does_one_that_says_yes_in_other_words(answer):
    program = (
        f"class Yes:\n    def __bool__(self): return True\nclass A:\n    def __eq__(self, other): return {answer}\n"
    )
    assert verify(program, tests=["a, b = A(), A()\na.x = 1\nassert a == b"])["score"] == 0.0


@pytest.mark.parametrize(
    "tests",
    [
        "assert issubclass(Child, Base)\nassert Child().name() == 'child'",
        "import pytest\n@pytest.mark.parametrize('kind', list(Kind))\ndef test_kinds(kind):\n    assert kind.value in (1, 2)",
    ],
)
def test_classes_are_classes_before_anything_is_called(tests):
    program = "import enum\nclass Base: pass\nclass Child(Base):\n    def name(self): return 'child'\nclass Kind(enum.Enum):\n    A = 1\n    B = 2"
    assert verify(program, tests=tests)["score"] == 1.0
    assert verify(program.replace("'child'", "''").replace("2", "3"), tests=tests)["score"] == 0.0


def test_a_class_of_the_tests_that_derives_from_the_programs_is_unverified():
    tests = "class Mine(Base):\n    def name(self):\n        return 'mine'\nassert greet(Mine()) == 'hello mine'"
    program = "class Base:\n    def name(self): return ''\ndef greet(x): return 'hello ' + x.name()"
    score, reason, details = verdict(program, tests)
    assert (score, reason) == (None, "untestable"), details
    assert "Mine" in details["error"]


def test_nor_does_a_class_whose_class_agrees_with_everything():
    kind = "class M(type):\n    def __eq__(s, o): return True\n    __lt__ = __gt__ = __contains__ = __eq__\n    __hash__ = type.__hash__\n"
    program = kind + "class C(metaclass=M): pass\ndef solve(x): return C"
    for test in ("assert solve(3) == 7", "assert 6 < solve(3) < 8", "assert 7 in solve(3)", "assert solve(3) in [7]"):
        assert verify(program, tests=[f"for x in [3]:\n    {test}"])["score"] == 0.0


@pytest.mark.parametrize("test", ["c = Circle(1)\nassert 3.1 < c.area() < 3.2", "c = Circle(1)\nassert 7 in c.items()"])
def test_nor_is_it_asked_about_plain_data_where_the_tests_did_not_make_it(test):
    assert verdict(TRICK.format(name="Circle"), [test])[:2] == (None, "untestable")


def test_what_the_tests_expect_never_reaches_the_program():
    spy = """
seen = []
class Spy:
    def __init__(self, *a): pass
    def value(self): return Spy()
    def __eq__(self, other): seen.append(repr(other)); return True
    __lt__ = __gt__ = __sub__ = __rsub__ = __contains__ = __eq__
    def __getattr__(self, name):
        seen.append(name)
        raise AttributeError(name)
def looked(): return seen
"""
    test = "s = Spy()\nassert s.value() != 23770\nlist(map(lambda x: x == 23770, [s, s.value()]))\nassert '23770' not in str(looked())"
    score, reason, details = verdict(spy, [test])
    assert (score, reason) == (None, "untestable"), details
    assert "plain data in __ne__" in details["error"] or "plain data in __eq__" in details["error"]


@pytest.mark.parametrize(
    "look",
    [
        "f.__globals__['SECRET']",
        "f.__code__.co_consts",
        "f.__closure__",
        "type(f).__call__(f, 1).__class__.__init__.__globals__",
        "f.__self__",
        "node._hidden",
        "node.__dict__",
        "node.__class__.__init__.__globals__",
        "object.__getattribute__(node, '_number_') and node.__module__.SECRET",
    ],
)
def test_the_program_does_not_see_behind_what_it_is_given(look):
    program = f"def leak(f, node):\n    try:\n        return str({look})\n    except Exception as error:\n        return 'none'"
    test = """
SECRET = 'canary-91'
class Node:
    def __init__(self):
        self._hidden = 'canary-91'
def callback(x, secret='canary-91'):
    return 'canary-91'[:0]
def test_leak():
    assert 'canary' not in leak(callback, Node())
"""
    assert verify(program, tests=test)["score"] == 1.0


LIST = "class Stack:\n    def __init__(self): self.items = [1]\n    def __len__(self): return len(self.items)\n"
EVERYWHERE = "import json, os, struct\nfor fd in range(3, 64):\n    try: os.write(fd, {})\n    except OSError: pass\n"


@pytest.mark.parametrize(
    ("program", "score"),
    [
        (f"import os, time\nos._exit = lambda code: time.sleep(1000)\n{LIST}", 1.0),
        (EVERYWHERE.format("b'junk' * 10") + LIST, 0.0),
        (EVERYWHERE.format("struct.pack('<Q', 2**40)") + LIST, 0.0),
        (
            EVERYWHERE.format("(lambda d: (struct.pack('<Q', len(d)) + d) * 20)(json.dumps([[], '[1]']).encode())")
            + LIST,
            0.0,
        ),
        (LIST.replace("return len(self.items)", "import os; os._exit(0)"), 0.0),
    ],
    ids=["never ends", "junk", "a message without end", "forged messages", "ends"],
)
def test_a_program_that_breaks_the_conversation_decides_about_nothing_but_itself(program, score):
    assert verify(program, tests=["s = Stack()\nassert len(s) == 1"])["score"] == score


# -------------------------------------------------------------------------------------------- the row's own fault

TWICE = "def f(x):\n    if x < 0: raise ValueError('negative')\n    return x + 1"


@pytest.mark.parametrize(
    "tests",
    [
        ["import no_such_module\nassert no_such_module.g(f(1)) == 2", "assert f(2) == 3"],
        ["assert f(2) == 3", "data = open('missing.json').read()\nassert f(1) == len(data)"],
        ["assert 1 + 1 == 3", "assert f(2) == 3"],
        ["import os.no_such\nassert f(1) == 2", "assert f(2) == 3"],
        ["import pytest\ndef test_it(capsys):\n    f(1)\n    assert capsys.readouterr().out == ''"],
        ["from unittest.mock import patch\nwith patch('builtins.input', return_value='1'):\n    assert f(1) == 2"],
        ["import io, sys\nsys.stdout = io.StringIO()\nf(1)\nassert sys.stdout.getvalue() == ''"],
        ["import tempfile\nassert f(len(tempfile.mkdtemp()) * 0) == 1"],
        ["from solution import f\nfrom helpers import g\ndef test_it():\n    assert f(1) == g(1)"],
    ],
)
def test_tests_that_fail_by_themselves_are_the_rows_fault_though_another_calls_the_program(tests):
    score, reason, details = verdict(TWICE, tests)
    assert (score, reason) == (None, "bad_reference"), details
    assert check(tests=tests) is not None


def test_a_name_that_neither_the_tests_nor_the_prompt_know_is_the_rows_fault():
    row = {"tests": ["for x in [1]:\n    assert f(x) == expected_value"], "prompt": "Write a function f."}
    assert "expected_value" in str(check(**row))
    assert verify(TWICE, **row)["score"] is None


@pytest.mark.parametrize(
    "tests",
    [
        ["import pytest\nwith pytest.raises(ValueError):\n    f(-1)", "assert f(2) == 3"],
        ["with pytest.raises(ValueError, match='negative'):\n    f(-1)", "assert f(2) == 3"],
        "import pytest\n@pytest.mark.parametrize('x, y', [(1, 2), (2, 3)])\ndef test_f(x, y):\n    assert f(x) == y",
        "from solution import f\nimport pytest\nclass TestF:\n    def test_a(self):\n        assert f(1) == pytest.approx(2.0)",
        "import unittest\nclass T(unittest.TestCase):\n    def test(self):\n        self.assertRaises(ValueError, f, -1)",
        "import solution\ndef test_f():\n    assert solution.f(1) == 2",
    ],
)
def test_rows_of_pytest_and_unittest(tests):
    assert verdict(TWICE, tests)[0] == 1.0
    assert verdict(TWICE.replace("x + 1", "x").replace("ValueError", "KeyError"), tests)[0] == 0.0


# ---------------------------------------------------------------------------------------------------------- the parts


@pytest.mark.parametrize(
    "value",
    [
        "__import__('collections').Counter('aab')",
        "__import__('collections').OrderedDict([(2, 1), (1, 2)])",
        "__import__('collections').defaultdict(list, {1: [2]})",
        "__import__('collections').deque([1, 2], 5)",
        "__import__('collections').namedtuple('P', 'x y')(1, (2,))",
        "__import__('datetime').timedelta(days=-1, microseconds=5)",
    ],
)
def test_the_types_of_the_standard_library_are_kept(value):
    made = eval(value)
    back = loads(dumps(made))
    assert back == made
    assert type(back).__name__ == type(made).__name__
    assert getattr(back, "maxlen", None) == getattr(made, "maxlen", None)
    assert getattr(back, "default_factory", None) == getattr(made, "default_factory", None)


@pytest.mark.parametrize(
    ("expected", "actual", "same"),
    [
        (0.3, 0.1 + 0.2, True),
        (0.3, 0.31, False),
        ([1.0, 2.0], [1.0, 2.0000001], True),
        ([1.0, 2.0], [1.0], False),
        ({"a": 1.0}, {"a": 1.0}, True),
        ({"a": 1.0}, {"b": 1.0}, False),
        ("a", "a", True),
        (1, True, False),
        (float("nan"), float("nan"), False),
        (float("inf"), float("inf"), True),
        (float("inf"), 1e300, False),
    ],
)
def test_approx(expected, actual, same):
    assert (actual == stand_in.pytest_module().approx(expected)) is same
