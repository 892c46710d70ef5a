r"""What an answer says: a number with its unit, a list, tuple, set, interval, union, matrix, relation, ratio, time, text.

`read` turns the text of an answer into an `Answer`; a text may have a second reading (1,234 is a number or a list) and
`commas` chooses it. Values are tagged tuples, with `Answer`s inside:
("scalar", tree), ("text", words), ("list", items), ("set", items), ("tuple", open, items, close), ("join", op, a, b),
("matrix", rows), ("order", parts, signs), ("equation", left, right), ("base", digits, base), ("ratio", items),
("time", minutes, half), ("reals",), ("hard", text).
"""

from __future__ import annotations

import itertools
import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from corelib import _latex
from corelib._latex import FUNCTION_WORDS, Unreadable, parse, tidy, tokens
from corelib._units import UNIT_WORDS, unit_name

MAX_ITEMS = 200
MAX_NESTING = 12


class Answer(NamedTuple):
    """One reading of an answer: its value, the unit and the name (left side of =) it came with, its choice letter."""

    value: tuple
    unit: str | None = None
    name: str | None = None
    choice: str | None = None


def key(text: str) -> str:
    """The text as tokens, without dollars and spacing: two answers with the same key are the same."""
    text = tidy(text).replace("$", "").strip(". ")
    try:
        out = [token for _, token in tokens(text)]
    except Unreadable:
        return text.replace(" ", "")
    return re.sub(r"([\^_]) \{ (\S+) \}", r"\1 \2", " ".join(out))


def words(text: str) -> str:
    """Words of a text answer, lower-case, without articles and punctuation."""
    text = re.sub(r"\\text(?![a-zA-Z])", " ", text).casefold().replace("\\", " \\")
    return " ".join(
        w for w in re.findall(r"\\?[^\W_]+|[<>=+*/|^:-]", text) if w not in ("the", "a", "an") or len(text) < 3
    )


_OPEN, _CLOSE = (
    ("(", "[", "{", "\\{", "\\begin", "\\lfloor", "\\lceil"),
    (")", "]", "}", "\\}", "\\end", "\\rfloor", "\\rceil"),
)
_PIECE = re.compile(r"\\[a-zA-Z]+|\\.|[<>!]=|.", re.S)


def split(text: str, separators: frozenset[str]) -> tuple[list[str], list[str]]:
    """(parts, separators between them) at bracket depth 0; brackets of any kind match, as in [0,1)."""
    parts, found, depth, start = [], [], 0, 0
    for match in _PIECE.finditer(text):
        piece = match[0]
        if piece in _OPEN:
            depth += 1
        elif piece in _CLOSE:
            depth -= 1
        elif depth == 0 and piece in separators:
            parts.append(text[start : match.start()].strip())
            found.append(piece)
            start = match.end()
    parts.append(text[start:].strip())
    return parts, found


def enclosed(text: str) -> tuple[str, str, str] | None:
    """(opener, inside, closer) when one pair of brackets holds the whole text."""
    match = re.match(r"\\\{|[(\[{]", text)
    if not match:
        return None
    depth = 0
    for piece in _PIECE.finditer(text):
        if piece[0] in _OPEN:
            depth += 1
        elif piece[0] in _CLOSE:
            depth -= 1
            if depth == 0:
                if piece.end() != len(text) or piece[0].startswith(("\\e", "\\r")):
                    return None
                return match[0], text[match.end() : piece.start()].strip(), piece[0]
    return None


_COMMAS, _SEMICOLON = frozenset(","), frozenset(";")
_SIGNS = {"<": "<", ">": ">", "\\le": "\\le", "\\ge": "\\ge", "\\ne": "\\ne", "<=": "\\le", ">=": "\\ge", "!=": "\\ne",
          "\\nleq": ">", "\\ngeq": "<"}  # fmt: skip
_RELATIONS = frozenset(_SIGNS) | {"=", "\\approx", "\\in", "\\equiv", "\\to"}
_JOINS = frozenset({"\\cup", "\\cap", "\\setminus"})
_BASE_WORDS = dict(zip("two three four five six seven eight nine ten eleven twelve".split(), range(2, 13), strict=True))
_BASE_WORDS |= {"sixteen": 16, "binary": 2, "hex": 16, "octal": 8}
_COUNT_WORDS = {w: n for n, w in enumerate(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen twenty".split())}  # fmt: skip
_COUNT_WORDS |= dict(zip("thirty forty fifty sixty seventy eighty ninety".split(), range(30, 100, 10), strict=True))
_BASE = re.compile(
    r"\(?([0-9A-Fa-f][0-9A-Fa-f ]*(?:\.[0-9A-Fa-f]+)?)\)?\s*(?:_\s*(?:\\text\s*)?\{?\s*(?:\\text\s*\{)?\(?\s*(?:base[ -]?)?\}?\s*"
    r"(\d{1,2}|[a-z]+)\s*\)?\}{0,2}|(?:\\text\s*\{)?,? ?(?:in )?base[ -]?(\d{1,2}|[a-z]+)\}?)"
)
_TIME = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}))?(?:\s*(?:\\text\s*\{)?\s*([ap])\.?\s*m\.?\s*\}?)?", re.I)
_CHOICE = re.compile(r"(?:\\text\s*\{\s*)?(?:\(\s*([A-J])\s*\)(?=[\s}])|([A-J])\s*[.):])\s*\}?\s*(?=\S)(.+)", re.S)
_AND = re.compile(
    r"\\text\s*\{[\s,]*(?:and|or)[\s,]*\}|(?<![A-Za-z\\])(?:and|or)(?![a-z])|\\(?:wedge|vee|lor)(?![a-zA-Z])"
)
_THOUSANDS = re.compile(r"(?<![\d.,_^])([1-9]\d{0,2})((?:,\d{3})+)(?!\d|,\d)")
_SPACED = re.compile(r"(?<![\d.,] )(?<![\d.,])([1-9]\d{0,2})((?: \d{3})+)(?!\d| \d)")
_MIXED = re.compile(r"(?<![\d./)}a-zA-Z^_])(\d+) (\d+)/(\d+)(?![\d/])")
_EXPLICIT_THOUSANDS = re.compile(r"(?<=\d)\s*(?:\{\s*,\s*(?:\\!)?\s*\}|\\,|,\s*\\!|\\!|~)\s*(?=\d{3}(?!\d))")
_INTEGER_PARAMETER = re.compile(  # pi/4 + k pi, k in Z
    r"(?<=\S)[\s,]*\(?\s*(?:\\text\s*\{[^{}]*\}|\\forall|for|where)?\s*\b[a-z]\s*\\in\s*\\mathbb\s*\{?\s*[ZN]\s*\}?\s*\)?\s*$"
)
_DECIMAL_COMMA = re.compile(r"(?<![\d,.])(\d+),(\d+)(?![\d,])")


def ambiguous(text: str) -> bool:
    """Whether a comma in the text may be a separator of thousands or of a list."""
    return "," in text and bool(_THOUSANDS.search(text))


@lru_cache(maxsize=65_536)
def read(text: str, commas: str = "thousands") -> Answer:
    """Reading of an answer; `commas` in digits are "thousands", separators of a "list" or a "decimal" sign."""
    text = _EXPLICIT_THOUSANDS.sub("", text)
    text = tidy(text)
    if len(text) > _latex.MAX_LENGTH:
        return Answer(("text", text))
    if commas == "thousands" and "," in text:
        text = _THOUSANDS.sub(_joined_thousands, text)
    elif commas == "decimal":
        text = _DECIMAL_COMMA.sub(r"\1.\2", text)
    text = _SPACED.sub(lambda m: m[1] + m[2].replace(" ", ""), text)
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", text)
    if text.count("$") % 2:  # one dollar is money, two are math
        text = text.replace("$", "\\$") if "\\$" not in text else text
    else:
        text = re.sub(r"(?<!\\)\$", " ", text)
    text = re.sub(r"\\[()\[\]]", " ", text)
    text = re.sub(r"\\mathbf\s*(?=\{\s*[^{}\s][^{}]+\})", r"\\text", text)
    text = re.sub(r"(\\mathbb\s*\{?\s*R\s*\}?\s*)-\s*(?=\\\{)", r"\1\\setminus ", text)
    text = _INTEGER_PARAMETER.sub("", text) or text
    text = _AND.sub(",", text) if "and" in text or "or" in text or "\\" in text else text
    try:
        return _read(text, 0)
    except (Unreadable, RecursionError):
        return Answer(("text", words(text)))


def _joined_thousands(match: re.Match) -> str:
    pair = match.string[: match.start()].endswith(("(", "[", "\\{")) and match.string[match.end() :].startswith(
        (")", "]", "\\}")
    )
    return match[0] if pair else match[1] + match[2].replace(",", "")  # (1,234) is a pair


_PREFIX = re.compile(r"^(?:\\approx|\\sim|=|≈|:)\s*|^(?:option|choice|answer)\s*:?\s*(?=\(?[A-J]\)?$)", re.I)


def _bare(text: str) -> str:
    """The text without punctuation and wrappers around the whole."""
    for _ in range(8):
        before = text
        text = _PREFIX.sub("", text.strip(" ,;\n"))
        text = re.sub(r"(?<=[^.])\.$|^(?:\\newline|:)|(?:\\newline|\\)$|(?<=\w)[。?]$", "", text).strip()
        if match := re.fullmatch(r"(\*\*|`|\*|\")([^*`\"]+)\1", text):  # Markdown
            text = match[2]
        inside = enclosed(text)
        if inside and inside[0] == "{" and inside[2] == "}":
            text = inside[1]
        elif (match := re.match(r"\\(?:text|mathbf|boxed|fbox)\s*(?=\{)", text)) and enclosed(text[match.end() :]):
            inner = enclosed(text[match.end() :])[1]
            if match[0].startswith("\\mathbf") and len(inner) == 1:
                return text
            text = inner
        if text == before:
            break
    return _balanced(text)


def _balanced(text: str) -> str:
    """The text without closing braces that nothing opens, and with those closed that stay open."""
    depth, out = 0, []
    for piece in re.findall(r"\\[a-zA-Z]+|\\.|[{}]|[^\\{}]+|\\", text):
        depth += (piece == "{") - (piece == "}")
        if depth < 0:
            depth = 0
        else:
            out.append(piece)
    return "".join(out) + "}" * depth if depth < MAX_NESTING else text


def _read(text: str, depth: int) -> Answer:
    if depth > MAX_NESTING:
        raise Unreadable("too deep")
    text = _bare(text)
    if not text:
        return Answer(("text", ""))
    if text.isdigit() and len(text) <= _latex.MAX_DIGITS:
        return Answer(("scalar", _latex.number(text)))
    if match := _TIME.fullmatch(text):
        hours, minutes, seconds, half = match.groups()
        if int(hours) < 25 and int(minutes) < 60 and int(seconds or 0) < 60:
            return Answer(
                ("time", int(hours) * 3600 + int(minutes) * 60 + int(seconds or 0), (half or "").lower(), text)
            )
    if match := _BASE.fullmatch(text):
        base = match[2] or match[3]
        base = int(base) if base.isdigit() else _BASE_WORDS.get(base)
        digits = match[1].replace(" ", "").upper().lstrip("0") or "0"
        if (
            base
            and base > 1
            and (digits[0].isdigit() or len(digits) > 1)
            and all(int(d, 36) < base for d in digits if d != ".")
        ):
            return Answer(("base", digits, base))
    if match := _CHOICE.fullmatch(text):
        if not re.match(r"[-+*/^=<>,]", match[3]):
            rest = _read(match[3], depth + 1)
            return rest._replace(choice=match[1] or match[2])
    items, _ = split(text, _SEMICOLON)
    items = [item for item in items if item]
    if len(items) == 1:
        items = [item for item in split(items[0], _COMMAS)[0] if item]
        if len(items) > MAX_ITEMS:
            raise Unreadable("too many items")
        if len(items) > 1:
            return _list([_read(item, depth + 1) for item in items])
    if len(items) > 1:
        return Answer(("list", tuple(_read(item, depth + 1) for item in items)))
    return _single(items[0] if items else text, depth)


def _list(items: list[Answer]) -> Answer:
    """A bare list; assignments of different names form one tuple, repeated names start the next one."""
    named = [item.name for item in items]
    if all(named) and len(set(named)) > 1 and not any(item.value[0] in ("order", "equation") for item in items):
        size = len(set(named))
        if len(items) % size == 0 and named == named[:size] * (len(items) // size):
            records = [_record(items[i : i + size]) for i in range(0, len(items), size)]
            return records[0] if len(records) == 1 else Answer(("list", tuple(records)))
    if items[0].name and not any(named[1:]) and items[0].value[0] != "order":
        return Answer(("list", (items[0]._replace(name=None), *items[1:])), name=items[0].name)
    return Answer(("list", tuple(items)))


def _record(items: list[Answer]) -> Answer:
    if len({re.sub(r"_.*", "", item.name) for item in items}) == 1:  # x_1 = 2, x_2 = 3 are two roots
        return Answer(("list", tuple(item._replace(name=None) for item in items)))
    names = ",".join(item.name for item in items)
    return Answer(("tuple", "=", tuple(items), "="), name=names)


def _is_name(text: str) -> bool:
    """Whether the left side of an equation only names the answer: x, f(x), x_1, AB, |AB|, NO/BO, (x,y), P(A), area."""
    bare = re.sub(r"_\s*(?:\{[^{}]*\}|\\?\w)|\((?:[^()]*)\)(?!$)|(?<=[A-Za-z'])\([^()]*\)|\^\{?-1\}?", "", text)
    if re.search(r"\d|[+^!]|-|\\(?:int|lim|sum|prod|sqrt|binom|begin|pm|newline)(?![a-zA-Z])", bare):
        return False
    return bool(re.search(r"[A-Za-z]", bare))


def _name(text: str) -> str | None:
    text = re.sub(r"\s|\\(?:text|mathbf|angle|overline)(?![a-zA-Z])|m(?=\\angle)|[{}|]", "", text)
    if re.search(r"[a-z]{4}", re.sub(r"\\[a-z]+", "", text)):
        return None  # words describe, they do not name
    return re.sub(r"^([A-Za-z]'*)\(([A-Za-z])\)$", r"\1()", text)


def _constant(text: str) -> bool:
    """Whether a side holds no variable, so that the equation is a computation: 10^3 = 1000."""
    try:
        from corelib._algebra import symbols

        return not symbols(parse(tokens(text)))
    except Unreadable:
        return not re.search(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])", text) or bool(
            re.match(r"\\(?:lim|int|sum|prod|begin)", text)
        )


def _single(text: str, depth: int) -> Answer:
    parts, signs = split(text, _RELATIONS)
    if signs and all(parts):
        return _relation(parts, signs, depth)
    parts, joins = split(text, _JOINS)
    if joins and all(parts):
        answer = _read(parts[0], depth + 1)
        for op, part in zip(joins, parts[1:], strict=True):
            answer = Answer(("join", op, answer, _read(part, depth + 1)))
        return answer
    if re.fullmatch(r"\\mathbb\s*\{?\s*R\s*\}?|(?:all )?reals?(?: numbers?)?", text, re.I):
        return Answer(("reals",))
    if text == "\\emptyset" or re.fullmatch(r"\\\{\s*\\\}", text):
        return Answer(("set", ()))
    if "\\begin" in text and (matrix := _matrix(text, depth)):
        return matrix
    pair = enclosed(text)
    if pair:
        opener, inside, closer = pair
        items = (
            [i for i in re.split(r"[,;]", inside) if i]
            if not re.search(r"[(\[{]", inside)
            else split(inside, frozenset(",;"))[0]
        )
        if opener == "\\{" and (builder := _BUILDER.fullmatch(inside)):
            return _read(builder[2], depth + 1)
        if opener == "\\{":
            if re.search(r"\||:|\\in(?![a-z])", inside) and not re.fullmatch(r"[^|]*(?:\|[^|]*\|[^|]*)*", inside):
                raise Unreadable("set builder")
            return Answer(("set", tuple(_read(i, depth + 1) for i in items[:MAX_ITEMS] if i.strip())))
        if len(items) > 1:
            if len(items) > MAX_ITEMS:
                raise Unreadable("too many items")
            if (signs := sum("\\pm" in i for i in items)) and not any("\\mp" in i for i in items) and signs <= 4:
                return _signed_tuples(opener, items, closer, depth)
            return Answer(("tuple", opener, tuple(_read(i, depth + 1) for i in items), closer))
        if (opener, closer) in (("(", ")"), ("[", "]")):
            return _read(inside, depth + 1)
    parts, colons = split(
        re.sub(r"(?<=[\d}])\s*(?:\\text\s*\{\s*to\s*\}|\bto\b)\s*(?=[\d\\])", ":", text), frozenset(":")
    )
    if colons and all(parts):
        return Answer(("ratio", tuple(_read(part, depth + 1) for part in parts)))
    return _quantity(text, depth)


def _signed_tuples(opener: str, items: list[str], closer: str, depth: int) -> Answer:
    r"""(\pm 1, \pm 2) is four points: the signs are independent, as in the solutions of equations."""
    choices = [[i.replace("\\pm", "+"), i.replace("\\pm", "-")] if "\\pm" in i else [i] for i in items]
    points = [tuple(_read(i, depth + 1) for i in point) for point in itertools.product(*choices)]
    return Answer(("list", tuple(Answer(("tuple", opener, point, closer)) for point in points)))


def _relation(parts: list[str], signs: list[str], depth: int) -> Answer:
    if "\\to" in signs:
        raise Unreadable("arrow")
    if "\\approx" in signs:
        cut = signs.index("\\approx")
        if cut == 0 and _is_name(parts[0]):
            return _read(parts[-1], depth + 1)._replace(name=_name(parts[0]))
        parts, signs = parts[: cut + 1], signs[:cut]
        if not signs:
            return _read(parts[0], depth + 1)
    if signs[0] == "\\in" and len(signs) == 1:
        answer = _read(parts[1], depth + 1)
        return answer._replace(name=_name(parts[0]))
    if set(signs) == {"="}:
        return _equation(parts, depth)
    if signs[-1] == "\\equiv" and len(signs) == 1:
        return _read(parts[1], depth + 1)._replace(name=_name(parts[0]))
    if all(sign in _SIGNS for sign in signs):
        trees = tuple(_tree(part) for part in parts)
        return Answer(("order", trees, tuple(_SIGNS[sign] for sign in signs)))
    raise Unreadable("relation")


def _equation(parts: list[str], depth: int) -> Answer:
    left, right = parts[0], parts[-1]
    if len(parts) > 2:
        return _read(right, depth + 1)._replace(name=_name(left) if _is_name(left) else None)
    if enclosed(left) and _is_name(left[1:-1]) and not re.search(r"[+*/-]", left):
        answer = _read(right, depth + 1)  # (x, y) = (3, 2)
        return answer._replace(name=re.sub(r"\s", "", left[1:-1])) if not enclosed(left)[0] == "[" else answer
    if _is_name(left):
        answer = _read(right, depth + 1)
        if match := re.fullmatch(r"[A-Za-z]'*\s*\(\s*([A-Za-z])\s*\)", left):  # f(t) = 2t is f(x) = 2x
            answer = _renamed(answer, match[1])
        return answer._replace(name=_name(left))
    if _constant(left):
        if _is_name(right):
            return _read(left, depth + 1)._replace(name=_name(right))
        if not _constant(right) and re.search(r"[+^-]|\d", right):
            return Answer(("equation", _tree(left), _tree(right)))
        return _read(right, depth + 1)
    try:
        return Answer(("equation", _tree(left), _tree(right)))
    except Unreadable:
        if _is_name(right):
            return _read(left, depth + 1)._replace(name=_name(right))
        raise


def _renamed(answer: Answer, variable: str) -> Answer:
    from corelib._algebra import substitute

    if answer.value[0] == "scalar" and variable != "x":
        return answer._replace(value=("scalar", substitute(answer.value[1], variable, ("sym", "x"))))
    return answer


def _tree(text: str) -> tuple:
    """Expression of one side of a relation, units dropped."""
    try:
        return _scalar(text)
    except Unreadable:
        answer = _quantity(text, 0)
        if answer.value[0] != "scalar":
            raise
        return answer.value[1]


_ENVIRONMENT = re.compile(
    r"\\begin\s*\{\s*((?:[pbBvV]|small)?matrix|array|cases|aligned|gathered)\*?\s*\}\s*(\{[^{}]*\})?(.*)\\end\s*\{[^{}]*\}",
    re.S,
)


def _matrix(text: str, depth: int) -> Answer | None:
    start = text.index("\\begin")
    match = _ENVIRONMENT.fullmatch(text[start:])
    if not match or "\\begin" in match[3]:
        return None
    factor = None
    if start:
        before = text[:start].strip()
        factor = ("num", Fraction(-1)) if before == "-" else _scalar(before.rstrip("*").removesuffix("\\cdot"))
    rows = [row for row in re.split(r"\\newline|\\cr(?![a-z])", match[3]) if row.strip()]
    kind = match[1]
    if kind in ("cases", "aligned", "gathered"):
        return _list([_read(row.replace("&", " "), depth + 1) for row in rows])
    cells = tuple(tuple(_read(cell, depth + 1) for cell in split(row, frozenset("&"))[0]) for row in rows)
    if sum(map(len, cells)) > MAX_ITEMS:
        raise Unreadable("large matrix")
    if kind in ("vmatrix", "Vmatrix"):
        cells = ((_determinant(cells),),)
    if factor is not None:
        if any(cell.value[0] != "scalar" for row in cells for cell in row):
            return None
        cells = tuple(tuple(c._replace(value=("scalar", ("*", (factor, c.value[1])))) for c in row) for row in cells)
    if kind in ("vmatrix", "Vmatrix"):
        return cells[0][0]
    return Answer(("matrix", cells))


def _determinant(cells: tuple) -> Answer:
    if len(cells) > 4 or any(len(row) != len(cells) or any(c.value[0] != "scalar" for c in row) for row in cells):
        raise Unreadable("determinant", hard=True)
    trees = [[c.value[1] for c in row] for row in cells]

    def minor(rows: list[list[tuple]]) -> tuple:
        if len(rows) == 1:
            return rows[0][0]
        terms = []
        for j, cell in enumerate(rows[0]):
            term = ("*", (cell, minor([row[:j] + row[j + 1 :] for row in rows[1:]])))
            terms.append(_latex.negative(term) if j % 2 else term)
        return ("+", tuple(terms))

    return Answer(("scalar", minor(trees)))


_BUILDER = re.compile(
    r"([a-zA-Z])\s*(?:\\in\s*\\mathbb\s*\{?\s*R\s*\}?)?\s*[|:]\s*([^:]*(?:[<>]|\\(?:le|ge|ne)(?![a-z]))[^:]*)"
)
_TRAILING_TEXT = re.compile(r"(.*\S)\s*\\text\s*\{([^{}]*)\}\s*(?:\^\s*\{?\s*([23])\s*\}?)?\s*", re.S)
_FRACTION_UNIT = re.compile(
    r"(.*\S)\s*\\frac\s*\{\s*\\text\s*\{([^{}]*)\}\s*\}\s*\{\s*\\text\s*\{([^{}]*)\}\s*(?:\^\s*\{?([23])\}?)?\s*\}",
    re.S,
)
_TRAILING_WORD = re.compile(
    r"(.*[\d)}\]%])\s*?( ?)([A-Za-z][A-Za-z]*(?:[ ./-]+[A-Za-z]+)*)\.?\s*(?:\^\s*\{?\s*([23])\s*\}?)?\s*", re.S
)
_LETTER_UNIT = re.compile(r"([a-zA-Z]|.*[^a-zA-Z][a-zA-Z]) (?!in$)([a-z]{2,})")
_MONEY = re.compile(r"(-?)\s*(?:US\s*)?(\\\$|[€£¥₹]|USD(?=\s*\d)|Rs\.?(?=\s*\d))\s*(.+)", re.S)
_TRAILING_MONEY = re.compile(r"(.+?)\s*(\\\$|[€£¥₹])", re.S)
_PERCENT = re.compile(r"(.+?)\s*\\?%", re.S)
_DEGREES = re.compile(r"(.+?)\s*\^?\s*\{?\s*\\circ\s*\}?\s*(?:(?:\\text\s*\{)?\s*([CF])\s*\}?)?", re.S)
_PMOD = re.compile(r"(.+?)\s*\(?\s*(?:\\pmod|\\mod|(?<![a-zA-Z\\])mod)\s*(\{[^{}]*\}|\d+)\s*\)?", re.S)
_ABOUT = re.compile(
    r"^(?:(?:\\text\s*\{)?\s*(?:approximately|approx\.?|about|exactly|only|around)\s*\}?)\s*(?=\S)", re.I
)


def _plain_unit(word: str, spaced: bool) -> bool:
    """Whether a word after a number is a unit and not a product of variables: 10 cm and 7 ways, but not 2ab."""
    first = word.split()[0].strip(".")
    if first.lower() in UNIT_WORDS and (len(first) > 1 or (spaced and len(word.split()) > 1)):
        return True
    if first.lower() in ("if", "for", "when", "where", "is", "and", "or", "in", "as", "to"):
        return False
    if len(first) > 3:
        return True
    return len(first) == 3 and spaced and list(first) != sorted(first)


def _strip_unit(text: str) -> tuple[str, str | None]:
    """(text without its unit, unit)."""
    if match := _MONEY.fullmatch(text):
        return match[1] + match[3], unit_name(match[2])
    if match := _TRAILING_MONEY.fullmatch(text):
        return match[1], unit_name(match[2])
    if match := _PERCENT.fullmatch(text):
        return match[1], "%"
    if match := _DEGREES.fullmatch(text):
        if not re.search(r"\\circ", match[1]) and not re.search(r"\\(?:sin|cos|tan|sec|csc|cot)[^()]*$", match[1]):
            return match[1], "degree" + (" " + match[2].lower() if match[2] else "")
    if match := _PMOD.fullmatch(text):
        return match[1], "mod " + match[2].strip("{} ")
    if match := _FRACTION_UNIT.fullmatch(text):
        return match[1], unit_name(match[2] + "/" + match[3], match[4])
    if match := _TRAILING_TEXT.fullmatch(text):
        return match[1], unit_name(match[2], match[3])
    if match := _TRAILING_WORD.fullmatch(text):
        if _plain_unit(match[3], bool(match[2])) and not re.search(r"\\[a-zA-Z]*$", match[1]):
            return match[1], unit_name(match[3], match[4])
    if (match := _LETTER_UNIT.fullmatch(text)) and match[2] in UNIT_WORDS:
        return match[1], unit_name(match[2])
    return text, None


def _count(text: str) -> int | None:
    """Number in words: twenty-one, two hundred and five."""
    total = current = 0
    for word in re.findall(r"[a-z]+|[^a-z\s-]", text.lower()):
        if word in _COUNT_WORDS:
            current += _COUNT_WORDS[word]
        elif word == "hundred" and current:
            current *= 100
        elif word == "thousand" and current:
            total, current = total + current * 1000, 0
        else:
            return None
    return total + current if re.search("[a-z]", text.lower()) else None


def _quantity(text: str, depth: int) -> Answer:
    """A scalar with or without a unit, a ± pair, or text."""
    text = _ABOUT.sub("", text)
    if (count := _count(text)) is not None:
        return Answer(("scalar", _latex.number(str(count))))
    if match := re.fullmatch(r"(\d+)\s*(?:st|nd|rd|th|\^\s*\{?\s*\\text\s*\{\s*(?:st|nd|rd|th)\s*\}\s*\}?)", text):
        text = match[1]
    text = re.sub(r"(?<=\d)\s*\(([A-Za-z][A-Za-z ]{2,})\)$", r" \\text{\1}", text)
    unit = None
    body = text
    for _ in range(3):
        if re.fullmatch(r"[A-Za-z][A-Za-z' -]{2,}", body) and not _LETTER_UNIT.fullmatch(body):
            break
        body, found = _strip_unit(body)
        if found is None:
            break
        body = re.sub(r"[/\s]+$", "", body)
        unit = found if unit is None or unit == found else found + " " + unit if found else unit
    if unit is not None and body != text:
        inner = _bare(body)
        if not re.search(r"[\d\\a-zA-Z]", inner) or (
            not re.search(r"\d|\\pi|\\frac|\\sqrt", inner) and not re.fullmatch(r".{1,12}", inner)
        ):
            raise Unreadable("words")
        if inner != text and (enclosed(inner) or unit == "%" and inner.startswith("\\text")):
            answer = _read(inner, depth + 1)
            return answer._replace(unit=unit or None)
        body = inner
    if "\\pm" in body or "\\mp" in body:
        plus, minus = body.replace("\\pm", "+").replace("\\mp", "-"), body.replace("\\pm", "-").replace("\\mp", "+")
        return Answer(("list", tuple(Answer(("scalar", _scalar(b)), unit or None) for b in (plus, minus))))
    try:
        return Answer(("scalar", _scalar(body)), unit or None)
    except Unreadable as error:
        if error.hard or re.search(r"\\(?:int|lim|sum|prod|begin)(?![a-zA-Z])", body):
            return Answer(("hard", body), unit or None)
        return Answer(("text", words(text)))


def _scalar(text: str) -> tuple:
    """Expression tree of a text that is one; a word of letters is text, not a product of variables."""
    if re.fullmatch(r"[A-Za-z][A-Za-z '-]*[A-Za-z]", text) and re.search(r"[A-Za-z]{3}", text):
        if text.lower() not in ("infinity", "infty", "inf"):
            raise Unreadable("word")
    if any(len(word) > 4 and word not in FUNCTION_WORDS for word in re.findall(r"(?<![A-Za-z\\])[A-Za-z]+", text)):
        raise Unreadable("words")
    if re.search(r"(?<![A-Za-z\\])(?:the|is|are|of|we|it|so)(?![A-Za-z])", text, re.I):
        raise Unreadable("words")
    toks = tokens(text)
    if toks and toks[0] == ("op", "$"):
        raise Unreadable("dollar")
    if ("op", "_") in toks and not any(kind in ("let", "cmd") for kind, _ in toks):
        raise Unreadable("base")
    return _latex.without_degrees(parse(toks))
