"""Figures of the sweep: how the methods end over seeds, and one small figure a question, its title the computed answer.

`table` is sweep.csv; the answers are those of `corelib.findings`.
"""

from __future__ import annotations

import re
import textwrap

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.ticker import PercentFormatter

from corelib.config import DEFAULT_METHODS
from corelib.findings import ANSWERS, CROSSED, VARIED, fell, mean_interval, tidy
from corelib.plots import STYLE, methods, name
from corelib.plots_diagnostics import MARKS, Missing, band, finish, listed, needs, parted


def collapse_figure(table: pd.DataFrame, metrics: pd.DataFrame):
    """The README's opening figure: reward and accuracy of four methods over steps, seeds as bands.

    `metrics`: sweep.parquet, a row a run and step. Raises Missing when the nine-method comparison has none of the four.
    """
    main = [m for m in DEFAULT_METHODS if m in set(table["method"])]
    table = table[(table["question"] == "nine") & table["method"].isin(main)] if main else table
    if table.empty or not main:
        raise Missing("the sweep holds none of the runs of the opening figure; run `python -m corelib sweep`")
    method = table.set_index("run")["method"]
    frame = metrics.assign(run=metrics["run"].astype(str))
    frame = frame[frame["run"].isin(method.index)]
    frame = frame.assign(method=frame["run"].map(method))
    needs(frame, "reward", "gt/accuracy")
    table = table[table["collapsed"].notna()]  # a run without truth has a reward to draw and no fate to count
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.9), sharex=True)
    titles = ("What they are paid", "What we want")
    for ax, column, above in zip(axes, ("reward", "gt/accuracy"), titles, strict=True):
        for m in main:
            colour, line, label = STYLE[m]
            band(ax, frame[frame["method"] == m], column, color=colour, linestyle=line, marker=MARKS[m], label=label)
        ax.set_title(above, fontsize=10)
        ax.set_xlabel("training step", fontsize=9)
        ax.set_ylim(-0.02, 1.02)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("mean reward", fontsize=9)
    axes[1].set_ylabel("rollouts that are right (share)", fontsize=9)
    return finish(figure, _collapse_title(table, frame, main), axes[0].get_lines())


def _collapse_title(table: pd.DataFrame, frame: pd.DataFrame, main: list[str]) -> str:
    main = [m for m in main if m in set(table["method"])]
    count = {m: fell(table[table["method"] == m]) for m in main}
    alone = [m for m in main if m == "majority_voting"]
    paid = sum(parted(run) for _, run in frame[frame["method"] == "majority_voting"].groupby("run"))
    others = listed([f"{name(m)} {count[m]}" for m in main if m not in alone])
    if not alone:
        return f"Collapsed: {others} seeds"
    first = f"Majority voting collapses in {count['majority_voting']} seeds"
    if paid:
        first += f" and is paid more and more all the same in {paid}"
    return first + (f"\nOf the others collapsed: {others}" if others else "")


def ends(table: pd.DataFrame):
    """Peak and final accuracy of every run, a row a method; the final mean with its 95 % interval (Student's t)."""
    table = table[table["final"].notna()]
    order = methods(table)
    if not order:
        raise Missing("none of these runs logged gt/accuracy, so peaks and ends of accuracy are unknown")
    figure, ax = plt.subplots(figsize=(8.4, 0.42 * len(order) + 1.7))
    for y, method in enumerate(reversed(order)):
        rows, colour = table[table["method"] == method], STYLE[method][0]
        ax.plot(rows["peak"], [y + 0.16] * len(rows), "o", color=colour, markerfacecolor="white", markersize=5)
        for final, down in zip(rows["final"], rows["collapsed"].astype(bool), strict=True):
            ax.plot(final, y - 0.16, "X" if down else "o", color=colour, markersize=6)
        mean, low, high = mean_interval(rows["final"])
        if low == low:
            ax.plot([mean, mean], [y - 0.34, y + 0.02], color="k", linewidth=2)
            ax.plot([max(low, 0), min(high, 1)], [y - 0.16] * 2, color="k", linewidth=1, zorder=0)
    ax.set_yticks(range(len(order)), [name(m) for m in reversed(order)], fontsize=9)
    ax.set_xlabel("rollouts that are right, mean of ten steps", fontsize=9)
    ax.set_xlim(-0.02, 1.02)
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    ax.spines[["top", "right"]].set_visible(False)
    down = [f"{name(m)} {fell(table[table['method'] == m])}" for m in order if table.loc[table["method"] == m, "collapsed"].any()]  # fmt: skip
    never = len(order) - len(down)
    title = f"Below half their peak: {listed(down)}" if down else "No run fell below half its peak"
    title = _wrap(title + (f"; none of the other {never}" if down and never else ""), 95)
    look = {"color": "0.3", "linestyle": ""}
    lines = [
        plt.Line2D([], [], marker="o", markerfacecolor="white", label="peak of a seed", **look),
        plt.Line2D([], [], marker="o", label="its end", **look),
        plt.Line2D([], [], marker="X", label="its end, collapsed", **look),
    ]
    if table.duplicated("method").any():
        lines.append(plt.Line2D([], [], color="k", marker="|", markersize=10, markeredgewidth=2, label="mean end, 95 %"))  # fmt: skip
    return finish(figure, title, lines)


def question(table: pd.DataFrame, name_: str):
    """Final accuracy of every run of a question by the setting that it varies: a mark a seed, a line a method's mean."""
    data = tidy(table, name_)
    values = list(dict.fromkeys(data["value"]))
    values = sorted(values) if all(isinstance(v, (int, float)) for v in values) else values
    if name_ == "views":
        values = [v for v in ("original", "rephrased", "both", CROSSED) if v in values]
    shown = methods(data)
    figure, ax = plt.subplots(figsize=(6.6, 3.5))
    start = [data.loc[data["value"] == v, "start"].mean() for v in values]  # another base model starts elsewhere
    ax.hlines(start, [x - 0.48 for x in range(len(values))], [x + 0.48 for x in range(len(values))], color="0.6", linestyle=":", linewidth=1)  # fmt: skip
    ax.annotate("before training", (len(values) - 0.55, start[-1]), fontsize=8, color="0.35", va="bottom", ha="right")
    handles = []
    for i, method in enumerate(shown):
        rows, (colour, line, label) = data[data["method"] == method], STYLE[method]
        shift = 0.34 * ((i + 0.5) / len(shown) - 0.5)
        means = rows.groupby("value")["final"].mean()
        at = [x for x, v in enumerate(values) if v in means.index]
        ax.plot([x + shift for x in at], [means[values[x]] for x in at], color=colour, linestyle=line, linewidth=1.5)
        seed = {
            "marker": MARKS[method].replace("x", "P").replace("+", "h"),
            "markerfacecolor": "white",
            "markersize": 6,
        }
        for run in rows.itertuples():
            mark = {"marker": "X", "markersize": 7} if run.collapsed else seed
            ax.plot(values.index(run.value) + shift, run.final, color=colour, linestyle="", **mark)
        handles.append(plt.Line2D([], [], color=colour, linestyle=line, linewidth=1.5, label=label, **seed))
    handles.append(plt.Line2D([], [], color="0.3", marker="X", markersize=7, linestyle="", label="collapsed"))
    ax.set_xticks(range(len(values)), [f"{v:g}" if isinstance(v, (int, float)) else v.replace("_", " ") for v in values], fontsize=9)  # fmt: skip
    ax.set_xlim(-0.5, len(values) - 0.5)
    ax.set_ylim(-0.03, 1.03)
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.set_xlabel(VARIED[name_][1], fontsize=9)
    ax.set_ylabel("rollouts right at the end", fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)
    return finish(figure, _wrap(ANSWERS[name_](data), 76), handles)


def _wrap(text: str, width: int) -> str:
    text = re.sub(r"(?<=\d) (?=(of|%))|(?<=of) (?=\d)", "\u00a0", text)  # a count is not broken
    return "\n".join(textwrap.wrap(text, width, break_on_hyphens=False))
