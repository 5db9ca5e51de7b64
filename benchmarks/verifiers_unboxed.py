"""Full responses without a box, labelled by construction: the third part of the math benchmark.

A response is working, a statement of the answer and perhaps a remark, of a grammar whose templates are parted in two
halves: rules of the grader may be written looking at `dev`, never at `held_out`. What is wrong names the reference in a
place that is not the answer, so that a reader of the wrong place is paid. `endings.jsonl` has real solutions, with their
answers found by their authors' marks, which are taken out (GSM8K, OpenAI, and MATH, Hendrycks et al.; both MIT).

    python verifiers_unboxed.py [FILE]      writes the rows as JSONL
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENDINGS = Path(__file__).with_name("data") / "endings.jsonl"
HALVES = ("dev", "held_out")


@dataclass(frozen=True)
class Item:
    """A question's answer: the reference, how it is written in a sentence, and a wrong one in the same writing."""

    kind: str
    gold: str
    right: str
    wrong: str
    noun: str = ""  # what is counted


def items(rng: random.Random) -> Iterator[Item]:
    """Without end, of all kinds in turn."""
    nouns = ["clips", "apples", "students", "hours", "square units", "cookies", "marbles", "pages", "ways", "meters"]
    while True:
        n, other = rng.sample(range(11, 99), 2)
        yield Item("count", str(n), str(n), str(other), rng.choice(nouns))
        yield Item("integer", str(n), f"${n}$", f"${other}$")
        yield Item("money", str(n), f"\\${n}", f"\\${other}")
        yield Item("thousands", f"{n}500", f"{n},500", f"{other},500", rng.choice(nouns))
        a, b = rng.choice([(3, 4), (2, 7), (5, 9), (7, 12), (4, 11)])
        yield Item("fraction", rf"\frac{{{a}}}{{{b}}}", rf"$\frac{{{a}}}{{{b}}}$", rf"$\frac{{{b}}}{{{a}}}$")
        yield Item("slash", rf"\frac{{{a}}}{{{b}}}", f"{a}/{b}", f"{b}/{a}")
        yield Item("decimal", f"{n}.25", f"{n}.25", f"{other}.25", rng.choice(nouns))
        yield Item("negative", str(-n), f"${-n}$", f"${n}$")
        yield Item("equation", str(n), f"$x = {n}$", f"$x = {other}$")
        yield Item("surd", rf"{a}\sqrt{{{n}}}", rf"${a}\sqrt{{{n}}}$", rf"${b}\sqrt{{{n}}}$")
        yield Item("formula", f"{a}x + {n}", f"${a}x + {n}$", f"${a}x + {other}$")
        yield Item("interval", f"[{a}, {n})", f"$[{a}, {n})$", f"$[{a}, {n}]$")
        yield Item("tuple", f"({a}, {-n})", f"$({a}, {-n})$", f"$({-n}, {a})$")
        yield Item("set", f"{a}, {n}", f"${a}$ and ${n}$", f"${a}$ and ${other}$")
        yield Item("percent", f"{n}\\%", f"{n}%", f"{other}%")
        days = rng.sample(["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"], 2)
        yield Item("text", rf"\text{{{days[0]}}}", *days)


WORKING = (
    "",
    "We add the two amounts, 48 and 24.\n\n",
    "Step 1: Let $x$ be the unknown.\nStep 2: Solve for $x$.\n\n",
    "1. First, double the value.\n2. Then subtract 5 from it.\n3. Finally, simplify.\n\n",
    "### Step 1\nWe start with 120 and halve it.\n\n### Step 2\nThe rest follows from $a^2 + b^2 = c^2$.\n\n",
    "#### Step 1: Set up\nThere are 3 cases to look at.\n\n#### Step 2: Solve\nEach case has 2 solutions.\n\n",
    "To solve this, we use the formula $A = \\frac{1}{2}bh$ with $b = 6$ and $h = 8$.\n",
    "**Given:** 15 boys and 12 girls.\n\n**Solution:** Subtract, then multiply by 2.\n\n",
)

# {a}: the answer; {d}: the other value, which is not the answer; {n}: the noun
STATEMENTS: dict[str, tuple[str, ...]] = {
    "dev": (
        "The answer is {a}.",
        "So the answer is {a}.",
        "**Answer:** {a}",
        "**Final Answer**\n\n{a}",
        "#### Final Answer\n{a}",
        "##### Answer: {a}",
        "#### Conclusion\nThe answer is {a}.",
        "#### {a}",
        "Therefore, the final answer is: {a}.",
        "The answer is {a}, which is the value we wanted.",
        "The answer is {a}, since the other value was {d}.",
        "The answer is {a}, as {d} is ruled out.",
        "The answer is {a}, because {d} does not satisfy the condition.",
        "The answer is {a} and this agrees with the estimate of {d}.",
        "The final answer is {a}, not {d}.",
        "Final answer: {a} (and not {d})",
        "The correct answer is therefore {a}; the value {d} is extraneous.",
        "The answer is **{a}**, obtained by discarding {d}.",
        "The answer to the question is {a}.",
        "<answer>{a}</answer>",
        "The result is {a}.",
        "The answer is {a}. I am confident that the final answer is correct.",
        "The answer is {a}. This is the final answer, after 3 checks.",
        "La réponse est {a}, car {d} ne convient pas.",
        "Die Antwort ist {a}, da {d} nicht passt.",
        "La respuesta es {a}, porque {d} no cumple la condición.",
        "答案是 {a}，因为 {d} 不符合条件。",
    ),
    "held_out": (
        "Answer: {a}.",
        "Hence, the answer is {a}.",
        "**Final Answer:** {a}",
        "## Answer\n\n{a}",
        "#### Answer\n\n**{a}**",
        "##### Final Answer: {a}",
        "#### Step 3: Conclusion\nSo the answer is {a}.",
        "Thus, our answer is {a}.",
        "The final answer must be {a}.",
        "The answer is {a}, which completes the solution.",
        "The answer is {a}, given that the first value is {d}.",
        "The answer is {a}, while {d} is what remains.",
        "The answer is {a}, where {d} was the starting value.",
        "The answer is {a}, so the remaining part is {d}.",
        "The correct answer is {a}, rather than {d}.",
        "Final answer: {a} (the other candidate was {d}).",
        "The answer is {a} - the value {d} is only an intermediate result.",
        "We conclude that the answer is {a}, after removing {d}.",
        "The answer to this problem is {a}.",
        "<answer>\n{a}\n</answer>",
        "The solution is {a}.",
        "The answer is {a}. The final answer is stated above.",
        "The answer is {a}. Note that the final answer is in simplest form.",
        "La réponse finale est {a}, puisque {d} est exclu.",
        "Die richtige Antwort ist {a}, weil {d} zu groß ist.",
        "La respuesta final es {a}, ya que {d} no sirve.",
        "最终答案是：{a}。",
    ),
}
COUNTED: dict[str, tuple[str, ...]] = {  # of items with a noun
    "dev": (
        "The answer is {a} {n}, as {d} is half of 48.",
        "Therefore, there are {a} {n} in total.",
        "So she has {a} {n} left, which is fewer than {d}.",
        "The answer is that there are {a} {n}.",
        "In total, {d} + 5 = {a} {n}.",
        "The total number of {n} is {a}.",
        "Thus we need {a} {n} because {d} were given away.",
    ),
    "held_out": (
        "The answer is {a} {n}, which is more than {d}.",
        "Hence, we are left with {a} {n} altogether.",
        "So there will be {a} {n}, since {d} were used.",
        "The answer is that he bought {a} {n}.",
        "Altogether that makes {d} + 9 = {a} {n}.",
        "The number of {n} needed is {a}.",
        "Consequently, they collected {a} {n}, compared to {d} last year.",
    ),
}
HEDGED: dict[str, tuple[str, ...]] = {  # never right, whichever of the two the reference is
    "dev": (
        "The answer is {a} or {d}.",
        "The answer is one of {d}, {a}.",
        "The answer is either {d} or {a}.",
        "The answer is not {a}.",
        "The answer might be any of {d} and {a}.",
        "The answer cannot be {a}, so it must be something else.",
        "I do not know. The answer could be something like {d}, {a}.",
    ),
    "held_out": (
        "Final answer: {d} or {a}",
        "The answer is some of {d}, {a}.",
        "The answer is maybe {d}, maybe {a}.",
        "The answer isn't {a}.",
        "The answer is a number such as {d} or {a}.",
        "The answer is in the list {d}, {a}.",
        "The answer is unknown, but it is never {a}.",
    ),
}
CORRECTED: dict[str, tuple[str, ...]] = {  # first {d}, then {a}
    "dev": (
        "The answer is {d}. Wait, that is wrong. The answer is {a}.",
        "The answer is {d}.\n\nLet me check again... I made a mistake.\n\nThe answer is {a}.",
        "Answer: {d}\n\nCorrection: the correct answer is {a}.",
    ),
    "held_out": (
        "So the answer is {d}. Hmm, no. I forgot a term. So the answer is {a}.",
        "#### {d}\n\nOn second thought, this misses one case.\n\n#### {a}",
        "Final answer: {d}.\n\nActually, that is incorrect. Final answer: {a}.",
    ),
}
REMARKS: dict[str, tuple[str, ...]] = {
    "dev": ("", "", "", "\n\nI hope this helps!", " This is our final result.", "\n\nLet me know if you have 1 more question."),
    "held_out": ("", "", "", "\n\nHope that is clear.", " We have checked this twice.", "\n\nThis took 4 steps."),
}  # fmt: skip


def rows(seed: int = 0) -> list[dict[str, Any]]:
    """All rows, the same for a seed: each template of each half with several kinds of answers, right and wrong."""
    rng = random.Random(seed)
    source = items(rng)
    made: list[dict[str, Any]] = []
    for half in HALVES:
        for family, templates in (
            ("stated", STATEMENTS),
            ("counted", COUNTED),
            ("hedged", HEDGED),
            ("corrected", CORRECTED),
        ):
            for template in templates[half]:
                for _ in range(3 if family == "stated" else 6):
                    item = next(item for item in source if item.noun or family != "counted")
                    for label in (1, 0) if family != "hedged" else (0,):
                        made.append(_row(rng, item, family, template, half, label))
    made += _endings(rng)
    return [{"id": f"unboxed/{k:04d}", **row} for k, row in enumerate(made)]


def _row(rng: random.Random, item: Item, family: str, template: str, half: str, label: int) -> dict[str, Any]:
    said, other = (item.right, item.wrong) if label or family == "hedged" else (item.wrong, item.right)
    if item.noun and family == "stated" and rng.random() < 0.5:
        said = f"{said} {item.noun}"
    statement = template.format(a=said, d=other, n=item.noun)
    remark = (
        "" if family == "hedged" or statement.endswith(">") or "\n" in statement[-12:] else rng.choice(REMARKS[half])
    )
    response = rng.choice(WORKING) + statement + remark
    return {"gold": item.gold, "response": response, "label": label, "klass": f"{family}/{item.kind}", "half": half}


def _endings(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Real endings, right, and with another number of the same text as the reference, wrong."""
    for line in ENDINGS.read_text(encoding="utf-8").splitlines():
        ending = json.loads(line)
        base = {"half": HALVES[ending["held_out"]], "klass": f"real/{ending['id'].split('/')[0]}"}
        yield {"gold": ending["gold"], "response": ending["response"], "label": 1, **base}
        others = {n for n in re.findall(r"(?<![\w.,])\d+(?![\w.,])", ending["response"]) if n != ending["gold"]}
        if others and ending["gold"].isdigit():
            yield {"gold": rng.choice(sorted(others)), "response": ending["response"], "label": 0, **base}


if __name__ == "__main__":
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows())
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
