r"""Boxes of a completion: \boxed{...} and \fbox{...} with matched braces."""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_BOXES = 50  # the last ones; a repetition loop can write thousands


class Box(NamedTuple):
    """One box: its content, where it starts and ends in the text, whether it lies inside the box before it."""

    content: str
    start: int
    end: int
    inside: bool


_START = re.compile(r"\\+(?:boxed|fbox)(?![A-Za-z])[ \t\n]*")
_BRACE = re.compile(r"\\[\\{}]|[{}]")
_WORD = re.compile(r"\\[a-zA-Z]+(?:\s*\{[^{}]*\}){0,2}|[^\s${}\\]+")


def boxes(text: str) -> list[Box]:
    r"""Boxes of a text in order; one inside another comes after it.

    `\boxed 5` holds the next word or command; an unclosed box holds the rest of its line. Never raises.
    """
    if "boxed" not in text and "fbox" not in text:
        return []
    starts = list(_START.finditer(text))[-MAX_BOXES:]
    found: list[Box] = []
    for match in starts:
        content, end = _content(text, match.end())
        found.append(Box(content, match.start(), end, bool(found) and match.start() < found[-1].end))
    return found


def _content(text: str, at: int) -> tuple[str, int]:
    if text[at : at + 1] != "{":
        word = _WORD.match(text, at)
        if not word:
            return "", at
        return word[0].rstrip(".,;)") or word[0], word.end()
    depth = 0
    for brace in _BRACE.finditer(text, at):
        if brace[0] == "{":
            depth += 1
        elif brace[0] == "}":
            depth -= 1
            if depth == 0:
                return text[at + 1 : brace.start()].strip(), brace.end()
    line = re.split(r"\n|\$|\\\]|\\\)", text[at + 1 :], maxsplit=1)[0]
    return line.strip().rstrip(".").rstrip(), at + 1 + len(line)
