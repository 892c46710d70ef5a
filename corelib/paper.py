"""The paper's result tables as data, what its numbers can and cannot say, and ours beside them.

`outputs/reference/paper_results.csv` holds tables 1-4 and 7-14 of arXiv 2508.00410 v2, one row a printed number, in
percent. Its intervals and flags follow from value and test size by the functions here; a test derives them again.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor, sqrt
from pathlib import Path

import pandas as pd

from corelib.config import ROOT
from corelib.stats import Estimate, unpaired_difference

RESULTS = ROOT / "outputs" / "reference" / "paper_results.csv"

# problems, draws a problem, and metric of each column of tables 1, 2, 3, 7 and 8 (paper, section C.3)
BENCHMARKS = {
    "math500": (500, 1, "pass@1"),
    "gsm8k": (1319, 1, "pass@1"),
    "amc": (83, 8, "avg@8"),
    "livecodebench": (1055, 1, "pass@1"),  # release_v6, says the paper
    "cruxeval": (800, 1, "pass@1"),
    "ifeval": (541, 1, "mean_of_four"),
    "mmlu_pro": (12032, 1, "exact_match"),
}
NAMES = {
    "math500": "MATH500",
    "gsm8k": "GSM8K",
    "amc": "AMC avg@8",
    "livecodebench": "LiveCodeBench",
    "cruxeval": "CRUXEval",
    "ifeval": "IFEval",
    "mmlu_pro": "MMLU-Pro",
}
LIVECODEBENCH_V1 = 400  # problems of release_v1
IFEVAL_PARTS = ("prompt_strict", "prompt_loose", "inst_strict", "inst_loose")
IFEVAL_INSTRUCTIONS = 834  # the 541 prompts hold so many
# questions of the test split by category (tables 4, 10, 11: benchmark `mmlu_pro/<category>`)
MMLU_PRO = {
    "biology": 717,
    "business": 789,
    "chemistry": 1132,
    "computer science": 410,
    "economics": 844,
    "engineering": 969,
    "health": 818,
    "history": 381,
    "law": 1101,
    "math": 1351,
    "other": 924,
    "philosophy": 499,
    "physics": 1299,
    "psychology": 798,
}
IFEVAL_TABLE = {"math": 12, "dapo": 13, "open-rs": 14}
MMLU_PRO_TABLES = {"dapo": (4, 10), "open-rs": (11,)}
TOLERANCE = 0.0201  # of a mean of printed parts: parts and mean may each be off by one unit in the last place
MAIN_TABLES = (1, 2, 7, 8)  # table 3 repeats rows of 1 and 2

# Share of the questions on which two models are taken to differ, for the narrow interval of a difference.
DISAGREEMENT = 0.10

# Share of an answer's variance that lies between questions. The paper prints no per-question results; the usual
# assumption for AMC avg@8 is a variance of 0.19 between per-question means at 50 % accuracy. 0.67 was measured on 50
# MATH problems x 8 answers of another model (tests/test_paper.py).
BETWEEN_QUESTIONS = (0.19 / 0.25 - 1 / 8) / (1 - 1 / 8)

# Name of each released checkpoint -> (method, backbone, training set): every trained row of tables 1, 2, 7 and 8, and
# Co-rewarding-III of the paper's third version. Source: the authors' README, section Checkpoints.
_RELEASED = {
    "gt": "GT",
    "self_certainty": "Self-Certainty",
    "entropy": "Entropy",
    "majority_voting": "Majority-Voting",
    "co_rewarding_i": "Co-rewarding-I",
    "co_rewarding_ii": "Co-rewarding-II",
    "co_rewarding_iii": "Co-rewarding-III",
}
_TRAINED = {
    "OpenRS": ("open-rs", ("Qwen3-4B-Base", "Qwen3-8B-Base")),
    "MATH": (
        "math",
        ("Qwen3-4B-Base", "Qwen3-8B-Base", "Llama-3.2-3B-Instruct", "Qwen2.5-3B", "Qwen2.5-7B", "Qwen3-1.7B-Base"),
    ),
    "DAPO14k": ("dapo", ("Qwen3-4B-Base", "Qwen3-8B-Base", "Llama-3.2-3B-Instruct")),
}
RELEASED_CHECKPOINTS = {
    f"TMLR-Group-HF/{printed}-{backbone}-{suffix}": (method, backbone, trained_on)
    for suffix, (trained_on, backbones) in _TRAINED.items()
    for method, printed in _RELEASED.items()
    for backbone in (backbones if method != "co_rewarding_iii" else backbones[:3] if suffix != "OpenRS" else ())
}


def load_paper_results(path: str | Path = RESULTS) -> pd.DataFrame:
    """The paper's numbers, one row each, in percent.

    Columns: table; trained_on (names of `corelib.config`; a base model's row carries its table's set); backbone;
    method (ours where it exists, else before_rl, mv_rephrased); benchmark; metric; value; n_problems; draws; low and
    high (`implied_interval`); flag (empty, or why the value cannot be taken as printed); note (harmless remarks).
    Raises FileNotFoundError when the file is not there.

    >>> r = load_paper_results()
    >>> r[(r["table"] == 8) & (r.backbone == "Qwen3-4B-Base") & (r.method == "gt")].value.tolist()
    [78.8, 85.22, 49.55, 33.5, 55.12, 46.41, 50.12]
    """
    return pd.read_csv(path, keep_default_na=False)


def released_row(checkpoint: str, results: pd.DataFrame | None = None) -> pd.DataFrame:
    """The paper's row of a released checkpoint, a benchmark a line; empty for Co-rewarding-III, which v2 does not have.

    Where the flag says `k/400: release_v1` the LiveCodeBench number is of another test set than release_v6. Raises
    ValueError for a checkpoint that was not released.

    >>> released_row("TMLR-Group-HF/GT-Qwen3-4B-Base-OpenRS").set_index("benchmark").flag["livecodebench"]
    'k/400: release_v1'
    """
    if checkpoint not in RELEASED_CHECKPOINTS:
        from corelib.config import unknown

        raise ValueError(unknown("released checkpoint", checkpoint, RELEASED_CHECKPOINTS))
    method, backbone, trained_on = RELEASED_CHECKPOINTS[checkpoint]
    return _main_row(load_paper_results() if results is None else results, trained_on, backbone, method)


def attainable(value: float, n: int, decimals: int = 2) -> str:
    """How a percentage printed to `decimals` places can be k/n: rounded, cut off, rounded up, or "" for not at all.

    An exact half may be rounded either way. A number made up at random passes as rounded with chance n / 10,000 at two
    decimals and by any of the three with up to twice that: the check has teeth below some thousand verdicts.

    >>> attainable(63.38, 800), attainable(62.83, 800), attainable(26.15, 1319), attainable(33.50, 1055)
    ('rounded', '', 'cut off', '')
    """
    step = Fraction(1, 10**decimals)
    printed = Fraction(round(value * 10**decimals), 10**decimals)
    k = printed * n / 100
    errors = [printed - Fraction(100 * near, n) for near in (floor(k), ceil(k)) if 0 <= near <= n]
    if any(abs(e) <= step / 2 for e in errors):
        return "rounded"
    if any(-step < e < 0 for e in errors):
        return "cut off"
    return "rounded up" if any(0 < e < step for e in errors) else ""


def size(benchmark: str, metric: str, value: float) -> tuple[int, int]:
    """Problems and draws a problem behind a printed value.

    LiveCodeBench: 1055 (release_v6) unless only the 400 problems of release_v1 explain the value.

    >>> size("amc", "pass@16", 66.27), size("livecodebench", "pass@1", 30.52), size("livecodebench", "pass@1", 33.50)
    ((83, 16), (1055, 1), (400, 1))
    """
    if benchmark.startswith("mmlu_pro/"):
        return MMLU_PRO[benchmark.removeprefix("mmlu_pro/")], 1
    problems, draws, _ = BENCHMARKS[benchmark]
    if benchmark == "livecodebench" and not attainable(value, problems):
        if attainable(value, LIVECODEBENCH_V1) == "rounded":
            problems = LIVECODEBENCH_V1
    return problems, int(metric.partition("@")[2] or draws)


def implied_interval(value: float, problems: int, draws: int = 1, metric: str = "") -> tuple[float, float]:
    """95 % interval, in percent, that a test's size alone implies for a printed percentage.

    One verdict a problem (also pass@k): Wilson's. Mean of k draws: p ± 1.96 sqrt(p (1 - p) (b + (1 - b) / k) / N) with
    b = BETWEEN_QUESTIONS, clustered by question as `stats.avg_at_k`. IFEval's means and instruction shares count as
    541 verdicts: the instructions of a prompt are not independent, so this is the cautious end. It holds question
    sampling only; the seed of the training run comes on top and the paper gives one.

    >>> [round(x, 1) for x in implied_interval(78.8, 500)], [round(x, 1) for x in implied_interval(50.0, 83, 8)]
    ([75.0, 82.2], [40.6, 59.4])
    """
    p, z = value / 100, 1.96
    if draws == 1 or metric.startswith("pass"):  # not scipy's: a printed value need not be k/N
        centre = (p + z**2 / (2 * problems)) / (1 + z**2 / problems)
        half = z / (1 + z**2 / problems) * sqrt(p * (1 - p) / problems + z**2 / (4 * problems**2))
    else:
        centre = p
        half = z * sqrt(p * (1 - p) * (BETWEEN_QUESTIONS + (1 - BETWEEN_QUESTIONS) / draws) / problems)
    low, high = centre - half, centre + half
    return 100 * max(low, 0.0), 100 * min(high, 1.0)


def flags(results: pd.DataFrame) -> pd.DataFrame:
    """Flag and note of every row, from the values alone; columns `flag` and `note`, index as given.

    flag: `not k/N`; `k/400: release_v1`; `k/1055 cut off, or k/400`; `contradicts table T (V)`, V being the mean of the
    parts there; `not the mean of its parts (V)`; `copy of ...` for a number that stands for two things, and for a mean
    that holds one. Means may be off by two units in the last place.
    note: a value that is cut off or rounded up instead of rounded, a mean with a part that is not k/N, a method for
    which the detail table's value stands here.

    >>> f = flags(r := load_paper_results())
    >>> bool((f.flag == r.flag).all()), bool((f.note == r.note).all())
    (True, True)
    """
    found: dict = {i: ([], []) for i in results.index}
    for row in results.itertuples():
        _granularity(row, *found[row.Index])
    for first, i in _copied_rows(results):
        found[i][0].append(f"copy of table {first}")
    details = _details(results, found)
    for row in results.itertuples():
        if row.metric == "mean_of_four" or row.benchmark == "mmlu_pro":
            _against_details(row, results, details, *found[row.Index])
    joined = {i: ["; ".join(flag), "; ".join(note)] for i, (flag, note) in found.items()}
    return pd.DataFrame.from_dict(joined, orient="index", columns=["flag", "note"])


def _granularity(row, flag: list, note: list) -> None:
    """Whether a share of N verdicts can be k/N; IFEval's and MMLU-Pro's means have steps finer than what is printed."""
    if row.metric == "mean_of_four" or row.benchmark == "mmlu_pro":
        return
    n = IFEVAL_INSTRUCTIONS if row.metric.startswith("inst") else row.n_problems
    n *= row.draws if row.metric.startswith("avg") else 1
    how = attainable(row.value, n)
    if not how:
        flag.append(f"not k/{n}")
    elif how != "rounded":
        note.append(f"{how}, not rounded, to k/{n}")
    if row.benchmark == "livecodebench" and n == LIVECODEBENCH_V1:
        flag.append("k/400: release_v1")
    elif row.benchmark == "livecodebench" and how == "cut off" and attainable(row.value, LIVECODEBENCH_V1) == "rounded":
        flag.append("k/1055 cut off, or k/400")


def _copied_rows(results: pd.DataFrame):
    """(table of the first, index) of rows that repeat another training set's; table 3 repeats on purpose."""
    seen: dict = {}
    trained = results[(results.method != "before_rl") & (results["table"] != 3)]
    for (table, backbone, method), rows in trained.groupby(["table", "backbone", "method"], sort=False):
        first = seen.setdefault((backbone, method, *rows.value), table)
        yield from ((first, i) for i in rows.index if first != table)


def _details(results: pd.DataFrame, found: dict) -> dict:
    """(detail table, backbone, method) -> mean of the parts by size, whether one is a copy, whether one is not k/N."""
    out = {}
    means = results[(results.metric == "mean_of_four") & results["table"].isin(IFEVAL_TABLE.values())]
    printed = means.groupby(["table", "backbone", "method"])["value"].agg(list)
    parts = results[results.metric.isin(IFEVAL_PARTS) | results.benchmark.str.startswith("mmlu_pro/")]
    for key, rows in parts.groupby(["table", "backbone", "method"]):
        by_metric = dict(zip(rows.metric, rows.index, strict=True))
        copied = False
        for how in ("strict", "loose"):
            prompt, inst = by_metric.get(f"prompt_{how}"), by_metric.get(f"inst_{how}")
            if prompt is not None and rows.value[prompt] == rows.value[inst]:
                found[prompt][0].append(f"copy of inst_{how}")
                copied = True
        impossible = any(flag.startswith("not k/") for i in rows.index for flag in found[i][0])
        whole = (rows.value * rows.n_problems).sum() / rows.n_problems.sum()
        near = [v for v in printed.get(key, ()) if abs(v - whole) <= TOLERANCE]  # the table's own rounding of it
        out[key] = (near[0] if near else round(whole, 2), copied, impossible)
    return out


def _against_details(row, results: pd.DataFrame, details: dict, flag: list, note: list) -> None:
    """A mean of tables 1, 2, 3, 7, 8 and 12 to 14 against the parts that tables 4 and 10 to 14 print."""
    tables = (IFEVAL_TABLE[row.trained_on],) if row.benchmark == "ifeval" else MMLU_PRO_TABLES.get(row.trained_on, ())
    for table in tables:
        whole, copied, impossible = details.get((table, row.backbone, row.method), (row.value, False, False))
        if copied:
            flag.append(f"holds a copy: table {table}")
        if impossible:
            note.append(f"a part is not k/N: table {table}")
        if abs(whole - row.value) <= TOLERANCE:
            continue
        if row.table == table:
            flag.append(f"not the mean of its parts ({whole:.2f})")
            continue
        flag.append(f"contradicts table {table} ({whole:.2f})")
        same = results[(results["table"] == row.table) & (results.backbone == row.backbone)]
        same = same[(same.benchmark == row.benchmark) & ((same.value - whole).abs() <= TOLERANCE)]
        if len(same):
            nearest = same.method[(same.value - whole).abs().idxmin()]
            note.append(f"the {whole:.2f} of table {table} stands here for {nearest}")


def _main_row(results: pd.DataFrame, trained_on: str, backbone: str, method: str) -> pd.DataFrame:
    chosen = results[
        results["table"].isin(MAIN_TABLES)
        & (results.trained_on == trained_on)
        & (results.backbone == backbone)
        & (results.method == method)
    ]
    return chosen.reset_index(drop=True)


def beside(ours: pd.DataFrame, trained_on: str, backbone: str, method: str, results: pd.DataFrame | None = None):
    """Our numbers next to the paper's row for the same model, a benchmark a line, in percent.

    `ours`: columns benchmark, mean, low, high, problems, samples (the fields of `stats.Estimate`, shares in [0, 1]).
    Adds the paper's value, interval, test size and draws (columns paper and *_paper), its flag and note, the difference
    (ours - paper) with the interval of two numbers that share nothing, and a verdict: `within noise`, `above the paper`,
    `below the paper`, `not comparable:` with the flag, or `not in the paper`. Raises ValueError for missing columns or
    rows, and for a row that the paper lacks.

    >>> from corelib.stats import avg_at_k
    >>> ours = pd.DataFrame([{"benchmark": "math500", **vars(avg_at_k([[True]] * 380 + [[False]] * 120))}])
    >>> beside(ours, "open-rs", "Qwen3-4B-Base", "gt")[["ours", "paper", "difference", "verdict"]].values.tolist()
    [[76.0, 78.8, -2.8, 'within noise']]
    """
    needed = ["benchmark", *Estimate.__dataclass_fields__]
    if missing := [c for c in needed if c not in ours]:
        raise ValueError(f"our numbers lack the column(s) {', '.join(missing)}")
    if not len(ours):
        raise ValueError("no numbers of ours to put beside the paper's")
    row = _main_row(load_paper_results() if results is None else results, trained_on, backbone, method)
    if not len(row):
        raise ValueError(f"the paper has no row for method {method!r} on {backbone} trained on {trained_on}")
    row = row.drop(columns=["table", "trained_on", "backbone", "method"])
    out = ours[needed].merge(row, "left", "benchmark", suffixes=("", "_paper")).fillna({"flag": "", "note": ""})
    out = out.rename(columns={"mean": "ours", "value": "paper", "n_problems": "problems_paper", "draws": "draws_paper"})
    out[["ours", "low", "high"]] *= 100
    out["difference"] = (out["ours"] - out["paper"]).round(2)
    spans, verdicts = [], []
    for r in out.itertuples():
        low, high = unpaired_difference(
            Estimate(r.ours, r.low, r.high, r.problems, r.samples),
            Estimate(r.paper, r.low_paper, r.high_paper, r.problems_paper, r.draws_paper),
        )
        spans.append((low, high))
        if pd.isna(r.paper):
            verdicts.append("not in the paper")
        elif r.flag:
            verdicts.append(f"not comparable: {r.flag}")
        else:
            verdicts.append("above the paper" if low > 0 else "below the paper" if high < 0 else "within noise")
    out["difference_low"], out["difference_high"] = zip(*spans, strict=True)
    return out.assign(verdict=verdicts)


def differences(
    results: pd.DataFrame,
    versus: str = "majority_voting",
    methods=("co_rewarding_i", "co_rewarding_ii"),
    disagreement: float = DISAGREEMENT,
) -> pd.DataFrame:
    """Each method minus `versus` on every benchmark of tables 1, 2, 7 and 8, with the noise its test size implies.

    In points. low, high: 95 % interval when the two answer independently, all that totals can say. Both answered the same
    questions, which helps: `paired_low`, `paired_high` is the interval if they disagreed on only `disagreement` of them
    (or as few as the difference allows), about the narrowest to be expected. `why`: the reason where a difference cannot
    be judged, because a value is flagged or the two have other test sets; else "". `exceeds`, `exceeds_paired`: whether
    the interval leaves out 0 (False where `why`). Seeds of training are not in either interval.

    >>> d = differences(load_paper_results())
    >>> len(d), int((d.why == "").sum()) < len(d), bool((d.exceeds <= d.exceeds_paired).all())
    (154, True, True)
    """
    rows = []
    main = results[results["table"].isin(MAIN_TABLES) & results.benchmark.isin(BENCHMARKS)]
    for (table, backbone, benchmark), group in main.groupby(["table", "backbone", "benchmark"], sort=False):
        by_method = {r.method: r for r in group.itertuples()}
        b = by_method[versus]
        for method in methods:
            a = by_method[method]
            low, high = unpaired_difference(*(Estimate(r.value, r.low, r.high, r.n_problems, r.draws) for r in (a, b)))
            share = (a.value - b.value) / 100
            half = 196 * sqrt((max(disagreement, abs(share)) - share**2) / min(a.n_problems, b.n_problems))
            why = "; ".join(dict.fromkeys(r.flag for r in (a, b) if r.flag and r.flag != "k/400: release_v1"))
            if a.n_problems != b.n_problems:
                why = f"{a.n_problems} and {b.n_problems} problems"
            d = a.value - b.value
            rows.append(
                {
                    "table": table, "trained_on": a.trained_on, "backbone": backbone, "benchmark": benchmark,
                    "method": method, "difference": round(d, 2), "low": low, "high": high, "paired_low": d - half,
                    "paired_high": d + half, "exceeds": not why and not low <= 0 <= high,
                    "exceeds_paired": not why and abs(d) > half, "why": why,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def noise_figure(results: pd.DataFrame, versus: str = "majority_voting", methods=("co_rewarding_i", "co_rewarding_ii")):
    """Which of the paper's differences from `versus` exceed their noise: a panel a benchmark, a line a trained model.

    Filled: exceeds the wide interval. Thin bar: the two models answer independently; thick bar: they disagree on
    few of the questions. A cross cannot be judged. The title is counted from the rows of `differences`.
    """
    import matplotlib.pyplot as plt

    from corelib.plots import STYLE

    d = differences(results, versus, methods)
    settings = sorted(
        dict.fromkeys(zip(d.trained_on, d.backbone, strict=True)), key=lambda s: list(IFEVAL_TABLE).index(s[0])
    )
    figure, axes = plt.subplots(2, 4, figsize=(13, 8.4), sharey=True)
    markers = dict(zip(methods, "osD^v", strict=False))
    for ax, benchmark in zip(axes.flat, BENCHMARKS, strict=False):
        for at, method in enumerate(methods):
            colour = STYLE[method][0]
            offset = 0.36 * (at - (len(methods) - 1) / 2)
            for r in d[(d.benchmark == benchmark) & (d.method == method)].itertuples():
                y = settings.index((r.trained_on, r.backbone)) + offset
                if r.why:
                    ax.plot(r.difference, y, "x", color="0.45", markersize=6)
                    continue
                ax.hlines(y, r.low, r.high, color=colour, linewidth=1)
                ax.hlines(y, r.paired_low, r.paired_high, color=colour, linewidth=3.2)
                face = colour if r.exceeds else "white"
                ax.plot(r.difference, y, markers[method], color=colour, markerfacecolor=face, markersize=6)
        ax.axvline(0, color="black", linewidth=0.8)
        for y in range(len(settings)):
            ax.axhspan(y - 0.5, y + 0.5, color="0.95" if y % 2 else "white", zorder=0, linewidth=0)
        counted = d[(d.benchmark == benchmark) & (d.why == "")]
        ax.set_title(f"{NAMES[benchmark]}: {counted.exceeds.sum()} of {len(counted)} exceed", fontsize=10)
        ax.set_ylim(len(settings) - 0.5, -0.5)
        ax.set_yticks(range(len(settings)), [f"{b}, {t}" for t, b in settings], fontsize=8)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(axis="x", labelsize=8)
    for ax in axes[1]:
        ax.set_xlabel("points", fontsize=9)
    axes[0, 3].set_xlabel("points", fontsize=9)
    key = axes.flat[7]
    key.axis("off")
    for method in methods:
        key.plot([], [], markers[method] + "-", color=STYLE[method][0], label=f"{STYLE[method][2]}: exceeds its noise")
    key.plot([], [], "o", color="black", markerfacecolor="white", label="within its noise")
    key.plot([], [], color="black", linewidth=1, label="95 % if the two share nothing")
    key.plot([], [], color="black", linewidth=3.2, label=f"95 % if they disagree on {100 * DISAGREEMENT:.0f} %")
    key.plot([], [], "x", color="0.45", label="cannot be judged (flagged value\nor another test set)")
    key.legend(loc="center", frameon=False, fontsize=9)
    judged = d[d.why == ""]
    better = judged.difference > 0
    wide, close = judged.exceeds, judged.exceeds_paired
    figure.suptitle(
        f"{' and '.join(STYLE[m][2] for m in methods)} against {STYLE[versus][2]}: "
        f"{wide.sum()} of {len(judged)} differences exceed their noise ({(wide & better).sum()} better, "
        f"{(wide & ~better).sum()} worse)\n{close.sum()} ({(close & better).sum()} better, {(close & ~better).sum()} worse) "
        f"if the two models disagree on only {100 * DISAGREEMENT:.0f} % of the questions; one training seed each, whose noise is not in the bars",
        fontsize=11,
    )
    figure.tight_layout(rect=(0, 0, 1, 0.99))
    return figure
