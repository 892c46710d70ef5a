"""Sets of real numbers: intervals, inequalities, unions, and when two of them are the same."""

from __future__ import annotations

from fractions import Fraction

from corelib import _answer_algebra as algebra
from corelib._answer_parser import negative
from corelib._answer_reading import Answer

_LINE = ("reals",)


_INFINITY = ("sym", "\\infty")


def names_equal(a: str, b: str) -> bool:
    if a == b:
        return True
    function, other = (a, b) if a.endswith("()") else (b, a)
    return function.endswith("()") and other in ("y", "z", "w")  # f(x) = 2x + 3 is y = 2x + 3


FLIP = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le", "\\ne": "\\ne"}


Piece = tuple[float, bool, float, bool, tuple, tuple]  # low, closed, high, closed, trees of both ends


def _float(tree: tuple) -> float | None:
    if tree == _INFINITY:
        return float("inf")
    if tree == ("*", (("num", Fraction(-1)), _INFINITY)):
        return float("-inf")
    if algebra.symbols(tree):
        return None
    value = algebra.sample_value(tree, 0)
    return None if value is None or abs(value.imag) > 1e-12 * abs(value) else value.real


_MINUS_INFINITY = negative(_INFINITY)


def _pieces(answer: Answer) -> tuple[str | None, list[Piece]] | None:
    """(variable, intervals) of an answer that is a set of reals written with intervals or inequalities."""
    value = answer.value
    if value == _LINE:
        return answer.name, [(float("-inf"), False, float("inf"), False, _MINUS_INFINITY, _INFINITY)]
    if value[0] == "tuple" and len(value[2]) == 2 and value[1] in "([" and value[3] in ")]":
        if any(item.value[0] != "scalar" for item in value[2]):
            return None
        low, high = (item.value[1] for item in value[2])
        ends = _float(low), _float(high)
        if None in ends or ends[0] > ends[1]:
            return None
        return answer.name, [(ends[0], value[1] == "[", ends[1], value[3] == "]", low, high)]
    if value[0] in ("set", "list") and (value[0] == "set" or len(value[1]) > 1):
        if value[0] == "list" and all(item.value[0] == "scalar" for item in value[1]):
            return None
        return _join_all(value[1], points=value[0] == "set", name=answer.name)
    if value[0] == "order":
        return _solution(value)
    if value[0] == "join":
        return _joined(answer)
    return None


def _join_all(items: tuple, points: bool, name: str | None):
    pieces, names = [], {name} - {None}
    for item in items:
        if points or item.value[0] == "scalar":
            end = _float(item.value[1]) if item.value[0] == "scalar" else None
            if end is None:
                return None
            pieces.append((end, True, end, True, item.value[1], item.value[1]))
        else:
            if item.value[0] == "tuple":
                return None  # a list of pairs is a list of points
            part = _pieces(item)
            if part is None:
                return None
            names |= {part[0]} - {None}
            pieces += part[1]
    return (names.pop() if names else None, pieces) if len(names) < 2 else None


def _joined(answer: Answer):
    _, op, left, right = answer.value
    parts = [_pieces(left), _pieces(right)]
    if None in parts:
        return None
    one, two = parts[0][1], parts[1][1]
    if op == "\\cup":
        pieces = one + two
    else:
        if op == "\\setminus":
            two = _complement(two)
        pieces = [p for p in (_overlap(p, q) for p in one for q in two) if p]
    return answer.name or parts[0][0] or parts[1][0], pieces


def _overlap(p: Piece, q: Piece) -> Piece | None:
    low = max((p[0], not p[1], p[4]), (q[0], not q[1], q[4]), key=lambda e: e[:2])
    high = min((p[2], p[3], p[5]), (q[2], q[3], q[5]), key=lambda e: e[:2])
    if low[0] > high[0] or (low[0] == high[0] and (low[1] or not high[1])):
        return None
    return low[0], not low[1], high[0], high[1], low[2], high[2]


def _complement(pieces: list[Piece]) -> list[Piece]:
    out, low = [], (float("-inf"), False, _MINUS_INFINITY)
    for p in _merged(pieces):
        if p[0] > low[0] or (p[0] == low[0] and low[1] and not p[1]):
            out.append((low[0], low[1], p[0], not p[1], low[2], p[4]))
        low = (p[2], not p[3], p[5])
    if low[0] < float("inf"):
        out.append((low[0], low[1], float("inf"), False, low[2], _INFINITY))
    return out


def _merged(pieces: list[Piece]) -> list[Piece]:
    """The same set as sorted intervals that do not touch."""
    out: list[Piece] = []
    for p in sorted(pieces, key=lambda p: (p[0], not p[1])):
        if out and (p[0] < out[-1][2] or (p[0] == out[-1][2] and (p[1] or out[-1][3]))):
            q = out[-1]
            if (p[2], p[3]) > (q[2], q[3]):
                out[-1] = (*q[:2], p[2], p[3], q[4], p[5])
        else:
            out.append(p)
    return out


def _solution(value: tuple):
    """Intervals of an inequality or a chain in one name: x < 3, -1 < x <= 2, 0 < f(x) < 1, 1 <= |z| <= 2, x != 3."""
    trees, signs = value[1], value[2]
    centre = [i for i, tree in enumerate(trees) if algebra.symbols(tree)]
    if len(centre) != 1 or len(trees) > 3 or (len(trees) == 3 and centre != [1]):
        return None
    at = centre[0]
    name, absolute = _variable(trees[at])
    if name is None:
        return None
    pieces = [(float("-inf"), False, float("inf"), False, _MINUS_INFINITY, _INFINITY)]
    for i, tree in enumerate(trees):
        if i == at:
            continue
        end = _float(tree)
        if end is None:
            return None
        sign = signs[i - 1] if i > at else FLIP[signs[i]]  # name sign end
        if sign == "\\ne":
            part = _complement([(end, True, end, True, tree, tree)])
        elif sign in ("<", "\\le"):
            part = [(float("-inf"), False, end, sign == "\\le", _MINUS_INFINITY, tree)]
        else:
            part = [(end, sign == "\\ge", float("inf"), False, tree, _INFINITY)]
        pieces = [p for p in (_overlap(p, q) for p in pieces for q in part) if p]
    if absolute:
        pieces = [
            p
            for p in (_overlap(p, (0.0, True, float("inf"), False, ("num", Fraction(0)), _INFINITY)) for p in pieces)
            if p
        ]
        pieces += [(-p[2], p[3], -p[0], p[1], negative(p[5]), negative(p[4])) for p in pieces]
    return name, pieces


def _variable(tree: tuple) -> tuple[str | None, bool]:
    """(name, under an absolute value) of a tree that is only a name or f(name)."""
    if tree[0] == "fn" and tree[1] == "abs" and len(tree[2]) == 1:
        return _variable(tree[2][0])[0], True
    if tree[0] == "sym":
        return tree[1], False
    if tree[0] == "fn" and len(tree[1].rstrip("'")) == 1:
        return tree[1] + "()", False
    if tree[0] == "*" and len(tree[1]) == 2 and all(part[0] == "sym" for part in tree[1]) and tree[1][0][1].isupper():
        return tree[1][0][1] + "()", False
    return None, False


def real_sets(a: Answer, b: Answer) -> bool | None:
    """Equality of two sets of reals; None when one of them is none."""
    if not {a.value[0], b.value[0]} & {"order", "join", "reals"} and a.value[0] == b.value[0]:
        return None
    one, two = _pieces(a), _pieces(b)
    if one is None or two is None:
        return None
    if one[0] and two[0] and not names_equal(one[0], two[0]) and not (one[0].endswith("()") or two[0].endswith("()")):
        return False
    left, right = _merged(one[1]), _merged(two[1])
    return len(left) == len(right) and all(
        p[1] == q[1] and p[3] == q[3] and bool(algebra.equal(p[4], q[4])) and bool(algebra.equal(p[5], q[5]))
        for p, q in zip(left, right, strict=True)
    )
