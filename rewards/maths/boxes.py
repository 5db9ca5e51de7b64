"""What the boxes of a response hold."""

from __future__ import annotations

import re

BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])")
OPENED = re.compile(r"\\(?:boxed|fbox)\s*\{")
SINGLE = re.compile(r"\\(?:boxed|fbox)\s+(-?[\w.]+)")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
BETWEEN_BOXES = re.compile(
    r"(?:[\s,;&$.+]|\\(?:quad|qquad|text|mathrm|\[|\]|\(|\)|[,;!: ]|\\)|\{|\}|\band\b|\bor\b)*", re.IGNORECASE
)


def boxed(text: str) -> str | None:
    """What the last box holds, or the last row of boxes with only separators between them.

    Empty when the last is never closed, so that no earlier box, often a guess, stands in.
    """
    starts = [match.start() for match in BOX.finditer(text)]
    if not starts:
        return None
    boxes: list[tuple[int, int, str]] = []
    for start in starts:
        if boxes and start < boxes[-1][1]:
            continue  # inside the one before
        opened = OPENED.match(text, start)
        if opened is None:
            single = SINGLE.match(text, start)
            boxes.append((start, single.end(), single[1]) if single else (start, len(text), ""))
            continue
        end = closing(text, opened.end() - 1)
        if end is None:
            boxes.append((start, len(text), ""))
            break
        boxes.append((start, end + 1, text[opened.end() : end]))
    if not boxes[-1][2].strip():
        return ""
    row = [boxes[-1]]
    for before in reversed(boxes[:-1]):
        between = text[before[1] : row[0][0]]
        if len(between) > 60 or not BETWEEN_BOXES.fullmatch(between) or "\n\n" in between.strip(" "):
            break
        row.insert(0, before)
    contents = [content.strip() for _, _, content in row]
    return contents[0] if len(set(contents)) == 1 else ", ".join(contents)


def closing(text: str, opened: int) -> int | None:
    """Where the brace at `opened` is closed."""
    depth = 0
    for brace in BRACE.finditer(text, opened):
        if brace[0] in "{}":
            depth += 1 if brace[0] == "{" else -1
            if depth == 0:
                return brace.start()
    return None
