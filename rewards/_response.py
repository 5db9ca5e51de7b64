"""What of a response may be judged: the one reading that all verifiers share.

    visible(response)   what is said after the thought, or None while it still thinks
    fences(text)        its blocks of code
    answer_tag(text)    what the last `<answer>` holds

All are linear in the length of the text, whatever it repeats.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

# Markers that part a thought from what is said, as models and public data sets of reasoning write them: opening, closing.
THOUGHTS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)
# Tags that a prompt may ask for on either side of the answer: thoughts where the response begins with one.
LEADING_THOUGHTS = (("<reasoning>", "</reasoning>"), ("<scratchpad>", "</scratchpad>"))


def _markers(pairs: tuple[tuple[str, str], ...]) -> re.Pattern[str]:
    opening, closing = ("|".join(re.escape(pair[side]) for pair in pairs) for side in (0, 1))
    return re.compile(rf"(?P<opening>{opening})|{closing}", re.IGNORECASE)


MARKER = _markers(THOUGHTS)
LEADING_MARKER = _markers(LEADING_THOUGHTS)
# Tokens of chat formats that were left as text. Names in bars are such only where they look like it: <|x|> is mathematics.
ROLE = r"(?:assistant|user|system|model|tool)"
TOKEN = re.compile(
    rf"<\|(?:im_start\|>{ROLE}?|start_header_id\|>(?:{ROLE}<\|end_header_id\|>)?"
    rf"|(?:[a-z]{{1,20}}_[a-z_]{{1,40}}|endoftext|pad|bos|eos|end|eot|eom|return|{ROLE})\|>)"
    r"|<｜[^<>｜]{1,40}｜>|</?s>|<(?:eos|bos|pad|end_of_turn|start_of_turn>model|start_of_turn)>|\[/?INST\]",
    re.IGNORECASE,
)
NEXT_TURN = re.compile(
    r"<\|(?:im_start\|>|start_header_id\|>|start\|>)?user\b|<start_of_turn>user\b|<｜User｜>", re.IGNORECASE
)
ANSWER = re.compile(r"<answer>", re.IGNORECASE)
ANSWER_END = re.compile(r"</answer>", re.IGNORECASE)
QUOTES = frozenset("\"'`")


def visible(response: str) -> str | None:
    """What a response says once it has thought; None where nothing is said, for the thought is cut off.

    That is what follows the last mark that closes a thought, up to where a turn of the user begins, without the tokens
    of chat formats. Marks and tokens that are quoted (`"</think>"`), and tokens in blocks of code, are text.
    """
    text = _after_thoughts(response, MARKER)
    first = text and _first(LEADING_MARKER, text)
    if text and first and (not first["opening"] or not TOKEN.sub("", text[: first.start()]).strip()):
        text = _after_thoughts(text, LEADING_MARKER)
    return text and _without_tokens(text)


def _after_thoughts(text: str, marker: re.Pattern[str]) -> str | None:
    last = _last(marker, text)
    if last is None:
        return text
    return None if last["opening"] else text[last.end() :]


def _first(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(_unquoted(pattern, text), None)


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    found = deque(_unquoted(pattern, text), maxlen=1)
    return found[0] if found else None


def _unquoted(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    for match in pattern.finditer(text):
        before = text[match.start() - 1 : match.start()]
        if not (before in QUOTES and before == text[match.end() : match.end() + 1]):
            yield match


def _without_tokens(text: str) -> str:
    if not ("<" in text or "[" in text):
        return text
    turn = _first(NEXT_TURN, text)
    if turn:
        text = text[: turn.start()]
    tokens = list(_unquoted(TOKEN, text))
    end = len(text)
    while tokens and not text[tokens[-1].end() : end].strip():  # before fences, which they would keep from closing
        end = tokens.pop().start()
    if not tokens:
        return text[:end]
    blocks = iter(fences(text[:end]))
    block = next(blocks, None)
    kept, position = [], 0
    for token in tokens:
        while block and block.end <= token.start():
            block = next(blocks, None)
        if block and block.start < token.start():
            continue
        kept.append(text[position : token.start()])
        position = token.end()
    return "".join([*kept, text[position:end]])


def answer_tag(text: str) -> str | None:
    """What the last `<answer>` holds: None without one, and empty where it is never closed, so that no earlier one, often
    a guess, stands in for it."""
    last = _last(ANSWER, text)
    if last is None:
        return None
    end = ANSWER_END.search(text, last.end())
    return text[last.end() : end.start()].strip() if end else ""


# --------------------------------------------------------------------------------------------------------------- fences


class Fence(NamedTuple):
    """A block of code: between fences of three or more backticks or tildes.

    Args:
        info: the first word behind the opening fence, in small letters; empty when there is none.
        body: the lines between, without the opening fence's indentation.
        start, end: the block with its fences is `text[start:end]`.
        closed: False for one that the text, or the next block, ends.
    """

    info: str
    body: str
    start: int
    end: int
    closed: bool


FENCED_LINE = re.compile(r"^[^\n]*(?:```|~~~)[^\n]*", re.MULTILINE)
RUN = re.compile(r"`{3,}|~{3,}")
# A line that begins with a fence, a list's sign before it apart.
EDGE = re.compile(r"([ \t]*(?:(?:[-*+]|\d{1,3}[.)])[ \t]+)?)(`{3,}|~{3,})(.*)")
INFO = re.compile(r"[ \t]*\{?\.?([A-Za-z][\w+#.-]*)\}?[ \t]*(?:[{:=\[,].*|[\w-]+=.*)?")
COMMENT = ("#", "//", "--", "*", ";", "%", ">")  # how lines of code begin in which a fence is only spoken of
TRIPLE = re.compile(r'"""|\'\'\'')


@dataclass(slots=True)
class _Open:
    """A block that has begun."""

    mark: str
    indent: int
    info: str
    start: int
    body: int
    depth: int = 0  # of blocks within a block of Markdown
    docstrings: bool = False  # whether it may have some
    read: int = 0  # they are read up to here
    quote: str = ""  # the triple quotes that are open there
    inner: int | None = None  # the first line within them that would otherwise end the block


def fences(text: str) -> list[Fence]:
    """The blocks of code in a text, in order.

    As CommonMark has them, and as models write them: a fence may also close at the end of the last line of code, and open
    behind words that end in a colon or before the name of a language; a fence in a docstring or a comment closes nothing;
    a block within a block of Markdown is part of it, elsewhere a fence with a language ends the block before; one line
    may be a whole block. A block that is never closed goes on to the end.
    """
    found: list[Fence] = []
    block: _Open | None = None
    position = 0
    while True:
        line = FENCED_LINE.search(text, position) if position < len(text) else None
        if line is None:
            if block is None:
                return found
            if block.inner is None:
                return [*found, _fence(text, block, len(text), len(text), closed=False)]
            position, block.docstrings = block.inner, False  # quotes that never end are none
            continue
        position = line.end() + 1
        if block is None:
            block = _opened(line)
            if block is None and (whole := _whole(line)):
                found.append(whole)
            continue
        end, opens = _end(line, block)
        if end is None:
            continue
        if _in_docstring(text, block, line.start()):
            block.inner = line.start() if block.inner is None else block.inner
        elif opens and block.info in ("markdown", "md"):
            block.depth += 1
        elif opens:
            found.append(_fence(text, block, line.start(), line.start(), closed=False))
            block = _opened(line)
        elif block.depth:
            block.depth -= 1
        else:
            found.append(_fence(text, block, end, line.end(), closed=True))
            block = None


def _opened(line: re.Match[str]) -> _Open | None:
    """The block that a line outside of one begins."""
    content = line[0].rstrip()
    edge = EDGE.fullmatch(content)
    if edge is not None:
        before, mark, rest = edge.groups()
        if mark[0] in rest and mark[0] == "`":
            return None
        info = INFO.fullmatch(rest) if rest else None
        word = info[1] if info else rest.split(maxsplit=1)[0] if rest.strip() else ""
    else:
        runs = list(RUN.finditer(content))
        before, mark, word = content[: runs[0].start()], runs[0][0], content[runs[0].end() :].strip()
        if len(runs) > 1 or (word and not INFO.fullmatch(word)) or not (word or before.rstrip().endswith((":", "："))):
            return None
    indent = 0 if before.strip() else _width(before)
    word = word.lower()
    docstrings = word == "" or word.startswith("py")
    return _Open(mark, indent, word, line.start(), line.end() + 1, docstrings=docstrings, read=line.end())


def _whole(line: re.Match[str]) -> Fence | None:
    """The block that is one line."""
    content = line[0].strip()
    mark = RUN.match(content)
    if mark is None or len(content) <= 2 * mark.end() or not content.endswith(mark[0]):
        return None
    body = content[mark.end() : -mark.end()].strip()
    return Fence("", body, line.start(), line.end(), True) if body and mark[0][0] not in body else None


def _end(line: re.Match[str], block: _Open) -> tuple[int | None, bool]:
    """Where the code ends if this line ends the block, and whether the line begins another."""
    content = line[0].rstrip()
    edge = EDGE.fullmatch(content)
    if edge is not None:
        if edge[1].strip() or _width(edge[1]) > block.indent + 3 or not edge[2].startswith(block.mark):
            return None, False
        return line.start(), edge[3] != "" and INFO.fullmatch(edge[3]) is not None
    run = re.compile(re.escape(block.mark[0]) + "{3,}").search(content)
    if run is None or run.end() < len(content) or not run[0].startswith(block.mark):
        return None, False
    spoken_of = content.lstrip().startswith(COMMENT)
    return (None if spoken_of else line.start() + run.start()), False


def _in_docstring(text: str, block: _Open, position: int) -> bool:
    if not block.docstrings:
        return False
    for triple in TRIPLE.finditer(text, block.read, position):
        if not block.quote:
            block.quote = triple[0]
        elif block.quote == triple[0]:
            block.quote = ""
    block.read = position
    return bool(block.quote)


def _width(blanks: str) -> int:
    return len(blanks.expandtabs(4))


def _fence(text: str, block: _Open, code_end: int, end: int, closed: bool) -> Fence:
    body = text[block.body : code_end].replace("\r\n", "\n")
    if block.indent:
        body = re.sub(rf"^[ \t]{{1,{block.indent}}}", "", body, flags=re.MULTILINE)
    return Fence(block.info, body, block.start, min(end, len(text)), closed)
