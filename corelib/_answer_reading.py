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

from corelib._answer_brackets import MAX_NESTING, bare, enclosed, split
from corelib._answer_exact import substitute, symbols
from corelib._answer_parser import negative, parse
from corelib._answer_quantity import Answer, quantity, scalar, words
from corelib._answer_tokens import MAX_DIGITS, MAX_LENGTH, Unreadable, number, tidy, tokens

MAX_ITEMS = 200


def key(text: str) -> str:
    """The text as tokens, without dollars and spacing: two answers with the same key are the same."""
    text = tidy(text).replace("$", "").strip(". ")
    try:
        out = [token for _, token in tokens(text)]
    except Unreadable:
        return text.replace(" ", "")
    return re.sub(r"([\^_]) \{ (\S+) \}", r"\1 \2", " ".join(out))


_COMMAS, _SEMICOLON = frozenset(","), frozenset(";")


_SIGNS = {"<": "<", ">": ">", "\\le": "\\le", "\\ge": "\\ge", "\\ne": "\\ne", "<=": "\\le", ">=": "\\ge", "!=": "\\ne",
          "\\nleq": ">", "\\ngeq": "<"}  # fmt: skip


_RELATIONS = frozenset(_SIGNS) | {"=", "\\approx", "\\in", "\\equiv", "\\to"}


_JOINS = frozenset({"\\cup", "\\cap", "\\setminus"})


_BASE_WORDS = dict(zip("two three four five six seven eight nine ten eleven twelve".split(), range(2, 13), strict=True))


_BASE_WORDS |= {"sixteen": 16, "binary": 2, "hex": 16, "octal": 8}


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
    if len(text) > MAX_LENGTH:
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


def _read(text: str, depth: int) -> Answer:
    if depth > MAX_NESTING:
        raise Unreadable("too deep")
    text = bare(text)
    if not text:
        return Answer(("text", ""))
    if text.isdigit() and len(text) <= MAX_DIGITS:
        return Answer(("scalar", number(text)))
    if match := _TIME.fullmatch(text):
        hours, minutes, seconds, half = match.groups()
        if int(hours) < 25 and int(minutes) < 60 and int(seconds or 0) < 60:
            return Answer(
                ("time", int(hours) * 3600 + int(minutes) * 60 + int(seconds or 0), (half or "").lower(), text)
            )
    if match := _BASE.fullmatch(text):
        base = match[2] or match[3]
        base = int(base) if base.isdigit() else _BASE_WORDS.get(base)
        if base == 10:
            return _read(match[1], depth + 1)
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
    return quantity(text, lambda inside: _read(inside, depth + 1))


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
    if answer.value[0] == "scalar" and variable != "x":
        return answer._replace(value=("scalar", substitute(answer.value[1], variable, ("sym", "x"))))
    return answer


def _tree(text: str) -> tuple:
    """Expression of one side of a relation, units dropped."""
    try:
        return scalar(text)
    except Unreadable:
        answer = quantity(text, lambda inside: _read(inside, 1))
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
        factor = ("num", Fraction(-1)) if before == "-" else scalar(before.rstrip("*").removesuffix("\\cdot"))
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
            terms.append(negative(term) if j % 2 else term)
        return ("+", tuple(terms))

    return Answer(("scalar", minor(trees)))


_BUILDER = re.compile(
    r"([a-zA-Z])\s*(?:\\in\s*\\mathbb\s*\{?\s*R\s*\}?)?\s*[|:]\s*([^:]*(?:[<>]|\\(?:le|ge|ne)(?![a-z]))[^:]*)"
)
