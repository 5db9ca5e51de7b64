"""Each kind of answer said in many ways: beside a box, under headings, between the marks of data sets of reasoning."""

from __future__ import annotations

import pytest

from rewards.math_equivalence import verify

# answers, and others of the same kind
KINDS = {
    "7": "8",
    r"\frac{3}{4}": r"\frac{4}{3}",
    "2.5": "3.5",
    "x^2+1": "x^2+2",
    r"2\sqrt{3}": r"3\sqrt{2}",
    "[2,5)": "[2,5]",
    "(3,-4)": "(-4,3)",
    r"\{1,2\}": r"\{1,3\}",
    "1, 2": "1, 3",
    "y=2x+1": "y=2x-1",
    r"\text{Friday}": r"\text{Monday}",
    r"\text{(B)}": r"\text{(C)}",
    "x<3": "x>3",
    r"\begin{pmatrix}1\\2\end{pmatrix}": r"\begin{pmatrix}2\\1\end{pmatrix}",
    r"25\%": r"35\%",
    r"\$15": r"\$16",
    "3:4": "4:3",
    r"\text{even}": r"\text{odd}",
    "n+1": "n+2",
    "101_2": "110_2",
    r"x \equiv 2 \pmod 5": r"x \equiv 3 \pmod 5",
    r"30^\circ": r"40^\circ",
}
# after a box: sentences about the final answer that are none
ABOUT = [
    "I am confident that the final answer is correct.",
    "The final answer is boxed above.",
    "Note: the final answer is in simplest form.",
    "The final answer is as stated.",
    "The final answer is the value in the box.",
    "The final answer is verified by substitution.",
    "The final answer is clear from step 3.",
    "Therefore, the final answer is the one above.",
    "The final answer: as boxed.",
    "This is the final answer: it satisfies all conditions.",
    "The final answer should be checked against the 2 given conditions.",
    "My final answer is given above in box 1.",
    "The final answer must be in the form requested, which it is.",
    "**Final answer is boxed.**",
    "The final answer is unique.",
    "I hope the final answer is right!",
    "So the final answer is what we expected, namely that.",
    "The correct answer is in the box.",
    "The final answer is shown at the end of step 4.",
    "The final answer is now complete.",
    "The final answer is a single value.",
    "The final answer would be the same with 2 other methods.",
    "Final answer: see above.",
    "Final Answer",
    "The final answer is reasonable because 3 < 5.",
    "The final answer is not affected by the order.",
    "The final answer is independent of n.",
    "Final answer boxed.",
    "The final answer is exact.",
    "The final answer is expressed in terms of x.",
    "The final answer is of the form a + b.",
]
LATER = [
    "The final answer is $@$.",
    "Wait, I made a mistake.\n\n**Final Answer:** $@$",
    "The final answer is $@$, not $§$.",
    "Final Answer: The final answer is $@$. I hope it is correct.",
]
HEADINGS = [
    "#### @",
    "#### $@$",
    "#### Final Answer\n$@$",
    "##### Answer: $@$",
    "#### Answer: $@$",
    "### Answer\n\n$@$",
    "#### **Answer:** $@$",
    "#### Step 2\nThere are 3 cases.\nSo the answer is $@$.",
    "#### Conclusion\n\nThe answer is $@$.",
    "#### Answer\n\nThe answer is $@$, since 2 of 3 hold.",
    "## Final Answer: $@$",
    "**Answer**: $@$",
    "**Final Answer:**\n\n$@$",
    "#### 3. Conclusion\nThe final answer is $@$.",
    "# Solution\n\n## Step 1\nAdd 3.\n\n## Answer\n$@$",
    "#### Final Answer:\n$$@$$",
    "#### Final Answer\n\\[@\\]",
    "#### Result: $@$",
    "#### Step 1: 2 + 3\n#### Step 2: 4 + 5\n#### $@$",
    "#### The answer\n$@$",
    "#### ✅ Final Answer\n$@$",
    "#### Answer ####\n$@$",
    "#### Final answer is $@$",
]
MARKED = [
    r"<|begin_of_thought|>so 3<|end_of_thought|><|begin_of_solution|>$\boxed{@}$<|end_of_solution|>",
    r"In HTML </s> closes. $\boxed{@}$",
    "<|begin_of_thought|>x<|end_of_thought|>\n\n<|begin_of_solution|>\nThe answer is $@$.\n<|end_of_solution|>",
    r"$\boxed{@}$</s>",
    r"$\langle 3|x|4\rangle$, so $\boxed{@}$",
    r"<think>no <|x|> </think> $\boxed{@}$<|im_end|>",
    "```\n$\\boxed{@}$\n```\nThat is it.",
    "Here it is:\n```latex\n\\boxed{@}\n```\nDone with 3 steps.",
]


@pytest.mark.parametrize("answer", KINDS)
def test_a_sentence_about_the_answer_leaves_the_box_alone(answer):
    for said in ABOUT:
        assert verify(rf"Thus $\boxed{{{answer}}}$. {said}", answer)["score"] == 1.0, said


@pytest.mark.parametrize("answer", KINDS)
def test_another_answer_that_is_called_final_replaces_the_box(answer):
    other = KINDS[answer]
    for said in LATER:
        response = rf"Thus $\boxed{{{answer}}}$. " + said.replace("@", other).replace("§", answer)
        assert [verify(response, one)["score"] for one in (answer, other)] == [0.0, 1.0], said


@pytest.mark.parametrize("answer", KINDS)
def test_headings_are_no_answers_and_what_stands_under_the_last_is(answer):
    for text in HEADINGS:
        response = text.replace("@", answer)
        assert [verify(response, one)["score"] for one in (answer, KINDS[answer])] == [1.0, 0.0], text


@pytest.mark.parametrize("answer", KINDS)
def test_marks_and_fences_around_a_box_are_no_part_of_it(answer):
    for text in MARKED:
        assert verify(text.replace("@", answer), answer)["score"] == 1.0, text
