"""Evaluation with vLLM: the same greedy answers, lengths and ends as with transformers, stored and found again."""

import importlib.util

import pytest

if not getattr(importlib.util.find_spec("vllm"), "origin", None):  # this folder may pass for a package of that name
    pytest.skip("vLLM is not installed; see requirements.txt in this folder", allow_module_level=True)

from corelib import generate, lab, models, report  # noqa: E402
from corelib.evaluate import evaluate_model  # noqa: E402

SETTINGS = {"max_model_len": 64, "disable_log_stats": True}


@pytest.fixture(scope="module")
def llm():
    engine, tokenizer = models.load_vllm(models.identify(lab.BASE_MODEL), **SETTINGS)
    yield engine, tokenizer
    engine.llm_engine.engine_core.shutdown()


def test_greedy_answers_equal_those_of_transformers(llm, tmp_path, monkeypatch):
    greedy = dict(benchmarks=["lab"], limit=60, temperature=0.0, k=1, say=lambda _: None)
    evaluate_model("lab", out=tmp_path / "hf", engine="transformers", **greedy)
    monkeypatch.setattr(generate, "load_vllm", lambda checkpoint: llm)
    monkeypatch.setattr(generate, "VLLM_COMPLETIONS", 20)
    made = evaluate_model("lab", out=tmp_path / "vllm", engine="vllm", **greedy)["benchmarks"]
    (name,) = made  # greedy answers to a part of the problems have a name of their own
    columns = ["id", "prompt", "completion", "tokens", "finish", "answer", "right"]
    ours, theirs = (report.load_answers(tmp_path / e, name)[columns] for e in ("vllm", "hf"))
    assert ours.equals(theirs) and len(list((tmp_path / "vllm").glob("lab-*/*.*.parquet"))) == 3
    monkeypatch.setattr(generate, "load_vllm", lambda _: pytest.fail("loaded again"))
    assert evaluate_model("lab", out=tmp_path / "vllm", engine="vllm", **greedy)["benchmarks"] == made


def test_draws_are_seeded_by_prompt_and_end_at_stop_texts(llm):
    engine, tokenizer = llm
    ids = generate.encode(tokenizer, [p.text("original") for p in lab.problems(6, "test", 0)])
    seeds = [generate.mixed_seed(0, i) for i in range(6)]
    drawn = generate.with_vllm(engine, tokenizer, ids, 4, 1.0, 24, seeds, [1])
    assert drawn[2:] == generate.with_vllm(
        engine, tokenizer, ids[2:], 4, 1.0, 24, seeds[2:], [1]
    )  # whatever else is in the batch
    assert drawn != generate.with_vllm(engine, tokenizer, ids, 4, 1.0, 24, seeds[::-1], [1])
    assert any(len(set(row)) > 1 for row in drawn) and {c.finish for row in drawn for c in row} <= {"stop", "length"}
    greedy = generate.with_vllm(engine, tokenizer, ids, 1, 0.0, 24, seeds, [1], ["\\boxed{"])
    model, _ = models.load_model(lab.BASE_MODEL)
    assert greedy == generate.with_transformers(model, tokenizer, ids, 1, 0.0, 24, seeds, [1], ["\\boxed{"])
