"""Ctrl-C where a training can stop without losing anything."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def held_back() -> Iterator[Callable[[], bool]]:
    """Hold Ctrl-C back until the caller asks, by what is yielded, whether it came; a second one acts at once.

    Threads other than the main one never hear of it, and where it is ignored it stays so.
    """
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    act, came = before, False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if came:
            act(number, frame)
        came = True

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, before)
    if came:  # since the caller last asked
        signal.raise_signal(signal.SIGINT)
