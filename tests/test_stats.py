"""Every statistic against brute force: enumeration, the definition written out, or simulation with a known truth."""

import doctest
import inspect
import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corelib import stats
from corelib.answers import vote
from corelib.stats import Estimate, avg_at_k


def verdicts(seed, questions, draws):
    rng = random.Random(seed)
    return [[rng.random() < p for _ in range(draws)] for p in (rng.random() for _ in range(questions))]


def test_every_public_function_has_an_example_that_holds():
    public = [f for name, f in inspect.getmembers(stats, inspect.isfunction) if f.__module__ == stats.__name__ and name[0] != "_"]  # fmt: skip
    assert len(public) == 10
    for function in public:
        assert ">>>" in function.__doc__, function.__name__
    result = doctest.testmod(stats)
    assert result.failed == 0 and result.attempted >= len(public)


@pytest.mark.parametrize("right, n", [(0, 7), (7, 7), (18, 20), (393, 500)])
def test_wilson_solves_the_score_equation(right, n):
    e = stats.wilson(right, n)
    for bound in (e.low, e.high):  # the p at which the observed share is 1.96 standard errors away
        assert abs(right / n - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / n), abs=1e-6)
    assert e.low <= right / n <= e.high and e.high - e.low > 0
    with pytest.raises(ValueError, match="no verdicts"):
        stats.wilson(0, 0)
    with pytest.raises(ValueError):
        stats.wilson(8, 7)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=7), min_size=1, max_size=6), st.integers(1, 5))
def test_pass_at_k_is_the_mean_over_all_subsets(right, k):
    brute = [np.mean([any(s) for s in itertools.combinations(row, k)]) for row in right]
    assert stats.pass_at_k(right, k).mean == pytest.approx(np.mean(brute))


def test_pass_at_k_interval_is_clustered_and_its_ends_are_avg_and_any():
    right = verdicts(0, 60, 8)
    e = stats.pass_at_k(right, 3)
    scores = [1 - math.comb(8 - sum(r), 3) / math.comb(8, 3) for r in right]
    se = math.sqrt(sum((s - np.mean(scores)) ** 2 for s in scores) / 59 / 60)
    assert (e.low, e.high) == pytest.approx((e.mean - 1.96 * se, e.mean + 1.96 * se))
    assert (e.problems, e.samples) == (60, 8)
    one, average = stats.pass_at_k(right, 1), avg_at_k(right)
    assert (one.mean, one.low, one.high) == pytest.approx((average.mean, average.low, average.high))
    solved = sum(any(r) for r in right)
    assert stats.pass_at_k(right, 8).low == pytest.approx(stats.wilson(solved, 60).low)
    assert stats.pass_at_k([[True] * 4] * 5, 2).low < 1  # five solved questions do not prove perfection
    assert stats.pass_at_k([[True] + [False] * 999], 500).mean == pytest.approx(0.5)  # no overflow


@pytest.mark.parametrize("function", [lambda r, k: stats.pass_at_k(r, k), lambda r, k: stats.maj_at_k([["1"] * len(x) for x in r], r, k)])  # fmt: skip
def test_k_larger_than_the_draws_is_refused(function):
    for k in (0, 3):
        with pytest.raises(ValueError, match="at least k draws"):
            function([[True, False, True], [True, False]], k)
    with pytest.raises(ValueError, match="no problems"):
        function([], 1)


def brute_vote(answers, gold, k):
    """Mean verdict of the released vote over all k-subsets in all orders: ties fall by order."""
    total, n = Fraction(0), 0
    for subset in itertools.combinations(answers, k):
        for order in itertools.permutations(subset):
            label = vote(order).label
            total, n = total + (label is not None and label == gold), n + 1
    return float(total / n)


@pytest.mark.parametrize(
    "answers",
    [
        ["1", "1", "2", "2", None, "3"],
        ["1", "2", "3", "4", "5", None],
        [None] * 6,
        ["1", "1", "1", "2", "2", None],
        ["2", "2", "3", "3", "1", "1"],
    ],
)
def test_maj_at_k_is_the_vote_over_all_subsets_and_orders(answers):
    right = [a == "1" for a in answers]
    for k in range(1, 6):
        assert stats.maj_at_k([answers], [right], k).mean == pytest.approx(brute_vote(answers, "1", k)), k


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 3), st.data())
def test_vote_chance_is_the_share_of_winning_subsets(sizes, blank, data):
    shares = data.draw(st.lists(st.sampled_from([0.0, 1.0, 0.5]), min_size=len(sizes), max_size=len(sizes)))
    k = data.draw(st.integers(1, sum(sizes) + blank))
    pool = [c for c, size in enumerate(sizes) for _ in range(size)] + [None] * blank
    total = 0.0
    subsets = list(itertools.combinations(pool, k))
    for subset in subsets:
        counts = {c: subset.count(c) for c in subset if c is not None}
        best = [c for c, n in counts.items() if n == max(counts.values())]
        total += sum(shares[c] for c in best) / len(best) if best else 0.0
    assert stats.vote_chance(sizes, shares, blank, k) == pytest.approx(total / len(subsets))


def test_maj_at_k_counts_classes_not_strings_and_all_draws_of_real_votes():
    row = [r"\frac12", "0.5", "7", "7", r"\frac{1}{2}"]
    right = [True, True, False, False, True]
    assert stats.maj_at_k([row], [right], 5).mean == 1.0
    assert stats.maj_at_k([row], [right], 5, equality="released").mean == 0.0  # two equal strings win over three forms
    rng = random.Random(1)
    answers = [[rng.choice("1123") for _ in range(9)] for _ in range(40)]
    e = stats.maj_at_k(answers, [[a == "1" for a in row] for row in answers], 9)
    untied = [row for row in answers if sorted(map(row.count, set(row)))[-2:][0] < max(map(row.count, set(row)))]
    assert len(untied) < 40
    votes = [vote(row).label == "1" for row in untied]
    alone = stats.maj_at_k(untied, [[a == "1" for a in row] for row in untied], 9)
    assert alone.mean == pytest.approx(np.mean(votes)) and (alone.low, alone.high) == pytest.approx((stats.wilson(sum(votes), len(votes)).low, stats.wilson(sum(votes), len(votes)).high))  # fmt: skip
    assert e.problems == 40 and e.samples == 9
    half = stats.maj_at_k([["5", "5.0", "5"]], [[True, False, False]], 3)  # a grader that says both of one class
    assert half.mean == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="shape"):
        stats.maj_at_k([["1", "2"]], [[True]], 1)


@pytest.mark.parametrize("seed", range(4))
def test_sign_flip_p_value_is_exact_for_few_questions(seed):
    a, b = verdicts(seed, 9, 4), verdicts(seed + 50, 9, 8)
    delta = [np.mean(x) - np.mean(y) for x, y in zip(a, b, strict=True)]
    flips = [abs(np.mean([s * d for s, d in zip(signs, delta, strict=True)])) for signs in itertools.product((1, -1), repeat=9)]  # fmt: skip
    d = stats.paired_difference(a, b)
    assert d.p == pytest.approx(np.mean([f >= abs(np.mean(delta)) - 1e-12 for f in flips]))
    se = math.sqrt(sum((x - np.mean(delta)) ** 2 for x in delta) / 8 / 9)
    assert (d.mean, d.low, d.high) == pytest.approx((np.mean(delta), np.mean(delta) - 1.96 * se, np.mean(delta) + 1.96 * se))  # fmt: skip
    back = stats.paired_difference(b, a)
    assert (back.mean, back.p) == pytest.approx((-d.mean, d.p)) and d.problems == 9


def test_sign_flip_of_many_single_answers_agrees_with_mcnemar():
    rng = random.Random(3)
    a = [rng.random() < 0.6 for _ in range(400)]
    b = [x if rng.random() < 0.8 else rng.random() < 0.35 for x in a]
    exact = stats.mcnemar(a, b)
    d = stats.paired_difference([[x] for x in a], [[x] for x in b])
    assert d.p == pytest.approx(exact.p, abs=4 * math.sqrt(exact.p / 2**14) + 1e-4) and 1e-4 < exact.p < 0.5
    assert d.p == stats.paired_difference([[x] for x in a], [[x] for x in b]).p  # seeded
    assert d.mean == pytest.approx((exact.only_a - exact.only_b) / 400)


def test_paired_interval_covers_and_is_narrower_than_the_unpaired_one():
    rng = np.random.default_rng(0)
    covered, narrower, runs = 0, 0, 300
    for _ in range(runs):
        difficulty = rng.random((120, 1))
        a = rng.random((120, 4)) < np.clip(difficulty + 0.05, 0, 1)
        b = rng.random((120, 4)) < difficulty
        truth = np.mean(np.clip(difficulty + 0.05, 0, 1) - difficulty)
        d = stats.paired_difference(a, b, resamples=1)
        covered += d.low <= truth <= d.high
        low, high = stats.unpaired_difference(avg_at_k(a.tolist()), avg_at_k(b.tolist()))
        narrower += d.high - d.low < 0.75 * (high - low)
    assert 0.91 <= covered / runs <= 0.99  # three standard errors of 0.95 are 0.04
    assert narrower > 0.95 * runs


def test_paired_difference_without_a_difference_and_of_other_questions():
    same = verdicts(0, 30, 2)
    assert stats.paired_difference(same, same) == (0.0, 0.0, 0.0, 1.0, 30)
    with pytest.raises(ValueError, match="the same ones"):
        stats.paired_difference(same, same[1:])
    one = stats.paired_difference([[True]], [[False]])
    assert one.p == 1.0 and one.high - one.low >= 1  # one question says nothing


def test_unpaired_difference_is_wald_for_symmetric_intervals():
    a, b = Estimate(0.6, 0.5, 0.7, 80, 8), Estimate(0.5, 0.46, 0.54, 500, 8)
    half = math.hypot(0.1, 0.04)
    assert stats.unpaired_difference(a, b) == pytest.approx((0.1 - half, 0.1 + half))


@pytest.mark.parametrize("a_only, b_only, both", [(5, 1, 3), (0, 7, 0), (4, 4, 2), (0, 0, 3)])
def test_mcnemar_is_the_sum_over_all_ways_to_split_the_disagreements(a_only, b_only, both):
    a = [True] * a_only + [False] * b_only + [True] * both
    b = [False] * a_only + [True] * b_only + [True] * both
    m = a_only + b_only
    extreme = sum(math.comb(m, i) for i in range(m + 1) if math.comb(m, i) <= math.comb(m, a_only))
    assert stats.mcnemar(a, b) == (a_only, b_only, pytest.approx(extreme / 2**m))
    with pytest.raises(ValueError, match="the same ones"):
        stats.mcnemar(a, b + [True])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 100).map(lambda i: i / 100), min_size=1, max_size=5))
def test_holm_is_the_closed_test_of_bonferroni(ps):
    names = [f"benchmark {i}" for i in range(len(ps))]
    adjusted = stats.holm(dict(zip(names, ps, strict=True)))
    assert list(adjusted) == names
    for i, name in enumerate(names):  # a hypothesis falls when every subset that holds it is rejected by Bonferroni
        subsets = [s for r in range(1, len(ps) + 1) for s in itertools.combinations(range(len(ps)), r) if i in s]
        closed = max(min(1.0, len(s) * min(ps[j] for j in s)) for s in subsets)
        assert adjusted[name] == pytest.approx(closed)


@pytest.mark.parametrize("p", [-0.1, 1.2, float("nan")])
def test_holm_refuses_what_is_no_p_value(p):
    with pytest.raises(ValueError, match="amc"):
        stats.holm({"amc": p, "gsm8k": 0.5})


def test_seed_and_question_components_are_the_textbook_sums():
    rng = np.random.default_rng(2)
    table = rng.random((4, 7))
    s = stats.seeds_and_questions(table)
    grand = table.mean()
    seed = sum((table[i].mean() - grand) ** 2 for i in range(4)) * 7 / 3
    question = sum((table[:, j].mean() - grand) ** 2 for j in range(7)) * 4 / 6
    total = sum((table[i, j] - grand) ** 2 for i in range(4) for j in range(7))
    rest = (total - 3 * seed - 6 * question) / 18
    assert s.residual_sd == pytest.approx(math.sqrt(rest))
    assert s.seed_sd == pytest.approx(math.sqrt(max(seed - rest, 0) / 7))
    assert s.question_sd == pytest.approx(math.sqrt(max(question - rest, 0) / 4))
    by_question = avg_at_k(table.T.tolist())  # seeds as draws
    assert (s.same_seeds.low, s.same_seeds.high) == pytest.approx((by_question.low, by_question.high))
    t_of_three = 3.182446
    half = t_of_three * math.sqrt(sum((table[i].mean() - grand) ** 2 for i in range(4)) / 3 / 4)
    assert s.same_questions.high - s.mean == pytest.approx(half, rel=1e-6)


def draw(rng, seeds, questions, seed_sd, question_sd, rest):
    return (
        0.5
        + seed_sd * rng.standard_normal((seeds, 1))
        + question_sd * rng.standard_normal((1, questions))
        + rest * rng.standard_normal((seeds, questions))
    )


def test_components_are_unbiased_and_only_both_covers_the_truth():
    rng = np.random.default_rng(4)
    tables = [draw(rng, 5, 60, 0.04, 0.15, 0.1) for _ in range(400)]
    results = [stats.seeds_and_questions(t) for t in tables]
    assert np.mean([r.seed_sd**2 for r in results]) == pytest.approx(0.04**2, rel=0.15)
    assert np.mean([r.question_sd**2 for r in results]) == pytest.approx(0.15**2, rel=0.1)
    assert np.mean([r.residual_sd**2 for r in results]) == pytest.approx(0.1**2, rel=0.05)
    covers = {which: np.mean([getattr(r, which).low <= 0.5 <= getattr(r, which).high for r in results]) for which in ("same_seeds", "same_questions", "both")}  # fmt: skip
    assert covers["both"] > 0.91 and covers["same_seeds"] < 0.85 and covers["same_questions"] < 0.9


def test_each_narrow_interval_covers_what_it_is_for():
    rng = np.random.default_rng(5)
    seeds_hit = questions_hit = 0
    for _ in range(300):
        seed = 0.05 * rng.standard_normal((5, 1))
        question = 0.15 * rng.standard_normal((1, 60))
        r = stats.seeds_and_questions(0.5 + seed + question + 0.02 * rng.standard_normal((5, 60)))
        seeds_hit += r.same_seeds.low <= 0.5 + seed.mean() <= r.same_seeds.high
        questions_hit += r.same_questions.low <= 0.5 + question.mean() <= r.same_questions.high
    assert 0.91 <= seeds_hit / 300 <= 0.99 and 0.91 <= questions_hit / 300 <= 0.99


def test_seeds_that_are_alike_leave_only_questions():
    row = [0.0, 1.0, 0.5, 1.0]
    s = stats.seeds_and_questions([row] * 3)
    assert s.seed_sd == 0 and s.residual_sd == pytest.approx(0) and s.both.high - s.both.low > 0
    assert stats.seeds_and_questions([[0.5, 0.5]] * 2).both.low == 0.5
    for table in ([row], [[0.5], [0.5]], [0.5, 0.2]):
        with pytest.raises(ValueError, match="at least two seeds"):
            stats.seeds_and_questions(table)


def test_interval_near_the_boundary_holds_and_does_not_collapse():
    """30 x 32 draws of hard questions: coverage against brute force, and no cliff between none and one right."""
    none, one = ([[False] * 32] * 30, [[True] + [False] * 31] + [[False] * 32] * 29)
    assert stats.avg_at_k(one).high == pytest.approx(stats.avg_at_k(none).high, abs=0.005)
    flipped = stats.avg_at_k([[not r for r in row] for row in one])
    assert flipped.low == pytest.approx(1 - stats.avg_at_k(one).high)
    # with whole numbers of right answers the formula is that of scipy
    inside, whole = stats._clustered([0.5, 0.5, *[0] * 28], 2), stats.wilson(1, 30)
    assert (inside.low, inside.high) == pytest.approx((whole.low, whole.high), abs=1e-4)
    rng = np.random.default_rng(0)
    for share, alike in ((0.005, 0.05), (0.02, 0.3), (0.02, 0.7)):  # alike: correlation of two draws of a question
        a, b = share * (1 - alike) / alike, (1 - share) * (1 - alike) / alike
        scores = rng.binomial(32, rng.beta(a, b, (1500, 30))) / 32
        made = [stats._clustered(row.tolist(), 32) for row in scores]
        assert np.mean([e.low <= share <= e.high for e in made]) > 0.93  # the normal interval: 0.80, 0.78, 0.80
