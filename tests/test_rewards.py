"""Each reward against hand-worked groups and against a slow literal transcription of its equation."""

import random as random_module

import pytest

from corelib.rewards import METHODS, Group, advantages


def literal_vote(answers):
    """Paper Eq. 3 on answers whose equality is string equality: argmax of counts, the first seen on ties, no blanks."""
    best, best_count = None, 0
    for candidate in answers:
        if candidate is None:
            continue
        count = sum(1 for a in answers if a is not None and a == candidate)
        if count > best_count:
            best, best_count = candidate, count
    return best


def literal_reward(answers, label):
    return [1.0 if label is not None and a is not None and a == label else 0.0 for a in answers]


LITERAL = {
    "gt": lambda g: literal_reward(g.answers, g.truth),
    "majority_voting": lambda g: literal_reward(g.answers, literal_vote(g.answers)),
    "co_rewarding_i": lambda g: literal_reward(g.answers, literal_vote(g.other_view)),
    "co_rewarding_ii": lambda g: literal_reward(g.answers, literal_vote(g.teacher)),
    "co_rewarding_iii": lambda g: literal_reward(g.answers, literal_vote(g.teacher_other_view)),
    "frozen_teacher": lambda g: literal_reward(g.answers, literal_vote(g.teacher)),
    "entropy": lambda g: [-h for h in g.entropy],
    "self_certainty": lambda g: list(g.self_certainty),
}


@pytest.mark.parametrize("method", LITERAL)
@pytest.mark.parametrize("equality", ["equivalent", "released"])
def test_method_is_its_equation_on_random_groups(method, equality):
    rng = random_module.Random(0)

    def answers():
        return [rng.choice(["1", "2", "3", None]) for _ in range(8)]

    for _ in range(300):
        numbers = [rng.random() for _ in range(8)]
        group = Group(
            answers(), answers(), answers(), answers(), rng.choice(["1", "2"]), numbers, numbers, equality=equality
        )
        assert METHODS[method](group).rewards == LITERAL[method](group)


HAND = [  # method, group, rewards, label, support: worked by hand
    ("gt", Group(["1/2", "0.5", "2", None], truth="\\frac{1}{2}"), [1, 1, 0, 0], "\\frac{1}{2}", None),
    ("gt", Group(["1", "2"], truth=""), [0, 0], None, None),
    ("gt", Group(["1", "2"], truth=None), [0, 0], None, None),
    ("majority_voting", Group(["3", "5", "5", "3"]), [1, 0, 0, 1], "3", 0.5),  # a tie goes to the lowest index
    ("majority_voting", Group([None, None, "7", None]), [0, 0, 1, 0], "7", 0.25),
    ("majority_voting", Group([None] * 4), [0, 0, 0, 0], None, 0.0),
    ("majority_voting", Group(["1/2", "0.5", "3", "3"]), [1, 1, 0, 0], "1/2", 0.5),  # equal spellings vote together
    ("majority_voting", Group(["1/2", "0.5", "3", "3"], equality="released"), [0, 0, 1, 1], "3", 0.5),
    ("majority_voting", Group(["1", "1", "2", "3"], min_support=0.6), [0, 0, 0, 0], None, 0.5),
    ("co_rewarding_i", Group(["9", "9", "9", "8"], other_view=["8", "8", "9", None]), [0, 0, 0, 1], "8", 0.5),
    ("co_rewarding_i", Group(["9", "9"], other_view=[None, None]), [0, 0], None, 0.0),
    ("co_rewarding_ii", Group(["9", "8", "8", "8"], teacher=["9", "9", "8", "9"]), [1, 0, 0, 0], "9", 0.75),
    ("co_rewarding_iii", Group(["9", "8"], teacher=["9", "9"], teacher_other_view=["8", "8"]), [0, 1], "8", 1.0),
    ("frozen_teacher", Group(["9", "8"], teacher=["8", "8"]), [0, 1], "8", 1.0),
]


@pytest.mark.parametrize("method, group, rewards, label, support", HAND)
def test_hand_worked(method, group, rewards, label, support):
    judged = METHODS[method](group)
    assert (judged.rewards, judged.label, judged.support) == (rewards, label, support)


def test_only_gt_looks_at_the_truth():
    for method in METHODS:
        same = [
            METHODS[method](Group(["1", "2"], ["1", "1"], ["2", "2"], ["1", "2"], truth, [1, 2], [3, 4], 5)).rewards
            for truth in ("1", "2", None)
        ]
        assert (same[0] == same[1] == same[2]) == (method != "gt")


def test_random_is_fair_repeatable_and_blind():
    coin = METHODS["random"]
    flips = [r for seed in range(500) for r in coin(Group(["1"] * 8, seed=seed)).rewards]
    assert 0.47 < sum(flips) / len(flips) < 0.53 and set(flips) == {0.0, 1.0}
    assert coin(Group(["1"] * 8, seed=4)).rewards == coin(Group(["2"] * 8, seed=4)).rewards


def test_advantages_are_those_of_trl():
    import torch

    for rewards in ([1, 0, 0, 0, 0, 0, 0, 0], [1, 1, 0, 0], [0.3, -2.0, 5.5]):
        r = torch.tensor(rewards, dtype=torch.float64)
        expected = (r - r.mean()) / (r.std() + 1e-4)
        assert torch.allclose(torch.tensor(advantages(rewards), dtype=torch.float64), expected)
    assert round(max(advantages([1] + [0] * 7)), 4) == 2.4742
    assert advantages([1.0] * 8) == [0.0] * 8
