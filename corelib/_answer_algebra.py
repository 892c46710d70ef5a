"""Whether two expression trees are equal: exact rationals where possible, else many digits at a few points.

Floats at a point refute most unequal pairs; equality is confirmed with far more digits than any cancellation in an
answer can hide (polynomial identity testing). Sizes are guarded before anything is computed.
"""

from __future__ import annotations

import hashlib
import math
import threading
from fractions import Fraction
from functools import lru_cache

from mpmath import MPContext, fp

from corelib._answer_exact import (
    TooBig,
    bounds,
    exact_or_none,
    expand,
    has_decimal,
    nodes,
    rationals_equal,
    substitute,
    symbols,
)

MAX_EXPONENT = 200_000  # bits of a power evaluated in floating point of many digits


_LOCAL = threading.local()


def _sample(name: str, k: int) -> Fraction:
    """Value of a variable at sample point k: between 0.3 and 2.3, from k = 4 on in growing ranges, for step functions;
    negative for all variables at k = 2 and for some at 3."""
    digest = hashlib.blake2b(f"{name}|{k}".encode(), digest_size=8).digest()
    value = Fraction(3, 10) + Fraction(int.from_bytes(digest[:4]) % 2_000_003, 1_000_001)
    if k >= 4:
        return value * (k - 2) ** 2
    return -value if k == 2 or (k == 3 and digest[4] & 1) else value


_ANALYTIC = set("sin cos tan sec csc cot sinh cosh tanh asin acos atan asinh acosh atanh".split())


_STEPS = {"floor", "ceil", "mod", "gcd", "lcm"}


class _Evaluator:
    """Value of a tree at one sample point in one arithmetic of mpmath (floats or many digits)."""

    def __init__(self, ctx, k: int):
        self.ctx, self.k = ctx, k
        self.scale = 0.0  # largest term added, to judge what cancellation can leave
        self.opaque = False  # a function that is compared by name and argument only
        self.branch = False  # a root or logarithm of a negative number was taken

    def rational(self, value: Fraction):
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > 1000 and self.ctx.prec == 53:
            raise OverflowError
        return self.ctx.mpf(value.numerator) / value.denominator

    def __call__(self, tree: tuple):
        ctx, kind = self.ctx, tree[0]
        if kind in ("num", "dec"):
            return self.rational(tree[1])
        if kind == "sym":
            name = tree[1]
            if name == "\\pi":
                return +ctx.pi
            if name == "e":
                return +ctx.e
            if name in ("i", "I"):
                return ctx.mpc(0, 1)
            if name == "\\infty":
                raise ZeroDivisionError
            return self.rational(_sample(name, self.k))
        if kind == "+":
            terms = [self(term) for term in tree[1]]
            self.scale = max(self.scale, *(abs(t) for t in terms))
            return sum(terms[1:], terms[0])
        if kind == "*":
            value = self(tree[1][0])
            for factor in tree[1][1:]:
                value = value * self(factor)
            return value
        if kind == "/":
            return self(tree[1]) / self(tree[2])
        if kind == "^":
            return self.power(tree[1], tree[2])
        if kind == "deg":
            return self(tree[1])
        return self.function(tree[1], tree[2])

    def power(self, base_tree: tuple, exponent_tree: tuple):
        ctx = self.ctx
        exponent = exact_or_none(exponent_tree)
        base = self(base_tree)
        power = self(exponent_tree) if exponent is None else None
        size = abs(power) if power is not None else abs(exponent)
        if size > 1 and (size > 10**9 or size * abs(math.log2(float(abs(base)) or 1)) > MAX_EXPONENT):
            raise TooBig
        if power is not None:
            self.branch = self.branch or not ctx.im(base) and ctx.re(base) < 0
            return ctx.power(base, power)
        if exponent.denominator == 1:
            return base ** int(exponent)
        if exponent.denominator % 2 and not ctx.im(base) and ctx.re(base) < 0:  # the real cube root of -8 is -2
            root = ctx.power(-ctx.re(base), ctx.mpf(exponent.numerator) / exponent.denominator)
            return -root if exponent.numerator % 2 else root
        self.branch = self.branch or not ctx.im(base) and ctx.re(base) < 0
        if exponent == Fraction(1, 2):
            return ctx.sqrt(base)
        return ctx.power(base, ctx.mpf(exponent.numerator) / exponent.denominator)

    def function(self, name: str, arg_trees: tuple):
        ctx = self.ctx
        if name in ("sum", "prod"):
            expanded = expand(("fn", name, arg_trees))
            if expanded is not None:
                return self(expanded)
        args = [self(arg) for arg in arg_trees]
        x = args[0]
        if name in _ANALYTIC:
            if abs(x) > 10**9:
                raise TooBig
            return getattr(ctx, name)(x)
        if name in ("ln", "log"):
            self.branch = self.branch or not ctx.im(x) and ctx.re(x) < 0
        if name == "ln":
            return ctx.log(x)
        if name == "log" and len(args) == 2:
            return ctx.log(x) / ctx.log(args[1])
        if name == "abs":
            return abs(x)
        if name == "binom" and len(args) == 2 and max(abs(a) for a in args) < 10**6:
            return ctx.binomial(*args)
        if name == "factorial" and abs(x) < 10**6:
            return ctx.factorial(x)
        if all(not ctx.im(a) for a in args):
            if name in ("floor", "ceil"):
                return getattr(ctx, name)(x)
            if name in ("max", "min"):
                return max(args) if name == "max" else min(args)
            if name == "mod" and len(args) == 2:
                return x - args[1] * ctx.floor(x / args[1])
        if name in ("factorial", "binom"):
            raise TooBig
        self.opaque = self.opaque or len(name) > 1
        text = name + "|".join(f"{float(ctx.re(a)):.9e},{float(ctx.im(a)):.9e}" for a in args)
        return self.rational(_sample(text, self.k))


def equal(a: tuple, b: tuple) -> bool | None:
    """Whether two trees have the same value for all values of their variables; None when it cannot be told here.

    Without decimals the comparison is exact; with a decimal on at least one side it is to 1e-6 relative.
    """
    if a == b:
        return True
    infinite = [t in (("sym", "\\infty"), ("*", (("num", Fraction(-1)), ("sym", "\\infty")))) for t in (a, b)]
    if any(infinite):
        return False
    try:
        if names := bounds(a) | bounds(b):  # a sum to n is compared at a few integers n
            for n in (2, 3, 6):
                one, two = a, b
                for name in names:
                    one, two = (substitute(t, name, ("num", Fraction(n))) for t in (one, two))
                if (verdict := equal(one, two)) is not True:
                    return verdict
            return True
        if any(n[0] == "fn" and n[1] in ("sum", "prod") and expand(n) is None for tree in (a, b) for n in nodes(tree)):
            return None  # infinite ones are for sympy
        x, y = exact_or_none(a), exact_or_none(b)
        if x is not None and y is not None:
            return rationals_equal(a, b, x, y)
        return _equal_at_samples(a, b)
    except (TooBig, OverflowError, RecursionError):
        return False


@lru_cache(maxsize=65_536)
def _float_value(tree: tuple, k: int) -> tuple | None:
    """(value, scale, opaque, branch) in double precision at one sample point, None where it does not exist."""
    evaluator = _Evaluator(fp, k)
    try:
        value = evaluator(tree)
        if not math.isfinite(abs(value)):
            return None
        return value, max(evaluator.scale, abs(value)), evaluator.opaque, evaluator.branch
    except (ArithmeticError, ValueError, TypeError, NotImplementedError, AttributeError):  # fp has no atanh
        return None


def sample_value(tree: tuple, k: int) -> complex | None:
    """Value at sample point k in double precision, None where there is none."""
    value = _float_value(tree, k)
    return None if value is None else complex(value[0])


def at_sample(tree: tuple, k: int) -> tuple | None:
    """The tree with its variables replaced by their values at sample point k, so that it is a constant."""
    for name in symbols(tree):
        tree = substitute(tree, name, ("num", _sample(name, k)))
    return tree


def _digits(*trees: tuple) -> int:
    """Digits to work with: 60 and as many as the largest integer has."""
    largest = 0
    for tree in trees:
        for node in nodes(tree):
            if node[0] in ("num", "dec"):
                largest = max(largest, node[1].numerator.bit_length(), node[1].denominator.bit_length())
            elif node[0] in ("^", "fn"):
                value = exact_or_none(node)
                if value is not None:
                    largest = max(largest, value.numerator.bit_length(), value.denominator.bit_length())
    if largest > 20_000:
        raise TooBig
    return 60 + largest * 3 // 10


def _equal_at_samples(a: tuple, b: tuple) -> bool | None:
    names = symbols(a) | symbols(b)
    steps = any(n[0] == "fn" and n[1] in _STEPS for tree in (a, b) for n in nodes(tree))
    points = range(16 if steps else 4) if names else range(1)
    decimals = has_decimal(a) + has_decimal(b)
    tolerance = (None, 1e-6, 1e-9)[decimals]
    usable = []
    opaque = False
    for k in points:
        va, vb = _float_value(a, k), _float_value(b, k)
        if va is None or vb is None:
            if k < 2 or k >= 4:
                usable.append(k)  # floats may overflow where more digits do not
            continue
        opaque = opaque or va[2] or vb[2]
        if k in (2, 3) and (va[3] or vb[3]):
            continue  # answers assume variables for which their roots and logarithms are real
        gap = abs(va[0] - vb[0])
        if gap > 2e-6 * max(abs(va[0]), abs(vb[0])) and gap > 1e-9 * max(va[1], vb[1]):
            return None if opaque else False
        usable.append(k)
    if not usable:
        return False
    verdicts = [_equal_in_digits(a, b, k, tolerance) for k in usable]
    verdicts = [v for v in verdicts if v is not None]
    if not verdicts:
        return False  # no value anywhere, as 3/0
    return True if all(verdicts) else (None if opaque else False)


def _context() -> MPContext:
    """The many-digit arithmetic of this thread; mpmath.mp itself is shared between threads and with sympy."""
    if not hasattr(_LOCAL, "ctx"):
        _LOCAL.ctx = MPContext()
    return _LOCAL.ctx


def _equal_in_digits(a: tuple, b: tuple, k: int, tolerance: float | None) -> bool | None:
    """Equality at one sample point with many digits; None where one side has no value."""
    digits = _digits(a, b)
    ctx = _context()
    ctx.dps = digits
    left, right = _Evaluator(ctx, k), _Evaluator(ctx, k)
    try:
        va, vb = left(a), right(b)
    except TooBig:
        raise
    except (ArithmeticError, ValueError, TypeError, NotImplementedError):
        return None
    gap, size = abs(va - vb), max(abs(va), abs(vb))
    if not ctx.isfinite(size):
        return None
    if tolerance is not None:
        return bool(gap <= tolerance * size)
    return bool(gap <= ctx.mpf(10) ** (20 - digits) * max(size, left.scale, right.scale))


CACHED = (symbols, has_decimal, bounds, exact_or_none, _float_value)
