"""Text as people read it."""

from __future__ import annotations

import re
import unicodedata
from contextlib import suppress

_DIGITS = re.compile(r"(\d+)")


def natural(text: str) -> tuple[tuple[str | tuple[int, str], ...], str]:
    """A key that sorts text as people do: "item 2" before "Item 10".

    Capitals count as small letters, and digits of any script as the number they are; where two texts are still alike,
    their characters decide, so that no two have the same key.
    """
    parts = _DIGITS.split(text)  # in turns words and numbers, words first
    return tuple(_number(part) if i % 2 else part.casefold() for i, part in enumerate(parts)), text


def counted(number: int, noun: str) -> str:
    """A number and what it counts."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def nfc(text: str) -> str:
    """Text in one form: é is one character, where others make two of it, or bytes under a locale that lacks it."""
    with suppress(UnicodeEncodeError):  # of half a character, which no file name gives
        text = of_utf8(utf8(text))
    return unicodedata.normalize("NFC", text)


def utf8(text: str) -> bytes:
    """Text as UTF-8 whatever the locale, where `os.fsencode` fails; bytes that are no text stay as they were."""
    return text.encode("utf-8", "surrogateescape")


def of_utf8(data: bytes) -> str:
    """Undo `utf8`."""
    return data.decode("utf-8", "surrogateescape")


def _number(digits: str) -> tuple[int, str]:
    """How long a number is and its digits, which compare as the number does, but for any length at once."""
    plain = digits if digits.isascii() else "".join(str(unicodedata.decimal(digit)) for digit in digits)
    plain = plain.lstrip("0")
    return len(plain), plain
