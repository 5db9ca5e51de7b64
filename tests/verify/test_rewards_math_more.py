"""Forms of answers beyond those of the labelled data: each row is a rule, with what it must not let through."""

from __future__ import annotations

import pytest

from rewards.math_equivalence import check_reference, verify

# reference: (answers that are it, answers that are not)
ROWS = {
    # what is written around an answer
    r"\frac{3}{4}": (
        [r"&= \frac{3}{4}", r"\color{blue}{\frac34}", r"{\color{red} 3/4}", r"\textcolor{red}{\frac{3}{4}}", r"\frac34 \checkmark",
         r"\frac34 \quad \blacksquare", r"\frac34 \\", r"<b>3/4</b>", r"\left. \frac34 \right.", r"\hspace{2mm} \frac34", r"\therefore \frac34",
         r"\Rightarrow x = \frac34", r"\implies \frac34", r"\text{Answer: } \frac34", r"\text{The answer is } \frac34", r"\nicefrac{3}{4}",
         r"\frac34 \approx 0.76", r"\frac34 \label{eq:1}", r"{3 \over 4}", r"P(A) = \frac34", r"\text{Probability} = \frac34"],
        [r"< \frac34", r"\frac34 \approx 2", r"\frac{3}{4}\%", r"(\frac34)'", r"\text{The answer is not } \frac34", r"\text{half of } \frac34"],
    ),
    # a number, the quantity it is said to be, and what makes it another number
    "7": (
        ["f(3) = 7", "f(f(2)) = 7", "f^{-1}(3) = 7", "m + n = 7", "xy = 7", r"a^2+b^2 = 7", r"\frac{AB}{CD} = 7", "[ABC] = 7", r"|A \cap B| = 7",
         r"\overline{AB} = 7", r"\deg f = 7", r"\|v\| = 7", r"\lfloor x \rfloor = 7", "E[X] = 7", r"\text{exactly } 7", r"n \text{ is } 7",
         r"\text{The answer is 7}", "7^{th}", r"7^{\text{th}}", r"\max\{3, 7\}", r"\text{lcm}(1, 7)", "7 (dollars)", "7 USD"],
        [r"\text{at least } 7", r"\text{at most } 7", r"\text{less than } 7", r"\text{more than }7", r"\text{cannot be } 7", r"\text{square root of } 7",
         r"7 \text{ hundred}", r"7 \text{ tenths}", r"7 \text{ squared}", r"7 \text{ factorial}", r"7 \text{ if } x > 0, 8 \text{ otherwise}", r"7,\ldots",
         r"7\text{ (8 also works)}", "7'", r"\text{all integers less than } 7", r"7 \text{ and a half}", "2x = 7", "x^2 = 7", "7 = 8",
         r"m + n = 8", r"7 \pmod{5}"],
    ),
    "103041": (["103'041", r"103\,041"], ["103'042"]),
    "-2": ([r"\text{negative } 2", r"\text{minus }2", "{-}2"], [r"2", r"\text{minus }-2"]),
    r"0.\overline{36}": (["0.(36)", r"0.\dot{3}\dot{6}", r"0.363636\ldots"], ["0.3(6)", "0.36"]),
    r"6\frac{1}{2}": ([r"6 \text{ and } \frac{1}{2}", r"6 \text{ and a half}"], [r"6, \frac12", "3"]),
    # units
    r"5\text{ hours}": (["5 hours", r"\text{5 hours}"], [r"5\text{ hours and 30 minutes}", r"5 \text{ and a half hours}"]),
    r"\$18": (["USD 18", "18 USD", r"\textdollar 18"], [r"18\%", r"€18"]),
    r"12\text{ cm}^2": ([r"12\text{ units}^2"], [r"12\text{ units}^3"]),
    r"90^\circ": (["90^o", r"90^\text{o}", r"\frac{\pi}{2}"], [r"90\pi", "90^0"]),
    r"\frac{\pi}{3}": ([r"60^\circ"], [r"\frac{\pi}{3}^\circ", "60"]),
    # intervals and sets
    r"(-\infty,5)\cup(5,\infty)": (
        [r"(-\infty,5) U (5,\infty)", r"(-\infty,5)\bigcup(5,\infty)", r"(-\infty,5)\text{ union }(5,\infty)", r"\mathbb{R} - \{5\}",
         r"\text{all real numbers except } 5", r"x \in \mathbb{R}, x \neq 5"],
        [r"\text{all real numbers}", r"\text{all real numbers except } 6", r"\mathbb{R}"],
    ),
    r"(3,\infty)": (
        [r"\text{all real numbers greater than } 3", r"x \text{ in } (3,\infty)", r"\text{Domain: } (3,\infty)"],
        [r"\text{all real numbers at least } 3", r"\text{positive real numbers}"],
    ),
    r"\mathbb{R}": ([r"-\infty < x < \infty", r"\text{the set of all real numbers}", r"\Bbb{R}"], [r"\text{all positive real numbers}"]),
    r"\emptyset": ([r"\text{the empty set}", r"\text{no solution}"], [r"\text{one solution}", "0"]),
    r"\{1,2,3\}": ([r"\{1,2\} \cup \{3\}"], [r"\{1,2\} \cup \{4\}"]),
    # tuples and systems
    "(6,5)": (
        ["A(6, 5)", r"\mathbf{v} = (6, 5)", r"\text{Point } (6,5)", "<6, 5>", r"\begin{cases} x = 6 \\ y = 5 \end{cases}", r"x = 6 \\ y = 5", r"\{(6,5)\}"],
        ["A(5, 6)", "[6, 5)", r"\begin{cases} x = 5 \\ y = 6 \end{cases}", r"\{(6,5), (5,6)\}"],
    ),
    r"\left(\frac{7}{45}, \frac{4}{45}\right)": ([r"(7/45, 4/45)"], [r"[\frac{7}{45}, \frac{4}{45})"]),
    "(1,2),(3,4)": (["x=1,y=2;x=3,y=4", r"x=1, y=2 \text{ or } x=3, y=4"], [r"x=1, y=4 \text{ or } x=3, y=2"]),
    r"\frac{5}{2}, -3": ([r"\text{The roots are } \frac52 \text{ and } -3", r"\text{both } -3 \text{ and } \frac52"], [r"\text{both } 3 \text{ and } \frac52"]),
    r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}": (["Matrix([[1], [2]])"], ["Matrix([[2], [1]])"]),
    # formulas
    r"\binom{10}{3}": (["C(10,3)", "{}_{10}C_3", "^{10}C_3", "C_{10}^3", "10C3"], ["C(10,4)", "C_3^{10}"]),
    r"\tan x": ([r"\operatorname{tg} x", r"\mathrm{tg}\, x"], [r"\operatorname{ctg} x"]),
    r"e^{i\pi/3}": ([r"\operatorname{cis}(\pi/3)", r"\operatorname{cis} 60^\circ"], [r"\operatorname{cis} 30^\circ"]),
    r"\sqrt[3]{4}": (["∛4", r"\root 3 \of 4"], ["∛5", r"\root 4 \of 3"]),
    r"\sin^2 x": ([r"{\sin}^2{x}"], [r"{\sin}{x^2}"]),
    "n!": ([r"\Gamma(n+1)"], [r"\Gamma(n)"]),
    "m^n - m": (["m(m^{n-1}-1)", "-m + m^n"], ["n^m - n", "m^n", "m^n + m"]),
    "y = 2x+1": ([r"x = \frac{y-1}{2}", r"\frac{y-1}{2} = x"], ["x = 2y+1", r"x = \frac{y+1}{2}"]),
    "f(x) = x^2 + 1": (["f(t) = t^2 + 1", r"x^2 + 1 \text{ for all } x"], ["f(t) = t^2 + t", "f(t) = x^2 + t"]),
    # bases, ratios, times of day, text, choices
    "101_2": (["101_{(2)}", "{101}_2", r"\text{101}_2", "0b101", "n = 101_2"], ["101_{(3)}", "0b110", "0x101"]),
    "3:4": (["3 to 4", r"\frac{3}{4}", r"\text{3:4}"], ["4 to 3", r"\frac43"]),
    "2:30": (["2:30 p.m.", r"\text{2:30 PM}"], ["2:31 PM", "3:30"]),
    "2:30 AM": ([r"\text{2:30 a.m.}"], ["2:30 PM"]),
    r"\text{no solution}": (["No solutions", r"\text{There is no solution}", r"\emptyset"], [r"\text{one solution}"]),
    r"\text{Evelyn}": ([r"\text{``Evelyn''}", r"\textbf{\text{Evelyn}}"], [r"\text{not Evelyn}"]),
    r"\text{(B)}": (
        [r"\text{Option B}", "Option B", r"\text{choice B}", r"\textbf{(B)}\ 12", r"\text{(B) } \frac{1}{2}", "[B]", r"\mathbf{B}", r"\text{Answer: B}"],
        [r"\text{Option C}", r"\textbf{(C)}\ 12", "(B),(C)", "B or C", r"\text{(B) or (C)}", "B/C", "BC", r"\text{neither B nor C}"],
    ),
}  # fmt: skip
RIGHT = [(reference, answer) for reference, (right, _) in ROWS.items() for answer in right]
WRONG = [(reference, answer) for reference, (_, wrong) in ROWS.items() for answer in wrong]


@pytest.mark.parametrize(("reference", "answer"), RIGHT)
def test_the_same_in_another_form(reference, answer):
    assert verify(rf"The answer is $\boxed{{{answer}}}$.", reference)["score"] == 1.0


@pytest.mark.parametrize(("reference", "answer"), WRONG)
def test_another_answer_in_a_like_form(reference, answer):
    result = verify(rf"The answer is $\boxed{{{answer}}}$.", reference)
    assert result["score"] == 0.0
    assert result["reason"]


@pytest.mark.parametrize("reference", ROWS)
def test_each_of_these_references_can_be_read(reference):
    assert check_reference(reference) is None


@pytest.mark.parametrize(
    "response",
    [
        "<final_answer>42</final_answer>",
        "[ANSWER] 42",
        '{"reasoning": "6 times 7", "answer": "42"}',
        "A: 42",
        "... = 42",
        "`Answer: 42`",
        "The answer is 42 (dollars).",
        "Thus the answer is\n$42\\text{ square\nunits}$",
    ],
)
def test_where_the_answer_stands(response):
    assert verify(response, "42")["score"] == 1.0
    assert verify(response.replace("42", "43"), "42")["score"] == 0.0
