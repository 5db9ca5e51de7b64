from __future__ import annotations

import sys
import threading

import pytest

from rewards.math_equivalence import verify

EQUAL = [
    ("42", "42"),
    ("1000", "1,000"),
    ("1414", r"1\,414"),
    ("24", "24."),
    ("0.5", ".50"),
    (r"\frac{1}{2}", "0.5"),
    (r"\frac12", r"\dfrac{1}{2}"),
    (r"-\frac{3}{4}", "-0.75"),
    (r"3\frac{1}{2}", "7/2"),
    (r"2\sqrt{3}", r"\sqrt{12}"),
    (r"6\sqrt{2}", "6√2"),
    (r"6\pi", "6π"),
    ("x+1", "1+x"),
    ("x^2-1", "(x-1)(x+1)"),
    ("5", "x=5"),
    ("[0,1)", r"\left[0, 1\right)"),
    ("1,2,3", "3,2,1"),
    ("2,3", r"2 \text{ or } 3"),
    ("204_5", "204_{5}"),
    (r"30^\circ", "30°"),
    (r"\text{Paris}", "paris"),
    (r"\text{(A)}", "A"),
    ("5", r"5\text{ cm}"),
    ("5", r"\$5"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\[2pt]2\end{pmatrix}"),
    ("16", "2^{2^2}"),
    ("e^{x^2+y^2}", "e^{x^2}e^{y^2}"),
    ("10^{10^{10}}", "10^{10^{10}}"),
]
DIFFERENT = [
    ("391871", "391872", "mismatch"),
    ("0.22", "22", "mismatch"),
    ("1/3", "0.333", "mismatch"),
    ("-5 1/2", "-9/2", "mismatch"),
    ("[0,1)", "(0,1)", "mismatch"),
    ("(1,2)", "(2,1)", "mismatch"),
    ("1331,1728", "1728", "mismatch"),
    ("2021", r"\pm 2021", "mismatch"),
    ("204_5", "204_6", "mismatch"),
    ("Paris", "sirap", "mismatch"),
    ("3", "nan", "mismatch"),
    ("12:00", "1:00", "mismatch"),
    ("-14", r"\neq -14", "hedged"),
    ("3", r"3 \text{ or } 4", "hedged"),
    ("4", "3=4", "hedged"),
    ("42", r"42 \text{ but actually } 43", "hedged"),
    ("5", "10^{10^{10}}", "too_large"),
    ("5", "9**9**9**9", "too_large"),
    ("5", r"\binom{10^9}{5\cdot 10^8}", "too_large"),
    ("5", "(10^9)!", "too_large"),
    ("5", "2^{2^{2^{2^{2^{2}}}}}", "too_large"),
    ("5", "(" * 100 + "5" + ")" * 100, "too_large"),
    ("5", "__import__('os').getcwd()", "unparsable"),
]


@pytest.mark.parametrize(("reference", "answer"), EQUAL)
def test_the_same_quantity_in_another_form_is_correct(reference, answer):
    assert verify(rf"Thus \boxed{{{answer}}}.", reference) == {"score": 1.0, "extracted": answer}


@pytest.mark.parametrize(("reference", "answer", "reason"), DIFFERENT)
def test_another_quantity_or_a_hedge_is_wrong_with_its_reason(reference, answer, reason):
    result = verify(rf"Thus \boxed{{{answer}}}.", reference)
    assert (result["score"], result["reason"]) == (0.0, reason)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"\boxed{1}, no: \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        ("3 + 4 = 7\n#### 1,234", "1,234"),
        ("<answer> 7 </answer>", "7"),
        ("The final answer is $x+1$.", "x+1"),
        ("The answer is **42**.", "42"),
        ("The answer is 42 apples.", "42"),
        ("Answer: -3.5", "-3.5"),
        ("it costs 3 more, so 12.", "12"),
        (r"<think>\boxed{1}</think>\boxed{2}", "2"),
        (r"#### 1 then \boxed{2}", "2"),
    ],
)
def test_the_answer_is_found(response, answer):
    assert verify(response, answer) == {"score": 1.0, "extracted": answer}


@pytest.mark.parametrize(
    "response",
    ["no idea", "", r"<think>\boxed{5}</think> hm", r"<think>\boxed{5}", r"\boxed{5} \boxed{5", r"\boxed{5} \boxed{}"],
)
def test_no_final_answer_is_wrong_and_no_earlier_box_stands_in(response):
    assert verify(response, "5") == {"score": 0.0, "reason": "no_answer"}


def test_where_to_look_is_a_choice():
    response = r"\boxed{1} #### 2"
    assert verify(response, "2", extract=["hashes", "boxed"])["score"] == 1.0
    assert verify("so 5", "5", extract=["boxed"]) == {"score": 0.0, "reason": "no_answer"}
    with pytest.raises(ValueError, match=r"'bracket'.*boxed, hashes"):
        verify("5", "5", extract=["bracket"])


def test_a_reference_may_be_a_worked_solution_or_a_number():
    assert verify(r"\boxed{72}", "She sold 48/2 = 24.\n#### 72")["score"] == 1.0
    assert verify(r"\boxed{2.50}", 2.5)["score"] == 1.0


@pytest.mark.parametrize("reference", [None, "", r"\frac{", "10^{10^{10}}"])
def test_a_reference_that_cannot_be_used_is_unverified(reference):
    result = verify(r"\boxed{5}", reference)
    assert (result["score"], result["reason"]) == (None, "bad_reference")


def test_it_works_outside_the_main_thread():
    results = []
    thread = threading.Thread(target=lambda: results.append(verify(r"\boxed{x+1}", "1+x")))
    thread.start()
    thread.join(60)
    assert results[0]["score"] == 1.0


def test_the_model_text_is_never_evaluated_as_python(tmp_path):
    canary = tmp_path / "canary"
    payload = f"__import__('pathlib').Path('{canary}').touch()"
    for text in (payload, rf"2\pi+{payload}", f"[{payload},2]", rf"\text{{{payload}}}"):
        for response in (rf"\boxed{{{text}}}", f"The answer is {text}", f"#### {text}"):
            verify(response, r"2\pi")
    assert not canary.exists()
    assert sys.getrecursionlimit() >= 1000
