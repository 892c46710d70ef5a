"""How good the alarm is, against the truth that it does not see; ROC data, and what each of its constants buys.

Runs come as name -> metrics, or as one long table with a column `run`, such as `outputs/reference/sweep.parquet`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from corelib.alarm import RULE, Rule, alarm, evidence, first_fired, keep
from corelib.stats import wilson

WINDOW = 10  # steps of the running mean by which accuracy is judged
GOOD = 0.95  # share of the best accuracy that a kept checkpoint should have; the aim

Runs = Mapping[str, pd.DataFrame] | pd.DataFrame


def by_run(runs: Runs) -> dict[str, pd.DataFrame]:
    """Metrics by run. Raises ValueError for no runs, or a table without a column `run`."""
    if isinstance(runs, pd.DataFrame):
        if "run" not in runs:
            raise ValueError("this table has no column `run`; several runs need one to be told apart")
        runs = {str(name): part for name, part in runs.groupby("run", sort=False, observed=True)}
    if not runs:
        raise ValueError("no runs; the alarm's evaluation needs at least one")
    return dict(runs)


def rollout_accuracy(metrics: pd.DataFrame) -> pd.Series:
    """Share of the rollouts that are right by step: on the original view, or on the other where a run draws only that.

    Raises ValueError where the run has none (it was trained without labels).
    """
    trained = metrics[metrics["step"] > 0].set_index("step").sort_index()
    for column in ("gt/accuracy", "gt/accuracy_rephrased"):
        if column in trained and trained[column].notna().any():
            return trained[column].dropna()
    raise ValueError("these metrics have no gt/accuracy; without labels nobody can say whether a run collapsed")


def smooth_accuracy(metrics: pd.DataFrame, window: int = WINDOW) -> pd.Series:
    """Running mean of `rollout_accuracy`."""
    return rollout_accuracy(metrics).rolling(window, min_periods=window).mean()


def collapse_step(metrics: pd.DataFrame, window: int = WINDOW) -> int | None:
    """When the running mean of accuracy first lies below half its peak so far; None when never. The issue's definition."""
    smooth = smooth_accuracy(metrics, window)
    low = smooth < smooth.cummax() / 2
    return int(low.idxmax()) if low.any() else None


def accuracy_at(metrics: pd.DataFrame, step: int | None) -> float:
    """Accuracy around a step over the run's best: ten-step means of the rollouts; at the ends the nearest ten steps.

    nan for no step, and where fewer than ten are known.
    """
    smooth = smooth_accuracy(metrics).dropna()
    if smooth.empty or step is None:
        return float("nan")
    return float(smooth.iloc[abs(smooth.index - (step + WINDOW // 2)).argmin()] / smooth.max())


def fate(metrics: pd.DataFrame) -> dict:
    """What became of one run, in the columns of sweep.csv; nan where its metrics do not say.

    A run of fewer than ten steps is judged by as many as it has. Without labels nobody knows whether it collapsed.
    """
    trained = metrics[metrics["step"] > 0].set_index("step").sort_index()
    window, found = min(WINDOW, len(trained)), alarm(metrics)
    reward = trained["reward"].rolling(window).mean()
    row = {"start": np.nan, "peak": np.nan, "peak_step": np.nan, "final": np.nan, "reward_at_peak": np.nan}
    row |= {"collapsed": np.nan, "collapse": np.nan, "label_accuracy": np.nan, "held_out": np.nan}
    row |= {"reward": reward.iloc[-1], "alarm": found.step, "kept": keep(metrics), "tokens": metrics.get("tokens", pd.Series([np.nan])).max()}  # fmt: skip
    if "gt/validation" in metrics:
        row["held_out"] = metrics["gt/validation"].dropna().iloc[-1]
    if "gt/label_accuracy" in trained:
        row["label_accuracy"] = trained["gt/label_accuracy"].tail(window).mean()
    try:
        right = rollout_accuracy(metrics)
    except ValueError:
        return row
    smooth, fell = smooth_accuracy(metrics, window), collapse_step(metrics, window)
    row |= {"start": right.head(3).mean(), "peak": smooth.max(), "peak_step": smooth.idxmax()}
    row |= {"final": smooth.iloc[-1], "reward_at_peak": reward.get(smooth.idxmax())}
    return row | {"collapsed": fell is not None, "collapse": fell}


def judge_runs(runs: Runs, rule: Rule = RULE, scale: float = 1.0) -> pd.DataFrame:
    """The alarm on every run, a row a run.

    `collapse` and `alarm` are steps (nan for never), `lead` their difference (positive: warned before), `failure`
    "missed", "false alarm", "late" or "". `kept`: step of `alarm.keep`, `labelled`: the step that the labelled validation
    would keep (nan without validations); `kept_share`, `labelled_share` and `last_share`: `accuracy_at` these and the last
    step, on rollouts that neither saw.
    """
    rows = []
    for name, metrics in by_run(runs).items():
        fell, said = collapse_step(metrics), alarm(metrics, rule, scale)
        kept = keep(metrics, rule, scale)
        lead = fell - said.step if fell is not None and said.step is not None else float("nan")
        if fell is None:
            failure = "" if said.step is None else "false alarm"
        else:
            failure = "missed" if said.step is None else "late" if lead < 0 else ""
        valid = metrics.dropna(subset="gt/validation") if "gt/validation" in metrics else metrics.iloc[:0]
        labelled = valid.loc[valid["gt/validation"].idxmax(), "step"] if len(valid) else None
        rows.append(
            {
                "run": name, "steps": int(metrics["step"].max()), "collapse": fell, "alarm": said.step, "lead": lead,
                "failure": failure, "kept": kept, "kept_share": accuracy_at(metrics, kept), "labelled": labelled,
                "labelled_share": accuracy_at(metrics, labelled),
                "last_share": accuracy_at(metrics, int(metrics["step"].max())),
                "reasons": "; ".join(said.reasons),
            }
        )  # fmt: skip
    return pd.DataFrame(rows).astype(dict.fromkeys(("collapse", "alarm", "kept", "labelled"), float))


def evaluate_alarm(runs: Runs, rule: Rule = RULE, scale: float = 1.0) -> pd.DataFrame:
    """`alarm_counts` of `judge_runs`. Raises ValueError for no runs."""
    return alarm_counts(judge_runs(runs, rule, scale))


def alarm_counts(judged: pd.DataFrame) -> pd.DataFrame:
    """How good the alarm is: counts with 95 % Wilson intervals, leads, the checkpoint kept; a row a measure.

    `judged`: `judge_runs`, or some of its rows. Columns count, of, share, low, high, median, note. Rows: detected (among
    collapsed runs), in time (before accuracy is below half its peak), false alarms (among the others), lead (steps), kept
    (count: runs whose kept checkpoint has `GOOD` of the best accuracy; median of that share), labelled (the same for the
    labelled validation's choice). `note` lists the failures, or the range and quartiles. Runs are taken as independent;
    the same seed run twice is not.
    """
    fell = judged["collapse"].notna()
    rows = {}
    for name, among, hit, wrong in (
        ("detected", fell, judged["alarm"].notna(), "missed"),
        ("in time", fell, judged["lead"] >= 0, "late"),
        ("false alarms", ~fell, judged["alarm"].notna(), "false alarm"),
    ):
        rows[name] = _share(among & hit, among) | {"note": ", ".join(judged.loc[judged["failure"] == wrong, "run"])}
    rows["lead"] = {"of": int(judged["lead"].count()), **_spread(judged["lead"])}
    for name in ("kept", "labelled"):
        share = judged[f"{name}_share"]
        rows[name] = _share(share >= GOOD, share.notna()) | _spread(share)
    return pd.DataFrame.from_dict(rows, orient="index").reindex(
        columns=["count", "of", "share", "low", "high", "median", "note"]
    )


def _share(hits: pd.Series, among: pd.Series) -> dict:
    count, of = int(hits.sum()), int(among.sum())
    if not of:
        return {"count": count, "of": 0}
    w = wilson(count, of)
    return {"count": count, "of": of, "share": w.mean, "low": w.low, "high": w.high}


def _spread(values: pd.Series) -> dict:
    if not values.count():
        return {"note": ""}
    low, q1, median, q3, high = (float(values.quantile(q)) for q in (0, 0.25, 0.5, 0.75, 1))
    return {"median": median, "note": f"{low:.3g} to {high:.3g}, middle half {q1:.3g} to {q3:.3g}"}


def roc(runs: Runs, scales: Sequence[float] | None = None, rule: Rule = RULE) -> pd.DataFrame:
    """Detection, detection in time, and false alarms as `scale` sweeps from nervous to deaf: a row a scale, shares."""
    scales = [0.1 * i for i in range(1, 31)] if scales is None else scales
    runs = by_run(runs)
    fell = {name: collapse_step(m) for name, m in runs.items()}
    strength = {name: evidence(m, rule) for name, m in runs.items()}
    bad, good = [n for n in runs if fell[n] is not None], [n for n in runs if fell[n] is None]
    rows = []
    for scale in scales:
        steps = {name: first_fired(e, scale)[0] for name, e in strength.items()}
        caught = [n for n in bad if steps[n] is not None]
        rows.append(
            {
                "scale": scale,
                "detected": len(caught) / len(bad) if bad else float("nan"),
                "in_time": sum(steps[n] <= fell[n] for n in caught) / len(bad) if bad else float("nan"),
                "false_alarms": sum(steps[n] is not None for n in good) / len(good) if good else float("nan"),
                "collapsed": len(bad),
                "stable": len(good),
            }
        )
    return pd.DataFrame(rows)


def sensitivity(runs: Runs, name: str, values: Sequence[float], rule: Rule = RULE) -> pd.DataFrame:
    """What one constant of `Rule` buys: detected, in time, false alarms, median lead and accuracy kept, a row a value.

    To retune: call this for each field on runs set apart for tuning, choose the middle of the widest range of values that
    loses no detection and adds no false alarm, write the value and its runs beside the field in `corelib/alarm.py`, and
    report `evaluate_alarm` on other runs. Raises TypeError for a name that is not a field.
    """
    rows = []
    for value in values:
        table = evaluate_alarm(runs, replace(rule, **{name: value}))
        rows.append(
            {name: value}
            | {k: table.loc[k, "count"] for k in ("detected", "in time", "false alarms")}
            | {"median lead": table.loc["lead", "median"], "median kept": table.loc["kept", "median"]}
        )
    return pd.DataFrame(rows)
