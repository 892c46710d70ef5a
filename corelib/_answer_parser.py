r"""From the tokens of an answer to an expression tree, by precedence climbing.

A tree is a nested tuple, so it can be hashed and compared:
("num", Fraction), ("dec", Fraction, places), ("sym", name), ("+", terms), ("*", factors), ("/", a, b), ("^", base, exponent),
("fn", name, args), ("deg", x). Nothing here evaluates anything; `_answer_algebra` does.
"""

from __future__ import annotations

from fractions import Fraction

from corelib._answer_tokens import MAX_DEPTH, Token, Unreadable, number

FUNCTIONS = {"sin", "cos", "tan", "sec", "csc", "cot", "asin", "acos", "atan", "sinh", "cosh", "tanh", "ln", "log", "exp",
             "gcd", "lcm", "max", "min", "floor", "ceil", "abs", "det", "arg", "Re", "Im"}  # fmt: skip


_TRIG = {"sin", "cos", "tan", "sec", "csc", "cot"}


_HARD = {"int", "iint", "oint", "lim", "sum", "prod", "begin", "end", "partial", "nabla", "cup", "cap", "setminus", "wedge",
         "vee", "to", "in", "notin", "subset", "subseteq", "mathbb", "forall", "exists", "newline"}  # fmt: skip


_BIG = {"sum", "prod"}


_CLOSERS = {")", "]", "}", "\\}", "\\rfloor", "\\rceil", "&", ",", ";", ":"}


_OPAQUE_FUNCTIONS = set("fghFG")


_MINUS_ONE = ("num", Fraction(-1))


def negative(node: tuple) -> tuple:
    """The tree of -x."""
    if node[0] == "num":
        return ("num", -node[1])
    if node[0] == "dec":
        return ("dec", -node[1], node[2])
    return ("*", (_MINUS_ONE, node))


def radians(node: tuple) -> tuple:
    """The tree with degrees turned into radians, as the argument of a trigonometric function needs it."""
    if node[0] == "deg":
        return ("*", (node[1], ("/", ("sym", "\\pi"), ("num", Fraction(180)))))
    return _map(node, radians)


def without_degrees(node: tuple) -> tuple:
    """The tree with degree signs dropped, as outside of a function the degree is a unit."""
    return without_degrees(node[1]) if node[0] == "deg" else _map(node, without_degrees)


def _map(node: tuple, function) -> tuple:
    if node[0] in ("num", "dec", "sym"):
        return node
    return tuple(
        function(part) if isinstance(part, tuple) and part and isinstance(part[0], str)
        else tuple(function(p) for p in part) if isinstance(part, tuple) else part
        for part in node
    )  # fmt: skip


class _Parser:
    """Precedence climbing over a list of tokens: sums, products, powers, postfix signs, functions."""

    def __init__(self, toks: list[Token]):
        self.toks = toks
        self.at = 0
        self.depth = 0
        self.bars = 0

    def peek(self, ahead: int = 0) -> str:
        return self.toks[self.at + ahead][1] if self.at + ahead < len(self.toks) else ""

    def kind(self, ahead: int = 0) -> str:
        return self.toks[self.at + ahead][0] if self.at + ahead < len(self.toks) else ""

    def expect(self, token: str) -> None:
        if self.peek() != token:
            raise Unreadable(f"expected {token}")
        self.at += 1

    def sum(self) -> tuple:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("too deep")
        terms = [self.product()]
        while self.peek() in ("+", "-"):
            sign = self.peek()
            self.at += 1
            term = self.product()
            terms.append(negative(term) if sign == "-" else term)
        self.depth -= 1
        return terms[0] if len(terms) == 1 else ("+", tuple(terms))

    def product(self) -> tuple:
        node = self.unary()
        while True:
            token = self.peek()
            if token == "*":
                self.at += 1
                node = self.times(node, self.unary())
            elif token == "/":
                self.at += 1
                node = ("/", node, self.unary())
            elif token == "\\bmod":
                self.at += 1
                node = ("fn", "mod", (node, self.unary()))
            elif self.starts_factor():
                node = self.times(node, self.power())
            else:
                return node

    @staticmethod
    def times(a: tuple, b: tuple) -> tuple:
        return ("*", (a[1] if a[0] == "*" else (a,)) + (b[1] if b[0] == "*" else (b,)))

    def starts_factor(self) -> bool:
        kind, token = self.kind(), self.peek()
        if kind in ("num", "let"):
            return True
        if kind == "cmd":
            return token not in _CLOSERS and token not in (
                "\\le",
                "\\ge",
                "\\ne",
                "\\approx",
                "\\pm",
                "\\mp",
                "\\pmod",
                "\\circ",
            )
        return token in ("(", "[", "{") or (token == "|" and not self.bars)

    def unary(self) -> tuple:
        if self.peek() == "-":
            self.at += 1
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise Unreadable("too deep")
            node = negative(self.unary())
            self.depth -= 1
            return node
        if self.peek() == "+":
            self.at += 1
            return self.unary()
        return self.power()

    def power(self) -> tuple:
        node = self.primary()
        while True:
            token = self.peek()
            if token == "^":
                self.at += 1
                if self.peek() == "\\circ" or (self.peek() == "{" and self.peek(1) == "\\circ" and self.peek(2) == "}"):
                    self.at += 1 if self.peek() == "\\circ" else 3
                    node = ("deg", node)
                elif self.peek() == "'" or self.peek() == "\\prime":
                    raise Unreadable("prime")
                else:
                    node = ("^", node, self.exponent())
            elif token == "!":
                self.at += 1
                node = ("fn", "factorial", (node,))
            elif token == "\\circ":
                self.at += 1
                node = ("deg", node)
            else:
                return node

    def exponent(self) -> tuple:
        if self.peek() == "-":
            self.at += 1
            return negative(self.exponent())
        if self.peek() == "+":
            self.at += 1
        if self.peek() in ("{", "("):
            return self.primary()
        node = self.primary()
        if self.peek() == "^":  # 2^3^4 is 2^(3^4)
            self.at += 1
            node = ("^", node, self.exponent())
        return node

    def group(self, opener: str, closer: str) -> tuple:
        self.expect(opener)
        bars, self.bars = self.bars, 0
        node = self.sum()
        self.bars = bars
        self.expect(closer)
        return node

    def argument(self) -> tuple:
        """Argument of a command without braces: one digit, letter or command, as in TeX."""
        if self.peek() == "{":
            return self.group("{", "}")
        if self.kind() == "num" and len(self.peek()) > 1 and self.peek().isdigit():
            digits = self.peek()
            self.toks = [*self.toks[: self.at], ("num", digits[0]), ("num", digits[1:]), *self.toks[self.at + 1 :]]
        return self.primary()

    def subscript(self) -> str:
        """Text of the subscript after a name; the underscore is already read."""
        if self.peek() != "{":
            self.at += 1
            return self.toks[self.at - 1][1] if self.at <= len(self.toks) else ""
        depth, parts = 0, []
        while self.at < len(self.toks):
            token = self.peek()
            self.at += 1
            depth += (token == "{") - (token == "}")
            parts.append(token)
            if not depth:
                return "".join(parts[1:-1])
        raise Unreadable("unclosed subscript")

    def primary(self) -> tuple:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("too deep")
        kind, token = self.kind(), self.peek()
        if kind == "num":
            node = self.numeral()
        elif kind == "let":
            node = self.letter()
        elif kind == "cmd":
            node = self.command()
        elif token == "{":
            node = self.group("{", "}")
        elif token == "(":
            node = self.group("(", ")")
        elif token == "[":
            node = self.group("[", "]")
        elif token == "|":
            self.at += 1
            self.bars += 1
            node = ("fn", "abs", (self.sum(),))
            self.bars -= 1
            self.expect("|")
        else:
            raise Unreadable(f"unexpected {token!r}")
        self.depth -= 1
        return node

    def numeral(self) -> tuple:
        text = self.peek()
        self.at += 1
        if self.peek() == "\\overline" and self.kind(2) == "num" and self.peek(1) == "{" and self.peek(3) == "}":
            period = self.peek(2)
            if not period.isdigit() or len(text) + len(period) > 100:
                raise Unreadable("period")
            self.at += 4
            places = len(text.partition(".")[2])
            return ("num", Fraction(text) + Fraction(int(period), (10 ** len(period) - 1) * 10**places))
        node = number(text)
        if self.peek() == "_":
            raise Unreadable("base")
        if self.peek() == "\\frac" and text.isdigit():
            start = self.at
            fraction = self.primary()
            if (
                fraction[0] == "/"
                and fraction[1][0] == fraction[2][0] == "num"
                and 0 <= fraction[1][1] < fraction[2][1]
            ):
                return ("num", node[1] + fraction[1][1] / fraction[2][1])  # a mixed number: 1\frac12
            self.at = start
        return node

    def letter(self) -> tuple:
        name = self.peek()
        self.at += 1
        while self.peek() == "'":
            name += "'"
            self.at += 1
        if self.peek() == "_":
            self.at += 1
            name += "_" + self.subscript()
        if self.peek() == "(" and name[0] in _OPAQUE_FUNCTIONS:
            return ("fn", name, self.arguments())
        return ("sym", name)

    def arguments(self) -> tuple:
        closer = ")" if self.peek() == "(" else "\\}"
        self.at += 1
        nodes = [self.sum()]
        while self.peek() == ",":
            self.at += 1
            nodes.append(self.sum())
        self.expect(closer)
        return tuple(nodes)

    def command(self) -> tuple:
        name = self.peek()[1:]
        self.at += 1
        if name == "frac":
            top = self.argument()
            return ("/", top, self.argument())
        if name == "sqrt":
            index = self.group("[", "]") if self.peek() == "[" else ("num", Fraction(2))
            body = self.primary()
            return ("^", body, ("/", ("num", Fraction(1)), index))
        if name == "binom":
            top = self.argument()
            return ("fn", "binom", (top, self.argument()))
        if name in FUNCTIONS:
            return self.function(name)
        if name in ("lfloor", "lceil"):
            node = self.sum()
            self.expect("\\rfloor" if name == "lfloor" else "\\rceil")
            return ("fn", name[1:], (node,))
        if name == "text":
            return self.word()
        if name in (
            "mathbf",
            "mathcal",
            "vec",
            "hat",
            "overline",
            "underline",
            "widehat",
            "tilde",
            "mathfrak",
            "overrightarrow",
        ):
            return ("sym", name + " " + self.subscript())
        if name in ("angle", "triangle"):
            letters = ""
            while self.kind() == "let":
                letters += self.peek()
                self.at += 1
            return ("sym", name + " " + letters)
        if name == "{":
            raise Unreadable("set")
        if name in _BIG:
            return self.big(name)
        if name in _HARD:
            raise Unreadable(name, hard=True)
        if not name.isalpha() or name in ("ldots", "circ", "pmod", "equiv", "parallel", "perp", "approx", "pm", "mp"):
            raise Unreadable(name)
        name = "\\" + name
        if self.peek() == "_":
            self.at += 1
            name += "_" + self.subscript()
        return ("sym", name)

    def word(self) -> tuple:
        content = self.subscript()
        if len(content) == 1 and content.isalpha():
            return ("sym", content)
        if content in FUNCTIONS:
            return self.function(content)
        raise Unreadable("words")

    def big(self, name: str) -> tuple:
        """A sum or product with both bounds given; its range and body are kept, `_answer_algebra` expands short ones."""
        lower = upper = None
        for _ in range(2):
            if self.peek() == "_":
                self.at += 1
                self.expect("{")
                if self.kind() != "let" or self.peek(1) != "=":
                    raise Unreadable(name, hard=True)
                variable = self.peek()
                self.at += 2
                lower = self.sum()
                self.expect("}")
            elif self.peek() == "^":
                self.at += 1
                upper = self.exponent()
        if lower is None or upper is None:
            raise Unreadable(name, hard=True)
        body = self.product()
        if any(part in repr(body) for part in ("'sum'", "'prod'")):  # a double sum has too many terms to write out
            raise Unreadable(name, hard=True)
        return ("fn", name, (("sym", variable), lower, upper, body))

    def function(self, name: str) -> tuple:
        power = base = None
        while self.peek() in ("^", "_"):
            mark = self.peek()
            self.at += 1
            if mark == "^":
                power = self.exponent()
            else:
                base = self.primary() if self.peek() == "{" else self.argument()
        if self.peek() in ("(", "\\{"):
            args = self.arguments()
        else:
            node = self.power() if self.starts_factor() else self.unary()
            while self.starts_factor() and self.peek()[1:] not in FUNCTIONS and self.peek() not in ("(", "["):
                node = self.times(node, self.power())
            args = (node,)
        if name in _TRIG:
            args = tuple(radians(a) for a in args)
        if name == "log":
            args += (base,) if base is not None else (("num", Fraction(10)),)
        elif name == "exp":
            return ("^", ("sym", "e"), args[0])
        if power == _MINUS_ONE and name in ("sin", "cos", "tan", "sinh", "cosh", "tanh"):
            return ("fn", "a" + name, args)
        node = ("fn", name, args)
        return node if power is None else ("^", node, power)


def parse(toks: list[Token]) -> tuple:
    """Expression tree of a list of tokens; raises Unreadable for anything else than one scalar expression."""
    if not toks:
        raise Unreadable("empty")
    parser = _Parser(toks)
    try:
        node = parser.sum()
    except RecursionError as error:  # guards of depth come first; this is for a caller deep in its own stack
        raise Unreadable("too deep") from error
    if parser.at != len(parser.toks):
        token = parser.peek()
        raise Unreadable(f"left over {token!r}", hard=token[1:] in _HARD)
    return node
