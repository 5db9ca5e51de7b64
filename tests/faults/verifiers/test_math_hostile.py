"""Hostile and tricky answers against the math verifier: each ends soon, none is rewarded, none leaves a trace."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import sys
import threading
import time
from decimal import Decimal

import mpmath
import pytest

from rewards.math_equivalence import check_reference, verify
from rewards.maths import symbolic

# Wide, for a loaded machine: what is tested is that there is an end at all. The processor time is bounded tightly.
WALL_SECONDS = 60.0
CPU_SECONDS = 3.0
PROBES = [
    ("1/2", "0.5", 1.0),
    ("x+1", "1+x", 1.0),
    ("3", "4", 0.0),
    ("[0,1)", "(0,1)", 0.0),
    (r"\sqrt{2}", r"\sqrt{3}", 0.0),
]


def boxed(answer: str, reference: object, **policy: object) -> dict:
    return verify(rf"So \boxed{{{answer}}}.", reference, **policy)


def probe() -> list[float]:
    return [boxed(answer, gold)["score"] for gold, answer, _ in PROBES]


@pytest.fixture(autouse=True)
def _no_trace(tmp_path, monkeypatch):
    """After every case: the verifier still judges as before, and nothing of the process has changed."""
    monkeypatch.chdir(tmp_path)
    limit, digits = sys.getrecursionlimit(), mpmath.mp.dps
    yield
    assert probe() == [score for _, _, score in PROBES]
    assert list(tmp_path.iterdir()) == []
    assert (sys.getrecursionlimit(), mpmath.mp.dps) == (limit, digits)


ENDLESS = [
    "10^{10^{10}}",
    "9**9**9**9",
    "2^{2^{2^{2^{2^{2}}}}}",
    "factorial(10^9)",
    "(10^9)!",
    "((99!)!)!",
    r"\binom{10^9}{5\cdot10^8}",
    r"\sum_{n=1}^{100000000} n",
    r"\prod_{k=1}^{100000000} k",
    r"\sum_{k=1}^{1999}\sum_{j=1}^{1999}\sum_{i=1}^{1999} ijk",
    r"\int_0^1 \sin(x^{x^{x}}) dx",
    r"\lim_{x\to\infty} x^{x^x}",
    r"\exp(\exp(\exp(20)))",
    "((((3^{99})^{99})^{99})^{99})",
    "1e999999999",
    r"\lfloor 10^{300}\pi \rfloor",
    r"\sin(10^{30})",
    r"x\equiv 2\pmod{10^{10^{10}}}",
    r"k^{k^k}, k\in\mathbb{Z}",
    r"\{1,2,\dots,1000000000\}",
    r"\{n\in\mathbb{Z} : 1\le n\le 10^{12}\}",
    r"|(1+x)^{10^{6}}|\le 7",
    r"\mathbb{F}_{2^{10^9}}",
    "(1+i)^{100000000}",
]
HUGE = {
    "a million digits": "9" * 10**6,
    "5000 digits": "9" * 5000,
    "fractions nested 10^4 deep": r"\frac{" * 10**4,
    "10^5 braces": "{" * 10**5,
    "10^5 parentheses": "(" * 10**5,
    "1500 balanced parentheses": "(" * 1500 + "6" + ")" * 1500,
    "a tower of roots": r"\sqrt{" * 5000 + "2" + "}" * 5000,
    "left without right": r"\left(6",
    "digits and commas": "1," * 50_000 + "x",
    "digits and spaces": "1 " * 50_000,
    "a megabyte of minus": "-" * 10**6,
    "a megabyte of spaces": " " * 10**6 + "7",
    "a megabyte of lines": "\n" * 10**6 + "7",
    "signs after an operand": "6" + "!" * 300,
    "bars": "|" * 301 + "x",
    "1900 factors": "a" * 1900,
    "primes": "x'" * 400,
    "nested functions": "f(" * 55 + "6" + ")" * 55,
    "nested lists": "[1," * 50,
    "dollars": "$" * 10**5,
    "backslashes": "\\" * 10_000,
    "boxes in boxes": r"\boxed{" * 500 + "6",
    "a matrix of 10^4 symbols": r"\begin{pmatrix}"
    + r"\\".join("&".join(["x_{12}"] * 100) for _ in range(100))
    + r"\end{pmatrix}",
    "many words that introduce nothing": "7" + r"\text{ for all }" * 120 + " !",
    "spaces before the answer": "the answer" + " " * 20_000 + "7",
    "progressions": ",".join(rf"\sin({k}k)" for k in range(100)) + r",k\in\mathbb{Z}",
    "many hours": "2 hours " * 240,
    "a list of 0 to 1000": ",".join(map(str, range(1001))),
}
INJECTED = [
    "__import__('os').system('touch X')",
    r"2\pi+__import__('os').system('touch X')",
    r"\begin{pmatrix}open('X','w')\\1\end{pmatrix}",
    "[open('X','a'),2*pi][1]",
    "().__class__.__bases__[0].__subclasses__()",
    "lambda: 6",
    "f'{open(chr(88),chr(119))}'",
    "exec('x=6')",
    "print(6)",
    r"\text{__import__('os')}",
    "globals()['verify']",
    "setattr(__import__('sympy'),'simplify',lambda *a:0)",
    "__import__('mpmath').mp.__setattr__('dps',1)",
    "__import__('sys').setrecursionlimit(50)",
    "__import__('signal').alarm(1)",
    "5 if open('X','w') else 6",
]


@pytest.mark.parametrize("answer", [*ENDLESS, *HUGE.values(), *INJECTED], ids=[*ENDLESS, *HUGE, *INJECTED])
@pytest.mark.parametrize("form", [r"\boxed{%s}", "%s", "<answer>%s</answer>", "The final answer is $%s$."])
def test_b1_to_b6_what_is_endless_huge_or_code_is_wrong_and_ends(form, answer):
    wall, cpu = time.monotonic(), time.process_time()
    result = verify(form.replace("%s", answer), "5")
    assert result["score"] == 0.0
    assert result["reason"]
    assert time.process_time() - cpu < CPU_SECONDS
    assert time.monotonic() - wall < WALL_SECONDS


def test_b1_an_endless_reference_is_met_by_the_same_text_only():
    assert boxed("10^{10^{10}}", "10^{10^{10}}")["score"] == 1.0
    assert boxed("10^{10^{9}}", "10^{10^{10}}")["reason"] == "bad_reference"
    assert "too large" in check_reference("10^{10^{10}}")


def test_b1_past_its_processor_time_the_symbolic_process_is_killed_and_replaced():
    before = symbolic.ask("x", "x")
    assert symbolic.ask("5", r"\int_0^1 \sin(x^{x^{x}}) \cos(x^x) dx", seconds=0.01) == "timeout"
    assert symbolic.ask("x", "x") == before == "same"


@pytest.mark.parametrize("answer", ["nan", "NaN", "inf", "-inf", "zoo", "1/0", "0/0", "undefined", r"-\infty"])
def test_b7_what_is_no_number_equals_none(answer):
    assert boxed(answer, "5")["score"] == 0.0
    assert boxed("nan", "3")["score"] == 0.0
    assert (boxed(answer, r"\infty")["score"] == 1.0) == (answer == "inf")
    assert boxed(r"\infty", r"\infty")["score"] == 1.0


PAIRS = {  # reference, answer, score
    "B8": [
        ("1/2004!", "1/2006!", 0),
        ("1/2^{99}", "1/2^{98}", 0),
        ("n=2,3,4", "n=1,2,3", 0),
        ("D=(0,1)", "(0,1.5)", 0),
        (r"\pm 2021", "2021", 0),
        ("12:00", "1:00", 0),
        ("1-1/e", "1+1/e", 0),
        (r"1,2,\ldots,n", r"1,3,5,\ldots", 0),
    ],
    "B9": [
        ("1331 and 1728", "1728", 0),
        ("1331 and 1728", "1331,1728,5", 0),
        ("1728", "1331,1728", 0),
        ("1331 and 1728", "1728, 1331", 1),
    ],
    "B13": [
        ("(0,1)", "[0,1]", 0),
        ("[0,1]", "(0,1)", 0),
        ("(0,1)", "0<x<1", 1),
        ("0<x<1", "(0,1)", 1),
        ("[0,1]", "0<x<1", 0),
        ("0<x<1", "[0,1]", 0),
        (r"(0,1)\cup(2,3)", r"(2,3)\cup(0,1)", 1),
        (r"(0,1)\cup(1,2)", "(0,2)", 0),
        (r"(0,1]\cup(1,2)", "(0,2)", 1),
        (r"\emptyset", r"\{\}", 1),
        (r"\emptyset", r"\{0\}", 0),
        (r"\mathbb{R}\setminus\{0\}", r"(-\infty,0)\cup(0,\infty)", 1),
        (r"(-\infty,0)\cup(0,\infty)", r"x \ne 0", 1),
        (r"\mathbb{R}\setminus\{0\}", r"\mathbb{R}", 0),
    ],
    "B14": [
        (r"\{1,2,3\}", r"\{3,1,2\}", 1),
        (r"\{1,2\}", r"\{1,2,2\}", 1),
        ("(1,2)", "(2,1)", 0),
        ("(1,2)", r"\{1,2\}", 0),
        (r"\{1,2\}", "(1,2)", 0),
        ("1,1,2", "1,2,2", 1),  # as sets of values
        ("(1,2),(3,4)", "(3,4),(1,2)", 1),
    ],
    "B15": [
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}", 1),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}", 0),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "[[1,2],[3,4]]", 1),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&3\\2&4\end{pmatrix}", 0),
    ],
    "B16": [
        ("x=5", "5", 1),
        ("5", "x=5", 1),
        ("5", "5=x", 1),
        ("y=2x+1", "2x+1", 1),
        ("y=2x+1", "2x-y+1=0", 1),
        ("y=2x+1", "y=2x", 0),
        ("3", "x=y=3", 1),
        ("4", "3=4", 0),
        ("a+3z=0", "0", 0),
    ],
    "B17": [
        ("1000", "1,000", 1),
        ("1000", "1 000", 1),
        ("0.5", ".5", 1),
        ("1/2", "0.50", 1),
        ("0.5", "5e-1", 1),
        ("1/2", r"\frac12", 1),
        ("3/2", r"1\frac{1}{2}", 1),
        ("1000.5", "1.000,5", 0),
        ("1/2", "50%", 0),
        ("50%", "50", 1),
        ("3", "three", 1),
        ("3", "thirteen", 0),
        ("3", "III", 0),
        ("5", "5 cm", 1),
        ("5 cm", "5 m", 0),
        ("$5", "5", 1),
        (r"90^\circ", "90 degrees", 1),
        (r"90^\circ", r"90\pi", 0),
    ],
    "B18": [
        ("0.333", "0.3333333", 1),
        ("0.333", "0.3341", 0),
        ("1/3", "0.333", 0),
        ("1e-12", "0", 0),
        ("0", "e^{-200}", 0),
        ("391871", "391872", 0),
    ],
    "B19": [
        ("57", "５７", 1),
        ("5", "٥", 1),
        ("-5", "−5", 1),
        ("5", "5​", 1),
        ("A", "А", 0),  # the Cyrillic letter
        ("5", "5🙂", 0),
        ("5", "\ud800", 0),
        ("5", "6‮", 0),
        ("5", "6\x00", 0),
    ],
    "B20": [("5", r"\; 5 \,", 1), ("5", "~5~", 1), ("5", "5.", 1), ("5", "5 ;", 1)],
    "B21": [
        (r"\sqrt{2}+\sqrt{3}", r"\sqrt{5+2\sqrt{6}}", 1),
        ("(x+1)^{3000}", "(1+x)^{3000}", 1),
        ("(x+1)^{3000}", "(x+1)^{3001}", 0),
        (r"\sin x", "+".join(rf"\sin({k}x)" for k in range(1, 41)), 0),
    ],
    "B22": [
        ("x+1", "y+1", 0),
        (r"\sqrt{x^2}", "x", 0),
        (r"\sqrt{x^2}", "|x|", 1),
        (r"\ln(ab)", r"\ln a+\ln b", 1),
        ("2+3i", "2-3i", 0),
        ("2+3i", "3i+2", 1),
    ],
}


@pytest.mark.parametrize(
    ("reference", "answer", "score"),
    [pair for pairs in PAIRS.values() for pair in pairs],
    ids=[f"{row}-{k}" for row, pairs in PAIRS.items() for k in range(len(pairs))],
)
def test_b8_to_b22_what_equals_what(reference, answer, score):
    assert boxed(answer, reference)["score"] == score


CHEATS = [  # 40 answers that claim more than one thing, or nothing, for references they should not meet
    ("3", r"3 \text{ or } 4"),
    ("3", "3 or 4"),
    ("3", "3, 4"),
    ("3", r"\{3, 4\}"),
    ("3", "3 and 4"),
    ("3", "3; 4; 5"),
    ("3", r"\pm 3"),
    ("3", "3 = 4"),
    ("3", r"3 \text{ but actually } 4"),
    ("3", r"\neq 3"),
    ("3", r"\text{not } 3"),
    ("3", "not 3"),
    ("3", "x > 2"),
    ("3", "[2, 4]"),
    ("3", r"x \ge 3"),
    ("3", "3x"),
    ("3", "3!"),
    ("3", "3%x"),
    ("3", r"\text{maybe } 3"),
    ("3", "either 3 or 5"),
    ("3", "3 is wrong"),
    ("3", "1 2 3"),
    ("3", "3 4"),
    ("3", ",".join(map(str, range(101)))),
    ("3", r"3 \lor 4"),
    ("3", "(3, 4)"),
    ("3", "3/1/2"),
    ("3", "x"),
    ("3", r"\infty"),
    ("3", r"\mathbb{R}"),
    ("3", "?"),
    ("3", "reference"),
    ("1, 2", "1"),
    ("1, 2", "1, 2, 3"),
    ("(1, 2)", "(1, 2), (2, 1)"),
    ("[0, 1]", r"[0, 1] \text{ or } (0, 1)"),
    ("C", "C or D"),
    ("C", "A, B, C, D"),
    (r"\text{Friday}", r"\text{Friday or Monday}"),
    (r"\text{yes}", "yes and no"),
]


@pytest.mark.parametrize(("reference", "answer"), CHEATS)
def test_b10_a_hedge_is_never_rewarded(reference, answer):
    assert len(CHEATS) >= 40
    for form in (r"So \boxed{%s}.", "<answer>%s</answer>", "The answer is $%s$.", "#### %s"):
        assert verify(form.replace("%s", answer), reference)["score"] == 0.0, form


HONEST = [
    ("3", "3"),
    ("1, 2", "2, 1"),
    ("(1, 2)", "(1,2)"),
    ("C", "(C)"),
    (r"\text{Friday}", "Friday"),
    ("[0,1]", "[0, 1]"),
]


@pytest.mark.parametrize(("reference", "answer"), HONEST)
def test_b10_honest_twins_pass(reference, answer):
    for form in (r"So \boxed{%s}.", "<answer>%s</answer>", "The answer is $%s$.", "#### %s"):
        assert verify(form.replace("%s", answer), reference)["score"] == 1.0, form


def test_b10_the_last_answer_counts():
    assert verify(r"\boxed{3}, wait, that is wrong, so \boxed{4}", "3")["score"] == 0.0
    assert verify(r"\boxed{3}, wait, that is wrong, so \boxed{4}", "4")["score"] == 1.0
    assert verify(r"\boxed{3}, \boxed{4}", "3")["score"] == 0.0
    assert verify(r"\boxed{3}, \boxed{4}", "3,4")["score"] == 1.0


@pytest.mark.parametrize("end", [r"\boxed{4", r"\boxed{}", r"\boxed", r"\boxed{ }", r"\fbox{", r"\boxed{\frac{4}{1}"])
def test_b11_an_unfinished_box_is_no_answer_and_no_earlier_one_stands_in(end):
    assert verify(rf"\boxed{{3}} so {end}", "3") == {"score": 0.0, "reason": "no_answer"}


def test_b11_boxes_in_odd_shapes_are_read():
    for text in ("\\boxed {3}", "\\boxed\n{3}", r"\fbox{3}", r"\boxed{\boxed{3}}", "\\boxed{ 3\n}"):
        assert verify(text, "3")["score"] == 1.0


@pytest.mark.parametrize(
    "text",
    [
        r"<think>\boxed{3}</think> I give up.",
        r"<think>\boxed{3}",
        "```\n\\boxed{3}\n```\nThe answer is 4.",
        "% \\boxed{3}\nNo answer here.",
    ],
)
def test_b12_only_the_final_region_counts(text):
    assert verify(text, "3")["score"] == 0.0


@pytest.mark.timeout(300)
def test_b24_threads_loops_and_children_agree_and_the_hosts_alarm_is_left_alone():
    expected = probe()
    fired = []
    old = signal.signal(signal.SIGALRM, lambda *_: fired.append(1))
    signal.setitimer(signal.ITIMER_REAL, 1000)
    try:
        verify(r"\boxed{\int_0^1 \sin(x^{x^{x}}) dx}", "5")  # goes to the symbolic process
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
        assert signal.getsignal(signal.SIGALRM) is not signal.SIG_DFL
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert not fired
    results: list[list[float]] = []
    threads = [threading.Thread(target=lambda: results.append(probe())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WALL_SECONDS)
    assert results == [expected] * 8

    async def in_a_loop() -> list[float]:
        return await asyncio.to_thread(probe)

    assert asyncio.run(in_a_loop()) == expected
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(probe) == expected


@pytest.mark.parametrize("reference", [None, "", "   ", r"\frac{", "10^{10^{10}}", "{" * 100])
def test_b26_a_reference_that_cannot_be_used_is_unverified_and_found_at_load(reference):
    assert check_reference(reference)
    for response in (r"\boxed{5}", "no idea"):
        result = verify(response, reference)
        assert (result["score"], result["reason"]) == (None, "bad_reference")


@pytest.mark.parametrize(
    "reference", ["5", 5, 2.5, Decimal("2.5"), "x+1", r"\text{Paris}", "(A)", "[0,1)", "She has 2.\n#### 72"]
)
def test_b26_a_good_reference_is_not_reported(reference):
    assert check_reference(reference) is None


def test_b28_verdicts_do_not_depend_on_spacing_or_on_who_is_the_reference():
    same = [
        ("1/2", "0.5"),
        (r"\frac{a}{b}", "a/b"),
        ("1,2", "2,1"),
        ("[0,1]", r"0\le x\le 1"),
        ("0", "-0"),
        ("x+1", "1+x"),
    ]
    for a, b in same:
        for gold, answer in ((a, b), (b, a), (a, a), (b, b), (a, f" {b} "), (a, b.replace(",", " , "))):
            assert boxed(answer, gold)["score"] == 1.0, (gold, answer)
