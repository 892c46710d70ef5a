"""Figures of collapse: one function of a DataFrame each, its title the finding, computed from what is drawn.

Colours, line styles and names of the methods are those of `corelib.plots`. `frame` is always many runs' metrics under each
other (`stack`), with the columns run and method beside those of metrics.jsonl.
"""

from __future__ import annotations

import html
from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.ticker import MaxNLocator

from corelib.plots import STYLE, name

WINDOW = 10  # steps of the running mean
MARKS = dict(
    zip(STYLE, "osv^Dxp*+", strict=True)
)  # four methods share a solid line: markers tell them apart in greyscale
FEW = 8  # questions behind a point, below which their share is mostly noise
AXES = {
    "answers/distinct_group": "distinct answers in a group (share)",
    "answers/top_share": "share of the commonest answer",
    "entropy": "token entropy (nats)",
    "length/mean": "completion length (tokens)",
    "about_question": "information on the question (nats)",
    "top_label": "share of the commonest label",
    "repetition": "repeated 4-grams (share)",
    "advantage": "mean |advantage|",
    "entropy_group": "answer entropy in a group (nats)",
    "entropy_batch": "answer entropy across prompts (nats)",
    "distinct_2": "distinct 2-grams (share)",
    "top_answer": "share of the commonest answer",
    "silent_groups": "groups without an advantage (share)",
    "agreement": "pairs whose views vote alike (share)",
}


def stack(metrics: Mapping[str, pd.DataFrame], methods: Mapping[str, str]) -> pd.DataFrame:
    """Runs under each other. `metrics`: run -> metrics or measures with a column or index `step`; `methods`: run -> method."""
    frames = [
        (m if "step" in m else m.reset_index()).assign(run=run, method=methods[run]) for run, m in metrics.items()
    ]
    return pd.concat(frames, ignore_index=True)


def _smooth(run: pd.DataFrame, column: str) -> pd.Series:
    """Mean over the last `WINDOW` steps, of as many rows as were stored in them."""
    if column not in run:
        return pd.Series(dtype=float)
    values = run.set_index("step")[column].dropna().astype(float)
    rows = max(round(WINDOW / max(values.index.to_series().diff().median(), 1)), 1) if len(values) > 1 else 1
    return values.rolling(rows, min_periods=1).mean()


def _band(ax, frame: pd.DataFrame, column: str, scaled: bool = False, **style) -> pd.Series:
    """Mean over a method's runs with its min-max band; returns the mean, empty when nothing was logged."""
    runs = [_smooth(run, column) for _, run in frame.groupby("run")]
    runs = [(r - r.min()) / (r.max() - r.min()) if scaled and r.max() > r.min() else r for r in runs if len(r)]
    if not runs:
        return pd.Series(dtype=float)
    together = pd.concat(runs, axis=1).sort_index()
    mean = together.mean(axis=1)
    marks = max(len(mean) // 8, 1) if "marker" in style else None
    ax.plot(mean.index, mean, linewidth=1.8, markevery=marks, markersize=4, **style)
    if together.shape[1] > 1:
        ax.fill_between(together.index, together.min(axis=1), together.max(axis=1), color=style["color"], alpha=0.15, linewidth=0)  # fmt: skip
    return mean


def _panels(keys, width: float = 3.5, height: float = 2.4, per_row: int = 3):
    keys = list(keys)
    per_row = min(per_row, len(keys))
    rows = -(-len(keys) // per_row)
    figure, axes = plt.subplots(
        rows, per_row, figsize=(width * per_row, height * rows + 0.9), squeeze=False, sharex=True, sharey=True
    )
    for i, ax in enumerate(axes.flat):
        ax.set_visible(i < len(keys))
        ax.spines[["top", "right"]].set_visible(False)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        if i + per_row >= len(keys):  # the lowest of its column
            ax.set_xlabel("training step", fontsize=9)
            ax.tick_params(labelbottom=True)
    return figure, dict(zip(keys, axes.flat, strict=False)), axes[:, 0]


def _finish(figure, title: str, handles=None):
    figure.suptitle(title, fontsize=11.5)
    if handles:
        figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.06 if handles else 0, 1, 1))
    return figure


def _methods(frame: pd.DataFrame) -> list[str]:
    return [m for m in STYLE if m in set(frame["method"])]


def _ends(runs: pd.DataFrame, column: str) -> tuple[float, float]:
    """Peak and last running mean of a column, averaged over runs; nan where it was not logged."""
    values = [_smooth(run, column) for _, run in runs.groupby("run")]
    values = [v for v in values if len(v)]
    if not values:
        return float("nan"), float("nan")
    return sum(v.max() for v in values) / len(values), sum(v.iloc[-1] for v in values) / len(values)


def reward_and_accuracy(frame: pd.DataFrame):
    """What each method was paid beside how often it was right, a panel a method (paper: figures 1, 4 and 9).

    Rewards that are no share (entropy, self-certainty) are scaled to their own range and marked so.
    """
    methods = [m for m in _methods(frame) if "reward" in frame]
    figure, axes, left = _panels(methods)
    parted = []
    for method, ax in axes.items():
        runs = frame[frame["method"] == method]
        colour = STYLE[method][0]
        scaled = bool((runs["reward"].min() < 0) | (runs["reward"].max() > 1))
        accuracy = _band(ax, runs, "gt/accuracy", color="0.45", linestyle="--", marker="o", markerfacecolor="white")
        reward = _band(ax, runs, "reward", scaled, color=colour, linestyle="-")
        ax.set_title(name(method) + (" (reward scaled)" if scaled else ""), fontsize=9.5)
        if len(accuracy) and accuracy.iloc[-1] < accuracy.max() / 2 and reward.iloc[-1] > reward.loc[accuracy.idxmax()]:
            parted.append(name(method))
    for ax in left:
        ax.set_ylabel("share", fontsize=9)
    title = (
        f"Paid more for being right less: {_list(parted)} end above their reward at the peak of accuracy,\nand below half of that peak"
        if parted
        else "Reward and accuracy go together in every method"
    )
    lines = [
        plt.Line2D([], [], color="k", linewidth=1.8, label="mean reward"),
        plt.Line2D(
            [], [], color="0.45", linestyle="--", marker="o", markerfacecolor="white", label="rollouts that are right"
        ),  # fmt: skip
    ]
    return _finish(figure, title, lines)


def votes(frame: pd.DataFrame):
    """How often the policy's vote, the teacher's vote and the label paid for are right (paper: figures 6 and 9)."""
    kinds = {
        "gt/policy_label_accuracy": ("policy's vote", "-", None),
        "gt/teacher_label_accuracy": ("teacher's vote", "--", "s"),
        "gt/label_accuracy": ("label paid for", ":", "x"),
    }
    methods = [m for m in _methods(frame) if _ends(frame[frame["method"] == m], "gt/policy_label_accuracy")[0] > 0]
    figure, axes, left = _panels(methods)
    for method, ax in axes.items():
        for column, (_, line, marker) in kinds.items():
            extra = {"marker": marker} if marker else {}
            _band(ax, frame[frame["method"] == method], column, color=STYLE[method][0], linestyle=line, **extra)
        ax.set_title(name(method), fontsize=9.5)
        ax.set_ylim(-0.02, 1.02)
    for ax in left:
        ax.set_ylabel("right (share)", fontsize=9)
    ends = {m: _ends(frame[frame["method"] == m], "gt/label_accuracy") for m in methods}
    ends = {m: e for m, e in ends.items() if e[0] == e[0]}
    title = "Nobody was paid by a pseudo-label"
    if ends:
        best, worst = max(ends, key=lambda m: ends[m][1]), min(ends, key=lambda m: ends[m][1])
        title = f"Pseudo-labels: {100 * ends[best][1]:.0f} % right at the end for {name(best)}, {100 * ends[worst][1]:.0f} % for {name(worst)} (best ten steps {100 * ends[worst][0]:.0f} %)"
    lines = [
        plt.Line2D([], [], color="k", linestyle=k[1], marker=k[2], markersize=4, label=k[0]) for k in kinds.values()
    ]
    return _finish(figure, title, lines)


def diversity(frame: pd.DataFrame):
    """Do answers concentrate within a group, which is learning, or across prompts, which is collapse?"""
    rise = {}
    for method in _methods(frame):
        runs = [run.set_index("step")["answers/top_share"].dropna() for _, run in frame[frame["method"] == method].groupby("run")]  # fmt: skip
        rise[method] = sum(r.tail(WINDOW).mean() / r.head(WINDOW).mean() for r in runs) / len(runs)
    most = max(rise, key=rise.get)
    title = f"The commonest answer's share of a batch grew {rise[most]:.1f}-fold for {name(most)}"
    title += f", {rise['gt']:.1f}-fold for {name('gt')}" if "gt" in rise and most != "gt" else ""
    return _curves(frame, ("answers/distinct_group", "answers/top_share", "entropy", "length/mean"), title)


def rollout_measures(frame: pd.DataFrame, columns=("about_question", "top_label", "repetition", "advantage")):
    """Measures of the stored rollouts over steps (`diagnostics.rollout_measures`, stacked), a line a method."""
    ends = {m: _ends(frame[frame["method"] == m], columns[0])[1] for m in _methods(frame)}
    low, high = min(ends, key=ends.get), max(ends, key=ends.get)
    what = AXES.get(columns[0], columns[0])
    title = (
        f"{what[0].upper() + what[1:]}: {ends[low]:.2f} at the end for {name(low)}, {ends[high]:.2f} for {name(high)}"
    )
    return _curves(frame, columns, title)


def _curves(frame: pd.DataFrame, columns, title: str):
    rows = -(-len(columns) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(10, 3.0 * rows + 0.8), squeeze=False)
    for ax, column in zip(axes.flat, columns, strict=False):
        for method in _methods(frame):
            colour, line, label = STYLE[method]
            _band(
                ax,
                frame[frame["method"] == method],
                column,
                color=colour,
                linestyle=line,
                label=label,
                marker=MARKS[method],
            )
        ax.set_ylabel(AXES.get(column, column), fontsize=9)
        ax.set_xlabel("training step", fontsize=9)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes.flat[len(columns) :]:
        ax.set_visible(False)
    by_label = {label: line for ax in axes.flat for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.suptitle(title, fontsize=11.5)
    figure.legend(by_label.values(), by_label.keys(), loc="lower center", ncols=5, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    return figure


def by_level(frame: pd.DataFrame, column: str = "policy"):
    """Right votes by difficulty (`diagnostics.label_accuracy` with levels, stacked), a panel a method (paper: 11 and 12)."""
    frame = frame[frame["view"] == "original"] if (frame["view"] == "original").any() else frame
    levels = sorted(frame["level"].dropna().unique())
    figure, axes, left = _panels(_methods(frame), per_row=2, width=4.6)
    falls = {}
    for method, ax in axes.items():
        for i, level in enumerate(levels):
            rows = frame[(frame["method"] == method) & (frame["level"] == level)]
            # A level has few questions a step: twenty steps together
            per = rows.assign(right=rows[column] * rows["questions"], bin=rows["step"] // 20 * 20 + 10)
            sums = per.groupby("bin")[["right", "questions"]].sum()
            curve = (sums["right"] / sums["questions"])[sums["questions"] >= FEW]
            shade = 0.25 + 0.75 * (i + 1) / len(levels)
            ax.plot(curve.index, curve, color=STYLE[method][0], alpha=shade, marker="os^Dv"[i % 5], markersize=3.5, linestyle=("-", "--", "-.", ":")[i % 4])  # fmt: skip
            if len(curve) > 1:
                falls[method, level] = curve.max() - curve.iloc[-1]
        ax.set_title(name(method), fontsize=9.5)
        ax.set_ylim(-0.02, 1.02)
    for ax in left:
        ax.set_ylabel("right votes (share)", fontsize=9)
    if not falls:
        raise ValueError(f"no level has {FEW} questions in two spans of twenty steps; store completions more often")
    method, level = max(falls, key=falls.get)
    lines = [plt.Line2D([], [], color="k", alpha=0.25 + 0.75 * (i + 1) / len(levels), marker="os^Dv"[i % 5], markersize=4, linestyle=("-", "--", "-.", ":")[i % 4], label=f"level {x}") for i, x in enumerate(levels) if any(x == y for _, y in falls)]  # fmt: skip
    return _finish(figure, f"Largest fall from its peak: {name(method)} at level {level}, by {100 * falls[method, level]:.0f} points", lines)  # fmt: skip


def alarm_timeline(frame: pd.DataFrame, table: pd.DataFrame, per_row: int = 3):
    """Accuracy of every run with the alarm, the fall below half the peak and the checkpoint kept.

    `table`: `diagnostics.judge_runs` of the same runs.
    """
    figure, axes, left = _panels(table["run"], per_row=per_row)
    for row in table.itertuples():
        runs = frame[frame["run"] == row.run]
        ax, (colour, line, label) = axes[row.run], STYLE[runs["method"].iloc[0]]
        smooth = _band(ax, runs, "gt/accuracy", color=colour, linestyle=line)
        if row.alarm == row.alarm:
            ax.axvline(row.alarm, color="k", linestyle="--", linewidth=1.4)
            left_half = row.alarm < ax.get_xlim()[1] / 2
            ax.annotate(f"alarm {row.alarm:.0f}", (row.alarm, 0.97), xytext=(4 if left_half else -4, 0), textcoords="offset points", ha="left" if left_half else "right", va="top", fontsize=8)  # fmt: skip
        if row.collapse == row.collapse:
            ax.plot(row.collapse, smooth.get(row.collapse, 0), "kX", markersize=8)
        ax.plot(
            row.kept, smooth.iloc[abs(smooth.index - row.kept).argmin()], "k^", markersize=7, markerfacecolor="white"
        )
        ax.set_title(label + (f": {row.failure}" if row.failure else ""), fontsize=9.5)
        ax.set_ylim(-0.02, 1.02)
    for ax in left:
        ax.set_ylabel("right (share)", fontsize=9)
    fell = table["collapse"].notna()
    said = table["alarm"].notna()
    title = f"The alarm saw {int((fell & said).sum())} of {int(fell.sum())} collapses"
    title += f", {table['lead'].median():.0f} steps (median) before accuracy had halved" if (fell & said).any() else ""
    title += f"; {int((~fell & said).sum())} of {int((~fell).sum())} stable runs raised it"
    lines = [
        plt.Line2D([], [], color="k", linestyle="--", label="alarm (without labels)"),
        plt.Line2D([], [], color="k", marker="X", linestyle="", markersize=8, label="below half its peak"),
        plt.Line2D([], [], color="k", marker="^", linestyle="", markerfacecolor="white", label="checkpoint kept"),
    ]
    return _finish(figure, title, lines)


def roc(table: pd.DataFrame):
    """Detection against false alarms as the alarm's scale sweeps (`diagnostics.roc`)."""
    figure, ax = plt.subplots(figsize=(5.4, 4.2))
    table = table.sort_values("scale", ascending=False)
    ax.plot(table["false_alarms"], table["detected"], "k-o", markersize=4, label="detected at all")
    ax.plot(table["false_alarms"], table["in_time"], linestyle="--", marker="s", color="#0072B2", markersize=4, label="before accuracy halved")  # fmt: skip
    at = table.iloc[(table["scale"] - 1).abs().argmin()]
    ax.plot(at["false_alarms"], at["detected"], "o", color="k", markerfacecolor="none", markersize=14)
    ax.annotate(f"scale {at['scale']:g}", (at["false_alarms"], at["detected"]), xytext=(12, -14), textcoords="offset points", fontsize=9)  # fmt: skip
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.06))
    ax.set_xlabel(f"false alarms (share of {at['stable']:.0f} stable runs)", fontsize=9)
    ax.set_ylabel(f"share of {at['collapsed']:.0f} collapsed runs", fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=9, loc="lower right")
    ax.set_title(f"At scale {at['scale']:g}: {100 * at['detected']:.0f} % of collapses seen, {100 * at['false_alarms']:.0f} % false alarms", fontsize=11)  # fmt: skip
    figure.tight_layout()
    return figure


def case_study_html(frame: pd.DataFrame) -> str:
    """`diagnostics.case_study` as an HTML table; texts of the model are escaped, a wrong label is marked in words."""
    body, last = [], None
    for row in frame.to_dict("records"):
        cells = [row["method"] if row["method"] != last else "", row["step"], row["question"], row["truth"], row["label"], row["answers"], row["completion"]]  # fmt: skip
        last = row["method"]
        if isinstance(row["label"], str) and row["label"] != row["truth"]:
            cells[4] = f"{row['label']} (wrong)"
        cells = ["-" if c is None or c != c else html.escape(str(c)).replace("\n", "<br>") for c in cells]
        body.append(
            "<tr>" + "".join(f'<td style="text-align:left;vertical-align:top">{c}</td>' for c in cells) + "</tr>"
        )
    head = ("method", "step", "question", "truth", "label", "answers of the group", "commonest rollouts")
    return (
        "<table><tr>"
        + "".join(f'<th style="text-align:left">{h}</th>' for h in head)
        + "</tr>"
        + "".join(body)
        + "</table>"
    )


def _list(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
