import json
import random

import pytest
import torch

from corelib import lab


def test_views_hold_the_same_terms_in_another_order():
    rng = random.Random(0)
    reordered = 0
    for _ in range(500):
        p = lab.draw(rng)
        assert sorted(p.terms) == sorted(p.story) and p.story[0] > 0
        assert lab._valid(p.terms) and lab._valid(p.story) and 0 <= p.answer <= lab.MAX_SUM
        reordered += p.terms != p.story
    assert reordered > 350
    assert all((q := lab.draw(rng, near_copy=True)).terms == q.story for _ in range(50))


def test_careful_solutions_are_right_short_and_known_words():
    rng, vocabulary = random.Random(1), lab.tokenizer().get_vocab()
    for _ in range(300):
        p = lab.draw(rng)
        for view in ("original", "rephrased"):
            assert (
                all(w in vocabulary for w in p.text(view).split())
                and len(p.text(view).split()) <= lab.MAX_PROMPT_TOKENS
            )
            tokens = lab.solution(p, view, "careful", rng, slip=0)
            assert tokens[-4:] == ["\\boxed{", str(p.answer), "}", "<eos>"] and len(tokens) <= 21
            assert all(t in vocabulary for t in tokens)
            for style in lab.STYLES:
                assert all(t in vocabulary for t in lab.solution(p, view, style, rng))
    assert "<eos>" not in lab.solution(p, "original", "ramble", rng)


def test_no_problem_crosses_a_split_in_any_order():
    found = {s: {tuple(sorted(p.terms)) for p in lab.problems(300, s, 0)} for s in ("train", "validation", "test")}
    assert (
        not found["train"] & found["test"]
        and not found["train"] & found["validation"]
        and not found["test"] & found["validation"]
    )
    assert {tuple(sorted(p.terms)) for p in lab._base_problems(0, False)}.isdisjoint(
        found["test"] | found["validation"]
    )
    with pytest.raises(ValueError, match="unknown split"):
        lab.problems(1, "dev", 0)


def test_pairs_are_distinct_repeatable_and_noise_is_exact():
    rows, counts = lab.pairs(200, seed=3)
    assert rows.to_list() == lab.pairs(200, seed=3)[0].to_list() != lab.pairs(200, seed=4)[0].to_list()
    assert len(set(rows["question"])) == 200 and counts["duplicates"] == 0 and counts["overlap_held_out"] == 0
    noisy, counts = lab.pairs(200, seed=3, wrong_rewrites=0.1)
    assert counts["wrong_rewrites"] == 20
    assert sum(a != b for a, b in zip(rows["rephrased"], noisy["rephrased"], strict=True)) == 20
    assert rows["answer"] == noisy["answer"]


def test_audit_has_the_shape_of_the_real_data():
    rows, audit = lab.load_pairs(50)
    assert set(rows.column_names) >= {"id", "question", "rephrased", "answer"}
    assert all(isinstance(v, int) for v in audit.counts.values())


def test_model_is_small_and_runs_on_vllms_cpu_build():
    model = lab.untrained_model()
    assert sum(p.numel() for p in model.parameters()) < 2e6
    assert model.config.head_dim in (32, 64) and model.config.model_type == "qwen3"


def test_shipped_base_model_has_the_measured_quality():
    """Not the file's claim: the weights in the repository, measured again on validation problems."""
    shipped = json.loads((lab.BASE_MODEL / "quality.json").read_text())
    assert (lab.BASE_MODEL / "model.safetensors").stat().st_size < 2e6
    measured = lab.measure(lab.BASE_MODEL, n=60)
    for view in ("original", "rephrased"):
        assert 0.25 < measured[view]["pass@1"] < 0.45
        assert 0.70 < shipped[view]["careful_right"] < 0.82 and 0.60 < measured[view]["careful_right"] < 0.9
        assert abs(measured[view]["pass@1"] - shipped[view]["pass@1"]) < 0.08


def test_base_training_is_deterministic(tmp_path):
    torch.set_num_threads(1)
    a, b = (lab._training_rows(random.Random(5), 4, 0.5, 0, lab.tokenizer()) for _ in range(2))
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    quality = [lab.train_base(tmp_path / str(i), steps=2, batch=4, progress=lambda _: None) for i in range(2)]
    assert (tmp_path / "0" / "model.safetensors").read_bytes() == (tmp_path / "1" / "model.safetensors").read_bytes()
    assert quality[0] == quality[1]
