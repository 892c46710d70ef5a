"""Whether two readings say the same: True, False, or None for what only math-verify can tell."""

from __future__ import annotations

from fractions import Fraction

from corelib import _answer_algebra as algebra
from corelib._answer_parser import negative, parse
from corelib._answer_reading import Answer
from corelib._answer_reals import FLIP, names_equal, real_sets
from corelib._answer_tokens import Unreadable, tokens

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
    if a.name and b.name and not names_equal(a.name, b.name):
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


def _named_differently(a: Answer, b: Answer) -> bool:
    """x = y + 2 and y = x - 2 are one equation; (x, y) = (3, 2) and (y, x) = (2, 3) are one point."""
    if a.value[0] == b.value[0] == "tuple" and len(a.value[2]) == len(b.value[2]):
        left = dict(zip(a.name.split(","), a.value[2], strict=False))
        right = dict(zip(b.name.split(","), b.value[2], strict=False))
        return left.keys() == right.keys() and all(compare(left[n], right[n]) for n in left)
    if a.value[0] == b.value[0] == "scalar":
        equations = [_as_equation(answer) for answer in (a, b)]
        if all(equations):
            variables = [algebra.symbols(t[0]) | algebra.symbols(t[1]) for t in equations]
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
    if algebra.symbols(one) != algebra.symbols(two):
        return 0
    if not algebra.symbols(one):
        return 1 if algebra.equal(one, two) else 0
    ratio = ("/", one, two)
    values = [algebra.sample_value(ratio, k) for k in (0, 1)]
    if any(v is None or not v or abs(v.imag) > 1e-9 * abs(v) for v in values) or abs(
        values[0] - values[1]
    ) > 1e-6 * abs(values[0]):
        return 0
    constant = Fraction(values[0].real).limit_denominator(10**6)
    factor = (
        ("num", constant) if abs(constant - values[0].real) < 1e-12 * abs(values[0]) else algebra.at_sample(ratio, 0)
    )
    if algebra.equal(one, ("*", (factor, two))):
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
            return algebra.equal(("/", first.value[1], rest[0].value[1]), y[1])
        return False
    if kinds == {"list", "tuple"}:
        return y[1] == "=" and len(x[1]) == len(y[2]) and _all(compare(c, d) for c, d in zip(x[1], y[2], strict=True))
    real = real_sets(a, b)
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
    return algebra.equal(x, y)


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
        algebra.equal(("*", (left[0], right[i])), ("*", (right[0], left[i]))) for i in range(1, len(left))
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


def _orders(x: tuple, y: tuple) -> bool | None:
    """Chains of inequalities, link by link, from either end."""
    if len(x[2]) != len(y[2]):
        return False

    def links(value: tuple, backwards: bool) -> list[tuple]:
        trees, signs = value[1], value[2]
        pairs = [(trees[i], trees[i + 1], sign) for i, sign in enumerate(signs)]
        return [(r, q, FLIP[s]) for q, r, s in reversed(pairs)] if backwards else pairs

    def same(p: tuple, q: tuple) -> bool:
        if q[2] not in (p[2], FLIP[p[2]]):
            return False
        direction = _proportional(p, q)
        return bool(direction) and (p[2] == "\\ne" or (q[2] == p[2]) == (direction > 0))

    return any(all(same(p, q) for p, q in zip(links(x, False), links(y, way), strict=True)) for way in (False, True))
