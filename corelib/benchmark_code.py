r"""CRUXEval, output prediction, in two protocols, and the running of model-written code that it shares with LiveCodeBench.

ZeroEval's, which the paper names: zero-shot, JSON with reasoning and answer, compared as strings, nothing is executed.
CRUXEval's own: two examples in [ANSWER] tags, and Python decides whether the two literals are equal.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import datasets

from corelib import sandbox
from corelib.benchmark_base import Verdict, read_rows

SECONDS = 3.0  # for one assertion: check_correctness of the official evaluation
FILES, HUB = ("cruxeval/cruxeval.jsonl",), "cruxeval-org/cruxeval"

# Protocol texts of ZeroEval (yuchenlin/ZeroEval, data_prep/crux.py and src/templates/OEQA.py), to the letter
ZEROEVAL_QUESTION = """You are given a Python function and an assertion containing an input to the function. Complete the assertion with a literal (no unsimplified expressions, no function calls) containing the output when executing the provided code on the given input, even if the function is incorrect or incomplete. 

[PYTHON]
{code}
assert f({input}) == ??
[/PYTHON]"""  # noqa: W291
ZEROEVAL_FORM = """
## Question: 

{question}


## Instruction 

Please answer this question by first reasoning and then providing your answer.
Present your reasoning and solution in the following json format. 
Please show your final answer in the `answer` field, e.g.,`"answer": "42"`.

```json
{{
    "reasoning": "___",
    "answer": "___"
}}
```
"""  # noqa: W291
# Protocol text of CRUXEval (facebookresearch/cruxeval, prompts.py, make_direct_output_prompt), to the letter
DIRECT_FORM = """You are given a Python function and an assertion containing an input to the function. Complete the assertion with a literal (no unsimplified expressions, no function calls) containing the output when executing the provided code on the given input, even if the function is incorrect or incomplete. Do NOT output any extra information. Provide the full assertion with the correct output in [ANSWER] and [/ANSWER] tags, following the examples.

[PYTHON]
def f(n):
    return n
assert f(17) == ??
[/PYTHON]
[ANSWER]
assert f(17) == 17
[/ANSWER]

[PYTHON]
def f(s):
    return s + "a"
assert f("x9j") == ??
[/PYTHON]
[ANSWER]
assert f("x9j") == "x9ja"
[/ANSWER]

[PYTHON]
{code}
assert f({input}) == ??
[/PYTHON]
[ANSWER]
"""
STOP = "[/ANSWER]"

# The word arrives before the assertion runs and is printed after it held: a text that only ends the program scores nothing.
_ASSERTION = """
import sys
word = sys.stdin.readline()
exec(compile({program!r}, "assertion", "exec"), {{"__name__": "__main__"}})
sys.__stdout__.write("\\n" + word)
"""


def load(source: str) -> datasets.Dataset:
    """The 800 problems: id, question (the function), code, input, answer (the output as a Python literal)."""
    rows = read_rows(source, FILES, HUB, "test", ("id", "code", "input", "output"))
    return datasets.Dataset.from_list(
        [
            {"id": r["id"], "question": r["code"], "code": r["code"], "input": r["input"], "answer": r["output"]}
            for r in rows
        ]
    )


def zeroeval_messages(problem: dict) -> list[dict]:
    """ZeroEval's prompt as one user message, for the model's chat template."""
    question = ZEROEVAL_QUESTION.format(code=problem["code"], input=problem["input"])
    return [{"role": "user", "content": ZEROEVAL_FORM.format(question=question)}]


def zeroeval_answer(text: str) -> str | None:
    """The `answer` of the first complete JSON object of a completion; without one, what stands where it should.

    Source: extract_first_complete_json, then extract_values_from_json, of ZeroEval's eval_utils.py.

    >>> zeroeval_answer('so {"reasoning": "r", "answer": [1, 2]}'), zeroeval_answer('"answer": "4" and no brace')
    ('[1, 2]', '4')
    """
    found = _first_object(text)
    if isinstance(found, dict) and "answer" in found:
        return str(found["answer"])
    for pattern in (r'"answer"\s*:\s*"([^"]*?)"', r'"answer"\s*:\s*([^,\s]*)', r"answer\s*:\s*([^,\s]*)"):
        if match := re.search(pattern, text):
            return match[1]
    return None


def _first_object(text: str):
    """The value of the first {...} whose braces balance, line breaks removed; None when it is not JSON."""
    depth, start = 0, None
    for i, char in enumerate(text):
        if char == "{":
            start = i if start is None else start
            depth += 1
        elif char == "}" and depth:
            depth -= 1
            if not depth:
                try:
                    return json.loads(text[start : i + 1].replace("\n", ""))
                except (ValueError, RecursionError):
                    return None
    return None


def grade_zeroeval(completions: list[str], problem: dict) -> list[Verdict]:
    """Equality of answer and output as strings, quotes at either end removed; the answer's line breaks become \\n.

    Source: eval_model of ZeroEval's crux_eval.py.
    """
    gold = problem["answer"].strip("'\"")
    answers = [zeroeval_answer(text) for text in completions]
    return [Verdict(a, a is not None and a.strip("'\"").replace("\n", "\\n") == gold) for a in answers]


def direct_messages(problem: dict) -> str:
    """CRUXEval's own prompt: two examples, plain text, ending in the [ANSWER] that the model goes on from."""
    return DIRECT_FORM.format(code=problem["code"], input=problem["input"])


def direct_answer(text: str, problem: dict) -> str | None:
    """What a completion of the [ANSWER] prompt asserts; None when that is blank.

    The official rule takes what stands between the first two ==; here a text that repeats the assertion as asked is
    cut after it first, so that inputs and outputs that hold == survive.
    """
    text = text.split(STOP, 1)[0].strip()
    asked = f"assert f({problem['input']}) =="
    if text.startswith(asked):
        return text[len(asked) :].strip() or None
    return (text.split("==")[1] if "==" in text else text).strip() or None


def grade_executed(completions: list[str], problem: dict) -> list[Verdict]:
    """Python's own equality of answer and output, in the sandbox; repeating the call f(input) is wrong."""
    return executed([direct_answer(text, problem) for text in completions], problem, "output")


def executed(answers: Sequence[str | None], problem: dict, mode: str) -> list[Verdict]:
    """Verdicts on predicted outputs (mode "output") or on calls f(...) that should give the output (mode "input").

    Raises RuntimeError when the sandbox refuses. Source: evaluate_score of the official evaluation.
    """
    call = f"f({problem['input']})"
    cheats = {a for a in answers if a is None or (call in a if mode == "output" else "f(" not in a)}
    different = [a for a in dict.fromkeys(answers) if a not in cheats]
    verdicts = dict(zip(different, parallel(lambda a: _assertion(a, problem), different), strict=True))
    verdicts |= {a: Verdict(a, False, "" if a is None else "no literal, as asked") for a in cheats}
    return [verdicts[a] for a in answers]


def _assertion(answer: str, problem: dict) -> Verdict:
    program = f"{problem['code']}\nassert {problem['answer']} == {answer}"
    word = secrets.token_hex(8)
    outcome = run(_ASSERTION.format(program=program), f"{word}\n", SECONDS, 512)
    right = outcome.reason == "ok" and outcome.stdout.rstrip().endswith(word)
    return Verdict(answer, right, "" if outcome.reason in ("ok", "error") else outcome.reason)


def run(code: str, stdin: str, timeout: float, memory_mb: int) -> sandbox.Outcome:
    """`sandbox.run`, but RuntimeError where it refuses: a program that was not run is neither right nor wrong."""
    outcome = sandbox.run(code, stdin=stdin, timeout=timeout, memory_mb=memory_mb)
    if outcome.reason == "refused":
        raise RuntimeError(f"the answers cannot be graded, because {outcome.stderr.strip() or 'the sandbox refuses'}")
    return outcome


def parallel(judge: Callable[[str], Verdict], texts: Sequence[str]) -> list[Verdict]:
    """judge(text) of each text in order, on as many threads as there are cores; the sandbox admits by cores and memory."""
    if not texts:
        return []
    with ThreadPoolExecutor(min(len(texts), os.cpu_count() or 1)) as pool:
        return list(pool.map(judge, texts))
