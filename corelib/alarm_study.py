"""How good the alarm is, against the truth that it does not see; ROC data, and what each of its constants buys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd

from corelib.alarm import RULE, Rule, alarm, evidence, first_held, keep
from corelib.stats import wilson

WINDOW = 10  # steps of the running mean by which accuracy is judged


def smooth_accuracy(metrics: pd.DataFrame, window: int = WINDOW) -> pd.Series:
    """Running mean of the rollouts' accuracy by step; ValueError where the run has none (it was trained without labels)."""
    if "gt/accuracy" not in metrics:
        raise ValueError("these metrics have no gt/accuracy; without labels nobody can say whether a run collapsed")
    values = metrics[metrics["step"] > 0].set_index("step")["gt/accuracy"].dropna()
    return values.rolling(window, min_periods=window).mean()


def collapse_step(metrics: pd.DataFrame, window: int = WINDOW) -> int | None:
    """When the running mean of accuracy first lies below half its peak so far; None when never. The issue's definition."""
    smooth = smooth_accuracy(metrics, window)
    low = smooth < smooth.cummax() / 2
    return int(low.idxmax()) if low.any() else None


def judge_runs(runs: Mapping[str, pd.DataFrame], rule: Rule = RULE, scale: float = 1.0) -> pd.DataFrame:
    """The alarm on every run, a row a run.

    `collapse` and `alarm` are steps (nan for never), `lead` their difference (positive: warned before), `failure`
    "missed", "false alarm", "late" or "". `kept`: step of `alarm.keep`; `kept_share`: accuracy there over the best
    running mean, both over ten steps.
    """
    rows = []
    for name, metrics in runs.items():
        fell, said = collapse_step(metrics), alarm(metrics, rule, scale)
        smooth, kept = smooth_accuracy(metrics), keep(metrics, rule=rule, scale=scale)
        lead = fell - said.step if fell is not None and said.step is not None else float("nan")
        failure = (
            ("missed" if said.step is None else "late" if lead < 0 else "")
            if fell is not None
            else ("false alarm" if said.step is not None else "")
        )
        # The ten steps around the one kept; at the ends of the run the nearest ten
        at = smooth.dropna().index
        near = smooth[at[abs(at - (kept + WINDOW // 2)).argmin()]] if len(at) else float("nan")
        rows.append(
            {
                "run": name, "steps": int(metrics["step"].max()), "collapse": fell, "alarm": said.step, "lead": lead,
                "failure": failure, "kept": kept, "kept_share": near / smooth.max(), "reasons": "; ".join(said.reasons),
            }
        )  # fmt: skip
    return pd.DataFrame(rows).astype({"collapse": float, "alarm": float})


def evaluate_alarm(runs: Mapping[str, pd.DataFrame], rule: Rule = RULE, scale: float = 1.0) -> pd.DataFrame:
    """How good the alarm is: counts with 95 % Wilson intervals, leads, the checkpoint kept; a row a measure.

    Columns count, of, share, low, high, median, note. Rows: detected (among collapsed runs), in time (before accuracy is
    below half its peak), false alarms (among the others), lead (median, steps), kept (median of accuracy kept over the
    best). `note` lists the failures. Runs are taken as independent; the same seed run twice is not. Raises ValueError for
    no runs.
    """
    if not runs:
        raise ValueError("no runs; the alarm's evaluation needs at least one")
    table = judge_runs(runs, rule, scale)
    fell = table["collapse"].notna()
    rows = {}
    for name, among, hit, wrong in (
        ("detected", fell, table["alarm"].notna(), "missed"),
        ("in time", fell, table["lead"] >= 0, "late"),
        ("false alarms", ~fell, table["alarm"].notna(), "false alarm"),
    ):
        rows[name] = _share(int((among & hit).sum()), int(among.sum()))
        rows[name]["note"] = ", ".join(table.loc[table["failure"] == wrong, "run"])
    leads = table["lead"].dropna()
    rows["lead"] = {"of": len(leads), "median": leads.median(), "note": f"{leads.min():g} to {leads.max():g} steps" if len(leads) else ""}  # fmt: skip
    good = table["kept_share"]
    rows["kept"] = _share(int((good >= 0.95).sum()), len(good)) | {
        "median": good.median(),
        "note": "below 0.95: " + ", ".join(f"{r.run} {r.kept_share:.2f}" for r in table[good < 0.95].itertuples()),
    }
    return pd.DataFrame.from_dict(rows, orient="index").reindex(
        columns=["count", "of", "share", "low", "high", "median", "note"]
    )


def _share(count: int, of: int) -> dict:
    if not of:
        return {"count": count, "of": 0}
    w = wilson(count, of)
    return {"count": count, "of": of, "share": w.mean, "low": w.low, "high": w.high}


def roc(runs: Mapping[str, pd.DataFrame], scales: Sequence[float] | None = None, rule: Rule = RULE) -> pd.DataFrame:
    """Detection, detection in time, and false alarms as `scale` sweeps from nervous to deaf: a row a scale, shares."""
    scales = [0.1 * i for i in range(1, 31)] if scales is None else scales
    fell = {name: collapse_step(m) for name, m in runs.items()}
    strength = {name: evidence(m, rule) for name, m in runs.items()}
    steps = {name: [first_held(e, rule, x)[0] for x in scales] for name, e in strength.items()}
    bad, good = [n for n in runs if fell[n] is not None], [n for n in runs if fell[n] is None]
    rows = []
    for i, scale in enumerate(scales):
        caught = [n for n in bad if steps[n][i] is not None]
        rows.append(
            {
                "scale": scale,
                "detected": len(caught) / len(bad) if bad else float("nan"),
                "in_time": sum(steps[n][i] <= fell[n] for n in caught) / len(bad) if bad else float("nan"),
                "false_alarms": sum(steps[n][i] is not None for n in good) / len(good) if good else float("nan"),
                "collapsed": len(bad),
                "stable": len(good),
            }
        )
    return pd.DataFrame(rows)


def sensitivity(
    runs: Mapping[str, pd.DataFrame], name: str, values: Sequence[float], rule: Rule = RULE
) -> pd.DataFrame:
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
