r"""Boxes of a completion: \boxed{...} and \fbox{...} with matched braces."""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_JOINED = 50  # boxes of one list
MAX_DEPTH = 100  # of braces; deeper ones count as unclosed


class Box(NamedTuple):
    """One box: its content, and where it starts and ends in the text."""

    content: str
    start: int
    end: int


_HEAD = re.compile(r"(?:boxed|fbox)(?![A-Za-z])[ \t\n]*")
_FLAT = re.compile(
    r"[^{}\\]*+(?:(?:\\(?s:.)|\{[^{}\\]*+\})[^{}\\]*+)*+"
)  # up to the next brace that is not a flat group
_WORD = re.compile(r"\\[a-zA-Z]+(?:\s*\{[^{}]*\}){0,2}|[^\s${}\\]+")
_GLUE = re.compile(
    r"(?:[\s,;.$]|\\[()\[\],;: ]|\\q?quad|\\text\s*\{\s*(?:and|or)\s*\}|and|or|\\left|\\right|&|[A-Za-z](?:_\{?\w+\}?)?\s*=)*"
)
MAX_GLUE = 60
MAX_JOINED_LENGTH = 500


def last_box(text: str, before: int | None = None, since: int = 0) -> Box | None:
    r"""The box that starts last in a text (or a part of it), None without one; of nested boxes the inner one.

    `\boxed 5` holds the next word or command; an unclosed box holds the rest of its line. Never raises.
    """
    at = len(text) if before is None else before
    while at > since:
        boxed = text.rfind("\\boxed", since, at)
        at = max(boxed, text.rfind("\\fbox", max(boxed, since), at))
        if at < 0:
            return None
        if head := _HEAD.match(text, at + 1):
            content, end = _content(text, head.end())
            return Box(content, at, end)
    return None


def joined_boxes(text: str) -> list[Box]:
    r"""The last box and those before it that are joined to it by commas, "and" or a name: \boxed{1}, \boxed{2}."""
    box = last_box(text)
    found = [] if box is None else [box]
    while box is not None and len(found) < MAX_JOINED:
        box = last_box(text, box.start, max(0, box.start - MAX_JOINED_LENGTH))
        if box is None or not 0 <= found[0].start - box.end <= MAX_GLUE:
            break
        if not _GLUE.fullmatch(text[box.end : found[0].start]):
            break
        found.insert(0, box)
    return found


def _content(text: str, at: int) -> tuple[str, int]:
    if text[at : at + 1] != "{":
        word = _WORD.match(text, at)
        if not word:
            return "", at
        return word[0].rstrip(".,;)") or word[0], word.end()
    depth, end = 1, at + 1
    while depth < MAX_DEPTH and (match := _FLAT.match(text, end)):
        end = match.end() + 1
        if text[end - 1 : end] == "{":
            depth += 1
        elif text[end - 1 : end] == "}":
            depth -= 1
            if depth == 0:
                return text[at + 1 : end - 1].strip(), end
        elif end > len(text):
            break
    line = re.split(r"\n|\$|\\\]|\\\)", text[at + 1 :], maxsplit=1)[0]
    return line.strip().rstrip(".").rstrip(), at + 1 + len(line)
