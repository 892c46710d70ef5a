"""Rewrite questions with a chat model: instruction, parser, validator, resumable loop, released schema and card."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import re
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import DatasetCard, DatasetCardData
from tqdm import tqdm

from corelib.audit import (
    PLACEHOLDER,
    normalise,
    normalise_typography,
    repair_latex,
    strip_answer_form,
    write_atomically,
)
from corelib.data import SOURCES, DataError, find_folder, join_views, read_view, to_prompt

MODEL = "Qwen/Qwen3-32B"
SAMPLING = {"temperature": 0.7, "top_p": 0.8, "max_tokens": 20480}  # official rewrite_questions.py; thinking disabled
INSTRUCTION = """\
You are given a math problem. Please rewrite it using different wording and a different real-world scenario, while keeping the underlying mathematical meaning and answer exactly the same.

Guidelines:
1. Do not change the math logic or the final answer.
2. Use different words and a new context to make it look like a different problem.
3. Avoid copying phrases or sentence structures from the original.
4. Make sure the rewritten question is natural, clear, and solvable.
5. Output ONLY between the following markers, and strictly in this format (no extra explanation):

### RESULT_START
ORIGINAL:
<original question>
REWRITE:
<rewritten question>
### RESULT_END"""
REASONS = {
    "unparsed": "no complete RESULT_START ... RESULT_END block",
    "empty": "nothing between REWRITE: and RESULT_END",
    "placeholder": f"the template's own {PLACEHOLDER}",
    "instruction_echo": "six words of the instruction in a row, its markers, or its angle brackets around the text",
    "copy": "the original, exactly or after alphanumeric normalisation",
    "near_copy": "at least 80 % of the words the same and in order (a formula is one word, diagrams left out)",
    "lost_numbers": "numbers of the original gone with others in their place, or half of them (three or more) gone",
    "leaked_answer": "the answer (3 digits or characters, or more) stands in the rewrite and not in the original",
    "lost_diagram": "drawing or picture left out, and what it showed is not in words",
    "too_long": "more than 3 times the original and 300 characters longer (diagrams left out)",
    "truncated": "under a third of the original, or ending in the middle of a sentence or formula",
    "broken_latex": "unbalanced braces, environments or delimiters, cut commands, control characters",
}
NEAR_COPY, LONGER, LONGER_BY, SHORTER, SHORT = 0.8, 3, 300, 1 / 3, 120
Message = dict[str, str]
Generate = Callable[[list[list[Message]]], list[str]]


def to_messages(question: str) -> list[Message]:
    """The chat for one question: instruction, newline, question as one user message (official rewrite_questions.py)."""
    return [{"role": "user", "content": f"{INSTRUCTION}\n{question}"}]


def parse(text: str) -> str | None:
    """The rewrite in the last RESULT_START ... RESULT_END block of a completion, stripped; None without a whole block.

    The released parser took the first block, which is the template's own when the model echoes the instruction.
    Example: parse("### RESULT_START\\nORIGINAL:\\na\\nREWRITE:\\nb\\n### RESULT_END") == "b".
    """
    _, start, block = text.rpartition("RESULT_START")
    if not start or "RESULT_END" not in block:  # a last block without its end was cut by the token limit
        return None
    head = list(re.finditer(r"(?m)^[ \t*#]*REWRITE[ \t*]*:[ \t*]*", block[: block.rindex("RESULT_END")]))
    return re.split(r"[#\s*]*RESULT_END", block[head[-1].end() :])[0].strip() if head else None


# ---- numbers: what the original states and what the rewrite holds or implies

_DIAGRAM = re.compile(
    r"(?is)(?:\\\[\s*)?(?:\\text\s*\{\s*)?\[asy\].*?(?:\[/asy\]\}?|\Z)|\\begin\{asy\}.*?(?:\\end\{asy\}|\Z)"
    r"|```asy.*?(?:```|\Z)|!\[[^\]\n]*\]\([^)\n]*\)|\[img[^\]\n]*\].*?(?:\[/img\]|\Z)|\\includegraphics\S*|https?://\S+"
)
_NUMBER = re.compile(r"\d+(?:\.\d+)?|\.\d+")
_THOUSANDS = re.compile(r"(?<=\d)(?:,|\{,\}|\\,|\\!|,\\!| )(?=\d{3}(?!\d))")
_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_ORDINALS = (
    "zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
    "fifteenth sixteenth seventeenth eighteenth nineteenth"
).split()
_TENS = {word: 20 + 10 * i for i, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split())}
_WORDS = {word: i for words in (_ONES, _ORDINALS) for i, word in enumerate(words)} | _TENS
_WORDS |= {word[:-1] + "ieth": value for word, value in _TENS.items()}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
# Part of a word -> numbers that it may stand for.
_IMPLIED = {
    "half": "2 0.5 30", "halve": "2", "quarter": "4 0.25", "triang": "3", "rectang": "4", "square": "4",
    "quadrilateral": "4", "pentagon": "5", "hexagon": "6", "heptagon": "7", "octagon": "8", "nonagon": "9",
    "decagon": "10", "cube": "3 6", "cubic": "3", "tripl": "3", "trio": "3", "thrice": "3", "ternary": "3",
    "quadrupl": "4", "quartic": "4", "quintupl": "5", "quintic": "5", "octal": "8", "decimal": "10", "tenfold": "10",
    "hexadecimal": "16", "dozen": "12", "week": "7", "hour": "60", "minute": "60", "year": "12 365", "percent": "100",
    "cent": "100", "perpendicular": "90", "right": "90", "straight": "180", "semicircle": "180", "degree": "360 180",
    "equilateral": "60 3", "die": "6", "dice": "6", "alphabet": "26", "noon": "12", "midnight": "12", "foot": "12",
    "feet": "12", "inch": "12", "meter": "100", "kilo": "1000", "digit": "9 10 99 100 999 1000 9999 10000",
}  # fmt: skip
_FREE = {"0", "1", "2"}  # positive, an, pair, squared, even: said without a digit too often to be evidence
# What may go without changing the problem: its number and points in a contest, sources, examples and remarks,
# indices of names, angle names, terms before or around an ellipsis.
_ASIDE = re.compile(
    r"(?is)\A\W*(?:(?:example|problem|exercise|question|task)\W{0,3})?\d+(?:[.\-]\d+)*(?:[.)\]:]|\*\*)+\s"
    r"|[\[(][^\[\]()]{0,40}\b(?:points?|marks?|pts)\b[^\[\]()]{0,40}[\])]|\A\W*[\[(]\W*\d+\W*[\])]"
    r"|[\[(*][^\[\]()*$]*(?:\b(?:19|20)\d\d\b|day \d|author|proposed|problem)[^\[\]()*$]*[\])*]?\s*\Z"
    r"|\b(?:problem|exercise|question|section|amc|in|year) \d+\b(?!\s*[a-z]+s\b)"
    r"|\((?:recall|note|that is|i\.e\.|for example|for instance|e\.g\.)[^()]*(?:\([^()]*\)[^()]*)*\)"
    r"|(?:\b(?:for example|for instance|e\.g\.|such as|recall|note that|like)\b|\bnote:).*?(?:[.?!](?=\s|\Z)|\Z)"
)
_INDEX = re.compile(r"(?:(?<=[A-Z}'])|(?<=[a-z])(?<!log))_\s*(?:\d+|\{[^{}]*\})|\\angle\s*\{?\d+\b")
_DOTS = re.compile(r"\\[lcdv]?dots[bc]?|\.\.\.+|…|\. \. \.|\betc\b")
_BEFORE_LIST = re.compile(r"\s[A-Za-z]{3,}\s|[=:;?]|\.\s")  # a list starts after the last of these


def _canonical(number: str) -> str:
    number = number.lstrip("0") or "0"
    return number.rstrip("0").rstrip(".") or "0" if "." in number else number


def _digits(text: str) -> set[str]:
    r"""Numbers written with digits, without leading and trailing zeros; \frac12 is 1 and 2."""
    text = re.sub(r"(\\[dt]?(?:frac|binom)\s*)(\d)\s*(?=\d)", r"\1\2 ", text)
    return {_canonical(number) for number in _NUMBER.findall(text)}


def _readings(text: str) -> tuple[set[str], set[str]]:
    """Numbers with 1,000 read as one number, and read as two (a list; there x^23 is 2 and 3 as TeX has it)."""
    return _digits(_THOUSANDS.sub("", text)), _digits(re.sub(r"([_^]\d)(?=\d)", r"\1 ", text))


def _said(text: str) -> set[str]:
    """Numbers written as words ("twenty-one", "two thousand and six"), as wholes and in parts."""
    found, total, part, open_ = set(), 0, 0, False
    for word in [*re.findall(r"[a-z]+|\d+|[^\sa-z\d-]", text.lower()), "."]:
        word = word if word in _WORDS or word in _SCALES else word.removesuffix("s")
        if word in _WORDS:
            value = _WORDS[word]
            found.add(str(value))
            if open_ and not (part % 100 == 0 or (part % 100 >= 20 and part % 10 == 0 and value < 10)):
                found.add(str(total + part))
                total = part = 0
            part, open_ = part + value, True
        elif word in _SCALES:
            found.add(str(_SCALES[word]))
            total, part = (total, (part or 1) * 100) if word == "hundred" else (total + (part or 1) * _SCALES[word], 0)
            open_ = True
        elif open_ and word != "and":
            found.add(str(total + part))
            total, part, open_ = 0, 0, False
    return found


def _without_series(text: str) -> str:
    """Drop what stands before each ellipsis as far back as the list goes, 80 characters at most."""
    kept, start = [], 0
    for dots in _DOTS.finditer(text):
        window = text[max(start, dots.start() - 80) : dots.start()]
        cut = max((found.end() for found in _BEFORE_LIST.finditer(window)), default=0)
        kept.append(text[start : dots.start() - len(window) + cut])
        start = dots.end()
    return " ".join([*kept, text[start:]])


def _show(value: float) -> str:
    return _canonical(f"{value:.6f}")


def _written_out(text: str) -> dict[str, set[str]]:
    """Value of each power, root, factorial and fraction -> the numbers that it is written with."""
    out: dict[str, set[str]] = {}
    for a, b in re.findall(r"(\d{1,4})\s*\^\s*\{?(\d{1,2})\b", text):
        out.setdefault(_canonical(str(int(a) ** int(b))), set()).update((_canonical(a), _canonical(b)))
    for n in re.findall(r"\b(\d{1,2})!", text):
        out.setdefault(str(math.factorial(int(n))), set()).add(_canonical(n))
    for n in re.findall(r"\\sqrt\s*\{?(\d{1,9})\b", text):
        out.setdefault(_show(int(n) ** 0.5), set()).add(_canonical(n))
    fraction = r"(\d{0,3})\s*(?:\\[dt]?frac\s*\{?\s*(\d+?)\s*\}?\s*\{?\s*(\d+)\b|(?<!\d)(\d{1,6})\s*[/:]\s*(\d{1,6})\b)"
    for whole, *pair in re.findall(fraction, text):
        a, b = [int(n) for n in pair if n]
        if b and len(str(b)) < 9 and len(str(a)) < 9:
            out.setdefault(_show(int(whole or 0) + a / b), set()).update(map(str, (a, b, int(whole or 0))))
    return out


def lost_numbers(original: str, rewrite: str) -> list[str]:
    """Numbers of the original that the rewrite neither holds nor implies, as strings without idle zeros, sorted.

    Order and repetition do not count. Not lost: 0, 1, 2; a number in words or implied by one (half, right angle,
    dozen); x where 100x, x/100, x + 1, x - 1 or sqrt(x) stands (percent, "less than 30" for "at most 29", a circle's
    radius); the parts of a power, factorial, root or fraction whose value stands, and the reverse; pi/6 as 30 degrees;
    the inner terms of a list with equal steps and those before an ellipsis; numbers of problems and contests,
    examples, remarks, diagrams, indices.
    Example: lost_numbers("Add 17 and 1,000.", "Add seventeen to 1000.") == []; with "Add 18 ..." it is ["17"].
    """
    text = _INDEX.sub(" ", _without_series(_ASIDE.sub(" ", _DIAGRAM.sub(" ", strip_answer_form(original)))))
    rewrite = _DIAGRAM.sub(" ", rewrite)
    low = rewrite.lower()
    have = set().union(*_readings(rewrite), _said(rewrite), _written_out(rewrite))
    for number, scale in re.findall(r"(\d[\d,]*(?:\.\d+)?)[$\s~-]*(hundred|thousand|million|billion)", low):
        have.add(_show(float(number.replace(",", "")) * _SCALES[scale]))
    values = [float(number) for number in have if len(number) < 12]
    have |= {_show(y) for x in values for y in (100 * x, x / 100, x + 1, x - 1, x * x) if y >= 0}
    have |= {number for word, numbers in _IMPLIED.items() if word in low for number in numbers.split()} | _FREE
    free = {part for value, parts in _written_out(text).items() if value in have - _FREE for part in parts}
    order = [float(number) for number in _NUMBER.findall(text) if len(number) < 12]
    if r"\pi" in original + rewrite:
        free |= {_show(x) for x in order if x and {_show(180 / x), _show(x / 180)} & have}
    for step in (1, 2, 3):
        for a, b, c in zip(order, order[step:], order[2 * step :], strict=False):
            if b - a == c - b != 0:
                free |= {_show(b)} | ({_show(c)} if "consecutive" in low else set())
    if {"half", "halves", "equal", "equally"} & set(re.findall("[a-z]+", low)):  # 10 boys and 10 girls of 20
        free |= {_show(x) for x in order if _show(2 * x) in have}
    whole, split = (numbers - have - free for numbers in _readings(text))
    return sorted(whole) if whole and split else []


def _numbers_changed(original: str, rewrite: str) -> bool:
    """Numbers are lost and others have come in their place, or at least three and half of all are gone."""
    lost = lost_numbers(original, rewrite)
    return bool(lost) and (
        bool(lost_numbers(rewrite, original)) or len(lost) >= max(3, len(_readings(_DIAGRAM.sub("", original))[0]) / 2)
    )


# ---- the other rules


def _prose(text: str) -> list[str]:
    """Lower-case words without diagrams; each formula between dollars or brackets is one word without its blanks."""
    pieces = re.split(r"(\$\$.*?\$\$|\$[^$]*\$|\\\[.*?\\\]|\\\(.*?\\\))", _DIAGRAM.sub(" ", text), flags=re.DOTALL)
    out = []
    for i, piece in enumerate(pieces):
        formula = re.sub(r"\s|^\$+|^\\[\[(]|[.,?]*(?:\$+|\\[\])])$", "", piece)
        out += [formula] if i % 2 else re.findall(r"\w+", piece.lower())
    return out


@cache
def _shingles(text: str, size: int = 6) -> frozenset[str]:
    words = re.findall(r"\w+", text.lower())
    return frozenset(" ".join(words[i : i + size]) for i in range(len(words) - size + 1))


def _echoes(original: str, rewrite: str) -> bool:
    if re.search(r"RESULT_(?:START|END)|(?m:^\W*(?:ORIGINAL|REWRITE)\W*:)|<(?:original|rewritten) question>", rewrite):
        return True
    wrapped = rewrite.startswith("<") and not original.lstrip().startswith("<")
    referred = re.compile(r"(?i)\b(?:original|rewritten|rephrased) (?:problem|question|scenario|answer)\b")
    return (
        wrapped
        or bool(_shingles(rewrite) & _shingles(INSTRUCTION) - _shingles(original))
        or bool(referred.search(rewrite) and not referred.search(original))
    )


def _leaks(answer: str, original: str, rewrite: str) -> bool:
    answer = re.sub(r"\\(?:text|textbf|mbox|mathrm)\s*\{([^{}]*)\}", r"\1", answer.strip().strip("$"))
    if re.fullmatch(r"[-+]?[\d,]*\.?\d+", answer):
        value = _canonical(answer.replace(",", "").lstrip("-+"))
        stated = set().union(*_readings(original), _said(original), _written_out(original))
        return (
            len(value.replace(".", "")) >= 3
            and value in _readings(rewrite)[0] | _readings(rewrite)[1]
            and (value not in stated)
        )
    # Strict in the rewrite, loose in the original: \leq or \le, {n} or n, 45^o or 45^\circ is no difference.
    key, loose = normalise_typography(answer), [normalise(re.sub(r"\\[A-Za-z]+", "", t)) for t in (answer, original)]
    return len(loose[0]) >= 3 and key in normalise_typography(rewrite) and loose[0] not in loose[1]


_LABEL = re.compile(r'(?:label|MP)\s*\(\s*(?:[a-z]+\s*\([^()"]*\)\s*\*\s*)?"([^"\n]*)"')
_POINTS_AT = re.compile(
    r"(?i)\b(?:as|is|are|grid|graph|table|shape|pattern|arrangement|layout|system) (?:shown|illustrated|depicted|displayed|pictured)\b"
    r"|\b(?:figure|diagram|picture|drawing|chart|graph|illustration|map) (?:below|above|shown|provided|given|shows)\b"
    r"|\b(?:the|this|given|provided|following) (?:figure|diagram|picture|drawing|chart|illustration)\b|\bshown (?:here|below|above)\b"
)


def _loses_diagram(original: str, rewrite: str) -> bool:
    """The picture is gone, and the rewrite still points at one or lacks a number that labels it."""
    drawn = " ".join(_DIAGRAM.findall(original))
    if not drawn or _DIAGRAM.search(rewrite):
        return False
    labels = " , ".join(["label", *_LABEL.findall(drawn)])
    return bool(_POINTS_AT.search(rewrite)) or bool(lost_numbers(labels, rewrite))


_OPEN_END = re.compile(r"(?:[,;:(\[{=+]|\b(?:the|a|an|of|and|or|to|is|in|that|with))\s*\Z")


def _truncated(original: str, rewrite: str) -> bool:
    words, other = (len(_DIAGRAM.sub("", text)) for text in (original, rewrite))
    return (words > SHORT and other < SHORTER * words) or bool(
        _OPEN_END.search(rewrite) and not _OPEN_END.search(original)
    )


def _broken(text: str) -> bool:
    text = _DIAGRAM.sub(" ", text)
    if repair_latex(text) != text or re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffd\ud800-\udfff]", text):
        return True
    bare = re.sub(r"\\\\|\\[{}$]", " ", text)  # \\ is a line break; \{ and \$ are signs
    pairs = [(r"\{", r"\}"), (r"\\\(", r"\\\)"), (r"\\\[", r"\\\]")]
    pairs += [(r"\\left(?![A-Za-z])", r"\\right(?![A-Za-z])"), (r"\\begin\b", r"\\end\b")]
    if any(len(re.findall(left, bare)) != len(re.findall(right, bare)) for left, right in pairs):
        return True
    return bare.count("$") % 2 == 1 and not re.search(r"\$\d", bare)  # an odd dollar before a digit is money


def validate(original: str, rewrite: str, answer: str | None = None) -> list[str]:
    """Reasons (keys of REASONS) to reject a rewrite of a question; an empty list accepts it.

    The rules look at text only: a rewrite that changes the mathematics without changing a number passes.
    Example: validate("Add 17 and 25.", "<rewritten question>") == ["placeholder"].
    """
    rewrite, original = rewrite.strip(), original.strip()
    if not rewrite or rewrite.strip('`*" \n') == PLACEHOLDER:
        return ["placeholder" if rewrite else "empty"]
    words, other = len(_DIAGRAM.sub("", original)), len(_DIAGRAM.sub("", rewrite))
    if other > LONGER * words + LONGER_BY or len(rewrite) > LONGER * len(original) + LONGER_BY:
        return ["too_long"]  # and nothing else: the rules below need not read 20,000 tokens
    found = {
        "instruction_echo": _echoes(original, rewrite),
        "copy": rewrite == original or normalise(rewrite) == normalise(original) != "",
        "lost_numbers": _numbers_changed(original, rewrite),
        "leaked_answer": bool(answer) and _leaks(answer, original, rewrite),
        "lost_diagram": _loses_diagram(original, rewrite),
        "truncated": _truncated(original, rewrite),
        "broken_latex": _broken(rewrite),
    }
    if not found["copy"]:
        similar = SequenceMatcher(None, _prose(original), _prose(rewrite), autojunk=False)
        found["near_copy"] = similar.real_quick_ratio() >= NEAR_COPY <= similar.ratio()
    return [reason for reason in REASONS if found.get(reason)]


# ---- engines: each builds one callable, list of chats -> list of completions


def vllm_engine(model: str = MODEL, gpus: int = 1, **sampling: Any) -> Generate:
    """Chat through vLLM with the paper's decoding (SAMPLING, thinking disabled); sampling overrides it.

    Raises ImportError naming the remedy when vLLM is not installed. No seed per request: a retry must differ.
    """
    if "vllm" not in sys.modules and importlib.util.find_spec("vllm") is None:
        raise ImportError(
            "vLLM is not installed; install it on a GPU machine (environment.yml has the pin), "
            "or use --engine transformers with a small model"
        )
    from vllm import LLM, SamplingParams

    llm = LLM(model=model, dtype="bfloat16", tensor_parallel_size=gpus)
    params = SamplingParams(**(SAMPLING | sampling))

    def generate(chats: list[list[Message]]) -> list[str]:
        outputs = llm.chat(chats, params, use_tqdm=False, chat_template_kwargs={"enable_thinking": False})
        return [output.outputs[0].text for output in outputs]

    return generate


def transformers_engine(model: Any, tokenizer: Any, **sampling: Any) -> Generate:
    """The same with a loaded transformers model and its tokenizer, for small models and machines without vLLM."""
    import torch

    settings = SAMPLING | sampling
    tokenizer.padding_side = "left"

    @torch.inference_mode()
    def generate(chats: list[list[Message]]) -> list[str]:
        batch = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, enable_thinking=False, padding=True, return_tensors="pt", return_dict=True
        ).to(model.device)  # fmt: skip
        ids = model.generate(
            **batch, do_sample=settings["temperature"] > 0, temperature=settings["temperature"] or None,
            top_p=settings["top_p"], max_new_tokens=settings["max_tokens"], pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        return tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)

    return generate


# ---- the loop and what it leaves behind


def rephrase(
    rows: Iterable[dict[str, Any]],
    generate: Generate,
    out: str | Path,
    *,
    retries: int = 3,
    batch: int = 128,
    model: str = MODEL,
    progress: bool = True,
) -> dict[str, Any]:
    """Rewrite every row (id, question, answer and maybe level), rejected ones up to `retries` times more; the report.

    Each question's outcome is one line of out/rewrites.jsonl, on disk before the next batch is asked for: started
    again after a kill, it goes on where it stopped, and at most one batch is asked for twice. At the end the released
    schema and a card are written (write_release). Report: questions, accepted, failed, completions, rejected (reason
    -> completions), reject_rate (reason -> share of completions).
    Raises DataError when out holds another set's rewrites or no rewrite was accepted, ValueError when `generate`
    returns other than one string a chat.
    """
    rows, out = list(rows), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    log = out / "rewrites.jsonl"
    done = _read_log(log, {int(row["id"]): row["question"] for row in rows})
    queue = deque((row, []) for row in rows if int(row["id"]) not in done)
    bar = tqdm(total=len(rows), initial=len(done), desc="rephrasing", unit="question", disable=not progress)
    with bar, log.open("ab") as file:
        while queue:
            asked = [queue.popleft() for _ in range(min(batch, len(queue)))]
            texts = generate([to_messages(row["question"]) for row, _ in asked])
            if len(texts) != len(asked) or not all(isinstance(text, str) for text in texts):
                raise ValueError(
                    f"generate returned {len(texts)} completions for {len(asked)} chats; expected one string each"
                )
            again = []
            for (row, rejected), text in zip(asked, texts, strict=True):
                rewrite = parse(text)
                reasons = ["unparsed"] if rewrite is None else validate(row["question"], rewrite, row.get("answer"))
                rejected = [*rejected, reasons] if reasons else rejected
                if reasons and len(rejected) <= retries:
                    again.append((row, rejected))
                    continue
                line = {"id": int(row["id"]), "original": row["question"], "rewritten": None if reasons else rewrite}
                file.write(json.dumps(line | {"rejected": rejected}).encode() + b"\n")
                done[line["id"]] = line | {"rejected": rejected}
                bar.update()
            queue.extendleft(reversed(again))  # first in the next batch, so that at most a batch is ever undecided
            file.flush()
            os.fsync(file.fileno())
    report = summarise(done.values())
    write_release(rows, {key: line["rewritten"] for key, line in done.items() if line["rewritten"]}, out, report, model)
    return report


def _read_log(path: Path, questions: dict[int, str]) -> dict[int, dict[str, Any]]:
    """Lines already written, by id; a last line that a kill cut short is removed from the file."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    done = {}
    for number, text in enumerate(whole.splitlines(), start=1):
        try:
            line = json.loads(text)
            same = questions.get(line["id"]) == line["original"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}: line {number} is damaged ({error!r}); remove that line and start again"
            ) from error
        if not same:
            raise DataError(f"{path}: line {number} is of another set (id {line['id']}); give another folder")
        done[line["id"]] = line
    return done


def summarise(lines: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Counts over lines of rewrites.jsonl; reject_rate is a share of completions, a completion may have two reasons."""
    lines = list(lines)
    accepted = sum(line["rewritten"] is not None for line in lines)
    rejected = Counter(reason for line in lines for reasons in line["rejected"] for reason in reasons)
    completions = accepted + sum(len(line["rejected"]) for line in lines)
    rates = {reason: round(count / completions, 4) for reason, count in rejected.most_common()}
    return {
        "questions": len(lines),
        "accepted": accepted,
        "failed": len(lines) - accepted,
        "completions": completions,
        "rejected": dict(rejected.most_common()),
        "reject_rate": rates,
    }


def write_release(
    rows: list[dict[str, Any]], rewrites: dict[int, str], out: str | Path, report: dict[str, Any], model: str = MODEL
) -> None:
    """Write train_original.parquet, train_rewrite.parquet (released schema; rows with a rewrite only) and README.md.

    corelib.data.load_pairs reads the folder back. Raises DataError when there is no rewrite.
    """
    rows, out = [row for row in rows if int(row["id"]) in rewrites], Path(out)
    if not rows:
        raise DataError(f"{out}: no rewrite was accepted; see rewrites.jsonl for the reasons")
    text = pa.string()
    extra = {"index": pa.int64(), "split": text} | ({"level": text} if any("level" in row for row in rows) else {})
    schema = pa.schema(
        {
            "data_source": text,
            "prompt": pa.list_(pa.struct({"content": text, "role": text})),
            "ability": text,
            "reward_model": pa.struct({"ground_truth": text, "style": text}),
            "extra_info": pa.struct(extra),
        }
    )
    for view in ("original", "rewrite"):
        lines = [
            {
                "data_source": "DigitalLearningGmbH/MATH-lighteval",  # as released: it picks verl's scorer
                "prompt": to_prompt(row["question"] if view == "original" else rewrites[int(row["id"])]),
                "ability": "math",
                "reward_model": {"ground_truth": row.get("answer"), "style": "rule"},
                "extra_info": {"index": int(row["id"]), "split": "train", "level": row.get("level")},
            }
            for row in rows
        ]
        table = pa.Table.from_pylist(lines, schema=schema)
        write_atomically(out / f"train_{view}.parquet", lambda path, table=table: pq.write_table(table, path))
    write_atomically(out / "README.md", lambda path: path.write_text(str(card(report, model)), encoding="utf-8"))


def card(report: dict[str, Any], model: str = MODEL) -> DatasetCard:
    """Dataset card: how the rewrites were made and what was rejected. It quotes no model-written text."""
    files = [{"split": v, "path": f"train_{v}.parquet"} for v in ("original", "rewrite")]
    data = DatasetCardData(
        language="en", task_categories=["text-generation"], tags=["math", "rephrased", "co-rewarding"],
        configs=[{"config_name": "default", "data_files": files}],
    )  # fmt: skip
    lines = [f"| {reason} | {n} | {report['reject_rate'][reason]:.2%} |" for reason, n in report["rejected"].items()]
    body = f"""# Rephrased questions for Co-rewarding

Each row i of `train_rewrite.parquet` is row i of `train_original.parquet` in other words (join on `extra_info.index`).
Rewritten by `{model}` with the instruction of Co-rewarding (arXiv 2508.00410), thinking disabled, {SAMPLING}.

{report["accepted"]} of {report["questions"]} questions have a rewrite; {report["failed"]} failed and are in neither file.
{report["completions"]} completions were asked for. Rejected by the rules of `corelib/rephrase.py`:

| reason | completions | share |
|---|---|---|
{chr(10).join(lines) or "| none | 0 | 0 % |"}

The rules read text only: a rewrite may still change the mathematics. The text is model-written and not reviewed.
"""
    return DatasetCard(f"---\n{data.to_yaml()}\n---\n{body}")


# ---- audit of released rewrites


def audit(folder: str | Path, sets: Iterable[str] = ("open-rs", "math", "dapo")) -> pd.DataFrame:
    """Validate the rewrites of each set that lies below folder: columns dataset, id, reasons (a list, empty if none).

    Raises DataError when none is there.
    """
    folder, frames = find_folder(folder), []
    for name in sets:
        paths = [sorted((folder / SOURCES[name].folder).glob(f"*_{view}*.parquet")) for view in ("original", "rewrite")]
        if not all(paths):
            continue
        views = [read_view(pq.read_table(path[0]), str(path[0])) for path in paths]
        pairs = join_views(*views, str(paths[0][0]), str(paths[1][0])).fillna("")
        columns = tqdm(zip(pairs["question"], pairs["rephrased"], pairs["answer"], strict=True), name, len(pairs))
        frames.append(
            pd.DataFrame({"dataset": name, "id": pairs["id"], "reasons": [validate(*row) for row in columns]})
        )
    if not frames:
        raise DataError(f"{folder}: holds none of {', '.join(sets)}")
    return pd.concat(frames, ignore_index=True)


def count_reasons(found: pd.DataFrame) -> pd.DataFrame:
    """Rewrites by reason (rows) and dataset (columns) in a frame of `audit`, with rows `any` and `rewrites`."""
    table = found.explode("reasons").groupby(["reasons", "dataset"]).size().unstack(fill_value=0)
    table = table.reindex(index=list(REASONS)[1:], columns=found["dataset"].unique(), fill_value=0)
    table.loc["any"] = found[found["reasons"].str.len() > 0].groupby("dataset").size()
    table.loc["rewrites"] = found.groupby("dataset").size()
    return table.fillna(0).astype(int).rename_axis(index=None, columns=None)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m corelib.rephrase", allow_abbrev=False, description=__doc__)
    parser.add_argument(
        "--audit", metavar="FOLDER", help="validate the released rewrites below it and print the counts"
    )
    parser.add_argument("--json", help="with --audit: put the counts and the ids by reason into this file")
    parser.add_argument("--questions", help="parquet file in the schema of train_original.parquet")
    parser.add_argument("--out", help="with --questions: folder for the rewrites; the same command resumes it")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--engine", choices=["vllm", "transformers"], default="vllm")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs that hold the model together (the paper: 8)")
    parser.add_argument("--retries", type=int, default=3)
    args = parser.parse_args(argv)
    if args.audit:
        found = audit(args.audit)
        print(count_reasons(found).to_string())
        if args.json:
            path, flagged = Path(args.json), found.explode("reasons").dropna()
            ids = {k: v.groupby("dataset")["id"].agg(list).to_dict() for k, v in flagged.groupby("reasons")}
            content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            content |= {"counts": count_reasons(found).to_dict(), "ids": ids}
            write_atomically(path, lambda partial: partial.write_text(json.dumps(content, indent=1) + "\n"))
    elif args.questions and args.out:
        rows = read_view(pq.read_table(args.questions), args.questions).rename(columns={"text": "question"})
        rows["question"] = [repair_latex(text or "") for text in rows["question"]]
        if args.engine == "vllm":
            generate, batch = vllm_engine(args.model, args.gpus), 128
        else:
            from transformers import AutoModelForCausalLM, AutoTokenizer

            model = AutoModelForCausalLM.from_pretrained(args.model, dtype="auto", device_map="auto")
            generate, batch = transformers_engine(model, AutoTokenizer.from_pretrained(args.model)), 8
        records = rows.astype(object).where(rows.notna(), None).to_dict("records")
        report = rephrase(records, generate, args.out, retries=args.retries, batch=batch, model=args.model)
        print(json.dumps(report, indent=1))
    else:
        parser.error("give --audit FOLDER, or --questions FILE and --out FOLDER")
    return 0


if __name__ == "__main__":
    sys.exit(main())
