"""IFEval and MMLU-Pro through lm-evaluation-harness, in process: its prompts, its extraction, its metrics, our data folder.

`load`, `messages` and `grade` take prompts and verdicts from the harness's own task objects, so that answers can be drawn
and kept like those of any benchmark here; `score` lets the harness draw them too. Both read local files when offline.
"""

from __future__ import annotations

import importlib.util
import json
import random
import re
import tempfile
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import datasets
import pandas as pd

from corelib.benchmark_base import Verdict, find_file

VERSION = "0.4.13"
FILES = {  # task -> split of the task's data set -> local file
    "ifeval": {"train": "ifeval/input_data.jsonl"},
    "mmlu_pro": {"test": "mmlu_pro/test_12032.jsonl", "validation": "mmlu_pro/validation_70.jsonl"},
}
INSTALL = f"pip install 'lm-eval[ifeval]=={VERSION}'"
PUNKT = (
    "IFEval counts sentences with nltk's punkt_tab, which is not here: run `python -m nltk.downloader punkt_tab`, or offline "
    "set NLTK_DATA to a folder that holds tokenizers/punkt_tab (the wheel of llama-index-core carries one in _static/nltk_cache)"
)
IFEVAL_PARTS = {  # our name -> metric of the harness
    "prompt_strict": "prompt_level_strict_acc",
    "prompt_loose": "prompt_level_loose_acc",
    "inst_strict": "inst_level_strict_acc",
    "inst_loose": "inst_level_loose_acc",
}
_IFEVAL = threading.Lock()  # langdetect reads its profiles at first use, and the random state is the whole process's


def require(task: str) -> None:
    """RuntimeError with the remedy when the harness, or what the task needs besides, is missing; ValueError for no task."""
    if task not in FILES:
        raise ValueError(f"unknown harness task {task!r}; valid are {', '.join(FILES)}")
    needs = ["lm_eval", *(("nltk", "langdetect", "immutabledict") if task == "ifeval" else ())]
    if missing := [name for name in needs if importlib.util.find_spec(name) is None]:
        raise RuntimeError(f"{task} needs lm-evaluation-harness ({', '.join(missing)} missing): {INSTALL}")
    if task == "ifeval":
        import langdetect
        import nltk

        langdetect.DetectorFactory.seed = 0  # its verdicts on short texts are random otherwise, also in the harness
        try:
            nltk.data.find("tokenizers/punkt_tab")
        except LookupError:
            if not nltk.download("punkt_tab", quiet=True):
                raise RuntimeError(PUNKT) from None


@cache
def _tasks(task: str, source: str) -> tuple:
    """The harness's task objects (14 for mmlu_pro) and their manager.

    Only the folder of this task is scanned: reading the harness's 14,000 others takes a minute and a half.
    """
    require(task)
    import lm_eval
    from lm_eval.tasks import TaskManager

    stock = Path(lm_eval.__file__).parent / "tasks" / task
    paths = sorted(stock.glob("mmlu_pro_*.yaml")) if task == "mmlu_pro" else [stock / "ifeval.yaml"]
    with tempfile.TemporaryDirectory(prefix="harness-") as folder:
        if source in ("", "hub"):
            folder, names = stock, [path.stem for path in paths]
        else:
            files = {split: str(find_file(source, (file,)).resolve()) for split, file in FILES[task].items()}
            names = [_local_task(path, files, Path(folder)) for path in paths]
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        try:
            return list(manager.load(names)["tasks"].values()), manager
        except Exception as error:  # datasets, httpx and the harness raise unrelated types
            raise RuntimeError(
                f"{task}: its data cannot be loaded ({type(error).__name__}: {error}); give source, a folder with "
                f"{' and '.join(FILES[task].values())}"
            ) from error


def _local_task(stock: Path, files: dict[str, str], folder: Path) -> str:
    """Write a task that includes a stock one, functions and all, and reads `files`; returns its name."""
    name = f"{stock.stem}_local"
    local = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
    (folder / f"{name}.yaml").write_text(json.dumps({"include": str(stock), "task": name} | local))  # JSON is YAML
    return name


def load_ifeval(source: str) -> datasets.Dataset:
    """The 541 prompts: id, question, answer (empty), doc (the harness's row as JSON)."""
    tasks, _ = _tasks("ifeval", source)
    rows = [dict(doc) for doc in tasks[0].eval_docs]
    return datasets.Dataset.from_list(
        [{"id": str(row["key"]), "question": row["prompt"], "answer": "", "doc": json.dumps(row)} for row in rows]
    )


def load_mmlu_pro(source: str) -> datasets.Dataset:
    """The 12,032 questions: id, question (with options), answer (a letter), category, prompt (five-shot) and pattern of the
    harness's task."""
    tasks, _ = _tasks("mmlu_pro", source)
    rows = []
    for task in tasks:
        pattern = task.config.filter_list[0]["filter"][0]["regex_pattern"]
        for doc in task.eval_docs:
            options = "\n".join(f"{letter}. {text}" for letter, text in zip("ABCDEFGHIJ", doc["options"], strict=False))
            rows.append(
                {
                    "id": str(doc["question_id"]), "question": f"{doc['question']}\n{options}", "answer": doc["answer"],
                    "category": doc["category"], "prompt": task.fewshot_context(doc, task.config.num_fewshot),
                    "pattern": pattern,
                }
            )  # fmt: skip
    return datasets.Dataset.from_list(rows)


def ifeval_messages(problem: dict) -> list[dict]:
    """The prompt as one user message, for the model's chat template (the harness's own default is the bare text)."""
    return [{"role": "user", "content": problem["question"]}]


def mmlu_pro_messages(problem: dict) -> str:
    """Description, five solved questions of the category, the question: plain text, the harness's default."""
    return problem["prompt"]


def grade_ifeval(completions: list[str], problem: dict) -> list[Verdict]:
    """Whether all instructions are followed (prompt level, strict); detail has all four measures, see `ifeval_scores`."""
    require("ifeval")
    from lm_eval.tasks.ifeval.utils import process_results

    doc, verdicts = json.loads(problem["doc"]), []
    unfollowed = [False] * len(doc["instruction_id_list"])
    nested = {name: False if name.startswith("prompt") else unfollowed for name in IFEVAL_PARTS.values()}
    with _IFEVAL:
        state = random.getstate()
        for text in completions:
            # where a prompt counts "#" or "!", the harness counts a random letter instead (2 of 541 prompts)
            random.seed(0)
            try:
                found = process_results(doc, [text])
            except RecursionError:  # "[[[[..." read as JSON by the harness
                found = nested
            detail = json.dumps({ours: found[name] for ours, name in IFEVAL_PARTS.items()})
            verdicts.append(Verdict(text or None, bool(found["prompt_level_strict_acc"]), detail))
        random.setstate(state)
    return verdicts


def ifeval_scores(details: Sequence[str]) -> dict[str, float]:
    """The four measures over `detail`s of verdicts, and `mean`, which is what the paper reports.

    Prompt level: share of prompts; instruction level: share of all instructions, so prompts weigh by how many they hold.
    """
    rows = [json.loads(detail) for detail in details]
    if not rows:
        raise ValueError("no verdicts of IFEval; its scores need at least one")
    scores = {}
    for part in IFEVAL_PARTS:
        flat = [x for row in rows for x in (row[part] if isinstance(row[part], list) else [row[part]])]
        scores[part] = sum(flat) / len(flat)
    return scores | {"mean": sum(scores.values()) / len(scores)}


def grade_mmlu_pro(completions: list[str], problem: dict) -> list[Verdict]:
    """The first letter after "answer is", by the harness's regular expression, before the text where it stops generation."""
    letters = [re.findall(problem["pattern"], text.split("Question:", 1)[0])[:1] for text in completions]
    return [Verdict(found[0], found[0] == problem["answer"]) if found else Verdict(None, False) for found in letters]


def score(
    model,
    tokenizer,
    task: str,
    limit: int | None = None,
    source: str = "",
    engine: str = "transformers",
    batch_size: int | str = 8,
    chat: bool | None = None,
    **engine_args,
) -> SimpleNamespace:
    """Let the harness draw, extract and score: `scores` (by measure, and `mean` for IFEval) and `samples` (a DataFrame).

    model: a loaded model with engine "transformers" (HFLM), a path with "vllm"; limit: problems per harness task, so per
    category for mmlu_pro; source: folder or "" for the Hub; chat: apply the chat template (default: for ifeval only, as
    `messages` do); engine_args: for the engine, e.g. max_model_len. Decoding is the task's own: greedy, 1,280 or 2,048 tokens.
    samples has id, prompt, completion, right, and category or detail. Raises RuntimeError when something is not installed.
    """
    tasks, manager = _tasks(task, source)
    from lm_eval import simple_evaluate

    if engine == "transformers":
        from lm_eval.models.huggingface import HFLM

        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, **engine_args)
    elif engine == "vllm":
        if importlib.util.find_spec("vllm") is None:
            raise RuntimeError("engine 'vllm' needs vLLM, see environment.yml; or use engine 'transformers'")
        from lm_eval.models.vllm_causallms import VLLM

        lm = VLLM(pretrained=str(model), batch_size="auto", **engine_args)
    else:
        raise ValueError(f"unknown engine {engine!r}; valid are transformers, vllm")
    found = simple_evaluate(
        model=lm, tasks=tasks, limit=limit, task_manager=manager, log_samples=True, bootstrap_iters=0,
        apply_chat_template=task == "ifeval" if chat is None else chat,
    )  # fmt: skip
    rows = [_sample(task, sample) for samples in found["samples"].values() for sample in samples]
    frame = pd.DataFrame(rows)
    if task == "ifeval":
        return SimpleNamespace(scores=ifeval_scores(list(frame["detail"])), samples=frame)
    by_category = frame.groupby("category")["right"].mean()
    return SimpleNamespace(scores={"exact_match": frame["right"].mean(), **by_category}, samples=frame)


def _sample(task: str, sample: dict) -> dict:
    doc, completion = sample["doc"], sample["resps"][0][0]
    row = {"prompt": sample["arguments"][0][0], "completion": completion}
    if task == "ifeval":  # graded again, since the harness's verdicts depend on its state of random
        verdict = grade_ifeval([completion], {"doc": json.dumps(doc)})[0]
        return {"id": str(doc["key"]), **row, "right": verdict.right, "detail": verdict.detail}
    return {"id": str(doc["question_id"]), **row, "right": bool(sample["exact_match"]), "category": doc["category"]}
