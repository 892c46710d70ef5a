r"""Boxed answers: extraction, equivalence, clusters and votes.

Every label and reward of this project is made from the answer to one question: are these two answers the same?
`equivalent` decides in this order: exact text; canonical form (numbers, fractions, mixed numbers, decimals, separators, units,
text, choices, Unicode); structure (tuples, intervals, sets, unions, matrices, relations, bases); exact rational arithmetic;
sixty and more digits at a few points. What is left goes to math-verify in a worker process (`corelib.grader`). Nothing of
an answer ever reaches eval, exec or sympy's string parser.

Conventions
-----------
Units and money are ignored when at most one side has them; different units differ, none is converted.

>>> equivalent("10", r"10\text{ cm}"), equivalent(r"\$10", "10"), equivalent("10 cm", "10 m"), equivalent("5 feet", "5 ft")
(True, True, False, True)

A percentage equals its number, not its hundredth.

>>> equivalent("50", r"50\%"), equivalent("0.5", r"50\%")
(True, False)

A decimal equals an exact value when it agrees to 1e-6 relative, decided in exact rationals; two decimals, when also they
differ by less than a unit in the last place of the shorter. 5.0 is an integer, not a decimal.

>>> equivalent(r"\frac13", "0.3333333"), equivalent(r"\frac13", "0.333"), equivalent("123456.78", "123456.79")
(True, False, False)

Brackets of intervals matter, and a tuple is no list; order matters in tuples, not in sets or bare lists. A bare list counts
how often a number occurs, a set does not.

>>> equivalent("[0,1)", "(0,1)"), equivalent("(1,2)", "1,2"), equivalent("(1,2)", "(2,1)"), equivalent("1,2", "2, 1")
(False, False, False, True)
>>> equivalent(r"\{1,2\}", r"\{2,1,1\}"), equivalent("1,2", "2,1,1"), equivalent(r"\{1,2\}", "1, 2")
(True, False, True)

The name on the left of an equation is dropped beside a bare value, and two names differ; f(x) may be called y.

>>> equivalent("3", "x=3"), equivalent("y=3", "x=3"), equivalent("2x+3", "f(x)=2x+3"), equivalent("y=2x+3", "f(x)=2x+3")
(True, False, True, True)

An equation equals its multiples; an inequality equals the interval of its solutions.

>>> equivalent("x-2y=4", "2x=4y+8"), equivalent(r"-2\le x<7", "[-2,7)"), equivalent(r"x\ne3", r"(-\infty,3)\cup(3,\infty)")
(True, True, True)

1,234 is a number unless the other side is a list; 1,22 is a list unless the other side is the number 1.22.

>>> equivalent("1234", "1,234"), equivalent(r"\{1, 234\}", "1,234"), equivalent("1234", "1, 234"), equivalent("1.22", "1,22")
(True, True, False, True)

A number in a base equals only the same digits in the same base.

>>> equivalent("52_8", "52_{8}"), equivalent("52_8", "52")
(True, False)

Exact values are compared exactly, whatever their size.

>>> equivalent(r"\frac{1}{3^{200}}", r"\frac{1}{3^{201}}"), equivalent(r"\sqrt{3+2\sqrt2}", r"1+\sqrt2")
(False, True)

Of several boxes the last counts; boxes joined by commas or "and" are also a list when the other side is one. Without a box
the text itself is the answer; of a sentence, what it ends with.

>>> equivalent("41", r"\boxed{42}, no: \boxed{41}"), equivalent("1,2", r"\boxed{1} and \boxed{2}"), equivalent("4", "It is $4$.")
(True, True, True)

Text is compared without case, articles and punctuation; a choice equals its letter; ratios are equal when proportional.

>>> equivalent(r"\text{Even}", "even"), equivalent("C", r"\textbf{(C)}"), equivalent("B", "(B) 12"), equivalent("1:2", "2:4")
(True, True, True, True)

± stands for both values; degrees are a unit outside of functions; variables are real and, where it matters, positive.

>>> equivalent(r"\pm 3", "-3, 3"), equivalent("30", r"30^\circ"), equivalent(r"\frac12", r"\sin 30^\circ")
(True, True, True)
"""

from __future__ import annotations

from collections.abc import Sequence

from corelib._answer_boxes import last_box
from corelib._answer_cluster import Vote, raw_partition, tally
from corelib._answer_decide import decide, last_number
from corelib.grader import shared
from corelib.released import extract_released, hendrycks_equal

__all__ = ["Vote", "cluster", "equivalent", "extract", "extract_released", "hendrycks_equal", "vote"]


def extract(text: str, fallback: str | None = None) -> str | None:
    r"""Content of the last box of a completion, stripped; None when there is no box or the last one is blank.

    Braces are matched. Of nested boxes the inner one counts; `\boxed 5` holds the next word; an unclosed box holds the rest of
    its line; `\fbox` counts as a box. With `fallback="last_number"` a text without any box gives its last number; nothing is
    guessed unless asked. Raises ValueError for another fallback.

    >>> extract(r"so \boxed{\frac{1}{2}}, or rather \boxed{ 3 }"), extract(r"\boxed{\boxed{4}}"), extract(r"\boxed 5 apples")
    ('3', '4', '5')
    >>> extract(r"then \fbox{6}"), extract(r"thus \boxed{x+1"), extract("it is 42"), extract("it is 42", "last_number")
    ('6', 'x+1', None, '42')
    """
    if fallback not in (None, "last_number"):
        raise ValueError(f"unknown fallback {fallback!r}")
    box = last_box(text)
    if box is not None:
        return box.content or None
    return last_number(text) if fallback else None


def equivalent(gold: str, answer: str | None) -> bool:
    r"""Whether an answer is the same as the gold answer, by the conventions above; never raises for a string.

    Symmetric except for the few pairs that only math-verify can tell, where the gold goes first. None is no answer.

    >>> equivalent(r"\frac{1}{2}", r"The answer is \boxed{0.5}."), equivalent(r"\int_0^1 x\,dx", "1/2")
    (True, True)
    """
    if answer is None or gold is None:
        return False
    verdict = decide(gold, answer)
    if verdict is None:
        return shared().equal([gold], [answer]) == ["equal"]
    return verdict


def cluster(answers: Sequence[str | None], equality: str = "equivalent") -> list[int | None]:
    r"""Class of each answer of one group, None for a blank one; classes are numbered in order of their first member.

    Classes are the transitive closure of `equivalent(a, b) or equivalent(b, a)`, hence independent of order up to their
    numbers. equality="released" is equality of the raw strings, as in the released code. Raises ValueError for another.

    >>> cluster([r"\frac12", "0.5", "7", None, "x=7"])
    [0, 0, 1, None, 1]
    """
    if equality == "released":
        return raw_partition(answers)
    if equality != "equivalent":
        raise ValueError(f"unknown equality {equality!r}")
    return shared().cluster([answers])[0]


def vote(answers: Sequence[str | None], min_support: float = 0.0, equality: str = "equivalent") -> Vote:
    r"""Majority vote over one group of answers; the released code (`majority_vote`) votes over raw strings.

    Ties go to the class whose first member has the lowest index. Below `min_support` the label is None, the support stays.

    >>> vote([r"\frac12", "7", None, "0.5"])
    Vote(label='\\frac12', support=0.5, margin=0.25, counts=(2, 1))
    >>> vote([None, ""]).support
    0.0
    """
    return tally(answers, cluster(answers, equality), min_support)
