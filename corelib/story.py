"""What notebook 05 tells: the evidence that it reads, own runs or the committed sweep alike, and its tables.

Shares lie in [0, 1]; intervals are 95 %. Nothing here trains or knows how a run should end.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from corelib import runs, sweep
from corelib.alarm_study import GOOD, WINDOW, alarm_counts, fate
from corelib.config import ROOT, RunConfig
from corelib.findings import ANSWERS, CLEAR, FEW_SEEDS, mean_interval, tidy
from corelib.plots import methods, name
from corelib.plots_diagnostics import Missing
from corelib.rewards import METHODS
from corelib.stats import wilson

REFERENCE = ROOT / "outputs" / "reference"
MAKE = "python -m corelib sweep --full --out outputs/reference"


class Evidence(NamedTuple):
    """Runs to tell of: `table` a row a run (and question), `frame` their metrics with columns run and method under each
    other, `rollouts` method -> stored rollouts of one run."""

    table: pd.DataFrame
    frame: pd.DataFrame
    rollouts: dict[str, pd.DataFrame]

    def metrics(self) -> dict[str, pd.DataFrame]:
        """Run -> its metrics, without columns that it has not logged."""
        return {run: f.dropna(axis=1, how="all") for run, f in self.frame.groupby("run", sort=False)}


def committed(folder: str | Path = REFERENCE) -> Evidence:
    """The sweep's committed tables. Raises RuntimeError, with the command that makes them, when they are not there or broken."""
    folder = Path(folder)
    if not ((folder / "sweep.csv").is_file() and (folder / "sweep.parquet").is_file()):
        raise RuntimeError(f"{folder} holds no sweep.csv and sweep.parquet; `{MAKE}` makes them")
    try:
        table, frame = pd.read_csv(folder / "sweep.csv"), pd.read_parquet(folder / "sweep.parquet")
        if lacking := sorted({"question", "run", "method"} - set(table)):
            raise ValueError(f"sweep.csv has no column {', '.join(lacking)}")
        frame = frame.assign(run=frame["run"].astype(str))
        frame["method"] = frame["run"].map(table.drop_duplicates("run").set_index("run")["method"])
        stored = folder / "sweep_rollouts.parquet"
        rollouts = pd.read_parquet(stored) if stored.is_file() else pd.DataFrame({"method": []})
        by_method = {m: r.dropna(axis=1, how="all") for m, r in rollouts.groupby("method")}
    except (ValueError, KeyError, OSError) as error:
        raise RuntimeError(f"the sweep's tables in {folder} are broken ({error}); `{MAKE}` makes them again") from error  # fmt: skip
    return Evidence(table, frame, by_method)


def main_runs(evidence: Evidence) -> Evidence:
    """The sweep's nine methods under one setting; runs of other questions left out. Raises RuntimeError without any."""
    table = evidence.table[evidence.table["question"] == "nine"]
    if table.empty:
        there = ", ".join(map(str, evidence.table["question"].unique())) or "nothing"
        raise RuntimeError(f"this sweep holds no run of the question nine (it has: {there}); `python -m corelib sweep` makes them")  # fmt: skip
    return Evidence(table, evidence.frame[evidence.frame["run"].isin(table["run"])], evidence.rollouts)


def of_folders(folders: Sequence[str | Path]) -> Evidence:
    """The same of run folders, each once, also of runs without `gt/` columns.

    Raises RuntimeError when none of them has trained, and for two folders of one name.
    """
    rows, frames, rollouts = [], [], {}
    folders = {Path(folder).resolve(): None for folder in folders}
    for called, times in Counter(folder.name for folder in folders).items():
        if times > 1:
            raise RuntimeError(f"{times} of these run folders are called {called}, so their runs cannot be told apart; name one of them, or rename the others")  # fmt: skip
    for folder in folders:
        metrics, manifest = sweep.metrics_of(folder), runs.read_json(folder / "manifest.json")
        if metrics["step"].max() < 1 or "reward" not in metrics:
            print(f"{folder.name}: no metrics of a training, left out")
            continue
        config = manifest.get("config") if isinstance(manifest, dict) else None
        if not isinstance(config, dict) or not {"method", "seed"} <= set(config):
            print(f"{folder.name}: manifest.json does not say what was run, left out")
            continue
        settings = {s: config.get(s, getattr(RunConfig, s, None)) for s in sweep.SETTINGS}
        try:
            became = fate(metrics)
        except ValueError as broken:
            print(f"{folder.name}: {broken}; left out")
            continue
        rows.append({"question": "own", "run": folder.name, "method": config["method"], "seed": config["seed"], **settings} | became)  # fmt: skip
        frames.append(metrics.assign(run=folder.name, method=config["method"]))
        stored = runs.load_completions(folder) if config["method"] not in rollouts else ()
        if len(stored):
            rollouts[config["method"]] = stored
    if not rows:
        raise RuntimeError("none of these runs has trained: `python -m corelib run` makes four in about eight minutes")
    return Evidence(pd.DataFrame(rows), pd.concat(frames, ignore_index=True), rollouts)


def show(draw: Callable, *given, **more):
    """A figure or table, or the one sentence why these runs have none."""
    try:
        return draw(*given, **more)
    except Missing as reason:
        print(reason)
        return None


def styled(table: pd.DataFrame, formats: Mapping[str, str] | None = None, index: bool = True):
    """A table as a notebook shows it: text to the left, shares and steps in the given formats, "-" for what is not there."""
    text = [c for c in table if not pd.api.types.is_numeric_dtype(table[c])]
    look = table.style.format({c: f for c, f in (formats or {}).items() if c in table}, na_rep="-")
    look = look.set_properties(subset=text, **{"text-align": "left", "vertical-align": "top"})
    return look if index else look.hide(axis="index")


def paid(table: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """What a rollout of each method is paid for, and what the policy did at the end (last ten steps, mean over runs)."""
    ends = frame.groupby("run").tail(WINDOW)
    rows = []
    for method in methods(table):
        last = ends[ends["method"] == method]
        rows.append(
            {
                "method": name(method),
                "a rollout is paid": inspect.getdoc(METHODS[method]).splitlines()[0],
                "reward": last["reward"].mean(),
                "right": last["gt/accuracy"].mean() if "gt/accuracy" in last else np.nan,
                "without an answer": last["answers/none"].mean(),
                "commonest answer": last["answers/top_share"].mean(),
                "tokens": last["length/mean"].mean(),
                "entropy (nats)": last["entropy"].mean(),
            }
        )
    return pd.DataFrame(rows).set_index("method")


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """A row a method: accuracy at start, peak and end with the mean's interval, collapsed runs with Wilson's, rewards.

    Raises Missing where no run knows its accuracy.
    """
    known = _known(table)
    rows = {}
    for method in methods(known):
        part = known[known["method"] == method]
        mean, low, high = mean_interval(part["final"])
        fell = wilson(int(part["collapsed"].sum()), len(part))
        rows[name(method)] = {
            "runs": len(part), "start": part["start"].mean(), "peak": part["peak"].mean(), "final": mean,
            "final, low": max(low, 0.0), "final, high": min(high, 1.0), "collapsed": int(part["collapsed"].sum()),
            "share, low": fell.low, "share, high": fell.high,
            "reward at peak": part["reward_at_peak"].mean(), "reward": part["reward"].mean(),
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def markdown(table: pd.DataFrame) -> str:
    """The README's table: a row a method, means over seeds, the final accuracy with its interval over seeds."""
    made, alarms = over_seeds(table), table.groupby(table["method"].map(name))["alarm"].count()
    rows = ["| method | start | peak | final (95 %) | reward, peak to end | collapsed | alarm |", "|---|---|---|---|---|---|---|"]  # fmt: skip
    for method, (label, r) in zip(methods(_known(table)), made.iterrows(), strict=True):
        fell = f"{r['collapsed']:.0f} of {r['runs']:.0f}"
        rows.append(
            f"| `{method}` | {100 * r['start']:.0f} % | {100 * r['peak']:.0f} % | {100 * r['final']:.0f} % ({100 * r['final, low']:.0f} to {100 * r['final, high']:.0f}) "
            f"| {r['reward at peak']:.2f} to {r['reward']:.2f} | {f'**{fell}**' if r['collapsed'] else fell} | {alarms[label]} of {r['runs']:.0f} |"
        )
    return "\n".join(rows)


def answers(table: pd.DataFrame) -> str:
    """The README's list: each question of the sweep that has runs, and its answer with the seeds that it rests on.

    Below `FEW_SEEDS` it is called a hint: two equal settings of a method whose seeds differ as those of majority voting
    and I do are then told apart in a fifth to a half of all cases, because their differences have one sign.
    """
    lines = []
    for question, answer in ANSWERS.items():
        try:
            data = tidy(table, question)
            said = answer(data)
        except Missing:
            continue
        seeds = data.loc[~data["usual"], "seed"].nunique()
        hint = "" if seeds >= FEW_SEEDS else ": a hint"
        lines.append(f"- *{sweep.QUESTIONS[question]['asks']}* {said} ({seeds} seed{'s' if seeds > 1 else ''}{hint}).")
    return "\n".join(lines)


def _known(table: pd.DataFrame) -> pd.DataFrame:
    known = table[table["final"].notna()]
    if known.empty:
        raise Missing("none of these runs logged gt/accuracy, so nobody knows whether they collapsed; the alarm below needs no labels")  # fmt: skip
    return known.assign(collapsed=known["collapsed"].astype(bool))


def expectations(table: pd.DataFrame) -> pd.DataFrame:
    """What a lab of one or two seeds led us to expect, and what these runs say: columns expected, measured, held.

    `held` is decided by the data: yes, no (in half of the seeds or fewer), or open where seeds disagree, are fewer than
    `FEW_SEEDS`, or an interval crosses the line. As good as GT:
    the interval of the difference, seed by seed, lies above minus `CLEAR`; no: it lies below 0. Raises Missing without gt.
    """
    known = _known(table)
    if known.duplicated(["method", "seed"]).any():
        raise Missing("these runs hold a method and seed more than once, so seeds cannot be compared; name the runs of one setting")  # fmt: skip
    part = {m: known[known["method"] == m].set_index("seed") for m in methods(known)}
    rows = []

    def row(expected: str, measured: str, hits: int, of: int):
        rows.append({"expected": expected, "measured": measured, "held": _held(hits, of)})  # fmt: skip

    if "gt" in part:
        gain, low, high = mean_interval(part["gt"]["final"] - part["gt"]["start"])
        rows.append({"expected": "GT rises", "measured": f"final minus start {_points(gain, low, high)}", "held": "yes" if low > 0 else "no" if high < 0 else "open"})  # fmt: skip
    if "majority_voting" in part:
        mv = part["majority_voting"]
        hit = mv["collapsed"] & (mv["peak"] > mv["start"]) & (mv["reward"] > mv["reward_at_peak"])
        row("Majority voting rises, then falls below half its peak; its reward ends higher than at the peak", f"{hit.sum()} of {len(mv)} seeds; {mv['collapsed'].sum()} collapsed", hit.sum(), len(mv))  # fmt: skip
    for m in ("self_certainty", "entropy"):
        if m in part:
            fell = part[m]["collapsed"]
            row(f"{name(m)} degenerates", f"{fell.sum()} of {len(fell)} seeds collapsed", fell.sum(), len(fell))
    for m in ("co_rewarding_ii", "co_rewarding_iii"):
        if m in part and "gt" in part:
            rows.append({"expected": f"{name(m)} ends as good as GT"} | _as_good(part[m], part["gt"]))
    if {"co_rewarding_i", "majority_voting", "gt"} <= set(part):
        i, mv, gt = (part[m]["final"] for m in ("co_rewarding_i", "majority_voting", "gt"))
        both = sorted(set(i.index) & set(mv.index) & set(gt.index))
        hits = sum(mv[s] < i[s] < gt[s] for s in both)
        row("Co-rewarding-I ends between majority voting and GT", f"{hits} of {len(both)} seeds", hits, len(both))
    if "frozen_teacher" in part and "gt" in part:
        rows.append({"expected": "(nothing foreseen) Frozen teacher against GT"} | _as_good(part["frozen_teacher"], part["gt"]) | {"held": "-"})  # fmt: skip
    if "random" in part:
        fell = part["random"]["collapsed"]
        rows.append({"expected": "(nothing foreseen) Random reward, the control", "measured": f"{fell.sum()} of {len(fell)} seeds collapsed", "held": "-"})  # fmt: skip
    return pd.DataFrame(rows)


def _held(hits: int, of: int) -> str:
    return "no" if hits <= of / 2 else "yes" if hits == of and of >= FEW_SEEDS else "open"


def _as_good(ours: pd.DataFrame, gt: pd.DataFrame) -> dict:
    mean, low, high = mean_interval((ours["final"] - gt["final"]).dropna())
    held = "yes" if low > -CLEAR else "no" if high < 0 else "open"
    return {"measured": f"final minus GT's {_points(mean, low, high)}; {int(ours['collapsed'].sum())} of {len(ours)} collapsed", "held": held}  # fmt: skip


def _points(mean: float, low: float, high: float) -> str:
    return f"{100 * mean:+.1f} points" + ("" if low != low else f" ({100 * low:+.1f} to {100 * high:+.1f})")


def verdict(table: pd.DataFrame, judged: pd.DataFrame) -> str:
    """The README's sentences on the alarm. `table`: sweep.csv; `judged`: `diagnostics.judge_runs` of its runs."""
    away = judged[~judged["run"].isin(table.loc[table["question"] == "nine", "run"])]
    all_, others, fell = alarm_counts(judged), alarm_counts(away), judged["collapse"].notna()

    def share(row: pd.Series, what: str = "") -> str:
        return f"{row['count']:.0f} of {row['of']:.0f}{what} ({100 * row['low']:.0f} to {100 * row['high']:.0f} %)"

    kept = {way: [f"{100 * part[f'{way}_share'].median():.0f} %" for part in (judged, judged[fell])] for way in ("kept", "labelled", "last")}  # fmt: skip
    return (
        f"It saw {share(all_.loc['detected'], ' collapses')}, {all_.loc['in time', 'count']:.0f} of them before accuracy had halved, in the median {all_.loc['lead', 'median']:.0f} steps before. "
        f"It also went off in {share(all_.loc['false alarms'], ' runs that never fell below half of their peak')}; away from the setting that it was tuned on in {share(others.loc['false alarms'])}. "
        f"The weights that it keeps have {kept['kept'][0]} of the run's best accuracy in the median, those that labelled validation chooses {kept['labelled'][0]}; where a run collapsed, {kept['kept'][1]} and {kept['labelled'][1]}, its last ones {kept['last'][1]}."
    )


def moments(evidence: Evidence) -> dict[str, list[int]]:
    """Three stored steps of each method's rollouts: the first, the one nearest to its peak, the last.

    The peak is that of accuracy where it is known, or else what the alarm would keep, or else the last.
    """
    found = {}
    for method in methods(evidence.table):
        if method not in evidence.rollouts:
            continue
        rollouts = evidence.rollouts[method]
        stored = sorted(rollouts.loc[rollouts["view"] == "original", "step"].unique())
        if not stored:  # majority voting on rephrased questions alone: the case study shows original ones
            continue
        row = evidence.table[evidence.table["method"] == method].iloc[0]
        peak = next((s for s in (row["peak_step"], row["kept"], stored[-1]) if pd.notna(s)), None)
        found[method] = list(dict.fromkeys(int(s) for s in (stored[0], min(stored, key=lambda s: abs(s - peak)), stored[-1])))  # fmt: skip
    if not found:
        raise Missing("no rollouts were stored with these runs, so there is no case study")
    return found


def named(steps: Sequence[int]) -> list[str]:
    """What a method's `moments` are called: start, peak, end; where two of them fall together, start and end."""
    return ["start", "peak", "end"] if len(steps) == 3 else ["start", "end"][: len(steps)]


def choices(judged: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """How much of its best accuracy each way to choose a checkpoint keeps: a row a run that has a labelled validation.

    `judged`: `diagnostics.judge_runs(metrics)`. Columns run, method, last (the last step), label_free (`alarm.keep`),
    validation (the best `gt/validation`, the paper's way), collapsed. Raises Missing where no run has what it takes.
    """
    table = judged[judged["labelled_share"].notna()]
    if table.empty:
        raise Missing("no run here has both gt/accuracy and gt/validation, so kept checkpoints cannot be compared")
    return pd.DataFrame(
        {
            "run": table["run"],
            "method": [metrics[run]["method"].iloc[0] for run in table["run"]],
            "last": table["last_share"],
            "label_free": table["kept_share"],
            "validation": table["labelled_share"],
            "collapsed": table["collapse"].notna(),
        }
    )


def failures(judged: pd.DataFrame) -> pd.DataFrame:
    """Runs on which the alarm was wrong, from `diagnostics.judge_runs`, and what was left at the end of their best
    accuracy: a "false alarm" on a run that has lost a third of it is another thing than one on a run that is well.
    """
    wrong = judged.loc[judged["failure"] != "", ["run", "failure", "alarm", "collapse", "last_share", "reasons"]]
    return wrong.rename(columns={"alarm": "alarm at", "collapse": "halved at", "last_share": "left at the end"}).sort_values(["failure", "left at the end"])  # fmt: skip


def worlds(table: pd.DataFrame, judged: pd.DataFrame) -> pd.DataFrame:
    """The alarm by question, which is to say by what was changed of the lab it was tuned in; "k of n" in each cell.

    `table`: sweep.csv; `judged`: `diagnostics.judge_runs` of its runs. Its last line adds up all questions but the nine
    methods under the lab's own setting, a run of two questions once; in brackets 95 % intervals (Wilson).
    """
    parts = {q: table.loc[table["question"] == q, "run"] for q in dict.fromkeys(table["question"])}
    usual = set(parts.get("nine", ()))
    parts = {"the lab itself, other seeds" if q == "nine" else q.replace("_", " "): r for q, r in parts.items()}
    total = "all but the lab itself"
    if len(others := [run for run in dict.fromkeys(table["run"]) if run not in usual]):
        parts[total] = others
    shown = {"detected": "collapses seen", "in time": "in time", "false alarms": "false alarms", "kept": f"kept {100 * GOOD:.0f} % of the best"}  # fmt: skip
    rows = {}
    for part, names in parts.items():
        counts = alarm_counts(judged[judged["run"].isin(names)])
        rows[part] = {title: _counted(counts.loc[row], part == total) for row, title in shown.items()}
        rows[part] |= {"median lead (steps)": counts.loc["lead", "median"], "median kept": counts.loc["kept", "median"]}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("what was changed")


def _counted(row: pd.Series, interval: bool) -> str:
    if not row["of"]:
        return "-"
    return f"{row['count']:.0f} of {row['of']:.0f}" + (f" ({100 * row['low']:.0f} to {100 * row['high']:.0f} %)" if interval else "")  # fmt: skip


def levels(rollouts: pd.DataFrame) -> dict:
    """pair_id -> number of operations of a lab question; Missing for other data, whose rollouts do not hold a level."""
    first = rollouts[rollouts["view"] == "original"].groupby("pair_id")["prompt"].first()
    if first.empty or not first.str.match(r"Q \d+( [+-] \d+)+ = \?").all():
        raise Missing("these questions carry no difficulty, so there is no figure by level")
    return {pair: text.count(" + ") + text.count(" - ") for pair, text in first.items()}
