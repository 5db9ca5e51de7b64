"""Instructions that a program can check: those of IFEval by its own rules, and more by ours.

IFEval is Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models".
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rewards import _ifeval, _instructions_own
from rewards._response import visible


def verify(
    response: str,
    reference: Sequence[Mapping[str, Any]] | str | None = None,
    instructions: Sequence[Mapping[str, Any]] | str | None = None,
    instruction_id_list: Sequence[str] | None = None,
    kwargs: Sequence[Mapping[str, Any] | None] | str | None = None,
    strict: bool = True,
    all_or_nothing: bool = False,
) -> dict[str, Any]:
    """The share of the instructions that are followed; components hold 1 or 0 for each.

    Only what follows the thought counts. Reasons: no_answer (nothing there), not_followed (`details` name which).

    Args:
        reference: a list of `{"id": ..., "args": {...}}`, or JSON text of one.
        instructions: the same, from a column or the configuration; takes the place of the reference.
        instruction_id_list, kwargs: the columns of IFEval's rows, which take the place of both (mode ifeval).
        strict: as the response stands. Otherwise an instruction is also followed when it is once the first line, the
            last line, both, or asterisks are taken away (IFEval's loose accuracy).
        all_or_nothing: 1 when all are followed (IFEval's accuracy by prompt), else 0.

    The 25 ids of IFEval have the rules and the arguments of its published checker, but for the split into sentences, which
    is close to its own. A row that leaves out an argument, for which that checker would draw one at random, cannot be
    verified.

        change_case:capital_word_frequency              capital_frequency, capital_relation; words as the Penn Treebank has them
        change_case:english_capital, :english_lowercase and the text is in English
        combination:repeat_prompt                       prompt_to_repeat; in any case
        combination:two_responses                       parted by ******
        detectable_content:number_placeholders          num_placeholders or more: [so]
        detectable_content:postscript                   postscript_marker; it may stand anywhere
        detectable_format:constrained_response          one of My answer is yes. / no. / maybe. stands somewhere
        detectable_format:json_format                   in a block of code or not
        detectable_format:multiple_sections             section_spliter, num_sections or more
        detectable_format:number_bullet_lists           num_bullets exactly: lines that begin with * or -
        detectable_format:number_highlighted_sections   num_highlights or more: *so* or **so**
        detectable_format:title                         <<so>>
        keywords:existence                              keywords; within words, too
        keywords:forbidden_words                        forbidden_words; whole words
        keywords:frequency                              keyword, frequency, relation; within words, too
        keywords:letter_frequency                       letter, let_frequency, let_relation
        language:response_language                      language, as the library langdetect says
        length_constraints:nth_paragraph_first_word     num_paragraphs, nth_paragraph, first_word; parted by blank lines
        length_constraints:number_paragraphs            num_paragraphs exactly; parted by ***
        length_constraints:number_sentences             num_sentences, relation
        length_constraints:number_words                 num_words, relation; words are runs of letters, digits and _
        punctuation:no_comma
        startend:end_checker                            end_phrase; double quotes around the response apart
        startend:quotation                              the response is in double quotes

    Ours (`relation` is at least, at most, less than, more than or exactly; at least unless it says otherwise here):

        rlpost:words                  count, relation. Runs of letters and digits; don't and well-known are one each.
        rlpost:sentences              count, relation. They end in . ! or ?, abbreviations apart.
        rlpost:paragraphs             count, relation (exactly); separator: blank lines by default.
        rlpost:characters             count, relation
        rlpost:first_word             number (of the paragraph, from 1), word; count, when given, is exact.
        rlpost:keywords               keywords: all of them; whole words, any case.
        rlpost:forbidden_words        keywords: none of them
        rlpost:keyword_frequency      keyword, count, relation
        rlpost:letter_frequency       letter, count, relation; any case.
        rlpost:lowercase              no letter is a capital, and there is a letter.
        rlpost:uppercase              no letter is small, and there is a letter.
        rlpost:capital_words          count, relation: words of two letters and more all in capitals.
        rlpost:starts_with            text; white space around the response and case are free.
        rlpost:ends_with              text; the same.
        rlpost:quotation              the whole response is in double quotes, straight or curly.
        rlpost:no_comma               nor one of another script.
        rlpost:forbidden_characters   characters: none of them.
        rlpost:bullets                count, relation (exactly): lines that begin with * - or •.
        rlpost:numbered_list          count, relation (exactly): lines that begin with 1. or 1)
        rlpost:highlights             count, relation: *so* or **so**.
        rlpost:sections               count, relation; marker (`Section`): lines `Section 1`.
        rlpost:title                  a title <<so>>, not empty, on one line.
        rlpost:json                   the whole response, or the one code block it is, is JSON.
        rlpost:one_of                 options: one, and no more.
        rlpost:postscript             marker (`P.S.`): a line begins with it, with text behind.
        rlpost:placeholders           count, relation: [so].
        rlpost:repeat_prompt          text: the response begins with it and goes on.
        rlpost:two_responses          two different ones, parted by `******`.
    """
    try:
        tasks = _tasks(reference if instructions is None else instructions, instruction_id_list, kwargs)
    except (ValueError, TypeError) as error:
        details = {"error": f"the instructions cannot be used: {error}"}
        return {"score": None, "reason": "bad_reference", "details": details}
    seen = visible(response)
    if seen is None or not seen.strip():
        return {"score": 0.0, "reason": "no_answer"}
    text = response if seen == response else seen.strip()
    texts = [text] if strict else _loosened(text)
    followed = [any(check(form) for form in texts) for _, check in tasks]
    share = sum(followed) / len(tasks)
    missed = [name for (name, _), done in zip(tasks, followed, strict=True) if not done]
    return {
        "score": float(not missed) if all_or_nothing else share,
        "reason": "not_followed" if missed else "",
        "components": {
            f"{i}:{name}": float(done) for i, ((name, _), done) in enumerate(zip(tasks, followed, strict=True))
        },
        "details": {"not_followed": missed} if missed else {},
    }


verify.check = True  # type: ignore[attr-defined]


def _tasks(given: Any, ids: Any, kwargs: Any) -> list[tuple[str, Callable[[str], bool]]]:
    """Each instruction as a function of the text."""
    if ids is not None:
        _say_once("mode ifeval: rows with the columns instruction_id_list and kwargs are held to IFEval's instructions")
        given = _of_ifeval(ids, kwargs)
    elif isinstance(given, str):
        given = json.loads(given)
    if not isinstance(given, Sequence) or not given:
        raise ValueError('they must be a list of {"id": ..., "args": {...}} that is not empty')
    return [(entry["id"], _rule(entry)) for entry in map(_entry, given)]


def _entry(entry: Any) -> Mapping[str, Any]:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("args") or {}, Mapping):
        raise ValueError(f'{str(entry)[:200]} is not {{"id": ..., "args": {{...}}}}')
    return entry


def _rule(entry: Mapping[str, Any]) -> Callable[[str], bool]:
    name = str(entry.get("id"))
    # Rows of one table have all columns: those that are empty are not of this instruction.
    arguments = {key: value for key, value in (entry.get("args") or {}).items() if value is not None}
    for rules, make in ((_ifeval.RULES, _ifeval.rule), (_instructions_own.CHECKS, _instructions_own.rule)):
        if name in rules:
            return make(name, arguments)
    raise ValueError(f"{name!r} is no instruction; there are {', '.join([*_ifeval.RULES, *_instructions_own.CHECKS])}")


def _of_ifeval(ids: Any, kwargs: Any) -> list[dict[str, Any]]:
    ids, kwargs = (json.loads(column) if isinstance(column, str) else column for column in (ids, kwargs))
    if not isinstance(ids, Sequence) or not isinstance(kwargs, Sequence) or len(ids) != len(kwargs):
        raise ValueError("instruction_id_list and kwargs must be lists of the same length")
    return [{"id": name, "args": arguments} for name, arguments in zip(ids, kwargs, strict=True)]


@functools.cache
def _say_once(what: str) -> None:
    print(f"verifier instructions: {what}", file=sys.stderr)


def _loosened(text: str) -> list[str]:
    lines = text.split("\n")
    cuts = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [form for cut in cuts for form in (cut, cut.replace("*", "")) if form.strip()]
