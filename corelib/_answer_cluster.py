"""Classes of equivalent answers in one group, and the vote over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from corelib._answer_decide import decide, subjects
from corelib._answer_exact import TooBig, exact_or_none, has_decimal
from corelib._answer_reading import ambiguous, read

Hard = Callable[[list[tuple[str, str]]], list[bool]]


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


def plain_value(text: str):
    """Exact value of an answer that is a plain number, else None: two such answers are the same iff the values are."""
    meanings = subjects(text)
    if len(meanings) > 1 or "," in meanings[0] or ambiguous(meanings[0]):
        return None
    answer = read(meanings[0])
    if answer.unit or answer.name or answer.choice or answer.value[0] != "scalar" or has_decimal(answer.value[1]):
        return None
    try:
        return exact_or_none(answer.value[1])
    except (TooBig, RecursionError):
        return None


def partition(answers: Sequence[str | None], hard: Hard) -> list[int | None]:
    """Class of each answer, None for a blank one: the transitive closure of equality, numbered by first member.

    Plain numbers are compared by value, the other distinct texts pairwise by `decide`; what that leaves open goes to
    `hard` in one batch, and only between classes that are still apart.
    """
    parent: dict[str, str] = {}
    values: dict[str, object] = {}
    first_of: dict[object, str] = {}
    for text in answers:
        if text is None or not text.strip() or text in parent:
            continue
        values[text] = value = plain_value(text)
        parent[text] = first_of.setdefault(value, text) if value is not None else text

    def root(text: str) -> str:
        while parent[text] != text:
            parent[text] = parent[parent[text]]
            text = parent[text]
        return text

    heads = [text for text in parent if parent[text] == text]
    open_pairs = []
    for i, b in enumerate(heads):
        for a in heads[:i]:
            if (values[a] is not None and values[b] is not None) or root(a) == root(b):
                continue
            verdict = decide(a, b)
            if verdict:
                parent[root(b)] = root(a)
            elif verdict is None:
                open_pairs += [(a, b), (b, a)]  # math-verify is not symmetric
    open_pairs = [(a, b) for a, b in open_pairs if root(a) != root(b)]
    if open_pairs:
        for (a, b), same in zip(open_pairs, hard(open_pairs), strict=True):
            if same and root(a) != root(b):
                parent[root(b)] = root(a)
    numbers: dict[str, int] = {}
    return [numbers.setdefault(root(t), len(numbers)) if t is not None and t in parent else None for t in answers]


def raw_partition(answers: Sequence[str | None]) -> list[int | None]:
    """Classes by equality of the raw strings, as in the released code; blank answers are none."""
    numbers: dict[str, int] = {}
    return [None if t is None or not t.strip() else numbers.setdefault(t, len(numbers)) for t in answers]


def tally(answers: Sequence[str | None], classes: Sequence[int | None], min_support: float = 0.0) -> Vote:
    """Vote over the classes of one group; ties go to the class whose first member has the lowest index."""
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
