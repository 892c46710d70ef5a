r"""The verdict on two answer texts without sympy: exact text, canonical form, structure, exact numbers, many digits.

None is what is left for math-verify (`corelib.grader`); on real completions that is less than one answer in a thousand.
"""

from __future__ import annotations

import re
from functools import lru_cache

from corelib import _answer_algebra as algebra
from corelib._answer_boxes import joined_boxes
from corelib._answer_compare import compare
from corelib._answer_reading import Answer, ambiguous, key, read
from corelib._answer_tokens import MAX_LENGTH, Unreadable, tidy

MAX_CACHED = 4_000  # characters; completions are not kept
MAX_ENDING = 600
MAX_BRACES = 15  # of depth; the deepest gold of all sets at hand has 3
_MATH = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$((?:\\\$|[^$])+?)(?<!\\)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.S)
_CUE = re.compile(r".*(?:\b(?:answer|result|solution|value|total|length|angle|ratio|area|it|which|that|he|there)\s+(?:is|are|equals|was)"
                  r"|\b(?:is|are|equals)|answer\s*:|:)\s+(?=\S)", re.S | re.I)  # fmt: skip
_NUMBER_AT_END = re.compile(
    r"(?:^|[\s:(=])((?:[-−]\s*)?(?:[$€£]\s*)?(?:\d{1,3}(?:,\d{3})+|\d+)(?:[.,]\d+)?(?:/\d+)?\s*[$€£%°]?)([a-zA-Z]{1,5}[²³]?)?"
    r"(?:[\s.,!?%]|$)[^\d]*$"
)
_SAYS = re.compile(r"[^\d=]*\b(?:is|are|equals)\s+(\S.*)", re.S | re.I)
_BOILERPLATE = re.compile(r"<\|.*|I hope it is correct\.?\s*$", re.S)
_BRACKETED = re.compile(r"\[([^\[\]]{1,200})\][^\[\]\d]*$")


def subjects(text: str) -> tuple[str, ...]:
    r"""What a text may mean as an answer, the first being the main one.

    The content of its last box; for boxes joined by commas or "and" also their list, separated by " , "; without a box the
    text, and, if it is a sentence, what the sentence ends with: "The answer is $\frac56$." means \frac56.
    """
    found = joined_boxes(text)
    if len(found) > 1:
        return found[-1].content, " , ".join(box.content for box in found)
    if found:
        return _boxed_sentence(found[-1].content)
    text = text.strip()
    if len(text) > MAX_CACHED:  # a completion without a box: what it ends with
        return (text[:MAX_CACHED], *_sentence(text[-MAX_ENDING:])[1:])
    return _sentence(text)


def _boxed_sentence(content: str) -> tuple[str, ...]:
    """A boxed answer, and what a boxed sentence says it is."""
    plain = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", content)
    match = _SAYS.fullmatch(plain) if " " in plain and len(plain) < MAX_ENDING else None
    return (content, match[1]) if match else (content,)


def _is_math(answer: Answer) -> bool:
    """Whether a reading holds no text, so that it is no sentence."""
    kind, *parts = answer.value
    if kind in ("text", "hard"):
        return False
    return all(_is_math(p) for part in parts if isinstance(part, tuple) for p in part if isinstance(p, Answer)) and all(
        _is_math(p) for p in parts if isinstance(p, Answer)
    )


@lru_cache(maxsize=65_536)
def _sentence(text: str) -> tuple[str, ...]:
    text = _BOILERPLATE.sub("", text).strip()
    math = list(_MATH.finditer(text))
    outside = re.sub(r"\\[a-zA-Z]+\s*(?:\{[^{}]*\})?", " ", _MATH.sub(" ", text))
    if not (re.search(r"[^\W\d_]{3,}", outside) or _CUE.match(outside)) or _is_math(read(text)):
        return (text,)
    if math and not re.search(r"\bis\s+\S*\d", text[math[-1].end() :]):
        return text, next(group for group in math[-1].groups() if group is not None)
    out = [text]
    if match := _BRACKETED.search(text):
        out.append(match[1])
    if match := _CUE.match(text):
        out.append(text[match.end() :])
    if len(text) < 2000 and (match := _NUMBER_AT_END.search(text)):
        number, unit = match[1], (match[2] or "").replace("²", "^2").replace("³", "^3")
        out.append(f"{number} \\text{{{unit}}}" if unit else number)
    return tuple(out)


_LAST_NUMBER = re.compile(r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?|(?<![\w.])-?\.\d+")


def last_number(text: str) -> str | None:
    """The last number of a text as it is written, None when there is none."""
    found = _LAST_NUMBER.findall(text)
    return found[-1] if found else None


_LISTS = ("list", "set", "tuple", "matrix", "join")


def decide(gold: str, answer: str) -> bool | None:
    """Whether two answers are the same; None for what only math-verify can tell. Symmetric; never raises."""
    if gold == answer:
        return True
    golds, answers = subjects(gold), subjects(answer)
    if golds[0] == answers[0] and golds[0]:
        return True
    short = sum(map(len, golds)) + sum(map(len, answers)) <= MAX_CACHED
    try:
        return _decide(golds, answers) if short else _decide.__wrapped__(golds, answers)
    except (RecursionError, MemoryError):
        return False


@lru_cache(maxsize=131_072)
def _decide(golds: tuple[str, ...], answers: tuple[str, ...]) -> bool | None:
    verdict = _pair(golds[0], answers[0])
    if verdict:
        return True
    for g in golds:
        for a in answers:
            if (g, a) == (golds[0], answers[0]) or " , " in g + a and not (_is_list(g) and _is_list(a)):
                continue  # joined boxes are a list only beside a list
            if _pair(g, a):
                return True
    return verdict


def forget() -> None:
    """Empties every cache of readings and verdicts, to measure from a cold start."""
    for cached in (_decide, _sentence, _key, read, *algebra.CACHED):
        cached.cache_clear()


def _is_list(text: str) -> bool:
    return read(text, "list").value[0] in _LISTS


@lru_cache(maxsize=65_536)
def _key(text: str) -> str:
    return key(text)


def _monstrous(text: str) -> bool:
    """Whether a text is too long or too deeply nested for an answer, and is compared as text only."""
    if len(text) > MAX_LENGTH:
        return True
    if text.count("{") <= MAX_BRACES:
        return False
    depth = deepest = 0
    for char in text:
        depth += (char == "{") - (char == "}")
        deepest = max(deepest, depth)
    return deepest > MAX_BRACES


def _tight(text: str) -> str:
    """The text without the spaces that separate nothing."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)


def _pair(gold: str, answer: str) -> bool | None:
    if not gold.strip() or not answer.strip():
        return False  # no answer is not an answer
    if _monstrous(gold) or _monstrous(answer):
        return "".join(gold.split()) == "".join(answer.split())
    if gold == answer or _key(gold) == _key(answer) or _tight(gold) == _tight(answer):
        return True
    a, b = read(gold), read(answer)
    verdict = compare(a, b)
    if verdict:
        return True
    if "," in gold or "," in answer:
        for x, y, xs, ys in ((gold, answer, a, b), (answer, gold, b, a)):
            if ambiguous(x) and ys.value[0] in _LISTS and compare(read(x, "list"), read(y, "list")):
                return True
            if xs.value[0] == "list" and ys.value[0] == "scalar" and _decimal(x, y):
                return True
    return _letters(a, b, gold, answer) or verdict


def _decimal(text: str, other: str) -> bool:
    """1,22 beside the number 1.22: a decimal comma."""
    return (
        len(re.findall(",", text)) == 1
        and bool(re.search(r"\d,\d", text))
        and bool(compare(read(text, "decimal"), read(other)))
    )


_SPACED_LETTER = re.compile(r"(-?[\d.,]+) [mgshlLNJWVAKCF]")


def _letters(a: Answer, b: Answer, gold: str, answer: str) -> bool:
    """A short unit read as variables beside the same unit in words: 10 m and 10 \\text{ m}; or letters beside text."""
    if a.value[0] == b.value[0] == "scalar" and not (a.unit or b.unit):
        for text, other in ((tidy(gold), b), (tidy(answer), a)):
            if (match := _SPACED_LETTER.fullmatch(text)) and compare(read(match[1]), other):
                return True
    if a.value[0] == b.value[0] == "scalar" and (a.unit is None) != (b.unit is None):
        bare = tidy(answer if b.unit is None else gold)
        if match := re.fullmatch(r"(.*\d)\s*([a-zA-Z])(?:\^\{?([23])\}?)?", bare):
            unit = a.unit or b.unit
            power = f"^{match[3]}" if match[3] else ""
            try:
                rewritten = read(f"{match[1]} \\text{{{match[2]}}}{power}")
            except Unreadable:
                return False
            return rewritten.unit == unit and bool(compare(rewritten, a if b.unit is None else b))
    return False
