"""Kinds of answers with a rule of their own: each row is a reference, what is it, and near misses that are not."""

from __future__ import annotations

import pytest

from rewards.math_equivalence import check_reference, verify

# Named coordinates, antiderivatives, congruences, parameters, sentences, number words, sets, vectors, times, objects, cases, units.
ROWS = {
    "(a,b)=(2,13)": (
        ["(a,b)=(2,13)", "(b,a)=(13,2)", "b=13, a=2", "(x,y)=(2,13)"],
        ["(a,c)=(2,13)", "a=13,b=2"],
    ),
    "(b,a)=(13,2)": (
        ["a=2, b=13"],
        [],
    ),
    "a=2,b=13": (
        ["(b,a)=(13,2)"],
        ["(b,a)=(2,13)"],
    ),
    "(2,13)": (
        [],
        ["(b,a)=(13,2)"],
    ),
    "(x,y,z)=(1,2,3)": (
        ["(z,y,x)=(3,2,1)"],
        ["(z,y,x)=(1,2,3)"],
    ),
    r"(r,\theta)=(2,\pi)": (
        [r"\theta=\pi, r=2", r"\theta=\pi, r=2"],
        [r"\theta=2, r=\pi"],
    ),
    r"(2,\pi)": (
        [],
        [r"\theta=2, r=\pi"],
    ),
    r"(4,\frac{\pi}{6},\frac\pi3)": (
        [r"\rho=4,\theta=\frac\pi6,\phi=\frac\pi3"],
        [],
    ),
    "x^2+C": (
        ["x^2+5+C"],
        [],
    ),
    "x^2+c": (
        [],
        ["x^2+5+c"],
    ),
    r"\ln|x|+c": (
        [r"\ln|2x|+c"],
        [],
    ),
    r"\ln|x|+C": (
        [],
        [r"\ln|x|"],
    ),
    r"\ln|x|": (
        [],
        [r"\ln|x|+C"],
    ),
    "A+B+C": (
        [],
        ["A+B+C+1"],
    ),
    "2x+C": (
        [],
        ["x+C"],
    ),
    r"\sin^2 x + C": (
        [],
        [r"-\cos^2 x"],
    ),
    "x^2+2x+c": (
        [],
        ["(x+1)^2+c"],
    ),
    "a+b+c": (
        [],
        ["a+b+c+1"],
    ),
    r"\frac{(x+1)^2}{2}+C": (
        [r"\frac{x^2}{2}+x+C"],
        [],
    ),
    r"\tan x+C": (
        [],
        [r"\sec x+C"],
    ),
    "Ce^x": (
        [],
        ["Ce^x+1"],
    ),
    "e^x+C": (
        [],
        ["e^x+2C"],
    ),
    r"F(x)=\sin^2x+C": (
        [r"F(x)=-\cos^2x+C"],
        [],
    ),
    r"\int f=\sin^2x+C": (
        [r"-\cos^2x+K"],
        [],
    ),
    "x+C": (
        [],
        ["x-C", "C"],
    ),
    "3x+k": (
        [],
        ["3x+k+1"],
    ),
    "5+C": (
        [],
        ["C"],
    ),
    r"x\equiv 2\pmod 5": (
        [
            r"x=2 \pmod 5",
            r"x\equiv 2 (\bmod 5)",
            r"x \equiv 2 (\text{mod } 5)",
            "x ≡ 2 (mod 5)",
            r"x\equiv 2\mod 5",
            r"x=5m-3, m\in\mathbb Z",
        ],
        [
            r"y\equiv 2\pmod 5",
            "2",
            r"x\equiv 2",
            r"x\equiv 2.5\pmod 5",
            r"x=5m+3, m\in\mathbb Z",
            r"x\not\equiv 2\pmod 5",
            r"x\equiv 2 \pmod 5 \text{ or } x\equiv 3\pmod 5",
        ],
    ),
    "2": (
        [],
        [r"x\equiv 2\pmod 5", r"\text{two thirds}"],
    ),
    r"x\equiv \pm 2\pmod 5": (
        [r"x\equiv 2,3\pmod 5"],
        [r"x\equiv 2\pmod 5"],
    ),
    r"x\equiv 1,4\pmod 5": (
        [r"x\equiv 4 \text{ or } 1\pmod 5"],
        [],
    ),
    r"2x\equiv 4\pmod{10}": (
        [],
        [r"x\equiv 2\pmod{10}"],
    ),
    r"p\equiv -1\pmod{4}": (
        [r"p\equiv 3\pmod 4"],
        [],
    ),
    r"a\equiv b\pmod n": (
        [r"a\equiv b+n\pmod n"],
        [r"a\equiv b+1\pmod n"],
    ),
    r"x\equiv 1 \pmod 5, x\equiv 4\pmod 5": (
        [r"x\equiv 4 \pmod 5, x\equiv 1\pmod 5"],
        [],
    ),
    r"x\equiv 2\pmod{5^{100}}": (
        [],
        [r"x\equiv 2\pmod{10^{10^{10}}}"],
    ),
    r"k\pi, k\in\mathbb{Z}": (
        [r"n\pi \text{ where } n \text{ is an integer}", r"k\pi \text{ for any integer } k", r"k\pi"],
        [r"k\pi, k\in\mathbb{N}", r"m\pi, k\in\mathbb{Z}"],
    ),
    r"k\pi": (
        [r"k\pi, k\in\mathbb{Z}"],
        [],
    ),
    r"x=2k\pi \text{ or } x=\frac\pi2+2k\pi, k\in\mathbb Z": (
        [r"x=\frac\pi2+2n\pi \text{ or } x=2n\pi, n\in\mathbb Z"],
        [],
    ),
    r"x=\pm\frac\pi3+2k\pi, k\in\mathbb Z": (
        [r"x=2n\pi\pm\frac\pi3,n\in\mathbb Z"],
        [r"x=\frac\pi3+2n\pi,n\in\mathbb Z"],
    ),
    r"a_n=3n+1, n\ge 1": (
        [],
        [r"a_n=3n-2, n\ge 2"],
    ),
    r"f(n)=n+1, n\ge 0": (
        [],
        [r"f(n)=n, n\ge 1"],
    ),
    r"n=3k+1, k\ge 0": (
        [r"n=3k-2,k\ge 1"],
        [r"n=3k-2,k\ge 0"],
    ),
    r"ak+n, k\in\mathbb Z": (
        [],
        [r"an+k, n\in\mathbb Z"],
    ),
    r"an+k, k\in\mathbb Z": (
        [],
        [r"an+n, n\in\mathbb Z"],
    ),
    r"(s+t,s-t), s,t\in\mathbb R": (
        [r"(a+b,a-b), a,b\in\mathbb R", r"(a+b,b-a), a,b\in\mathbb R"],
        [],
    ),
    r"(s+t,s), s,t\in\mathbb R": (
        [],
        [r"(a+b,2b), a,b\in\mathbb R"],
    ),
    r"y=x^2, x\ge 0": (
        [r"y=x^2, x\ge 0"],
        [r"y=t^2,t\ge 0", "y=x^2"],
    ),
    r"x=k\pi, k=0,\pm1,\pm2,\dots": (
        [r"x=n\pi,n\in\mathbb Z"],
        [],
    ),
    r"x=\frac{\pi}{4}+\frac{k\pi}{2},k\in\mathbb Z": (
        [r"x=\frac{3\pi}{4}+\frac{k\pi}{2},k\in\mathbb Z"],
        [r"x=\frac{\pi}{3}+\frac{k\pi}{2},k\in\mathbb Z"],
    ),
    r"60^\circ+360^\circ k, k\in\mathbb Z": (
        [r"420^\circ+360^\circ n, n\in\mathbb Z"],
        [],
    ),
    r"2^k, k\in\mathbb Z": (
        [r"2^n, n\in\mathbb Z"],
        [r"2^{k+1}, k\in\mathbb Z"],
    ),
    r"x > 5, x\in\mathbb Z": (
        ["x>5"],
        [],
    ),
    r"\{5k+2 : k\in\mathbb Z\}": (
        [r"\{5n-3 \mid n\in\mathbb Z\}"],
        [],
    ),
    r"\text{even}": (
        [r"\text{The function is even.}"],
        [
            r"\text{It is an even function}",
            r"\text{The function is not even}",
            r"\text{The function is odd, not even}",
            r"\text{the opposite of odd is even}",
            r"\text{It isn't even}",
            r"\text{It cannot be said that it is even}",
        ],
    ),
    r"\text{Briana}": (
        [r"\text{The fastest is Briana}"],
        [
            r"\text{Evelyn beats Briana}",
            r"\text{Evelyn is slower than Briana}",
            r"\text{The fastest is Evelyn}",
            r"\text{The winner is either Briana}",
        ],
    ),
    r"\text{Evelyn}": (
        [r"\text{Evelyn is the answer}"],
        [r"\text{Evelyn is slower than Briana}", r"\text{Evelyn is not the fastest}", r"\text{Who is Evelyn}"],
    ),
    r"\text{Yes}": (
        ["Yes"],
        [r"\text{Yes, it is not}", r"\text{Yes, but only if n is odd}", r"\text{No, yes}"],
    ),
    r"\text{No}": (
        [r"\text{No, it does not converge.}"],
        [r"\text{No, it is yes}", r"\text{No solution}"],
    ),
    r"\text{circle}": (
        [r"\text{The graph is a circle.}"],
        [r"\text{The graph is almost a circle.}", r"\text{The graph is a circle or a line.}"],
    ),
    r"\text{Friday}": (
        [r"\text{The day after is Friday}"],
        [r"\text{The day before Friday}", r"\text{It is the day before Friday}"],
    ),
    r"\text{prime}": (
        [],
        [r"\text{The number is not prime.}"],
    ),
    r"\text{True}": (
        [r"\text{True, since it is closed}"],
        [r"\text{True, this is false}"],
    ),
    r"\text{odd}": (
        [],
        [r"\text{the function is neither odd}"],
    ),
    "3": (
        [r"\text{three}", "three"],
        [
            r"\text{thirteen}",
            r"\text{three or four}",
            r"\text{not three}",
            r"\text{about three}",
            r"\text{three times}",
            r"\text{third}",
            r"\text{three or more}",
        ],
    ),
    "144": (
        [r"\text{one hundred and forty-four}"],
        [r"\text{one hundred four}"],
    ),
    r"\text{three}": (
        ["3"],
        ["4"],
    ),
    "21": (
        [r"\text{twenty one}"],
        [],
    ),
    "100": (
        [r"\text{one hundred}"],
        [],
    ),
    "-3": (
        [r"\text{negative three}"],
        [],
    ),
    "1": (
        ["one"],
        [],
    ),
    "6": (
        [],
        [r"\text{half a dozen}"],
    ),
    r"\{-2,0,2\}": (
        [r"\{\pm2,0\}"],
        [],
    ),
    r"\{-2,-1,1,2\}": (
        [r"\{\pm1,\pm2\}"],
        [],
    ),
    r"\{-2,2\}": (
        [],
        [r"\{\pm2,0\}"],
    ),
    "1,2,3,4,5": (
        [r"1,2,\ldots,5", r"1,\ldots,5"],
        [],
    ),
    "1,3,5,7": (
        [r"1,3,\ldots,7"],
        [r"1,2,\ldots,7"],
    ),
    "2,3,4,5": (
        [],
        [r"2,\ldots,5"],
    ),
    r"\{1,2,4,8\}": (
        [],
        [r"\{1,2,4,\ldots,8\}"],
    ),
    r"1,2,\ldots,n": (
        [r"1,2,\ldots,n"],
        [],
    ),
    r"\{n\in\mathbb Z: 1\le n\le 10\}": (
        [r"\{1,2,\ldots,10\}"],
        [],
    ),
    r"\{n\in\mathbb Z: 1< n\le 10\}": (
        [],
        [r"\{1,2,\ldots,10\}"],
    ),
    r"\{n\in\mathbb N: n\le 3\}": (
        [],
        [r"\{1,2,3\}"],
    ),
    r"\{n\in\mathbb Z^+: n\le 3\}": (
        [r"\{1,2,3\}"],
        [],
    ),
    r"\{n\in\mathbb Z: n\ge 3\}": (
        [r"\{m\in\mathbb Z: m\ge 3\}"],
        [r"[3,\infty)", r"\{m\in\mathbb Z: m> 3\}"],
    ),
    r"[3,\infty)": (
        [],
        [r"\{n\in\mathbb Z: n\ge 3\}"],
    ),
    r"a\le b\le c": (
        [r"c\ge b\ge a"],
        [],
    ),
    r"a\le b< c": (
        [r"c> b\ge a"],
        [r"c\ge b> a"],
    ),
    "a<b=c": (
        ["c=b>a"],
        [],
    ),
    "a<b": (
        ["b>a"],
        ["b<a"],
    ),
    r"\{z\in\mathbb C: |z|\le 1\}": (
        [r"\{z : |z|\le 1\}"],
        ["[-1,1]", r"\{z\in\mathbb R: |z|\le 1\}"],
    ),
    "[-1,1]": (
        [],
        [r"\{z\in\mathbb C: |z|\le 1\}", r"|z|\le1"],
    ),
    r"\{(x,y): x^2+y^2\le 1\}": (
        [r"\{(u,v)\in\mathbb R^2: 1\ge u^2+v^2\}"],
        [],
    ),
    r"\{(x,y): x\le y\}": (
        [r"\{(y,x): y\le x\}"],
        [r"\{(y,x): x\le y\}"],
    ),
    r"\{(x,y): x>0,y>0\}": (
        [r"\{(x,y): y>0 \text{ and } x>0\}"],
        [r"\{(x,y): y>0\}"],
    ),
    "[-10,4]": (  # a problem said again is not its answer
        [r"-10\le x\le 4"],
        [r"|x+3|\le 7"],
    ),
    "|z|<1": (
        ["1>|z|"],
        ["-1<z<1"],
    ),
    "[-5,5]": (
        [],
        ["|x|=5"],
    ),
    r"\{-5,5\}": (
        [],
        [r"|x|\le 5"],
    ),
    "|x-2|<x": (
        ["|x-2|<x"],
        [],
    ),
    r"\begin{pmatrix}2\\-11\end{pmatrix}": (
        ["(2,-11)^T", r"[2,-11]^{\top}", r"2\hat{i}-11\hat{j}", r"2\hat{\imath}-11\hat{\jmath}"],
        [r"-11\mathbf i+2\mathbf j"],
    ),
    r"\begin{pmatrix}2&-11\end{pmatrix}": (
        [],
        ["(2,-11)^T"],
    ),
    "(2,-11)": (
        ["(2,-11)^T"],
        [],
    ),
    r"\begin{pmatrix}2\\-11\\0\end{pmatrix}": (
        [r"2\mathbf i-11\mathbf j"],
        [],
    ),
    r"\begin{pmatrix}2\\0\\-11\end{pmatrix}": (
        [r"2\mathbf i-11\mathbf k"],
        [],
    ),
    r"\begin{pmatrix}2\\-11\\3\end{pmatrix}": (
        [],
        [r"2\mathbf i-11\mathbf j"],
    ),
    r"2\mathbf{i}-11\mathbf{j}": (
        [r"\langle 2,-11\rangle", r"-11\mathbf{j}+2\mathbf{i}"],
        [r"2\mathbf{j}-11\mathbf{i}"],
    ),
    r"\mathbf{v}=2\mathbf{i}-11\mathbf{j}": (
        ["(2,-11)"],
        [],
    ),
    "3+2i": (
        [r"3+2\mathbf{i}"],
        [],
    ),
    "(AB)^T": (
        ["B^TA^T"],
        [],
    ),
    "A^T": (
        [r"A^{\top}"],
        ["A"],
    ),
    r"\text{March 15}": (
        [r"\text{15th of March}", "15 March"],
        [r"\text{15 May}", r"\text{March 16}"],
    ),
    r"\text{1:03 PM}": (
        ["13:03"],
        [],
    ),
    r"\text{1:03 AM}": (
        [],
        ["13:03"],
    ),
    "13:03": (
        [r"\text{1:03 p.m.}"],
        [],
    ),
    "12:00": (
        [],
        ["1:00"],
    ),
    r"AB\parallel CD": (
        [r"DC \parallel BA"],
        [r"AC \parallel BD", r"AB\perp CD"],
    ),
    r"\angle BAC": (
        [r"\angle CAB"],
        [r"\angle ACB"],
    ),
    r"\angle ABC=30^\circ": (
        [r"\angle CBA=30^\circ"],
        [],
    ),
    r"\mathbb{Z}_4": (
        [r"\mathbb{Z}/4\mathbb{Z}"],
        [r"\mathbb{Z}/2\mathbb{Z}\times\mathbb{Z}_2"],
    ),
    r"\mathbb{F}_4": (
        ["GF(2^2)"],
        [r"\mathbb{Z}_4"],
    ),
    r"\mathbb{Z}": (
        [],
        [r"\mathbb{Q}"],
    ),
    r"\mathbb{Z}\times\mathbb{Z}_2": (
        [r"\mathbb{Z}_2\oplus\mathbb{Z}"],
        [],
    ),
    r"\begin{cases} x & x \ge 0 \\ -x & x<0\end{cases}": (
        [r"\begin{cases} -x & \text{if } x<0 \\ x & \text{otherwise}\end{cases}"],
        [
            r"\begin{cases} x & x>0 \\ -x & x<0\end{cases}",
            r"\begin{cases} x & \text{if } x<0 \\ -x & \text{otherwise}\end{cases}",
        ],
    ),
    r"f(x)=\begin{cases} 1 & 0\le x<1 \\ 2 & 1\le x\le 2\end{cases}": (
        [r"\begin{cases} 2, & 1\le x\le 2 \\ 1, & 0\le x<1\end{cases}"],
        [r"\begin{cases} 1 & 0\le x\le 1 \\ 2 & 1< x\le 2\end{cases}"],
    ),
    r"\begin{cases} 1 & x=0 \\ 2 & x\ne 0\end{cases}": (
        [r"\begin{cases} 2 & x\ne 0 \\ 1 & x=0\end{cases}"],
        [r"\begin{cases} 2 & x=0 \\ 1 & x\ne 0\end{cases}"],
    ),
    r"\begin{cases} 1 & x<0 \\ 2 & x> 0\end{cases}": (
        [],
        [r"\begin{cases} 1 & y<0 \\ 2 & y> 0\end{cases}"],
    ),
    "(6,5)": (
        [r"\begin{cases} x = 6 \\ y = 5 \end{cases}"],
        [],
    ),
    r"162\text{ minutes}": (
        [r"2\text{ h }42\text{ min}", r"9720\text{ seconds}"],
        [r"2\text{ hours }41\text{ min}"],
    ),
    r"5\text{ cm}": (
        [r"50\text{ mm}"],
        [r"5\text{ mm}"],
    ),
    r"5\text{ cm}^2": (
        [r"500\text{ mm}^2"],
        [r"50\text{ mm}^2", r"5\text{ cm}"],
    ),
    r"\$32.50": (
        [r"3250\text{ cents}"],
        [r"32.5\text{ cents}"],
    ),
    "162": (
        [],
        [r"2\text{ hours }42\text{ min}"],
    ),
    r"5\text{ feet }3\text{ inches}": (
        [r"63\text{ inches}"],
        [r"5.3\text{ feet}"],
    ),
    r"2\text{ kg}": (
        [r"2000\text{ g}"],
        [],
    ),
    r"5\text{ m}": (
        [],
        [r"5\text{ min}"],
    ),
    r"1\text{ m}": (
        [],
        [r"60\text{ s}"],
    ),
    r"3\text{ hours and }20\text{ minutes}": (
        [r"200\text{ min}"],
        [],
    ),
    r"7\text{ days}": (
        [r"1\text{ week}"],
        [],
    ),
    r"3\text{ million dollars}": (
        [r"\$3{,}000{,}000"],
        [],
    ),
    r"2.7\text{ hours}": (
        [r"162\text{ min}"],
        [],
    ),
}
PAIRS = [
    (reference, answer, score)
    for reference, both in ROWS.items()
    for score, side in zip((1.0, 0.0), both, strict=True)
    for answer in side
]
SAID = [
    ("Since $7\\cdot 4=28$, the answer is therefore 28.", 1.0),
    ("The answer is, thus, 28.", 1.0),
    ("The answer, therefore, is 28.", 1.0),
    ("The answer is simply\n\n28", 1.0),
    ("The answer is exactly 28 apples.", 1.0),
    ("The answer is equal to $28$.", 1.0),
    ("The answer is therefore not 28", 0.0),
    ("The answer is exactly half of 28.", 0.0),
    ("The answer is therefore at least 28.", 0.0),
    ("The answer is therefore 28 or 29.", 0.0),
]


@pytest.mark.parametrize(("reference", "answer", "score"), PAIRS)
def test_what_is_the_reference_and_what_only_looks_like_it(reference, answer, score):
    assert verify(rf"So \boxed{{{answer}}}.", reference)["score"] == score


@pytest.mark.parametrize("reference", ROWS)
def test_the_references_can_be_read(reference):
    assert check_reference(reference) is None


@pytest.mark.parametrize(("response", "score"), SAID)
def test_adverbs_before_the_answer_say_nothing_and_denials_do(response, score):
    assert verify(response, "28")["score"] == score
