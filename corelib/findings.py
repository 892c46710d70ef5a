"""What the sweep's questions found, as sentences computed from sweep.csv: each can come out the other way.

An answer rests on final accuracies (mean of ten steps), compared seed by seed: runs of one seed share their questions'
order and sampling. Two settings are told apart when the differences have a mean of at least `CLEAR` and a 95 % interval
(Student's t) that excludes 0, or, below `FEW_SEEDS` seeds, one sign; otherwise the sentence says that they are not. Seeds
are few, so counts are always given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from corelib.plots import methods, name
from corelib.plots_diagnostics import Missing, listed

CLEAR = 0.05  # as good as: within five points of accuracy
FEW_SEEDS = 3  # below, no interval is given and nothing is called settled
CROSSED = "both, label of\nthe other view (I)"

VARIED = {
    "views": ("views", "questions that majority voting is trained on"),
    "near_copy": ("rewording", "the second view"),
    "learning_rate": ("learning_rate", "learning rate"),
    "base": ("model", "base model"),
    "teacher": ("teacher_start", "policy's weight in the teacher's first update"),
    "horizon": ("steps", "training steps"),
    "wrong_rewrites": ("wrong_rewrites", "wrong rewrites (share of pairs)"),
    "group": ("rollouts", "rollouts a prompt, G (128 a step)"),
    "kl": ("beta", "KL coefficient"),
    "equality": ("answer_equality", "equality of two answers"),
}


def tidy(table: pd.DataFrame, question: str) -> pd.DataFrame:
    """Runs of a question and those of the nine-method comparison that it is read against: the same methods and seeds.

    `value`: the varied setting; `usual`: whether it is the lab's own. Raises Missing when either side is not there. Runs
    that do not know their accuracy are left out.
    """
    setting = VARIED[question][0]
    asked = table[table["question"] == question]
    usual = table[(table["question"] == "nine") & table["seed"].isin(asked["seed"])]
    against = {*asked["method"], "co_rewarding_i"} if question == "views" else set(asked["method"])
    usual = usual[usual["method"].isin(against)]
    if asked.empty or usual.empty:
        raise Missing(f"{question}: no finished runs yet" if asked.empty else f"{question}: the nine-method runs that it is compared with are not there")  # fmt: skip
    both = pd.concat([usual.assign(usual=True), asked.assign(usual=False)], ignore_index=True)
    both["value"] = both[setting]
    if question == "views":
        both.loc[both["method"] == "co_rewarding_i", "value"] = CROSSED
    both = both[both["final"].notna()]  # of a run without truth nobody knows how it ended
    return both.assign(collapsed=both["collapsed"].astype(bool))


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of independent runs with its 95 % interval by Student's t; nan limits for a single run.

    >>> [round(x, 3) for x in mean_interval([0.1, 0.2, 0.3])]
    [0.2, -0.048, 0.448]
    """
    from scipy.stats import t

    values = np.asarray(values, float)
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return values.mean(), values.mean() - half, values.mean() + half


def fell(rows: pd.DataFrame) -> str:
    return f"{int(rows['collapsed'].astype(bool).sum())} of {len(rows)}"


def _part(data: pd.DataFrame, method: str, value=None) -> pd.DataFrame:
    rows = data[(data["method"] == method) & (data["usual"] if value is None else data["value"] == value)]
    if rows.empty:
        raise Missing(f"the runs of {name(method)} at {'the usual setting' if value is None else value} are not done yet")  # fmt: skip
    return rows


def _differences(a: pd.DataFrame, b: pd.DataFrame) -> pd.Series:
    """Final accuracy of `a` minus that of `b`, seed by seed."""
    return (a.set_index("seed")["final"] - b.set_index("seed")["final"]).dropna()


def _apart(a: pd.DataFrame, b: pd.DataFrame) -> int:
    """-1 where `a` ends below `b`, 1 above, 0 when they are not told apart (see the head of this file)."""
    d = _differences(a, b)
    if d.empty or abs(d.mean()) < CLEAR:
        return 0
    _, low, high = mean_interval(d) if len(d) >= FEW_SEEDS else (None, d.min(), d.max())
    return -1 if high < 0 else 1 if low > 0 else 0


def _by(a: pd.DataFrame, b: pd.DataFrame) -> str:
    """The difference in words, where there are seeds enough for an interval."""
    if len(d := _differences(a, b)) < FEW_SEEDS:
        return ""
    return "; difference {:+.0f} points ({:+.0f} to {:+.0f})".format(*(100 * x for x in mean_interval(d)))


def _says(rows: pd.DataFrame) -> str:
    return f"{100 * rows['final'].mean():.0f} % (collapsed {fell(rows)})"


def _varied(data: pd.DataFrame, method: str) -> list:
    return sorted(data.loc[(data["method"] == method) & ~data["usual"], "value"].unique())


def _share(values) -> str:
    return listed([f"{v:g}" for v in values])


def _views(data: pd.DataFrame) -> str:
    both, crossed = _part(data, "majority_voting", "both"), _part(data, "co_rewarding_i", CROSSED)
    how = {-1: "It is the label, not the data", 0: "Label and data are not told apart", 1: "It is the data, not the label"}  # fmt: skip
    return f"{how[_apart(both, crossed)]}: on both views' questions majority voting ends at {_says(both)}, with the labels crossed (I) at {_says(crossed)}{_by(both, crossed)}"


def _near_copy(data: pd.DataFrame) -> str:
    near, rich = _part(data, "co_rewarding_i", "near_copy"), _part(data, "co_rewarding_i")
    how = {-1: "Near copies make Co-rewarding-I worse", 0: "Near copies make no clear difference to Co-rewarding-I", 1: "Near copies do Co-rewarding-I good"}  # fmt: skip
    return (
        f"{how[_apart(near, rich)]}: it ends at {_says(near)}, with rich rewordings at {_says(rich)}{_by(near, rich)}"
    )


def _learning_rate(data: pd.DataFrame) -> str:
    rates = sorted(data["value"].unique())
    apart = [r for r in rates if _apart(_part(data, "majority_voting", r), _part(data, "co_rewarding_ii", r)) == -1]
    if not apart:
        return f"At no learning rate of {_share(rates)} does majority voting end clearly below Co-rewarding-II"
    rest = [r for r in rates if r not in apart]
    text = f"Majority voting ends below Co-rewarding-II at learning rate {_share(apart)}"
    text += f"; at {_share(rest)} they are not told apart" if rest else ""
    down = [r for r in rates if _part(data, "majority_voting", r)["collapsed"].any()]
    text += f"; it collapses at {_share(down)} only" if down and down != rates else ""
    chance = data[(data["method"] == "random") & data["collapsed"]]
    return text + (f"; a random reward collapses at {_share(sorted(chance['value'].unique()))}" if len(chance) else "")


def _base(data: pd.DataFrame) -> str:
    def parts(value):
        return _apart(_part(data, "majority_voting", value), _part(data, "co_rewarding_ii", value)) == -1

    if not (others := _varied(data, "majority_voting")):
        raise Missing(f"the runs of {name('majority_voting')} from the other base model are not done yet")
    other = others[0]
    mv, two = _part(data, "majority_voting", other), _part(data, "co_rewarding_ii", other)
    if parts(other) == parts(None):
        how = "ends below Co-rewarding-II too" if parts(other) else "is not told apart from Co-rewarding-II either"
        how = f"From a second base model majority voting {how}"
    else:
        how = "Only from the second base model does majority voting end below Co-rewarding-II" if parts(other) else "That majority voting ends below Co-rewarding-II is not settled for a second base model"  # fmt: skip
    return f"{how}: {_says(mv)} against {_says(two)}{_by(mv, two)}"


def _teacher(data: pd.DataFrame) -> str:
    usual = _part(data, "co_rewarding_ii")
    tried = {v: _part(data, "co_rewarding_ii", v) for v in _varied(data, "co_rewarding_ii")}
    worse = [v for v, rows in tried.items() if _apart(rows, usual) == -1]
    own = usual["value"].iloc[0]
    if worse:
        ends = listed([f"at {v:g} at {_says(tried[v])}" for v in worse])
        return f"Co-rewarding-II ends lower with a first weight of {_share(worse)} than with {own:g}: {ends}, not {_says(usual)}"
    ends_ = [rows["final"].mean() for rows in tried.values()]
    return f"No teacher from {min(tried):g} to {max(tried):g} makes Co-rewarding-II clearly worse than {own:g} ({100 * min(ends_):.0f} to {100 * max(ends_):.0f} %, not {_says(usual)})"


def _horizon(data: pd.DataFrame) -> str:
    said, more = [], False
    for method in methods(data):
        (long,) = _varied(data, method)
        late, early = _part(data, method, long), _part(data, method)
        more |= bool(late["collapsed"].mean() > early["collapsed"].mean() or _apart(late, early) == -1)
        said.append(f"{name(method)} {100 * early['final'].mean():.0f} to {_says(late)}")
    short = data.loc[data["usual"], "value"].iloc[0]
    how = f"Not all that is stable after {short} steps is so after {long}" if more else f"What is stable after {short} steps is so after {long}"  # fmt: skip
    return f"{how}: {listed(said)}"


def _wrong_rewrites(data: pd.DataFrame) -> str:
    said = []
    for method in methods(data):
        tried = {v: _part(data, method, v) for v in _varied(data, method)}
        worse = [v for v, rows in tried.items() if _apart(rows, _part(data, method)) == -1]
        most = max(tried)
        harm = f"ends lower from {100 * min(worse):.0f} % wrong rewrites on" if worse else "bears wrong rewrites"
        said.append(f"{name(method)} {harm}: with {100 * most:.0f} % at {_says(tried[most])}")
    return "; ".join(said)


def _group(data: pd.DataFrame) -> str:
    tried = {v: _part(data, "majority_voting", v) for v in sorted(data["value"].unique())}
    small, large = tried[min(tried)], tried[max(tried)]
    counts = f"collapsed {', '.join(fell(rows) for rows in tried.values())} at G = {', '.join(f'{v:g}' for v in tried)}"  # fmt: skip
    one = {v: rows for v, rows in data[data["method"] == "co_rewarding_i"].groupby("value") if rows["collapsed"].any()}
    other = f"; Co-rewarding-I collapses at {listed([f'G = {v:g} ({fell(rows)})' for v, rows in one.items()])}" if one else ""  # fmt: skip
    if not any(rows["collapsed"].any() for rows in tried.values()):
        return f"Majority voting collapses at no group size ({counts}){other}"
    if large["collapsed"].mean() < small["collapsed"].mean():
        return f"A larger group saves majority voting from collapse in some seeds: {counts}{other}"
    if large["collapsed"].mean() > small["collapsed"].mean():
        return f"A larger group makes the collapse of majority voting more frequent: {counts}{other}"
    steps = f"at step {', '.join(format(rows['collapse'].median(), '.0f') for rows in tried.values())} (median)"
    later = large["collapse"].min() > small["collapse"].max()
    return f"A larger group {'delays' if later else 'does not clearly delay'} the collapse of majority voting: {counts}, {steps}{other}"  # fmt: skip


def _kl(data: pd.DataFrame) -> str:
    usual = _part(data, "majority_voting")
    tried = {v: _part(data, "majority_voting", v) for v in _varied(data, "majority_voting")}
    saved = [v for v, rows in tried.items() if rows["collapsed"].mean() < usual["collapsed"].mean()]
    counts = f"it ends at {listed([f'{_says(rows)} with {v:g}' for v, rows in tried.items()])}, {_says(usual)} without"
    if not usual["collapsed"].any():
        return f"Majority voting collapses without a KL penalty in none of these seeds: {counts}"
    how = f"A KL penalty of {_share(saved)} makes majority voting collapse less often" if saved else "No KL penalty tried keeps majority voting from falling below half of its peak"  # fmt: skip
    return f"{how}: {counts}"


def _equality(data: pd.DataFrame) -> str:
    released, ours = _part(data, "majority_voting", "released"), _part(data, "majority_voting")
    both = released.merge(ours, on="seed")
    same = all((both[f"{c}_x"] == both[f"{c}_y"]).all() for c in ("peak", "final", "reward", "tokens"))
    if same:
        return f"Released string equality or equivalence: the same run to the last digit ({100 * both['final_x'].mean():.0f} % at the end), no vote differs"
    how = "changes votes, but not how the run ends" if not _apart(released, ours) else "changes how the run ends"
    return f"The released string equality {how}: {_says(released)}, with equivalence {_says(ours)}"


ANSWERS: dict[str, Callable[[pd.DataFrame], str]] = {
    "views": _views,
    "near_copy": _near_copy,
    "learning_rate": _learning_rate,
    "base": _base,
    "teacher": _teacher,
    "horizon": _horizon,
    "wrong_rewrites": _wrong_rewrites,
    "group": _group,
    "kl": _kl,
    "equality": _equality,
}


def paper_figures(table: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """The paper's figures beside ours: figure, what it shows there, what the committed sweep shows, same or different.

    What the paper shows was read off its figures (v2, Qwen3-4B-Base on DAPO-14k unless named), approximately. Ours is
    computed from sweep.csv and sweep.parquet; a row whose runs are not there says so.
    """
    nine = table[table["question"] == "nine"]
    runs = {m: nine[nine["method"] == m].assign(collapsed=lambda t: t["collapsed"].astype(bool)) for m in methods(nine)}
    ends = {m: frame[frame["run"].isin(rows["run"])] for m, rows in runs.items()}
    rows = []

    def row(figure: str, paper: str, needs: Sequence[str], ours: Callable[[], tuple[str, bool]]):
        lacking = [m for m in needs if m not in runs]
        said, same = ours() if not lacking else (f"no finished run of {listed([name(m) for m in lacking])}", None)
        rows.append({"figure": figure, "the paper": paper, "here": said, "verdict": "-" if same is None else "same" if same else "different"})  # fmt: skip

    def counts(*names: str) -> str:
        return listed([f"{name(m)} {fell(runs[m])}" for m in names])

    def mean(method: str, column: str, part: str = "last") -> float:
        steps = ends[method].groupby("run")[["run", column]]
        return (steps.tail(10) if part == "last" else steps.head(10))[column].mean()

    def validation():
        bad, good = ("majority_voting", "entropy", "self_certainty"), ("gt", "co_rewarding_ii")
        halved = {m: [bool((v < v.cummax() / 2).any()) for _, v in ends[m].dropna(subset="gt/validation").groupby("run")["gt/validation"]] for m in bad + good}  # fmt: skip
        said = [listed([f"{name(m)} {sum(halved[m])} of {len(halved[m])}" for m in part]) for part in (bad, good)]
        same = all(sum(halved[m]) > len(halved[m]) / 2 for m in bad) and not any(any(halved[m]) for m in good)
        return f"validation falls below half of its peak: {'; '.join(said)}", same

    def near_copies():
        near = table[(table["question"] == "near_copy") & (table["method"] == "co_rewarding_i")]
        if near.empty:
            return "the near-copy runs are not there", None
        near = near.assign(collapsed=near["collapsed"].astype(bool))
        return f"Co-rewarding-I collapsed: near copies {fell(near)}, rich rewordings {fell(runs['co_rewarding_i'])}", near["collapsed"].mean() > runs["co_rewarding_i"]["collapsed"].mean()  # fmt: skip

    def reward():
        mv = runs["majority_voting"]
        at, end = mv["reward_at_peak"].mean(), mv["reward"].mean()
        return f"majority voting {at:.2f} at its peak of accuracy, {end:.2f} at the end; minus entropy ends at {runs['entropy']['reward'].mean():.3f}", end >= 0.95  # fmt: skip

    def length():
        names = ("majority_voting", "entropy", "co_rewarding_ii")
        first, last = ([mean(m, "length/mean", part) for m in names] for part in ("first", "last"))
        said = listed([f"{name(m)} {a:.0f} to {b:.0f} tokens" for m, a, b in zip(names, first, last, strict=True)])
        return said, last[0] < 0.75 * first[0] and last[1] > 1.25 * first[1]

    def labels():
        names = ("co_rewarding_ii", "majority_voting", "frozen_teacher")
        first, last = ([mean(m, "gt/label_accuracy", part) for m in names] for part in ("first", "last"))
        said = listed([f"{name(m)} {100 * a:.0f} to {100 * b:.0f} %" for m, a, b in zip(names, first, last, strict=True)])  # fmt: skip
        return said, last[0] > first[0] and last[1] < first[1] / 2 and abs(last[2] - first[2]) < 0.1

    def views():
        one, other = (mean("co_rewarding_i", f"gt/accuracy{x}") for x in ("", "_rephrased"))
        return f"rollouts of I right at the end: {100 * one:.0f} % original, {100 * other:.0f} % rephrased; by level: section 4, own runs", not runs["co_rewarding_i"]["collapsed"].any()  # fmt: skip

    row("1, 3", "validation: entropy and self-certainty fall to 0 by step 60 to 75, majority voting by about 90 (on MATH it decays slowly); GT and II stay or rise", ("majority_voting", "entropy", "self_certainty", "gt", "co_rewarding_ii"), validation)  # fmt: skip
    row("3", "I is stable on MATH and collapses on DAPO-14k like majority voting; explained by near-copy rewrites, not measured", ("co_rewarding_i",), near_copies)  # fmt: skip
    row("4, 9", "mean reward: majority voting jumps to 1.0 at step 75 to 80, minus entropy reaches 0 by about 50", ("majority_voting", "entropy"), reward)  # fmt: skip
    row("4, 9", "response length: majority voting shrinks from 1,200 to 550 tokens, entropy rises to the cap, II stays near 900", ("majority_voting", "entropy", "co_rewarding_ii"), length)  # fmt: skip
    row("6, 9", "right pseudo-labels: II 0.2 to 0.42, frozen teacher flat at 0.25, majority voting up to 0.4 and then about 0", ("co_rewarding_ii", "majority_voting", "frozen_teacher"), labels)  # fmt: skip
    row("11, 12", "votes by level: I is stable on both views; majority voting peaks early and declines, harder levels first", ("co_rewarding_i",), views)  # fmt: skip
    rows.append({"figure": "5, 10", "the paper": "what they hold is not in the notes that this project was built from", "here": "not compared", "verdict": "-"})  # fmt: skip
    return pd.DataFrame(rows)
