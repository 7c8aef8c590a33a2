"""Ways to write a sentence so that a person or a model still reads it, and a plain comparison does not."""

from __future__ import annotations

import base64
import codecs
from collections.abc import Callable, Mapping
from typing import Final

_HOMOGLYPHS: Final = str.maketrans("aeo", "\u0430\u0435\u043e")


def _between(mark: str) -> Callable[[str], str]:
    return mark.join


def full_width(text: str) -> str:
    return "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in text)


def cyrillic(text: str) -> str:
    return text.translate(_HOMOGLYPHS)


def tags(text: str) -> str:
    """U+E0000 and up: no font shows them, some models read them."""
    return "".join(chr(0xE0000 + ord(char)) for char in text)


def in_base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def in_hex(text: str) -> str:
    return text.encode().hex()


def rot13(text: str) -> str:
    return codecs.encode(text, "rot13")


def percent(text: str) -> str:
    return "".join(f"%{byte:02x}" for byte in text.encode())


def spaced(text: str) -> str:
    """Letters apart by one blank, words by two."""
    return "  ".join(" ".join(word) for word in text.split())


ENCODINGS: Final[Mapping[str, tuple[str, Callable[[str], str], bool]]] = {
    "zero_width": ("zero-width inside", _between("\u200b"), True),
    "full_width": ("full-width letters", full_width, True),
    "cyrillic": ("Cyrillic homoglyphs", cyrillic, True),
    "soft_hyphen": ("soft hyphens", _between("\u00ad"), True),
    "tags": ("tag characters U+E00xx", tags, True),
    "base64": ("base64", in_base64, True),
    "spaced": ("spaced letters", spaced, True),
    "hex": ("hexadecimal", in_hex, False),
    "rot13": ("rot13", rot13, False),
    "percent": ("percent-encoded", percent, False),
    "variation": ("variation selectors inside", _between("\ufe0f"), False),
    "bidi": ("bidirectional override", lambda text: f"\u202e{text}\u202c", False),
}
"""By id: a title, the writing, and whether it stood in the first table."""


def tight(text: str) -> str:
    return " ".join(text.replace(" ", ""))


def leet(text: str) -> str:
    return text.translate(str.maketrans("aeio", "4310"))


HARD: Final[Mapping[str, tuple[str, Callable[[str], str]]]] = {
    "tight": ("spaced letters, no gap between words", tight),
    "dots": ("a dot after each letter", lambda text: ".".join(text.replace(" ", ""))),
    "joined": ("no blanks at all", lambda text: text.replace(" ", "")),
    "underscores": ("underscores for blanks", lambda text: text.replace(" ", "_")),
    "lines": ("each word on a line", lambda text: text.replace(" ", "\n")),
    "leet": ("digits for vowels", leet),
    "reversed": ("backwards", lambda text: text[::-1]),
    "entities": ("HTML entities", lambda text: "".join(f"&#{ord(char)};" for char in text)),
    "escapes": ("JSON escapes", lambda text: "".join(f"\\u{ord(char):04x}" for char in text)),
    "twice_base64": ("base64 of base64", lambda text: in_base64(in_base64(text))),
    "binary": ("binary digits", lambda text: " ".join(f"{byte:08b}" for byte in text.encode())),
    "circled": ("circled letters", lambda text: _shifted(text, 0x24D0)),
    "bold": ("mathematical bold", lambda text: _shifted(text, 0x1D41A)),
    "greek": ("Greek look-alikes", lambda text: text.translate(str.maketrans("oait", "\u03bf\u03b1\u03b9\u03c4"))),
    "struck": ("letters struck through", lambda text: "".join(f"{char}\u0335" for char in text)),
}
"""Ways of writing that nobody promises yet.  They are measured and published, and no test asks for them."""


def _shifted(text: str, first: int) -> str:
    return "".join(chr(first + ord(char) - ord("a")) if "a" <= char <= "z" else char for char in text)
