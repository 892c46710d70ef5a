"""Findings on made-up tables that come out both ways, the figures that bear them, and notebook 05 on made-up evidence."""

import json
import os
import subprocess
import sys

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest

from corelib import findings, plots_alarm, plots_sweep, runs, story, sweep
from corelib import plots_diagnostics as figures
from corelib.config import ROOT, load_config
from corelib.plots_diagnostics import Missing

USUAL = {name: getattr(load_config("lab"), name) for name in sweep.SETTINGS}


def rows(question, method, finals, fell=False, **settings):
    """One row of sweep.csv a seed, 10, 11, ...: peak 0.8 unless the end is higher."""
    return [
        USUAL | {"question": question, "run": f"{question}-{method}-{10 + i}-{settings}", "method": method, "seed": 10 + i, "start": 0.3, "peak": max(0.8, x), "peak_step": 30, "final": x, "reward_at_peak": 0.6, "reward": 0.9, "collapsed": fell, "collapse": 60 if fell else np.nan, "alarm": np.nan, "kept": 30, "tokens": 1000} | settings
        for i, x in enumerate(finals)
    ]  # fmt: skip


NINE = [
    *rows("nine", "gt", [0.9, 0.9]),
    *rows("nine", "majority_voting", [0.1, 0.2], True),
    *rows("nine", "co_rewarding_i", [0.7, 0.8]),
    *rows("nine", "co_rewarding_ii", [0.85, 0.87]),
    *rows("nine", "co_rewarding_iii", [0.85, 0.87]),
]
MV, ONE, TWO = "majority_voting", "co_rewarding_i", "co_rewarding_ii"

# question -> runs that answer it one way, its words, runs that answer it the other way, its words
BOTH_WAYS = {
    "views": (
        rows("views", MV, [0.1, 0.2], True, views="both"),
        "It is the label, not the data: on both views' questions majority voting ends at 15 % (collapsed 2 of 2), with the labels crossed (I) at 75 % (collapsed 0 of 2)",
        rows("views", MV, [0.75, 0.78], views="both"),
        "Label and data are not told apart",
    ),
    "near_copy": (
        rows("near_copy", ONE, [0.2, 0.3], True, rewording="near_copy"),
        "Near copies make Co-rewarding-I worse: it ends at 25 % (collapsed 2 of 2), with rich rewordings at 75 % (collapsed 0 of 2)",
        rows("near_copy", ONE, [0.72, 0.79], rewording="near_copy"),
        "Near copies make no clear difference to Co-rewarding-I",
    ),
    "learning_rate": (
        [r for m, x in ((MV, 0.85), (TWO, 0.86)) for r in rows("learning_rate", m, [x, x], learning_rate=1e-4)],
        "Majority voting ends below Co-rewarding-II at learning rate 0.00025; at 0.0001 they are not told apart",
        [r for m, x in ((MV, 0.1), (TWO, 0.86)) for r in rows("learning_rate", m, [x, x], learning_rate=1e-4)] + rows("learning_rate", "random", [0.1], True, learning_rate=1e-4),
        "Majority voting ends below Co-rewarding-II at learning rate 0.0001 and 0.00025; it collapses at 0.00025 only; a random reward collapses at 0.0001",
    ),
    "base": (
        [r for m, x in ((MV, 0.2), (TWO, 0.9)) for r in rows("base", m, [x, x], model="lab2")],
        "From a second base model majority voting ends below Co-rewarding-II too: 20 % (collapsed 0 of 2) against 90 %",
        [r for m, x in ((MV, 0.9), (TWO, 0.9)) for r in rows("base", m, [x, x], model="lab2")],
        "That majority voting ends below Co-rewarding-II is not settled for a second base model: 90 %",
    ),
    "teacher": (
        rows("teacher", TWO, [0.3, 0.4], True, teacher_start=1.0) + rows("teacher", TWO, [0.84, 0.88], teacher_start=0.1),
        "Co-rewarding-II ends lower with a first weight of 1 than with 0.022: at 1 at 35 % (collapsed 2 of 2), not 86 %",
        rows("teacher", TWO, [0.84, 0.88], teacher_start=1.0),
        "No teacher from 1 to 1 makes Co-rewarding-II clearly worse than 0.022",
    ),
    "horizon": (
        rows("horizon", ONE, [0.1, 0.2], True, steps=300),
        "Not all that is stable after 150 steps is so after 300: Co-rewarding-I 75 to 15 % (collapsed 2 of 2)",
        rows("horizon", ONE, [0.72, 0.8], steps=300),
        "What is stable after 150 steps is so after 300: Co-rewarding-I 75 to 76 % (collapsed 0 of 2)",
    ),
    "wrong_rewrites": (
        rows("wrong_rewrites", ONE, [0.5, 0.6], wrong_rewrites=0.2) + rows("wrong_rewrites", ONE, [0.4, 0.4], wrong_rewrites=0.3),
        "Co-rewarding-I ends lower from 20 % wrong rewrites on: with 30 % at 40 % (collapsed 0 of 2)",
        rows("wrong_rewrites", ONE, [0.7, 0.8], wrong_rewrites=0.3),
        "Co-rewarding-I bears wrong rewrites: with 30 % at 75 %",
    ),
    "group": (
        [r for g in (4, 16) for r in rows("group", MV, [0.1, 0.1], True, rollouts=g)],
        "A larger group does not clearly delay the collapse of majority voting: collapsed 2 of 2, 2 of 2, 2 of 2 at G = 4, 8, 16, at step 60, 60, 60 (median)",
        rows("group", MV, [0.1, 0.1], True, rollouts=4) + rows("group", MV, [0.9, 0.9], rollouts=16) + rows("group", ONE, [0.2, 0.3], True, rollouts=16),
        "A larger group saves majority voting from collapse in some seeds: collapsed 2 of 2, 2 of 2, 0 of 2 at G = 4, 8, 16; Co-rewarding-I collapses at G = 16 (2 of 2)",
    ),
    "kl": (
        rows("kl", MV, [0.9, 0.8], beta=0.05) + rows("kl", MV, [0.1, 0.1], True, beta=0.005),
        "A KL penalty of 0.05 makes majority voting collapse less often: it ends at 10 % (collapsed 2 of 2) with 0.005 and 85 % (collapsed 0 of 2) with 0.05, 15 % (collapsed 2 of 2) without",
        rows("kl", MV, [0.1, 0.1], True, beta=0.05),
        "No KL penalty tried keeps majority voting from falling below half of its peak",
    ),
    "equality": (
        rows("equality", MV, [0.1], True, answer_equality="released"),
        "Released string equality or equivalence: the same run to the last digit",
        rows("equality", MV, [0.4], answer_equality="released"),
        "The released string equality changes how the run ends: 40 %",
    ),
}  # fmt: skip


def test_every_question_of_the_sweep_has_a_figure():
    assert {"nine", *BOTH_WAYS} == {"nine", *findings.ANSWERS} == set(sweep.QUESTIONS)
    assert set(findings.VARIED) == set(findings.ANSWERS)
    assert {setting for setting, _ in findings.VARIED.values()} <= set(sweep.SETTINGS)


@pytest.mark.parametrize("question", BOTH_WAYS)
def test_a_finding_can_come_out_either_way(question):
    one, words, other, others = BOTH_WAYS[question]
    for made, said in ((one, words), (other, others)):
        table = pd.DataFrame(NINE + made)
        title = findings.ANSWERS[question](findings.tidy(table, question))
        assert title.startswith(said), title
        figure = plots_sweep.question(table, question)
        shown = figure._suptitle.get_text().replace("\u00a0", " ").replace("\n", " ")
        assert shown == title
        crosses = sum(line.get_marker() == "X" for line in figure.axes[0].lines)
        assert crosses == findings.tidy(table, question)["collapsed"].sum()
        plt.close(figure)


def test_a_question_that_is_not_there_says_so_and_near_seeds_are_not_told_apart():
    table = pd.DataFrame(NINE)
    with pytest.raises(Missing, match="kl: no finished runs yet"):
        plots_sweep.question(table, "kl")
    alone = pd.DataFrame(rows("kl", MV, [0.1], True, beta=0.05))
    with pytest.raises(Missing, match="nine-method runs that it is compared with are not there"):
        plots_sweep.question(alone, "kl")
    half = pd.DataFrame(NINE + rows("views", MV, [0.1], True, views="rephrased"))
    with pytest.raises(Missing, match="Majority voting at both are not done yet"):
        plots_sweep.question(half, "views")


def seeds(*finals):
    return pd.DataFrame({"seed": range(10, 10 + len(finals)), "final": finals})


def test_settings_are_told_apart_seed_by_seed():
    a, b = seeds(0.80, 0.81), seeds(0.84, 0.85)
    assert findings._apart(a, b) == 0  # four points
    more = b.assign(final=b["final"] + 0.02)
    assert findings._apart(a, more) == -1 and findings._apart(more, a) == 1
    assert findings._apart(seeds(0.1, 0.9), b) == 0  # two seeds of two signs
    assert findings._apart(seeds(0.3, 0.4), seeds(0.4, 0.5)) == -1  # they overlap, but each seed ends lower
    # differences -.4, -.5, -.6: mean -.5, sd .1, t(2) = 4.303: half .248
    near, rich = seeds(0.3, 0.4, 0.2), seeds(0.7, 0.9, 0.8)
    assert findings._apart(near, rich) == -1
    assert findings._by(near, rich) == "; difference -50 points (-75 to -25)"
    # differences -.5, -.5, +.1: sd .346, half .861
    assert findings._apart(seeds(0.2, 0.4, 0.9), rich) == 0 and findings._by(a, b) == ""
    assert findings._apart(seeds(0.2), seeds(0.9).assign(seed=7)) == 0  # no seed in common


def test_a_question_whose_runs_are_partly_done_says_so():
    for question, made in (("base", rows("base", "gt", [0.9], model="lab2")), ("kl", rows("kl", ONE, [0.9], beta=0.05))):  # fmt: skip
        with pytest.raises(Missing, match="Majority voting .* not done yet"):
            plots_sweep.question(pd.DataFrame(NINE + made), question)
    plt.close("all")


def test_expectations_refuse_two_runs_of_a_method_and_seed():
    """As with `-p root outputs/runs`, where runs of several settings lie side by side."""
    with pytest.raises(Missing, match="more than once"):
        story.expectations(pd.DataFrame(NINE + [row | {"run": "again"} for row in NINE]))


def test_broken_evidence_names_the_command_that_makes_it_again(tmp_path):
    evidence(tmp_path)
    whole = (tmp_path / "sweep.parquet").read_bytes()
    for name, broken, why in (
        ("sweep.parquet", whole[: len(whole) // 2], ""),
        ("sweep_rollouts.parquet", b"PAR1", ""),
        ("sweep.csv", b"", ""),
        ("sweep.csv", b"run,method\na,gt\n", "sweep.csv has no column question"),
    ):
        evidence(tmp_path)
        assert len(story.committed(tmp_path).table) == 10
        (tmp_path / name).write_bytes(broken)
        with pytest.raises(RuntimeError, match=f"broken \\({why}.*corelib sweep --full"):
            story.committed(tmp_path)


def test_a_sweep_without_the_nine_methods_says_what_it_has(tmp_path):
    evidence(tmp_path)
    told = story.committed(tmp_path)
    kl = told._replace(table=told.table[told.table["question"] == "kl"])
    with pytest.raises(RuntimeError, match=r"no run of the question nine \(it has: kl\); `python -m corelib sweep`"):
        story.main_runs(kl)
    with pytest.raises(RuntimeError, match="it has: nothing"):
        story.main_runs(told._replace(table=told.table[:0]))


def test_own_run_folders_are_told_once_and_apart(tmp_path, capsys):
    gt, mv = (tmp_path / n for n in folders(tmp_path))
    assert story.of_folders([gt, mv, gt, tmp_path / "majority_voting" / ".." / "gt"]).table["run"].tolist() == ["gt", MV]  # fmt: skip
    folders(tmp_path / "other")
    with pytest.raises(RuntimeError, match="2 of these run folders are called gt"):
        story.of_folders([gt, mv, tmp_path / "other" / "gt"])
    for manifest in ({"versions": {}}, ["gt"], {"config": {"seed": 0}}):
        runs.write_json(mv / "manifest.json", manifest)
        assert story.of_folders([gt, mv]).table["run"].tolist() == ["gt"]
        assert "majority_voting: manifest.json does not say what was run, left out" in capsys.readouterr().out
    lines = (gt / "metrics.jsonl").read_text()
    (gt / "metrics.jsonl").write_text("".join(json.dumps(row | {"entropy": "low"}) + "\n" for row in map(json.loads, lines.splitlines())))  # fmt: skip
    folders(third := tmp_path / "third")
    runs_of = [gt, (third / MV).rename(third / "whole")]
    assert story.of_folders(runs_of).table["run"].tolist() == ["whole"]
    assert "gt: column entropy of these metrics holds text" in capsys.readouterr().out


def test_moments_are_those_of_original_questions():
    rephrased = rollouts().assign(view="rephrased")
    told = story.Evidence(pd.DataFrame(NINE), pd.DataFrame(), {"gt": rollouts(), MV: rephrased})
    assert list(story.moments(told)) == ["gt"]
    with pytest.raises(Missing, match="no difficulty"):
        story.levels(rephrased)
    for peak, kept, found in ((np.nan, 30, [1, 20, 40]), (np.nan, 36, [1, 40]), (np.nan, np.nan, [1, 40]), (np.nan, None, [1, 40])):  # fmt: skip
        unknown = pd.DataFrame(NINE).astype({"kept": object}).assign(peak_step=peak, kept=kept)
        assert story.moments(told._replace(table=unknown)) == {"gt": found}
    assert story.named([1, 20, 40]) == ["start", "peak", "end"] and story.named([1, 40]) == ["start", "end"]
    assert story.named([1]) == ["start"]


def test_student_interval_by_hand():
    mean, low, high = findings.mean_interval([0.1, 0.2, 0.3])
    half = 4.303 * 0.1 / 3**0.5  # t of two degrees of freedom
    assert (mean, low, high) == pytest.approx((0.2, 0.2 - half, 0.2 + half), abs=1e-4)
    assert np.isnan(findings.mean_interval([0.5])[1])


def test_expectations_are_decided_by_the_data():
    three = [*rows("nine", "gt", [0.9] * 3), *rows("nine", MV, [0.1] * 3, True), *rows("nine", ONE, [0.7] * 3)]
    held = story.expectations(pd.DataFrame(three)).set_index("expected")["held"]
    assert (
        held["Majority voting rises, then falls below half its peak; its reward ends higher than at the peak"] == "yes"
    )
    assert held["Co-rewarding-I ends between majority voting and GT"] == "yes"
    assert set(story.expectations(pd.DataFrame(NINE)).iloc[1:3]["held"]) == {"open"}  # two seeds settle nothing
    worse = [*rows("nine", "gt", [0.9, 0.91, 0.9]), *rows("nine", TWO, [0.6, 0.61, 0.6]), *rows("nine", MV, [0.9, 0.9, 0.2])]  # fmt: skip
    table = pd.DataFrame(worse)
    table.loc[(table["method"] == MV) & (table["final"] < 0.5), "collapsed"] = True
    held = story.expectations(table).set_index("expected")
    assert held.loc["Co-rewarding-II ends as good as GT", "held"] == "no"
    mv = held.loc["Majority voting rises, then falls below half its peak; its reward ends higher than at the peak"]
    assert mv["held"] == "no" and mv["measured"] == "1 of 3 seeds; 1 collapsed"
    summary = story.over_seeds(table)
    assert summary.loc["Majority voting", ["runs", "collapsed"]].tolist() == [3, 1]
    assert summary.loc["Co-rewarding-II", "final"] == pytest.approx(1.81 / 3)


def steps(run, method, collapses, seed=0, length=40):
    """Metrics of one run with everything that notebook 05 may draw; accuracy .8 falls to .1 after half of the steps."""
    t, noise = np.arange(1, length + 1), np.random.default_rng(seed)
    fallen = (t > length // 2) & collapses
    frame = pd.DataFrame({"step": t, "run": run, "method": method, "tokens": 100 * t})
    for column, value in {
        "reward": 0.4 + 0.01 * t, "gt/accuracy": np.where(fallen, 0.1, 0.8), "gt/policy_label_accuracy": np.where(fallen, 0.1, 0.9),
        "gt/label_accuracy": np.where(fallen, 0.1, 0.9), "gt/accuracy_rephrased": 0.8, "answers/none": np.where(fallen, 0.7, 0.05),
        "answers/top_share": np.where(fallen, 0.6, 0.15), "answers/distinct_group": 0.4, "answers/support": 0.7, "entropy": 0.1, "length/mean": 14.0,
    }.items():  # fmt: skip
        frame[column] = value * (1 + 0.01 * noise.standard_normal(length))
    frame["gt/validation"] = np.where(t % 10 == 0, np.where(fallen, 0.1, 0.8), np.nan)
    return frame


def test_the_opening_figure_counts_and_can_say_the_contrary():
    made = [(m, s) for m in ("gt", MV, ONE, TWO) for s in (10, 11)]
    for collapses, title in (
        (True, "Majority voting collapses in 2 of 2 seeds and is paid more and more all the same in 2\nOf the others collapsed: GT reward 0 of 2, Co-rewarding-I 0 of 2 and Co-rewarding-II 0 of 2"),
        (False, "Majority voting collapses in 0 of 2 seeds\nOf the others collapsed:"),
    ):  # fmt: skip
        table = pd.DataFrame([{"question": "nine", "run": f"{m}-{s}", "method": m, "seed": s, "collapsed": collapses and m == MV} for m, s in made])  # fmt: skip
        metrics = pd.concat([steps(f"{m}-{s}", m, collapses and m == MV, s).drop(columns="method") for m, s in made])
        figure = plots_sweep.collapse_figure(table, metrics)
        assert figure._suptitle.get_text().startswith(title)
        reward, accuracy = figure.axes
        assert len(reward.lines) == 4 and len(accuracy.collections) == 4  # a line a method, a band over two seeds
        assert accuracy.get_ylabel() == "rollouts that are right (share)" and reward.get_xlabel() == "training step"
        plt.close(figure)
    blind = table["method"] == TWO  # its runs logged no truth, so nobody knows whether they collapsed
    figure = plots_sweep.collapse_figure(table.assign(collapsed=table["collapsed"].astype(object).mask(blind, np.nan)), metrics)  # fmt: skip
    assert "Co-rewarding-II" not in figure._suptitle.get_text() and "Co-rewarding-I 0 of 2" in figure._suptitle.get_text()  # fmt: skip
    with pytest.raises(Missing, match="corelib sweep"):
        plots_sweep.collapse_figure(table.assign(question="kl"), metrics)


def test_peaks_and_ends_name_those_that_collapsed():
    assert (
        plots_sweep.ends(pd.DataFrame(NINE))._suptitle.get_text().startswith("Below half their peak: Majority voting")
    )
    stable = pd.DataFrame(rows("nine", "gt", [0.9, 0.8]))
    assert plots_sweep.ends(stable)._suptitle.get_text() == "No run fell below half its peak"
    with pytest.raises(Missing, match="gt/accuracy"):
        plots_sweep.ends(stable.assign(final=np.nan))
    plt.close("all")


def test_the_papers_figures_are_compared_by_the_data():
    made = [("gt", False), (MV, True), ("entropy", True), ("self_certainty", True), (TWO, False), (ONE, False)]
    table = pd.DataFrame([r for m, fell in made for r in rows("nine", m, [0.1 if fell else 0.9] * 2, fell)])
    frame = pd.concat([steps(r.run, r.method, r.collapsed) for r in table.itertuples()])
    verdict = findings.paper_figures(table, frame).set_index("figure")["verdict"]
    assert verdict["1, 3"] == "same" and verdict["3"] == "-" and verdict["5, 10"] == "-"
    falls = np.where(frame["gt/validation"].notna(), np.where(frame["step"] <= 20, 0.8, 0.1), np.nan)
    rises = np.where(frame["gt/validation"].notna(), np.where(frame["step"] <= 20, 0.1, 0.8), np.nan)
    for validation, words in ((0.5, "Entropy 0 of 2"), (falls, "GT reward 2 of 2"), (rises, "Majority voting 0 of 2")):
        other = (
            findings.paper_figures(table, frame.assign(**{"gt/validation": validation})).set_index("figure").loc["1, 3"]
        )
        assert other["verdict"] == "different" and words in other["here"]  # all fall: not the paper's picture either
    lacking = findings.paper_figures(table, frame).iloc[4]  # no frozen teacher among the runs
    assert lacking["here"] == "no finished run of Frozen teacher" and lacking["verdict"] == "-"


def test_the_readmes_answers_are_those_of_the_questions_that_have_runs():
    table = pd.DataFrame([*NINE, *rows("near_copy", ONE, [0.1], True, rewording="near_copy"), *rows("kl", MV, [0.1, 0.2], True, beta=0.05)])  # fmt: skip
    near, kl = story.answers(table).splitlines()
    assert near == "- *Are rewordings that are near copies why Co-rewarding-I fails?* Near copies make Co-rewarding-I worse: it ends at 10 % (collapsed 1 of 1), with rich rewordings at 70 % (collapsed 0 of 1) (1 seed: a hint)."  # fmt: skip
    assert kl.startswith("- *Does a KL penalty") and kl.endswith("(2 seeds: a hint).")
    assert story.answers(pd.DataFrame(NINE)) == ""


def test_the_alarm_is_counted_by_what_was_changed():
    """Of three other runs two collapse, one unseen; the run that two questions share counts once in the sum."""
    table = pd.DataFrame({"question": ["nine", "nine", "kl", "kl", "base", "base"], "run": list("abcdde")})
    judged = pd.DataFrame(
        {"run": list("abcde"), "collapse": [50, np.nan, 60, np.nan, 70], "alarm": [40, np.nan, np.nan, 30, 90], "kept_share": [0.99, 1, 0.5, 1, np.nan]}
    ).assign(lead=lambda t: t["collapse"] - t["alarm"], failure="", labelled_share=np.nan)  # fmt: skip
    got = story.worlds(table, judged)
    assert list(got.index) == ["the lab itself, other seeds", "kl", "base", "all but the lab itself"]
    assert got.loc["the lab itself, other seeds"].tolist() == ["1 of 1", "1 of 1", "0 of 1", "2 of 2", 10, 0.995]
    assert got.loc["base", ["collapses seen", "in time", "false alarms"]].tolist() == ["1 of 1", "0 of 1", "1 of 1"]
    assert got.loc["kl", ["collapses seen", "in time"]].tolist() == ["0 of 1", "0 of 1"]
    total = got.loc["all but the lab itself"]
    assert total["collapses seen"] == "1 of 2 (9 to 91 %)"  # by hand: (1 + 1.92 -+ 1.96 sqrt(0.5 + 0.96)) / (2 + 3.84)
    assert total["kept 95 % of the best"].startswith("1 of 2 (") and total["false alarms"].startswith("1 of 1 (")
    assert list(story.worlds(table[:2], judged).index) == ["the lab itself, other seeds"]


def test_alarm_figures_of_made_up_runs():
    by_run = {"sees": steps("sees", MV, True), "well": steps("well", "gt", False, 1)}
    figure = plots_alarm.strengths(by_run)
    said = figure._suptitle.get_text()
    assert said.startswith("The alarm speaks for sees at step 2") and said.endswith("1 of 2 stay quiet")
    assert plots_alarm.strengths({"well": by_run["well"]})._suptitle.get_text() == "The alarm is silent"
    chosen = pd.DataFrame({"method": [MV, "gt"], "last": [0.2, 1.0], "label_free": [0.9, 1.0], "validation": [0.95, 1.0], "collapsed": [True, False]})  # fmt: skip
    assert plots_alarm.kept(chosen)._suptitle.get_text() == "Kept of the best accuracy (median of 1 collapsed runs): 90 % without labels,\n95 % by labelled validation, 20 % by the last step"  # fmt: skip
    assert "2 runs, none collapsed" in plots_alarm.kept(chosen.assign(collapsed=False))._suptitle.get_text()
    plt.close("all")


METHODS = ("gt", MV, "entropy", TWO)


def evidence(folder):
    """sweep.csv, sweep.parquet and sweep_rollouts.parquet of made-up runs: four methods, two seeds, one question."""
    made = [(m, s, m in (MV, "entropy")) for m in METHODS for s in (10, 11)]
    table = pd.DataFrame([r | {"run": f"{m}-{s}", "seed": s} for m, s, fell in made for r in rows("nine", m, [0.1 if fell else 0.8], fell)])  # fmt: skip
    metrics = pd.concat([steps(f"{m}-{s}", m, fell, s).drop(columns="method") for m, s, fell in made])
    kl = pd.DataFrame(rows("kl", MV, [0.8, 0.8], beta=0.05)).assign(run=["kl-10", "kl-11"])
    metrics = pd.concat([metrics, *(steps(f"kl-{s}", MV, False, s).drop(columns="method") for s in (10, 11))])
    pd.concat([table, kl]).to_csv(folder / "sweep.csv", index=False)
    metrics.assign(run=metrics["run"].astype("category")).to_parquet(folder / "sweep.parquet", index=False)
    pd.concat([rollouts().assign(method=m) for m in METHODS]).to_parquet(folder / "sweep_rollouts.parquet", index=False)


def rollouts():
    """Two questions, four rollouts each, at three steps; a text that would be markup if it were not escaped."""
    made = [
        {"step": step, "pair_id": pair, "view": "original", "prompt": f"Q {pair} + 2 = ?", "completion": f"<b>\\boxed{{ {a} }}</b>", "answer": a, "label": "3", "truth": str(pair + 2), "judge": 1.0, "advantage": 0.0}
        for step in (1, 20, 40) for pair in (1, 2) for a in ("3", "3", "4", None)
    ]  # fmt: skip
    return pd.DataFrame(made)


def folders(root, truth=True):
    """Two run folders as notebook 03 leaves them; without `truth` the training logged nothing of the answers."""
    for method in ("gt", MV):
        config = load_config("lab", method=method, seed=0)
        folder = root / method
        (folder / "completions").mkdir(parents=True)
        runs.write_json(folder / "manifest.json", {"config": config.to_dict()})
        frame = steps(method, method, method == MV).drop(columns=["run", "method"])
        if not truth:
            frame = frame.drop(columns=[c for c in frame if c.startswith("gt/")])
        for row in frame.to_dict("records"):
            runs.append_metrics(folder, {k: v for k, v in row.items() if v == v})
        rollouts().to_parquet(folder / "completions" / "completions_00001.parquet")
        runs.write_status(folder, "done")
    return ["gt", MV]


def test_own_runs_are_told_with_and_without_truth(tmp_path, capsys):
    told = story.of_folders([tmp_path / "with" / n for n in folders(tmp_path / "with")])
    table = told.table.set_index("method")
    assert table.loc[MV, "collapsed"] and not table.loc["gt", "collapsed"]
    assert table.loc[MV, "collapse"] == 26  # means of ten: five steps of .1 after .8 give .45, six .38
    assert story.moments(told) == {"gt": [1, 20, 40], MV: [1, 20, 40]} or story.moments(told)[MV][0] == 1
    blind = story.of_folders([tmp_path / "blind" / n for n in [*folders(tmp_path / "blind", truth=False), "absent"]])
    assert "absent: no metrics" in capsys.readouterr().out
    assert blind.table["collapsed"].isna().all() and blind.table["alarm"].notna().sum() == 1
    for draw, given in ((story.over_seeds, blind.table), (story.expectations, blind.table), (figures.reward_and_accuracy, blind.frame), (figures.votes, blind.frame), (figures.held_out, blind.frame)):  # fmt: skip
        assert story.show(draw, given) is None
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 5 and all("gt/" in line for line in said)
    paid = story.paid(blind.table, blind.frame)
    assert paid.loc["Majority voting", "without an answer"] == pytest.approx(0.7, abs=0.02)
    assert paid["right"].isna().all()
    with pytest.raises(RuntimeError, match="none of these runs has trained"):
        story.of_folders([tmp_path / "absent"])
    with pytest.raises(RuntimeError, match="corelib sweep --full"):
        story.committed(tmp_path)


def test_notebook_05_refuses_a_root_without_runs(tmp_path):
    """Its first cells in this process; told of nothing else, it would tell of the committed sweep."""
    evidence(tmp_path)
    book = nbformat.read(ROOT / "notebooks" / "05_collapse_diagnostics.ipynb", as_version=4)
    parameters, loading = book.cells[1].source, book.cells[2].source

    def told(root):
        space = {}
        exec(parameters, space)
        exec(loading, space | {"root": str(root), "out": str(tmp_path / "out"), "reference": str(tmp_path)})

    (tmp_path / "runs" / "half").mkdir(parents=True)
    (tmp_path / "runs" / "half" / "status.json").write_text('{"sta')
    for root in (tmp_path / "runs", tmp_path / "misspelt"):
        with pytest.raises(ValueError, match=f"no run that has ended lies in root {root}"):
            told(root)
    told("")
    folders(tmp_path / "runs")
    told(tmp_path / "runs")


def notebook(out, *parameters):
    command = [sys.executable, "-m", "papermill", str(ROOT / "notebooks" / "05_collapse_diagnostics.ipynb"), str(out), "--kernel", "python3", *parameters]  # fmt: skip
    env = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"} | {
        "OMP_NUM_THREADS": "1"
    }  # inline, as for a reader
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT / "notebooks", env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    cells = nbformat.read(out, as_version=4).cells
    outputs = [o for c in cells for o in c.get("outputs", [])]
    text = "\n".join(o.get("text", "") + o.get("data", {}).get("text/html", "") + o.get("data", {}).get("text/markdown", "") for o in outputs)  # fmt: skip
    return text, sum("image/png" in o.get("data", {}) for o in outputs)


def test_notebook_05_tells_the_story_without_any_training(tmp_path):
    evidence(tmp_path)
    text, images = notebook(tmp_path / "o.ipynb", "-r", "reference", str(tmp_path), "-r", "out", str(tmp_path / "out"))
    assert images == 11  # parting, held out, ends, votes, diversity, strengths, timeline, ROC, kept, opening, KL
    assert "told: 8 runs of the committed sweep, 4 methods, seeds 10, 11" in text
    assert "&lt;b&gt;" in text and "<b>\\boxed" not in text
    assert (
        "near_copy: no finished runs yet" in text and f"(2 of {len(sweep.asked(['kl'])['kl'])} runs are done)" in text
    )
    assert (tmp_path / "out" / "summary.csv").is_file() and (tmp_path / "out" / "collapse.png").is_file()


@pytest.mark.parametrize("truth", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_notebook_05_tells_of_own_runs_and_then_of_the_sweep(tmp_path, truth):
    evidence(tmp_path)
    names = folders(tmp_path / "runs", truth)
    given = ["-r", "reference", str(tmp_path), "-r", "out", str(tmp_path / "out"), "-r", "root", str(tmp_path / "runs")]
    text, images = notebook(tmp_path / "o.ipynb", *given, "-r", "runs", ",".join(names))
    assert "told: 2 own runs" in text and "## The same on five seeds: the committed sweep" in text
    assert ("none of these runs logged gt/accuracy" in text) == (not truth)
    assert images >= (12 if truth else 7)
    assert ">4 of 4<" in text  # collapses that the alarm saw in the sweep, told beside own runs too
