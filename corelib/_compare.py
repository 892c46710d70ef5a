"""Whether two readings say the same: True, False, or None for what only math-verify can tell."""

from __future__ import annotations

from fractions import Fraction

from corelib import _algebra
from corelib._latex import Unreadable, negative, parse, tokens
from corelib._reading import Answer

_LINE = ("reals",)
_INFINITY = ("sym", "\\infty")
MAX_MATCH = 60  # items of an unordered comparison


def compare(a: Answer, b: Answer) -> bool | None:
    """Equality of two readings; symmetric."""
    if a == b:
        return True
    if a.choice or b.choice:
        letter_a, letter_b = a.choice or _letter(a), b.choice or _letter(b)
        if letter_a and letter_b:
            return letter_a == letter_b
    if a.unit and b.unit and not _units_equal(a.unit, b.unit):
        return False
    if a.name and b.name and not _names_equal(a.name, b.name):
        return _named_differently(a, b)
    return _values(a, b)


def _letter(answer: Answer) -> str | None:
    """The letter of a multiple-choice answer."""
    value = answer.value
    if (
        value[0] == "scalar"
        and value[1][0] == "sym"
        and len(value[1][1]) == 1
        and answer.unit is None
        and answer.name is None
    ):
        return value[1][1].upper()
    return None


def _units_equal(a: str, b: str) -> bool:
    if a == b:
        return True
    short, long = sorted((set(a.split()), set(b.split())), key=len)
    return len(long) > 1 and short < long and not any("^" in word for word in long ^ short)


def _names_equal(a: str, b: str) -> bool:
    if a == b:
        return True
    function, other = (a, b) if a.endswith("()") else (b, a)
    return function.endswith("()") and other in ("y", "z", "w")  # f(x) = 2x + 3 is y = 2x + 3


def _named_differently(a: Answer, b: Answer) -> bool:
    """x = y + 2 and y = x - 2 are one equation; (x, y) = (3, 2) and (y, x) = (2, 3) are one point."""
    if a.value[0] == b.value[0] == "tuple" and len(a.value[2]) == len(b.value[2]):
        left = dict(zip(a.name.split(","), a.value[2], strict=False))
        right = dict(zip(b.name.split(","), b.value[2], strict=False))
        return left.keys() == right.keys() and all(compare(left[n], right[n]) for n in left)
    if a.value[0] == b.value[0] == "scalar":
        equations = [_as_equation(answer) for answer in (a, b)]
        if all(equations):
            variables = [_algebra.symbols(t[0]) | _algebra.symbols(t[1]) for t in equations]
            return variables[0] == variables[1] and len(variables[0]) > 1 and bool(_proportional(*equations))
    return False


def _as_equation(answer: Answer) -> tuple | None:
    """(left, right) of an equation, also of a value with a name."""
    if answer.value[0] == "equation":
        return answer.value[1:]
    if answer.value[0] == "scalar" and answer.name:
        try:
            return parse(tokens(answer.name)), answer.value[1]
        except Unreadable:
            return None
    return None


def _difference(left: tuple, right: tuple) -> tuple:
    return ("+", (left, negative(right)))


def _proportional(a: tuple, b: tuple) -> int | None:
    """Sign of the constant c with left - right of `a` = c times that of `b`; 0 when there is none, None unknown."""
    one, two = _difference(*a[:2]), _difference(*b[:2])
    if _algebra.symbols(one) != _algebra.symbols(two):
        return 0
    if not _algebra.symbols(one):
        return 1 if _algebra.equal(one, two) else 0
    ratio = ("/", one, two)
    values = [_algebra.sample_value(ratio, k) for k in (0, 1)]
    if any(v is None or not v or abs(v.imag) > 1e-9 * abs(v) for v in values) or abs(
        values[0] - values[1]
    ) > 1e-6 * abs(values[0]):
        return 0
    constant = Fraction(values[0].real).limit_denominator(10**6)
    factor = (
        ("num", constant) if abs(constant - values[0].real) < 1e-12 * abs(values[0]) else _algebra.at_sample(ratio, 0)
    )
    if _algebra.equal(one, ("*", (factor, two))):
        return 1 if values[0].real > 0 else -1
    return 0


def _values(a: Answer, b: Answer) -> bool | None:
    x, y = a.value, b.value
    kinds = {x[0], y[0]}
    if kinds == {"scalar"}:
        return _scalars(a, b)
    if x[0] > y[0]:
        a, b, x, y = b, a, y, x  # alphabetical order of kinds halves the cases
    if "hard" in kinds:
        return None if kinds <= {"hard", "scalar", "tuple", "matrix", "set", "list"} else False
    if kinds == {"text"}:
        return bool(x[1]) and x[1] == y[1]
    if "base" in kinds:
        return x == y
    if kinds == {"time"}:
        return bool(_clock(x) & _clock(y)) if x[2] or y[2] else x[1] == y[1]
    if "time" in kinds:
        return _times(a, b)
    if "equation" in kinds:
        return _equations(a, b)
    if kinds == {"matrix"}:
        return _grids(x[1], y[1])
    if kinds == {"matrix", "tuple"} and all(item.value[0] == "tuple" for item in y[2]):
        return _grids(x[1], tuple(item.value[2] for item in y[2]))
    if kinds == {"matrix", "tuple"}:
        cells = [row[0] for row in x[1]] if all(len(r) == 1 for r in x[1]) else list(x[1][0]) if len(x[1]) == 1 else []
        return len(cells) == len(y[2]) and _all(compare(c, d) for c, d in zip(cells, y[2], strict=True))
    if kinds == {"tuple"}:
        direct = _tuples(x, y)
        return direct
    if kinds == {"ratio"}:
        return _ratios(x[1], y[1])
    if kinds == {"ratio", "scalar"}:
        first, *rest = x[1]
        if len(rest) == 1 and first.value[0] == rest[0].value[0] == "scalar":
            return _algebra.equal(("/", first.value[1], rest[0].value[1]), y[1])
        return False
    if kinds == {"list", "tuple"}:
        return y[1] == "=" and len(x[1]) == len(y[2]) and _all(compare(c, d) for c, d in zip(x[1], y[2], strict=True))
    real = _real_sets(a, b)
    if real is not None:
        return real
    if kinds <= {"list", "set"}:
        return _unordered(x, y)
    if "order" in kinds and kinds == {"order"}:
        return _orders(x, y)
    if kinds <= {"list", "set", "scalar"} and "scalar" in kinds:
        items, other = (x[1], b) if x[0] != "scalar" else (y[1], a)
        items = _distinct(list(items)) if "set" in kinds else items
        return len(items) == 1 and compare(items[0], other)
    if kinds == {"set", "tuple"}:
        return len(x[1]) == 1 and compare(x[1][0], b)
    if kinds == {"join"}:
        return x[1] == y[1] and bool(_both_ways(x[2:], y[2:]))
    return False


def _all(verdicts) -> bool | None:
    """False when one is, else None when one is unknown."""
    unknown = False
    for verdict in verdicts:
        if verdict is False:
            return False
        unknown = unknown or verdict is None
    return None if unknown else True


def _clock(time: tuple) -> set[int]:
    """Seconds of the day a time may mean; without a.m. or p.m. both halves, beside one that has it."""
    half = 43_200
    hours = time[1] % half if time[1] < 13 * 3600 else time[1]
    return {"a": {hours}, "p": {hours + half if hours < half else hours}}.get(time[2], {time[1], hours, hours + half})


def _times(a: Answer, b: Answer) -> bool | None:
    """A time may be a ratio: 7:32 and S:T = 14:64."""
    time, other = (a, b) if a.value[0] == "time" else (b, a)
    if other.value[0] not in ("ratio", "scalar") or time.value[2] or time.value[3].count(":") > 1:
        return False
    parts = tuple(Answer(("scalar", ("num", Fraction(int(p))))) for p in time.value[3].split(":"))
    if ":0" in time.value[3]:
        return False
    return _values(Answer(("ratio", parts)), other)


def _scalars(a: Answer, b: Answer) -> bool | None:
    x, y = a.value[1], b.value[1]
    if x[0] == y[0] == "sym" and len(x[1]) == len(y[1]) == 1 and x[1].lower() == y[1].lower():
        return True  # choices: c is C
    return _algebra.equal(x, y)


def _grids(x: tuple, y: tuple) -> bool | None:
    if [len(row) for row in x] != [len(row) for row in y]:
        return False
    return _all(compare(c, d) for row, other in zip(x, y, strict=True) for c, d in zip(row, other, strict=True))


def _tuples(x: tuple, y: tuple) -> bool | None:
    """Order and brackets matter; square brackets of three and more are no interval, they are a tuple."""
    if len(x[2]) != len(y[2]):
        return False
    brackets = {(x[1], x[3]), (y[1], y[3])}
    if len(brackets) > 1 and ("=", "=") not in brackets and (len(x[2]) == 2 or brackets != {("(", ")"), ("[", "]")}):
        return False
    return _all(compare(c, d) for c, d in zip(x[2], y[2], strict=True))


def _ratios(x: tuple, y: tuple) -> bool | None:
    """Proportional parts: 2:4 is 1:2."""
    if len(x) != len(y):
        return False
    if any(item.value[0] != "scalar" for item in (*x, *y)):
        return _all(compare(c, d) for c, d in zip(x, y, strict=True))
    left, right = [i.value[1] for i in x], [i.value[1] for i in y]
    return _all(
        _algebra.equal(("*", (left[0], right[i])), ("*", (right[0], left[i]))) for i in range(1, len(left))
    )  # crosswise, so that a part may be zero


def _unordered(x: tuple, y: tuple) -> bool | None:
    """Lists and sets: the same items in any order; only a set forgets how often one occurs."""
    left, right = list(x[1]), list(y[1])
    if max(len(left), len(right)) > MAX_MATCH:
        return left == right
    if "set" in (x[0], y[0]) or all(item.value[0] == "tuple" for item in left + right):
        left, right = _distinct(left), _distinct(right)
    if len(left) != len(right):
        return False
    unknown = False
    for item in left:
        verdicts = [compare(item, other) for other in right]
        if True in verdicts:
            del right[verdicts.index(True)]
        elif None in verdicts:
            del right[verdicts.index(None)]
            unknown = True
        else:
            return False
    return None if unknown else True


def _distinct(items: list[Answer]) -> list[Answer]:
    kept: list[Answer] = []
    for item in items:
        if not any(compare(item, other) for other in kept):
            kept.append(item)
    return kept


def _both_ways(x: tuple, y: tuple) -> bool:
    return all(compare(c, d) for c, d in zip(x, y, strict=True)) or all(
        compare(c, d) for c, d in zip(x, reversed(y), strict=True)
    )


def _equations(a: Answer, b: Answer) -> bool | None:
    left, right = _as_equation(a), _as_equation(b)
    if left is None or right is None:
        return False
    return bool(_proportional(left, right))


_FLIP = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le", "\\ne": "\\ne"}


def _orders(x: tuple, y: tuple) -> bool | None:
    """Chains of inequalities, link by link, from either end."""
    if len(x[2]) != len(y[2]):
        return False

    def links(value: tuple, backwards: bool) -> list[tuple]:
        trees, signs = value[1], value[2]
        pairs = [(trees[i], trees[i + 1], sign) for i, sign in enumerate(signs)]
        return [(r, q, _FLIP[s]) for q, r, s in reversed(pairs)] if backwards else pairs

    def same(p: tuple, q: tuple) -> bool:
        if q[2] not in (p[2], _FLIP[p[2]]):
            return False
        direction = _proportional(p, q)
        return bool(direction) and (p[2] == "\\ne" or (q[2] == p[2]) == (direction > 0))

    return any(all(same(p, q) for p, q in zip(links(x, False), links(y, way), strict=True)) for way in (False, True))


# --- sets of real numbers: intervals, inequalities, unions -------------------------------------------------------------


Piece = tuple[float, bool, float, bool, tuple, tuple]  # low, closed, high, closed, trees of both ends


def _float(tree: tuple) -> float | None:
    if tree == _INFINITY:
        return float("inf")
    if tree == ("*", (("num", Fraction(-1)), _INFINITY)):
        return float("-inf")
    if _algebra.symbols(tree):
        return None
    value = _algebra.sample_value(tree, 0)
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
    centre = [i for i, tree in enumerate(trees) if _algebra.symbols(tree)]
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
        sign = signs[i - 1] if i > at else _FLIP[signs[i]]  # name sign end
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


def _real_sets(a: Answer, b: Answer) -> bool | None:
    """Equality of two sets of reals; None when one of them is none."""
    if not {a.value[0], b.value[0]} & {"order", "join", "reals"} and a.value[0] == b.value[0]:
        return None
    one, two = _pieces(a), _pieces(b)
    if one is None or two is None:
        return None
    if one[0] and two[0] and not _names_equal(one[0], two[0]) and not (one[0].endswith("()") or two[0].endswith("()")):
        return False
    left, right = _merged(one[1]), _merged(two[1])
    return len(left) == len(right) and all(
        p[1] == q[1] and p[3] == q[3] and bool(_algebra.equal(p[4], q[4])) and bool(_algebra.equal(p[5], q[5]))
        for p, q in zip(left, right, strict=True)
    )
