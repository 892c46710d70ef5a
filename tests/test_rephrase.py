"""Rephrasing: instruction, parser, every rule of the validator, the resumable loop, what it writes, released data."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import DatasetCard
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from corelib import rephrase as rp
from corelib.data import DataError, load_pairs
from corelib.rephrase import lost_numbers, parse, rephrase, validate

REPO = Path(__file__).resolve().parents[1]
EVIDENCE = REPO / "outputs" / "reference" / "rephrase_defects.json"
QUESTION = "A train covers 84 miles in 3 hours. How many miles does it cover in 7 hours at the same speed?"
GOOD = "A cyclist rides 84 kilometres in three hours. At that pace, how far does she get in seven hours?"


def block(rewrite, original="some question"):
    return f"### RESULT_START\nORIGINAL:\n{original}\nREWRITE:\n{rewrite}\n### RESULT_END"


def rows(n):
    return [
        {"id": 10 * i, "question": f"How much is {100 + i} plus {200 + 3 * i}?", "answer": str(300 + 4 * i)}
        for i in range(n)
    ]


def reword(chats):
    """A well-behaved model: the numbers of the question in another sentence."""
    out = []
    for chat in chats:
        a, b = rp._NUMBER.findall(chat[0]["content"].rsplit("\n", 1)[1])
        out.append(block(f"A farmer owns {a} sheep and buys {b} others. How large is the herd now?"))
    return out


# ---- instruction and parser


def test_messages_are_instruction_newline_question():
    (message,) = rp.to_messages("How many?")
    assert message["role"] == "user" and message["content"].startswith("You are given a math problem. Please rewrite")
    assert message["content"].endswith("<rewritten question>\n### RESULT_END\nHow many?")
    assert "5. Output ONLY between the following markers, and strictly in this format (no extra" in rp.INSTRUCTION
    assert rp.SAMPLING == {"temperature": 0.7, "top_p": 0.8, "max_tokens": 20480}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (block("new words"), "new words"),
        (block(rp.PLACEHOLDER, "<original question>") + "\nSure:\n" + block("real"), "real"),  # echo, then the answer
        (block("outer", original=rp.INSTRUCTION + "\nthe question"), "outer"),  # instruction quoted inside the block
        ("<think>" + block("draft") + "</think>" + block("final"), "final"),
        ("### RESULT_START\nORIGINAL:\na\nREWRITE: same line\n### RESULT_END\n### RESULT_END", "same line"),
        ("**RESULT_START**\n**ORIGINAL:**\na\n**REWRITE:**\nbold\n**RESULT_END**", "bold"),
        (block("two\nlines"), "two\nlines"),
        (block("first") + "\n### RESULT_START\nORIGINAL:\na\nREWRITE:\ncut by the lim", None),
        ("### RESULT_START\nORIGINAL:\nno rewrite part\n### RESULT_END", None),
        ("REWRITE: no markers", None),
        ("", None),
    ],
)
def test_parse_takes_the_last_block(text, expected):
    assert parse(text) == expected


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.characters(blacklist_categories=["Cs"])).map(str.strip))
def test_parse_returns_what_was_put_in(text):
    if "RESULT_" not in text and "REWRITE" not in text and not text.endswith(("#", "*")):
        assert parse(block(text)) == text


# ---- rules


def test_a_good_rewrite_passes():
    assert validate(QUESTION, GOOD, "196") == []


@pytest.mark.parametrize(
    ("original", "rewrite", "answer", "reason"),
    [
        (QUESTION, "", None, "empty"),
        (QUESTION, " <rewritten question> \n", None, "placeholder"),
        (QUESTION, QUESTION, None, "copy"),
        (QUESTION, QUESTION.upper().replace(".", " !"), None, "copy"),
        (QUESTION, QUESTION.replace("train", "bus").replace("same", "given"), None, "near_copy"),
        (QUESTION, GOOD.replace("84", "90"), None, "lost_numbers"),
        ("From 21, 35, 66 and 91 pick one.", "Pick one of the four.", None, "lost_numbers"),
        ("Which palindrome like 5665 is least?", "Some read the same backwards, as 1221 does. Least?", "1221", "leaked_answer"),
        ("Factor $9x^2+3x$.", "Take the common factor out of $3x(3x + 1)$.", "3x(3x+1)", "leaked_answer"),
        ("Find $x$ shown. [asy] draw((0,0)); [/asy]", "What is $x$ in the figure?", None, "lost_diagram"),
        ('Find $x$. [asy] label("$47^\\circ$",(1,2)); [/asy]', "What is $x$?", None, "lost_diagram"),
        ("As shown ![](https://a.b/c.png) find $x$.", "What is $x$ in the given figure?", None, "lost_diagram"),
        ("What is 6 times 7?", "Six teams of 7. " + "They talk at length. " * 40, None, "too_long"),
        (QUESTION + " Explain." * 20, "84, 3, 7?", None, "truncated"),
        (QUESTION, "A cyclist rides 84 kilometres in 3 hours; in 7 hours, the", None, "truncated"),
        (QUESTION, GOOD + " Give $\\frac{1}{2$.", None, "broken_latex"),
        (QUESTION, GOOD + " Give \frac{m}{n}.", None, "broken_latex"),  # form feed
        (QUESTION, GOOD + " Give frac{m}{n}.", None, "broken_latex"),
        (QUESTION, GOOD + " Give $x.", None, "broken_latex"),
        (QUESTION, GOOD + " \\begin{align}x", None, "broken_latex"),
        (QUESTION, GOOD + "\x00", None, "broken_latex"),
        (QUESTION, "<" + GOOD + ">", None, "instruction_echo"),
        (QUESTION, "REWRITE: " + GOOD, None, "instruction_echo"),
        (QUESTION, GOOD + " Do not change the math logic or anything.", None, "instruction_echo"),
        (QUESTION, GOOD + " It equals the answer of the original question.", None, "instruction_echo"),
    ],
)  # fmt: skip
def test_each_reason(original, rewrite, answer, reason):
    assert reason in rp.REASONS
    assert validate(original, rewrite, answer) == [reason]


@pytest.mark.parametrize(
    ("original", "rewrite", "answer"),
    [
        ("Is 1,234 or 66 larger?", "Between 66 and $1234$, name the greater.", "1234"),
        (
            "Pay \\$5 for 12 pens.",
            "A box of pens, $5 in all, holds a dozen. Price of one?",
            None,
        ),  # money is no formula
        ("If $a=5$, find $7^a$.", "Let $b$ be 5. Raise 7 to the power $b$.", "16807"),
        ("Compute 33 times 3.", "Three bags hold 33 beans each. How many beans is that?", "99"),  # short answer
        ("Prove $x \\le 4y^2 + 12$.", "Show that $x \\leq 4y^2+12$ holds.", "x \\leq 4y^2+12"),
        ("Angle 40 is shown. [asy] draw((0,0)); [/asy]", "One angle has 40 degrees; name its complement.", None),
        ("Rewrite $4^x$ in base 2.", "Express four to the power $x$ over base two.", None),
    ],
)
def test_harmless_differences_pass(original, rewrite, answer):
    assert validate(original, rewrite, answer) == []


@pytest.mark.parametrize(
    ("original", "rewrite", "lost"),
    [
        ("Add 17 and 1,000.", "Add seventeen to 1000.", []),
        ("Add 18 and 1,000.", "Add seventeen to 1000.", []),  # a neighbour: at most 17, less than 18
        ("Add 27 and 1,000.", "Add seventeen to 1000.", ["27"]),
        ("The set 100,200,300 has a sum.", "Sum of 100, 200 and 300", []),  # a list, not one number
        ("5 of 2,006 cards", "two thousand and six cards, five of them", []),
        ("at 45 %", "a share of 0.45", []),
        ("$\\frac{3}{8}$ of it", "0.375 of it", []),
        ("$x^{10}=6!$", "$x^{10}=720$", []),
        ("$1+3+5+\\cdots+99$", "all odd numbers up to 99", []),
        ("$1^2, 2^2, 3^2, \\ldots, 95^2$", "squares up to $95^2$", []),
        ("Add 3, 15, 27, 39 and 51.", "Add the five numbers from 3 to 51 with equal steps.", []),
        ("12. (7 points) Find 31.", "Find 31.", []),
        ("Find $x_{14}$ and 31.", "31?", []),
        ("numbers such as 727. Find 31.", "31?", []),
        ("angle $\\frac{\\pi}{6}$", "an angle of $30^\\circ$", []),
        ("between 40 and 80", "from 40 to 99", ["80"]),
        ("[asy] draw((31,77)); [/asy] side 55", "side of 56", []),
        ("side 55", "side of 60", ["55"]),
    ],
)
def test_lost_numbers(original, rewrite, lost):
    assert lost_numbers(original, rewrite) == lost


@settings(max_examples=150, deadline=1000)
@given(st.text(max_size=300), st.text(max_size=300))
def test_validator_never_fails_on_any_text(original, rewrite):
    assert set(validate(original, rewrite, rewrite[:9])) <= set(rp.REASONS)


def test_hostile_lengths_take_no_time():
    start = time.perf_counter()
    for text in ("$1,2," * 300, "{" * 1500, "\\frac{1" * 200, "(a" * 700, "one hundred " * 120, "1 " * 700):
        validate(text, text + " 7", "12345")
    assert validate(QUESTION, "9" * 60_000) == ["too_long"]
    assert time.perf_counter() - start < 8


# ---- the loop


def test_round_trip_through_the_released_schema(tmp_path):
    source = rows(5)
    source[2]["level"] = "Hard"
    report = rephrase(source, reword, tmp_path / "set", batch=2, model="some/model", progress=False)
    assert (report["accepted"], report["failed"], report["completions"]) == (5, 0, 5)
    pairs, audit = load_pairs("math", tmp_path / "set")
    assert pairs["id"] == [0, 10, 20, 30, 40] and pairs["answer"] == [row["answer"] for row in source]
    assert pairs["question"] == [row["question"] for row in source]
    assert pairs["rephrased"][1] == "A farmer owns 101 sheep and buys 203 others. How large is the herd now?"
    assert pairs["level"] == [None, None, "Hard", None, None]
    text = (tmp_path / "set" / "README.md").read_text()
    card = DatasetCard(text)
    assert card.data.configs[0]["data_files"][1] == {"split": "rewrite", "path": "train_rewrite.parquet"}
    assert "5 of 5 questions" in text and "some/model" in text and "sheep" not in text


def test_rejected_rewrites_are_retried_and_counted(tmp_path):
    asked = []

    def generate(chats):
        asked.append([chat[0]["content"].rsplit("\n", 1)[1] for chat in chats])
        texts = reword(chats)
        for i, question in enumerate(asked[-1]):
            if "102" in question:  # never right
                texts[i] = block(rp.PLACEHOLDER)
            elif "101" in question and sum("101" in q for ask in asked for q in ask) == 1:  # right at the second try
                texts[i] = "no markers"
        return texts

    report = rephrase(rows(4), generate, tmp_path, retries=2, batch=3, progress=False)
    assert report["rejected"] == {"placeholder": 3, "unparsed": 1}
    assert (report["accepted"], report["failed"], report["completions"]) == (3, 1, 7)
    assert report["reject_rate"]["placeholder"] == round(3 / 7, 4)
    numbers = [[question.split()[3] for question in ask] for ask in asked]
    assert numbers == [["100", "101", "102"], ["101", "102", "103"], ["102"]]  # retries first, filled up with new ones
    lines = {line["id"]: line for line in map(json.loads, (tmp_path / "rewrites.jsonl").open())}
    assert lines[20] == {
        "id": 20,
        "original": rows(4)[2]["question"],
        "rewritten": None,
        "rejected": [["placeholder"]] * 3,
    }
    pairs, _ = load_pairs("math", tmp_path)
    assert pairs["id"] == [0, 10, 30]
    assert "| placeholder | 3 | 42.86% |" in (tmp_path / "README.md").read_text()


def test_resume_asks_only_for_what_is_missing_and_mends_a_torn_line(tmp_path):
    class Killed(Exception):
        pass

    asked = []

    def dies(chats):
        if len(asked) == 4:
            raise Killed
        asked.extend(chats)
        return reword(chats)

    with pytest.raises(Killed):
        rephrase(rows(6), dies, tmp_path, batch=2, progress=False)
    log = tmp_path / "rewrites.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole + whole[:37])  # the kill came in the middle of a line
    asked.clear()
    seen = []
    report = rephrase(rows(6), lambda chats: seen.extend(chats) or reword(chats), tmp_path, batch=2, progress=False)
    assert len(seen) == 2 and report["accepted"] == 6
    assert log.read_bytes().startswith(whole) and len(log.read_text().splitlines()) == 6
    assert rephrase(rows(6), lambda chats: pytest.fail("asked again"), tmp_path, progress=False)["accepted"] == 6


def test_kill_9_loses_no_finished_line(tmp_path):
    script = """
        import sys, time
        sys.path.insert(0, {repo!r})
        from tests.test_rephrase import reword, rows
        from corelib.rephrase import rephrase
        def slow(chats):
            time.sleep(0.05)
            return reword(chats)
        rephrase(rows(4000), slow, {out!r}, batch=2, progress=False)
    """
    code = textwrap.dedent(script).format(repo=str(REPO), out=str(tmp_path))
    log = tmp_path / "rewrites.jsonl"
    child = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 25
        while not (log.exists() and log.read_bytes().count(b"\n") >= 6):
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    done = log.read_bytes()
    done = done[: done.rfind(b"\n") + 1]
    asked = []
    few = rows(4000)[: done.count(b"\n") + 3]
    rephrase(few, lambda chats: asked.extend(chats) or reword(chats), tmp_path, progress=False)
    assert len(asked) == 3 and log.read_bytes().startswith(done)


def test_a_folder_of_another_set_or_a_damaged_line_is_refused(tmp_path):
    rephrase(rows(2), reword, tmp_path, progress=False)
    with pytest.raises(DataError, match="line 2 is of another set"):
        rephrase(rows(1), reword, tmp_path, progress=False)
    log = tmp_path / "rewrites.jsonl"
    log.write_text("{broken\n" + log.read_text())
    with pytest.raises(DataError, match="line 1 is damaged"):
        rephrase(rows(2), reword, tmp_path, progress=False)


def test_wrong_engines_and_empty_results_are_errors(tmp_path):
    with pytest.raises(ValueError, match="returned 1 completions for 2 chats"):
        rephrase(rows(2), lambda chats: ["one"], tmp_path / "a", progress=False)
    with pytest.raises(ValueError, match="one string each"):
        rephrase(rows(1), lambda chats: [None], tmp_path / "b", progress=False)
    with pytest.raises(DataError, match="no rewrite was accepted"):
        rephrase(rows(1), lambda chats: ["nothing"], tmp_path / "c", retries=0, progress=False)


def test_hostile_text_stays_text(tmp_path):
    evil = "A farmer owns 100 sheep and buys 200 others ../../x %HOME% {{7*7}} `rm -rf` __import__('os'). How large is the herd?"
    rephrase(rows(1), lambda chats: [block(evil)], tmp_path / "out", progress=False)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "README.md", "rewrites.jsonl", "train_original.parquet", "train_rewrite.parquet",
    ]  # fmt: skip
    assert load_pairs("math", tmp_path / "out")[0]["rephrased"] == [evil]
    assert "sheep" not in (tmp_path / "out" / "README.md").read_text()


# ---- engines


def test_without_vllm_the_error_names_the_remedy(monkeypatch):
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    monkeypatch.setattr(rp.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="install it.*environment.yml.*--engine transformers"):
        rp.vllm_engine()


def test_vllm_gets_the_papers_decoding(monkeypatch):
    calls = {}

    class LLM:
        def __init__(self, **options):
            calls["llm"] = options

        def chat(self, chats, params, **options):
            calls["chat"] = (params, options)
            return [SimpleNamespace(outputs=[SimpleNamespace(text=chat[0]["content"][-4:])]) for chat in chats]

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=LLM, SamplingParams=lambda **options: options))
    generate = rp.vllm_engine("some/model", gpus=8, max_tokens=64)
    assert generate([rp.to_messages("abcd"), rp.to_messages("wxyz")]) == ["abcd", "wxyz"]
    assert calls["llm"]["model"] == "some/model" and calls["llm"]["tensor_parallel_size"] == 8
    params, options = calls["chat"]
    assert params == {"temperature": 0.7, "top_p": 0.8, "max_tokens": 64}
    assert options["chat_template_kwargs"] == {"enable_thinking": False}


def test_transformers_engine_is_the_models_own_greedy_text():
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(REPO / "outputs" / "reference" / "lab_base")
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    torch.manual_seed(0)
    config = Qwen3Config(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=8)  # fmt: skip
    model = Qwen3ForCausalLM(config).eval()
    generate = rp.transformers_engine(model, tokenizer, temperature=0.0, max_tokens=6)
    chats = [[{"role": "user", "content": text}] for text in ("1 + 2 =", "12 + 345 + 6 =")]
    expected = []
    for chat in chats:  # one by one, so that padding is seen not to matter
        ids = tokenizer(chat[0]["content"], return_tensors="pt", add_special_tokens=False)["input_ids"]
        for _ in range(6):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
            if ids[0, -1] == model.generation_config.eos_token_id:
                break
        expected.append(ids[0, -6:])
    assert generate(chats) == [tokenizer.decode(ids, skip_special_tokens=True) for ids in expected]


# ---- released data and the evidence


def test_released_placeholders_copies_and_leak(shared_data, capsys):
    folder = shared_data / "corew_train"
    if not folder.is_dir():
        pytest.skip("the released data is not in ../shared/data")
    views = [rp.read_view(rp.pq.read_table(p), p.name) for p in sorted((folder / "math").glob("train_*.parquet"))]
    pairs = rp.join_views(*views, "original", "rewrite").fillna("").set_index("id")
    chosen = {118: "placeholder", 2815: "copy", 4946: "leaked_answer", 5388: "lost_numbers", 6649: "lost_diagram"}
    for index, reason in chosen.items():
        row = pairs.loc[index]
        assert reason in validate(row["question"], row["rephrased"], row["answer"]), index


def test_evidence_agrees_with_itself_and_the_specification():
    evidence = json.loads(EVIDENCE.read_text())
    counts = evidence["counts"]
    assert [counts[name]["placeholder"] for name in ("open-rs", "math", "dapo")] == [12, 19, 45]
    assert [counts[name]["rewrites"] for name in ("open-rs", "math", "dapo")] == [6999, 7500, 14109]
    assert set(evidence["by_eye"]) == set(rp.REASONS) - {"unparsed", "empty"}
    for reason, verdict in evidence["by_eye"].items():
        right, wrong = (sum(map(len, verdict[key].values())) for key in ("right", "wrong"))
        assert (right, wrong) == (verdict["n_right"], verdict["n_read"] - verdict["n_right"]), reason
        for key in ("right", "wrong"):
            for name, ids in verdict[key].items():
                assert set(ids) <= set(evidence["ids"][reason][name]), (reason, name)
        if verdict["n_read"]:
            interval = binomtest(right, right + wrong).proportion_ci(method="wilson")
            assert verdict["wilson_95"] == [round(interval.low, 3), round(interval.high, 3)]
    for name, row in counts.items():
        for reason, by_set in evidence["ids"].items():
            assert row[reason] == len(by_set.get(name, [])), (name, reason)
