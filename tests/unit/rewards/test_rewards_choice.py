"""Multiple choice in many words: who speaks last, other languages, typography, and hedges, which are never paid."""

from __future__ import annotations

import pytest

from rewards import choice

CITIES = ["London", "Paris", "Rome", "Berlin"]

B = [
    r"Since $\boxed{x=5}$, **Answer: B**", r"\boxed{A} was my first thought. The answer is B.", "The answer is A. Wait, no.\n\nAnswer: B",
    r"$\boxed{\textbf{(B)}\ 3\pi}$", r"\boxed{\text{(\textbf{B})}}", r"\boxed B", r"\fbox{B}", r"\(\boxed{B}\)", "**B**", "__B__", "`B`", "(B)", "[B]", "{B}", "<B>", "B.",
    "Ｂ", "（Ｂ）", "Answer：B", "ANSWER: B", "answer - b", "**Final Answer**: (B)", "### Answer: B", "Answer:\n\nB", "The answer is:\n**B**",
    "Option B is correct.", "Option (B) is the correct answer.", "So B is correct.", "(B) is right.", "Therefore, B is the answer.", "Choice B is the best answer.", "Hence option **B** is correct",
    "I choose B", "I would go with option B.", "I'll pick B.", "My choice is B.", "I select (B), because it fits.", "We therefore choose B",
    "The correct option is B.", "The best choice would be B", "The right answer must be option B", "The answer is B because A and C fail.", "The answer is B, not A.",
    "The answer is definitely B.", "The correct answer is the option B", "The answer is 'B'.", "The answer is “B”", "The answer is $B$.", r"The answer is \(B\)", r"The answer is \textbf{B}",
    "B. Paris", "(B) Paris", "b) Paris", "B: Paris", "Paris", "**Paris**", "It is in France.\nParis.", "Thinking it over.\n- B. Paris", "The answer is Paris", "The answer is: Paris.", r"\boxed{\text{Paris}}", "<answer>Paris</answer>",
    "答案是B", "答案：B", "正确答案是B。", "正确答案为：B", "所以答案是 B", "故选B", "因此选择B。", "答案选B", "选项B是正确的", "B是正确答案", "我选B", "答案：Ｂ、巴黎", "最终答案：**B**",
    "答えはBです", "答え：B", "正解はBです。", "正解は選択肢Bです", "Bが正解です", "選択肢Bが正しい", "정답은 B입니다", "정답: B", "답: B",
    "Die richtige Antwort ist B.", "Die Antwort lautet B", "Antwort: B", "Option B ist richtig.", "La bonne réponse est B.", "Réponse : B", "La réponse correcte est la B.", "La réponse est l'option B",
    "La respuesta correcta es B.", "Respuesta: B", "La respuesta es la opción B", "La opción B es correcta", "A resposta correta é B", "Resposta: B", "La risposta corretta è B", "Risposta: B",
    "Правильный ответ: B", "Ответ: B.", "Ответ — B", "Cevap: B", "Đáp án là B", "Odpowiedź: B", "الإجابة هي B", "उत्तर: B",
    "<think>Answer: A</think>Answer: B", "<reasoning>Answer: A</reasoning><answer>B</answer>", "<answer>The answer is B.</answer>", r"<answer>\boxed{B}</answer>", "<answer>B. Paris</answer>", "<answer>(b)</answer>",
    "Answer: A<answer>B</answer>", "<|begin_of_solution|>Answer: B<|end_of_solution|>", "Answer: B<|im_end|>", "A. London\nB. Paris\nC. Rome\n\nAnswer: B", "Answer: B\n\nI hope this helps!", "Answer: B\nA. London\nB. Paris\nC. Rome",
    "I think the answer is B", "选B。", "综上，本题选B", "Thus B.", "Therefore: B", "→ B", "I'd say B", "Option B", "answer B", "It must be B.", "The answer would therefore be B",
    "If option A is correct, x = 3, which it is not. Option B is correct.",
]  # fmt: skip
OTHER = [
    ("The answer is B or C", "hedged"), ("The answer is B or maybe C", "hedged"), ("The answer is B, or possibly even C.", "hedged"), ("The answer is either B or C", "no_answer"),
    ("B/C", "hedged"), ("B, C", "hedged"), ("(B) and (C)", "hedged"), ("B和C", "hedged"), ("答案是B或C", "hedged"), ("Die Antwort ist B oder C", "hedged"), ("B or C is correct.", "hedged"), ("Options B and C are correct.", "hedged"),
    ("Answer: B (London)", "hedged"), ("B. London", "hedged"), (r"\boxed{B, C}", "hedged"), (r"\boxed{B} or \boxed{C}", "mismatch"), ("Answer: B\nAnswer: C", "mismatch"), ("<answer>B or C</answer>", "hedged"),
    ("Option C is correct.", "mismatch"), ("The answer is C", "mismatch"), ("Rome", "mismatch"),
    ("Option B is not correct.", "no_answer"), ("Option B is incorrect.", "no_answer"), ("The answer is not B", "no_answer"), ("不选B", "no_answer"), ("不能选B", "no_answer"), ("So B and so on", "no_answer"), ("Let's say the answer is B", "no_answer"), ("I would not choose B", "no_answer"), ("If option B is correct, then", "no_answer"), ("Whether B is correct", "no_answer"),
    ("Suppose option B is correct", "no_answer"), ("A. London\nB. Paris", "no_answer"), ("Vitamin B is correct", "no_answer"), ("Because of B", "no_answer"), ("<answer>B", "no_answer"), (r"\boxed{B", "no_answer"), (r"\boxed{B} and \boxed{", "no_answer"),
    ("<think>Answer: B</think>", "no_answer"), ("<think>Answer: B", "no_answer"), ("The answer is Bob", "no_answer"), ("The answer is a good one", "no_answer"), ("The answer is A good one", "no_answer"), ("Paris or Rome", "no_answer"),
    ("The answer is B's", "no_answer"), ("", "no_answer"), ("Paris is not it", "no_answer"), ("\\boxed{" * 20_000, "no_answer"), ("answer is \n" * 20_000, "no_answer"),
]  # fmt: skip


@pytest.mark.parametrize("response", B)
def test_the_option_is_found_however_it_is_said(response):
    assert choice.verify(response, "B", options=CITIES) == {"score": 1.0, "reason": "", "extracted": "B"}


@pytest.mark.parametrize(("response", "reason"), OTHER)
def test_what_names_another_or_several_or_none_is_not_paid(response, reason):
    verdict = choice.verify(response, "B", options=CITIES)
    assert (verdict["score"], verdict["reason"]) == (0.0, reason)


@pytest.mark.parametrize("response", [r for r, _ in OTHER] + B)
def test_no_response_is_paid_for_two_options(response):
    assert sum(choice.verify(response, letter, options=CITIES)["score"] for letter in "ABCD") <= 1


def test_options_may_have_letters_of_another_script():
    assert choice.verify("Правильный ответ: Б", "Б", letters="АБВГ")["score"] == 1.0
    assert choice.verify("Ответ: Богатый", "Б", letters="АБВГ")["reason"] == "no_answer"


def test_where_an_answer_may_stand_can_be_narrowed():
    assert choice.verify("The answer is B", "B", extract=["boxed"])["reason"] == "no_answer"
    assert choice.verify("Answer: A\n\\boxed{B}", "B", extract=["boxed"])["score"] == 1.0
    assert choice.verify("B", "B", extract=["boxed", "tags", "phrase"])["reason"] == "no_answer"
    with pytest.raises(ValueError, match="extract"):
        choice.verify("B", "B", extract=["box"])


def test_several_right_options_may_be_called_right():
    assert choice.verify("Options A and C are correct.", "AC")["score"] == 1.0
    assert choice.verify("答案是A和C", "AC")["score"] == 1.0
