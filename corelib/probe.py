"""What validation says without labels: does the policy still give the answers that it had settled on?

`votes` is the content of a run's probe.json: step -> {"labels": the vote on each fixed question (None for none),
"support": the share of its draws that gave it}. One answer is spelled alike at every step (`one_spelling`). Everything
said of a step uses the validations up to it, never a later one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from corelib.answers import equivalent

# Set on 14 lab runs of seeds 0-4 (majority voting, I, II, gt, random), with the four answers a question that they drew and
# with their vote alone, as after greedy validation. Weighing all answers alike, runs that stay well look as if they lost a
# third of theirs at step 30; counting only those above a fixed support, an unsure policy has none to lose.
POWER = 3  # of an answer's mean support: its weight; 2 to 3 part the runs
LEAST = 3  # earlier validations that are asked for: within the first two a base model changes most of its answers
FEW = 30  # questions below which nothing is said: chance alone could lose a quarter


def one_spelling(labels: Sequence[str | None], votes: Mapping[str, Mapping], equality: str) -> list[str | None]:
    """Each question's vote in the spelling of an earlier validation, where it is the same answer by `equality`."""
    earlier = zip(*(vote["labels"] for vote in votes.values()), strict=True) if votes else ((),) * len(labels)
    return [_spelled(label, dict.fromkeys(seen), equality) for label, seen in zip(labels, earlier, strict=True)]


def _spelled(label: str | None, seen: Mapping[str | None, None], equality: str) -> str | None:
    if label is None or label in seen or equality == "released":
        return label
    return next((old for old in seen if old is not None and equivalent(old, label)), label)


def habits(votes: Mapping[str, Mapping], steps: Sequence[int]) -> list[tuple[str | None, float]]:
    """Each question's answer with the most support over these validations, and its mean support over them all."""
    found = []
    for question in range(len(votes[str(steps[0])]["labels"])):
        total: dict[str, float] = {}
        for step in steps:
            label, support = (votes[str(step)][part][question] for part in ("labels", "support"))
            if label is not None:
                total[label] = total.get(label, 0.0) + support
        best, weight = max(total.items(), key=lambda item: item[1], default=(None, 0.0))
        found.append((best, weight / len(steps)))
    return found


def measures(votes: Mapping[str, Mapping], step: int) -> dict[str, float]:
    """`probe/settled` and `probe/keep` at a validation.

    settled: share of the questions on which the policy still gives its commonest answer of the earlier validations, each
    weighed by that answer's mean support, cubed; not said before `LEAST` of them or with fewer than `FEW` questions. A
    policy that learns changes answers that it was unsure of, and settles; one that collapses loses those it was sure of.
    keep: the validation up to now whose votes agree best with those of all of them together (support times support,
    summed over the questions; the later of equals): majority voting over checkpoints.

    >>> votes = {str(s): {"labels": ["7"] * 30 + [a] * 10, "support": [1.0] * 40} for s, a in ((0, "2"), (10, "2"), (20, "2"), (30, "3"))}
    >>> measures(votes, 30)
    {'probe/settled': 0.75, 'probe/keep': 20}
    """
    steps = sorted(s for s in map(int, votes) if s <= step)
    now, before = votes[str(step)], steps[:-1]
    found = {}
    if len(before) >= LEAST and len(now["labels"]) >= FEW:
        weights = [(mean**POWER, vote == habit) for vote, (habit, mean) in zip(now["labels"], habits(votes, before), strict=True)]  # fmt: skip
        if total := sum(weight for weight, _ in weights):
            found["probe/settled"] = sum(weight for weight, same in weights if same) / total
    together = habits(votes, steps)
    return found | {"probe/keep": max(steps, key=lambda s: (_agreement(votes[str(s)], together), s))}


def _agreement(vote: Mapping, together: Sequence[tuple[str | None, float]]) -> float:
    rows = zip(vote["labels"], vote["support"], together, strict=True)
    return round(
        sum(mean * support for label, support, (habit, mean) in rows if label is not None and label == habit), 9
    )


def with_probe(metrics: pd.DataFrame, votes: Mapping[str, Mapping]) -> pd.DataFrame:
    """Metrics with both columns made again from probe.json: for runs whose validation did not log them."""
    if not votes:
        return metrics
    made = pd.DataFrame([{"step": step} | measures(votes, step) for step in sorted(map(int, votes))])
    return metrics.drop(columns=["probe/settled", "probe/keep"], errors="ignore").merge(made, on="step", how="left")
