"""What every benchmark is made of: its description, a verdict, and rows of a local file or of the Hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets

from corelib.data import DataError, find_folder


@dataclass(frozen=True)
class Verdict:
    """The verdict on one completion.

    answer: what was extracted, None when there is nothing to extract; detail: why it is wrong ("timeout", "test 3: ..."),
    or further measures as JSON.
    """

    answer: str | None
    right: bool
    detail: str = ""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark and its protocol; the words are those of the table that is shown beside the scores.

    source: Hub id and the local file that is read instead; size: number of problems; decoding: temperature (0 is greedy),
    k draws a problem, max_new_tokens, and stop (texts after which a completion may end; grading cuts there itself);
    paper: what the paper used; differs: what differs here. load(folder), "" for the Hub, gives a Dataset with id, question,
    answer and what grading needs; messages(problem) the prompt, plain text or chat messages; grade(completions, problem) a
    verdict for each completion. harness: task of lm-evaluation-harness that scores it as a whole, else "".
    """

    name: str
    title: str
    source: str
    split: str
    size: int
    prompt: str
    shots: int
    decoding: dict
    metric: str
    grader: str
    paper: str
    differs: str
    load: Callable[[str], datasets.Dataset]
    messages: Callable[[dict], str | list[dict]]
    grade: Callable[[list[str], dict], list[Verdict]]
    harness: str = ""


def find_file(source: str | Path, files: Sequence[str]) -> Path:
    """The first of `files` that lies below the folder `source`; DataError when none does."""
    folder = find_folder(source)
    found = next((folder / file for file in files if (folder / file).is_file()), None)
    if found is None:
        raise DataError(
            f"{source}: holds none of {', '.join(files)}; put the file there, or leave source empty for the Hub"
        )
    return found


def read_rows(source: str | Path, files: Sequence[str], hub_id: str, split: str, needs: Sequence[str]) -> list[dict]:
    """Rows of the first of `files` below `source` (JSON lines), or of the Hub when source is "", with the columns `needs`.

    Raises DataError naming the file and what it lacks.
    """
    if source in (None, "", "hub"):
        name = hub_id
        try:
            rows = list(datasets.load_dataset(hub_id, split=split))
        except Exception as error:  # httpx, offline mode and datasets raise unrelated types
            raise DataError(
                f"{hub_id}: the Hub does not answer ({type(error).__name__}: {error}); "
                f"give source, a folder with {' or '.join(files)}"
            ) from error
    else:
        name = path = find_file(source, files)
        try:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read as JSON lines ({error}); fetch the file again") from error
    if not rows:
        raise DataError(f"{name}: holds no rows; fetch the file again")
    for number, row in enumerate(rows):
        if missing := [column for column in needs if column not in row]:
            raise DataError(f"{name}: row {number}: no column {missing[0]!r} (columns: {', '.join(row)})")
    return rows
