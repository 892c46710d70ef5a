"""Benchmarks: known answers, protocols to the letter, hostile data and completions."""

import base64
import doctest
import importlib.util
import json
import pickle
import sys
import zlib

import pyarrow.parquet as pq
import pytest

from corelib import benchmark_code as code
from corelib import benchmark_harness as harness
from corelib import benchmark_lcb as lcb
from corelib import benchmark_math as maths
from corelib import sandbox
from corelib.audit import normalise
from corelib.benchmarks import BENCHMARKS, find, overlap, table
from corelib.data import SYSTEM_PROMPT, DataError, read_view

needs_sandbox = pytest.mark.skipif(bool(sandbox.available()), reason=sandbox.available() or "-")
needs_harness = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason=f"no lm-eval: {harness.INSTALL}")


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rights(verdicts):
    return [verdict.right for verdict in verdicts]


@pytest.mark.parametrize("module", [code, lcb], ids=lambda module: module.__name__)
def test_examples_in_docstrings(module):
    assert doctest.testmod(module).attempted and not doctest.testmod(module).failed


# --- the table ---


def test_the_table_has_every_benchmark_and_names_no_local_path():
    frame = table()
    assert list(frame.index) == list(BENCHMARKS) == [b.name for b in BENCHMARKS.values()]
    assert frame.loc["amc", ["problems", "decoding", "metric"]].tolist() == [
        83,
        "temperature 0.8, 8 draws, 3072 tokens",
        "avg@8",
    ]
    assert frame.loc["cruxeval_exec", "decoding"] == "temperature 0.2, 10 draws, 1024 tokens"
    assert frame.loc["math500", "decoding"] == "greedy, 1 draw, 3072 tokens"
    assert frame.notna().all().all() and not frame.astype(str).apply(lambda c: c.str.contains(r"(?:^|\s)/")).any().any()
    sizes = {"math500": 500, "gsm8k": 1319, "amc": 83, "aime24": 30, "aime25": 30, "cruxeval": 800}
    sizes |= {"livecodebench": 1055, "ifeval": 541, "mmlu_pro": 12032}  # table 6 of the paper
    assert {name: BENCHMARKS[name].size for name in sizes} == sizes


def test_an_unknown_name_or_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(
        ValueError, match="unknown benchmark 'maths': did you mean 'math500'.* valid are math500, gsm8k, .*lab, paper"
    ):
        find("maths")
    for name, file in {"math500": "math500_ttrl", "cruxeval": "cruxeval.jsonl", "livecodebench": "test.jsonl"}.items():
        with pytest.raises(DataError, match=f"holds none of .*{file}"):
            find(name).load(str(tmp_path))
    for name in ("cruxeval", "livecodebench"):  # the tests run with HF_HUB_OFFLINE
        with pytest.raises(DataError, match="the Hub does not answer .*; give source, a folder with"):
            find(name).load("")
    (tmp_path / "cruxeval").mkdir()
    (tmp_path / "cruxeval/cruxeval.jsonl").write_text('{"id": "a", "code": "", "input": ""}\n')
    with pytest.raises(DataError, match="cruxeval.jsonl: row 0: no column 'output'"):
        find("cruxeval").load(str(tmp_path))


# --- mathematics ---


@pytest.mark.parametrize("name", ["math500", "gsm8k", "amc", "aime24", "aime25"])
def test_every_gold_answer_scores_and_a_changed_one_does_not(name, shared_data):
    benchmark = find(name)
    problems = benchmark.load(str(shared_data))
    assert len(problems) == benchmark.size
    for p in problems:
        gold = p["answer"]
        texts = [rf"Thus \boxed{{{gold}}}.", rf"\boxed{{{gold}}}, no: \boxed{{-7654321}}", f"the answer is {gold}"]
        assert [(v.answer is None, v.right) for v in benchmark.grade(texts, p)] == [
            (False, True),
            (False, False),
            (True, False),
        ]


def test_the_golds_of_amc_are_numbers():
    verdicts = maths.grade_boxed([r"\boxed{142}", r"\boxed{142.0}", r"\boxed{1420}", r"\boxed{}"], {"answer": "142.0"})
    assert rights(verdicts) == [True, True, False, False] and verdicts[3].answer is None


def test_prompts_are_those_of_training_or_few_shot():
    problem = {"question": "What is 1+1?"}
    asked = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": "What is 1+1?"}]
    for name in ("math500", "gsm8k", "amc", "aime24", "aime25"):
        assert find(name).messages(problem) == asked
    for name, messages in (("gsm8k", maths.gsm8k_messages), ("math500", maths.math_messages)):
        prompt = find(f"{name}_few_shot").messages(problem)
        assert prompt == messages(problem, few_shot=True) and messages(problem) == asked
        assert prompt.count("Question:") == prompt.count("Answer:") == 5 and prompt.count(r"\boxed{") == 4
        assert prompt.endswith("\n\nQuestion: What is 1+1?\nAnswer:")


def test_few_shot_answers_end_where_a_next_question_begins():
    text = "2 + 2 = 4. The answer is \\boxed{4}.\n\nQuestion: And 3 + 3?\nAnswer: \\boxed{6}"
    problem = {"answer": "4"}
    assert rights(find("gsm8k_few_shot").grade([text], problem)) == [True]
    assert rights(find("gsm8k").grade([text], problem)) == [False]  # as in training: the last box


def test_few_shot_problems_are_right_and_our_own(shared_data):
    worked = {"9": 9, "54": 54, "210": 210, "14": 14}
    assert (6 * 12 - 45) / 3 == 9 and (15 * 8 - 48) * 3 / 4 == 54 and 60 + 70 + 80 == 210 and 40 * 0.7 / 2 == 14
    assert [
        maths.grade_boxed([a], {"answer": g})[0].right for (_, a), g in zip(maths.GSM8K_SHOTS, worked, strict=True)
    ] == [True] * 4
    golds = ("7", r"\frac{1}{12}", r"(-\infty,3]", r"2\sqrt{34}")
    assert [
        maths.grade_boxed([a], {"answer": g})[0].right for (_, a), g in zip(maths.MATH_SHOTS, golds, strict=True)
    ] == [True] * 4
    own = {normalise(question) for question, _ in maths.GSM8K_SHOTS + maths.MATH_SHOTS}
    files = ("gsm8k/train.jsonl", "gsm8k/test.jsonl", "math500/math500_evalchemy.jsonl")
    theirs = {normalise(row.get("question") or row["problem"]) for file in files for row in lines(shared_data / file)}
    assert len(own) == 8 and not own & theirs


def test_overlap_ignores_typography_and_the_form_of_the_answer(shared_data):
    problems = [
        {"id": "a", "question": "Find $x+1$."},
        {"id": "b", "question": "Find y."},
        {"id": "c", "question": "?"},
    ]
    rows = ["find x + 1", "Find y. The answer is in the form k, find k.", "Find z.", "", None]
    assert overlap(problems, rows) == {"a", "b"} and overlap(problems, []) == set()
    # counted by other code on the same files, with equal golds: 14 of AMC's 83 questions; one more without DAPO's ending
    found = lines(shared_data / "contamination/train_test_exact_overlap.jsonl")
    amc = {r["bench_id"] for r in found if r["train"] == "dapo" and "AMC" in r["bench"].upper() and r["gold_equal"]}
    path = shared_data / "corew_train/dapo/train_original.parquet"
    ours = overlap(find("amc").load(str(shared_data)), read_view(pq.read_table(path), path.name)["text"])
    assert len(amc) == 14 and amc < ours and len(ours) == 15


# --- CRUXEval ---

PROBLEM = {"code": "def f(s):\n    return s + 'a'", "input": "'hi'", "answer": "'hia'", "question": "", "id": "0"}


def test_zeroeval_prompt_is_to_the_letter():
    (message,) = find("cruxeval").messages(PROBLEM)
    assert message["role"] == "user"
    expected = (
        "\n## Question: \n\nYou are given a Python function and an assertion containing an input to the function. Complete "
        "the assertion with a literal (no unsimplified expressions, no function calls) containing the output when executing "
        "the provided code on the given input, even if the function is incorrect or incomplete. \n\n[PYTHON]\ndef f(s):\n"
        "    return s + 'a'\nassert f('hi') == ??\n[/PYTHON]\n\n\n## Instruction \n\nPlease answer this question by first "
        "reasoning and then providing your answer.\nPresent your reasoning and solution in the following json format. \n"
        'Please show your final answer in the `answer` field, e.g.,`"answer": "42"`.\n\n```json\n{\n    "reasoning": "___",\n'
        '    "answer": "___"\n}\n```\n'
    )
    assert message["content"] == expected


@pytest.mark.parametrize(
    ("text", "gold", "answer", "right"),
    [
        ('```json\n{"reasoning": "r", "answer": "[1, 2]"}\n```', "[1, 2]", "[1, 2]", True),
        ('{"reasoning": "r", "answer": [1, 2]}', "[1, 2]", "[1, 2]", True),
        ('{"reasoning": "r",\n "answer": "hia"}', "'hia'", "hia", True),  # quotes at the ends do not count
        ('{"reasoning": "r", "answer": "\'hia\'"}', "'hia'", "'hia'", True),
        ('{"answer": "[1,2]"}', "[1, 2]", "[1,2]", False),  # strings: spaces count
        ('{"answer": "a\\nb"}', r"'a\nb'", "a\nb", True),
        ('{"answer": 1} {"answer": 2}', "2", "1", False),  # the first object
        ('{"reasoning": "{", "answer": "3"', "3", "3", True),  # no complete object: what stands where it should
        ('{"reasoning": \'bad\', "answer": "3"}', "3", "3", True),
        ("answer: True, I think", "True", "True", True),
        ('{"answer": true}', "True", "True", True),
        ('{"reasoning": "only"}', "3", None, False),
        ("", "''", None, False),
        ('{"answer": ""}', "''", "", True),
    ],
)
def test_zeroeval_compares_strings(text, gold, answer, right):
    (verdict,) = find("cruxeval").grade([text], PROBLEM | {"answer": gold})
    assert (verdict.answer, verdict.right) == (answer, right)


def test_zeroeval_survives_hostile_json():
    hostile = [
        "{" * 100_000 + "}" * 100_000,
        '{"answer": ' + "[" * 100_000,
        '{"answer": ' + "9" * 10_000 + "}",
        "{}" * 50_000,
    ]
    assert len(find("cruxeval").grade(hostile, PROBLEM)) == 4


def test_the_executed_form_takes_what_is_asserted():
    problem = {"input": "'a==b'", "code": "", "answer": ""}
    cases = {
        "assert f('a==b') == 'x==y'\n[/ANSWER]\n[PYTHON] == 3": "'x==y'",
        "assert f( 'z' ) == 5": "5",
        "'bare'\n[/ANSWER]": "'bare'",
        "[/ANSWER]": None,
    }
    assert [code.direct_answer(text, problem) for text in cases] == list(cases.values())
    prompt = find("cruxeval_exec").messages(PROBLEM)
    assert prompt.endswith("[PYTHON]\ndef f(s):\n    return s + 'a'\nassert f('hi') == ??\n[/PYTHON]\n[ANSWER]\n")
    assert prompt.count("[ANSWER]\nassert f(") == 2


@needs_sandbox
def test_the_executed_form_is_equality_in_python(monkeypatch):
    problem = PROBLEM | {"answer": "{1: (2, 3.0)}"}
    right = ["{1: (2, 3.0)}", "{1:(2,3)}", "dict([(1, (2, 3))])"]
    wrong = ["{1: [2, 3.0]}", "(", "f('hi')", "undefined"]
    ends = ["__import__('os')._exit(0)", "exit(0)", "print('right') or 0", "1\nprint('right')"]
    verdicts = find("cruxeval_exec").grade(right + wrong + ends, problem)
    assert rights(verdicts) == [True] * 3 + [False] * 8
    assert verdicts[5].answer == "f('hi')" and verdicts[5].detail == "no literal, as asked"
    assert rights(code.executed(["f('hi')", "f('h')", "'hia'"], PROBLEM, "input")) == [True, False, False]
    monkeypatch.setattr(code, "SECONDS", 1.0)
    (endless,) = code.executed(["[0 for _ in iter(int, 1)]"], problem, "output")
    assert not endless.right and endless.detail == "timeout"


def test_a_refusing_sandbox_is_an_error_and_never_a_wrong_answer(monkeypatch):
    refused = sandbox.Outcome("", "namespaces are switched off", None, "refused")
    monkeypatch.setattr(sandbox, "run", lambda *a, **k: refused)
    with pytest.raises(RuntimeError, match="cannot be graded, because namespaces are switched off"):
        find("cruxeval_exec").grade(["1"], PROBLEM)


@pytest.mark.slow
@needs_sandbox
@pytest.mark.parametrize("mode", ["output", "input"])
def test_code_llama_scores_as_the_official_evaluation_says(mode, shared_data):
    folder = shared_data / "cruxeval"
    answers = json.loads((folder / f"sample_generations_{mode}_codellama7b.json").read_text())
    official = json.loads((folder / f"sample_scored_{mode}_codellama7b.json").read_text())
    problems = {p["id"]: p for p in code.load(str(shared_data))}
    ours = {name: rights(code.executed(given, problems[name], mode)) for name, given in answers.items()}
    assert ours == official["raw_scored_generations"]
    assert 100 * sum(sum(r) / len(r) for r in ours.values()) / 800 == pytest.approx(official["pass_at_1"])


# --- LiveCodeBench ---

STDIN = {"input": "3 4\n", "output": "7\n", "testtype": "stdin"}


def packed(value, protocol=4):
    return base64.b64encode(zlib.compress(pickle.dumps(value, protocol))).decode()


def row(number, public=(STDIN,), private=(STDIN,), **more):
    return {
        "question_title": f"Problem {number}", "question_content": f"Add. {number}", "question_id": f"abc{number}_a",
        "platform": "atcoder", "contest_id": "1", "contest_date": "2024-05-01T00:00:00", "difficulty": "easy", "starter_code": "",
        "public_test_cases": json.dumps(public), "private_test_cases": packed(json.dumps(private)), "metadata": "{}",
    } | more  # fmt: skip


@pytest.fixture
def released(tmp_path):
    """Problems in the six files of a release, read back."""

    def make(*rows):
        for number, name in enumerate(lcb.FILES):
            mine = rows[number::6]
            (tmp_path / name).write_text(
                "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in mine), encoding="utf-8"
            )
        return {p["id"]: p for p in lcb.load(str(tmp_path), size=len(rows))}

    return make


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_hidden_tests_are_read_from_pickles_of_a_text(protocol):
    text = json.dumps([{"input": "é\n" * 40_000, "output": "∞"}], ensure_ascii=False)
    assert lcb.unpack(packed(text, protocol)) == text
    assert lcb.unpack(' [{"input": ""}]') == ' [{"input": ""}]'


class Payload:
    def __reduce__(self):
        return sys.modules["builtins"].exec, ("raise SystemExit('executed')",)


@pytest.mark.parametrize("value", [Payload(), ["a text"], 7, ("a", "b"), b"bytes", {"a": 1}], ids=str)
def test_a_pickle_of_anything_else_is_refused_and_not_executed(value):
    with pytest.raises(ValueError, match="a pickle of more than a text"):
        lcb.unpack(packed(value))


def test_damaged_and_oversized_tests_are_refused():
    bomb = base64.b64encode(zlib.compress(b"0" * 10_000_000)).decode()
    for text, message in (
        (bomb, "more than 1000 bytes"),
        ("####", "neither JSON nor base64"),
        (packed("x")[:-8], "cut off|neither"),
    ):
        with pytest.raises(ValueError, match=message):
            lcb.unpack(text, 1000)
    with pytest.raises(ValueError):
        lcb.unpack(base64.b64encode(zlib.compress(b"\x80\x04.")).decode())


def test_the_six_files_are_one_set(released, tmp_path):
    rows = [row(n) for n in range(6)] + [row(311, question_id="abc311_c"), row(8, question_title="Find the Peaks")]
    problems = released(*rows)
    assert len(problems) == 8 and [p["erratum"][:7] for p in problems.values() if p["erratum"]] == ["several"] * 2
    assert (
        problems["abc3_a"]["date"] == "2024-05-01"
        and lcb.cases(problems["abc3_a"]) == [{"input": "3 4\n", "output": "7\n"}] * 2
    )
    with pytest.raises(DataError, match="8 problems, release_v6 has 1055"):
        find("livecodebench").load(str(tmp_path))
    (tmp_path / "test4.jsonl").write_text('{"question_id": 1}\n')
    with pytest.raises(DataError, match="test4.jsonl: line 1: no column 'question_title'"):
        lcb.load(str(tmp_path), None)
    (tmp_path / "test4.jsonl").write_text('{"question_id": \n')
    with pytest.raises(DataError, match="test4.jsonl: line 1: is no JSON"):
        lcb.load(str(tmp_path), None)
    (tmp_path / "test4.jsonl").unlink()
    with pytest.raises(DataError, match="holds none of livecodebench/test4.jsonl"):
        lcb.load(str(tmp_path), None)


def test_damaged_tests_of_a_problem_are_named(released):
    problems = released(row(1, private_test_cases=packed([1])), *(row(n) for n in range(2, 7)))
    with pytest.raises(DataError, match="tests of problem abc1_a cannot be read .a pickle of more"):
        lcb.grade(["```\nprint(7)\n```"], problems["abc1_a"])


def test_livecodebench_prompt_is_to_the_letter():
    asked = {"question": "Q?", "starter_code": ""}
    system, user = lcb.messages(asked)
    assert system["content"].startswith("You are an expert Python programmer. You will be given a question")
    assert user["content"] == (
        "### Question:\nQ?\n\n### Format: Read the inputs from stdin solve the problem and write the answer to stdout (do not "
        "directly test on the sample inputs). Enclose your code within delimiters as follows.\n```python\n# YOUR CODE HERE\n"
        "```\n\n### Answer: (use the provided format with backticks)\n\n"
    )
    _, user = lcb.messages(asked | {"starter_code": "class Solution:\n    def g(self): "})
    assert user["content"] == (
        "### Question:\nQ?\n\n### Format: You will use the following starter code to write the solution to the problem and "
        "enclose your code within delimiters.\n```python\nclass Solution:\n    def g(self): \n```\n\n"
        "### Answer: (use the provided format with backticks)\n\n"
    )


def fenced(program):
    return f"Here it is.\n```python\n{program}\n```\nDone."


@needs_sandbox
def test_programs_that_read_and_print(released):
    more = {"input": "1 2\n", "output": "3"}
    problem = released(row(1, public=[STDIN, more]), *(row(n) for n in range(2, 7)))["abc1_a"]
    add = "a, b = map(int, input().split())\nprint(a + b)"
    right = [add, f"{add}\nexit(1)", "print('%.3f ' % sum(map(float, input().split())))",
             "def main():\n    print(reduce(add, map(int, stdin.read().split())))\nif __name__ == '__main__':\n    main()"]  # fmt: skip
    wrong = {
        "print(7)": "wrong, test 2 of 3",
        add + "\nprint()\nprint(1)": "wrong, test 1 of 3",
        add + "\nraise ValueError": "error, test 1 of 3",
        "print(": "error, test 1 of 3",
        "": "",
    }
    verdicts = lcb.grade([fenced(c) for c in right] + [fenced(c) for c in wrong] + [add, add], problem)
    assert rights(verdicts) == [True] * 4 + [False] * 7
    assert [v.detail for v in verdicts[4:]] == [*wrong.values(), "", ""] and verdicts[-1].answer is None
    assert verdicts[0].answer == add


@needs_sandbox
def test_functions_are_called_and_their_value_compared(released):
    cases = [{"input": "[1, 2]\n3", "output": "[4, 5]"}, {"input": "[]\n1", "output": "[]"}]
    functional = row(1, public=cases, private=[], starter_code="class Solution: ...", metadata='{"func_name": "shift"}')
    problem = released(functional, *(row(n) for n in range(2, 7)))["abc1_a"]
    head = "class Solution:\n    def shift(self, a: List[int], n: int) -> List[int]:\n        "
    right = ["return [x + n for x in a]", "print('[0]')\n        return tuple(x + n for x in a)"]
    wrong = ["print([x + n for x in a])", "return {x + n for x in a}", "return [x + n for x in a] if a else [0]",
             "import os; os._exit(0)", "self.shift(a, n)"]  # fmt: skip
    verdicts = lcb.grade(
        [fenced(head + c) for c in right + wrong] + [fenced("def shift(a, n):\n    return [x + n for x in a]")], problem
    )
    assert rights(verdicts) == [True, True] + [False] * 5 + [True]
    assert verdicts[4].detail == "wrong, test 2 of 2" and verdicts[3].detail == "error, test 1 of 2"


@needs_sandbox
def test_limits_of_time_and_memory_are_told_apart(released, monkeypatch):
    monkeypatch.setattr(lcb, "SECONDS", 1.0)
    problem = released(*(row(n) for n in range(1, 7)))["abc1_a"]
    slow, big = lcb.grade([fenced("while True: pass"), fenced("x = bytearray(3 << 30)\nprint(7)")], problem)
    assert slow.detail == "timeout, test 1 of 2" and not big.right and big.detail.endswith("test 1 of 2")


@needs_sandbox
def test_official_few_shot_answers_pass_their_examples(released, shared_data):
    stdin = json.loads((shared_data / "livecodebench/fewshot_stdin.json").read_text())
    call = json.loads((shared_data / "livecodebench/fewshot_func.json").read_text())
    gifts = "5\n3\n3 5 6\n3 2 3\n5\n1 2 3 4 5\n5 4 3 2 1\n3\n1 1 1\n2 2 2\n6\n1 1000000000 1000000000 1000000000 1000000000 1000000000\n1 1 1 1 1 1\n3\n10 12 8\n7 5 4\n"
    cases = [  # the examples in the questions
        [(gifts, "6\n16\n0\n4999999995\n7\n")],
        [("11\n00000000008", "1"), ("22\n0011223344556677889988", "2"), ("11\n31415926535", "0")],
        [("[4,4,2,4,3]", "3"), ("[1,1,1,1,1]", "0")],
        [('"coaching"\n"coding"', "4"), ('"abcde"\n"a"', "0"), ('"z"\n"abcde"', "5")],
    ]
    names = ["", "", "unequalTriplets", "appendCharacters"]
    rows = [
        row(n, [{"input": i, "output": o} for i, o in case], [], question_content=item["question"],
            starter_code=item.get("sample_code", ""), metadata=json.dumps({"func_name": name} if name else {}))
        for n, (item, case, name) in enumerate(zip(stdin + call, cases, names, strict=True))
    ]  # fmt: skip
    problems = released(*rows, row(8), row(9))
    broken = [("max(", "min("), ("// 11", "// 10 + 9"), ("== 3", "== 2"), ("len(t) - i", "len(t)")]
    for n, (item, (old, new)) in enumerate(zip(stdin + call, broken, strict=True)):
        assert old in item["answer"]
        texts = [fenced(item["answer"]), fenced(item["answer"].replace(old, new))]
        assert rights(lcb.grade(texts, problems[f"abc{n}_a"])) == [True, False]


# --- lm-evaluation-harness ---


def test_a_missing_harness_names_the_remedy(monkeypatch):
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)
    harness._tasks.cache_clear()
    for name in ("ifeval", "mmlu_pro"):
        with pytest.raises(RuntimeError, match=r"pip install 'lm-eval\[ifeval\]==0.4.13'"):
            find(name).load("")
    with pytest.raises(ValueError, match="unknown harness task 'arc'"):
        harness.score(None, None, "arc")


def test_ifeval_scores_are_four_shares_and_their_mean():
    strict = [
        {"prompt_strict": True, "inst_strict": [True]},
        {"prompt_strict": False, "inst_strict": [True, False, False]},
    ]
    loose = [{"prompt_loose": True, "inst_loose": [True]}, {"prompt_loose": True, "inst_loose": [True, True, True]}]
    scores = harness.ifeval_scores([json.dumps(a | b) for a, b in zip(strict, loose, strict=True)])
    assert scores == {"prompt_strict": 0.5, "prompt_loose": 1.0, "inst_strict": 0.5, "inst_loose": 1.0, "mean": 0.75}
    with pytest.raises(ValueError, match="no verdicts of IFEval"):
        harness.ifeval_scores([])


MMLU_PRO_PATTERN = r"answer is \(?([ABCDEFGHIJ])\)?"  # of the harness's mmlu_pro, which the slow test compares


def test_mmlu_pro_reads_llama_2_as_its_authors_did(shared_data):
    outputs = lines(shared_data / "mmlu_pro/llama2_7b_5shot_outputs_300.jsonl")
    ours = [find("mmlu_pro").grade([r["generated_text"]], r | {"pattern": MMLU_PRO_PATTERN})[0] for r in outputs]
    assert len(ours) == 301 and [v.answer for v in ours] == [r["pred"] for r in outputs]
    assert [v.right for v in ours] == [r["pred"] == r["answer"] for r in outputs] and sum(rights(ours)) == 52
    text = "The answer is (B).\n\nQuestion:\nNext? The answer is (A)"
    assert rights(find("mmlu_pro").grade([text, "B", "answer is K"], {"answer": "B", "pattern": MMLU_PRO_PATTERN})) == [
        True,
        False,
        False,
    ]


@pytest.mark.slow
@needs_harness
def test_ifeval_scores_gpt_4_as_published(shared_data):
    try:
        problems = find("ifeval").load(str(shared_data))
    except RuntimeError as error:
        pytest.skip(str(error))
    answers = lines(shared_data / "ifeval/input_response_data_gpt4_20231107_145030.jsonl")
    verdicts = [find("ifeval").grade([r["response"]], p)[0] for p, r in zip(problems, answers, strict=True)]
    scores = harness.ifeval_scores([v.detail for v in verdicts])
    published = {"prompt_strict": 0.7689, "inst_strict": 0.8357, "prompt_loose": 0.7930, "inst_loose": 0.8537}
    # arXiv 2311.07911, table 3. Two prompts depend on a random letter, and one prompt was changed since: 3 of 541
    assert {k: scores[k] for k in published} == pytest.approx(published, abs=3 / 541)
    again = [
        find("ifeval").grade([r["response"]], p)[0]
        for p, r in zip(problems.select(range(100)), answers[:100], strict=True)
    ]
    assert again == verdicts[:100]


@pytest.fixture(scope="module")
def tiny_model():
    """A causal model of 30,000 random weights over bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({c: i for i, c in enumerate([*letters, "<end>"])}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", pad_token="<end>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=257, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                         max_position_embeddings=16_384, eos_token_id=256, pad_token_id=256)  # fmt: skip
    return LlamaForCausalLM(config).eval(), tokenizer


@pytest.mark.slow
@needs_harness
def test_the_harness_draws_and_scores_in_process_from_local_files(shared_data, tiny_model):
    source = str(shared_data)
    try:
        problems = {p["id"]: p for p in find("ifeval").load(source)}
    except RuntimeError as error:
        pytest.skip(str(error))
    result = harness.score(*tiny_model, "ifeval", limit=2, source=source)
    assert len(result.samples) == 2 and result.scores == harness.ifeval_scores(list(result.samples["detail"]))
    for sample in result.samples.to_dict("records"):
        (message,) = find("ifeval").messages(problems[sample["id"]])
        assert sample["prompt"] == f"user: {message['content']}\nassistant: "
        assert find("ifeval").grade([sample["completion"]], problems[sample["id"]])[0].right == sample["right"]


@pytest.mark.slow
@needs_harness
def test_mmlu_pro_prompts_are_the_harness_s(shared_data, tiny_model):
    source = str(shared_data)
    problems = {p["id"]: p for p in find("mmlu_pro").load(source)}
    assert len(problems) == 12032 and {p["pattern"] for p in problems.values()} == {MMLU_PRO_PATTERN}
    assert all(p["prompt"].count("\n\nQuestion:\n") == 5 for p in problems.values())
    result = harness.score(*tiny_model, "mmlu_pro", limit=1, source=source)
    assert len(result.samples) == 14 and len(result.scores) == 15
    for sample in result.samples.to_dict("records"):
        assert sample["prompt"] == find("mmlu_pro").messages(problems[sample["id"]])
        assert find("mmlu_pro").grade([sample["completion"]], problems[sample["id"]])[0].right == sample["right"]


@pytest.fixture
def offline_ifeval(monkeypatch):
    """The harness's IFEval without punkt_tab, which the instructions of these tests do not need."""
    import langdetect
    import nltk

    monkeypatch.setattr(nltk, "download", lambda *_, **__: True)
    monkeypatch.setattr(harness, "require", lambda task: None)
    monkeypatch.setattr(langdetect.DetectorFactory, "seed", 0)


def ifeval_problem(*instructions):
    names, arguments = zip(*instructions, strict=True)
    doc = {"key": 1, "prompt": "p", "instruction_id_list": list(names), "kwargs": list(arguments)}
    return {"id": "1", "doc": json.dumps(doc)}


@needs_harness
def test_ifeval_grades_in_threads_as_in_a_row(offline_ifeval, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    from langdetect import detector_factory

    letter = (
        "keywords:letter_frequency",
        {"letter": "#", "let_frequency": 4, "let_relation": "at least"},
    )  # a random one
    problems = [
        ifeval_problem(("language:response_language", {"language": c}), letter) for c in ("kn", "de", "fr", "en")
    ]
    text = "This is an answer in English, whatever language was asked for, and it is long enough to be recognised."
    jobs = [([text] * 3, problem) for problem in problems * 2]
    monkeypatch.setattr(detector_factory, "_factory", None)  # as in a fresh process: the profiles are not read yet
    with ThreadPoolExecutor(8) as pool:
        threads = list(pool.map(lambda job: harness.grade_ifeval(*job), jobs))
    assert threads == [harness.grade_ifeval(*job) for job in jobs]
    languages = [json.loads(v.detail)["inst_strict"][0] for row in threads for v in row]
    assert languages == ([False] * 9 + [True] * 3) * 2


@needs_harness
def test_ifeval_survives_a_completion_nested_without_end(offline_ifeval):
    problem = ifeval_problem(("detectable_format:json_format", {}), ("punctuation:no_comma", {}))
    deep, fine = harness.grade_ifeval(["[" * 3000, "[1]"], problem)
    assert not deep.right and json.loads(deep.detail) == {
        "prompt_strict": False, "prompt_loose": False, "inst_strict": [False, False], "inst_loose": [False, False],
    }  # fmt: skip
    assert fine.right
