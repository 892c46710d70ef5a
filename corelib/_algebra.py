"""Whether two expression trees are equal: exact rationals where possible, else many digits at a few points.

Floats at a point refute most unequal pairs; equality is confirmed with far more digits than any cancellation in an
answer can hide (polynomial identity testing). Sizes are guarded before anything is computed.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache

from mpmath import MPContext, fp

MAX_BITS = 60_000  # of an exact integer; 2006! has 19,100
MAX_FACTORIAL = 3_000
MAX_EXPONENT = 200_000  # bits of a power evaluated in floating point of many digits
MAX_TERMS = 300  # of a sum or product written with bounds
TOLERANCE = Fraction(1, 10**6)

_LOCAL = threading.local()


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
def _bounds(tree: tuple) -> frozenset[str]:
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
        if bounds := _bounds(a) | _bounds(b):  # a sum to n is compared at a few integers n
            for n in (2, 3, 6):
                one, two = a, b
                for name in bounds:
                    one, two = (substitute(t, name, ("num", Fraction(n))) for t in (one, two))
                if (verdict := equal(one, two)) is not True:
                    return verdict
            return True
        x, y = exact_or_none(a), exact_or_none(b)
        if x is not None and y is not None:
            return rationals_equal(a, b, x, y)
        return _equal_at_samples(a, b)
    except (TooBig, OverflowError, RecursionError):
        return False


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


CACHED = (symbols, has_decimal, _bounds, exact_or_none, _float_value)
