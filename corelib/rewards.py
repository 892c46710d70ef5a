"""The nine rewards. Each is a pure function of one group: the G rollouts of one prompt and what may judge them.

METHODS maps the method's name to its function. A function returns the rewards of the G rollouts and, where there is
one, the pseudo-label that judged them. What a method needs (a second view, a teacher, the policy's confidence) is
named in `corelib.config`: PAIRED, TEACHER, CONFIDENCE, UNLABELLED.
"""

from __future__ import annotations

import random as _random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from corelib.answers import Vote, equivalent, hendrycks_equal, vote

Answers = Sequence[str | None]


@dataclass(frozen=True)
class Group:
    """One prompt's rollouts and everything that may judge them. Answers are extracted strings, None where there is none."""

    answers: Answers  # the policy's G answers to this view: the ones that are rewarded
    other_view: Answers = ()  # the policy's G answers to the other view of the same question
    teacher: Answers = ()  # the teacher's G answers to this view
    teacher_other_view: Answers = ()  # the teacher's G answers to the other view
    truth: str | None = None  # ground truth; only `gt` may look at it
    entropy: Sequence[float] = ()  # nats, mean over the tokens of each rollout
    self_certainty: Sequence[float] = ()  # nats, KL(uniform || policy), mean over the tokens of each rollout
    seed: int = 0  # seeds the `random` control
    equality: str = "equivalent"  # or "released": raw strings for votes, Hendrycks for the ground truth
    min_support: float = 0.0  # a label needs at least this share of its group


@dataclass(frozen=True)
class Judged:
    """Rewards of the G rollouts; the label that judged them (None: no label, all rewards 0) and its share of the vote."""

    rewards: list[float]
    label: str | None = None
    support: float | None = None


def gt(group: Group) -> Judged:
    """1 if the answer equals the ground truth. The supervised baseline (paper, GT-Reward).

    >>> gt(Group(answers=["4", "5", None], truth="4")).rewards
    [1.0, 0.0, 0.0]
    """
    same = hendrycks_equal if group.equality == "released" else equivalent
    truth = group.truth or None
    return Judged([float(truth is not None and a is not None and same(truth, a)) for a in group.answers], truth)


def majority_voting(group: Group) -> Judged:
    """1 if the answer equals the vote of the same rollouts (paper Eq. 3, TTRL): the policy is its own judge.

    >>> majority_voting(Group(answers=["4", "4", "5", None])).rewards
    [1.0, 1.0, 0.0, 0.0]
    """
    return _judge(group, _vote(group, group.answers))


def co_rewarding_i(group: Group) -> Judged:
    """1 if the answer equals the vote over the rollouts of the OTHER view of the question (paper Eq. 6-7).

    >>> co_rewarding_i(Group(answers=["4", "5", "5"], other_view=["4", "4", "7"])).rewards
    [1.0, 0.0, 0.0]
    """
    return _judge(group, _vote(group, group.other_view))


def co_rewarding_ii(group: Group) -> Judged:
    """1 if the answer equals the vote over the TEACHER's rollouts of the same prompt (paper Eq. 8-10).

    >>> co_rewarding_ii(Group(answers=["4", "5", "5"], teacher=["4", "4", "5"])).rewards
    [1.0, 0.0, 0.0]
    """
    return _judge(group, _vote(group, group.teacher))


def co_rewarding_iii(group: Group) -> Judged:
    """1 if the answer equals the vote over the TEACHER's rollouts of the OTHER view (released code of III).

    >>> co_rewarding_iii(Group(answers=["4", "5"], teacher=["5", "5"], teacher_other_view=["4", "4"])).rewards
    [1.0, 0.0]
    """
    return _judge(group, _vote(group, group.teacher_other_view))


def entropy(group: Group) -> Judged:
    """Minus the mean token entropy of the rollout (RENT): the policy is paid for being sure.

    >>> entropy(Group(answers=["4", "5"], entropy=[0.5, 2.0])).rewards
    [-0.5, -2.0]
    """
    return Judged([-float(h) for h in group.entropy])


def self_certainty(group: Group) -> Judged:
    """KL(uniform || policy), mean over the tokens of the rollout (Intuitor).

    >>> self_certainty(Group(answers=["4", "5"], self_certainty=[9.0, 3.0])).rewards
    [9.0, 3.0]
    """
    return Judged([float(c) for c in group.self_certainty])


def random(group: Group) -> Judged:
    """A fair coin for each rollout: the control that shows what RL noise alone does (Spurious Rewards).

    >>> random(Group(answers=["4"] * 8, seed=1)).rewards == random(Group(answers=["5"] * 8, seed=1)).rewards
    True
    """
    coin = _random.Random(group.seed)
    return Judged([float(coin.random() < 0.5) for _ in group.answers])


def frozen_teacher(group: Group) -> Judged:
    """Co-rewarding-II whose teacher never moves (paper table 3, "w/o Updating Reference"): the vote of the base model."""
    return co_rewarding_ii(group)


METHODS: dict[str, Callable[[Group], Judged]] = {
    "gt": gt,
    "majority_voting": majority_voting,
    "self_certainty": self_certainty,
    "entropy": entropy,
    "co_rewarding_i": co_rewarding_i,
    "co_rewarding_ii": co_rewarding_ii,
    "co_rewarding_iii": co_rewarding_iii,
    "random": random,
    "frozen_teacher": frozen_teacher,
}


def advantages(rewards: Sequence[float]) -> list[float]:
    """(r - mean) / (std + 1e-4) over one group, std unbiased: what TRL makes of the rewards (scale_rewards="group").

    >>> [round(a, 3) for a in advantages([1, 1, 0, 0])]
    [0.866, 0.866, -0.866, -0.866]
    """
    n = len(rewards)
    mean = sum(rewards) / n
    std = (sum((r - mean) ** 2 for r in rewards) / (n - 1)) ** 0.5
    return [(r - mean) / (std + 1e-4) for r in rewards]


def _vote(group: Group, answers: Answers) -> Vote:
    return vote(list(answers), min_support=group.min_support, equality=group.equality)


def _judge(group: Group, label: Vote) -> Judged:
    """Reward agreement with a label. An empty vote is no label: every reward is 0, the group's advantages are 0."""
    if label.label is None:
        return Judged([0.0] * len(group.answers), None, label.support)
    same = str.__eq__ if group.equality == "released" else equivalent
    rewards = [float(a is not None and same(label.label, a)) for a in group.answers]
    return Judged(rewards, label.label, label.support)
