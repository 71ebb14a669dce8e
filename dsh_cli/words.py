"""Text as people read it."""

from __future__ import annotations

import re
import unicodedata

_DIGITS = re.compile(r"(\d+)")


def natural(text: str) -> tuple[tuple[str | tuple[int, str], ...], str]:
    """A key that sorts text as people do: "item 2" before "Item 10".

    Capitals count as small letters, and digits of any script as the number they are; where two texts are still alike,
    their characters decide, so that no two have the same key.
    """
    parts = _DIGITS.split(text)  # in turns words and numbers, words first
    return tuple(_number(part) if i % 2 else part.casefold() for i, part in enumerate(parts)), text


def nfc(text: str) -> str:
    """Text in one form of Unicode: where é is one character, others make two of it, which look the same."""
    return unicodedata.normalize("NFC", text)


def _number(digits: str) -> tuple[int, str]:
    """How long a number is and its digits, which compare as the number does, but for any length at once."""
    plain = digits if digits.isascii() else "".join(str(unicodedata.decimal(digit)) for digit in digits)
    plain = plain.lstrip("0")
    return len(plain), plain
