"""Names of units, money and counted things: one name for each, so that 5 feet and 5 ft are the same."""

from __future__ import annotations

import re

_ALIASES = {
    "$": "dollar usd dollars us$ buck",
    "€": "euro eur",
    "£": "sterling gbp",
    "¥": "yen yuan rmb",
    "₹": "rupee rs inr",
    "cent": "cents ¢",
    "%": "percent percentage pct percents",
    "degree": "degrees deg °",
    "cm": "centimeter centimetre",
    "mm": "millimeter millimetre",
    "m": "meter metre",
    "km": "kilometer kilometre",
    "inch": "inches in",
    "foot": "feet ft",
    "yard": "yd",
    "mile": "mi",
    "g": "gram gm",
    "kg": "kilogram kilo",
    "mg": "milligram",
    "lb": "pound lbs",
    "ounce": "oz",
    "ton": "tonne",
    "liter": "litre l",
    "ml": "milliliter millilitre",
    "gallon": "gal",
    "second": "sec s",
    "minute": "min",
    "hour": "hr h",
    "day": "",
    "week": "wk",
    "month": "",
    "year": "yr",
    "radian": "rad",
    "mile/hour": "mph",
    "km/hour": "kmh kph kmph",
    "unit": "",
    "point": "pt pts",
    "newton": "",
    "joule": "",
    "watt": "",
    "volt": "",
    "acre": "",
}
_NAMES = {alias: name for name, aliases in _ALIASES.items() for alias in (name, *aliases.split())}
_NAMES |= {alias + "s": name for alias, name in list(_NAMES.items()) if alias.isalpha() and len(alias) > 1}
_POWERS = {"square": "^2", "sq": "^2", "squared": "^2", "cubic": "^3", "cubed": "^3", "cu": "^3"}
_NOISE = {
    "approximately",
    "approx",
    "about",
    "total",
    "each",
    "exactly",
    "only",
    "of",
    "the",
    "a",
    "in",
    "away",
    "old",
    "more",
}

UNIT_WORDS = frozenset(_NAMES) | frozenset(_POWERS)


def _singular(word: str) -> str:
    if word in _NAMES:
        return _NAMES[word]
    for ending, new in (("ies", "y"), ("sses", "ss"), ("xes", "x"), ("ches", "ch"), ("shes", "sh"), ("s", "")):
        if word.endswith(ending) and len(word) > len(ending) + 1 and not word.endswith("ss"):
            return word[: -len(ending)] + new
    return word


def unit_name(text: str, power: str | None = None) -> str:
    r"""One name for a unit: "square feet", "ft^2" and "feet" with power "2" are foot^2; "" for words that say nothing.

    >>> unit_name(" square feet"), unit_name("ft", "2"), unit_name("miles per hour"), unit_name("\\$")
    ('foot^2', 'foot^2', 'mile/hour', '$')
    """
    text = re.sub(r"[\s.,()\\!-]+", " ", text.lower().replace(" per ", "/")).strip()
    suffix = f"^{power}" if power else ""
    names = []
    for word in text.split():
        if match := re.fullmatch(r"(\w+)\^?([23])", word):
            word, suffix = match[1], "^" + match[2]
        if word in _POWERS:
            suffix = _POWERS[word]
        elif (word not in _NOISE or len(text.split()) == 1 and word == "in") and (word not in ("dollars",) or True):
            names.append("/".join(_singular(part) for part in word.split("/")))
    return " ".join(names) + suffix if names else ""


_TRAILING_TEXT = re.compile(r"(.*\S)\s*\\text\s*\{([^{}]*)\}\s*(?:\^\s*\{?\s*([23])\s*\}?)?\s*", re.S)


_FRACTION_UNIT = re.compile(
    r"(.*\S)\s*\\frac\s*\{\s*\\text\s*\{([^{}]*)\}\s*\}\s*\{\s*\\text\s*\{([^{}]*)\}\s*(?:\^\s*\{?([23])\}?)?\s*\}",
    re.S,
)


_TRAILING_WORD = re.compile(
    r"(.*[\d)}\]%])\s*?( ?)([A-Za-z][A-Za-z]*(?:[ ./-]+[A-Za-z]+)*)\.?\s*(?:\^\s*\{?\s*([23])\s*\}?)?\s*", re.S
)


_UNIT_DIGIT = re.compile(r"(.*\d)\s*([a-z]{2,})([23])")  # 20 cm2
LETTER_UNIT = re.compile(r"([a-zA-Z]|.*[^a-zA-Z][a-zA-Z]) (?!in$)([a-z]{2,})")


_MONEY = re.compile(r"(-?)\s*(?:US\s*)?(\\\$|[€£¥₹]|USD(?=\s*\d)|Rs\.?(?=\s*\d))\s*(.+)", re.S)


_TRAILING_MONEY = re.compile(r"(.+?)\s*(\\\$|[€£¥₹])", re.S)


_PERCENT = re.compile(r"(.+?)\s*\\?%", re.S)


_DEGREES = re.compile(r"(.+?)\s*\^?\s*\{?\s*\\circ\s*\}?\s*(?:(?:\\text\s*\{)?\s*([CF])\s*\}?)?", re.S)


_PMOD = re.compile(r"(.+?)\s*\(?\s*(?:\\pmod|\\mod|(?<![a-zA-Z\\])mod)\s*(\{[^{}]*\}|\d+)\s*\)?", re.S)


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


def strip_unit(text: str) -> tuple[str, str | None]:
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
    if (match := _UNIT_DIGIT.fullmatch(text)) and match[2] in UNIT_WORDS:
        return match[1], unit_name(match[2], match[3])
    if (match := LETTER_UNIT.fullmatch(text)) and match[2] in UNIT_WORDS:
        return match[1], unit_name(match[2])
    return text, None
