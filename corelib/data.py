"""Question pairs (original and rephrased view) and held-out problems: schemas, loaders, prompt, length filter."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from corelib.answers import extract
from corelib.audit import BENCHMARKS, DEFAULT_DROP, Audit, audit_pairs, write_atomically

SYSTEM_PROMPT = r"Let's think step by step and output the final answer within \boxed{}."  # every released row has it
MAX_PROMPT_TOKENS = 512  # data.max_prompt_length of the released scripts; applied to both views by pair_dataset.py
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Source:
    """Where one set of pairs lives: folder of the released data, split in its file names, id on the Hub."""

    folder: str
    split: str
    hub_id: str | None


SOURCES = {
    "open-rs": Source("open-rs", "train", "TMLR-Group-HF/Co-rewarding-RephrasedOpenRS"),
    "math": Source("math", "train", "TMLR-Group-HF/Co-rewarding-RephrasedMATH"),
    "dapo": Source("dapo", "train", "TMLR-Group-HF/Co-rewarding-RephrasedDAPO-14k"),
    "amc": Source("AMC-TTT", "test", None),
}
# Name -> files that may hold it below the folder of the benchmarks, in order of preference.
PROBLEM_FILES = {
    "math-test": ("corew_train/math/test.parquet", "math/test.parquet"),
    "math500": ("math500/math500_ttrl.json", "math500/math500_evalchemy.jsonl"),
    "amc": ("amc/amc83_ttrl_test.json", "corew_train/AMC-TTT/test_original.parquet", "AMC-TTT/test_original.parquet"),
    "aime24": ("aime/aime24_evalchemy.jsonl",),
    "aime25": ("aime/aime25_evalchemy.jsonl",),
    "gsm8k": ("gsm8k/test.jsonl",),
}
# Name -> Hub id, configuration, split; used when no folder is given.
PROBLEM_HUB = {
    "math-test": ("DigitalLearningGmbH/MATH-lighteval", "default", "test"),
    "math500": ("HuggingFaceH4/MATH-500", None, "test"),
    "amc": ("AI-MO/aimo-validation-amc", None, "train"),
    "gsm8k": ("openai/gsm8k", "main", "test"),
    "aime24": ("HuggingFaceH4/aime_2024", None, "train"),
    "aime25": ("math-ai/aime25", None, "test"),
}
QUESTION_COLUMNS, ANSWER_COLUMNS = ("problem", "question", "prompt"), ("expected_answer", "answer", "solution")


class DataError(ValueError):
    """The data cannot be used as it is; the message names the file, the row and column, and what to do."""


def to_prompt(question: str) -> list[dict[str, str]]:
    """The released training prompt: system instruction and bare question, for the tokenizer's own chat template."""
    return [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": question}]


def load_pairs(
    dataset: str,
    source: str | Path | None = None,
    *,
    benchmarks: str | Path | None = None,
    drop: Iterable[str] = DEFAULT_DROP,
) -> tuple[datasets.Dataset, Audit]:
    """Original and rephrased questions joined on extra_info.index, repaired and filtered, and the audit of it.

    dataset: open-rs, math, dapo or amc; source: a folder (the one that holds open-rs/, math/, ... or the set's own),
    None, "" or "hub" for the Hub; benchmarks: folder of the benchmark sets to look for among the questions; drop: the
    counts of the audit whose rows are left out.
    Returns columns id (int), question, rephrased, answer (str), and level where there is one; rows in file order.
    Raises DataError for an unknown set, an unreadable file, a missing column, or views that do not match.
    Source: schemas of the released parquet files (official repository, commit 6c60ea4).
    """
    if dataset == "lab":
        raise DataError("dataset 'lab' is generated, not loaded: call corelib.lab.load_pairs")
    if dataset not in SOURCES:
        raise DataError(f"unknown dataset {dataset!r}; valid are {', '.join(SOURCES)} (and lab, in corelib.lab)")
    if source in (None, "", "hub"):
        (original, original_name), (rewrite, rewrite_name), files = _from_hub(SOURCES[dataset])
    else:
        (original, original_name), (rewrite, rewrite_name), files = _from_folder(SOURCES[dataset], Path(source))
    left, right = read_view(original, original_name), read_view(rewrite, rewrite_name)
    pairs = join_views(left, right, original_name, rewrite_name)
    clean, audit = audit_pairs(pairs, dataset, load_benchmarks(benchmarks) if benchmarks else None, drop)
    audit.counts = {"rows_original": len(left), "rows_rewrite": len(right)} | audit.counts
    audit.files = files
    return _dataset(clean), audit


def read_view(table: pa.Table, name: str) -> pd.DataFrame:
    """One released file as a frame: id, text (the user message), answer, and level where there is one.

    Raises DataError naming file, row and column.
    """
    for column in ("prompt", "reward_model", "extra_info"):
        if column not in table.column_names:
            raise DataError(
                f"{name}: column {column!r} is missing (columns: {', '.join(table.column_names)}); "
                "give the released train_original / train_rewrite files, or rename the column"
            )
    if not table.num_rows:
        raise DataError(f"{name}: holds no rows; fetch the file again")
    columns = {column: table.column(column).to_pylist() for column in ("prompt", "reward_model", "extra_info")}
    ids, texts, answers = [], [], []
    for row, (prompt, reward, extra) in enumerate(zip(*columns.values(), strict=True)):
        ids.append(_member(extra, "index", int, f"{name}: row {row}: column extra_info"))
        users = [turn for turn in prompt or [] if isinstance(turn, dict) and turn.get("role") == "user"]
        if len(users) != 1:
            raise DataError(f"{name}: row {row}: column prompt holds {len(users)} user messages, expected one")
        texts.append(_member(users[0], "content", str, f"{name}: row {row}: column prompt", null=True))
        answers.append(_member(reward, "ground_truth", str, f"{name}: row {row}: column reward_model", null=True))
    frame = pd.DataFrame(
        {"id": ids, "text": pd.Series(texts, dtype=object), "answer": pd.Series(answers, dtype=object)}
    )
    if (repeated := frame["id"].duplicated()).any():
        row = int(repeated.argmax())
        raise DataError(
            f"{name}: row {row}: column extra_info.index repeats {ids[row]}; each question needs an index of its own"
        )
    extra = columns["extra_info"]
    if "level" in table.column_names:
        frame["level"] = table.column("level").to_pylist()
    elif "level" in extra[0]:
        frame["level"] = [values["level"] for values in extra]
    return frame


def _member(struct: Any, key: str, kind: type, where: str, null: bool = False) -> Any:
    value = struct.get(key) if isinstance(struct, dict) else None
    if isinstance(struct, dict) and key in struct and (isinstance(value, kind) or (null and value is None)):
        return value
    raise DataError(
        f"{where}.{key} is {value!r}, expected {kind.__name__}; correct the row or remove it from both files"
    )


def join_views(original: pd.DataFrame, rewrite: pd.DataFrame, original_name: str, rewrite_name: str) -> pd.DataFrame:
    """Join two views (frames of read_view) on id: columns id, question, rephrased, answer, level; rows as in original.

    Raises DataError when an id is in one view only, or when the two views have different answers for it.
    """
    for have, lack, name in ((original, rewrite, rewrite_name), (rewrite, original, original_name)):
        alone = have.loc[~have["id"].isin(lack["id"]), "id"]
        if len(alone):
            raise DataError(
                f"{name}: extra_info.index {alone.iloc[0]} is missing ({len(alone)} in all); row {alone.index[0]} of "
                "the other file has it; give two files of one release, or remove those rows from the other file"
            )
    both = original.merge(rewrite[["id", "text", "answer"]], on="id", suffixes=("", "_rewrite"), validate="1:1")
    differ = both["answer"].fillna("") != both["answer_rewrite"].fillna("")
    if differ.any():
        first = both[differ].iloc[0]
        row = int((rewrite["id"] == first["id"]).argmax())
        raise DataError(
            f"{rewrite_name}: row {row}: column reward_model.ground_truth is {first['answer_rewrite']!r} for "
            f"extra_info.index {first['id']}, but {first['answer']!r} in {original_name} ({int(differ.sum())} rows "
            "differ); the files are not two views of the same questions"
        )
    pairs = both.rename(columns={"text": "question", "text_rewrite": "rephrased"})
    return pairs[["id", "question", "rephrased", "answer", *(c for c in ("level",) if c in pairs)]]


def find_folder(path: str | Path) -> Path:
    """A folder given relative to the working directory or, from notebooks/, to the repository; DataError if neither."""
    path = Path(path).expanduser()
    for candidate in (path, ROOT / path):
        if candidate.is_dir():
            return candidate
    raise DataError(f"{path}: no such folder (looked in the working directory and in the repository)")


def _from_folder(source: Source, folder: Path) -> tuple[tuple[pa.Table, str], tuple[pa.Table, str], dict[str, str]]:
    folder = find_folder(folder)
    if (folder / source.folder).is_dir():
        folder = folder / source.folder
    elif folder.name in {other.folder for other in SOURCES.values()} - {source.folder}:
        raise DataError(
            f"{folder}: this is the folder of another set; give {source.folder}/ or the folder that holds it"
        )
    views, files = [], {}
    for pattern in (f"{source.split}_original*.parquet", f"{source.split}_rewrite*.parquet"):
        found = sorted(folder.glob(pattern))
        if len(found) != 1:
            there = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
            raise DataError(
                f"{folder}: {len(found)} files {pattern}, expected one (the folder holds {there}); "
                f"give the folder that holds {source.folder}/, or that folder"
            )
        views.append((_read_parquet(found[0]), str(found[0])))
        files[found[0].name] = hashlib.sha256(found[0].read_bytes()).hexdigest()
    return *views, files


def _read_parquet(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as parquet ({error}); fetch the file again") from error


def _from_hub(source: Source) -> tuple[tuple[pa.Table, str], tuple[pa.Table, str], dict[str, str]]:
    """Both views through datasets.load_dataset; the files are found by name, the revision is pinned and recorded."""
    if source.hub_id is None:
        raise DataError(f"{source.folder}: not on the Hub as a set of its own; give source, the folder that holds it")
    try:
        info = huggingface_hub.HfApi().dataset_info(source.hub_id)
    except Exception as error:  # httpx, offline mode and authentication raise unrelated types
        raise DataError(
            f"{source.hub_id}: the Hub does not answer ({type(error).__name__}: {error}); "
            "give source, a folder with the released parquet files"
        ) from error
    names = [sibling.rfilename for sibling in info.siblings]
    views = []
    for words in (("original",), ("rewrite", "rephrase")):
        found = [name for name in names if name.endswith(".parquet") and any(word in name.lower() for word in words)]
        found = [name for name in found if source.split in name] or found
        if len(found) != 1:
            raise DataError(f"{source.hub_id}: {len(found)} parquet files named {' or '.join(words)} among {names}")
        view = datasets.load_dataset(source.hub_id, data_files=found[0], split="train", revision=info.sha)
        views.append((view.with_format("arrow")[:], f"{source.hub_id}/{found[0]}"))
    return *views, {source.hub_id: str(info.sha)}


def load_problems(name: str, source: str | Path | None = None) -> datasets.Dataset:
    """A held-out set: columns id, question, answer (all str; AMC answers stay "142.0": compare them as numbers).

    name: a key of PROBLEM_FILES; source: a folder as for load_pairs or the one above it, or None, "" or "hub".
    Raises DataError for an unknown name, a missing file, or a missing column.
    """
    if name not in PROBLEM_FILES:
        raise DataError(f"unknown problem set {name!r}; valid are {', '.join(PROBLEM_FILES)} (and lab, in corelib.lab)")
    if source in (None, "", "hub"):
        frame = _problems_from_hub(name)
    else:
        folder = find_folder(source)
        own = folder.name in {place.folder for place in SOURCES.values()}  # open-rs/ itself: the sets lie beside it
        path = _problem_file(name, folder.resolve().parent if own else folder)
        if path is None:
            raise DataError(f"{source}: holds none of {', '.join(PROBLEM_FILES[name])}, needed for {name}")
        frame = _read_problems(path)
    return _dataset(frame)


def _problem_file(name: str, folder: Path) -> Path | None:
    return next((folder / file for file in PROBLEM_FILES[name] if (folder / file).is_file()), None)


def _dataset(frame: pd.DataFrame) -> datasets.Dataset:
    """Frame as a Dataset of plain strings; id stays int64 where it is one."""
    kinds = {name: "int64" if pd.api.types.is_integer_dtype(frame[name]) else "string" for name in frame}
    features = datasets.Features({name: datasets.Value(kind) for name, kind in kinds.items()})
    return datasets.Dataset.from_pandas(frame, features, preserve_index=False)


def load_benchmarks(folder: str | Path) -> dict[str, pd.DataFrame]:
    """The sets of audit.BENCHMARKS that lie below folder, as frames with question and answer; the rest is left out."""
    folder = find_folder(folder)
    files = {name: _problem_file(name.replace("_", "-"), folder) for name in BENCHMARKS}
    there = {name: _read_problems(path) for name, path in files.items() if path}
    if not there:
        raise DataError(f"{folder}: no benchmark set; expected one of {', '.join(sum(PROBLEM_FILES.values(), ()))}")
    return there


def _problems_from_hub(name: str) -> pd.DataFrame:
    if name not in PROBLEM_HUB:
        raise DataError(f"{name}: no Hub id is known; give source, a folder with {' or '.join(PROBLEM_FILES[name])}")
    hub_id, configuration, split = PROBLEM_HUB[name]
    try:
        rows = datasets.load_dataset(hub_id, configuration, split=split)
    except Exception as error:  # httpx, offline mode and datasets raise unrelated types
        raise DataError(
            f"{hub_id}: the Hub does not answer ({type(error).__name__}: {error}); "
            f"give source, a folder with {' or '.join(PROBLEM_FILES[name])}"
        ) from error
    return _problem_frame(rows, hub_id)


def _read_problems(path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        view = read_view(_read_parquet(path), str(path))
        return pd.DataFrame({"id": view["id"].astype(str), "question": view["text"], "answer": view["answer"]})
    try:
        text = path.read_text(encoding="utf-8")
        rows = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines() if line]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as {path.suffix[1:]} ({error}); fetch the file again") from error
    return _problem_frame(rows, str(path))


def _problem_frame(rows: Iterable[dict[str, Any]], name: str) -> pd.DataFrame:
    """Rows of a benchmark as id, question, answer; a worked solution gives its number after #### or its last box."""
    lines = []
    for number, row in enumerate(rows):
        question = next((key for key in QUESTION_COLUMNS if key in row), None)
        answer = next((key for key in ANSWER_COLUMNS if key in row), None)
        if question is None or answer is None:
            wanted = QUESTION_COLUMNS if question is None else ANSWER_COLUMNS
            raise DataError(f"{name}: row {number}: no column {' or '.join(wanted)} (columns: {', '.join(row)})")
        gold = str(row[answer])
        if "####" in gold:  # GSM8K, with thousands commas
            gold = gold.rsplit("####", 1)[1].strip().replace(",", "")
        elif answer == "solution":  # MATH
            gold = extract(gold) or ""
        lines.append((str(row.get("id", row.get("unique_id", number))), row[question], gold))
    return pd.DataFrame(lines, columns=["id", "question", "answer"])


def length_filter(
    pairs: datasets.Dataset, tokenizer: Any, max_prompt_tokens: int = MAX_PROMPT_TOKENS, audit: Audit | None = None
) -> datasets.Dataset:
    """Keep the pairs of which both rendered prompts have at most max_prompt_tokens tokens; count the rest in audit.

    Source: I/verl/utils/dataset/pair_dataset.py (chat template with generation prompt, no further special tokens).
    """
    longest = [0] * len(pairs)
    for column in ("question", "rephrased"):
        rendered = [
            tokenizer.apply_chat_template(to_prompt(text), tokenize=False, add_generation_prompt=True)
            for text in pairs[column]
        ]
        tokens = tokenizer(rendered, add_special_tokens=False)["input_ids"] if rendered else []
        longest = [max(length, len(ids)) for length, ids in zip(longest, tokens, strict=True)]
    over = [row for row, length in enumerate(longest) if length > max_prompt_tokens]
    if audit is not None:
        details = [f"{longest[row]} tokens" for row in over]
        audit.add("prompts_too_long", "dropped", [pairs[row]["id"] for row in over], details)
    return pairs.select([row for row, length in enumerate(longest) if length <= max_prompt_tokens])


def save_pairs(pairs: datasets.Dataset, path: str | Path) -> Path:
    """Write prepared pairs as one parquet file, in one step."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda partial: pq.write_table(pairs.with_format("arrow")[:], partial))
    return path


def read_pairs(path: str | Path) -> datasets.Dataset:
    """Prepared pairs written by save_pairs: id, question, rephrased, answer and more; DataError if it is not that."""
    table = _read_parquet(Path(path))
    if missing := {"id", "question", "rephrased", "answer"} - set(table.column_names):
        raise DataError(f"{path}: columns {sorted(missing)} are missing; write it again with notebook 01")
    return datasets.Dataset(table)
