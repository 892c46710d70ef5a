import math
import random

import pytest
import torch

from corelib import evaluate, lab, runs, train
from corelib.config import load_config


def test_avg_at_k_is_clustered_by_problem():
    rng = random.Random(0)
    right = [[rng.random() < p for _ in range(8)] for p in [rng.random() for _ in range(50)]]
    e = evaluate.avg_at_k(right)
    means = [sum(r) / 8 for r in right]
    mean = sum(means) / 50
    se = math.sqrt(sum((m - mean) ** 2 for m in means) / 49 / 50)
    assert e.mean == pytest.approx(mean) and e.high - e.mean == pytest.approx(1.96 * se)
    naive = 1.96 * math.sqrt(mean * (1 - mean) / 400)
    assert e.high - e.mean > 1.3 * naive  # treating 400 draws as independent would be too sure


def test_one_answer_a_problem_is_wilson():
    from scipy.stats import binomtest

    e = evaluate.avg_at_k([[True]] * 9 + [[False]])
    low, high = binomtest(9, 10).proportion_ci(method="wilson")
    assert (e.low, e.high) == (low, high) and e.high < 1
    with pytest.raises(ValueError, match="no problems"):
        evaluate.avg_at_k([])


@pytest.fixture(scope="module")
def base():
    return evaluate.load_model(lab.BASE_MODEL)


def test_sample_is_seeded_ordered_and_leaves_the_random_state(base):
    model, tokenizer = base
    prompts = [p.text("original") for p in lab.problems(6, "test", 0)]
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    a = evaluate.sample(model, tokenizer, prompts, 3, 1.0, 24, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (
        a
        == evaluate.sample(model, tokenizer, prompts, 3, 1.0, 24, seed=1)
        != evaluate.sample(model, tokenizer, prompts, 3, 1.0, 24, seed=2)
    )
    assert len(a) == 6 and all(len(row) == 3 for row in a)
    greedy = evaluate.sample(model, tokenizer, prompts, 2, 0.0, 24, seed=1)
    assert all(row[0] == row[1] for row in greedy)
    one_by_one = [evaluate.sample(model, tokenizer, [p], 1, 0.0, 24, seed=1)[0][0] for p in prompts]
    assert [row[0] for row in greedy] == one_by_one  # batching and padding change nothing, order is kept


def test_grade_counts_the_last_box_and_nothing_else():
    assert evaluate.grade([["\\boxed{ 3 }", "3", "\\boxed{4} \\boxed{3.0}"]], ["3"]) == [[True, False, True]]


def test_run_is_evaluated_once_and_result_json_is_complete(tiny, tmp_path, monkeypatch):
    config = tiny("majority_voting", learning_rate=1e-3)
    tmp_path = tmp_path / "run"
    with pytest.raises(RuntimeError, match="train it first"):
        evaluate.evaluate_run(tmp_path)
    train.train(config, tmp_path)
    result = evaluate.evaluate_run(tmp_path)
    needed = {
        "method",
        "seed",
        "base_accuracy",
        "best_accuracy",
        "final_accuracy",
        "final_reward",
        "label_accuracy",
        "collapsed",
        "steps",
        "tokens",
        "seconds",
    }
    assert needed <= result.keys() and runs.read_json(tmp_path / "result.json") == result
    assert result["collapsed"] == (result["final_accuracy"] < 0.5 * result["best_accuracy"])
    metrics = runs.load_metrics(tmp_path)
    assert result["label_accuracy"] == pytest.approx(metrics["gt/label_accuracy"].dropna().tail(10).mean())
    assert result["tokens"] > 0 and result["steps"] == 2
    monkeypatch.setattr(evaluate, "sample", None)  # a second call, and another run's base model, draw nothing
    assert evaluate.evaluate_run(tmp_path) == result
    import pandas as pd

    frame = pd.read_parquet(tmp_path / "evaluation" / "final.parquet")
    frame["completion"] = "\\boxed{ " + frame["answer"] + " }"
    frame.to_parquet(tmp_path / "evaluation" / "final.parquet")
    assert evaluate.evaluate_run(tmp_path)["final_accuracy"] == 1.0  # graded afresh from what is stored


def test_methods_without_labels_report_none(tiny, tmp_path):
    train.train(tiny("gt"), tmp_path / "run")
    assert evaluate.evaluate_run(tmp_path / "run")["label_accuracy"] is None


def test_validation_and_test_problems_differ_from_training():
    config = load_config("lab")
    held = set(evaluate.problems_of(config, "validation")["question"]) | set(
        evaluate.problems_of(config, "test")["question"]
    )
    assert not held & set(train.load_pairs(config)["question"])
