r"""One spelling for each thing in the text of an answer: clean-up of LaTeX and Unicode, then tokens."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

MAX_LENGTH = 1_000  # characters; longer answers are compared as text only


MAX_TOKENS = 600


MAX_DEPTH = 60


MAX_DIGITS = 1_000  # of one number


class Unreadable(ValueError):
    """The text is no expression this parser knows; `hard` says that math-verify may know it."""

    def __init__(self, why: str, hard: bool = False):
        super().__init__(why)
        self.hard = hard


_SUPER = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n", strict=True))


_SUB = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))


_UNICODE = {
    **dict.fromkeys("−–—‒―﹣－", "-"),
    **dict.fromkeys("“”„", '"'),
    **dict.fromkeys("‘’′", "'"),
    "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "÷": r"\div ", "√": r"\sqrt ", "∛": r"\sqrt[3]",
    "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "∪": r"\cup ",
    "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ", "∓": r"\mp ", "°": r"^\circ ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "∠": r"\angle ", "…": r"\ldots ", "⌊": r"\lfloor ",
    "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "ⅈ": "i", "ⅇ": "e", "∖": r"\setminus ", "→": r"\to ",
    "，": ", ", "；": "; ", "：": ":", "。": ". ", "、": ", ",
}  # fmt: skip


_UNICODE.update(
    {
        chr(code): "\\" + unicodedata.name(chr(code)).rsplit(" ", 1)[1].lower().replace("lamda", "lambda") + " "
        for code in range(0x3B1, 0x3CA)
        if code not in (0x3C0, 0x3C2)
    }
)


# Python source read without r"": "\frac" arrives as form feed + "rac".
_UNESCAPED = re.compile("\x0c(?=rac)|\t(?=ext|frac|imes|heta|an\\b)|\x08(?=oxed|inom|egin|eta|ar|mod|f)|\x07(?=lpha)")


_UNESCAPED_LETTER = {"\x0c": r"\f", "\t": r"\t", "\x08": r"\b", "\x07": r"\a"}


_DOUBLED = re.compile(r"(?<!\\)(?:\\\\)+(?=[a-zA-Z{}])")


def _unicode(text: str) -> str:
    out = []
    for char in text:
        if char.isascii():
            out.append(char)
        elif char in _UNICODE:
            out.append(_UNICODE[char])
        elif char in _SUPER:
            out.append("^{" + _SUPER[char] + "}")
        elif char in _SUB:
            out.append("_{" + _SUB[char] + "}")
        elif unicodedata.category(char) in ("Cf", "Cc", "Mn"):
            continue
        else:
            plain = unicodedata.normalize("NFKC", char)
            if "⁄" in plain:  # ½ is 1⁄2, and 1½ is a mixed number
                plain = "\\frac{" + plain.replace("⁄", "}{") + "}"
            elif (digit := unicodedata.digit(plain, None) if len(plain) == 1 else None) is not None:
                plain = str(digit)
            out.append(plain)
    text = "".join(out)
    return re.sub(r"\}\^\{|\}_\{", "", text) if "}^{" in text or "}_{" in text else text


_DROP = re.compile(
    r"\\(?:displaystyle|textstyle|limits|nolimits|boldsymbol|bf|rm|it|Bigg?|bigg?|quad|qquad|left|right|middle|hfill|enspace"
    r"|thinspace|medspace|negthinspace|nonumber)(?![a-zA-Z])(?:(?<=left)\.|(?<=right)\.)?|\\[!,;: \n>]|~|\\hspace\{[^{}]*\}"
    r"|\\phantom\{[^{}]*\}|\\(?:text)?color\s*\{[^{}]*\}"
)


_RENAME = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "lt": "<", "gt": ">", "leq": "le", "geq": "ge", "leqslant": "le",
    "geqslant": "ge", "neq": "ne", "dbinom": "binom", "tbinom": "binom", "cdots": "ldots", "dots": "ldots",
    "varnothing": "emptyset", "lbrace": "{", "rbrace": "}", "lvert": "|", "rvert": "|", "vert": "|", "mid": "|",
    "lbrack": "[", "rbrack": "]", "degree": "circ", "arcsin": "asin", "arccos": "acos", "arctan": "atan", "langle": "(", "rangle": ")",
    "mbox": "text", "hbox": "text", "textbf": "text", "textit": "text", "textrm": "text", "textnormal": "text",
    "textsf": "text", "texttt": "text", "mathrm": "text", "operatorname": "text", "mathit": "text", "mathsf": "text",
    "mathtt": "text", "backslash": "setminus", "rightarrow": "to", "land": "wedge", "ast": "*", "bar": "overline",
    "varphi": "phi", "varepsilon": "epsilon", "colon": ":",
}  # fmt: skip


_COMMAND = re.compile(r"\\([a-zA-Z]+)")


def _rename(match: re.Match) -> str:
    new = _RENAME.get(match[1])
    if new is None:
        return match[0]
    if new in "{}":
        return "\\" + new
    return "\\" + new if new.isalpha() else new


def tidy(text: str) -> str:
    """The text with one spelling for each thing: ASCII, no spacing or sizing commands, one name for each command."""
    if "\x00" <= min(text, default=" ") < " ":
        text = _UNESCAPED.sub(lambda m: _UNESCAPED_LETTER[m[0]], text)
        text = re.sub(r"[\x00-\x08\x0b\x0e-\x1f]", "", text)
    if not text.isascii():
        text = _unicode(text)
    if "\\" in text:
        text = re.sub(r"\\(begin|end)([pbvBV]?matrix)", r"\\\1{\2}", text)  # braces lost
        if "\\\\" in text and ("\\begin" not in text or "\\\\begin" in text):
            # Escaped twice. Outside of a matrix \\frac is no row end; in one, its rows are escaped as well: halve everything.
            text = text.replace("\\\\", "\\") if "\\\\begin" in text else _DOUBLED.sub(r"\\", text)
        if "\\\\" in text:  # a row end is not the start of a command: \\frac is \\ and frac only after the rule above
            text = text.replace("\\\\", "\\newline ")
        text = _COMMAND.sub(_rename, _DROP.sub(" ", text))
    return re.sub(r"\s+", " ", text.replace("...", r"\ldots ")).strip()


FUNCTION_WORDS = (
    "arcsin arccos arctan sinh cosh tanh sin cos tan sec csc cot asin acos atan sqrt log ln exp pi infinity infty inf"
    " alpha beta gamma theta lambda gcd lcm max min floor ceil abs cup pm"
).split()


_TOKEN = re.compile(
    r"(?P<num>(?:\d+\.\d+|\d+)(?:[eE][+-]?\d{1,4}(?![\dA-Za-z.]))|\d+\.\d+|\.\d+|\d+\.(?=\\overline)|\d+)"
    r"|(?P<cmd>\\[a-zA-Z]+|\\.)"
    rf"|(?P<word>(?<![a-zA-Z])(?:{'|'.join(FUNCTION_WORDS)})(?![a-zA-Z]))"
    r"|(?P<let>[a-zA-Z])"
    r"|(?P<op>\*\*|<=|>=|!=|==|\.\.\.|\S)"
)


_PLAIN_WORD = {"infinity": "\\infty", "inf": "\\infty", "arcsin": "\\asin", "arccos": "\\acos", "arctan": "\\atan"}


_SAME_TOKEN = {"**": "^", "<=": "\\le", ">=": "\\ge", "!=": "\\ne", "==": "=", "...": "\\ldots", "\\times": "*", "\\cdot": "*",
               "\\div": "/", "\\|": "|", "\\$": "$", "\\%": "%", "\\_": "_", "\\&": "and"}  # fmt: skip


Token = tuple[str, str]  # kind ("num", "cmd", "let", "op"), text


def tokens(text: str) -> list[Token]:
    """Tokens of a tidy text; raises Unreadable above the guards of length and number."""
    if len(text) > MAX_LENGTH:
        raise Unreadable("too long")
    out: list[Token] = []
    for match in _TOKEN.finditer(text):
        kind, token = match.lastgroup, match[0]
        if kind == "word":
            kind, token = "cmd", _PLAIN_WORD.get(token, "\\" + token)
        same = _SAME_TOKEN.get(token)
        if same is not None:
            kind, token = ("cmd" if same[0] == "\\" else "op"), same
        out.append((kind, token))
    if len(out) > MAX_TOKENS:
        raise Unreadable("too many tokens")
    return out


def number(text: str) -> tuple:
    """Leaf for the digits of a number, with or without decimals and exponent of ten."""
    if len(text) > MAX_DIGITS:
        raise Unreadable("number too long")
    if text.isdigit():
        return ("num", Fraction(int(text)))
    value = Fraction(text)
    fraction = text.lower().partition("e")[0].partition(".")[2]
    if not fraction.strip("0") and "e" not in text.lower():
        return ("num", value)
    return ("dec", value, len(fraction))
