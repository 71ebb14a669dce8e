"""Picture files below folders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import cache

from PIL import Image


@cache
def suffixes() -> frozenset[str]:
    """Suffixes of the formats Pillow can open, in lower case with their dot."""
    return frozenset(ext for ext, name in Image.registered_extensions().items() if name in Image.OPEN)


def find(root: str | os.PathLike[str]) -> Iterator[str]:
    """Picture files below a folder, by suffix, in sorted order; what is hidden is skipped.

    A folder that cannot be listed is given itself, so that reading it says why.
    """
    pending = [os.fspath(root)]  # a stack, for folders may be nested deeper than calls can be
    folders = set(pending)
    while pending:
        path = pending.pop()
        if path not in folders:
            yield path
            continue
        folders.remove(path)
        try:
            with os.scandir(path) as entries:
                found = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name, reverse=True)
        except OSError:
            yield path
            continue
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                folders.add(entry.path)
                pending.append(entry.path)
            elif os.path.splitext(entry.name)[1].lower() in suffixes():
                pending.append(entry.path)


def expand(paths: Iterable[str]) -> Iterator[str]:
    """Each file as given, each folder as the pictures below it, or itself if it has none."""
    for path in paths:
        below = find(path) if os.path.isdir(path) else iter(())
        first = next(below, path)
        yield first
        yield from below
