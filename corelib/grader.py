"""Batches of answers, with worker processes for the few pairs that need sympy.

A worker is a fresh Python process (no fork of the caller, which may hold torch, CUDA and threads). It gives each pair to a
forked child of its own, which the kernel kills when the time is over; a worker that hangs itself is killed from here.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import selectors
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from corelib._answer_cluster import Vote, partition, tally
from corelib._answer_decide import decide, subjects

START_SECONDS = 60.0  # import of sympy on a busy machine
GRACE_SECONDS = 0.5  # the child is killed at the timeout; this much later the worker is
CACHED_PAIRS = 65_536

MAX_LENGTH = 200
MAX_NESTING = 10
MAX_NUMBER = 6  # digits
MAX_EXPONENT = 20
MAX_FACTORIAL = 100

_EXPONENT = re.compile(r"\^\s*\{?\s*\(?\s*-?\s*(\d+)")
_TOWER = re.compile(r"\^\s*(?:\{[^{}]*\^|\w\s*\^|\{[^{}]*\{)|[a-df-z]\s*\^\s*(?:[a-z]|\{[^{}]*[a-z])")  # 2^{x^y}, x^x
_BIG = re.compile(r"\\(?:sum|prod|i*int|oint|lim)(?![a-zA-Z])")


def admissible(text: str) -> bool:
    r"""Whether a text may be given to sympy: guards of length, nesting, size of numbers, powers, factorials, bounds.

    >>> admissible(r"\int_0^1 x^2 dx"), admissible("9^{9^{9}}"), admissible("100000!"), admissible(r"\sum_{n=1}^{10^9} n")
    (True, False, False, False)
    """
    if len(text) > MAX_LENGTH or not text.isascii():
        return False
    depth = deepest = 0
    for char in text:
        depth += (char in "{([") - (char in "})]")
        deepest = max(deepest, depth)
    numbers = re.findall(r"\d+", text)
    if deepest > MAX_NESTING or any(len(n) > MAX_NUMBER for n in numbers):
        return False
    if any(int(n) > MAX_EXPONENT for n in _EXPONENT.findall(text)) or _TOWER.search(text):
        return False
    if re.search(r"[})!]\s*!", text) or any(int(n) > MAX_FACTORIAL for n in re.findall(r"(\d+)\s*!", text)):
        return False
    if re.search(r"\\(?:binom|sum|prod)", text) and any(len(n) > 3 for n in numbers):
        return False
    signs = _BIG.findall(text)
    return len(signs) <= 1 and not ("\\infty" in text and signs and signs[0] != "\\lim")


class _Worker:
    """One worker process and the number of the pair it is busy with."""

    def __init__(self):
        root = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "corelib._grader_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C in a notebook is for the notebook
        )
        self.ready = False
        self.job: int | None = None
        self.deadline = time.monotonic() + START_SECONDS

    def give(self, job: int, pair: tuple[str, str], seconds: float) -> None:
        self.job, self.deadline = job, time.monotonic() + seconds + GRACE_SECONDS
        try:
            self.process.stdin.write(json.dumps([*pair, seconds]).encode() + b"\n")
        except BrokenPipeError:
            self.deadline = 0.0  # ended while idle

    def waiting(self) -> bool:
        return self.job is not None or not self.ready

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class Grader:
    """Equality, clusters and votes for batches of answers.

    workers: processes for pairs that the fast path leaves open; started when first needed. timeout: seconds for one pair,
    after which the process that works on it is killed. `seen` counts the answers given, `timeouts` the pairs that ran out of time. Usable
    from any thread and inside a running event loop; touches no signal of the caller. After `close` it starts again on use.
    """

    def __init__(self, workers: int = 2, timeout: float = 0.75):
        if workers < 1 or timeout <= 0:
            raise ValueError("workers and timeout are positive")
        self.workers, self.timeout = workers, timeout
        self.seen = self.timeouts = 0
        self._pool: list[_Worker] = []
        self._known: dict[tuple[str, str], str] = {}
        self._lock = threading.RLock()
        self._pid = os.getpid()

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers; may be called any number of times."""
        with self._lock:
            if self._pid == os.getpid():  # after a fork the workers belong to the parent
                for worker in self._pool:
                    worker.stop()
            self._pool = []

    def equal(self, golds: Sequence[str], answers: Sequence[str | None]) -> list[str]:
        """Outcome of each pair: "equal", "different", "unparsed" (no answer, or one that no parser reads), "timeout"."""
        if len(golds) != len(answers):
            raise ValueError(f"{len(golds)} golds for {len(answers)} answers")
        outcomes: list[str] = []
        open_pairs: dict[tuple[str, str], list[int]] = {}
        for i, (gold, answer) in enumerate(zip(golds, answers, strict=True)):
            if answer is None or not answer.strip():
                outcomes.append("unparsed")
                continue
            verdict = decide(gold, answer)
            outcomes.append("equal" if verdict else "different")
            if verdict is None:
                open_pairs.setdefault((gold, answer), []).append(i)
        for pair, outcome in zip(open_pairs, self._hard(list(open_pairs)), strict=True):
            for i in open_pairs[pair]:
                outcomes[i] = outcome
        with self._lock:
            self.seen += len(answers)
        return outcomes

    def cluster(self, groups: Sequence[Sequence[str | None]]) -> list[list[int | None]]:
        """Class of each answer of each group, as `corelib.answers.cluster`."""
        classes = [partition(group, lambda pairs: [o == "equal" for o in self._hard(pairs)]) for group in groups]
        with self._lock:
            self.seen += sum(len(group) for group in groups)
        return classes

    def vote(self, groups: Sequence[Sequence[str | None]], min_support: float = 0.0) -> list[Vote]:
        """Vote of each group, as `corelib.answers.vote`."""
        return [tally(g, c, min_support) for g, c in zip(groups, self.cluster(groups), strict=True)]

    def _hard(self, pairs: list[tuple[str, str]]) -> list[str]:
        """Outcomes of pairs that the fast path leaves open."""
        if not pairs:
            return []
        with self._lock:
            if self._pid != os.getpid():
                self._pool, self._pid = [], os.getpid()
            todo = [p for p in dict.fromkeys(pairs) if p not in self._known]
            texts = {p: tuple(_latex_of(side) for side in p) for p in todo}
            jobs = [p for p in todo if all(map(admissible, texts[p]))]
            self._known.update(dict.fromkeys(todo, "unparsed"))
            self._known.update(zip(jobs, self._run([texts[p] for p in jobs]), strict=True))
            outcomes = [self._known[p] for p in pairs]
            self.timeouts += outcomes.count("timeout")
            while len(self._known) > CACHED_PAIRS:
                del self._known[next(iter(self._known))]
            return outcomes

    def _run(self, jobs: list[tuple[str, str]]) -> list[str]:
        """Outcome of each job; a worker that dies or overruns costs its job a "timeout" and is replaced."""
        outcomes: list[str] = ["timeout"] * len(jobs)
        queue = deque(range(len(jobs)))
        failed_starts = 0
        while queue or any(worker.job is not None for worker in self._pool):
            while queue and len(self._pool) < min(self.workers, len(jobs)) and failed_starts < 3:
                self._pool.append(_Worker())
            if not self._pool:
                break
            for worker in self._pool:
                if worker.ready and worker.job is None and queue:
                    job = queue.popleft()
                    worker.give(job, jobs[job], self.timeout)
            for worker, reply in self._replies():
                if reply == b"ready":
                    worker.ready = True
                elif reply in _REPLIES and worker.job is not None:
                    outcomes[worker.job], worker.job = _REPLIES[reply], None
                else:
                    failed_starts += not worker.ready
                    worker.stop()
                    self._pool.remove(worker)
        return outcomes

    def _replies(self) -> list[tuple[_Worker, bytes]]:
        """Replies of the busy and the starting workers; an empty reply for one that ended or is overdue."""
        waiting = [worker for worker in self._pool if worker.waiting()]
        with selectors.DefaultSelector() as selector:
            for worker in waiting:
                selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
            wait = max(0.0, min(worker.deadline for worker in waiting) - time.monotonic())
            ready = {key.data for key, _ in selector.select(wait)}
        replies = [(worker, os.read(worker.process.stdout.fileno(), 64).strip()) for worker in ready]
        now = time.monotonic()
        return replies + [(w, b"") for w in waiting if w not in ready and w.deadline <= now]


_REPLIES = {b"1": "equal", b"0": "different", b"?": "unparsed", b"t": "timeout"}


def _latex_of(text: str) -> str:
    """What math-verify gets to see of an answer: the content of its last box, or the last formula of a sentence."""
    meanings = subjects(text)
    return (meanings[-1] if "$" in meanings[0] else meanings[0]).replace("$", " ").strip()


_shared: Grader | None = None
_shared_lock = threading.Lock()


def shared() -> Grader:
    """The one grader behind `corelib.answers.equivalent`, with one worker; made when first needed."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = Grader(workers=1)
            atexit.register(_shared.close)
        return _shared
