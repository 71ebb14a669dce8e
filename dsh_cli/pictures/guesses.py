"""What was guessed of pictures while they were read, for whoever asked for them to be told."""

from __future__ import annotations

from threading import Lock

_made: dict[str, None] = {}  # in the order in which they were made
_lock = Lock()


def note(text: str) -> None:
    """Keep a guess, once however many pictures it was made of."""
    with _lock:
        _made[text] = None


def take() -> list[str]:
    """The guesses since this was last asked for."""
    with _lock:
        made = list(_made)
        _made.clear()
    return made
