"""Figures of what runs were paid for and what they did: one function of a DataFrame each, its title the finding.

Titles are computed from what is drawn. Colours, line styles and names of the methods are those of `corelib.plots`. `frame`
is always many runs' metrics under each other (`stack`), with the columns run and method beside those of metrics.jsonl;
several runs of a method become their mean and a band from the lowest to the highest.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from itertools import cycle

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.ticker import MaxNLocator

from corelib.alarm_study import WINDOW
from corelib.answers import equivalent
from corelib.plots import STYLE, mean_band, methods, name

MARKS = dict(
    zip(STYLE, cycle("osv^Dxp*+"), strict=False)
)  # four methods share a solid line: markers tell them apart in grey
SHOWN = 300  # characters at either end of a text that a table cuts
LEFT = 'style="text-align:left;vertical-align:top"'
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
}


class Missing(ValueError):
    """These runs lack what a figure or table needs; the message is the sentence to print in its place."""


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


def band(ax, frame: pd.DataFrame, column: str, scaled: bool = False, **style) -> pd.Series:
    """Mean over a method's runs with its min-max band; returns the mean, empty when nothing was logged."""
    runs = [_smooth(run, column) for _, run in frame.groupby("run")]
    runs = [(r - r.min()) / (r.max() - r.min()) if scaled and r.max() > r.min() else r for r in runs if len(r)]
    if not runs:
        return pd.Series(dtype=float)
    steps = len(set().union(*(r.index for r in runs)))
    marks = max(steps // 8, 1) if "marker" in style else None
    return mean_band(ax, runs, linewidth=1.8, markevery=marks, markersize=4, **style)


def panels(keys, width: float = 3.5, height: float = 2.4, per_row: int = 3):
    """Equal panels with shared axes: (figure, {key: axes}, the leftmost axes). Raises Missing without keys."""
    keys = list(keys)
    if not keys:
        raise Missing("no figure here: none of these runs has what it shows")
    per_row = min(per_row, len(keys))
    rows = -(-len(keys) // per_row)
    figure, axes = plt.subplots(
        rows, per_row, figsize=(max(width * per_row, 7), height * rows + 0.9), squeeze=False, sharex=True, sharey=True
    )
    for i, ax in enumerate(axes.flat):
        ax.set_visible(i < len(keys))
        ax.spines[["top", "right"]].set_visible(False)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        if i + per_row >= len(keys):  # the lowest of its column
            ax.set_xlabel("training step", fontsize=9)
            ax.tick_params(labelbottom=True)
    return figure, dict(zip(keys, axes.flat, strict=False)), axes[:, 0]


def finish(figure, title: str, handles=None):
    """Title above, one legend below, nothing overlapping."""
    figure.suptitle(title, fontsize=11.5)
    if handles:
        rows = -(-len(handles) // int(figure.get_size_inches()[0] / 1.9))
        figure.legend(handles=handles, loc="lower center", ncols=-(-len(handles) // rows), frameon=False, fontsize=9)
    height = figure.get_size_inches()[1]
    figure.tight_layout(rect=(0, (0.05 + 0.22 * rows) / height if handles else 0, 1, 1))
    return figure


def needs(frame: pd.DataFrame, *columns: str) -> None:
    """Raise Missing, naming the column, where no run logged it."""
    for column in columns:
        if column not in frame or frame[column].isna().all():
            raise Missing(f"no figure here: none of these runs logged {column}")


def _ends(runs: pd.DataFrame, column: str) -> tuple[float, float]:
    """Peak and last running mean of a column, averaged over runs; nan where it was not logged."""
    values = [_smooth(run, column) for _, run in runs.groupby("run")]
    values = [v for v in values if len(v)]
    if not values:
        return float("nan"), float("nan")
    return sum(v.max() for v in values) / len(values), sum(v.iloc[-1] for v in values) / len(values)


def parted(run: pd.DataFrame) -> bool:
    """Whether a run ends below half its peak of accuracy while its reward has gone on rising.

    Rising: the last ten steps pay more than the ten up to that peak (or than the first ten) by twice the standard error of
    that difference, so that a coin's noise does not count.
    """
    accuracy, reward = _smooth(run, "gt/accuracy"), run.set_index("step")["reward"].dropna()
    if len(accuracy) < 2 or accuracy.iloc[-1] >= accuracy.max() / 2:
        return False
    peak = max(accuracy.idxmax(), reward.index[min(WINDOW, len(reward)) - 1])  # before, the mean is of fewer steps
    then, now = reward.loc[:peak].tail(WINDOW), reward.tail(WINDOW)
    error = (then.var() / len(then) + now.var() / len(now)) ** 0.5
    return bool(now.mean() - then.mean() > 2 * error)


def reward_and_accuracy(frame: pd.DataFrame):
    """What each method was paid beside how often it was right, a panel a method (paper: figures 1, 4 and 9).

    Rewards that are no share (entropy, self-certainty) are scaled to their own range and marked so. Raises Missing for
    runs that did not log whether their rollouts are right.
    """
    needs(frame, "reward", "gt/accuracy")
    figure, axes, left = panels(methods(frame))
    apart = []
    for method, ax in axes.items():
        runs = frame[frame["method"] == method]
        scaled = bool((runs["reward"].min() < -0.001) | (runs["reward"].max() > 1.001))  # no share, beyond rounding
        band(ax, runs, "gt/accuracy", color="0.45", linestyle="--", marker="o", markerfacecolor="white")
        band(ax, runs, "reward", scaled, color=STYLE[method][0], linestyle="-")
        ax.set_title(name(method) + (" (reward scaled)" if scaled else ""), fontsize=9.5)
        hits = [parted(run) for _, run in runs.groupby("run")]
        if any(hits):
            apart.append(f"{name(method)} ({sum(hits)} of {len(hits)})")
    for ax in left:
        ax.set_ylabel("share", fontsize=9)
    title = (
        f"Paid more at the end, by more than noise, right less than half as often as at their best:\n{listed(apart)}"
        if apart
        else "No method is paid more at the end, by more than noise, and right less than half as often as at its best"
    )
    lines = [
        plt.Line2D([], [], color="k", linewidth=1.8, label="mean reward"),
        plt.Line2D([], [], color="0.45", linestyle="--", marker="o", markerfacecolor="white", label="rollouts that are right"),
    ]  # fmt: skip
    return finish(figure, title, lines)


def held_out(frame: pd.DataFrame):
    """Accuracy on held-out problems (paper: figures 1 and 3), rewards of one view left, the others right."""
    needs(frame, "gt/validation")
    frame = frame[frame["gt/validation"].notna()]
    alone = [m for m in methods(frame) if m in ("majority_voting", "self_certainty", "entropy", "random")]
    others = [m for m in methods(frame) if m not in alone]
    sides = {k: v for k, v in (("paid by its own view, or by chance", alone), ("paid by truth, another view or a teacher", others)) if v}  # fmt: skip
    figure, axes, left = panels(sides, width=4.6, height=3.0)
    lost = {}
    for side, ax in axes.items():
        for method in sides[side]:
            colour, line, label = STYLE[method]
            per = [run.set_index("step")["gt/validation"] for _, run in frame[frame["method"] == method].groupby("run")]  # fmt: skip
            mean = mean_band(ax, per, color=colour, linestyle=line, marker=MARKS[method], markersize=4, markevery=2, label=label)  # fmt: skip
            lost[method] = mean.max() - mean.iloc[-1], mean.max(), mean.iloc[-1]
        ax.set_title(side, fontsize=9.5)
        ax.set_ylim(-0.02, 1.02)
    left[0].set_ylabel("right on held-out problems (share)", fontsize=9)
    worst = max(lost, key=lost.get)
    loss, best, end = lost[worst]
    title = f"On held-out problems {name(worst)} loses most: from {100 * best:.0f} % to {100 * end:.0f} %"
    handles = [h for ax in axes.values() for h in ax.get_lines()]
    return finish(figure, title if loss > 0 else "On held-out problems every method ends at its best", handles)


def votes(frame: pd.DataFrame):
    """How often the policy's vote, the teacher's vote and the label paid for are right (paper: figures 6 and 9)."""
    needs(frame, "gt/policy_label_accuracy")
    kinds = {
        "gt/policy_label_accuracy": ("policy's vote", "-", None),
        "gt/teacher_label_accuracy": ("teacher's vote", "--", "s"),
        "gt/label_accuracy": ("label paid for", ":", "x"),
    }
    voted = [m for m in methods(frame) if _ends(frame[frame["method"] == m], "gt/policy_label_accuracy")[0] > 0]
    figure, axes, left = panels(voted)
    for method, ax in axes.items():
        for column, (_, line, marker) in kinds.items():
            extra = {"marker": marker} if marker else {}
            band(ax, frame[frame["method"] == method], column, color=STYLE[method][0], linestyle=line, **extra)
        ax.set_title(name(method), fontsize=9.5)
        ax.set_ylim(-0.02, 1.02)
    for ax in left:
        ax.set_ylabel("right (share)", fontsize=9)
    ends = {m: _ends(frame[frame["method"] == m], "gt/label_accuracy") for m in voted}
    ends = {m: e for m, e in ends.items() if e[0] == e[0]}
    title = "Nobody was paid by a pseudo-label"
    if ends:
        best, worst = max(ends, key=lambda m: ends[m][1]), min(ends, key=lambda m: ends[m][1])
        title = f"Pseudo-labels right at the end: {100 * ends[best][1]:.0f} % for {name(best)}"
        if worst != best:
            title += f", {100 * ends[worst][1]:.0f} % for {name(worst)} (best ten steps: {100 * ends[worst][0]:.0f} %)"
    lines = [plt.Line2D([], [], color="k", linestyle=k[1], marker=k[2], markersize=4, label=k[0]) for k in kinds.values()]  # fmt: skip
    return finish(figure, title, lines)


def diversity(frame: pd.DataFrame):
    """Do answers concentrate within a group, which is learning, or across prompts, which is collapse?

    The title leaves out batches of two views: they hold half as many questions, so one answer's share is larger by itself.
    """
    needs(frame, "answers/top_share", "answers/distinct_group")
    rise = {}
    paired = set(frame.loc[frame["views/agreement"].notna(), "method"]) if "views/agreement" in frame else set()
    for method in [m for m in methods(frame) if m not in paired] or methods(frame):
        runs = [run.set_index("step")["answers/top_share"].dropna() for _, run in frame[frame["method"] == method].groupby("run")]  # fmt: skip
        rise[method] = sum(r.tail(WINDOW).mean() / r.head(WINDOW).mean() for r in runs) / len(runs)
    most = max(rise, key=rise.get)
    title = f"The commonest answer's share of a batch grew {rise[most]:.1f}-fold for {name(most)}"
    title += f", {rise['gt']:.1f}-fold for {name('gt')}" if "gt" in rise and most != "gt" else ""
    return _curves(frame, ("answers/distinct_group", "answers/top_share", "entropy", "length/mean"), title)


def rollout_measures(frame: pd.DataFrame, columns=("about_question", "top_label", "repetition", "advantage")):
    """Measures of the stored rollouts over steps (`diagnostics.rollout_measures`, stacked), a line a method."""
    needs(frame, columns[0])
    ends = {m: _ends(frame[frame["method"] == m], columns[0])[1] for m in methods(frame)}
    low, high = min(ends, key=ends.get), max(ends, key=ends.get)
    what = AXES.get(columns[0], columns[0])
    title = f"{what[0].upper() + what[1:]} at the end: {ends[high]:.2f} for {name(high)}"
    return _curves(frame, columns, title + (f", {ends[low]:.2f} for {name(low)}" if low != high else ""))


def _curves(frame: pd.DataFrame, columns, title: str):
    rows = -(-len(columns) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(10, 3.0 * rows + 0.8), squeeze=False)
    for ax, column in zip(axes.flat, columns, strict=False):
        for method in methods(frame):
            colour, line, label = STYLE[method]
            band(ax, frame[frame["method"] == method], column, color=colour, linestyle=line, label=label, marker=MARKS[method])  # fmt: skip
        ax.set_ylabel(AXES.get(column, column), fontsize=9)
        ax.set_xlabel("training step", fontsize=9)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes.flat[len(columns) :]:
        ax.set_visible(False)
    by_label = {h.get_label(): h for ax in axes.flat for h in ax.get_lines()}
    return finish(figure, title, list(by_label.values()))


def by_level(frame: pd.DataFrame, column: str = "policy"):
    """Right votes by difficulty (`diagnostics.label_accuracy` with levels, stacked), a panel a method (paper: 11 and 12)."""
    frame = frame[frame["view"] == "original"] if (frame["view"] == "original").any() else frame
    levels = sorted(frame["level"].dropna().unique())
    figure, axes, left = panels(methods(frame))
    falls = {}
    for method, ax in axes.items():
        for i, level in enumerate(levels):
            rows = frame[(frame["method"] == method) & (frame["level"] == level)]
            # A level has few questions a step: twenty steps together
            per = rows.assign(right=rows[column] * rows["questions"], bin=rows["step"] // 20 * 20 + 10)
            sums = per.groupby("bin")[["right", "questions"]].sum()
            curve = (sums["right"] / sums["questions"])[sums["questions"] >= FEW]
            ax.plot(curve.index, curve, color=STYLE[method][0], **_level(i, len(levels)))
            if len(curve) > 1:
                falls[method, level] = curve.max() - curve.iloc[-1]
        ax.set_title(name(method), fontsize=9.5)
        ax.set_ylim(-0.02, 1.02)
    for ax in left:
        ax.set_ylabel("right votes (share)", fontsize=9)
    if not falls:
        plt.close(figure)
        raise Missing(f"no figure by level: none has {FEW} questions in two spans of twenty steps; store completions more often")  # fmt: skip
    method, level = max(falls, key=falls.get)
    lines = [plt.Line2D([], [], color="k", label=f"level {x}", **_level(i, len(levels))) for i, x in enumerate(levels) if any(x == y for _, y in falls)]  # fmt: skip
    return finish(figure, f"Largest fall from its peak: {name(method)} at level {level}, by {100 * falls[method, level]:.0f} points", lines)  # fmt: skip


def _level(i: int, of: int) -> dict:
    look = {"marker": "os^Dv"[i % 5], "markersize": 3.5, "linestyle": ("-", "--", "-.", ":")[i % 4]}
    return look | {"alpha": 0.25 + 0.75 * (i + 1) / of}


def case_study_html(frame: pd.DataFrame) -> str:
    """`diagnostics.case_study` as an HTML table; texts of the model are escaped, cut when they are long, and not typeset; a
    label that is not equivalent to the truth is marked in words.
    """
    body, last = [], None
    for row in frame.to_dict("records"):
        cells = [row["method"] if row["method"] != last else "", row["step"], row["question"], row["truth"]]
        last = row["method"]
        known = isinstance(row["label"], str) and isinstance(row["truth"], str)
        wrong = " (wrong)" if known and not equivalent(row["truth"], row["label"]) else ""
        written = [_cut(row["label"]), _cut(row["answers"]), _cut(row["completion"])]
        cells = [f"<td {LEFT}>{_escaped(c)}</td>" for c in cells]
        cells += [f'<td class="tex2jax_ignore mathjax_ignore" {LEFT}>{_escaped(c)}{mark}</td>' for c, mark in zip(written, (wrong, "", ""), strict=True)]  # fmt: skip
        body.append(f"<tr>{''.join(cells)}</tr>")
    head = ("method", "step", "question", "truth", "label", "answers of the group (at most four)", "commonest rollout")
    cells = "".join(f'<th style="text-align:left">{h}</th>' for h in head)
    return f"<table><tr>{cells}</tr>{''.join(body)}</table>"


def _cut(text):
    """Head and tail of a long text, and how much is not shown; anything else as it is."""
    if not isinstance(text, str) or len(text) <= 3 * SHOWN:
        return text
    return f"{text[:SHOWN]}\n[... {len(text) - 2 * SHOWN} characters left out ...]\n{text[-SHOWN:]}"


def _escaped(value) -> str:
    return "-" if value is None or value != value else html.escape(str(value)).replace("\n", "<br>")


def listed(names: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
