"""Ctrl-C, SIGTERM and the end of a terminal, where a training can stop without losing anything."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def held_back() -> Iterator[Callable[[], int]]:
    """Hold Ctrl-C, SIGTERM and SIGHUP back until the caller asks, by what is yielded, which came: its number, or 0.

    A second Ctrl-C acts at once; who sends SIGTERM again has SIGKILL. Threads other than the main one never hear of
    them, and where they are ignored, as under `nohup`, or the last two are minded by someone else, it stays so.
    """
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        if callable(signal.getsignal(signal.SIGINT)):
            before[signal.SIGINT] = signal.getsignal(signal.SIGINT)
        for ending in _ENDING:
            if (found := signal.getsignal(ending)) in (signal.SIG_DFL, signal.default_int_handler):  # see `processes`
                before[ending] = found
    came = 0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        act = before[signal.Signals(number)]
        if came and callable(act) and number == signal.SIGINT:
            act(number, frame)
        came = came or number

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: came
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is note:  # and nobody has come to mind it meanwhile
                signal.signal(number, handler)
    if came:  # since the caller last asked
        signal.raise_signal(came)
