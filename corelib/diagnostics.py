"""What a run's completions say about its health, and the alarm over its metrics.

Everything is a pure function of DataFrames: `corelib.runs.load_metrics` (a row a step) and `corelib.runs.load_completions`
(a row a rollout: step, prompt, completion, answer, label, truth, judge, advantage, pair_id, view, maybe teacher_answer).
The alarm is in `corelib.alarm`, its evaluation in `corelib.alarm_study`, what validation adds to both in
`corelib.probe`; the first two are also found here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from corelib.alarm import Alarm, Rule, alarm, evidence, keep
from corelib.alarm_study import alarm_counts, collapse_step, evaluate_alarm, judge_runs, roc, sensitivity
from corelib.answers import cluster, equivalent

__all__ = [
    "Alarm", "Rule", "alarm", "evidence", "keep",
    "alarm_counts", "collapse_step", "evaluate_alarm", "judge_runs", "roc", "sensitivity",
    "answer_entropy", "case_study", "distinct_n", "label_accuracy", "repetition", "rollout_measures", "votes",
]  # fmt: skip


def classes(answers: Sequence[str | None], equality: str = "equivalent") -> list[int | None]:
    """Class of each answer over a whole batch, None for none; each spelling is compared once."""
    spelled = list(dict.fromkeys(a for a in answers if isinstance(a, str) and a))
    found = dict(zip(spelled, cluster(spelled, equality), strict=True))
    return [found.get(a) if isinstance(a, str) else None for a in answers]


def answer_entropy(labels: Sequence) -> float:
    """Shannon entropy in nats of the labels that are there; 0 for one class or none.

    >>> round(answer_entropy(["a", "a", "b", "b", None]), 3)
    0.693
    """
    counts = Counter(x for x in labels if x is not None and x == x)
    total = sum(counts.values())
    return -sum(n / total * math.log(n / total) for n in counts.values()) if len(counts) > 1 else 0.0


def distinct_n(texts: Sequence[str], n: int) -> float:
    """distinct-n: different n-grams of words over all n-grams of the texts; nan where there is none.

    Source: Li et al. (2016), "A Diversity-Promoting Objective Function".

    >>> distinct_n(["a b a b", "a b"], 2)
    0.5
    """
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def repetition(text: str, n: int = 4) -> float:
    """Share of a text's n-grams of words that it has had before: 0 for none, near 1 for a loop.

    >>> repetition("a b a b a b", 2)
    0.6
    """
    grams = _grams(text, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def rollout_measures(completions: pd.DataFrame, equality: str = "equivalent") -> pd.DataFrame:
    """Measures that need the rollouts themselves, a row a stored step, indexed by step.

    `entropy_group`: answers' entropy within a group, mean (nats); `entropy_batch`: over one view's rollouts;
    `about_question`: the difference, what the answer says of the question, 0 when it is constant; `top_answer`,
    `top_label`: share of the commonest answer and label among one view's rollouts and questions; `distinct_1`,
    `distinct_2`, `repetition` of words; `advantage`: mean |advantage|; `silent_groups`: share of groups without any
    advantage; `agreement`: share of pairs whose views vote alike (nan without pairs). `original` is the view measured
    across prompts. Raises ValueError for an empty frame.
    """
    _need(completions, ("step", "pair_id", "view", "answer", "completion"))
    rows = {}
    for step, batch in completions.groupby("step"):
        batch = batch.assign(
            completion=_texts(batch), cls=pd.Series(classes(batch["answer"], equality), index=batch.index, dtype=object)
        )
        one = batch[batch["view"] == "original"] if (batch["view"] == "original").any() else batch
        within = batch.groupby(["pair_id", "view"])["cls"].apply(lambda g: answer_entropy(list(g)))
        own = one.groupby("pair_id")["cls"].apply(lambda g: answer_entropy(list(g)))
        across = answer_entropy(list(one["cls"]))
        row = {
            "entropy_group": float(within.mean()),
            "entropy_batch": across,
            "about_question": across - float(own.mean()),
            "top_answer": _top(one["cls"], len(one)),
            "distinct_1": distinct_n(batch["completion"], 1),
            "distinct_2": distinct_n(batch["completion"], 2),
            "repetition": float(batch["completion"].map(repetition).mean()),
            "agreement": _agreement(batch),
        }
        if "label" in batch and one["label"].notna().any():
            labels = one.groupby("pair_id")["label"].first()
            row["top_label"] = _top(pd.Series(classes(labels, equality), dtype=object), len(labels))
        if "advantage" in batch:
            size = batch["advantage"].abs()
            row["advantage"] = float(size.mean())
            row["silent_groups"] = float((size.groupby([batch["pair_id"], batch["view"]]).max() == 0).mean())
        rows[int(step)] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("step")


def _top(values: pd.Series, of: int) -> float:
    counts = values.dropna().value_counts()
    return float(counts.iloc[0]) / of if len(counts) else 0.0


def _agreement(batch: pd.DataFrame) -> float:
    modes = (
        batch.dropna(subset=["cls"])
        .groupby(["pair_id", "view"])["cls"]
        .apply(lambda g: Counter(g).most_common(1)[0][0])
    )
    wide = modes.unstack("view") if len(modes) else pd.DataFrame()
    if not {"original", "rephrased"} <= set(wide.columns):
        return float("nan")
    pairs = batch.groupby("pair_id")["view"].nunique()
    both = wide.reindex(pairs.index[pairs == 2])
    return float((both["original"] == both["rephrased"]).mean()) if len(both) else float("nan")


def votes(completions: pd.DataFrame, column: str = "answer", equality: str = "equivalent") -> pd.DataFrame:
    """Majority answer and its support of every group: columns step, pair_id, view, vote, support (share of rollouts)."""
    _need(completions, ("step", "pair_id", "view", column))
    rows = []
    for (step, pair, view), group in completions.groupby(["step", "pair_id", "view"]):
        answers = [a if isinstance(a, str) and a else None for a in group[column]]
        counts = Counter(c for c in classes(answers, equality) if c is not None)
        best = max(counts.values(), default=0)
        label = next((a for a, c in zip(answers, classes(answers, equality), strict=True) if c is not None and counts[c] == best), None)  # fmt: skip
        rows.append({"step": step, "pair_id": pair, "view": view, "vote": label, "support": best / len(group)})
    return pd.DataFrame(rows)


def label_accuracy(completions: pd.DataFrame, levels: Mapping | None = None) -> pd.DataFrame:
    """Share of right labels a step: of the policy's vote, the teacher's vote, and the label that was paid for.

    Columns step, level, view, questions, policy, teacher, label (nan where there is none). `levels`: pair_id ->
    difficulty; without it one level, "all". Paper: figures 6, 9, 11 and 12. Needs the truth: not for the alarm.
    """
    _need(completions, ("step", "pair_id", "view", "answer", "truth"))
    keys = ["step", "pair_id", "view"]
    known = completions.groupby(keys)[["truth"] + (["label"] if "label" in completions else [])].first()
    right = pd.DataFrame(index=known.index)
    for name, column in (("policy", "answer"), ("teacher", "teacher_answer")):
        if column in completions and completions[column].notna().any():
            voted = votes(completions, column).set_index(keys)["vote"].reindex(known.index)
            right[name] = [_right(t, v) for t, v in zip(known["truth"], voted, strict=True)]
        else:
            right[name] = float("nan")
    if "label" in known and known["label"].notna().any():
        right["label"] = [_right(t, v) for t, v in zip(known["truth"], known["label"], strict=True)]
    else:
        right["label"] = float("nan")
    right = right.reset_index()
    right["level"] = right["pair_id"].map(levels) if levels is not None else "all"
    grouped = right.groupby(["step", "level", "view"])
    return grouped[["policy", "teacher", "label"]].mean().assign(questions=grouped.size()).reset_index()


def _right(truth, vote) -> float:
    return float(isinstance(vote, str) and isinstance(truth, str) and equivalent(truth, vote))


def case_study(
    completions: Mapping[str, pd.DataFrame],
    pair_id,
    steps: Mapping[str, Sequence[int]],
    name: Callable = str,
    n: int = 2,
) -> pd.DataFrame:
    """One question's rollouts at chosen moments, a row a run and moment.

    `completions`: method -> stored rollouts; `steps`: method -> steps to show (start, before, after collapse). A run sees a
    question rarely twice: where it was not drawn at the step asked, the question that most of the runs drew at that step
    (the lowest pair_id of these) stands in; nothing is picked by its rollouts. Columns method, step, question, truth,
    label, answers ("12 x 6, 13 x 2"), completion (the `n` commonest texts). Raises ValueError for a step not stored.
    """
    rows = []
    for method, frame in completions.items():
        for step in steps[method]:
            batch = frame[(frame["step"] == step) & (frame["view"] == "original")]
            if batch.empty:
                raise ValueError(
                    f"{method} has no stored rollouts of step {step}; stored are {sorted(frame['step'].unique())}"
                )
            group = batch[batch["pair_id"] == pair_id]
            if group.empty:
                drawn = Counter(p for other in completions.values() for p in set(other.loc[other["step"] == step, "pair_id"]))  # fmt: skip
                group = batch[batch["pair_id"] == min(set(batch["pair_id"]), key=lambda p: (-drawn[p], p))]
            first = group.iloc[0]
            counts = Counter(a if isinstance(a, str) else "none" for a in group["answer"]).most_common(4)
            rows.append(
                {
                    "method": name(method), "step": step, "question": first["prompt"], "truth": first["truth"],
                    "label": first.get("label"), "answers": ", ".join(f"{a} x {k}" for a, k in counts),
                    "completion": "\n".join(t for t, _ in Counter(_texts(group)).most_common(n)),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def _texts(frame: pd.DataFrame) -> pd.Series:
    """Completions; one that is missing is empty."""
    return frame["completion"].map(lambda text: text if isinstance(text, str) else "")


def _need(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    missing = [c for c in columns if c not in frame]
    if missing:
        raise ValueError(f"the completions lack {', '.join(missing)}; read them with corelib.runs.load_completions")
