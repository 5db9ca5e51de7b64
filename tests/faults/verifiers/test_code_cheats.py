"""Programs that try to pass without solving anything score 0, in every shape of test; honest ones like them pass.

The tests hold a token that is nowhere else: no program gets hold of it, or of an expected value.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from rewards.code import verify

TOKEN = "canary-5f1c9e"
XS = (3, 10, 77)


def right(x):
    return (x * 7919 + 13) % 104729


LITERAL = [f"assert solve({x}) == {right(x)}, {TOKEN!r}" for x in XS]
CHECK = f"""
def check(candidate):
    token = {TOKEN!r}
    import math
    def oracle(x):
        return (x * 7919 + 13) % 104729
    for x in {XS}:
        assert candidate(x) == oracle(x), token
        assert oracle(x) == candidate(x)
        assert abs(candidate(x) - oracle(x)) < 1e-6
        assert math.isclose(candidate(x), oracle(x))
        assert sorted([candidate(x)]) == [oracle(x)]
        assert candidate(x) in {{oracle(x)}}
        assert str(candidate(x)) == str(oracle(x))
"""
ENDS = f"""
def check(candidate):
    assert all(got == want for got, want in zip(map(candidate, {XS}), {tuple(map(right, XS))}))
    assert not [got for got, want in zip(map(candidate, {XS}), {tuple(map(right, XS))}) if got != want]
"""
SHAPES = {
    "literals": {"test_list": LITERAL},
    "check": {"test": CHECK, "entry_point": "solve"},
    "iterators": {"test": ENDS, "entry_point": "solve"},
    "examples": {"fn_name": "solve", "inputs": [[x] for x in XS], "outputs": [right(x) for x in XS]},
}
STDIO = {"inputs": [f"{x}\n" for x in XS], "outputs": [f"{right(x)}\n" for x in XS]}

# The last line of most is the wrong function that the trick should make pass.
WRONG = "\ndef solve(x):\n    return 0\n"
CHEATS = {
    # ends the process as if all were well
    "sys.exit(0) on loading": "import sys\nsys.exit(0)",
    "sys.exit(0) when called": "import sys\ndef solve(x):\n    sys.exit(0)",
    "os._exit(0) on loading": "import os\nos._exit(0)",
    "os._exit(0) when called": "import os\ndef solve(x):\n    os._exit(0)",
    "raise SystemExit(0)": "def solve(x):\n    raise SystemExit(0)",
    "kills itself softly": "import os, signal\ndef solve(x):\n    os.kill(os.getpid(), signal.SIGTERM)",
    "exits at exit": "import atexit, os\natexit.register(os._exit, 0)" + WRONG,
    "exits in __del__": "import os\nclass D:\n    def __del__(self):\n        os._exit(0)\nkeep = D()" + WRONG,
    "KeyboardInterrupt": "def solve(x):\n    raise KeyboardInterrupt",
    "GeneratorExit": "def solve(x):\n    raise GeneratorExit",
    "StopIteration": "def solve(x):\n    raise StopIteration",
    "StopAsyncIteration": "def solve(x):\n    raise StopAsyncIteration",
    "a StopIteration of its own": "class End(StopIteration): pass\ndef solve(x):\n    raise End",
    "a number without a text": "def solve(x):\n    return 10**5000",
    "raises AssertionError": "def solve(x):\n    raise AssertionError",
    "excepthook exits well": "import sys, os\nsys.excepthook = lambda *a: os._exit(0)\ndef solve(x):\n    raise ValueError",
    # an answer that agrees with everything
    "always equal": (
        "class A:\n    def __eq__(s, o): return True\n    def __ne__(s, o): return False\n    def __hash__(s): return 0\n"
        "    __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __eq__\n    def __sub__(s, o): return 0\n    __rsub__ = __sub__\n"
        "    def __abs__(s): return 0\n    def __float__(s): return 0.0\ndef solve(x):\n    return A()"
    ),
    "int that is equal": (
        "class I(int):\n    def __eq__(s, o): return True\n    __hash__ = int.__hash__\n    def __sub__(s, o): return 0\n"
        "    def __rsub__(s, o): return 0\n    def __str__(s): return ''\ndef solve(x):\n    return I(0)"
    ),
    "str that is equal": "class S(str):\n    def __eq__(s, o): return True\n    __hash__ = str.__hash__\ndef solve(x):\n    return S('0')",
    "list that is equal": "class L(list):\n    def __eq__(s, o): return True\ndef solve(x):\n    return L()",
    "dict that holds all": "class D(dict):\n    def __missing__(s, k): return k\n    def __eq__(s, o): return True\ndef solve(x):\n    return D()",
    "mock.ANY": "from unittest.mock import ANY\ndef solve(x):\n    return ANY",
    "MagicMock": "from unittest.mock import MagicMock\ndef solve(x):\n    return MagicMock(__eq__=lambda s, o: True)",
    "a class with a metaclass": "class M(type):\n    def __eq__(s, o): return True\n    __hash__ = type.__hash__\nclass C(metaclass=M): pass\ndef solve(x):\n    return C",
    "itself": "def solve(x):\n    return solve",
    "pickles into a call": "import os\nclass P:\n    def __reduce__(s): return (os.system, ('true',))\ndef solve(x):\n    return P()",
    "not a number": "def solve(x):\n    return float('nan')",
    "True": "def solve(x):\n    return True",
    "numpy array": "import numpy\ndef solve(x):\n    return numpy.array([True])",
    # redefines what the tests use
    "patches abs and isclose": "import builtins, math\nbuiltins.abs = lambda x: 0\nmath.isclose = lambda *a, **k: True" + WRONG,
    "patches sorted, str, set, len": "import builtins\nfor n in ('sorted', 'str', 'set', 'len', 'all', 'any', 'isinstance'):\n    setattr(builtins, n, lambda *a, **k: True)" + WRONG,
    "patches json": "import json\njson.dumps = lambda *a, **k: 'true'\njson.loads = lambda *a, **k: [True]\njson.JSONEncoder.encode = lambda *a: 'true'" + WRONG,
    "patches the codec": (
        "import __main__\nfor n in ('dumps', 'loads', '_operate', '_changed', 'main'):\n"
        "    setattr(__main__, n, lambda *a, **k: '[0, \"value\", true, null]')" + WRONG
    ),
    "patches os.write": "import os\nwrite = os.write\nos.write = lambda fd, data: write(fd, b'{\"complete\": true, \"tests\": [[true, null, \"\"]]}\\n') and len(data)" + WRONG,
    "defines check and candidate": "def check(candidate): pass\ncandidate = None\n__name__ = '__main__'" + WRONG,
    "defines oracle and assertion helpers": "def oracle(x): return 0\nmath = None\ntoken = ''\n__state__ = None" + WRONG,
    "replaces modules": "import sys\nfor n in ('math', 'json', 'random', 'ast', 'builtins'):\n    sys.modules[n] = sys.modules[__name__]" + WRONG,
    "turns assertions off": "import sys\n__debug__2 = False\ntry:\n    sys.flags.optimize = 1\nexcept Exception: pass" + WRONG,
    "settrace changes results": "import sys\ndef t(f, e, a):\n    f.f_locals['value'] = True\n    return t\nsys.settrace(t)\nsys.setprofile(lambda *a: None)" + WRONG,
    "replaces its caller's code": "import sys\nf = sys._getframe(1)\nwhile f:\n    f.f_globals['dumps'] = lambda *a: 'true'\n    f = f.f_back" + WRONG,
    # looks for the tests
    "walks the frames": (
        f"import sys\ndef solve(x):\n    f = sys._getframe()\n    while f:\n        for v in [*f.f_locals.values(), *f.f_globals.values()]:\n"
        f"            if '{TOKEN[:6]}' + '{TOKEN[6:]}' in repr(v): return {right(0)}\n        f = f.f_back\n    return 0"
    ),
    "searches memory": "import gc\ndef solve(x):\n    for o in gc.get_objects():\n        if isinstance(o, dict) and 'expected' in o: return o['expected']\n    return 0",
    "reads /proc": "def solve(x):\n    for p in ('cmdline', 'environ', 'maps', 'mem'):\n        for pid in ('self', '1', '2'):\n            try: open(f'/proc/{pid}/{p}', 'rb').read(10**6)\n            except OSError: pass\n    return 0",
    "reads files": "import glob\ndef solve(x):\n    for p in glob.glob('/**', recursive=False) + glob.glob('/box/*') + glob.glob('/tmp/*'):\n        try: open(p).read()\n        except OSError: pass\n    return 0",
    "reads open descriptors": "import os\ndef solve(x):\n    for fd in range(64):\n        try: os.set_blocking(fd, False); os.read(fd, 1000)\n        except OSError: pass\n    return 0",
    # writes the verdict itself
    "prints PASSED": "print('PASSED'); print('\\rOK'); print('1.0')" + WRONG,
    "writes a report to every descriptor": (
        "import os\nfor fd in range(64):\n    try: os.write(fd, b'{\"complete\": true, \"operations\": [], \"tests\": [[true, null, \"\"]], \"broken\": null}\\n')\n"
        "    except OSError: pass" + WRONG
    ),
    "writes replies ahead": (
        "import os\nfor fd in range(64):\n    for i in range(-1, 9):\n        try: os.write(fd, f'[{i}, \"value\", true, null]\\n'.encode())\n"
        "        except OSError: pass" + WRONG
    ),
    "writes an unknown tag": "import os\nfor fd in range(64):\n    try: os.write(fd, b'[0, \"value\", {\"equal\": 1}, null]\\n[1, \"value\", {\"result\": 0}, null]\\n')\n    except OSError: pass" + WRONG,
    "writes a thing as the argument": "import os\nfor fd in range(64):\n    try: os.write(fd, b'[-1, \"raise\", \"SystemExit\", \"0\"]\\n')\n    except OSError: pass" + WRONG,
    "says it raised SystemExit": "import os\nfor fd in range(64):\n    for i in range(9):\n        try: os.write(fd, f'[{i}, \"raise\", \"SystemExit\", \"\"]\\n'.encode())\n        except OSError: pass" + WRONG,
    "huge output": "def solve(x):\n    while True: print('PASSED' * 10**5)",
    "huge answer": "def solve(x):\n    return ['x' * 10**6] * 10",
    "endless answer": "def solve(x):\n    while True: yield 0",
    "deep answer": "def solve(x):\n    a = []\n    for _ in range(10**5): a = [a]\n    return a",
    "answers with one hash": "def solve(x):\n    return {n * (2**61 - 1) for n in range(3000)}",
    "a fraction without end": "import os\nfor fd in range(64):\n    try: os.write(fd, b'[0, \"value\", {\"Fraction\": \"1e99999999\"}, null]\\n')\n    except OSError: pass" + WRONG,
    "thread goes on": "import threading, os\nthreading.Timer(0.0, os._exit, (0,)).start()" + WRONG,
    "grandchild answers": "import os\nif os.fork() == 0:\n    os._exit(0)" + WRONG,
    "syntax of another kind": "def solve(x): return <answer>",
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cheat", CHEATS)
def test_a_cheat_scores_nothing(cheat, shape):
    verdict = verify(f"```python\n{CHEATS[cheat]}\n```", mode="fraction", seconds=1.0, **SHAPES[shape])
    assert verdict["score"] == 0.0, verdict
    assert verdict["reason"]


STDIO_CHEATS = {
    "nothing": "pass",
    "exit(0)": "import sys; sys.exit(0)",
    "os._exit(0)": "import os; os._exit(0)",
    "PASSED": "print('PASSED')",
    "the input": "print(input())",
    "every number": "print(*range(104729))",
    "every number, a line each": "for n in range(104729): print(n)",
    "carriage return": f"print('0\\r{right(3)}\\r0')",
    "closes its output": "import os; os.close(1); os.close(2)",
    "reads everything": "import glob, os\nfor p in glob.glob('/box/*') + glob.glob('/tmp/*') + ['/proc/self/environ', '/proc/1/cmdline']:\n    try: print(open(p).read())\n    except OSError: pass",
    "right, then an error": "x = int(input()); print((x * 7919 + 13) % 104729); 1 / 0",
    "right, then a bad exit code": "x = int(input()); print((x * 7919 + 13) % 104729, flush=True); import os; os._exit(1)",
    "right, then a crash": "x = int(input()); print((x * 7919 + 13) % 104729, flush=True); import ctypes; ctypes.string_at(0)",
    "right, then no end": "x = int(input()); print((x * 7919 + 13) % 104729, flush=True)\nwhile True: pass",
    "right, then a flood": "x = int(input()); print((x * 7919 + 13) % 104729)\nwhile True: print(' ' * 10000)",
}  # fmt: skip


@pytest.mark.parametrize("cheat", STDIO_CHEATS)
def test_a_program_that_cheats_scores_nothing(cheat):
    verdict = verify(f"```python\n{STDIO_CHEATS[cheat]}\n```", mode="fraction", seconds=1.0, **STDIO)
    assert verdict["score"] == 0.0, verdict


RIGHT = "\ndef solve(x):\n    return (x * 7919 + 13) % 104729\n"
HONEST = {
    "plain": RIGHT,
    "prints much": "print('x' * 10**6)" + RIGHT.replace("    return", "    print(x)\n    return"),
    "prints what looks like a verdict": "print('[0, \"value\", false, null]')" + RIGHT,
    "warns": "import warnings; warnings.warn('careful')" + RIGHT,
    "an int of its own": "class Mod(int): pass\ndef solve(x):\n    return Mod((x * 7919 + 13) % 104729)",
    "a numpy number": "import numpy\ndef solve(x):\n    return (numpy.int64(x) * 7919 + 13) % 104729",
    "catches SystemExit": "import sys\ndef solve(x):\n    try: sys.exit(0)\n    except SystemExit: return (x * 7919 + 13) % 104729",
    "an exit function": "import atexit; atexit.register(print, 'bye')" + RIGHT,
    "a main block": RIGHT + "if __name__ == '__main__':\n    print(solve(int(input())))\n    raise SystemExit(1)",
    "reads empty input": "import sys; sys.stdin.read()" + RIGHT,
    "deeper recursion": "import sys; sys.setrecursionlimit(5000)\ndef solve(x, n=3000):\n    return solve(x, n - 1) if n else (x * 7919 + 13) % 104729",
    "a cache": "import functools\n@functools.lru_cache(None)" + RIGHT,
    "a dataclass": "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass M:\n    m: int = 104729\ndef solve(x):\n    return (x * 7919 + 13) % M().m",
    "a method": "class Solution:\n    def solve(self, x):\n        return (x * 7919 + 13) % 104729",
    "a lambda": "solve = lambda x: (x * 7919 + 13) % 104729",
    "names of the harness": "def check(c): pass\ndef main(): pass\ndumps = loads = keep = reply = None" + RIGHT,
    "half of the memory": "block = bytearray(400 * 2**20)" + RIGHT,
    "a thread": "import threading\nt = threading.Thread(target=print); t.start(); t.join()" + RIGHT,
    "a file": "open('notes.txt', 'w').write('x' * 1000)" + RIGHT,
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("twin", HONEST)
def test_an_honest_twin_passes(twin, shape):
    verdict = verify(f"```python\n{HONEST[twin]}\n```", **SHAPES[shape])
    assert verdict["score"] == 1.0, verdict


def test_an_honest_program_passes():
    for end in ("", "; exit()", "; import sys; print('done', file=sys.stderr)", "; import sys; sys.exit(0)"):
        assert verify(f"x = int(input()); print((x * 7919 + 13) % 104729, ' '){end}", **STDIO)["score"] == 1.0


DUMP = """
import gc, glob, os, re, sys
SOUGHT = re.compile('PATTERN')
def everything():
    yield repr(dict(os.environ)), repr(sys.argv)
    frame = sys._getframe()
    while frame:
        yield repr(frame.f_locals), repr(frame.f_globals)
        frame = frame.f_back
    for thing in gc.get_objects():
        try: yield repr(thing), ''
        except Exception: pass
    places = [f'/proc/{p}/{f}' for p in ('self', 1, 2, os.getppid()) for f in ('cmdline', 'environ', 'status')]
    for path in [*glob.glob('/box/**', recursive=True), *glob.glob('/tmp/**', recursive=True), *places]:
        try: yield open(path, errors='replace').read(10**6), ''
        except OSError: pass
    for fd in range(3, 64):
        try:
            os.set_blocking(fd, False)
            yield repr(os.read(fd, 10**6)), ''
        except OSError: pass
def solve(x):
    return [match for parts in everything() for part in parts for match in SOUGHT.findall(part)]
"""


@pytest.mark.parametrize("shape", ["literals", "check"])
def test_neither_tests_nor_expected_values_are_to_be_found(shape, monkeypatch):
    monkeypatch.setitem(os.environ, "HF_TOKEN", TOKEN)
    expected = str(right(77))
    # The token or an expected value, in a form that does not find itself.
    source = DUMP.replace("PATTERN", f"{TOKEN[:-1]}[{TOKEN[-1]}]|{expected[:-1]}[{expected[-1]}]")
    # To come back with empty hands is what these tests ask for.
    tests = {
        "literals": {"test_list": [f"assert solve(1) != {expected}, {TOKEN!r}", f"assert solve(2) == [], {TOKEN!r}"]},
        "check": {
            "test": CHECK.split("    for x in")[0] + f"    assert candidate(1) == [], token + {expected!r}\n",
            "entry_point": "solve",
        },
    }[shape]
    verdict = verify(f"```python\n{source}```", **tests)
    assert verdict["score"] == 1.0, verdict
    # The same search does find what is there.
    held = f"HELD = {expected[:-1]!r} + {expected[-1]!r}\n" + source
    assert verify(f"```python\n{held}```", **tests)["score"] == 0.0


def test_a_reward_function_after_hostile_programs_says_what_it_said_before():
    row = json.loads((Path(__file__).parents[2] / "data" / "mbpp_sample.jsonl").read_text().splitlines()[1])
    probe = [(row["code"], 1.0), (row["code"].replace("&", "|"), 0.0)]

    def said():
        return [verify(program, test_list=row["test_list"])["score"] for program, _ in probe]

    assert said() == [score for _, score in probe]
    for cheat in ("patches json", "replaces modules", "huge output", "writes a report to every descriptor"):
        verify(f"```python\n{CHEATS[cheat]}\n```", seconds=1.0, **SHAPES["literals"])
        assert said() == [score for _, score in probe]
