import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from corelib import evaluate, generate, lab, models, report, runs, stats, stored, train
from corelib.benchmark_base import Verdict
from corelib.config import load_config
from corelib.evaluate_run import checkpoint_of, evaluate_run
from corelib.stats import avg_at_k


def quiet(_):
    pass


@pytest.fixture(scope="module")
def base():
    return models.load_model(lab.BASE_MODEL)


def test_sample_is_seeded_ordered_and_leaves_model_and_random_state(base):
    model, tokenizer = base
    prompts = [p.text("original") for p in lab.problems(6, "test", 0)]
    torch.manual_seed(7)
    before, defaults = torch.random.get_rng_state(), model.generation_config
    model.train()
    a = generate.sample(model, tokenizer, prompts, 3, 1.0, 24, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before) and model.training and model.generation_config is defaults
    model.eval()
    assert (
        a
        == generate.sample(model, tokenizer, prompts, 3, 1.0, 24, seed=1)
        != generate.sample(model, tokenizer, prompts, 3, 1.0, 24, seed=2)
    )
    assert len(a) == 6 and all(len(row) == 3 for row in a)
    greedy = generate.sample(model, tokenizer, prompts, 2, 0.0, 24, seed=1)
    assert all(row[0] == row[1] for row in greedy)
    one_by_one = [generate.sample(model, tokenizer, [p], 1, 0.0, 24, seed=1)[0][0] for p in prompts]
    assert [row[0] for row in greedy] == one_by_one  # batching and padding change nothing, order is kept


def test_completions_count_their_tokens_and_say_how_they_ended(base):
    model, tokenizer = base
    ids = generate.encode(tokenizer, [p.text("original") for p in lab.problems(8, "test", 0)])
    (long,), (short,) = (generate.with_transformers(model, tokenizer, ids[:1], 1, 0.0, n, [0], [1])[0] for n in (24, 4))
    made = model.generate(torch.tensor(ids[:1]), max_new_tokens=24, do_sample=False, eos_token_id=1)[0, len(ids[0]) :]
    assert made[-1] == 1 and long == (tokenizer.decode(made[:-1]), len(made), "stop")
    assert short == (tokenizer.decode(made[:4]), 4, "length")
    rows = generate.with_transformers(model, tokenizer, ids, 1, 0.0, 24, [0] * 8, [1], stop_texts=["\\boxed{"])
    for (cut,), (whole,) in zip(
        rows, generate.with_transformers(model, tokenizer, ids, 1, 0.0, 24, [0] * 8, [1]), strict=True
    ):
        assert cut.text == whole.text[: whole.text.index("\\boxed{") + len("\\boxed{")] and cut.finish == "stop"
        assert cut.tokens == len(tokenizer(cut.text)["input_ids"])


def test_defaults_of_the_checkpoint_do_not_reach_the_draw(base):
    model, tokenizer = base
    prompts = [p.text("original") for p in lab.problems(20, "test", 0)]
    plain = generate.sample(model, tokenizer, prompts, 2, 1.0, 24, seed=0)
    before = model.generation_config.to_dict()
    try:
        model.generation_config.update(repetition_penalty=1.5, top_k=1, top_p=0.1, min_p=0.9)
        assert generate.sample(model, tokenizer, prompts, 2, 1.0, 24, seed=0) == plain
    finally:
        model.generation_config = type(model.generation_config).from_dict(before)


def test_autocast_computes_in_bf16_over_fp32_weights(base):
    model, tokenizer = base
    seen = set()
    hook = model.model.layers[0].mlp.register_forward_hook(lambda m, i, o: seen.add((o.dtype, m.up_proj.weight.dtype)))
    try:
        generate.sample(model, tokenizer, ["Q 1 + 2 = ?"], 1, 0.0, 2, seed=0, autocast_dtype=torch.bfloat16)
        generate.sample(model, tokenizer, ["Q 1 + 2 = ?"], 1, 0.0, 2, seed=0)
    finally:
        hook.remove()
    assert seen == {(torch.bfloat16, torch.float32), (torch.float32, torch.float32)}


def test_batches_hold_every_prompt_once_longest_first_within_the_budget():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 60, 200).tolist()
    made = generate.batches(lengths, k=3, max_new_tokens=10, batch_tokens=600)
    assert sorted(i for b in made for i in b) == list(range(200))
    flat = [lengths[i] for b in made for i in b]
    assert flat == sorted(lengths, reverse=True)
    for batch in made:
        assert len(batch) == 1 or len(batch) * 3 * (max(lengths[i] for i in batch) + 10) <= 600
    assert generate.batches([500], 3, 10, 600) == [[0]]  # too long for the budget: alone, not lost


def test_messages_need_a_chat_template(base):
    with pytest.raises(ValueError, match="no chat template"):
        generate.render(base[1], [[{"role": "user", "content": "hello"}]])


def test_decoding_that_makes_no_sense_is_refused():
    how = dict(stop_ids=(1,), stop=(), seed=0, engine="transformers", dtype="float32")
    with pytest.raises(ValueError, match="greedy answers to one question are all alike"):
        generate.Decoding(0.0, 4, 10, **how)
    with pytest.raises(ValueError, match="at least 1"):
        generate.Decoding(1.0, 0, 10, **how)


def test_missing_vllm_says_so_before_anything_is_loaded(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setattr(generate.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        RuntimeError, match="conda env create -f environment.yml, or use --engine transformers|environment.yml"
    ):
        evaluate.evaluate_model("lab", ["lab"], engine="vllm", say=quiet)
    with pytest.raises(ValueError, match="unknown engine 'vlm'"):
        evaluate.evaluate_model("lab", ["lab"], engine="vlm", say=quiet)


# --- which model is it


def test_identity_is_that_of_the_weights(tmp_path, base, monkeypatch):
    model, tokenizer = base
    for name in ("a", "b", "c"):
        tokenizer.save_pretrained(tmp_path / name)
        model.save_pretrained(tmp_path / name)
    a = models.identify(tmp_path / "a")
    assert a.digest == models.identify(tmp_path / "b").digest and a.revision is None
    with torch.no_grad():
        weight = model.model.layers[1].mlp.up_proj.weight
        weight[3, 5] += 1
        model.save_pretrained(tmp_path / "c")
        weight[3, 5] -= 1
    assert models.identify(tmp_path / "c").digest != a.digest
    monkeypatch.setattr(models, "WHOLE", 0)  # as a large file: sampled
    sampled = {name: models.identify(tmp_path / name).digest for name in "abc"}
    assert sampled["a"] == sampled["b"]
    (tmp_path / "empty").mkdir()
    for wrong, message in (("no/such/folder", "neither a folder here nor a Hub id"), (tmp_path / "empty", "no weights"), ("OWNER/NAME", "hf download")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            models.identify(wrong)


def test_lora_checkpoint_is_merged(tmp_path, base):
    from peft import LoraConfig, get_peft_model

    whole, tokenizer = models.load_model(lab.BASE_MODEL)
    adapted = get_peft_model(whole, LoraConfig(r=4, target_modules=["up_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    merged, own = models.load_model(tmp_path / "adapter")
    assert own.get_vocab() == tokenizer.get_vocab() and not [n for n, _ in merged.named_parameters() if "lora" in n]
    ids = torch.tensor([[5, 20, 8, 21]])
    with torch.no_grad():
        assert torch.allclose(merged(ids).logits, adapted.eval()(ids).logits, atol=1e-4)
        assert not torch.allclose(merged(ids).logits, base[0](ids).logits, atol=1e-2)
    assert models.context_length(models.identify(tmp_path / "adapter")) == 64


# --- never twice


COMMAND = [sys.executable, *"-m corelib evaluate --model lab --benchmarks lab --batch-tokens 1500 --limit 60".split()]


def shards(out):
    return {p: p.stat().st_mtime_ns for p in out.glob("*/*.parquet") if p.name != "scores.parquet"}


def test_killed_evaluation_goes_on_where_it_was(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = evaluate.evaluate_model("lab", ["lab"], whole, batch_tokens=1500, limit=60, say=quiet)
    child = subprocess.Popen([*COMMAND, "--out", str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while len(shards(killed)) < 3 and time.time() < deadline and child.poll() is None:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    before = {p: t for p, t in shards(killed).items() if all(pd.read_parquet(p)["grader"])}  # the last may be ungraded
    assert 2 <= len(before) < len(shards(whole)) and not (killed / "evaluation.json").exists()
    said = []
    resumed = evaluate.evaluate_model("lab", ["lab"], killed, batch_tokens=1500, limit=60, say=said.append)
    after = shards(killed)
    assert before.items() <= after.items() and len(after) == len(shards(whole))  # none written again
    keys = [k for p in after for k in pd.read_parquet(p)[["key", "sample"]].itertuples(index=False, name=None)]
    assert len(keys) == len(set(keys)) == 60 * 8  # no question was drawn twice
    assert any("of 60 questions are answered already" in line for line in said)
    assert resumed["benchmarks"] == expected["benchmarks"]
    columns = ["id", "sample", "completion", "answer", "right"]
    same = [report.load_answers(out, "lab")[columns] for out in (whole, killed)]
    pd.testing.assert_frame_equal(*same)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A benchmark of 12 lab problems x 2, evaluated once."""
    test = evaluate.held_out(load_config("lab", test_problems=12, test_samples=2))
    out = tmp_path_factory.mktemp("small")
    return test, out, evaluate.evaluate_model("lab", [test], out, batch_tokens=200, say=quiet)


def forbid(monkeypatch):
    monkeypatch.setattr(generate, "with_transformers", lambda *_, **__: pytest.fail("answers were drawn again"))


def test_damaged_shard_is_named_and_only_its_questions_drawn_again(small, tmp_path, monkeypatch):
    import shutil

    test, out, first = small
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    victim = sorted(shards(copy))[1]
    lost = set(pd.read_parquet(victim)["key"])
    content = bytearray(victim.read_bytes())
    content[len(content) // 3] ^= 1  # one bit, somewhere in the data
    victim.write_bytes(content)
    drawn, said, draw = [], [], generate.with_transformers
    monkeypatch.setattr(generate, "with_transformers", lambda m, t, ids, *a, **k: drawn.extend(ids) or draw(m, t, ids, *a, **k))  # fmt: skip
    again = evaluate.evaluate_model("lab", [test], copy, batch_tokens=200, say=said.append)
    assert len(drawn) == len(lost) and any(victim.name in line and "is damaged" in line for line in said)
    assert again["benchmarks"] == first["benchmarks"] and victim.with_suffix(".damaged").exists()
    pd.testing.assert_frame_equal(report.load_answers(out, "lab"), report.load_answers(copy, "lab"))


def test_another_grader_regrades_without_drawing(small, monkeypatch):
    test, out, first = small
    forbid(monkeypatch)
    assert evaluate.evaluate_model("lab", [test], out, say=quiet)["benchmarks"] == first["benchmarks"]
    graded = []

    def harsh(completions, problem):
        graded.append(problem["id"])
        return [Verdict(None, False, "timeout") for _ in completions]

    before = shards(out)
    evaluate.evaluate_model("lab", [replace(test, grade=harsh)], out, say=quiet)
    assert not graded and shards(out) == before  # the same grader sources: verdicts are read
    monkeypatch.setattr(stored, "grader_version", lambda: "a better grader")
    row = evaluate.evaluate_model("lab", [replace(test, grade=harsh)], out, say=quiet)["benchmarks"]["lab"]
    assert sorted(graded) == list(range(12)) and (row["mean"], row["timeouts"], row["unparsed"]) == (0, 1, 1)
    monkeypatch.undo()
    forbid(monkeypatch)
    assert evaluate.evaluate_model("lab", [test], out, say=quiet)["benchmarks"] == first["benchmarks"]
    with pytest.raises(RuntimeError, match="drawn"):
        monkeypatch.setattr(
            generate, "with_transformers", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("drawn"))
        )
        evaluate.evaluate_model("lab", [test], out, seed=1, say=quiet)  # another seed is another decoding


def test_more_problems_draw_only_the_new_ones(small, monkeypatch):
    test, out, _ = small
    more = evaluate.held_out(load_config("lab", test_problems=15, test_samples=2))
    drawn, draw = [], generate.with_transformers
    monkeypatch.setattr(generate, "with_transformers", lambda m, t, ids, *a, **k: drawn.extend(ids) or draw(m, t, ids, *a, **k))  # fmt: skip
    row = evaluate.evaluate_model("lab", [more], out, batch_tokens=200, say=quiet)["benchmarks"]["lab"]
    assert len(drawn) == 3 and row["problems"] == 15
    forbid(monkeypatch)
    row = evaluate.evaluate_model("lab", [test], out, say=quiet)["benchmarks"]["lab"]
    assert row["problems"] == 12
    assert evaluate.evaluate_model("lab", [test], out, limit=5, say=quiet)["benchmarks"]["lab"]["problems"] == 5
    evaluate.evaluate_model("lab", [test], out, say=quiet)


def test_folder_of_another_model_is_refused(small, tmp_path, base):
    test, out, _ = small
    base[0].save_pretrained(tmp_path)
    base[1].save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="holds answers of lab"):
        evaluate.evaluate_model(tmp_path, [test], out, say=quiet)


def test_too_long_a_question_is_refused_before_the_model_is_loaded(small, monkeypatch, tmp_path):
    monkeypatch.setattr(generate, "load_model", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ValueError, match=r"give --max-new-tokens of at most 5\d"):
        evaluate.evaluate_model("lab", [small[0]], tmp_path, max_new_tokens=64, say=quiet)


def test_dry_run_draws_nothing_and_says_what_is_left(small, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "load_model", lambda *_: pytest.fail("loaded"))
    said = []
    evaluate.evaluate_model("lab", [small[0]], tmp_path, batch_tokens=200, dry_run=True, say=said.append)
    assert "12 questions x 2, 24" not in said[-1] and "12 questions x 2, 12 to draw in " in said[-1]
    assert not (tmp_path / "evaluation.json").exists()


# --- what is reported


def frame(rows):
    return pd.DataFrame([{"finish": "stop", "detail": "", "tokens": 1} | row for row in rows])


def test_score_by_hand():
    def row(i, answer, right, **more):
        return {"id": i, "answer": answer, "right": right} | more

    table = frame(
        [
            row("x", "1", True), row("x", "1.0", True), row("x", "2", False), row("x", None, False, finish="length"),
            row("y", "3", False, detail="timeout"), row("y", "4", False), row("y", "4", False), row("y", "5", True, tokens=9),
        ]
    )  # fmt: skip
    test = evaluate.held_out(load_config("lab"))
    got = evaluate.score(table, test, seen=["y"])
    assert got["mean"] == (2 / 4 + 1 / 4) / 2 and got["problems"] == 2 and got["samples"] == 4
    assert (got["truncated"], got["unparsed"], got["timeouts"], got["tokens"]) == (1 / 8, 1 / 8, 1 / 8, 2)
    assert got["pass@4"]["mean"] == 1 and got["maj@4"]["mean"] == 0.5  # the vote of x is 1, that of y is 4
    assert got["seen_in_training"] == 1 and got["without_seen"]["mean"] == 0.5
    assert "without_seen" not in evaluate.score(table, test)


def test_mean_of_four_is_the_paper_s_and_its_error_that_of_resampled_prompts():
    rng = np.random.default_rng(0)
    details = []
    for _ in range(300):
        strict = (rng.random(rng.integers(1, 4)) < rng.choice([0.3, 0.8])).tolist()
        loose = [s or rng.random() < 0.2 for s in strict]
        row = {"prompt_strict": all(strict), "prompt_loose": all(loose), "inst_strict": strict, "inst_loose": [bool(x) for x in loose]}  # fmt: skip
        details.append(json.dumps(row))

    def four(chosen):
        rows = [json.loads(d) for d in chosen]
        parts = [np.mean([r[f"prompt_{h}"] for r in rows]) for h in ("strict", "loose")]
        return np.mean(parts + [np.mean([x for r in rows for x in r[f"inst_{h}"]]) for h in ("strict", "loose")])

    e = evaluate.mean_of_four(details)
    assert e.mean == pytest.approx(four(details)) and e.problems == 300
    resampled = np.std([four(rng.choice(details, 300)) for _ in range(400)])
    assert (e.high - e.low) / 2 / 1.96 == pytest.approx(resampled, rel=0.15)


def test_comparison_is_paired_on_common_questions(tmp_path):
    def store(name, right, benchmark="b", **decoding):
        folder = tmp_path / name / benchmark
        rows = [{"id": str(i), "sample": j, "key": f"{i}", "right": r} for i, row in right.items() for j, r in enumerate(row)]  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_parquet(folder / "scores.parquet")
        known = runs.read_json(tmp_path / name / "evaluation.json") or {"benchmarks": {}}
        known["benchmarks"][benchmark] = {"answers": benchmark, "mean": 0.5, "decoding": decoding}
        runs.write_json(tmp_path / name / "evaluation.json", known)

    store("a", {i: [i < 8] for i in range(10)}, k=1)
    store("b", {i: [1 < i < 8] for i in reversed(range(11))}, k=2)  # other order, one question more
    got = report.compare(tmp_path / "a", tmp_path / "b").loc["b"]
    assert (
        got["difference"] == pytest.approx(0.2) and got["problems"] == 10 and (got["only_a"], got["only_b"]) == (2, 0)
    )
    assert got["p"] == got["p_mcnemar"] == got["p_holm"] == 0.5  # 2 of 4 sign patterns are as extreme
    assert got["note"] == "k differs; 1 questions of one model only"
    with pytest.raises(ValueError, match=r"b was drawn differently in .*a and .*b \(k 1 and 2\)"):
        report.over_seeds([tmp_path / "a", tmp_path / "b"])  # a difference of decoding is none of seeds
    store("b", {i: [1 < i < 8] for i in reversed(range(11))}, k=1, seed=7)
    split = report.over_seeds([tmp_path / "a", tmp_path / "b"])["b"]  # ten questions in common: .8 and .6
    assert split.mean == pytest.approx(0.7) and split.same_questions.samples == 2
    assert split == stats.seeds_and_questions(
        [[float(i < 8) for i in range(10)], [float(1 < i < 8) for i in range(10)]]
    )
    store("a", {0: [True, False]}, "c")
    store("b", {0: [True, True]}, "c")
    assert report.compare(tmp_path / "a", tmp_path / "b").loc["b", "p_holm"] == 1.0  # two benchmarks were looked at
    store("d", {0: [True]}, "z")
    with pytest.raises(RuntimeError, match="share no benchmark"):
        report.compare(tmp_path / "a", tmp_path / "d")
    with pytest.raises(RuntimeError, match="no evaluation.json"):
        report.compare(tmp_path / "a", tmp_path / "nothing")


def test_released_checkpoint_stands_beside_the_paper_s_row(capsys):
    name = "TMLR-Group-HF/GT-Qwen3-4B-Base-OpenRS"
    row = {"title": "", "of": 1, "truncated": 0.0, "unparsed": 0.0, "timeouts": 0.0, "samples": 1}
    scores = {"math500": 0.6, "livecodebench": 0.3, "gsm8k_few_shot": 0.85, "lab": 0.5}
    rows = {b: row | {"title": b, "mean": v, "low": v - 0.03, "high": v + 0.03, "problems": 500} for b, v in scores.items()}  # fmt: skip
    evaluation = {"model": name, "digest": "0", "benchmarks": rows}
    near = report.beside_paper(evaluation).set_index("benchmark")
    assert near["paper"].dropna().to_dict() == {"math500": 78.8, "livecodebench": 33.5, "gsm8k_few_shot": 85.22}
    assert near["verdict"]["math500"] == "below the paper" and near["verdict"]["gsm8k_few_shot"] == "within noise"
    assert (
        near["verdict"]["livecodebench"].startswith("not comparable") and near["verdict"]["lab"] == "not in the paper"
    )
    report.show(evaluation)
    said = " ".join(capsys.readouterr().out.split())
    assert "78.80" in said and "livecodebench: the printed value is k/400, a share of release_v1's problems" in said
    assert report.paper_row("/models/GT-Qwen3-4B-Base-OpenRS") == ("open-rs", "Qwen3-4B-Base", "gt")
    assert report.paper_row("lab") is None and report.paper_row("x/y", load_config("lab")) is None
    assert report.trained_on(name) == "open-rs" and report.trained_on("Qwen/Qwen3-4B-Base") == ""
    with pytest.raises(ValueError, match="--benchmarks"):
        report.chosen(" ,")
    assert report.chosen("paper, lab,gsm8k")[:2] == ["math500", "gsm8k"] and report.chosen("paper,lab,lab")[7:] == [
        "lab"
    ]


def test_overlap_is_left_out_in_a_second_score(tmp_path):
    test = evaluate.held_out(load_config("lab", test_problems=6, test_samples=2))
    questions = test.load("")["question"]
    row = evaluate.evaluate_model("lab", [test], tmp_path, trained_on=[questions[2]], say=quiet)["benchmarks"]["lab"]
    assert row["seen_in_training"] == 1 and row["without_seen"]["problems"] == 5 and row["problems"] == 6


@pytest.mark.slow
def test_overlap_with_dapo_is_that_of_the_survey(shared_data):
    texts = evaluate.training_texts("dapo", str(shared_data / "corew_train"))
    amc = evaluate.named("amc")
    job = evaluate.Job(amc, None, [stored.Question("", "", p) for p in amc.load(str(shared_data))], [], None)
    assert len(evaluate._seen(job, texts)) >= 14  # 14 with the same gold; 11 of all sets differ in it


# --- a run's checkpoints


def test_grade_counts_the_last_box_and_nothing_else():
    assert evaluate.grade([["\\boxed{ 3 }", "3", "\\boxed{4} \\boxed{3.0}"]], ["3"]) == [[True, False, True]]


def test_run_is_evaluated_once_and_result_json_is_complete(tiny, tmp_path, monkeypatch):
    config = tiny("majority_voting", learning_rate=1e-3)
    tmp_path = tmp_path / "run"
    with pytest.raises(RuntimeError, match="train it first"):
        evaluate_run(tmp_path)
    train.train(config, tmp_path)
    result = evaluate_run(tmp_path, say=quiet)
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
    forbid(monkeypatch)  # a second call, and another run's base model, draw nothing
    assert evaluate_run(tmp_path, say=quiet) == result
    answers = report.load_answers(tmp_path / "evaluation" / "final", "lab")
    assert len(answers) == 12 and result["final_accuracy"] == avg_at_k(evaluate.verdicts(answers)).mean
    assert answers.groupby("level").size().sum() == 12
    _, out, _ = checkpoint_of(tmp_path, "best")
    assert out == tmp_path / "evaluation" / "best"
    with pytest.raises(RuntimeError, match="no checkpoint 7; there are base, best, 2, final"):
        checkpoint_of(tmp_path, "7")
    with pytest.raises(RuntimeError, match="not a run folder"):
        checkpoint_of(tmp_path / "best", "final")
    (tmp_path / "final").rename(tmp_path / "old")
    (tmp_path / "best").rename(tmp_path / "final")
    (tmp_path / "old").rename(tmp_path / "best")
    monkeypatch.undo()
    assert evaluate_run(tmp_path, say=quiet)["final_accuracy"] == result["best_accuracy"]  # weights, not names, count


def test_methods_without_labels_report_none(tiny, tmp_path):
    train.train(tiny("gt"), tmp_path / "run")
    assert evaluate_run(tmp_path / "run", say=quiet)["label_accuracy"] is None


def test_validation_and_test_problems_differ_from_training():
    config = load_config("lab")
    held = set(evaluate.problems_of(config, "validation")["question"]) | set(
        evaluate.problems_of(config, "test")["question"]
    )
    assert not held & set(train.load_pairs(config)["question"])


def test_command_line(tmp_path, capsys):
    from corelib.__main__ import main

    assert main(["evaluate"]) == 2 and "one of the two" in capsys.readouterr().err
    assert main(["evaluate", "--model", "lab", "--benchmarks", "nonsense"]) == 2
    assert "unknown benchmark 'nonsense'" in capsys.readouterr().err
    common = ["evaluate", "--model", "lab", "--benchmarks", "lab", "--limit", "6", "--k", "1", "--temperature", "0"]
    assert main([*common, "--out", str(tmp_path / "a"), "--dry-run"]) == 0 and not (tmp_path / "a").exists()
    assert main([*common, "--out", str(tmp_path / "a")]) == 0
    said = capsys.readouterr().out
    assert "6 x 1" in said and "6 of 200 problems" in said
    main([*common[:-1], "0.9", "--out", str(tmp_path / "b")])
    assert main(["evaluate", "--compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "temperature differs" in capsys.readouterr().out
    assert main(["evaluate", "--over-seeds", str(tmp_path / "a"), str(tmp_path / "a")]) == 0
    assert "mean of 2 runs" in capsys.readouterr().out
    assert main(["evaluate", "--over-seeds", str(tmp_path / "a")]) == 2 and "two folders" in capsys.readouterr().err
    assert main(["evaluate", "--model", "lab", "--over-seeds", "a", "b"]) == 2
    assert main(["evaluate", "--compare", "a", "b", "--over-seeds", "a", "b"]) == 2


# --- what a completion or a kill may not cost


def collected(folder, problems, texts, grade, **more):
    """`stored.collect` over problems that are drawn one a batch; the table, and the positions drawn."""
    drawn = []
    questions = [stored.Question(f"key {p['id']}", "prompt", p) for p in problems]

    def draw(batch):
        drawn.extend(batch)
        return [[generate.Completion(texts[i], 3, "stop")] for i in batch]

    table = stored.collect(folder, questions, [[i] for i in range(len(problems))], draw, grade, say=quiet, **more)
    return table, drawn


def test_a_lone_surrogate_in_an_answer_is_stored(tmp_path):
    from corelib.benchmark_code import grade_zeroeval

    problems, texts = [{"id": 1, "answer": "'a'"}], ['{"answer": "\\ud800", "reasoning": ""}']
    for regrade in (False, True):
        table, drawn = collected(tmp_path, problems, texts, grade_zeroeval, regrade=regrade)
        assert list(table["answer"]) == ["?"] and list(table["completion"]) == texts and drawn == [0] * (not regrade)
    odd = [{"id": 2, "answer": ""}]
    table, _ = collected(
        tmp_path / "all", odd, ["\ud800a"], lambda made, _: [Verdict(None, False, "\udfff")] * len(made)
    )
    assert list(table["completion"]) == ["?a"] and list(table["detail"]) == ["?"] and list(table["answer"]) == [None]


def test_draws_survive_a_grader_that_fails(tmp_path):
    problems = [{"id": i} for i in range(3)]

    def broken(completions, problem):
        if problem["id"] == 1:
            raise RuntimeError("the sandbox refuses")
        return [Verdict(text, True) for text in completions]

    def mended(completions, problem):
        return [Verdict(text, problem["id"] == 1) for text in completions]

    with pytest.raises(RuntimeError, match="the sandbox refuses"):
        collected(tmp_path, problems, "abc", broken)
    assert len(stored.read(tmp_path)) == 2
    table, drawn = collected(tmp_path, problems, "abc", mended)
    assert drawn == [2]  # 0 is graded, 1 is graded now
    assert list(table["answer"]) == ["a", "b", "c"] and list(table["right"]) == [True, True, False]
    assert len(stored.read(tmp_path)) == 3 and collected(tmp_path, problems, "abc", broken)[1] == []


def test_a_shard_takes_the_place_of_the_one_of_its_keys_after_a_kill_between(tmp_path):
    rows = pd.DataFrame([{"key": "key 0", "sample": 0, "grader": ""}])
    ungraded = stored.write(tmp_path, rows)
    content = ungraded.read_bytes()
    graded = stored.write(tmp_path, rows.assign(grader="x"))
    assert list(stored.read(tmp_path)) == [graded]
    ungraded.write_bytes(content)  # killed before it was removed
    stored.write(tmp_path, rows.assign(grader="y"))
    assert [frame["grader"][0] for frame in stored.read(tmp_path).values()] == ["y"]


def test_a_call_of_vllm_holds_few_enough_completions_to_show_progress(base):
    engine = generate.Engine.__new__(generate.Engine)
    engine.kind = "vllm"
    how = generate.Decoding(0.2, 10, 8, (1,), (), 0, "vllm", "float32")
    plan = engine.plan([[5]] * 60, how)
    assert [len(batch) for batch in plan] == [25, 25, 10] and sorted(i for b in plan for i in b) == list(range(60))


# --- nothing is ignored, replaced or left out in silence


def test_options_of_a_run_are_honoured_or_refused(tiny, tmp_path, monkeypatch, capsys):
    from corelib import evaluate_run as of_run
    from corelib.__main__ import main

    folder = str(tmp_path / "run")
    for option in (["--limit", "5"], ["--temperature", "0"], ["--k", "2"], ["--out", "x"], ["--trained-on", "amc"]):
        assert main(["evaluate", folder, *option]) == 2 and option[0] in capsys.readouterr().err
    assert main(["evaluate", folder, "--compare", "a", "b"]) == 2
    train.train(tiny("gt"), tmp_path / "run")
    capsys.readouterr()
    assert main(["evaluate", folder, "--dry-run"]) == 0 and "6 questions x 2, 6 to draw" in capsys.readouterr().out
    assert not (tmp_path / "run" / "result.json").exists() and not (tmp_path / "run" / "evaluation").exists()
    asked = []
    monkeypatch.setattr(of_run, "evaluate_checkpoints", lambda *_, **options: asked.append(options) or {})
    monkeypatch.setattr(of_run, "default_engine", lambda: "vllm")
    evaluate_run(folder, dry_run=True)
    evaluate_run(folder, engine="vllm", regrade=True, dry_run=True)
    manifest = runs.read_json(tmp_path / "run" / "manifest.json")
    manifest["config"]["engine"] = "vllm"
    runs.write_json(tmp_path / "run" / "manifest.json", manifest)
    evaluate_run(folder, dry_run=True)
    assert [a["engine"] for a in asked] == ["transformers", "vllm", "vllm"] and asked[1]["regrade"]


def test_what_cannot_be_graded_is_left_out_before_anything_is_loaded(small, tmp_path, monkeypatch, capsys):
    from corelib.__main__ import main

    test, _, first = small
    monkeypatch.setattr(evaluate.sandbox, "available", lambda: "this kernel is too old")
    with monkeypatch.context() as patch:
        patch.setattr(generate, "load_model", lambda *_: pytest.fail("loaded"))
        for name in evaluate.EXECUTE:
            with pytest.raises(RuntimeError, match="this kernel is too old"):
                evaluate.evaluate_model("lab", [name], tmp_path, source=str(tmp_path), say=quiet)
    rest = evaluate.evaluate_model("lab", ["livecodebench", test], tmp_path, batch_tokens=200, say=quiet)
    assert list(rest["left_out"]) == ["livecodebench"] and rest["benchmarks"] == first["benchmarks"]
    assert "left_out" not in runs.read_json(tmp_path / "evaluation.json")
    common = ["evaluate", "--model", "lab", "--benchmarks", "cruxeval_exec,lab", "--limit", "2"]
    assert main([*common, "--out", str(tmp_path / "cli")]) == 1
    assert "left out: cruxeval_exec" in capsys.readouterr().err and (tmp_path / "cli" / "evaluation.json").exists()


def test_graders_that_execute_code_are_those_named():
    from corelib import benchmark_code, benchmark_lcb, benchmarks

    graders = (benchmark_lcb.grade, benchmark_code.grade_executed)
    assert sorted(evaluate.EXECUTE) == sorted(n for n, b in benchmarks.BENCHMARKS.items() if b.grade in graders)


def test_shares_count_what_graders_write():
    rows = [("1", "timeout, test 3 of 12"), ("2", "unparsed"), (None, "wrong, test 1 of 2"), ("3", None)]
    table = frame([{"id": i, "answer": a, "right": False, "detail": d} for i, (a, d) in enumerate(rows)])
    got = evaluate.score(table, evaluate.held_out(load_config("lab")))
    assert (got["timeouts"], got["unparsed"]) == (1 / 4, 2 / 4)


def test_smaller_run_and_other_decoding_do_not_replace_a_score(tmp_path):
    test = evaluate.held_out(load_config("lab", test_problems=12, test_samples=2))
    evaluate.evaluate_model("lab", [test], tmp_path, say=quiet)
    full = report.read_evaluation(tmp_path)["benchmarks"]["lab"]
    assert evaluate.evaluate_model("lab", [test], tmp_path, limit=3, say=quiet)["benchmarks"]["lab"]["problems"] == 3
    assert report.read_evaluation(tmp_path)["benchmarks"] == {"lab": full}
    assert report.load_answers(tmp_path, "lab")["id"].nunique() == 12
    evaluate.evaluate_model("lab", [test], tmp_path, k=1, temperature=0.0, limit=4, say=quiet)
    there = report.read_evaluation(tmp_path)["benchmarks"]
    assert there.keys() == {"lab", "lab[k=1, temperature=0.0]"} and there["lab"] == full
    other = there["lab[k=1, temperature=0.0]"]
    assert (other["problems"], other["samples"], other["title"]) == (4, 1, "lab, held out [k=1, temperature=0.0]")
    pair = report.compare(tmp_path, tmp_path)
    assert list(pair.index) == list(there) and (pair["difference"] == 0).all()


def test_names_of_a_run_s_problems_are_no_benchmark_s():
    held = evaluate.held_out(load_config("qwen3-4b", eval_dataset="math500"))
    assert (held.name, held.title) == ("math500_held_out", "math500, held out")
    own = evaluate.held_out(load_config("qwen3-4b", method="gt", dataset="amc", eval_dataset="amc"))
    assert (own.name, own.title) == ("amc_training", "amc, training questions")


def test_comparison_means_are_those_of_the_common_questions(tmp_path):
    def store(name, rows, mean, benchmark):
        folder = tmp_path / name / benchmark
        folder.mkdir(parents=True)
        pd.DataFrame(rows).assign(sample=0, key="").to_parquet(folder / "scores.parquet")
        known = runs.read_json(tmp_path / name / "evaluation.json") or {"benchmarks": {}}
        known["benchmarks"][benchmark] = {"answers": benchmark, "mean": mean}
        runs.write_json(tmp_path / name / "evaluation.json", known)

    store("a", [{"id": i, "right": i in "ab"} for i in "abcd"], 0.5, "x")  # common: c, d
    store("b", [{"id": i, "right": i in "ce"} for i in "cdef"], 0.5, "x")
    loose = {"a": ([1, 1, 0], 0), "b": ([1, 0, 0], 0)}
    for name, (followed, whole) in loose.items():
        parts = {f"{w}_{h}": v for h in ("strict", "loose") for w, v in (("prompt", whole), ("inst", followed))}
        one = {"id": "p", "right": False, "detail": json.dumps(parts)}
        all_right = {f"{w}_{h}": v for h in ("strict", "loose") for w, v in (("prompt", 1), ("inst", [1]))}
        store(name, [one, {"id": "q", "right": True, "detail": json.dumps(all_right)}], 0.0, "ifeval")
    got = report.compare(tmp_path / "a", tmp_path / "b")
    assert (got.a["x"], got.b["x"], got.difference["x"]) == (0, 0.5, -0.5)
    assert got.note["x"] == "4 questions of one model only"  # a, b of the one and e, f of the other
    # prompts 1 of 2; instructions 3 of 4 and 2 of 4
    assert (got.a["ifeval"], got.b["ifeval"]) == pytest.approx(((1 / 2 + 3 / 4) / 2, (1 / 2 + 2 / 4) / 2))
    assert got.difference["ifeval"] == pytest.approx(1 / 8)
    (tmp_path / "a" / "x" / "scores.parquet").unlink()
    with pytest.raises(RuntimeError, match=r"no scores\.parquet"):
        report.compare(tmp_path / "a", tmp_path / "b")


def test_bad_requests_are_one_sentence(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(generate, "load_model", lambda *_: pytest.fail("loaded"))
    test, *_ = small
    for wrong in ({"limit": -1}, {"temperature": float("nan")}, {"temperature": float("inf")}, {"temperature": -0.5}):
        with pytest.raises(ValueError, match="neither may be negative or endless"):
            evaluate.evaluate_model("lab", [test], tmp_path, say=quiet, **wrong)
    with pytest.raises(ValueError, match="leave --k out"):
        evaluate.evaluate_model("lab", [replace(test, harness="ifeval")], tmp_path, k=2, say=quiet)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; --out names a folder"):
        evaluate.evaluate_model("lab", [test], tmp_path / "file", say=quiet)
    (tmp_path / "evaluation.json").write_text('{"benchmarks": ')
    for read in (report.read_evaluation, lambda out: evaluate.evaluate_model("lab", [test], out, say=quiet)):
        with pytest.raises(RuntimeError, match="is damaged"):
            read(tmp_path)
    report.show({"model": "/models/[b]x[/b]/[/red]", "digest": "0", "benchmarks": {}})
    assert "[b]x[/b]/[/red]" in capsys.readouterr().out


def test_base_model_of_a_run_stands_beside_the_row_before_training(tmp_path, monkeypatch):
    from corelib import __main__ as cli
    from corelib import evaluate_run as of_run

    config, shown = load_config("qwen3-4b", method="gt"), []
    monkeypatch.setattr(of_run, "checkpoint_of", lambda *_: ("lab", tmp_path / "out", config))
    monkeypatch.setattr(report, "training_questions", lambda *_: ())
    monkeypatch.setattr(report, "show", lambda evaluation, config: shown.append(config))
    monkeypatch.setattr(evaluate, "evaluate_model", lambda *_: {})
    for checkpoint in ("base", "final"):
        assert cli.main(["evaluate", "run", "--checkpoint", checkpoint, "--benchmarks", "lab"]) == 0
    assert shown == [None, config]


# --- what the model reads, and where it ends


@pytest.fixture
def starts():
    """A tokenizer over words that begins every text with <s> (0), as Llama's and Gemma's do."""
    from tokenizers import Tokenizer, pre_tokenizers, processors
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(WordLevel({"<s>": 0, "</s>": 1, "<more>": 2, "a": 3, "b": 4, "?": 5}, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        additional_special_tokens=["<more>"],
    )
    tokenizer.chat_template = "{{ bos_token if messages[0]['role'] == 'user' }}{{ messages[0]['content'] }}"
    return tokenizer


def test_plain_text_starts_with_bos_once_and_a_template_writes_its_own(starts, base):
    prompts = ["a b", "<s>a b", [{"role": "user", "content": "a b"}], [{"role": "system", "content": "a b"}]]
    rendered = generate.render(starts, prompts)
    assert rendered == ["a b", "<s>a b", "<s>a b", "a b"]
    assert generate.encode(starts, rendered) == [[0, 3, 4], [0, 3, 4], [0, 3, 4], [3, 4]]
    assert generate.encode(starts, []) == []
    lab_prompt = lab.problems(1, "test", 0)[0].text("original")  # the lab's tokenizer adds nothing, as in training
    assert generate.encode(base[1], [lab_prompt]) == [base[1](lab_prompt)["input_ids"]]
    assert generate.encode(base[1], [lab_prompt]) == [base[1](lab_prompt, add_special_tokens=False)["input_ids"]]


def test_ids_that_the_checkpoint_names_as_its_ends_end_an_answer(starts, tmp_path, monkeypatch):
    import types

    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=6, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = [1, 4]
    model.save_pretrained(tmp_path / "model")
    starts.save_pretrained(tmp_path / "model")
    checkpoint = models.identify(tmp_path / "model")
    assert models.end_ids(checkpoint) == [1, 4]
    how = generate.Decoding(0.0, 1, 4, (1,), (), 0, "transformers", "float32")
    engine = generate.Engine(checkpoint, "transformers")
    weight = engine.model.lm_head.weight
    with torch.no_grad():  # whatever it reads, it says "b"
        engine.model.model.norm.weight.zero_()
        weight.zero_()
    monkeypatch.setattr(engine.model.lm_head, "forward", lambda x: torch.eye(6)[4].expand(*x.shape[:-1], 6))
    assert engine.draw([[0, 3]], [0], how) == [[generate.Completion("", 1, "stop")]]

    asked = []

    def answer(requests, params, use_tqdm):
        asked.extend(params)
        return [types.SimpleNamespace(outputs=[types.SimpleNamespace(token_ids=[3, 4])]) for _ in requests]

    monkeypatch.setitem(sys.modules, "vllm", types.SimpleNamespace(SamplingParams=lambda **given: given))
    engine.kind, engine.model = "vllm", types.SimpleNamespace(generate=answer)
    assert engine.draw([[0, 3]], [0], how) == [[generate.Completion("a", 2, "stop")]]
    assert asked[0]["stop_token_ids"] == [1, 4]

    base = LlamaForCausalLM.from_pretrained(tmp_path / "model")
    get_peft_model(base, LoraConfig(r=2, target_modules=["up_proj"])).save_pretrained(tmp_path / "adapter")
    assert models.end_ids(models.identify(tmp_path / "adapter")) == [1, 4]
    (tmp_path / "model" / "generation_config.json").unlink()
    assert models.end_ids(models.identify(tmp_path / "model")) == []


def test_moving_the_data_grades_nothing_again(tmp_path):
    graded = []

    def grade(completions, problem):
        graded.append(problem["id"])
        return [Verdict(text, True) for text in completions]

    for problem in ({"file": "/a", "offset": 0}, {"file": "/b", "offset": 9}):
        collected(tmp_path, [{"id": 1, "function": "f"} | problem], "a", grade)
    assert graded == [1]
    collected(tmp_path, [{"id": 1, "function": "g", "file": "/b", "offset": 9}], "a", grade)
    assert graded == [1, 1]


def adapter_of(folder, name):
    from peft import LoraConfig, get_peft_model

    whole, tokenizer = models.load_model(lab.BASE_MODEL)
    get_peft_model(whole, LoraConfig(r=2, target_modules=["up_proj"])).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": name}))
    return models.identify(folder)


@pytest.mark.parametrize("name", ["/no/such/base", "OWNER/NAME"])
def test_adapters_without_their_base_model_say_which_is_missing(name, tmp_path):
    checkpoint = adapter_of(tmp_path / "adapter", name)
    for load in (models.context_length, models.load_model, models.end_ids):
        with pytest.raises(ValueError, match=f"LoRA adapters of {name}, which is missing"):
            load(checkpoint)


def test_weights_of_a_base_model_that_are_not_here_are_named(tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM

    checkpoint = adapter_of(tmp_path / "adapter", "OWNER/NAME")
    monkeypatch.setattr(models, "identify", lambda name: None)  # its configuration is in the cache

    def offline(*_, **__):
        raise OSError("no weights in the cache")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", offline)
    with pytest.raises(
        ValueError, match="adapters of OWNER/NAME, whose weights cannot be had .no weights in the cache"
    ):
        models.load_model(checkpoint)


def test_memory_of_the_merged_model_is_free_before_vllm_starts(tmp_path, base, monkeypatch):
    import types

    checkpoint, order = adapter_of(tmp_path / "adapter", str(lab.BASE_MODEL)), []
    monkeypatch.setitem(sys.modules, "vllm", types.SimpleNamespace(LLM=lambda **_: order.append("vllm")))
    merged, tokenizer = models.load_model(checkpoint)
    monkeypatch.setattr(models, "load_model", lambda _: (merged, tokenizer))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: order.append("empty"))
    models.load_vllm(checkpoint)
    assert order == ["empty", "vllm"]
