"""Brackets of an answer: parts at depth 0, the inside of a pair, wrappers around the whole."""

from __future__ import annotations

import re

MAX_NESTING = 12


_OPEN, _CLOSE = (
    ("(", "[", "{", "\\{", "\\begin", "\\lfloor", "\\lceil"),
    (")", "]", "}", "\\}", "\\end", "\\rfloor", "\\rceil"),
)


_PIECE = re.compile(r"\\[a-zA-Z]+|\\.|[<>!]=|[()\[\]{},;:&<>=]", re.S)


def split(text: str, separators: frozenset[str]) -> tuple[list[str], list[str]]:
    """(parts, separators between them) at bracket depth 0; brackets of any kind match, as in [0,1)."""
    if not any(separator in text for separator in separators):
        return [text.strip()], []
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


_PREFIX = re.compile(r"^(?:\\approx|\\sim|=|≈|:|#+)\s*|^(?:option|choice|answer)\s*:?\s*(?=\(?[A-J]\)?$)", re.I)


def bare(text: str) -> str:
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
            if match[0].startswith("\\mathbf") and len(inner) == 1 and inner.isalpha():
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
