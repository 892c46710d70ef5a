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
