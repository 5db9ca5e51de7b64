"""What a response says its answer is: who speaks last, main clauses, headings, hedges in words."""

from __future__ import annotations

import pytest

from rewards.math_equivalence import verify

# reference, response: right
RIGHT = [
    # a sentence after the box that is no answer of the reference's kind leaves the box alone
    *(
        ("7", rf"So \boxed{{7}}. {said}")
        for said in (
            "I am confident that the final answer is correct.",
            "The final answer is boxed above.",
            "Note: the final answer is in simplest form.",
            "The final answer is positive, as expected.",
            "The final answer must be an integer, and it is.",
            "The final answer is boxed 1 line above.",
            "The final answer is obtained by adding 4 and 3.",
            "The final answer is 3 times larger than I expected.",
            "The final answer is written as a number.",
            "The final answer is what the question asked for.",
            "The final answer: see the box.",
            "The final answer is 7.",
            "**Final Answer:** $7$",
            "The final answer is $x = 7$, which is the only solution.",
            "The final answer is 7 apples, since 3 of 10 were eaten.",
            "The final answer has been checked with n = 3.",
        )
    ),
    (r"\text{Friday}", r"\boxed{\text{Friday}}. The final answer is correct."),
    (r"\text{Friday}", r"\boxed{\text{Friday}}. The final answer is a day of the week."),
    ("2x+1", r"\boxed{2x+1}. The final answer is simplified."),
    ("[2,5)", r"\boxed{[2,5)}. The final answer is an interval."),
    ("(3,4)", r"\boxed{(3,4)}. The final answer is the point above."),
    ("8", r"\boxed{7}. Wait, I forgot one. The final answer is 8."),
    ("8", r"\boxed{7}. Wait, I forgot one. The final answer is **8 clips**."),
    (r"\frac12", r"\boxed{\frac13}. The final answer is $\frac12$, not $\frac13$."),
    # the main clause
    ("72", "The answer is 72, which is the total."),
    ("3", "The answer is $x = 3$, which is the only solution."),
    ("72", "The answer is 72 clips, as 24 is half of 48."),
    ("72", "The answer is 72, and this is our final result."),
    ("72", "The answer is 72 because 48 + 24 is 72."),
    ("72", "The answer is 72 since there are 24 in May and 48 in April."),
    ("72", "The answer is 72, so the total is three times 24."),
    ("72", "The answer is 72 - this is 24 more than before."),
    ("72", "The answer is 72 (the other 24 are gone)."),
    ("72", "The answer is 72; the rest is 24."),
    ("72", "The answer is 72, obtained by adding 24 and 48."),
    ("72", "The answer is 72, where 24 is the number in May."),
    ("72", "The answer is that she sold 72 clips, which is 24 more than 48."),
    ("72", "The answer is 72, but note that it was rounded."),
    ("72", "The answer, after adding both months, is 72."),
    ("72", "The answer to the question of what she sold is 72."),
    ("72", "The answer is the sum of both, which is 72."),
    ("72", "The answer is the number of clips: 72."),
    ("72", "The answer is **72**, which is 3 times 24."),
    ("72", "The answer is 72. This is 24 more than 48."),
    ("72", "The answer is 72.\n\nThis is because 24 is half of 48."),
    ("72", "The answer is 72, not 48."),
    ("72", "The answer is 72 rather than 48."),
    ("3.14", "The answer is approximately 3.14."),
    ("3.14", "The answer is about 3.14, as 3 is too small."),
    (r"\frac{3}{4}", "The answer is 3/4, or equivalently 0.75."),
    ("3, 4", "The answers are $3$ and $4$, which both work."),
    ("3, 4", "The answer is 3 and 4, since 5 does not work."),
    ("(3,4)", "The answer is (3, 4), which is a point on the line y = 4."),
    ("[2,5)", "The answer is [2, 5), since 5 is excluded."),
    ("2x+1", "The answer is 2x + 1, which is linear."),
    (r"2\sqrt{3}", r"The answer is 2\sqrt{3}, which is about 3.46."),
    ("5", "The answer is $5$ cm, which is 50 mm."),
    (r"k\pi, k\in\mathbb{Z}", r"The answer is $x = k\pi$, where $k$ is an integer."),
    (r"\text{Friday}", "The answer is Friday, since 3 days after Tuesday is Friday."),
    (r"\text{Friday}", "The answer is Friday because it is 3 days later."),
    ("18", "The answer is $18, which is what 3 friends pay."),
    ("-3", "The answer is -3, as 3 is too large."),
    ("72", "La réponse est 72, ce qui est le total de 48 et 24."),
    ("72", "La respuesta es 72, ya que 24 es la mitad de 48."),
    ("72", "Die Antwort ist 72, weil 24 die Hälfte von 48 ist."),
    ("72", "答案是 72，因为 24 是 48 的一半。"),
    ("72", "答えは72です。"),
    # without such a phrase
    ("72", "Since 24 is half of 48, she sold 72 clips."),
    ("72", "48 + 24 = 72, so Natalia sold 72 clips because 24 is half of 48."),
    ("72", "Therefore, she sold 72 clips. Note that 24 of them were sold in May."),
    ("5", "There are $5$ integers less than 100 that are squares of 2 primes."),
    # a statement about the statement is passed over
    ("72", "The answer is 72. I am sure the answer is correct."),
    ("72", "So she has 72 clips. I am sure that the answer is correct."),
    # `####` as a heading and as the line of an answer
    ("72", "#### Step 1\nApril: 48.\n#### Step 2\nMay: 24. So the answer is 72."),
    ("72", "#### Final Answer\n72"),
    ("72", "##### Answer: 72"),
    ("72", "#### Answer: 72"),
    ("72", "#### **Answer:** 72"),
    ("72", "#### Answer\n\nThe answer is 72."),
    ("72", "#### The final answer is:\n$72$"),
    ("72", "### Solution\n#### 1. Add\n48 + 24\n#### 2. Conclude\nThe total is 72."),
    ("72", "#### 72"),
    ("72", "#### 72 clips"),
    ("72", "48+24=72 #### 72"),
    ("72", "#### $72$\n\nI hope this helps!"),
    ("72", "#### **72**"),
    ("72", "### Final Answer\n\n**72**"),
    ("72", "## Answer: 72"),
    ("72", "**Final Answer**\n\n72 clips, of which 24 in May"),
    (r"\text{Friday}", "#### Friday"),
    (r"\text{Friday}", "#### Conclusion\nThe answer is Friday."),
    # boxes
    ("7", "```python\nprint(3)\n```\n\\boxed{7}"),
    ("7", "```latex\n\\boxed{7}\n```"),
    ("7", "Here is the result.\n```\n\\boxed{7}\n```\nDone."),
    # letters before options
    ("7", r"\boxed{(B)\ 7}"),
    ("7", r"\boxed{\textbf{(B)}\ 7}"),
    ("7", "The answer is (B) 7."),
    ("7", "The answer is B) 7"),
    (r"\frac12", r"\boxed{\text{(C) } \frac12}"),
    # a value twice, in two forms
    (r"\frac12", r"\boxed{\frac12} = \boxed{0.5}"),
    (r"\frac12", r"\boxed{\frac12} or \boxed{0.5}"),
]  # fmt: skip
WRONG = [
    ("0.5", "The answer is 3, since the probability is 0.5."),
    ("24", "The answer is 72 clips, as 24 is half of 48."),
    ("24", "The answer is 72 because half of 48 is 24."),
    ("24", "The answer is 72, which is 3 times 24."),
    ("48", "The answer is 72, not 48."),
    ("48", "The answer is 72 rather than 48."),
    ("24", "The answer is 72. This is 24 more than 48; it is 24."),
    ("3", "The answer is approximately 3.14, since pi is about 3."),
    ("7", r"\boxed{7}. Wait, I forgot one. The final answer is 8."),
    ("7", r"\boxed{7}. The final answer is 7 or 8."),
    ("8", r"\boxed{7}. The final answer is 7 or 8."),
    ("8", r"\boxed{7}. The final answer is larger than 8."),
    ("9", r"\boxed{9}. The final answer is not 9."),
    ("3", r"\boxed{7}. The final answer is 3 times larger than I expected."),
    ("1", r"\boxed{7}. The final answer is boxed 1 line above."),
    ("2", "#### Step 2\nSo the answer is 72."),
    ("1", "#### Answer 1\n72"),
    ("72", "#### 73"),
    ("72", "#### Unknown\n"),
    ("7", "The answer is one of 5, 6, 7."),
    ("5", "The answer is one of 5, 6, 7."),
    ("7", "The answer is any of 5, 6, 7."),
    ("7", "The answer is some of 5 and 7."),
    ("7", "The answer is a number such as 7."),
    ("7", "The answer is in the list 5, 7."),
    ("7", "The answer is an element of {5, 7}."),
    ("7", "The answer is either 5 or 7."),
    ("7", "The answer is maybe 7, maybe 8."),
    ("7", "The answer might be 7."),
    ("7", "The answer isn't 7."),
    ("7", "The answer cannot be 7."),
    ("7", "The answer is between 5 and 7."),
    ("9", r"\boxed{7 \text{ instead of } 9}"),
    ("9", r"\boxed{7 \text{ rather than } 9}"),
    *(
        ("7", rf"\boxed{{\text{{{said}}}}}")
        for said in (
            "The answer is one of 5, 6, 7",
            "one of 5, 6 and 7",
            "any of 5, 7",
            "some of the numbers 5, 7",
            "a number such as 7",
            "in the list 5, 6, 7",
            "an element of 5, 7",
            "among 5, 6, 7",
            "it is something like 7",
        )
    ),
    ("7", r"<answer>one of 5, 6, 7</answer>"),
    ("7", r"\boxed{(B)\ 8}"),
    ("2", r"\boxed{(B)\ 7}"),
    ("7", r"\boxed{7} or \boxed{8}"),
    ("8", r"\boxed{7} or \boxed{8}"),
    (r"\text{Friday}", "The answer is Monday, as yesterday was Friday."),
    (r"\text{Friday}", "The answer is Friday or Monday."),
    ("5\\text{ cm}", "The answer is $5$ km."),
]  # fmt: skip


@pytest.mark.parametrize(("reference", "response"), RIGHT)
def test_what_is_stated_is_the_answer(reference, response):
    assert verify(response, reference)["score"] == 1.0


@pytest.mark.parametrize(("reference", "response"), WRONG)
def test_a_number_in_another_place_or_a_hedge_is_not(reference, response):
    assert verify(response, reference)["score"] == 0.0
