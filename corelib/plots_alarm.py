"""Figures of the alarm: what it saw, when it spoke, how often it is right, and which checkpoint it would keep."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd

from corelib.alarm import alarm, evidence
from corelib.plots import STYLE, methods, name
from corelib.plots_diagnostics import MARKS, band, finish, listed, panels


def strengths(runs: Mapping[str, pd.DataFrame]):
    """Every condition's strength over the steps of some runs (label -> metrics); at 1 the alarm speaks.

    Conditions that never reach half of that in any of these runs are left out.
    """
    seen = {label: evidence(metrics) for label, metrics in runs.items()}
    heights = pd.concat([e.max() for e in seen.values()], axis=1).max(axis=1)
    drawn = [c for c in heights.index if heights[c] >= 0.5] or [heights.idxmax()]
    figure, axes, left = panels(seen, width=4.6, height=2.6, per_row=2)
    said = []
    looks = dict(zip(heights.index, zip(("-", "--", "-.", ":") * 3, "os^Dvx*p+", strict=False), strict=False))
    for label, ax in axes.items():
        ax.axhline(1, color="0.6", linewidth=0.9)
        for i, condition in enumerate(drawn):
            line, mark = looks[condition]
            values = seen[label][condition].clip(upper=3)
            ax.plot(values.index, values, color=plt.cm.viridis(i / max(len(drawn), 1)), linestyle=line, marker=mark, markevery=max(len(values) // 10, 1), markersize=4, linewidth=1.5, label=condition)  # fmt: skip
        step = alarm(runs[label]).step
        if step is not None:
            names = [condition for condition in seen[label] if seen[label].loc[step, condition] >= 1]
            ax.axvline(step, color="k", linestyle="--", linewidth=1.2)
            said.append(f"{label} at step {step} ({listed(names)})")
        ax.set_title(label, fontsize=9.5)
    for ax in left:
        ax.set_ylabel("strength (1 fires; cut at 3)", fontsize=9)
    quiet = len(seen) - len(said)
    title = f"The alarm speaks for {listed(said)}" if said else "The alarm is silent"
    title += f";\n{quiet} of {len(seen)} stay quiet" if said and quiet else ""
    return finish(figure, title, axes[next(iter(axes))].get_lines()[1 : 1 + len(drawn)])


def timeline(frame: pd.DataFrame, table: pd.DataFrame, per_row: int = 3):
    """Accuracy of every run with the alarm, the fall below half the peak and the checkpoint kept.

    `table`: `diagnostics.judge_runs` of the same runs.
    """
    figure, axes, left = panels(table["run"], per_row=per_row)
    for row in table.itertuples():
        runs = frame[frame["run"] == row.run]
        ax, (colour, line, label) = axes[row.run], STYLE[runs["method"].iloc[0]]
        smooth = band(ax, runs, "gt/accuracy", color=colour, linestyle=line)
        if row.alarm == row.alarm:
            ax.axvline(row.alarm, color="k", linestyle="--", linewidth=1.4)
            left_half = row.alarm < runs["step"].max() / 2
            ax.annotate(f"alarm {row.alarm:.0f}", (row.alarm, 0.97), xytext=(4 if left_half else -4, 0), textcoords="offset points", ha="left" if left_half else "right", va="top", fontsize=8)  # fmt: skip
        if row.collapse == row.collapse:
            ax.plot(row.collapse, smooth.get(row.collapse, 0), "kX", markersize=8)
        if row.kept == row.kept:
            at = smooth.index[abs(smooth.index - row.kept).argmin()]
            ax.plot(at, smooth[at], "k^", markersize=7, markerfacecolor="white")
        ax.set_title(label + (f": {row.failure}" if row.failure else ""), fontsize=9.5)
        ax.set_ylim(-0.02, 1.02)
    for ax in left:
        ax.set_ylabel("right (share)", fontsize=9)
    fell = table["collapse"].notna()
    said = table["alarm"].notna()
    title = f"The alarm saw {int((fell & said).sum())} of {int(fell.sum())} collapses"
    if (fell & said).any():
        lead = table["lead"].median()
        title += f", {abs(lead):.0f} steps (median) {'before' if lead >= 0 else 'after'} accuracy had halved"
    title += f"; {int((~fell & said).sum())} of {int((~fell).sum())} stable runs raised it"
    lines = [
        plt.Line2D([], [], color="k", linestyle="--", label="alarm (without labels)"),
        plt.Line2D([], [], color="k", marker="X", linestyle="", markersize=8, label="below half its peak"),
        plt.Line2D([], [], color="k", marker="^", linestyle="", markerfacecolor="white", label="checkpoint kept"),
    ]
    return finish(figure, title, lines)


def roc(table: pd.DataFrame):
    """Detection against false alarms as the alarm's scale sweeps (`diagnostics.roc`)."""
    figure, ax = plt.subplots(figsize=(5.8, 4.2))
    table = table.sort_values("scale", ascending=False)
    ax.plot(table["false_alarms"], table["detected"], "k-o", markersize=4, label="detected at all")
    ax.plot(table["false_alarms"], table["in_time"], linestyle="--", marker="s", color="#0072B2", markersize=4, label="before accuracy halved")  # fmt: skip
    at = table.iloc[(table["scale"] - 1).abs().argmin()]
    ax.plot(at["false_alarms"], at["detected"], "o", color="k", markerfacecolor="none", markersize=14)
    ax.annotate(f"scale {at['scale']:g}", (at["false_alarms"], at["detected"]), xytext=(14, -22), textcoords="offset points", fontsize=9)  # fmt: skip
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.06))
    ax.set_xlabel(f"false alarms (share of {at['stable']:.0f} stable runs)", fontsize=9)
    ax.set_ylabel(f"share of {at['collapsed']:.0f} collapsed runs", fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=9, loc="lower right")
    ax.set_title(f"At scale {at['scale']:g}: {100 * at['detected']:.0f} % of collapses seen, {100 * at['false_alarms']:.0f} % false alarms", fontsize=11)  # fmt: skip
    figure.tight_layout()
    return figure


def kept(choices: pd.DataFrame):
    """What three ways to choose a checkpoint keep of each run's best accuracy (`story.choices`), a mark a run.

    The bar and the title's figures are medians over the runs that collapsed, where the choice matters; over all runs when
    none did. Runs that did not collapse are drawn faintly.
    """
    ways = {"last": "the last one", "label_free": "without labels\n(the alarm)", "validation": "labelled\nvalidation"}
    figure, ax = plt.subplots(figsize=(7.4, 3.9))
    drawn = methods(choices)
    judged = choices[choices["collapsed"]] if choices["collapsed"].any() else choices
    for x, way in enumerate(ways):
        for i, method in enumerate(drawn):
            place = x + 0.7 * ((i + 0.5) / len(drawn) - 0.5)
            for collapsed, part in choices[choices["method"] == method].groupby("collapsed"):
                ax.plot([place] * len(part), part[way], marker=MARKS[method], color=STYLE[method][0], markersize=5, alpha=0.9 if collapsed else 0.25, linestyle="")  # fmt: skip
        ax.plot([x - 0.4, x + 0.4], [judged[way].median()] * 2, color="k", linewidth=2)
    ax.set_xticks(range(len(ways)), ways.values(), fontsize=9)
    ax.set_ylabel("accuracy there / best of the run", fontsize=9)
    ax.set_ylim(-0.04, 1.08)
    ax.spines[["top", "right"]].set_visible(False)
    median = {w: 100 * judged[w].median() for w in ways}
    which = f"{len(judged)} collapsed runs" if choices["collapsed"].any() else f"{len(judged)} runs, none collapsed"
    title = f"Kept of the best accuracy (median of {which}): {median['label_free']:.0f} % without labels,\n{median['validation']:.0f} % by labelled validation, {median['last']:.0f} % by the last step"
    look = {"linestyle": "", "markersize": 5}
    handles = [plt.Line2D([], [], marker=MARKS[m], color=STYLE[m][0], label=name(m), **look) for m in drawn]
    return finish(figure, title, handles)
