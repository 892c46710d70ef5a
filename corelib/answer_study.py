"""What equivalence buys: the same completions voted on under released equality and under equivalence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from corelib.answers import cluster, equivalent, extract, extract_released, hendrycks_equal, vote

MEASURES = ("pseudo_label_accuracy", "label_support", "reward_error", "gold_reward_error")


def _share_different(a: list[bool], b: list[bool]) -> float:
    return sum(x != y for x, y in zip(a, b, strict=True)) / max(1, len(a))


def _question(completions: Sequence[str], gold: str, equality: str) -> dict[str, float]:
    """Measures of one question under one equality."""
    if equality == "released":
        answers: list[str | None] = [extract_released(text) for text in completions]
    else:
        answers = [extract(text) for text in completions]
    outcome = vote(answers, equality=equality)
    classes = cluster(answers, equality)
    winner = None if outcome.label is None else classes[answers.index(outcome.label)]
    by_vote = [winner is not None and c == winner for c in classes]
    by_gold = [equivalent(gold, extract(text)) for text in completions]
    own_gold = [hendrycks_equal(a, gold) for a in answers] if equality == "released" else by_gold
    return {
        "pseudo_label_accuracy": float(outcome.label is not None and equivalent(gold, outcome.label)),
        "label_support": outcome.support,
        "reward_error": _share_different(by_vote, by_gold),
        "gold_reward_error": _share_different(own_gold, by_gold),
    }


def released_vs_equivalent(
    groups: Sequence[Sequence[str]], golds: Sequence[str], resamples: int = 10_000, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Pseudo-label accuracy, label support and reward error under both equalities, and what equivalence changes.

    groups: full completions of each question; golds: one answer a question. Under "released" the released parser and raw
    string equality make the vote, under "equivalent" ours do. Whether a label is right, and the reward by gold, are judged by
    `equivalent` in both, so that only the vote differs. reward_error: share of completions whose reward by vote is not
    their reward by gold; gold_reward_error: the same for the reward by gold of the equality itself (released: Hendrycks
    equality, as for ground-truth rewards; 0 for equivalence by definition). low, high: 95% interval of the difference, bootstrap over questions (one draw of questions for
    both equalities). Raises ValueError for unequal lengths or no question.

    >>> study = released_vs_equivalent([[r"\\boxed{1/2}", r"\\boxed{0.5}", r"\\boxed{7}", r"\\boxed{7}"]], ["1/2"])
    >>> study["label_support"]["released"], study["label_support"]["equivalent"]
    (0.5, 0.5)
    >>> study["pseudo_label_accuracy"]["released"], study["pseudo_label_accuracy"]["equivalent"]
    (0.0, 1.0)
    """
    if len(groups) != len(golds) or not golds:
        raise ValueError(f"{len(groups)} groups for {len(golds)} golds")
    rows = {
        equality: [_question(group, gold, equality) for group, gold in zip(groups, golds, strict=True)]
        for equality in ("released", "equivalent")
    }
    draws = np.random.default_rng(seed).integers(0, len(golds), (resamples, len(golds)))
    study = {}
    for measure in MEASURES:
        released, ours = (np.array([row[measure] for row in rows[e]]) for e in ("released", "equivalent"))
        change = ours - released
        low, high = np.quantile(change[draws].mean(axis=1), [0.025, 0.975])
        study[measure] = {
            "released": float(released.mean()),
            "equivalent": float(ours.mean()),
            "difference": float(change.mean()),
            "low": float(low),
            "high": float(high),
            "questions_changed": int((change != 0).sum()),
        }
    return study


def equivalence_report(path: str | Path) -> pd.DataFrame:
    """`released_vs_equivalent` as a table of a file of completions: JSON lines with `code` (completions) and `gt` (gold)."""
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    study = released_vs_equivalent([row["code"] for row in rows], [row["gt"] for row in rows])
    return pd.DataFrame(study).T.astype({"questions_changed": int})
