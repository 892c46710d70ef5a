"""Export, model card and upload: what is loaded is what was trained, and nothing private leaves the machine."""

import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors import safe_open
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (  # fmt: skip
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from corelib import card, card_scores, evaluate_run, publish, runs, saving, train
from corelib.__main__ import main
from corelib.config import LAB_BASES, ROOT, load_config
from corelib.rewards import METHODS

from .test_backbones import CHATML
from .test_vllm import vllm_python  # noqa: F401

TOKEN = "hf_" + "QaZwSxEdCrFvTgByHn" * 2
PROMPT = "Q 9 + 5 - 3 = ?"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Finished runs by method and settings, trained once each."""
    root, known = tmp_path_factory.mktemp("runs"), {}

    def make(config, evaluated=False):
        folder = root / config.run_name
        if config.run_name not in known:
            train.train(config, folder)
            known[config.run_name] = folder
        if evaluated and not (folder / "result.json").exists():
            evaluate_run.evaluate_run(folder, say=lambda *_: None)
        return folder

    return make


@pytest.fixture
def run(made, tiny, tmp_path):
    """A copy of an evaluated run of two steps, to do with as a test likes."""
    folder = made(tiny("majority_voting", learning_rate=1e-3), evaluated=True)
    shutil.copytree(folder.parent / "base", tmp_path / "base", dirs_exist_ok=True)
    return shutil.copytree(folder, tmp_path / folder.name)


@pytest.fixture
def lora(made, tiny):
    """LoRA with the teacher as a second adapter, `ref`, which is no part of the policy."""
    return made(tiny("co_rewarding_ii", lora_rank=4, lora_alpha=8, learning_rate=2e-2, save_steps=1))


@pytest.fixture
def chat(tmp_path):
    """A finished run of Qwen's kind by its files: random weights, a chat template, a turn's end that is not the EOS."""
    folder = tmp_path / "chat-run"
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    words = [*special, "system", "user", "assistant", "7", "8", "56", "\\boxed{", "}", "[UNK]"]
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|endoftext|>", pad_token="<|endoftext|>", unk_token="[UNK]", additional_special_tokens=special)  # fmt: skip
    tokenizer.chat_template = CHATML
    torch.manual_seed(0)
    shape = Qwen3Config(vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16, max_position_embeddings=4096, initializer_range=0.5, eos_token_id=0, pad_token_id=0, bos_token_id=None)  # fmt: skip
    for name in ("best", "final"):
        Qwen3ForCausalLM(shape).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        saving.mark_complete(folder / name)
    config = load_config("qwen3-4b", method="co_rewarding_i", source="/home/secret/data", max_completion_tokens=40, vllm_server="http://node7.cluster.local:8000")  # fmt: skip
    runs.write_manifest(folder, config, data_hash="0123456789ab", prompts=13972, steps=327)
    runs.write_status(folder, "done", step=327, steps=327, tokens=1000, seconds=7200.0, best_step=120)
    return folder


def logits(folder, **how):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **how)
    ids = AutoTokenizer.from_pretrained(folder)(PROMPT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return model(ids).logits


def dtypes(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {file.get_slice(name).get_dtype() for name in file.keys()}


def card_of(folder, checkpoint="best", name="out", audit="", merge_lora=True):
    """The card's text, without an export around it."""
    return card.render(publish.describe(folder, checkpoint, merge_lora, False, name)[1], audit)


def text_of(folder):
    """Everything readable in an export, as bytes."""
    return b"".join(f.read_bytes() for f in sorted(folder.iterdir()) if f.is_file())


# ---- the folder


def test_an_export_is_the_checkpoint_and_nothing_else(run, tmp_path):
    (run / "best" / "training_args.bin").write_bytes(b"pickle")
    saving_mark = run / "best" / "complete.json"
    assert saving.checkpoint_defect(run / "best") is not None and saving_mark.is_file()
    (run / "best" / "training_args.bin").unlink()
    out = publish.export(run, tmp_path / "out")
    assert {f.name for f in out.iterdir()} == {"README.md", "curve.png", "corewarding.json", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}  # fmt: skip
    assert torch.equal(logits(out), logits(run / "best")) and dtypes(out) == {"F32"}
    assert runs.read_json(out / "corewarding.json")["checkpoint"] == "best"
    assert len({f.stat().st_mode for f in out.iterdir()}) == 1  # a server that runs as another user reads the weights
    assert not list(tmp_path.glob(".out*"))


def test_bf16_is_the_rounded_checkpoint(run, tmp_path):
    out = publish.export(run, tmp_path / "out", "final", bf16=True)
    assert dtypes(out) == {"BF16"} and runs.read_json(out / "config.json")["dtype"] == "bfloat16"
    mine = AutoModelForCausalLM.from_pretrained(out).state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(run / "final", dtype=torch.float32).state_dict()
    assert all(torch.equal(mine[k], v.to(torch.bfloat16)) for k, v in theirs.items())
    assert "Weights in bfloat16." in (out / "README.md").read_text()


def test_a_numbered_checkpoint_leaves_its_training_state_behind(lora, tmp_path):
    assert (lora / "checkpoint-1" / "optimizer.pt").is_file() and (lora / "checkpoint-1" / "teacher.safetensors").is_file()  # fmt: skip
    out = publish.export(lora, tmp_path / "out", "checkpoint-1")
    assert torch.allclose(logits(out), logits(lora / "checkpoint-1"), atol=1e-5)
    assert not torch.allclose(logits(out), logits(lora / "final"), atol=1e-3)
    assert [f.name for f in out.glob("*.safetensors")] == ["model.safetensors"] and not list(out.glob("*.pt*"))
    assert "after step 1," in (out / "README.md").read_text()


def test_every_stop_token_is_in_the_generation_config(chat, run, tmp_path):
    out = publish.export(chat, tmp_path / "out")
    assert GenerationConfig.from_pretrained(out).eos_token_id == [0, 2]  # the EOS and <|im_end|>
    assert AutoModelForCausalLM.from_pretrained(out).generation_config.eos_token_id == [0, 2]
    assert AutoTokenizer.from_pretrained(out).chat_template == CHATML
    assert "ends at `<|endoftext|>` and `<|im_end|>`" in (out / "README.md").read_text()
    assert GenerationConfig.from_pretrained(publish.export(run, tmp_path / "lab")).eos_token_id == [1]


def test_merged_adapters_say_what_the_adapters_said(lora, tmp_path):
    out = publish.export(lora, tmp_path / "merged", "final")
    adapter = logits(lora / "final")  # peft beside the base model
    assert torch.allclose(logits(out), adapter, atol=1e-5)
    assert (adapter - logits(LAB_BASES["lab"])).abs().max() > 1e-2  # they do something
    assert not list(out.glob("adapter*")) and b"ref" not in {k.encode() for k in _keys(out / "model.safetensors")}
    assert "LoRA adapters are merged" in (out / "README.md").read_text()


def test_kept_adapters_are_the_policys_alone(lora, tmp_path):
    out = publish.export(lora, tmp_path / "kept", "final", merge_lora=False)
    keys = _keys(out / "adapter_model.safetensors")
    assert keys and all("lora_" in k and ".ref." not in k for k in keys) and not (out / "ref").exists()
    assert torch.equal(logits(out), logits(lora / "final"))
    assert GenerationConfig.from_pretrained(out).eos_token_id == [1]
    header = ModelCard.load(out / "README.md").data
    assert header.library_name == "peft"


def _keys(path):
    with safe_open(path, "pt") as file:
        return list(file.keys())


def test_large_models_come_in_shards(run, tmp_path, monkeypatch):
    assert publish.SHARD == "5GB"
    monkeypatch.setattr(publish, "SHARD", "500KB")
    out = publish.export(run, tmp_path / "out")
    assert len(list(out.glob("model-*.safetensors"))) >= 3 and (out / "model.safetensors.index.json").is_file()
    assert torch.equal(logits(out), logits(run / "best"))


def test_the_old_export_stays_until_the_new_one_is_whole(run, tmp_path, monkeypatch):
    out = publish.export(run, tmp_path / "out", "best")
    before = text_of(out)
    with monkeypatch.context() as patch:
        patch.setattr(card, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            publish.export(run, out, "final")
    assert text_of(out) == before and not list(tmp_path.glob(".out*"))
    publish.export(run, out, "final")
    assert torch.equal(logits(out), logits(run / "final")) and not list(tmp_path.glob(".out*"))


def test_a_folder_that_is_not_an_export_is_never_replaced(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(RuntimeError, match="not an earlier export"):
        publish.export(run, tmp_path / "mine")
    with pytest.raises(RuntimeError, match="not an earlier export"):
        publish.export(run, run / "best")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work" and (run / "best" / "complete.json").is_file()  # fmt: skip


def test_a_full_disk_is_told_and_leaves_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "free", lambda _: 1000)
    with pytest.raises(RuntimeError, match="GB free, and the weights take"):
        publish.export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("state", ["failed", "stopped", "killed"])
def test_an_unfinished_run_is_one_sentence(run, tmp_path, state):
    why = {"error": f"FloatingPointError: loss is nan at step 1 {TOKEN}"} if state == "failed" else {}
    runs.write_status(run, "running" if state == "killed" else state, step=1, steps=2, **why)
    if state == "killed":
        runs.write_json(run / "status.json", runs.read_json(run / "status.json") | {"pid": 2**22 + 1})
    with pytest.raises(RuntimeError, match=f"is {state} at step 1 of 2.*resumes it") as caught:
        publish.export(run, tmp_path / "out")
    message = str(caught.value)
    assert "\n" not in message and TOKEN not in message and ("loss is nan" in message) == (state == "failed")


def test_what_is_not_there_is_one_sentence(run, tmp_path):
    for what, match in {"newest": "must be best, kept, final or checkpoint-N", "checkpoint-../../x": "must be", "base": "must be", "checkpoint-77": "no checkpoint 77"}.items():  # fmt: skip
        with pytest.raises((ValueError, RuntimeError), match=match):
            publish.export(run, tmp_path / "out", what)
    with pytest.raises(RuntimeError, match="not a run folder"):
        publish.export(tmp_path / "nowhere", tmp_path / "out")
    with open(run / "best" / "model.safetensors", "r+b") as file:
        file.seek(-3, 2)
        file.write(b"\x99")
    with pytest.raises(RuntimeError, match="best of .* is not whole: .*model.safetensors is not what was written"):
        publish.export(run, tmp_path / "out")
    (run / "final" / "model.safetensors").rename(run / "final" / "pytorch_model_fsdp.bin")
    saving.mark_complete(run / "final")
    with pytest.raises(RuntimeError, match="sharded training state"):
        publish.export(run, tmp_path / "out", "final")
    assert not (tmp_path / "out").exists()


# ---- the card


def test_the_header_survives_a_round_trip(run):
    text = card_of(run, name="me/my-model")
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["license"] == "mit" and header["pipeline_tag"] == "text-generation"
    assert (
        header["library_name"] == "transformers" and "base_model" not in header and "datasets" not in header
    )  # the lab
    assert {"majority-voting", "self-supervised-learning", "reinforcement-learning"} <= set(header["tags"])
    result = runs.read_json(run / "result.json")
    (scored,) = ModelCard(text).data.eval_results
    assert scored.metric_value == round(100 * result["best_accuracy"], 2) and scored.dataset_type == "corewarding-lab"
    assert header["model-index"][0]["name"] == "my-model"


def test_the_header_names_hub_model_and_data(chat, tmp_path):
    header = yaml.safe_load(card_of(chat).split("---\n")[1])
    assert header["base_model"] == "Qwen/Qwen3-4B-Base" and header["base_model_relation"] == "finetune"
    assert header["datasets"] == ["TMLR-Group-HF/Co-rewarding-RephrasedOpenRS"] and "model-index" not in header
    assert "has not been evaluated" in card_of(chat)
    llama = load_config("qwen3-4b", model="meta-llama/Llama-3.2-3B-Instruct")
    assert publish._license(llama) == "llama3.2" and card.hub_model(llama) == "meta-llama/Llama-3.2-3B-Instruct"
    assert card.public_model(load_config("qwen3-4b", model=str(tmp_path))) == tmp_path.name
    assert card.hub_model(load_config("qwen3-4b", model=str(tmp_path))) is None


def test_scores_of_the_card_are_the_stored_ones_with_intervals(run):
    """Rewritten files with numbers chosen here, so that nothing is compared with itself."""
    result = runs.read_json(run / "result.json") | {"base_accuracy": 0.25, "best_accuracy": 0.5, "final_accuracy": 0.4, "collapsed": False, "intervals": {"base": [0.2, 0.3], "best": [0.4, 0.6], "final": [0.3, 0.5]}}  # fmt: skip
    runs.write_json(run / "result.json", result)
    for name in ("best", "final"):
        file = run / "evaluation" / name / "evaluation.json"
        stored = runs.read_json(file)
        stored["benchmarks"] = {"math500": {"title": "MATH500", "metric": "pass@1", "mean": 0.125, "low": 0.0625, "high": 0.25, "problems": 100, "samples": 1, "of": 500, "truncated": 0.5, "unparsed": 0.0, "timeouts": 0.0, "seen_in_training": 7, "without_seen": {"mean": 0.1, "low": 0.05, "high": 0.2, "problems": 93, "samples": 1}}}  # fmt: skip
        runs.write_json(file, stored)
    shutil.rmtree(run.parent / "base")
    text = card_of(run).replace("\u00a0", " ")
    assert "| lab, held out | avg@2 | 6 x 2 | 25.0 % (20.0 to 30.0) | **50.0 % (40.0 to 60.0)** | 40.0 % (30.0 to 50.0) |" in text  # fmt: skip
    assert "| MATH500 | pass@1 | 100 x 1 | - | **12.5 % (6.2 to 25.0)** | 12.5 % (6.2 to 25.0) |" in text
    assert "50.0 % of the answers were cut off" in text and "100 of the benchmark's 500 questions" in text
    assert "7 questions are among the training questions, without them 10.0 % (5.0 to 20.0)" in text
    values = {r.dataset_type: r.metric_value for r in ModelCard(text).data.eval_results}
    assert values == {"corewarding-lab": 50.0, "HuggingFaceH4/MATH-500": 12.5}
    assert "did not collapse" in text and "This run collapsed" not in text


def test_scores_of_other_weights_are_left_out(run):
    file = run / "evaluation" / "best" / "evaluation.json"
    runs.write_json(file, runs.read_json(file) | {"digest": "0" * 12})
    found, notes = card_scores.results(run, load_config(**runs.read_json(run / "manifest.json")["config"]), "best")
    assert set(found[0].scores) == {"base", "final"} and "`best` belong to other weights" in notes[0]
    text = card_of(run)
    assert "has not been evaluated" in text and "belong to other weights" in text and "model-index" not in text


def test_a_collapse_is_the_first_thing_a_reader_learns(run):
    result = runs.read_json(run / "result.json") | {"best_accuracy": 0.674, "final_accuracy": 0.118, "collapsed": True}
    runs.write_json(run / "result.json", result)
    for which, side in {"best": "before the", "final": "**after** the collapse"}.items():
        text = card_of(run, which)
        title, first, *_ = [line for line in text.split("---\n", 2)[2].splitlines() if line]
        assert title.startswith("# Majority voting") and first.startswith("> **This run collapsed.**")
        assert "11.8 %" in first and "67.4 %" in first and side in first
    (run / "result.json").unlink()
    assert "collapsed is not known" in card_of(run)


def test_settings_that_differ_are_a_table_whose_cells_hold(chat, run):
    text = card_of(run)
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 5 for row in rows)
    named = {row.split("`")[1] for row in rows}
    assert {"learning_rate", "beta", "stop_tokens"} <= named
    assert (
        not {"teacher_start", "batch_unit", "temperature", "seed"} & named
    )  # no teacher, no pairs, not different, told
    text = card_of(chat)
    assert [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")] == ["max_completion_tokens"]
    assert "128 questions (a question is two prompts, its two views) x 8 rollouts" in text and "coefficient 0.005" in text  # fmt: skip
    folded = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert folded["method"] == "co_rewarding_i" and folded["steps"] == 0 and len(folded) > 40
    assert "in 2.0 hours" in text and "`0123456789ab`" in text


def test_the_audit_is_shown_where_it_is_stored(run, chat, tmp_path):
    assert "is not stored with this run" in card_of(run)
    audit = {"dataset": "open-rs", "counts": {"pairs": 6999, "kept": 6986, "placeholder_rewrites": 12, "empty_questions": 0, "duplicate_groups": 216}, "expected": {}, "not_checked": ["overlap_amc"], "notes": {}, "files": {}, "rows": [{"id": 3, "reason": "placeholder_rewrites", "action": "dropped", "detail": ""}]}  # fmt: skip
    runs.write_json(tmp_path / "audit.json", audit)
    text = card_of(chat, audit=tmp_path / "audit.json")
    row = "| `placeholder_rewrites` | 12 | dropped | rewrite is the template's own &lt;rewritten question>"
    assert row in text and "| `kept` | 6,986 | - |" in text
    assert text.index(row) < text.index("<summary>Counted") < text.index("| `duplicate_groups` | 216 | - | such questions |")  # fmt: skip
    assert "two views is blank" not in text and "Overlap with the benchmarks was not checked" in text
    with pytest.raises(ValueError, match="audit of open-rs, and the run was trained on lab"):
        card_of(run, audit=tmp_path / "audit.json")
    with pytest.raises(ValueError, match="missing or not JSON"):
        card_of(run, audit=tmp_path / "nowhere.json")


def test_every_method_has_two_sentences_that_cite_what_its_docstring_cites():
    assert list(card.METHOD_TEXT) != [] and set(card.METHOD_TEXT) == set(METHODS)
    for method, text in card.METHOD_TEXT.items():
        sentences = re.split(r"(?<=\.) (?=[A-Z])", re.sub(r"Eq\. ", "Eq.", text))
        assert len(sentences) == 2, method
        cited = re.findall(r"Eq\. [\d-]+|TTRL|RENT|Intuitor|Spurious Rewards|GT-Reward|table 3|released code of III", METHODS[method].__doc__)  # fmt: skip
        assert cited and all(source in text for source in cited), method


def test_the_citation_is_the_readmes():
    assert card.CITATION in (ROOT / "README.md").read_text()


# ---- how to use


def snippets(text):
    return re.findall(r"```python\n(.*?)```", text, re.S)


@pytest.mark.parametrize("kind", ["lab", "chat", "merged", "adapters"])
def test_the_transformers_snippet_runs_and_stops(kind, run, chat, lora, tmp_path, monkeypatch, capsys):
    source = {"lab": run, "chat": chat}.get(kind, lora)
    out = publish.export(source, tmp_path / "my-model", "final", merge_lora=kind != "adapters")
    monkeypatch.chdir(tmp_path)
    there = {}
    exec(compile(snippets((out / "README.md").read_text())[0], "snippet", "exec"), there)
    answer = there["output"][0, there["inputs"]["input_ids"].shape[1] :].tolist()
    shown = capsys.readouterr().out.strip()
    assert shown == there["tokenizer"].decode(answer, skip_special_tokens=True).strip()
    if kind != "chat":
        assert answer[-1] == 1 or len(answer) == 24  # the lab's <eos>, or the limit
        return
    rendered = there["tokenizer"].decode(there["inputs"]["input_ids"][0])
    assert rendered.count("<|im_start|>") == 3 and rendered.endswith("assistant")  # system, user and the open turn
    ids, expected = there["inputs"]["input_ids"][0].tolist(), []
    model = AutoModelForCausalLM.from_pretrained(chat / "final", dtype=torch.float32)
    while len(expected) < 40 and (not expected or expected[-1] not in (0, 2)):  # greedy, by plain forward passes
        with torch.no_grad():
            expected.append(int(model(torch.tensor([ids + expected])).logits[0, -1].argmax()))
    assert answer == expected


def test_the_vllm_snippet_stops_where_training_did(chat, lora, monkeypatch):
    calls = {}

    class Engine:
        def __init__(self, model, **settings):
            calls["model"] = (model, settings)

        def chat(self, messages, params, **more):
            calls["asked"] = (messages, params, more)
            return [types.SimpleNamespace(outputs=[types.SimpleNamespace(text="56")])]

        generate = chat

    modules = {"vllm": {"LLM": Engine, "SamplingParams": lambda **p: p}, "vllm.lora": {}, "vllm.lora.request": {"LoRARequest": lambda *a: a}}  # fmt: skip
    for name, content in modules.items():
        module = types.ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    exec(snippets(card_of(chat, name="me/model"))[1], {})
    assert calls["model"] == ("me/model", {}) and calls["asked"][0][0]["role"] == "system"
    assert calls["asked"][1] == {"temperature": 0.0, "max_tokens": 40, "stop_token_ids": [0, 2]}
    exec(snippets(card_of(lora, name="b", merge_lora=False))[1], {})
    assert calls["model"][1] == {"enable_lora": True, "max_lora_rank": 4}
    assert calls["asked"][2] == {"lora_request": ("adapter", 1, "b")} and isinstance(calls["asked"][0], str)


@pytest.mark.slow
def test_real_vllm_loads_the_export(run, tmp_path, vllm_python):  # noqa: F811
    """The card's own snippet, greedy, on vLLM's CPU build: it answers as transformers does."""
    out = publish.export(run, tmp_path / "my-model", "final")
    code = snippets((out / "README.md").read_text())[1].replace("temperature=1.0", "temperature=0.0").replace('LLM("my-model")', 'LLM("my-model", dtype="float32", enforce_eager=True)')  # fmt: skip
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"}  # fmt: skip
    done = subprocess.run([vllm_python, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    question = re.search(r"question = '(.*)'", code)[1]
    inputs = tokenizer(question, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=24, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert done.stdout.strip().splitlines()[-1].strip() == tokenizer.decode(ids, skip_special_tokens=True).strip()


# ---- nothing private leaves


class Hub:
    """Stands in for huggingface_hub.HfApi: keeps what it was asked, fails as told."""

    def __init__(self, public=False, fails=None):
        self.asked, self.public, self.fails = [], public, fails

    def __call__(self):
        return self

    def create_repo(self, repo_id, **how):
        self.asked.append(("create", repo_id, how))
        return f"https://huggingface.co/{repo_id}"

    def repo_info(self, repo_id):
        return types.SimpleNamespace(private=not self.public)

    def upload_folder(self, **how):
        self.asked.append(("upload", how))
        if self.fails:
            raise self.fails


@pytest.fixture
def login(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    def use(hub):
        monkeypatch.setattr("huggingface_hub.HfApi", hub)
        return hub

    return use


def test_no_token_path_or_address_is_in_an_export(chat, run, login, tmp_path, capsys):
    for number, folder in enumerate((chat, run)):
        content = text_of(publish.export(folder, tmp_path / f"out{number}"))
        private = [TOKEN, "/home/secret", "node7", str(tmp_path), str(ROOT), str(Path.home()) + "/"]
        assert not [p for p in private if p.encode() in content]
    told = capsys.readouterr()
    assert TOKEN not in told.out + told.err


@pytest.fixture
def exported(run, tmp_path):
    return publish.export(run, tmp_path / "exported")


def test_push_uploads_the_folder_privately(exported, login):
    hub = login(Hub())
    assert publish.push(exported, "me/model") == "https://huggingface.co/me/model"
    (_, repo, how), (_, upload) = hub.asked
    assert repo == "me/model" and how["private"] is True and upload["folder_path"] == str(exported)
    assert TOKEN not in str(hub.asked)  # huggingface_hub finds its own login


def test_push_never_makes_weights_public_that_were_to_be_private(exported, login):
    hub = login(Hub(public=True))
    with pytest.raises(RuntimeError, match="exists and is public"):
        publish.push(exported, "me/model")
    assert [a[0] for a in hub.asked] == ["create"]
    publish.push(exported, "me/model", private=False)
    assert [a[0] for a in hub.asked] == ["create", "create", "upload"]


def test_a_failed_upload_tells_no_token(run, exported, login, capsys, caplog):
    login(Hub(fails=OSError(f"401 for https://huggingface.co\nAuthorization: Bearer {TOKEN} hf_anotherSecret99")))
    with pytest.raises(RuntimeError, match=r"upload to me/model failed \(OSError: 401 .*\[token\]") as caught:
        publish.push(exported, "me/model")
    error = caught.value
    assert error.__cause__ is None and error.__context__ is None  # a traceback would print them
    assert main(["publish", str(run), "--out", str(exported), "--push", "me/model"]) == 1
    told = capsys.readouterr()
    for secret in (TOKEN, "hf_anotherSecret99"):
        assert secret not in str(error) + told.out + told.err + caplog.text


def test_push_refuses_what_it_should(run, exported, lora, login, tmp_path, monkeypatch):
    hub = login(Hub())
    for name in ("model", "a/b/c", "../x", "me/--bad", "me/mo del", ""):
        with pytest.raises(ValueError, match="must be USER/NAME"):
            publish.push(exported, name)
    with pytest.raises(ValueError, match="not an exported checkpoint"):
        publish.push(run / "best", "me/model")
    (exported / "optimizer.pt").write_bytes(b"pickle")
    with pytest.raises(ValueError, match="optimizer.pt .* does not belong to an export"):
        publish.push(exported, "me/model")
    kept = publish.export(lora, tmp_path / "kept", merge_lora=False)
    with pytest.raises(ValueError, match="local folder, which nobody else has; export them merged"):
        publish.push(kept, "me/model")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(RuntimeError, match="nobody is logged in"):
        publish.push(exported, "me/model")
    assert hub.asked == []


# ---- the command line


def test_the_command_exports_and_uploads_only_when_asked(run, login, tmp_path, capsys):
    hub = login(Hub())
    command = ["publish", str(run), "--checkpoint", "final", "--out", str(tmp_path / "out"), "--bf16"]
    assert main([*command, "--dry-run", "--push", "me/model"]) == 0
    told = capsys.readouterr().out
    assert not (tmp_path / "out").exists() and hub.asked == []
    assert "upload: me/model, private" in told and "# Majority voting" in told and 'name = "me/model"' in told
    assert main(command) == 0 and dtypes(tmp_path / "out") == {"BF16"} and hub.asked == []
    assert main([*command, "--push", "me/model"]) == 0 and [a[0] for a in hub.asked] == ["create", "upload"]
    assert 'name = "me/model"' in (tmp_path / "out" / "README.md").read_text()
    assert main([*command, "--push", "model"]) == 2 and "must be USER/NAME" in capsys.readouterr().err


def test_questions_trained_on_are_not_called_held_out(tmp_path):
    config = load_config("qwen3-4b", method="gt", dataset="amc", eval_dataset="amc", test_problems=83)
    rates = {f"{w}_accuracy": 0.5 for w in ("base", "best", "final")}
    spans = {w: [0.4, 0.6] for w in ("base", "best", "final")}
    runs.write_json(tmp_path / "result.json", rates | {"intervals": spans})
    (entry,), _ = card_scores.results(tmp_path, config, "best")
    assert entry.title == "amc, training questions" and card_scores.hub_data(entry.name) == "AI-MO/aimo-validation-amc"
    assert card._test_name(config) == "its own training questions"
    assert card._test_name(load_config("lab")) == "held-out problems"
    assert card_scores.hub_data("math500_held_out") == card_scores.hub_data("math500[k=4]") == "HuggingFaceH4/MATH-500"


def test_base_score_on_the_card_is_this_run_s_own(run):
    """The base model's folder is shared: a run with more problems may have left its score there."""
    out = evaluate_run.checkpoint_of(run, "base")[1]
    shared = runs.read_json(out / "evaluation.json")
    shared["benchmarks"]["lab"] |= {"mean": 0.99, "problems": 200}
    runs.write_json(out / "evaluation.json", shared)
    config = load_config(**runs.read_json(run / "manifest.json")["config"])
    held = card_scores.results(run, config, "best")[0][0]
    assert held.scores["base"].mean == runs.read_json(run / "result.json")["base_accuracy"]
    (run / "evaluation" / "best" / "evaluation.json").write_text("{")
    assert "Stored scores of `best` are damaged" in card_scores.results(run, config, "best")[1][0]
