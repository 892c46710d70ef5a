"""Worker process of the grader: math-verify on one pair at a time, killed by the kernel when its time is over.

Started as `python -m corelib._grader_worker`; reads JSON lines [gold, answer, seconds], answers one letter a line:
"1" equal, "0" different, "?" unparsed, "t" out of time. Imports sympy, never torch.
"""

from __future__ import annotations

import json
import os
import re
import resource
import select
import signal
import sys

MEMORY = 4 * 2**30  # bytes of address space


def _numbers_only(text: str, *args, **kwargs):
    """Stands in for sympy's string parser, which evaluates Python: latex2sympy calls it for the digits of a number."""
    import sympy

    if re.fullmatch(r"\d{1,400}", text):
        return sympy.Integer(int(text))
    if re.fullmatch(r"\d{0,400}\.\d{1,400}", text):
        return sympy.Float(text)
    raise ValueError("not a number")


def load():
    """math-verify with sympy's string parser taken out; returns a function (gold, answer) -> "1", "0" or "?"."""
    import logging

    import math_verify
    import math_verify.parser
    import sympy.parsing
    import sympy.parsing.sympy_parser

    logging.disable(logging.CRITICAL)
    for module in (sympy.parsing.sympy_parser, sympy.parsing, math_verify.parser):
        module.parse_expr = _numbers_only
    sympy.parsing.sympy_parser.eval_expr = _numbers_only
    latex = [math_verify.LatexExtractionConfig()]

    def grade(gold: str, answer: str) -> str:
        sides = [
            math_verify.parse(f"${side}$", extraction_config=latex, fallback_mode="no_fallback", parsing_timeout=None)
            for side in (gold, answer)
        ]
        if not all(sides):
            return "?"
        return "1" if math_verify.verify(*sides, timeout_seconds=None) else "0"

    return grade


def main() -> None:
    """Serves pairs until its input closes or its parent is gone."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # no handler: the kernel ends the process, even inside of C code
    parent = os.getppid()
    grade = load()
    grade(r"\int_0^1 x^2 dx + \lim_{x \to 0} \frac{\sin x}{x}", "4/3")  # the first call imports most of sympy
    replies.write("ready\n")
    buffer = b""
    while True:
        while b"\n" not in buffer:
            if not select.select([0], [], [], 1.0)[0]:
                if os.getppid() != parent:
                    return
                continue
            chunk = os.read(0, 65536)
            if not chunk:
                return
            buffer += chunk
        line, _, buffer = buffer.partition(b"\n")
        replies.write(_in_a_child(grade, *json.loads(line)) + "\n")


def _in_a_child(grade, gold: str, answer: str, seconds: float) -> str:
    """Reply of a forked copy of this process, which its alarm ends; this one, with sympy imported, lives on."""
    out, back = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            reply = grade(gold, answer)
        except Exception:
            reply = "?"
        os.write(back, reply.encode())
        os._exit(0)
    os.close(back)
    reply = os.read(out, 1).decode()
    os.close(out)
    os.waitpid(pid, 0)
    return reply or "t"


if __name__ == "__main__":
    sys.setrecursionlimit(3000)
    main()
