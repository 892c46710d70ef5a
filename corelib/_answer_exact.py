"""Exact rational value of an expression tree, with guards of size before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache

MAX_BITS = 60_000  # of an exact integer; 2006! has 19,100


MAX_FACTORIAL = 3_000


MAX_TERMS = 300  # of a sum or product written with bounds


TOLERANCE = Fraction(1, 10**6)


class TooBig(ArithmeticError):
    """A power, factorial or product beyond the guards."""


def nodes(tree: tuple) -> Iterator[tuple]:
    """Every node of a tree, the tree first."""
    yield tree
    for part in tree[1:]:
        if isinstance(part, tuple) and part:
            if isinstance(part[0], str):
                yield from nodes(part)
            else:
                for node in part:
                    yield from nodes(node)


@lru_cache(maxsize=16_384)
def symbols(tree: tuple) -> frozenset[str]:
    """Names of the free variables and unknown functions of a tree; pi, e, i and infinity are none."""
    names = {n[1] for n in nodes(tree) if n[0] == "sym"} - {"\\pi", "e", "i", "I", "\\infty"}
    return frozenset(names | {n[1] + "()" for n in nodes(tree) if n[0] == "fn" and len(n[1].rstrip("'")) == 1})


@lru_cache(maxsize=16_384)
def has_decimal(tree: tuple) -> bool:
    """Whether a tree holds a decimal number with a fractional part."""
    return any(n[0] == "dec" for n in nodes(tree))


def _root(value: int, degree: int) -> int | None:
    """Exact integer root, None when there is none."""
    if value.bit_length() > MAX_BITS or not 2 <= degree <= 64:
        return None
    root = math.isqrt(value) if degree == 2 else round(value ** (1 / degree)) if value < 2**900 else -1
    return root if root >= 0 and root**degree == value else None


def _power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1:
        if base < 0 and exponent.denominator % 2 == 0:
            return None
        top, bottom = (_root(abs(n), exponent.denominator) for n in (base.numerator, base.denominator))
        if top is None or bottom is None:
            return None
        base, exponent = Fraction(top if base >= 0 else -top, bottom), Fraction(exponent.numerator)
    n = exponent.numerator
    if n < 0 and not base:
        raise ZeroDivisionError
    if base in (0, 1):
        return base if n else Fraction(1)
    if base == -1:
        return Fraction(-1 if n % 2 else 1)
    size = max(abs(base.numerator), base.denominator).bit_length()
    if abs(n) * size > MAX_BITS:
        raise TooBig
    return base**n


def _small(value: Fraction | None, limit: int) -> int | None:
    """Integer in 0..limit, None when it is no such integer; raises TooBig above."""
    if value is None or value.denominator != 1 or value < 0:
        return None
    if value > limit:
        raise TooBig
    return int(value)


def _exact_function(name: str, args: list[Fraction]) -> Fraction | None:
    x = args[0]
    if name == "factorial":
        n = _small(x, MAX_FACTORIAL)
        return None if n is None else Fraction(math.factorial(n))
    if name == "binom" and len(args) == 2:
        n, k = _small(x, 10**6), _small(args[1], 10**6)
        if n is None or k is None:
            return None
        if min(k, n - k) > MAX_FACTORIAL:
            raise TooBig
        return Fraction(math.comb(n, k))
    if name == "abs":
        return abs(x)
    if name in ("floor", "ceil"):
        return Fraction(math.floor(x) if name == "floor" else math.ceil(x))
    if name in ("max", "min"):
        return max(args) if name == "max" else min(args)
    if name == "mod" and len(args) == 2 and args[1]:
        return x - args[1] * math.floor(x / args[1])
    if name in ("gcd", "lcm") and all(a.denominator == 1 for a in args):
        return Fraction((math.gcd if name == "gcd" else math.lcm)(*(int(a) for a in args)))
    return None


def exact(tree: tuple) -> Fraction | None:
    """Rational value of a tree, None when it has none that is found exactly; raises TooBig or ZeroDivisionError."""
    kind = tree[0]
    if kind in ("num", "dec"):
        return tree[1]
    if kind == "sym":
        return None
    if kind == "fn" and tree[1] in ("sum", "prod"):
        expanded = expand(tree)
        return None if expanded is None else exact(expanded)
    parts = [exact(part) for part in (tree[1] if kind in "+*" else tree[2] if kind == "fn" else tree[1:])]
    if any(part is None for part in parts):
        return None
    if kind == "+":
        return sum(parts, Fraction(0))
    if kind == "*":
        if sum(p.numerator.bit_length() + p.denominator.bit_length() for p in parts) > MAX_BITS:
            raise TooBig
        return math.prod(parts, start=Fraction(1))
    if kind == "/":
        return parts[0] / parts[1]
    if kind == "^":
        return _power(*parts)
    if kind == "fn":
        return _exact_function(tree[1], parts)
    return None


def substitute(tree: tuple, name: str, value: tuple) -> tuple:
    """The tree with a variable replaced."""
    if tree == ("sym", name):
        return value
    if tree[0] in ("num", "dec", "sym"):
        return tree
    return tuple(
        substitute(p, name, value) if isinstance(p, tuple) and p and isinstance(p[0], str)
        else tuple(substitute(q, name, value) for q in p) if isinstance(p, tuple) else p
        for p in tree
    )  # fmt: skip


def expand(tree: tuple) -> tuple | None:
    """A sum or product with constant bounds, written out; None when the bounds are symbolic or far apart."""
    (_, variable), lower, upper, body = tree[2]
    if upper == ("sym", "\\infty"):
        return None
    first, last = exact(lower), exact(upper)
    if first is None or last is None or first.denominator != 1 or last - first >= MAX_TERMS:
        return None
    terms = tuple(substitute(body, variable, ("num", Fraction(n))) for n in range(int(first), math.floor(last) + 1))
    if not terms:
        return ("num", Fraction(0 if tree[1] == "sum" else 1))
    return ("+" if tree[1] == "sum" else "*", terms)


@lru_cache(maxsize=16_384)
def bounds(tree: tuple) -> frozenset[str]:
    """Variables in the bounds of the sums and products of a tree."""
    big = [n for n in nodes(tree) if n[0] == "fn" and n[1] in ("sum", "prod")]
    return frozenset().union(*(symbols(bound) for n in big for bound in n[2][1:3])) - {n[2][0][1] for n in big}


@lru_cache(maxsize=16_384)
def exact_or_none(tree: tuple) -> Fraction | None:
    """`exact` without errors: None as well for a division by zero; raises TooBig."""
    try:
        return exact(tree)
    except ZeroDivisionError:
        return None


def rationals_equal(a: tuple, b: tuple, x: Fraction, y: Fraction) -> bool:
    """Equality of two rational values, exact or within the tolerance of decimals (convention: see `corelib.answers`)."""
    if x == y:
        return True
    tolerant_a, tolerant_b = has_decimal(a), has_decimal(b)
    if not (tolerant_a or tolerant_b):
        return False
    gap = abs(x - y)
    if tolerant_a and tolerant_b:
        if a[0] == b[0] == "dec" and gap >= Fraction(1, 10 ** min(a[2], b[2])):
            return gap <= abs(x) / 10**12  # two roundings differ by less than a unit of the shorter, or are float noise
        return gap <= (TOLERANCE if a[0] == b[0] == "dec" else TOLERANCE / 1000) * max(abs(x), abs(y))
    return gap <= TOLERANCE * abs(y if tolerant_a else x)
