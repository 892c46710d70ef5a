"""bench evaluate: what its ratios compare."""

import pytest

from corelib import bench_evaluate as bench


def test_ratio_is_the_median_of_rounds_in_turn(monkeypatch):
    """a takes 3 s and b 2 s of a clock that only they move, in turn; the first round is not counted."""
    now, order = [0.0], []
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(bench.time, "process_time", lambda: now[0] / 2)

    def work(name, seconds):
        def run():
            order.append(name)
            now[0] += seconds * (10 if len(order) <= 2 else 1)
            return 7

        return run

    made = bench._in_turn(work("a", 3.0), work("b", 2.0), "a", "b")
    assert made["ratio"] == made["cpu_ratio"] == pytest.approx(1.5) and len(made["all"]) == bench.ROUNDS
    assert made["a_seconds"] == pytest.approx(3) and made["a_tokens"] == made["b_tokens"] == 7
    assert order == ["b", "a", "a", "b"] * 2 + ["b", "a"]


def test_both_sides_make_the_same_tokens(monkeypatch):
    """A few lab problems through the evaluation, bare generation, and lm-eval's own loop."""
    from corelib.generate import Engine
    from corelib.models import identify

    monkeypatch.setattr(bench, "PROBLEMS", 12)
    monkeypatch.setattr(bench, "ROUNDS", 1)
    engine = Engine(identify("lab"), "transformers")
    made = bench.over_generation(engine)
    assert made["evaluation_tokens"] == made["generation_tokens"] > 12 * bench.DRAWS
    made = bench.over_lm_eval(engine)
    assert made["questions"] == 12 == made["same_answers"] and made["lm_eval_tokens"] == made["ours_tokens"]
