"""LiveCodeBench, code generation, release_v6: problems without remote code, hidden tests without unpickling, verdicts.

The official loader runs a script of the dataset's repository, and its hidden tests are pickles. Neither is needed: the
problems are six JSON-lines files, and the pickle of a text can be read without building any object.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import pickletools
import zlib
from decimal import Decimal
from functools import partial
from pathlib import Path

import datasets
import huggingface_hub

from corelib.benchmark_base import Verdict, find_file
from corelib.benchmark_code import parallel, run
from corelib.data import DataError

HUB, SIZE = "livecodebench/code_generation_lite", 1055
FILES = (
    "test.jsonl",
    "test2.jsonl",
    "test3.jsonl",
    "test4.jsonl",
    "test5.jsonl",
    "test6.jsonl",
)  # release_v6 is all six
NEEDS = (
    "question_title", "question_content", "question_id", "platform", "contest_date", "difficulty", "starter_code",
    "public_test_cases", "private_test_cases", "metadata",
)  # fmt: skip
SECONDS = 6.0  # a test: default of the official evaluation
MEMORY_MB = 1024  # the limit of AtCoder, where most of the problems come from
MAX_TESTS = 2**30  # bytes of one problem's unpacked tests

# ERRATA.md of the official repository, by question id or by title
ERRATA = {
    "several answers are right, one is accepted": (
        "abc311_c", "abc326_d", "abc327_b", "abc333_e", "abc343_e", "abc362_c", "find-words-containing-character",
        "find-the-peaks", "generate-binary-strings-without-adjacent-zeros", "arc185_c", "abc343_a",
    ),
    "interactive, cannot be solved here": ("abc337_e", "abc355_e"),
    "wrong tests": ("abc350_c", "apply-operations-to-make-string-empty", "most-frequent-ids"),
}  # fmt: skip

# Protocol texts of the official repository (lcb_runner/prompts/code_generation.py, the chat form), to the letter
SYSTEM = "You are an expert Python programmer. You will be given a question (problem specification) and will generate a correct Python program that matches the specification and passes all tests. You will NOT return anything except for the program."
WITH_STARTER = "You will use the following starter code to write the solution to the problem and enclose your code within delimiters."
WITHOUT_STARTER = "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly test on the sample inputs). Enclose your code within delimiters as follows."

# The names that the official evaluation puts before every program (import_string of testing_util.py), in its order
_MODULES = "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys json".split()
PREAMBLE = "".join(
    [f"from {name} import *\n" for name in (*_MODULES, "builtins", "typing")]
    + [f"import {name}\n" for name in _MODULES]
    + ["sys.setrecursionlimit(50000)\n"]
)
# exit() ends a program without failing it, as in the official evaluation
_PROGRAM = """
try:
    exec(compile({code!r}, "solution.py", "exec"), {{"__name__": "__main__"}})
except SystemExit:
    pass
"""
# What the solution prints is thrown away; the value it returns is the only thing written. Expected values never come here.
_CALL = """
import json, os, sys
inputs = [json.loads(line) for line in sys.stdin.read().split("\\n")]
result = os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
names = {{"__name__": "solution"}}
exec(compile({code!r}, "solution.py", "exec"), names)
method = getattr(names["Solution"](), {name!r}) if "Solution" in names else names[{name!r}]
json.dump(method(*inputs), result)
result.flush()
"""


def load(source: str, size: int | None = SIZE) -> datasets.Dataset:
    """The problems: id, question, answer (empty), title, platform, difficulty, date, starter_code, function, erratum, ...

    source: a folder with the six files (or with livecodebench/ that holds them), "" for the Hub. The hidden tests, some
    gigabytes, stay in the files: `file` and `offset` say where. size: the number of problems there must be, None for any.
    """
    if source in (None, "", "hub"):
        try:
            paths = [Path(huggingface_hub.hf_hub_download(HUB, name, repo_type="dataset")) for name in FILES]
        except Exception as error:  # httpx, offline mode and authentication raise unrelated types
            raise DataError(
                f"{HUB}: the Hub does not answer ({type(error).__name__}: {error}); give source, a folder with "
                f"{', '.join(FILES)}"
            ) from error
    else:
        paths = [find_file(source, (f"livecodebench/{name}", name)) for name in FILES]
    problems = [problem for path in paths for problem in _read(path)]
    if size is not None and len(problems) != size:
        raise DataError(
            f"{paths[0].parent}: {len(problems)} problems, release_v6 has {size}; fetch the six files again"
        )
    return datasets.Dataset.from_list(problems)


def _read(path: Path) -> list[dict]:
    problems = []
    with open(path, "rb") as lines:
        offset = 0
        for number, line in enumerate(lines):
            if line.strip():
                problems.append(_problem(line, f"{path}: line {number + 1}") | {"file": str(path), "offset": offset})
            offset += len(line)
    return problems


def _problem(line: bytes, where: str) -> dict:
    row = _parsed(line, where)
    title = "-".join(row["question_title"].lower().split())
    notes = [note for note, names in ERRATA.items() if {row["question_id"], title} & set(names)]
    return {
        "id": str(row["question_id"]), "question": row["question_content"], "answer": "", "title": row["question_title"],
        "platform": row["platform"], "difficulty": row["difficulty"], "date": str(row["contest_date"])[:10],
        "starter_code": row["starter_code"], "function": row["metadata"].get("func_name") or "",
        "erratum": notes[0] if notes else "",
    }  # fmt: skip


def _parsed(line: bytes, where: str) -> dict:
    try:
        row = json.loads(line)
        if missing := [name for name in NEEDS if name not in row]:
            raise DataError(f"{where}: no column {missing[0]!r} (columns: {', '.join(row)})")
        return row | {"metadata": json.loads(row["metadata"])}
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: is no JSON ({error}); fetch the file again") from error


def cases(problem: dict) -> list[dict]:
    """Public, then hidden tests of one problem: input and output, both text. Raises DataError for a damaged file."""
    with open(problem["file"], "rb") as lines:
        lines.seek(problem["offset"])
        row = _parsed(lines.readline(), f"{problem['file']}: problem {problem['id']}")
    try:
        found = json.loads(row["public_test_cases"]) + json.loads(unpack(row["private_test_cases"]))
        return [{"input": test["input"], "output": test["output"]} for test in found]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{problem['file']}: tests of problem {problem['id']} cannot be read ({error})") from error


def unpack(text: str, limit: int = MAX_TESTS) -> str:
    """Hidden tests as JSON text: as they are, or unpacked from base64, zlib, and the pickle of one text.

    The pickle is read opcode by opcode and may hold nothing but that text: no object is built, nothing is called.
    Raises ValueError for anything else and for more than `limit` bytes.
    """
    if text.lstrip().startswith("["):
        return text
    try:
        unzip = zlib.decompressobj()
        data = unzip.decompress(base64.b64decode(text, validate=True), limit)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"neither JSON nor base64 of zlib: {error}") from error
    if not unzip.eof:
        raise ValueError(f"more than {limit} bytes, or cut off")
    found = []
    for opcode, argument, _ in pickletools.genops(io.BytesIO(data)):
        if opcode.name in ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"):
            found.append(argument)
        elif opcode.name not in ("PROTO", "FRAME", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "STOP"):
            raise ValueError(f"a pickle of more than a text (opcode {opcode.name})")
    if len(found) != 1:
        raise ValueError(f"a pickle of {len(found)} texts, expected one")
    return found[0]


def messages(problem: dict) -> list[dict]:
    """The official chat prompt: system message, question, and the form of the answer."""
    starter = problem["starter_code"]
    form = f"{WITH_STARTER}\n```python\n{starter}" if starter else f"{WITHOUT_STARTER}\n```python\n# YOUR CODE HERE"
    content = f"### Question:\n{problem['question']}\n\n### Format: {form}\n```\n\n### Answer: (use the provided format with backticks)\n\n"
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}]


def extract_code(text: str) -> str | None:
    """The lines between the last two lines that hold a fence; None without two. Source: extraction_utils.py.

    >>> extract_code("```python\\nprint(1)\\n```\\nor rather\\n```python\\nprint(2)\\n```\\nDone.")
    'print(2)'
    """
    lines = text.split("\n")
    fences = [i for i, line in enumerate(lines) if "```" in line]
    return "\n".join(lines[fences[-2] + 1 : fences[-1]]).strip("\n") or None if len(fences) > 1 else None


def grade(completions: list[str], problem: dict) -> list[Verdict]:
    """Whether the program of each completion passes every test, public ones first, up to the first that fails.

    detail: "timeout, test 3 of 12", and so for memory, output, error and wrong. Raises RuntimeError when the sandbox
    refuses and DataError when the tests cannot be read.
    """
    codes = [extract_code(text) for text in completions]
    different = [code for code in dict.fromkeys(codes) if code is not None]
    if not different:
        return [Verdict(None, False) for _ in codes]
    judge = partial(_judge, tests=cases(problem), function=problem["function"])
    verdicts = dict(zip(different, parallel(judge, different), strict=True))
    return [verdicts.get(code, Verdict(None, False)) for code in codes]


def _judge(code: str, tests: list[dict], function: str) -> Verdict:
    whole = f"{PREAMBLE}\n{code}"
    program = _CALL.format(code=whole, name=function) if function else _PROGRAM.format(code=whole)
    same = same_value if function else same_output
    for number, case in enumerate(tests, 1):
        outcome = run(program, case["input"], SECONDS, MEMORY_MB)
        if outcome.reason != "ok" or not same(outcome.stdout, case["output"]):
            reason = "wrong" if outcome.reason == "ok" else outcome.reason
            return Verdict(code, False, f"{reason}, test {number} of {len(tests)}")
    return Verdict(code, True)


def same_output(printed: str, expected: str) -> bool:
    """Equal line by line without outer blanks, or line by line as decimal numbers. Source: grade_stdio of testing_util.py.

    >>> same_output("1 2.50 \\n", "1 2.5"), same_output("1\\n2", "1 2"), same_output("yes", "Yes")
    (True, False, False)
    """
    left, right = ([line.strip() for line in text.strip().split("\n")] for text in (printed, expected))
    return len(left) == len(right) and all(a == b or _same_numbers(a, b) for a, b in zip(left, right, strict=True))


def _same_numbers(left: str, right: str) -> bool:
    try:
        return [Decimal(word) for word in left.split()] == [Decimal(word) for word in right.split()]
    except ArithmeticError:  # no number, or one that cannot be compared
        return False


def same_value(returned: str, expected: str) -> bool:
    """Equality of two JSON texts as Python values. Source: grade_call_based of testing_util.py.

    >>> same_value("[1, 2.0]", "[1.0, 2]"), same_value("true", "1"), same_value('"1"', "1")
    (True, True, False)
    """
    try:
        return json.loads(returned) == json.loads(expected)
    except (ValueError, RecursionError):
        return False
