"""Figures: one function of a DataFrame each; one colour and line style a method, the same in every figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.ticker import MaxNLocator

# Okabe-Ito colours; line styles keep the methods apart in greyscale.
STYLE = {
    "gt": ("#000000", "-", "GT reward"),
    "majority_voting": ("#D55E00", "-", "Majority voting"),
    "self_certainty": ("#E69F00", "--", "Self-certainty"),
    "entropy": ("#CC79A7", "--", "Entropy"),
    "co_rewarding_i": ("#56B4E9", "-", "Co-rewarding-I"),
    "co_rewarding_ii": ("#0072B2", "-", "Co-rewarding-II"),
    "co_rewarding_iii": ("#009E73", "-.", "Co-rewarding-III"),
    "random": ("#999999", ":", "Random reward"),
    "frozen_teacher": ("#8C510A", ":", "Frozen teacher"),
}
LABELS = {
    "reward": "mean reward",
    "gt/accuracy": "rollouts that are right (share)",
    "gt/validation": "validation accuracy (share)",
    "gt/label_accuracy": "pseudo-labels that are right (share)",
    "gt/policy_label_accuracy": "policy's votes that are right (share)",
    "gt/teacher_label_accuracy": "teacher's votes that are right (share)",
    "label/support": "share of votes for the label",
    "answers/distinct_group": "distinct answers a group / rollouts",
    "answers/distinct_batch": "distinct answers a batch / rollouts",
    "answers/top_share": "share of the batch's commonest answer",
    "entropy": "token entropy (nats)",
    "length/mean": "completion length (tokens)",
    "length/clipped": "completions cut off (share)",
    "teacher/distance": "teacher to policy, relative distance",
    "kl": "KL to the reference (nats a token)",
}


def name(method: str) -> str:
    """The method's name as it is written in figures and tables."""
    return STYLE[method][2]


def methods(frame: pd.DataFrame) -> list[str]:
    """The methods of a table in the order of every figure."""
    return [m for m in STYLE if m in set(frame["method"])]


def mean_band(ax, runs: Sequence[pd.Series], **style) -> pd.Series:
    """Draw the mean of several runs' values by step with a band from the lowest to the highest; returns the mean."""
    together = pd.concat(runs, axis=1).sort_index()
    mean = together.mean(axis=1)
    ax.plot(mean.index, mean, **style)
    if together.shape[1] > 1:
        ax.fill_between(
            together.index, together.min(axis=1), together.max(axis=1), color=style["color"], alpha=0.15, linewidth=0
        )
    return mean


def curves(metrics: Mapping[str, pd.DataFrame], column: str, ax=None, window: int = 10, legend: bool = True):
    """One column over steps, a line a method; several seeds of a method become their mean and a min-max band.

    `metrics`: run name -> DataFrame with `step`, `method` and the columns of metrics.jsonl. Runs without the column are
    left out. `window`: steps of the running mean.
    """
    ax = ax or plt.subplots(figsize=(6.4, 3.6))[1]
    by_method: dict[str, list[pd.Series]] = {}
    for frame in metrics.values():
        if column in frame and frame[column].notna().any():
            values = frame.set_index("step")[column].dropna()
            smooth = values if column == "gt/validation" else values.rolling(window, min_periods=1).mean()
            by_method.setdefault(frame["method"].iloc[0], []).append(smooth)
    for method in sorted(by_method, key=list(STYLE).index):
        colour, line, label = STYLE[method]
        mean_band(ax, by_method[method], color=colour, linestyle=line, label=label, linewidth=1.8)
    ax.set_xlabel("training step", fontsize=9)
    ax.set_ylabel(LABELS.get(column, column), fontsize=9)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.spines[["top", "right"]].set_visible(False)
    if legend and by_method:
        ax.legend(frameon=False, fontsize=8)
    return ax


def grid(metrics: Mapping[str, pd.DataFrame], columns: Sequence[str], title: str, per_row: int = 2, window: int = 10):
    """Several columns side by side under one title (the finding), one legend below."""
    rows = -(-len(columns) // per_row)
    figure, axes = plt.subplots(rows, per_row, figsize=(5.0 * per_row, 2.9 * rows), squeeze=False)
    for ax, column in zip(axes.flat, columns, strict=False):
        curves(metrics, column, ax, window, legend=False)
    for ax in axes.flat[len(columns) :]:
        ax.set_visible(False)
    handles = {label: line for ax in axes.flat for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.suptitle(title, fontsize=12)
    if len(handles) < 2:  # the title names the only method
        figure.tight_layout()
        return figure
    figure.legend(
        handles.values(), handles.keys(), loc="lower center", ncols=min(len(handles), 5), frameon=False, fontsize=9
    )
    figure.tight_layout(rect=(0, 0.02 + 0.05 * -(-len(handles) // 5), 1, 1))
    return figure


def training(frame: pd.DataFrame, method: str):
    """What one run looks like while it trains: reward beside accuracy, validation marked, and rollout length."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2))
    colour, line, label = STYLE[method]
    if "reward" in frame:
        left.plot(frame["step"], frame["reward"], color=colour, linestyle=line, label="reward")
        if "gt/accuracy" in frame:
            left.plot(
                frame["step"], frame["gt/accuracy"], color="0.55", linestyle="--", label="accuracy of the rollouts"
            )
        if "gt/validation" in frame:
            left.plot(frame["step"], frame["gt/validation"], "k.", label="validation accuracy")
        right.plot(frame["step"], frame["length/mean"], color=colour, linestyle=line)
    left.set(xlabel="training step", ylabel="share or reward", title=f"{label}: {frame['step'].max()} steps so far")
    right.set(xlabel="training step", ylabel="tokens", title="Length of a rollout")
    left.legend(frameon=False, fontsize=8)
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure


def live(folder, method: str, every: float = 20.0):
    """A callable for `launch.train(poll=...)`: redraws one figure in place from the run's metrics file.

    Every `every` seconds at most, and so that drawing takes 2 % of the time: the run needs the core.
    """
    import time

    from IPython.display import display

    from corelib import runs

    shown = {"time": 0.0, "cost": 0.0, "handle": None}

    def poll(force: bool = False) -> None:
        began = time.time()
        if not force and began - shown["time"] < max(every, 50 * shown["cost"]):
            return
        shown["time"] = began
        frame = runs.load_metrics(folder)
        if "reward" not in frame:
            return  # only the validation before the first step so far
        figure = training(frame, method)
        if shown["handle"] is None:
            shown["handle"] = display(figure, display_id=True)
        else:
            shown["handle"].update(figure)
        plt.close(figure)
        shown["cost"] = time.time() - began

    return poll


def rollouts(frame: pd.DataFrame, n: int = 3) -> pd.DataFrame:
    """The groups worth reading of one step's rollouts: paid most, paid least, most disputed of the rest; one row a rollout.

    `frame`: stored completions of one step. `votes`: how many rollouts of the group gave the same answer.
    """
    frame = frame.copy()
    frame["votes"] = frame.groupby(["pair_id", "view"])["answer"].transform(lambda a: a.map(a.value_counts()))
    stats = frame.groupby(["pair_id", "view"]).agg(reward=("judge", "mean"), distinct=("answer", "nunique"))
    picks = {"paid most": stats["reward"].idxmax(), "paid least": stats["reward"].idxmin()}
    others = stats.drop(index=list(set(picks.values())))
    if len(others):
        picks["most disputed"] = others["distinct"].idxmax()
    parts = []
    for kind, (pair, view) in list(picks.items())[:n]:
        group = frame[(frame["pair_id"] == pair) & (frame["view"] == view)].assign(group=kind)
        parts.append(group)
    columns = ["group", "prompt", "completion", "answer", "votes", "label", "truth", "judge", "advantage"]
    columns += ["teacher_answer"] if "teacher_answer" in frame else []
    return pd.concat(parts)[columns].rename(columns={"judge": "reward"}).reset_index(drop=True)
