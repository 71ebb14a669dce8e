"""Work done ahead of whoever asks; how many processors there are."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def default_workers() -> int:
    """As many workers as this process may use processors."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
