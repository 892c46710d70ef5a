"""The alarm: from label-free columns of metrics.jsonl alone, when did a run begin to collapse, and what is worth keeping.

It compares a run with its own past: rollouts without an answer (silent), one answer to every question (constant), a
policy less sure than it began (drifting), and answers lost that it had settled on (forgetting). Each condition is scaled
so that 1 fires, and is a causal function of the steps so far: what the alarm says of a step never changes afterwards. It
knows no method, seed or length of run, and drops `gt/` columns before it looks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

SIGNALS = (
    "answers/none",
    "answers/top_share",
    "answers/distinct_group",
    "entropy",
    "probe/settled",
    "probe/keep",
)


@dataclass(frozen=True)
class Rule:
    """The alarm's constants, each inside the range that sees every collapse in time and no other run.

    Source: lab runs of seeds 0-4 (150 steps at the lab's settings: nine methods of seed 0; majority voting, I of seeds
    0-4; gt, II, random of seed 1) and of seed 0 over 210 steps. `corelib.diagnostics.sensitivity` shows what each one buys.
    """

    window: int = 5  # steps of the running mean: one bad step is no collapse; range 3 to 10
    start: int = 10  # steps that make a run's own beginning; range 5 to 15
    rise: float = 0.30  # of a share, absolute; range 0.20 to 0.60
    drift: float = 0.10  # of token entropy, relative; range 0.02 to 0.30, from 0.15 one random run is 3 steps late
    scatter: float = 0.05  # of a group's different answers, relative; range 0.01 to 0.15
    forget: float = 0.25  # share of settled answers lost; range 0.17 to 0.40


RULE = Rule()


@dataclass(frozen=True)
class Alarm:
    """When the alarm went off, None when it did not, and why, a sentence a condition."""

    step: int | None
    reasons: tuple[str, ...] = ()


def label_free(metrics: pd.DataFrame) -> pd.DataFrame:
    """What the alarm may see: `SIGNALS` at the steps that trained, by step. Raises ValueError where there is no signal, or text."""
    if "step" not in metrics:
        raise ValueError("these metrics have no column `step`; read them with corelib.runs.load_metrics")
    for name in ("step", *SIGNALS):
        if name in metrics and not pd.api.types.is_numeric_dtype(metrics[name].convert_dtypes()):
            raise ValueError(f"column {name} of these metrics holds text; read them with corelib.runs.load_metrics")
    trained = metrics[(metrics["step"] > 0).to_numpy()]
    if len(trained) and not any(name in trained for name in SIGNALS):
        raise ValueError(f"these metrics hold none of the alarm's signals: {', '.join(SIGNALS)}")
    trained = trained.sort_values("step").drop_duplicates("step", keep="last")
    return pd.DataFrame(
        {name: trained[name].to_numpy(float) if name in trained else float("nan") for name in SIGNALS},
        index=pd.Index(trained["step"], name="step"),
    )


def evidence(metrics: pd.DataFrame, rule: Rule = RULE) -> pd.DataFrame:
    """Strength of each condition at each step, 0 for none, 1 where it fires; a signal that is not logged gives 0.

    silent: the share of rollouts without an answer has risen above its lowest. constant: so has the share of the batch's
    commonest answer. drifting: token entropy and a group's different answers have both risen above the run's beginning.
    forgetting: settled answers are lost (`corelib.probe`), as of the last validation.
    """
    s = label_free(metrics)
    means = {name: running_mean(s[name].to_numpy(), rule.window) for name in SIGNALS[:4]}
    none, top = means["answers/none"], means["answers/top_share"]
    risen = [
        (means[name] / s[name].iloc[: rule.start].mean(skipna=False) - 1) / threshold
        for name, threshold in (("entropy", rule.drift), ("answers/distinct_group", rule.scatter))
    ]
    drift = np.where(np.arange(len(s)) < rule.start, 0.0, np.minimum(*risen))
    strength = {
        "silent": (none - np.fmin.accumulate(none)) / rule.rise,
        "constant": (top - np.fmin.accumulate(top)) / rule.rise,
        "drifting": drift,
        "forgetting": (1 - s["probe/settled"].ffill().to_numpy()) / rule.forget,
    }
    found = np.column_stack(list(strength.values()))
    found = np.where(np.isfinite(found), found, 0.0).clip(min=0.0)
    return pd.DataFrame(found, index=s.index, columns=list(strength))


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the last `window` values, nan until there are so many or where one of them is nan."""
    mean = np.full(len(values), np.nan)
    if len(values) >= window:
        mean[window - 1 :] = np.lib.stride_tricks.sliding_window_view(values, window).mean(axis=1)
    return mean


def alarm(metrics: pd.DataFrame, rule: Rule = RULE, scale: float = 1.0) -> Alarm:
    """The first step at which a condition fires, and why.

    `metrics`: a DataFrame of metrics.jsonl (`corelib.runs.load_metrics`), whole or up to any step. `scale`: evidence that
    fires; above 1 less sensitive. Raises ValueError where none of `SIGNALS` was logged, and for a scale that is not above 0.
    """
    if not scale > 0:
        raise ValueError(f"scale is {scale}; at 0 every step fires, so give a number above it (1: the rule as it is)")
    step, names = first_fired(evidence(metrics, rule), scale)
    return Alarm(step, tuple(_sentence(name, metrics, step, rule) for name in names))


def first_fired(strength: pd.DataFrame, scale: float = 1.0) -> tuple[int | None, list[str]]:
    """First step at which a condition of `evidence` fires, and the names of those that do; (None, []) when never."""
    fired = strength.to_numpy() >= scale
    if not fired.any():
        return None, []
    row = fired.any(axis=1).argmax()
    return int(strength.index[row]), [name for name, here in zip(strength.columns, fired[row], strict=True) if here]


def keep(metrics: pd.DataFrame, rule: Rule = RULE, scale: float = 1.0) -> int | None:
    """The step worth keeping, chosen without labels: the one whose weights a run holds in `kept/` (0: the base model).

    It is the last validation before the alarm whose votes agreed with those of all validations so far at least as well as
    any earlier one's (there `probe/keep` names its own step). So whether a step is kept is decided when it is made, and
    nothing that comes later asks for weights of before. None where no validation was made.
    """
    if "probe/keep" not in metrics:
        return None
    fired, said = alarm(metrics, rule, scale).step, metrics.dropna(subset="probe/keep")
    own = said.loc[(said["probe/keep"] == said["step"]).to_numpy(), "step"]
    own = own if fired is None else own[own < fired]
    return int(own.max()) if len(own) else 0 if len(said) else None


def _sentence(name: str, metrics: pd.DataFrame, step: int, rule: Rule) -> str:
    s = label_free(metrics).loc[:step]
    now = s.tail(rule.window).mean()
    if name == "silent":
        return f"{now['answers/none']:.0%} of the rollouts give no answer, {_risen(s, 'answers/none', rule)}"
    if name == "constant":
        return f"one answer is {now['answers/top_share']:.0%} of all, {_risen(s, 'answers/top_share', rule)}"
    if name == "drifting":
        first = s["entropy"].head(rule.start).mean()
        return (
            f"token entropy rose from {first:.3f} to {now['entropy']:.3f} nats, and the answers to a question scatter"
        )
    lost = 1 - s["probe/settled"].dropna().iloc[-1]
    return f"the policy gave up {lost:.0%} of the answers that it had settled on"


def _risen(s: pd.DataFrame, name: str, rule: Rule) -> str:
    return f"up from {np.nanmin(running_mean(s[name].to_numpy(), rule.window)):.0%}"
