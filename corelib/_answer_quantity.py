"""Numbers and expressions with their units, and text: the parts that every other answer is made of."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from corelib._answer_brackets import bare, enclosed
from corelib._answer_parser import parse, without_degrees
from corelib._answer_tokens import FUNCTION_WORDS, Unreadable, number, tokens
from corelib._answer_units import LETTER_UNIT, strip_unit


class Answer(NamedTuple):
    """One reading of an answer: its value, the unit and the name (left side of =) it came with, its choice letter."""

    value: tuple
    unit: str | None = None
    name: str | None = None
    choice: str | None = None


def words(text: str) -> str:
    """Words of a text answer, lower-case, without articles and punctuation."""
    text = re.sub(r"\\text(?![a-zA-Z])", " ", text).casefold().replace("\\", " \\")
    return " ".join(
        w for w in re.findall(r"\\?[^\W_]+|[<>=+*/|^:-]", text) if w not in ("the", "a", "an") or len(text) < 3
    )


_COUNT_WORDS = {w: n for n, w in enumerate(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen twenty".split())}  # fmt: skip


_COUNT_WORDS |= dict(zip("thirty forty fifty sixty seventy eighty ninety".split(), range(30, 100, 10), strict=True))


_ABOUT = re.compile(
    r"^(?:(?:\\text\s*\{)?\s*(?:approximately|approx\.?|about|exactly|only|around)\s*\}?)\s*(?=\S)", re.I
)


def _count(text: str) -> int | None:
    """Number in words: twenty-one, two hundred and five."""
    total = current = 0
    for word in re.findall(r"[a-z]+|[^a-z\s-]", text.lower()):
        if word in _COUNT_WORDS:
            current += _COUNT_WORDS[word]
        elif word == "hundred" and current:
            current *= 100
        elif word == "thousand" and current:
            total, current = total + current * 1000, 0
        else:
            return None
    return total + current if re.search("[a-z]", text.lower()) else None


def quantity(text: str, read: Callable[[str], Answer]) -> Answer:
    """A scalar with or without a unit, a ± pair, or text; `read` reads what stands in brackets before a unit."""
    text = _ABOUT.sub("", text)
    if (count := _count(text)) is not None:
        return Answer(("scalar", number(str(count))))
    if match := re.fullmatch(r"(\d+)\s*(?:st|nd|rd|th|\^\s*\{?\s*\\text\s*\{\s*(?:st|nd|rd|th)\s*\}\s*\}?)", text):
        text = match[1]
    text = re.sub(r"(?<=\d)\s*\(([A-Za-z][A-Za-z ]{2,})\)$", r" \\text{\1}", text)
    unit = None
    body = text
    for _ in range(3):
        if re.fullmatch(r"[A-Za-z][A-Za-z' -]{2,}", body) and not LETTER_UNIT.fullmatch(body):
            break
        body, found = strip_unit(body)
        if found is None:
            break
        body = re.sub(r"[/\s]+$", "", body)
        unit = found if unit is None or unit == found else found + " " + unit if found else unit
    if unit is not None and body != text:
        inner = bare(body)
        if not re.search(r"[\d\\a-zA-Z]", inner) or (
            not re.search(r"\d|\\pi|\\frac|\\sqrt", inner) and not re.fullmatch(r".{1,12}", inner)
        ):
            raise Unreadable("words")
        if inner != text and (enclosed(inner) or unit == "%" and inner.startswith("\\text")):
            answer = read(inner)
            return answer._replace(unit=unit or None)
        body = inner
    if "\\pm" in body or "\\mp" in body:
        plus, minus = body.replace("\\pm", "+").replace("\\mp", "-"), body.replace("\\pm", "-").replace("\\mp", "+")
        return Answer(("list", tuple(Answer(("scalar", scalar(b)), unit or None) for b in (plus, minus))))
    try:
        return Answer(("scalar", scalar(body)), unit or None)
    except Unreadable as error:
        if error.hard or re.search(r"\\(?:int|lim|sum|prod|begin)(?![a-zA-Z])", body):
            return Answer(("hard", body), unit or None)
        return Answer(("text", words(text)))


def scalar(text: str) -> tuple:
    """Expression tree of a text that is one; a word of letters is text, not a product of variables."""
    if re.fullmatch(r"[A-Za-z][A-Za-z '-]*[A-Za-z]", text) and re.search(r"[A-Za-z]{3}", text):
        if text.lower() not in ("infinity", "infty", "inf"):
            raise Unreadable("word")
    if text.lower() in ("no", "ok"):
        raise Unreadable("word")
    if any(len(word) > 4 and word not in FUNCTION_WORDS for word in re.findall(r"(?<![A-Za-z\\])[A-Za-z]+", text)):
        raise Unreadable("words")
    if re.search(r"(?<![A-Za-z\\])(?:the|is|are|of|we|it|so)(?![A-Za-z])", text, re.I):
        raise Unreadable("words")
    toks = tokens(text)
    if toks and toks[0] == ("op", "$"):
        raise Unreadable("dollar")
    if ("op", "_") in toks and not any(kind in ("let", "cmd") for kind, _ in toks):
        raise Unreadable("base")
    return without_degrees(parse(toks))
