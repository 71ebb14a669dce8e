"""Work done ahead of whoever asks; how many processors there are, and are free."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_STAT, _CORES = Path("/proc/stat"), Path("/sys/devices/system/cpu")
_LOOK = 0.3  # seconds: thirty ticks of the system's clock


def default_workers() -> int:
    """As many workers as this process may use processors."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores() -> int:
    """Cores of the processors that this process may use: fewer, where two processors share one."""
    told = _CORES if hasattr(os, "sched_getaffinity") else None
    if told is None or not told.exists():
        return default_workers()
    named = (told / f"cpu{number}" / "topology" / "thread_siblings_list" for number in os.sched_getaffinity(0))
    return len({name.read_text() if name.exists() else str(name) for name in named})


def free_processors() -> int:
    """As many of this process's processors as others leave free now, one at least; all where the system does not tell.

    What runs at a lower priority gives way, and does not count. It is looked at for a third of a second, in which the
    caller is to do nothing.
    """
    before = _ticks()
    if not before:
        return default_workers()
    time.sleep(_LOOK)
    share = 0.0
    for processor, (free, all_) in _ticks().items():
        passed = all_ - before[processor][1] if processor in before else 0
        share += (free - before[processor][0]) / passed if passed > 0 else 1
    return max(1, round(share))


def _ticks() -> dict[int, tuple[int, int]]:
    """Ticks of the clock that each of this process's processors was free in, and all, by its number."""
    if not (_STAT.exists() and hasattr(os, "sched_getaffinity")):
        return {}
    ours, found = os.sched_getaffinity(0), {}
    for name, *counts in (line.split() for line in _STAT.read_text().splitlines()):
        number = name.removeprefix("cpu")
        if number.isdecimal() and int(number) in ours:
            _, nice, _, idle, waiting, *_ = times = [int(count) for count in counts[:8]]  # what follows is in these
            found[int(number)] = nice + idle + waiting, sum(times)
    return found


def ahead(
    items: Iterable[_Item], work: Callable[[list[_Item]], list[_Result]], workers: int, chunk: int, most: int
) -> Iterator[tuple[_Item, _Result]]:
    """Each item with what `work` makes of it, in order, done by `workers` threads while the caller is busy.

    They are given `chunk` items at a time, and about `most` are done before they are asked for: memory does not grow
    with the number of items.
    """
    source = iter(items)
    pending: deque[tuple[list[_Item], Future[list[_Result]]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            while some := list(islice(source, chunk)):
                pending.append((some, pool.submit(work, some)))
                if len(pending) > max(2 * workers, most // chunk):
                    oldest, results = pending.popleft()
                    yield from zip(oldest, results.result(), strict=True)
            while pending:
                oldest, results = pending.popleft()
                yield from zip(oldest, results.result(), strict=True)
        finally:
            for _, future in pending:
                future.cancel()
