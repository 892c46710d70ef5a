"""Boxed answers: extraction, equivalence, clusters and votes.

Every label and reward of this project is made from the answer to one question: are these two answers the same?
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from corelib.released import extract_released, hendrycks_equal

__all__ = ["Vote", "cluster", "equivalent", "extract", "extract_released", "hendrycks_equal", "vote"]

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")


class Vote(NamedTuple):
    """Outcome of a vote over one group of answers.

    label: surface form of the lowest-index member of the winning class, None when there is none or too little support.
    support: size of the winning class / number of ALL answers of the group (blank ones count below), 0.0 when empty.
    margin: (size of the first class - size of the second) / number of all answers.
    counts: sizes of the classes, in order of their first member.
    """

    label: str | None
    support: float
    margin: float
    counts: tuple[int, ...]


def _closing_brace(text: str, start: int) -> int:
    """Index of the brace that closes the one at `start`, -1 when there is none."""
    depth = 0
    for match in re.compile(r"\\.|[{}]", re.S).finditer(text, start):
        token = match.group()
        if token == "{":
            depth += 1
        elif token == "}":
            depth -= 1
            if depth == 0:
                return match.start()
    return -1


def extract(text: str, fallback: str | None = None) -> str | None:
    r"""Content of the last box of a completion, stripped; None when there is none or it is blank.

    A box nested in a box gives the inner one; `\boxed 5` gives the next word; an unclosed box gives the rest of its line.
    `fallback="last_number"` looks for the last number of a text without a box; nothing is guessed unless asked.

    >>> extract(r"so \boxed{\frac{1}{2}} or rather \boxed{ 3 }")
    '3'
    >>> extract("it is 42") is None
    True
    >>> extract("it is 42", fallback="last_number")
    '42'
    """
    boxes = list(_BOX.finditer(text))
    if boxes:
        start = boxes[-1].end()
        if text[start : start + 1] == "{":
            end = _closing_brace(text, start)
            content = text[start + 1 : end] if end >= 0 else text[start + 1 :].split("\n")[0].rstrip(" $.")
        else:
            content = re.split(r"[\s$]", text[start:], maxsplit=1)[0]
        return content.strip() or None
    if fallback == "last_number":
        numbers = _NUMBER.findall(text)
        return numbers[-1] if numbers else None
    return None


def _number(text: str) -> Fraction | None:
    """The rational number that a plain answer is, None when it is not one."""
    text = re.sub(r"\\[dt]frac", r"\\frac", text.replace("$", "").replace("\\!", "").replace(" ", ""))
    text = re.sub(r"^(-?)\\frac\{?(-?\d+)\}?\{?(\d+)\}?$", r"\1\2/\3", text)
    text = re.sub(r"(?<=\d)\{?,\}?(?=\d{3}(?!\d))", "", text)
    if len(text) > 200 or not re.fullmatch(r"[-+]?(\d+(\.\d*)?|\.\d+)(/\d+)?", text):
        return None
    top, _, bottom = text.partition("/")
    return Fraction(top) / Fraction(bottom or 1) if Fraction(bottom or 1) else None


def equivalent(gold: str, answer: str) -> bool:
    """Whether two answers are the same; never raises for a string."""
    if gold == answer:
        return True
    gold, answer = (extract(side) or side for side in (gold, answer))
    a, b = _number(gold), _number(answer)
    if a is not None and b is not None:
        return a == b
    return hendrycks_equal(gold.strip(" $"), answer.strip(" $"))


def cluster(answers: Sequence[str | None], equality: str = "equivalent") -> list[int | None]:
    """Class of each answer, None for no answer; classes are the transitive closure of the equality, numbered in order
    of their first member. equality="released" is raw string equality, as in the released code."""
    if equality not in ("equivalent", "released"):
        raise ValueError(f"unknown equality {equality!r}")
    parent = {text: text for text in answers if text is not None and text.strip()}

    def root(text: str) -> str:
        while parent[text] != text:
            text = parent[text]
        return text

    if equality == "equivalent":
        distinct = list(parent)
        for i, a in enumerate(distinct):
            for b in distinct[:i]:
                if root(a) != root(b) and (equivalent(b, a) or equivalent(a, b)):
                    parent[root(a)] = root(b)
    numbers: dict[str, int] = {}
    return [numbers.setdefault(root(text), len(numbers)) if text in parent else None for text in answers]


def vote(answers: Sequence[str | None], min_support: float = 0.0, equality: str = "equivalent") -> Vote:
    """Majority vote over one group of answers; ties go to the class whose first member has the lowest index.

    >>> vote([r"\\frac12", "7", None, "0.5"])
    Vote(label='\\\\frac12', support=0.5, margin=0.25, counts=(2, 1))
    """
    classes = cluster(answers, equality)
    counts = [0] * (max((c for c in classes if c is not None), default=-1) + 1)
    for c in classes:
        if c is not None:
            counts[c] += 1
    if not counts:
        return Vote(None, 0.0, 0.0, ())
    first, second = (sorted(counts, reverse=True) + [0])[:2]
    support = first / len(answers)
    label = answers[classes.index(counts.index(first))] if support >= min_support else None
    return Vote(label, support, (first - second) / len(answers), tuple(counts))
