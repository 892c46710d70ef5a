"""The paper's tables: every cell against the specification, intervals and flags derived again, cells typed by hand."""

import doctest
import json
import math
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from corelib import paper
from corelib.config import DATASETS, METHOD_NAMES
from corelib.stats import Estimate
from tests.conftest import ROOT

SPECIFICATION = ROOT.parent / "shared" / "reference" / "paper-and-official-code.md"
METHODS = {
    "Before RL": "before_rl",
    "Before-TTT": "before_rl",
    "GT-Reward": "gt",
    "Self-Certainty": "self_certainty",
    "Entropy": "entropy",
    "Majority-Voting": "majority_voting",
    "Majority-Voting w/ Original": "majority_voting",
    "Majority-Voting w/ Rephrased": "mv_rephrased",
    "Co-rewarding-I": "co_rewarding_i",
    "Co-rewarding-II": "co_rewarding_ii",
    "w/o Updating Reference": "frozen_teacher",
}
COLUMNS = {
    "MATH500": ("math500", "pass@1"),
    "GSM8K": ("gsm8k", "pass@1"),
    "AMC avg@8": ("amc", "avg@8"),
    "LiveCode": ("livecodebench", "pass@1"),
    "CRUX": ("cruxeval", "pass@1"),
    "IFEval": ("ifeval", "mean_of_four"),
    "MMLU-Pro": ("mmlu_pro", "exact_match"),
    "Average": ("ifeval", "mean_of_four"),
    "Prompt Strict": ("ifeval", "prompt_strict"),
    "Prompt Loose": ("ifeval", "prompt_loose"),
    "Inst. Strict": ("ifeval", "inst_strict"),
    "Inst. Loose": ("ifeval", "inst_loose"),
}
TRAINED_ON = {1: "math", 2: "dapo", 4: "dapo", 7: "math", 8: "open-rs", 9: "amc", 10: "dapo", 11: "open-rs", 12: "math", 13: "dapo", 14: "open-rs"}  # fmt: skip
KEY = ["table", "trained_on", "backbone", "method", "benchmark", "metric"]


def parse_specification(text: str) -> pd.DataFrame:
    """Every number of every table of the specification's section 6, by the names of the CSV."""
    section = text.split("\n# 6. Results")[1].split("\n## 6.x")[0]
    rows, table, backbone, header = [], 0, "", []
    for line in section.splitlines():
        if title := re.match(r"### Table (\d+) - (.*)", line):
            table, header = int(title[1]), []
            backbone = "Qwen3-8B-Base" if table == 4 else ""
        elif name := re.fullmatch(r"\*\*(.+)\*\*", line):
            backbone, header = re.sub(r"^Llama3[.-]2-(3B-)?", "Llama-3.2-3B-", name[1]), []
        elif line.startswith("|") and "---" not in line:
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if not header:
                header = cells
                continue
            named = dict(zip(header, cells, strict=True))
            printed = named.pop("Method")
            here = named.pop("Backbone", backbone)
            trained_on = TRAINED_ON.get(table) or ("dapo" if printed in ("Co-rewarding-II", "w/o Updating Reference") else "math")  # fmt: skip
            for column, value in named.items():
                category = column.replace("computer sci.", "computer science")
                benchmark, metric = COLUMNS.get(column) or (("amc", column) if "@" in column else (f"mmlu_pro/{category}", "exact_match"))  # fmt: skip
                rows.append([table, trained_on, here, METHODS[printed], benchmark, metric, float(value)])
    return pd.DataFrame(rows, columns=[*KEY, "value"])


# typed by hand from the specification: table, training set, backbone, method, benchmark, metric, value
BY_HAND = """
1 math Qwen3-8B-Base before_rl gsm8k pass@1 27.82
1 math Qwen3-8B-Base co_rewarding_i mmlu_pro exact_match 59.95
1 math Qwen3-8B-Base co_rewarding_ii ifeval mean_of_four 60.70
1 math Qwen3-4B-Base gt math500 pass@1 78.6
1 math Qwen3-4B-Base majority_voting amc avg@8 45.33
1 math Qwen3-4B-Base entropy cruxeval pass@1 52.88
1 math Llama-3.2-3B-Instruct self_certainty livecodebench pass@1 9.95
1 math Llama-3.2-3B-Instruct co_rewarding_ii math500 pass@1 49.8
2 dapo Qwen3-8B-Base gt amc avg@8 61.75
2 dapo Qwen3-8B-Base co_rewarding_ii cruxeval pass@1 67.12
2 dapo Qwen3-4B-Base majority_voting gsm8k pass@1 64.06
2 dapo Qwen3-4B-Base co_rewarding_ii gsm8k pass@1 91.89
2 dapo Qwen3-4B-Base gt livecodebench pass@1 18.58
2 dapo Llama-3.2-3B-Instruct entropy ifeval mean_of_four 55.78
2 dapo Llama-3.2-3B-Instruct co_rewarding_i mmlu_pro exact_match 32.61
3 math Qwen3-8B-Base mv_rephrased gsm8k pass@1 91.51
3 dapo Qwen3-8B-Base frozen_teacher math500 pass@1 78.0
3 dapo Llama-3.2-3B-Instruct co_rewarding_ii cruxeval pass@1 32.25
3 math Llama-3.2-3B-Instruct mv_rephrased cruxeval pass@1 17.25
3 math Llama-3.2-3B-Instruct majority_voting amc avg@8 20.48
4 dapo Qwen3-8B-Base gt mmlu_pro/engineering exact_match 46.14
4 dapo Qwen3-8B-Base co_rewarding_ii mmlu_pro/chemistry exact_match 64.58
4 dapo Qwen3-8B-Base majority_voting mmlu_pro/biology exact_match 75.32
4 dapo Qwen3-8B-Base entropy mmlu_pro/computer science exact_match 56.10
7 math Qwen2.5-3B co_rewarding_ii livecodebench pass@1 22.25
7 math Qwen2.5-7B before_rl livecodebench pass@1 3.79
7 math Qwen2.5-7B co_rewarding_i cruxeval pass@1 55.58
7 math Qwen3-1.7B-Base self_certainty gsm8k pass@1 40.25
7 math Qwen3-1.7B-Base gt mmlu_pro exact_match 39.12
8 open-rs Qwen3-8B-Base self_certainty math500 pass@1 82.6
8 open-rs Qwen3-8B-Base co_rewarding_i livecodebench pass@1 28.91
8 open-rs Qwen3-4B-Base gt livecodebench pass@1 33.50
8 open-rs Qwen3-4B-Base co_rewarding_i amc avg@8 39.41
8 open-rs Qwen3-4B-Base majority_voting mmlu_pro exact_match 48.75
9 amc Qwen2.5-7B before_rl amc avg@8 15.81
9 amc Qwen2.5-7B co_rewarding_ii amc pass@64 87.95
9 amc Qwen3-8B-Base majority_voting amc pass@16 72.29
9 amc Qwen3-8B-Base co_rewarding_i amc avg@64 53.58
10 dapo Qwen3-4B-Base gt mmlu_pro/biology exact_match 73.50
10 dapo Llama-3.2-3B-Instruct co_rewarding_ii mmlu_pro/psychology exact_match 49.12
10 dapo Llama-3.2-3B-Instruct majority_voting mmlu_pro/engineering exact_match 18.99
11 open-rs Qwen3-4B-Base self_certainty mmlu_pro/law exact_match 24.25
11 open-rs Qwen3-8B-Base co_rewarding_ii mmlu_pro/computer science exact_match 62.43
12 math Qwen2.5-3B entropy ifeval prompt_loose 30.50
12 math Qwen3-8B-Base co_rewarding_ii ifeval prompt_strict 55.64
12 math Llama-3.2-3B-Instruct before_rl ifeval inst_loose 67.03
12 math Qwen3-1.7B-Base majority_voting ifeval inst_loose 48.84
13 dapo Qwen3-4B-Base co_rewarding_ii ifeval inst_strict 51.44
13 dapo Llama-3.2-3B-Instruct gt ifeval mean_of_four 53.10
14 open-rs Qwen3-8B-Base entropy ifeval prompt_strict 43.25
14 open-rs Qwen3-4B-Base gt ifeval mean_of_four 47.80
"""
# section 6.x of the specification: what cannot be as printed -> part of the flag
KNOWN = """
1 Qwen3-8B-Base co_rewarding_ii cruxeval: not k/800
7 Qwen2.5-7B co_rewarding_i cruxeval: not k/800
8 Qwen3-4B-Base co_rewarding_i amc: not k/664
2 Llama-3.2-3B-Instruct self_certainty gsm8k: not k/1319
2 Llama-3.2-3B-Instruct entropy gsm8k: not k/1319
7 Qwen2.5-3B entropy livecodebench: not k/1055
7 Qwen2.5-3B co_rewarding_ii livecodebench: k/400: release_v1
7 Qwen3-1.7B-Base co_rewarding_i livecodebench: k/400: release_v1
8 Qwen3-8B-Base gt livecodebench: k/400: release_v1
8 Qwen3-8B-Base self_certainty livecodebench: k/400: release_v1
8 Qwen3-8B-Base entropy livecodebench: k/400
8 Qwen3-8B-Base majority_voting livecodebench: k/400: release_v1
8 Qwen3-8B-Base co_rewarding_ii livecodebench: k/400: release_v1
8 Qwen3-4B-Base gt livecodebench: k/400: release_v1
1 Qwen3-8B-Base before_rl ifeval: contradicts table 12 (50.32)
2 Qwen3-8B-Base before_rl ifeval: contradicts table 13 (50.32)
8 Qwen3-8B-Base before_rl ifeval: contradicts table 14 (50.32)
8 Qwen3-8B-Base gt ifeval: contradicts table 14 (52.53)
8 Qwen3-8B-Base entropy ifeval: contradicts table 14 (52.94)
8 Qwen3-4B-Base gt ifeval: contradicts table 14 (47.80)
8 Qwen3-4B-Base entropy ifeval: contradicts table 14 (46.41)
8 Qwen3-4B-Base co_rewarding_i ifeval: contradicts table 14 (46.83)
7 Qwen2.5-7B co_rewarding_i ifeval: contradicts table 12 (41.73)
1 Llama-3.2-3B-Instruct co_rewarding_i ifeval: contradicts table 12 (49.14)
12 Llama-3.2-3B-Instruct gt ifeval: not the mean of its parts (47.51)
14 Qwen3-4B-Base gt ifeval: copy of table 12
"""


@pytest.fixture(scope="module")
def results():
    return paper.load_paper_results()


def test_every_public_function_has_an_example_that_holds():
    found = [t for t in doctest.DocTestFinder(exclude_empty=False).find(paper) if not t.name.split(".")[-1].startswith("_")]  # fmt: skip
    without = {t.name for t in found if not t.examples and callable(getattr(paper, t.name.split(".")[-1], None))}
    assert without == {"corelib.paper.noise_figure"}
    assert doctest.testmod(paper).failed == 0


def test_cells_typed_by_hand(results):
    keyed = results.set_index(KEY).value
    lines = BY_HAND.strip().splitlines()
    assert len(lines) >= 50 and keyed.index.is_unique
    for line in lines:
        table, trained_on, backbone, method, *benchmark, metric, value = line.split()
        assert keyed[int(table), trained_on, backbone, method, " ".join(benchmark), metric] == float(value), line


def test_every_table_is_whole_and_every_name_is_known(results):
    counts = results.groupby("table").size().to_dict()
    assert counts == {1: 147, 2: 147, 3: 70, 4: 84, 7: 147, 8: 98, 9: 96, 10: 168, 11: 168, 12: 210, 13: 105, 14: 70}
    assert set(results.method) - set(METHOD_NAMES) == {"before_rl", "mv_rephrased"}
    assert set(results.trained_on) <= set(DATASETS)
    assert results.groupby(["table", "backbone", "method"]).size().groupby("table").nunique().eq(1).all()


def test_every_cell_is_the_specifications(results):
    if not SPECIFICATION.is_file():
        pytest.skip(f"the specification is not at {SPECIFICATION.parent.parent.name}/reference beside the repository")
    parsed = parse_specification(SPECIFICATION.read_text())
    assert len(parsed) == len(results) == 1510
    pd.testing.assert_frame_equal(parsed, results[[*KEY, "value"]])


def test_sizes_and_intervals_follow_from_the_values(results):
    for r in results.itertuples():
        assert (r.n_problems, r.draws) == paper.size(r.benchmark, r.metric, r.value)
        low, high = paper.implied_interval(r.value, r.n_problems, r.draws, r.metric)
        assert (r.low, r.high) == (pytest.approx(low, abs=0.00501), pytest.approx(high, abs=0.00501))
        assert 0 <= r.low < r.value < r.high <= 100


def test_flags_and_notes_follow_from_the_values(results):
    again = paper.flags(results.drop(columns=["flag", "note"]))
    pd.testing.assert_series_equal(again.flag, results.flag)
    pd.testing.assert_series_equal(again.note, results.note)


def test_everything_the_specification_found_is_flagged(results):
    whole = results[results.metric.isin([m for _, _, m in paper.BENCHMARKS.values()])]
    keyed = whole.set_index(["table", "backbone", "method", "benchmark"]).flag
    for line in KNOWN.strip().splitlines():
        row, expected = line.split(": ", 1)
        table, *rest = row.split()
        assert expected in keyed[int(table), *rest], line


@pytest.mark.parametrize(
    "where, value, before, after",
    [
        ((1, "Qwen3-8B-Base", "co_rewarding_ii", "cruxeval", "pass@1"), 62.88, "not k/800", ""),
        ((1, "Qwen3-8B-Base", "gt", "cruxeval", "pass@1"), 63.30, "", "not k/800"),
        ((8, "Qwen3-8B-Base", "before_rl", "ifeval", "mean_of_four"), 50.32, "contradicts table 14 (50.32)", ""),
        ((8, "Qwen3-8B-Base", "self_certainty", "mmlu_pro", "exact_match"), 57.03, "", "contradicts table 11 (56.02)"),
        (
            (12, "Qwen3-8B-Base", "co_rewarding_ii", "ifeval", "prompt_loose"),
            57.30,
            "not k/541; copy of inst_loose",
            "",
        ),
        ((9, "Qwen2.5-7B", "entropy", "amc", "pass@8"), 57.00, "", "not k/83"),
        ((12, "Qwen3-1.7B-Base", "majority_voting", "ifeval", "inst_loose"), 44.84, "not k/834", ""),
    ],
)
def test_a_flag_comes_and_goes_with_the_value(results, where, value, before, after):
    changed = results.drop(columns=["flag", "note"])
    at = (changed[["table", "backbone", "method", "benchmark", "metric"]] == where).all(axis=1)
    assert at.sum() == 1 and results.flag[at].item() == before
    changed.loc[at, "value"] = value
    assert paper.flags(changed).flag[at].item() == after


@pytest.mark.parametrize("n", [7, 83, 541, 664, 800, 1055])
def test_attainable_is_what_decimal_rounding_gives(n):
    from decimal import ROUND_DOWN, ROUND_HALF_DOWN, ROUND_HALF_UP, ROUND_UP, Decimal

    place = Decimal("0.01")
    shares = [Decimal(100 * k) / n for k in range(n + 1)]
    ways = {"rounded": (ROUND_HALF_UP, ROUND_HALF_DOWN), "cut off": (ROUND_DOWN,), "rounded up": (ROUND_UP,)}
    reached = {name: {int(100 * s.quantize(place, how)) for s in shares for how in hows} for name, hows in ways.items()}
    for hundredths in range(10001):
        expected = next((name for name in ways if hundredths in reached[name]), "")
        assert paper.attainable(hundredths / 100, n) == expected, hundredths


def test_attainable_at_other_places_and_ends():
    assert paper.attainable(33.3, 3, decimals=1) == "rounded" and paper.attainable(33.3, 3) == ""
    assert paper.attainable(0.0, 500) == paper.attainable(100.0, 500) == "rounded"
    assert paper.attainable(100.2, 500) == ""  # more right than there are questions


def test_implied_intervals_are_wilsons_and_clustered():
    from scipy.stats import binomtest

    ci = binomtest(394, 500).proportion_ci(method="wilson")
    assert paper.implied_interval(78.8, 500) == pytest.approx((100 * ci.low, 100 * ci.high), abs=1e-3)
    for value, n, half in ((80, 500, 3.5), (92, 1319, 1.5), (25, 1055, 2.6), (60, 800, 3.4), (55, 12032, 0.9)):
        low, high = paper.implied_interval(value, n)
        assert (high - low) / 2 == pytest.approx(half, abs=0.06), n
    low, high = paper.implied_interval(50, 83, 8)
    assert (high - low) / 2 == pytest.approx(196 * math.sqrt(0.19 / 83))
    more = paper.implied_interval(50, 83, 64)
    assert 0.9 * (high - low) < more[1] - more[0] < high - low  # more draws of the same questions help little
    assert paper.implied_interval(87.95, 83, 64, "pass@64") == pytest.approx(paper.implied_interval(87.95, 83))


def test_assumed_share_between_questions_is_near_a_measured_one(shared_data):
    lines = (shared_data / "completions" / "qwen25math_math_cot_50x8.jsonl").read_text().splitlines()
    right = np.array([json.loads(line)["score"] for line in lines], dtype=float)
    between, within = 8 * right.mean(axis=1).var(ddof=1), right.var(axis=1, ddof=1).mean()
    assert (between - within) / (between + 7 * within) == pytest.approx(0.67, abs=0.005)
    assert paper.BETWEEN_QUESTIONS == pytest.approx(0.67, abs=0.1)


def test_sizes_are_those_of_the_benchmarks_files(shared_data):
    categories = pd.read_json(shared_data / "mmlu_pro" / "test_12032.jsonl", lines=True).category.value_counts()
    assert paper.MMLU_PRO == categories.to_dict() and sum(paper.MMLU_PRO.values()) == paper.BENCHMARKS["mmlu_pro"][0]
    ifeval = pd.read_json(shared_data / "ifeval" / "input_data.jsonl", lines=True)
    assert (len(ifeval), ifeval.instruction_id_list.str.len().sum()) == (541, paper.IFEVAL_INSTRUCTIONS)
    assert paper.BENCHMARKS["ifeval"][0] == 541
    for name, file in (("gsm8k", "gsm8k/test.jsonl"), ("cruxeval", "cruxeval/cruxeval.jsonl")):
        assert len((shared_data / file).read_text().splitlines()) == paper.BENCHMARKS[name][0]
    assert len(json.loads((shared_data / "amc" / "amc83_ttrl_test.json").read_text())) == paper.BENCHMARKS["amc"][0]


def test_mmlu_pro_totals_are_their_categories_except_on_openrs(results):
    total = results[(results.benchmark == "mmlu_pro") & (results["table"] != 3)].set_index(
        ["table", "backbone", "method"]
    )
    off = {}
    for (table, backbone, method), rows in results[results.benchmark.str.startswith("mmlu_pro/")].groupby(["table", "backbone", "method"]):  # fmt: skip
        assert len(rows) == 14
        mean = (rows.value * rows.n_problems).sum() / 12032
        main = {4: 2, 10: 2, 11: 8}[table]
        off[main, backbone, method] = abs(mean - total.value[main, backbone, method]) > 0.02
    assert not any(bad for (table, *_), bad in off.items() if table == 2)
    assert {k[1:] for k, bad in off.items() if bad} == {
        (r.backbone, r.method) for r in total.reset_index().itertuples() if "contradicts table 11" in r.flag
    }


def test_released_checkpoints_are_the_trained_rows_of_the_main_tables(results):
    names = list(paper.RELEASED_CHECKPOINTS)
    assert names[0] == "TMLR-Group-HF/GT-Qwen3-4B-Base-OpenRS" and len(names) == 72
    assert "TMLR-Group-HF/Co-rewarding-III-Llama-3.2-3B-Instruct-DAPO14k" in names
    assert "TMLR-Group-HF/Majority-Voting-Qwen3-1.7B-Base-MATH" in names
    assert "TMLR-Group-HF/Co-rewarding-III-Qwen3-8B-Base-OpenRS" not in names
    trained = results[results["table"].isin(paper.MAIN_TABLES) & (results.method != "before_rl")]
    rows = set(zip(trained.method, trained.backbone, trained.trained_on, strict=True))
    assert rows == {v for v in paper.RELEASED_CHECKPOINTS.values() if v[0] != "co_rewarding_iii"}
    for name in names:
        assert len(paper.released_row(name, results)) == (0 if "-III-" in name else 7)
    first = paper.released_row(names[0], results).set_index("benchmark")
    assert first.value.tolist() == [78.80, 85.22, 49.55, 33.50, 55.12, 46.41, 50.12]
    assert first.n_problems["livecodebench"] == 400 and first.flag["mmlu_pro"] == "contradicts table 11 (52.42)"
    with pytest.raises(ValueError, match="did you mean 'TMLR-Group-HF/GT-Qwen3-4B-Base-OpenRS'"):
        paper.released_row("TMLR-Group-HF/GT-Qwen3-4B-Base-OpenR1")


def numbers(**values):
    rows = [{"benchmark": b, **vars(Estimate(*v))} for b, v in values.items()]
    return pd.DataFrame(rows)


def test_ours_beside_the_papers(results):
    ours = numbers(
        math500=(0.80, 0.76, 0.83, 500, 1),
        gsm8k=(0.90, 0.88, 0.92, 1319, 1),
        amc=(0.30, 0.21, 0.39, 83, 8),
        livecodebench=(0.335, 0.30, 0.36, 1055, 1),
        aime24=(0.1, 0.0, 0.2, 30, 8),
    )
    out = paper.beside(ours, "open-rs", "Qwen3-4B-Base", "gt", results).set_index("benchmark")
    assert out.verdict.to_dict() == {
        "math500": "within noise",
        "gsm8k": "above the paper",
        "amc": "below the paper",
        "livecodebench": "not comparable: k/400: release_v1",
        "aime24": "not in the paper",
    }
    assert out.difference["gsm8k"] == 4.78 and out.paper["gsm8k"] == 85.22 and out.draws_paper["amc"] == 8
    ci = results[(results["table"] == 8) & (results.benchmark == "gsm8k") & (results.value == 85.22)].iloc[0]
    half = math.hypot(90 - 88, ci.high - 85.22)
    assert out.difference_low["gsm8k"] == pytest.approx(4.78 - half, abs=1e-6)
    assert list(ours.columns) == ["benchmark", "mean", "low", "high", "problems", "samples"]  # left as it was
    assert ours["mean"].max() == 0.90
    with pytest.raises(ValueError, match="lack the column.* low, high"):
        paper.beside(ours.drop(columns=["low", "high"]), "open-rs", "Qwen3-4B-Base", "gt", results)
    with pytest.raises(ValueError, match="no row for method 'random'"):
        paper.beside(ours, "open-rs", "Qwen3-4B-Base", "random", results)
    with pytest.raises(ValueError, match="no numbers of ours"):
        paper.beside(ours[:0], "open-rs", "Qwen3-4B-Base", "gt", results)


def test_differences_against_two_that_are_worked_out(results):
    d = paper.differences(results).set_index(["table", "backbone", "benchmark", "method"])
    row = d.loc[2, "Qwen3-4B-Base", "gsm8k", "co_rewarding_ii"]  # 91.89 against a collapsed 64.06
    assert row.difference == 27.83 and row.exceeds and row.exceeds_paired and row.why == ""
    assert row.paired_high - row.difference == pytest.approx(196 * math.sqrt((0.2783 - 0.2783**2) / 1319))
    row = d.loc[1, "Qwen3-4B-Base", "math500", "co_rewarding_i"]  # 78.8 against 77.4
    assert row.difference == 1.4 and not row.exceeds and not row.exceeds_paired
    assert row.paired_high - row.difference == pytest.approx(196 * math.sqrt((0.1 - 0.014**2) / 500))
    se = 196 * math.sqrt((0.788 * 0.212 + 0.774 * 0.226) / 500)
    assert row.high - row.low == pytest.approx(2 * se, rel=0.01)
    assert d.loc[8, "Qwen3-8B-Base", "livecodebench", "co_rewarding_i"].why == "1055 and 400 problems"
    assert d.loc[8, "Qwen3-8B-Base", "livecodebench", "co_rewarding_ii"].why == ""  # both of release_v1
    assert d.loc[1, "Qwen3-8B-Base", "ifeval", "co_rewarding_ii"].why == "holds a copy: table 12"
    assert not d[d.why != ""].exceeds.any() and not d[d.why != ""].exceeds_paired.any()
    against_gt = paper.differences(results, "gt", ("majority_voting",))
    back = paper.differences(results, "majority_voting", ("gt",))
    assert np.allclose(against_gt.difference, -back.difference) and (against_gt.exceeds == back.exceeds).all()


def test_title_of_the_noise_figure_is_counted(results):
    figure = paper.noise_figure(results)
    d = paper.differences(results)
    judged = d[d.why == ""]
    title = figure.get_suptitle()
    assert f"{judged.exceeds.sum()} of {len(judged)} differences exceed" in title
    assert f"({(judged.exceeds & (judged.difference > 0)).sum()} better" in title
    gsm8k = judged[judged.benchmark == "gsm8k"]
    assert figure.axes[1].get_title() == f"GSM8K: {gsm8k.exceeds.sum()} of {len(gsm8k)} exceed"
    plt.close(figure)
    equal = results.copy()
    rows = equal["table"].isin(paper.MAIN_TABLES)
    for column in ("value", "low", "high", "flag", "n_problems"):
        equal.loc[rows, column] = equal[rows].groupby(["table", "backbone", "benchmark"])[column].transform("first")
    figure = paper.noise_figure(equal)
    assert " 0 of 1" in figure.get_suptitle()
    plt.close(figure)
