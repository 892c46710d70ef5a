"""How sure a benchmark number is, and whether two of them differ.

Inputs are verdicts, `right[i][j]`: whether answer j to question i is right. Shares lie in [0, 1]; intervals are 95 %.
Questions are the units that were sampled; the draws of one question are not independent, so every error here is that
of per-question numbers (clustered by question), never that of all draws pooled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb, prod, sqrt
from typing import NamedTuple

import numpy as np

NORMAL = 1.96  # the 97.5 % point of the normal distribution


@dataclass(frozen=True)
class Estimate:
    """A mean over problems with its 95 % interval, as shares; `samples` answers a problem."""

    mean: float
    low: float
    high: float
    problems: int
    samples: int

    def __str__(self):
        return f"{100 * self.mean:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f})"


def avg_at_k(right: Sequence[Sequence[bool]]) -> Estimate:
    """avg@k: mean over problems of the share of right answers, standard error clustered by problem.

    The k answers to one problem are not independent, so the error is sd(per-problem means) / sqrt(N), never that of
    N * k coins. One answer a problem, or all alike, or a normal interval that would leave [0, 1]: the Wilson interval of
    N verdicts. Raises ValueError for no problems.

    >>> avg_at_k([[True, False], [True, True]]).mean
    0.75
    """
    return _clustered([sum(row) / len(row) for row in right], len(right[0]) if right else 0)


def wilson(right: int, n: int) -> Estimate:
    """Share of `right` in `n` independent verdicts with its Wilson interval, which holds near 0 and 1.

    Raises ValueError for n = 0 or more right than n. Source: Wilson (1927), by `scipy.stats.binomtest`.

    >>> print(wilson(18, 20))
    90.0 % (69.9 to 97.2)
    """
    from scipy.stats import binomtest

    if n < 1:
        raise ValueError("no verdicts; a share needs at least one")
    interval = binomtest(right, n).proportion_ci(method="wilson")
    return Estimate(right / n, float(interval.low), float(interval.high), n, 1)


def pass_at_k(right: Sequence[Sequence[bool]], k: int) -> Estimate:
    """Unbiased pass@k: the chance that at least one of k answers, picked from those drawn, is right.

    Of n draws with c right a question scores 1 - C(n-c, k) / C(n, k), as a product that cannot overflow. With n = k the
    score is 0 or 1 and the interval Wilson's; n > k is less noisy. Raises ValueError where a question has under k draws.
    Source: Chen et al. (2021), Eq. 1.

    >>> pass_at_k([[True, False, False, False]], 2).mean
    0.5
    """
    if k < 1 or any(len(row) < k for row in right):
        raise ValueError(f"pass@{k} needs k of at least 1 and at least k draws of every question")
    scores = []
    for row in right:
        n, c = len(row), sum(map(bool, row))
        scores.append(1 - prod(max(i - k, 0) / i for i in range(n - c + 1, n + 1)))
    return _clustered(scores, len(right[0]) if right else 0)


def maj_at_k(
    answers: Sequence[Sequence[str | None]],
    right: Sequence[Sequence[bool]],
    k: int,
    equality: str = "equivalent",
) -> Estimate:
    r"""maj@k: the chance that the vote of k answers, picked from those drawn, is right; exact over all k-subsets.

    `answers[i][j]`: extracted answer, None where there is none; `right[i][j]`: its verdict. Votes are counted by classes
    of `corelib.answers.cluster`; blank answers do not vote, and a subset of blanks only is wrong. Ties go to each of the
    largest classes with equal chance: what `corelib.answers.vote` (lowest index first) does on average over the order
    of the draws. Raises ValueError where a question has fewer than k draws or verdicts do not match answers.

    >>> maj_at_k([[r"\frac12", "0.5", "7", None]], [[True, True, False, False]], 3).mean
    0.75
    """
    from corelib.answers import cluster

    if k < 1 or any(len(row) < k for row in answers):
        raise ValueError(f"maj@{k} needs k of at least 1 and at least k draws of every question")
    if [len(row) for row in answers] != [len(row) for row in right]:
        raise ValueError("answers and verdicts differ in shape")
    scores = []
    for row, verdicts in zip(answers, right, strict=True):
        members: dict[int, list[bool]] = {}
        for label, verdict in zip(cluster(row, equality), verdicts, strict=True):
            if label is not None:
                members.setdefault(label, []).append(bool(verdict))
        sizes = [len(m) for m in members.values()]
        shares = [sum(m) / len(m) for m in members.values()]
        scores.append(vote_chance(sizes, shares, len(row) - sum(sizes), k))
    return _clustered(scores, len(answers[0]) if answers else 0)


def vote_chance(sizes: Sequence[int], shares: Sequence[float], blank: int, k: int) -> float:
    """Chance that the vote of k of the sum(sizes) + blank answers to one question is right.

    `sizes[c]`: answers in class c; `shares[c]`: share of them that is right, 0 or 1 unless the grader is inconsistent.
    Counts, for each class and each number of votes with which it can win, the subsets in which no class has more.

    >>> vote_chance([2, 2], [1, 0], blank=0, k=4), vote_chance([1, 2], [1, 0], blank=0, k=3)
    (0.5, 0.0)
    """
    total = 0.0
    for winner, share in enumerate(shares):
        for votes in range(1, min(k, sizes[winner]) + 1) if share else ():
            ways = {(votes, 1): comb(sizes[winner], votes)}  # (answers picked, classes that tie) -> subsets
            for other, size in enumerate(sizes):
                if other == winner:
                    continue
                grown: Counter = Counter()
                for (picked, tied), count in ways.items():
                    for more in range(min(votes, size, k - picked) + 1):
                        grown[picked + more, tied + (more == votes)] += count * comb(size, more)
                ways = grown
            total += share * sum(n * comb(blank, k - picked) / tied for (picked, tied), n in ways.items())
    return total / comb(sum(sizes) + blank, k)


class Difference(NamedTuple):
    """Mean of a - b over questions, its 95 % interval, the p-value of no difference, and the number of questions."""

    mean: float
    low: float
    high: float
    p: float
    problems: int


def paired_difference(
    a: Sequence[Sequence[bool]], b: Sequence[Sequence[bool]], resamples: int = 2**14, seed: int = 0
) -> Difference:
    """Accuracy of model a minus that of model b over the same questions, in the same order.

    Interval: mean ± 1.96 sd / sqrt(N) of the per-question differences (clustered; the normal approximation wants some
    tens of questions that differ, and its width is 0 when none does). p: two-sided sign-flip permutation test by
    `scipy.stats.permutation_test`, exact while the questions that differ have at most `resamples` sign patterns (14 by
    default), else from that many random ones. The models may have different numbers of draws. Raises ValueError when
    the numbers of questions differ.

    >>> d = paired_difference([[1], [1], [1], [1], [0], [1]], [[0], [0], [0], [0], [0], [1]])
    >>> round(d.mean, 3), d.p
    (0.667, 0.125)
    """
    from scipy.stats import permutation_test

    if len(a) != len(b) or not len(a):
        raise ValueError(f"{len(a)} and {len(b)} questions; a paired difference needs the same ones for both")
    x, y = (np.array([np.mean(row) for row in rows], dtype=float) for rows in (a, b))
    n, delta = len(x), x - y
    mean = float(delta.mean())
    half = NORMAL * float(delta.std(ddof=1)) / sqrt(n) if n > 1 else 1.0
    differ = delta != 0  # flipping the sign of zero changes nothing, and of a single difference as little
    p = 1.0
    if differ.sum() > 1:
        p = permutation_test(
            (x[differ], y[differ]),
            lambda x, y, axis: (x - y).mean(axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=resamples,
            batch=max(1, 2**20 // int(differ.sum())),
            rng=np.random.default_rng(seed),
        ).pvalue
    return Difference(mean, max(mean - half, -1.0), min(mean + half, 1.0), float(p), n)


def unpaired_difference(a: Estimate, b: Estimate) -> tuple[float, float]:
    """95 % interval of a.mean - b.mean from the two intervals alone, as if nothing were shared between the two.

    All that can be said of two published numbers; wider than the paired interval where models fail the same questions.
    Source: Newcombe (1998), method 10 (square and add), which for Wilson intervals is the hybrid score interval.

    >>> low, high = unpaired_difference(wilson(56, 70), wilson(48, 80))
    >>> round(low, 4), round(high, 4)
    (0.0524, 0.3339)
    """
    d = a.mean - b.mean
    return d - sqrt((a.mean - a.low) ** 2 + (b.high - b.mean) ** 2), d + sqrt(
        (a.high - a.mean) ** 2 + (b.mean - b.low) ** 2
    )


class McNemar(NamedTuple):
    """Questions that only a, and that only b, has right; exact two-sided p-value of no difference."""

    only_a: int
    only_b: int
    p: float


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> McNemar:
    """Exact McNemar test of two models with one answer a question: are the disagreements split evenly?

    Raises ValueError when the numbers of questions differ. Source: McNemar (1947), by `scipy.stats.binomtest`.

    >>> mcnemar([1, 1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1, 1])
    McNemar(only_a=5, only_b=1, p=0.21875)
    """
    from scipy.stats import binomtest

    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} questions; McNemar's test needs the same ones for both")
    only_a = sum(bool(x) and not y for x, y in zip(a, b, strict=True))
    only_b = sum(bool(y) and not x for x, y in zip(a, b, strict=True))
    p = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return McNemar(only_a, only_b, p)


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """p-values adjusted for having looked at all of them (benchmark -> p); below 0.05 each is a finding at 5 % overall.

    The smallest is multiplied by m, the next by m - 1 and so on, never below the one before. Raises ValueError for a p
    outside [0, 1] (NaN included). Source: Holm (1979).

    >>> holm({"math500": 0.01, "gsm8k": 0.04, "amc": 0.03})
    {'math500': 0.03, 'gsm8k': 0.06, 'amc': 0.06}
    """
    for name, value in p.items():
        if not 0 <= value <= 1:
            raise ValueError(f"p-value of {name} is {value}; it must lie in [0, 1]")
    adjusted, least = {}, 0.0
    for rank, name in enumerate(sorted(p, key=p.__getitem__)):
        least = adjusted[name] = max(least, min(1.0, (len(p) - rank) * p[name]))
    return {name: adjusted[name] for name in p}


class SeedsAndQuestions(NamedTuple):
    """One mean over seeds x questions, and what its error is made of.

    seed_sd, question_sd, residual_sd: standard deviations between seeds, between questions, and of what is left
    (a seed's luck on a question); shares in [0, 1].
    same_seeds: interval for these very runs on other questions of the kind.
    same_questions: interval for other seeds on these very questions.
    both: interval for other seeds on other questions; the one to quote when a method is compared.
    """

    mean: float
    seed_sd: float
    question_sd: float
    residual_sd: float
    same_seeds: Estimate
    same_questions: Estimate
    both: Estimate


def seeds_and_questions(accuracy: Sequence[Sequence[float]]) -> SeedsAndQuestions:
    """Split the error of a mean accuracy into seed variance and question variance.

    `accuracy[s][q]`: share of right answers of the run with seed s on question q; every seed has the same questions.
    Random-effects analysis of variance without replication; a negative component counts as 0. Few seeds: Student's t
    with S - 1 degrees of freedom, for `both` with Satterthwaite's. Raises ValueError for fewer than two seeds or
    questions. Source: Searle, Casella & McCulloch, Variance Components (1992), section 4.

    >>> s = seeds_and_questions([[1.0, 0.5, 0.0, 0.5], [0.5, 0.0, 0.0, 0.5], [1.0, 1.0, 0.5, 1.0]])
    >>> round(s.mean, 3), round(s.seed_sd, 2), round(s.question_sd, 2), round(s.residual_sd, 2)
    (0.542, 0.3, 0.26, 0.19)
    """
    from scipy.stats import t

    table = np.asarray(accuracy, dtype=float)
    if table.ndim != 2 or min(table.shape) < 2:
        raise ValueError("accuracy must be a table of at least two seeds by two questions, without gaps")
    seeds, questions = table.shape
    mean, of_seed, of_question = table.mean(), table.mean(axis=1), table.mean(axis=0)
    square_seed = questions * of_seed.var(ddof=1)
    square_question = seeds * of_question.var(ddof=1)
    residuals = table - of_seed[:, None] - of_question + mean
    square_rest = (residuals**2).sum() / ((seeds - 1) * (questions - 1))
    seed_variance = max(square_seed - square_rest, 0.0) / questions
    question_variance = max(square_question - square_rest, 0.0) / seeds

    def interval(variance: float, factor: float) -> Estimate:
        half = factor * sqrt(variance)
        return Estimate(float(mean), max(float(mean - half), 0.0), min(float(mean + half), 1.0), questions, seeds)

    by_question, by_seed = square_question / (seeds * questions), seed_variance / seeds
    spread = by_question**2 / (questions - 1) + by_seed**2 / (seeds - 1)
    freedom = (by_question + by_seed) ** 2 / spread if spread else questions - 1
    return SeedsAndQuestions(
        float(mean),
        sqrt(seed_variance),
        sqrt(question_variance),
        sqrt(square_rest),
        interval(by_question, NORMAL),
        interval(of_seed.var(ddof=1) / seeds, t.ppf(0.975, seeds - 1)),
        interval(by_question + by_seed, t.ppf(0.975, freedom)),
    )


def _clustered(scores: Sequence[float], samples: int) -> Estimate:
    """Mean of one number a question, its error clustered by question; Wilson where every number is 0 or 1.

    So too where the normal interval reaches 0 or 1: there the few questions that differ say too little about the
    spread (30 x 32 draws with one right would be sure to 0.3 %), and numbers in [0, 1] spread at most as N coins do.
    Source: Wilson's interval with an effective sample size (Korn & Graubard 1998), here the least there can be, N.
    """
    if not len(scores):
        raise ValueError("no problems were scored; an accuracy needs at least one")
    n, mean = len(scores), float(np.mean(scores))
    if set(scores) <= {0, 1}:
        whole = wilson(int(sum(scores)), n)
        return Estimate(mean, whole.low, whole.high, n, samples)
    half = NORMAL * float(np.std(scores, ddof=1)) / sqrt(n) if n > 1 else 1.0
    low, high = mean - half, mean + half
    if low <= 0 or high >= 1:
        square = NORMAL**2 / n
        middle, half = (mean + square / 2) / (1 + square), sqrt(max(mean * (1 - mean), 0) * square + square**2 / 4)
        low, high = middle - half / (1 + square), middle + half / (1 + square)
    return Estimate(mean, max(low, 0.0), min(high, 1.0), n, samples)
