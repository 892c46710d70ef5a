"""Answers that are drawn once: parquet shards, one a batch, each complete or absent.

A row is one completion: key (of model, prompt and decoding), id and sample number of its question, prompt, completion,
tokens, finish, extracted answer, verdict (right, detail) and the digest of the grader that gave it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from corelib.audit import write_atomically
from corelib.generate import Completion

GRADERS = ("answers.py", "_answer_*.py", "grader.py", "_grader_worker.py", "released.py", "benchmark*.py", "sandbox.py", "_sandbox*.py")  # fmt: skip
PLACE = ("file", "offset")  # columns of a problem that say where its tests lie; moving the data changes no verdict


@dataclass(frozen=True)
class Question:
    """One problem as it is asked: `key` names model, prompt and decoding; `problem` is what `grade` needs."""

    key: str
    prompt: str
    problem: dict


def digest(*parts, size: int = 16) -> str:
    """Hex digits over anything that JSON can hold."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:size]


def grader_version() -> str:
    """Digest of the source of every grader: answers that another version graded are graded again."""
    here = Path(__file__).parent
    return digest([f.read_text() for pattern in GRADERS for f in sorted(here.glob(pattern))])


def read(folder: Path, say: Callable = print) -> dict[Path, pd.DataFrame]:
    """The shards of a folder. A damaged one is named and set aside, so that its questions are drawn again."""
    found = {}
    for path in sorted(folder.glob("*.*.parquet")):
        content = path.read_bytes()
        if _checksum(content) == path.suffixes[-2][1:]:
            found[path] = pq.read_table(pa.BufferReader(content)).to_pandas()
            continue
        aside = path.with_suffix(".damaged")
        path.replace(aside)
        say(f"{path} is damaged (its checksum is another); its questions are drawn again, it is kept as {aside.name}")
    return found


def write(folder: Path, frame: pd.DataFrame) -> Path:
    """Add a shard `<digest of its keys>.<checksum>.parquet` in one step: after a kill it is there or not, never by half.

    Then remove the one of the same keys with other verdicts.
    """
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), buffer)
    content = buffer.getvalue().to_pybytes()
    keys = digest(list(frame["key"]))
    path = folder / f"{keys}.{_checksum(content)}.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda partial: partial.write_bytes(content))
    for earlier in set(folder.glob(f"{keys}.*.parquet")) - {path}:
        earlier.unlink()
    return path


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


@contextlib.contextmanager
def alone(folder: Path, say: Callable = print):
    """Hold the folder: a second process waits and then finds the answers. A killed process lets go."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{folder.name} is being answered by another process; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def collect(
    folder: Path,
    questions: Sequence[Question],
    batches: Sequence[Sequence[int]],
    draw: Callable[[Sequence[int]], list[list[Completion]]],
    grade: Callable[[list[str], dict], list],
    regrade: bool = False,
    say: Callable = print,
    name: str = "",
    every: float = 5.0,
) -> pd.DataFrame:
    """All answers to `questions`, a row each in their order: what is stored is read, the rest drawn, stored and graded.

    `batches`: the questions (by position) that are drawn together, and in which order; each becomes one shard. A batch
    of which nothing is stored is always drawn whole, so a resumed evaluation makes the draws of one never stopped.
    `draw(positions)` gives the completions of each. `regrade`: grade the stored answers again (also done when the grader
    or a problem changed). Says where it stands every `every` seconds, with the score so far and the time left.
    """
    with alone(folder, say), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        version, place = grader_version(), {q.key: i for i, q in enumerate(questions)}
        graders = [digest(version, {k: v for k, v in q.problem.items() if k not in PLACE}) for q in questions]
        frames = []
        for frame in read(folder, say).values():
            asked = frame["key"].isin(place)
            stale = asked & (
                regrade | (frame["grader"] != [graders[place[k]] if k in place else "" for k in frame["key"]])
            )
            if stale.any():
                frame = _graded(frame, stale, questions, place, graders, grade, pool)
                write(folder, frame)
            frames.append(frame[asked])
        have = {key for frame in frames for key in frame["key"]}
        todo = [left for batch in batches if (left := [i for i in batch if questions[i].key not in have])]
        if have:
            say(f"{name}: {len(have)} of {len(questions)} questions are answered already")
        right = sum(frame["right"].sum() for frame in frames)
        rows, done, drawn, started, said = sum(map(len, frames)), len(have), 0, time.time(), time.time()
        remaining = sum(map(len, todo))
        for batch in todo:
            frame = _ungraded(batch, draw(batch), questions)
            write(folder, frame)  # draws are dear: a kill or an error while grading must not lose them
            everything = pd.Series(True, index=frame.index)
            frame = _graded(frame, everything, questions, place, graders, grade, pool)
            write(folder, frame)
            frames.append(frame)
            right, rows = right + frame["right"].sum(), rows + len(frame)
            done, drawn = done + len(batch), drawn + len(batch)
            if time.time() - said > every:
                said = time.time()
                left = (said - started) / drawn * (remaining - drawn)
                say(
                    f"{name}: {done}/{len(questions)} questions, {100 * right / rows:.1f} % right so far, {left:.0f} s left"
                )
    table = pd.concat(frames, ignore_index=True).drop_duplicates(["key", "sample"])
    table = table.assign(place=table["key"].map(place)).sort_values(["place", "sample"], ignore_index=True)
    return table.drop(columns=["place", "grader"])


def _ungraded(batch, completions, questions) -> pd.DataFrame:
    """Rows without verdicts, which `collect` takes for those of another grader."""
    return pd.DataFrame(
        [
            {
                "key": questions[i].key, "id": str(questions[i].problem["id"]), "sample": j, "prompt": str(questions[i].prompt),
                "completion": _encodable(completion.text), "tokens": completion.tokens, "finish": completion.finish,
                "answer": None, "right": False, "detail": "", "grader": "",
            }
            for i, made in zip(batch, completions, strict=True)
            for j, completion in enumerate(made)
        ]
    )  # fmt: skip


def _encodable(value):
    """A text without lone surrogates, which JSON of a model can name and no file can hold; anything else as it is."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _graded(frame, stale, questions, place, graders, grade, pool) -> pd.DataFrame:
    """The table with new verdicts where `stale`, question by question."""
    frame = frame.copy()
    groups = list(frame[stale].groupby("key", sort=False))
    judged = pool.map(lambda g: grade(list(g[1]["completion"]), questions[place[g[0]]].problem), groups)
    for (key, rows), verdicts in zip(groups, judged, strict=True):
        for column in ("answer", "right", "detail"):
            frame.loc[rows.index, column] = [_encodable(getattr(v, column)) for v in verdicts]
        frame.loc[rows.index, "grader"] = graders[place[key]]
    return frame
