r"""What the released Co-rewarding code does with answers, kept for exact comparison: parser and Hendrycks equality.

Both are own transcriptions of the semantics of `verl/utils/reward_score/math.py` (Hendrycks et al., MATH, MIT licence).
"""

from __future__ import annotations


def extract_released(text: str) -> str:
    r"""Answer of a completion as the released parser sees it: unstripped, '' when there is none.

    The last `\boxed{...}` with matched braces; but `\boxed ` (with a space) anywhere wins, up to the next `$`, even when a
    proper box follows. `\fbox` and an unclosed box give ''.

    >>> extract_released(r"so \boxed {5} done. Thus \boxed{7}")
    '{5} done. Thus \\boxed{7}'
    >>> extract_released(r"\boxed{ 12}"), extract_released(r"\fbox{3}"), extract_released(r"\boxed{1")
    (' 12', '', '')
    """
    if "\\boxed " in text:
        return text.split("\\boxed ")[-1].split("$")[0]
    start = text.rfind("\\boxed")
    if start < 0:
        return ""
    depth = 0
    for end in range(start, len(text)):
        if text[end] == "{":
            depth += 1
        elif text[end] == "}":
            depth -= 1
            if depth == 0:
                box = text[start : end + 1]
                return box[len("\\boxed{") : -1] if box.startswith("\\boxed{") else ""
    return ""


def _brace_fractions(text: str) -> str:
    head, *tails = text.split("\\frac")
    for tail in tails:
        head += "\\frac"
        if tail[0] == "{":  # an empty tail raises, as upstream: hendrycks_equal then compares the raw strings
            head += tail
        elif len(tail) < 2:
            return text
        elif tail[1] == "{":
            head += "{" + tail[0] + "}" + tail[1:]
        else:
            head += "{" + tail[0] + "}{" + tail[1] + "}" + tail[2:]
    return head


def _brace_roots(text: str) -> str:
    head, *tails = text.split("\\sqrt")
    return head + "".join("\\sqrt" + (t if t[0] == "{" else "{" + t[0] + "}" + t[1:]) for t in tails)


def _slash_to_fraction(text: str) -> str:
    parts = text.split("/")
    if len(parts) != 2:
        return text
    try:
        top, bottom = int(parts[0]), int(parts[1])
    except ValueError:
        return text
    return f"\\frac{{{top}}}{{{bottom}}}" if text == f"{top}/{bottom}" else text


def hendrycks_normal(text: str) -> str:
    """Normal form of Hendrycks' `_strip_string`; raises ValueError or IndexError where upstream raises."""
    for old, new in (
        ("\n", ""),
        ("\\!", ""),
        ("\\\\", "\\"),
        ("tfrac", "frac"),
        ("dfrac", "frac"),
        ("\\left", ""),
        ("\\right", ""),
        ("^{\\circ}", ""),
        ("^\\circ", ""),
        ("\\$", ""),
    ):
        text = text.replace(old, new)
    if "\\text{ " in text:
        text, _unit = text.split("\\text{ ")  # two units raise, as upstream
    text = text.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if not text:
        return text
    if text[0] == ".":
        text = "0" + text
    sides = text.split("=")
    if len(sides) == 2 and len(sides[0]) <= 2:
        text = sides[1]
    text = _brace_fractions(_brace_roots(text).replace(" ", ""))
    if text == "0.5":
        text = "\\frac{1}{2}"
    return _slash_to_fraction(text)


def hendrycks_equal(a: str | None, b: str | None) -> bool:
    r"""Hendrycks' `is_equiv`: string equality after light normalisation; the released code's equality for ground truth.

    >>> hendrycks_equal("0.5", r"\dfrac12"), hendrycks_equal("x=5", "5"), hendrycks_equal("0.25", r"\frac14")
    (True, True, False)
    """
    if a is None or b is None:
        return a is b
    try:
        return hendrycks_normal(a) == hendrycks_normal(b)
    except (ValueError, IndexError):
        return a == b
