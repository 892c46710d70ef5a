"""The alarm: from label-free columns of metrics.jsonl alone, when did a run begin to collapse, and what is worth keeping.

Every condition compares the run with its own past, is scaled so that 1 fires, and is a causal function of the steps so
far: what the alarm says of a step never changes afterwards. It knows no method, seed or length of run, and drops `gt/`
columns before it looks. Constants are fields of `Rule`; `corelib.diagnostics.sensitivity` shows what each one buys.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

SIGNALS = (
    "reward",
    "answers/support",
    "answers/none",
    "answers/distinct_group",
    "answers/top_share",
    "entropy",
    "length/mean",
    "length/clipped",
    "views/agreement",
    "probe/kept",
)


@dataclass(frozen=True)
class Rule:
    """Windows in steps and thresholds of the conditions.

    Source: set by hand on thirteen different lab runs of seed 0 (nine methods over 150 steps at learning rate 2.5e-4; II
    over 210; majority voting, I and GT at 2e-4), of which five collapsed. "lab" below means these. Nothing was held out.
    """

    start: int = 10  # steps that make a run's own beginning; the lab's and the paper's warm-up
    fast: int = 5  # steps of the running mean for signals that move within ten steps
    slow: int = 10  # ... and for those whose noise is that of sixteen questions a step
    wide: int = 20  # ... and for one answer's share, whose noise is that of its questions
    of: int = 5  # a condition fires when it held in `hold` of the last `of` steps
    hold: int = 4
    silent: float = 0.20  # rise of the share without an answer over its lowest so far; lab: 0.8 within 20 steps
    drift: float = 0.15  # relative rise of token entropy over its beginning; lab: stable runs only fall
    scatter: float = 0.05  # relative rise of a group's distinct answers over their beginning that must go with it
    undone: float = (
        0.50  # the same two over their lowest so far, for a policy that had learnt something; no lab run needed it
    )
    undone_scatter: float = 0.15
    takeover: float = 0.40  # relative rise of the commonest answer's share; lab: stable runs below 0.30
    lag: int = 25  # steps over which a self-rewarded policy must have got surer
    stall_entropy: float = (
        0.97  # token entropy over that of `lag` steps before; lab: 0.98 and more while majority voting drifts
    )
    stall_support: float = 0.95  # missing agreement, 1 - support, over that of `lag` steps before; lab: likewise
    neutral: float = 0.70  # ratio of the two above at which the condition counts nothing
    full: float = 0.15  # missing agreement below which there is nothing left to gain, so that a stall means nothing
    own: float = 0.005  # reward is the policy's own agreement when they differ by no more in each of `slow` steps; without it 9 of 10 stable lab runs would fire
    shrink: float = (
        0.35  # fall of the length below its highest; paper, Qwen3-4B on DAPO: 0.54 in collapse, 0.17 in healthy GT
    )
    settle: int = 20  # steps in which length may change freely: a base model first learns to stop
    part: float = 0.25  # fall of the views' agreement below its highest so far; untested, no paired run collapsed yet
    forget: float = 0.40  # relative fall of the base model's answers that are kept; lab, probe simulated from rollouts: stable below 0.30


RULE = Rule()


@dataclass(frozen=True)
class Alarm:
    """When the alarm went off, None when it did not, and why, a sentence a condition."""

    step: int | None
    reasons: tuple[str, ...] = ()


def label_free(metrics: pd.DataFrame) -> pd.DataFrame:
    """What the alarm may see: `SIGNALS` at the steps that trained, by step. Raises ValueError where there is no signal."""
    if "step" not in metrics:
        raise ValueError("these metrics have no column `step`; read them with corelib.runs.load_metrics")
    trained = metrics[metrics["step"] > 0]
    seen = [c for c in SIGNALS if c in trained]
    if len(trained) and not seen:
        raise ValueError(f"these metrics hold none of the alarm's signals: {', '.join(SIGNALS)}")
    frame = trained.sort_values("step").drop_duplicates("step", keep="last").set_index("step")
    return frame.reindex(columns=SIGNALS).astype(float)


def evidence(metrics: pd.DataFrame, rule: Rule = RULE) -> pd.DataFrame:
    """Strength of each condition at each step, 0 for none, 1 where it fires; a signal that is not logged gives 0.

    silent: answers disappear. drifting: entropy and disagreement rise. constant: one answer takes over across prompts.
    churning: paid for its own agreement, the policy has not got surer. shrinking: completions get short.
    parting: the two views disagree again. forgetting: what the base model was sure of is gone (`probe/kept`).
    """
    s = label_free(metrics)
    fast, slow = s.rolling(rule.fast, min_periods=rule.fast).mean(), s.rolling(rule.slow, min_periods=rule.slow).mean()

    silence = fast[["answers/none", "length/clipped"]].max(axis=1)
    unsure = ["entropy", "answers/distinct_group"]
    above_start = fast[unsure] / slow[unsure].where(_row(s) == rule.start).ffill() - 1
    above_lowest = slow[unsure] / slow[unsure].cummin() - 1
    never_learnt = (above_start / [rule.drift, rule.scatter]).min(axis=1, skipna=False)
    undone = (above_lowest / [rule.undone, rule.undone_scatter]).min(axis=1, skipna=False)

    # Two views of one question share an answer, and rollouts without an answer have none: neither is a takeover
    answered = (1 - s["answers/none"].fillna(0)).where(lambda share: share > 0.2)
    top = s["answers/top_share"] / answered / (1 + s["views/agreement"].fillna(0))
    first = top.expanding(min_periods=rule.start).mean().where(_row(s) == rule.start).ffill()
    top = top.rolling(rule.wide, min_periods=rule.wide).mean()

    own = (s["reward"] - s["answers/support"]).abs().rolling(rule.slow, min_periods=rule.slow).max() <= rule.own
    missing = 1 - slow["answers/support"]
    surer = pd.concat(
        [
            (slow["entropy"] / slow["entropy"].shift(rule.lag) - rule.neutral) / (rule.stall_entropy - rule.neutral),
            (missing / missing.shift(rule.lag) - rule.neutral) / (rule.stall_support - rule.neutral),
        ],
        axis=1,
    ).min(axis=1, skipna=False)

    longest = fast["length/mean"].where(_row(s) > rule.settle).cummax()
    agreement = slow["views/agreement"]
    kept = s["probe/kept"].ffill()
    forgotten = (1 - kept / kept.cummax()) / rule.forget
    moved = forgotten.isna() | (forgotten >= 0.5)  # with a probe, a stall is believed only when answers have changed
    strength = pd.DataFrame(
        {
            "silent": (silence - silence.cummin()) / rule.silent,
            "drifting": pd.concat([never_learnt, undone], axis=1).max(axis=1),
            "constant": (top / first - 1) / rule.takeover,
            "churning": surer.where(own & (missing >= rule.full) & moved, 0.0),
            "shrinking": (1 - fast["length/mean"] / longest) / rule.shrink,
            "parting": (agreement.cummax() - agreement) / rule.part,
            "forgetting": forgotten,
        }
    )
    return strength.replace([float("inf"), float("-inf")], float("nan")).fillna(0.0).clip(lower=0.0)


def alarm(metrics: pd.DataFrame, rule: Rule = RULE, scale: float = 1.0) -> Alarm:
    """The first step at which a condition has held in `rule.hold` of the last `rule.of` steps, and why.

    `metrics`: a DataFrame of metrics.jsonl (`corelib.runs.load_metrics`), whole or up to any step. `scale`: evidence that
    fires; above 1 less sensitive. Raises ValueError where none of `SIGNALS` was logged.
    """
    strength = evidence(metrics, rule)
    step, names = first_held(strength, rule, scale)
    return Alarm(step, tuple(_sentence(name, metrics, step, rule) for name in names))


def first_held(strength: pd.DataFrame, rule: Rule = RULE, scale: float = 1.0) -> tuple[int | None, list[str]]:
    """First step at which conditions of `evidence` have held long enough, and their names; (None, []) when never."""
    held = (strength >= scale).rolling(rule.of, min_periods=rule.hold).sum() >= rule.hold
    fired = held.any(axis=1)
    if not fired.any():
        return None, []
    step = fired.idxmax()
    return int(step), list(held.columns[held.loc[step]])


def keep(metrics: pd.DataFrame, steps=None, rule: Rule = RULE, scale: float = 1.0) -> int:
    """The step whose checkpoint is worth keeping, chosen without labels.

    Without an alarm the last step. With one, the last step at which the condition that fired showed less than a tenth of
    its threshold; for `churning`, which looks back, the middle of the window that it found no worse than the newest.
    `steps`: those that have a checkpoint; the nearest of them that is not later is taken, or else the first.
    """
    strength = evidence(metrics, rule)
    fired, names = first_held(strength, rule, scale)
    if fired is None:
        step = int(metrics["step"].max())
    else:
        step = min(_last_healthy(strength[name].loc[:fired], rule, scale) for name in names)
    if steps is None:
        return step
    steps = sorted(steps)
    if not steps:
        raise ValueError("there is no checkpoint to choose from")
    return max((s for s in steps if s <= step), default=steps[0])


def _last_healthy(before: pd.Series, rule: Rule, scale: float) -> int:
    if before.name == "churning":
        reached = before.index[before >= scale][-rule.hold]
        return int(before.index[max(before.index.get_loc(reached) - rule.lag - rule.slow // 2, 0)])
    calm = before.index[before <= 0.1]
    return int(calm[-1]) if len(calm) else 0


def _row(frame: pd.DataFrame) -> pd.Series:
    """1, 2, 3 ... over the rows."""
    return pd.Series(range(1, len(frame) + 1), index=frame.index)


def _sentence(name: str, metrics: pd.DataFrame, step: int, rule: Rule) -> str:
    s = label_free(metrics).loc[:step]
    now = s.tail(rule.fast).mean()
    means = s.rolling(rule.fast, min_periods=rule.fast).mean()

    def share(x: float) -> str:
        return f"{100 * x:.0f} %"

    if name == "silent":
        silence = means[["answers/none", "length/clipped"]].max(axis=1)
        return f"{share(silence.iloc[-1])} of the rollouts give no answer or are cut off, up from {share(silence.min())} at step {silence.idxmin()}"
    if name == "drifting":
        low = means["entropy"]
        return f"token entropy rose from {low.min():.3f} nats at step {low.idxmin()} to {now['entropy']:.3f}, and the answers of a group scatter again"
    if name == "constant":
        ten = s["answers/top_share"].tail(rule.slow).mean()
        return f"one answer takes over: it is {share(ten)} of the batch, after {share(s['answers/top_share'].head(rule.start).mean())} at the start"
    if name == "churning":
        return f"the reward is the policy's own agreement, and yet in {rule.lag} steps agreement has not risen ({now['answers/support']:.2f}) nor token entropy fallen ({now['entropy']:.3f} nats): what it agrees on is changing"
    if name == "shrinking":
        longest = means["length/mean"].iloc[rule.settle :].max()
        return f"completions shrank from {longest:.0f} to {now['length/mean']:.0f} tokens"
    if name == "parting":
        best = s["views/agreement"].rolling(rule.slow, min_periods=rule.slow).mean().max()
        return f"the two views of a question agree in {share(s['views/agreement'].tail(rule.slow).mean())} of the pairs, after {share(best)}"
    kept = s["probe/kept"].dropna()
    return f"of the answers that the base model was sure of, the policy keeps {share(kept.iloc[-1])}, after {share(kept.max())}"
