import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from corelib.answers import cluster, vote
from corelib.grader import Grader, admissible

ROOT = Path(__file__).resolve().parent.parent
HARD = (r"\int_0^1 x^2 dx", "1/3")  # only math-verify can tell
WRONG = (r"\int_0^1 x^2 dx", r"\int_0^1 x dx")
ENDLESS = (r"\int \frac{1}{x^5+x+1} dx", "2")  # sympy works on it for longer than any timeout here


@pytest.fixture(scope="module")
def grader():
    with Grader(workers=1, timeout=20) as g:
        yield g


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_easy_pairs_start_no_worker():
    with Grader() as g:
        outcomes = g.equal(["1/2", "3", "even", "7", "7"], ["0.5", "4", "odd", None, " "])
        assert outcomes == ["equal", "different", "different", "unparsed", "unparsed"]
        assert g.cluster([["1", "1.0", None], []]) == [[0, 0, None], []]
        assert g._pool == []
        assert g.seen == 8 and g.timeouts == 0


def test_hard_pairs_go_to_a_worker(grader):
    assert grader.equal([HARD[0], WRONG[0], HARD[0]], [HARD[1], WRONG[1], HARD[1]]) == ["equal", "different", "equal"]
    assert len(grader._pool) == 1


def test_votes_and_clusters_are_those_of_answers(grader):
    groups = [["1", "2", "2.0", None], [], [r"\int_0^1 2x dx", "1", "2"], ["5 cm", "5 m", "5"]]
    assert grader.cluster(groups) == [cluster(g) for g in groups]
    assert grader.vote(groups) == [vote(g) for g in groups]
    assert grader.vote(groups, min_support=0.6) == [vote(g, min_support=0.6) for g in groups]


def test_unequal_lengths_and_settings():
    with pytest.raises(ValueError):
        Grader().equal(["1"], [])
    for settings in ({"workers": 0}, {"timeout": 0}):
        with pytest.raises(ValueError):
            Grader(**settings)


@pytest.mark.parametrize(
    "text", ["9^{9^{9}}", "2^{30^{5}}", "100000!", r"\binom{10000}{500}", "x^{2000}", r"\sum_{n=1}^{1000000000} n", "(" * 40, "1" * 50,
             "x" * 500, "(n!)!"]
)  # fmt: skip
def test_guards(text):
    assert not admissible(text)


def test_a_slow_pair_is_a_timeout_and_the_next_one_is_answered():
    with Grader(workers=1, timeout=0.2) as g:
        assert g.equal([ENDLESS[0]], [ENDLESS[1]]) == ["timeout"]
        assert g.timeouts == 1
        worker = g._pool[0].process.pid
        g.timeout = 20
        assert g.equal([HARD[0]], [HARD[1]]) == ["equal"]
        assert g._pool[0].process.pid == worker  # only the child that worked on the pair was killed
        assert g.equal([ENDLESS[0]], [ENDLESS[1]]) == ["timeout"]  # known: not tried again
        assert g.timeouts == 2 and g.seen == 3


def test_a_stuck_worker_is_killed():
    with Grader(workers=1, timeout=20) as g:
        assert g.equal([HARD[0]], [HARD[1]]) == ["equal"]
        stuck = g._pool[0].process.pid
        os.kill(stuck, signal.SIGSTOP)  # it cannot end itself any more
        g.timeout = 0.2
        assert g.equal([r"\int_0^1 x^3 dx"], ["1/4"]) == ["timeout"]
        assert not alive(stuck)
        g.timeout = 20
        assert g.equal([r"\int_0^1 x^4 dx"], ["1/5"]) == ["equal"]


@pytest.mark.slow
def test_a_worker_that_died_while_idle_is_replaced():
    with Grader(workers=1, timeout=20) as g:
        g.equal([HARD[0]], [HARD[1]])
        g._pool[0].process.kill()
        g._pool[0].process.wait()
        assert g.equal([r"\int_0^1 x^3 dx", r"\int_0^1 x^4 dx"], ["1/4", "1/5"])[-1] == "equal"


def test_close_is_idempotent_and_use_starts_again():
    g = Grader(workers=1, timeout=20)
    g.equal([HARD[0]], [HARD[1]])
    pid = g._pool[0].process.pid
    g.close()
    g.close()
    assert not alive(pid)
    assert g.equal(["1"], ["1.0"]) == ["equal"]


def test_threads_and_event_loops(grader):
    found = {}

    def work(n):
        found[n] = grader.equal([rf"\int_0^1 {n}x^2 dx"], [f"{n}/3"])

    threads = [threading.Thread(target=work, args=(n,)) for n in (4, 5, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: ["equal"] for n in (4, 5, 7)}

    async def inside():
        return grader.equal([r"\int_0^1 8x^2 dx"], ["8/3"]), await asyncio.to_thread(grader.equal, [HARD[0]], [HARD[1]])

    assert asyncio.run(inside()) == (["equal"], ["equal"])


def test_the_alarm_of_the_caller_is_left_alone(grader):
    def handler(signum, frame):
        raise AssertionError

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.alarm(500)
        grader.equal([r"\int_0^1 10x^2 dx"], ["10/3"])
        assert 400 < signal.alarm(0) <= 500
        assert signal.getsignal(signal.SIGALRM) is handler
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.slow
def test_a_forked_child_gets_its_own_workers(grader):
    grader.equal([HARD[0]], [HARD[1]])
    pid = os.fork()
    if pid == 0:
        ok = grader.equal([r"\int_0^1 11x^2 dx"], ["11/3"]) == ["equal"]
        grader.close()
        os._exit(0 if ok else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert grader.equal([r"\int_0^1 13x^2 dx"], ["13/3"]) == ["equal"]


@pytest.mark.parametrize("busy", [pytest.param(False, marks=pytest.mark.slow), True])
def test_workers_die_with_a_killed_parent(busy):
    code = (
        "import threading, time\n"
        "from corelib.grader import Grader\n"
        "g = Grader(workers=1, timeout=2)\n"
        f"g.equal([{HARD[0]!r}], [{HARD[1]!r}])\n"
        f"if {busy}: threading.Thread(target=g.equal, args=([{ENDLESS[0]!r}], [{ENDLESS[1]!r}])).start()\n"
        "time.sleep(0.3)\n"
        "print(g._pool[0].process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    worker = int(parent.stdout.readline())
    assert alive(worker)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(worker)


def test_worker_imports_no_torch_and_evaluates_no_strings(tmp_path):
    marker = tmp_path / "pwned"
    code = (
        "import json, sys\n"
        "from corelib._grader_worker import load\n"
        "grade = load()\n"
        f"payload = \"__import__('os').system('touch {marker}')\"\n"
        "replies = [grade('42', payload), grade('0.5', r'\\frac{1}{2}'), grade('42', r'\\text{' + payload + '}')]\n"
        "import sympy\n"
        "try:\n"
        "    sympy.sympify('1+1'); refused = False\n"
        "except Exception:\n"
        "    refused = True\n"
        "print(json.dumps([replies, refused, 'torch' in sys.modules]))\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    replies, refused, torch = json.loads(out)
    assert replies[0] != "1" and replies[1] == "1" and replies[2] != "1"
    assert refused and not torch and not marker.exists()
