"""Which of several processes that `torchrun` has started this is, and which of them speaks. Free of torch."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Protocol

_PATIENCE = 0.5  # seconds that others leave to the first to say what ended all of them
_LAST = timedelta(seconds=5)  # for what is being said by another; who ends before it may have that one ended too
_TOLD, _SAID = "dsh/told", "dsh/said"  # keys of the store


class Store(Protocol):
    """What all processes share: of `torch.distributed`."""

    def add(self, key: str, amount: int) -> int:
        """Add to a number, and say what it then is."""

    def set(self, key: str, value: str) -> None:
        """Keep a value."""

    def wait(self, keys: list[str], timeout: timedelta) -> None:
        """Wait until there are values of these keys."""


_store: Store | None = None
_is_mine = False  # whether this process says what ended the training


def meet(store: Store) -> None:
    """From now on settle who speaks by what all share."""
    global _store, _is_mine
    _store, _is_mine = store, False


def launched() -> bool:
    """Whether `torchrun` has started several processes, of which this is one."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def may_speak() -> bool:
    """Whether this process is alone, or the first of several."""
    return not launched() or os.environ.get("RANK") == "0"


@contextmanager
def telling() -> Iterator[bool]:
    """Whether this process is to say what ended the training: of several one does, the first if it lives.

    Another waits until that has been said, for `torchrun` ends all when one has ended.
    """
    global _is_mine
    if not may_speak() and not _is_mine:
        time.sleep(_PATIENCE)
    if _store is None or _is_mine:
        yield bool(_is_mine) or may_speak()
        return
    try:
        _is_mine = _store.add(_TOLD, 1) == 1
    except RuntimeError:  # torchrun, which has the store, is gone
        _is_mine = True
    yield _is_mine
    with suppress(RuntimeError):
        if _is_mine:
            _store.set(_SAID, "")
        else:
            _store.wait([_SAID], _LAST)
