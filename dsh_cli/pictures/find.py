"""Picture files below folders, and what is passed over there."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from enum import Enum
from functools import cache
from pathlib import Path

from PIL import Image

from dsh_cli.files import open_regular
from dsh_cli.pictures.formats import HEAD, HEIF_SUFFIXES, RAW_SUFFIXES, REFUSED, looks_like_picture

_LOOKS = 100  # at files of one suffix in a row that were no pictures
# What systems leave among pictures, in lower case: thumbnails and trash of network drives, of Windows and macOS, what
# archives keep of macOS, and what a check of a disk found.
_OF_SYSTEMS = frozenset(
    ("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@tmp", "$recycle.bin", "recycler")
    + ("system volume information", "found.000", "network trash folder", "temporary items", "__macosx", "lost+found")
)
_OF_RUN = {"config.json", "metrics.json", "splits.json"}  # in a run folder, whose pictures are of others


class Kind(Enum):
    """What can be left out: what one is called, what many are, and what to do."""

    UNREADABLE = "unreadable picture", "unreadable pictures", "dsh hash names each"
    EMPTY = "class folder without pictures", "class folders without pictures", ""
    LOOSE = "picture beside class folders", "pictures beside class folders", "move into the folder of a class"
    UNNAMED = "picture not named as one", "pictures not named as such", "rename, as to .jpg"
    RAW = "camera raw file", "camera raw files", "export as JPEG or TIFF"
    LINK = "link back, or to a folder that is taken anyway", "links back, or to folders that are taken anyway", ""
    RUN = "run folder of dsh, whose pictures are of others", "run folders of dsh, whose pictures are of others", ""
    DEAD = "link that leads nowhere", "links that lead nowhere", ""


class LeftOut:
    """What a search for pictures passed over: how many of each kind, and the first.

    Args:
        base: a folder to which the paths that are told are relative; none: they are as they came.
    """

    def __init__(self, base: str = "") -> None:
        self._base = os.path.join(base, "")
        self.counts: Counter[Kind] = Counter()
        self._first: dict[Kind, str] = {}
        self._in_vain: Counter[str] = Counter()  # looks at files, by suffix

    def add(self, kind: Kind, path: str, why: str = "") -> None:
        """Note one."""
        self.counts[kind] += 1
        path = path.removeprefix(self._base)
        self._first.setdefault(kind, f"{path} ({why})" if why else path)

    def lines(self, most: int = len(Kind)) -> list[str]:
        """A sentence for each kind, in `most` lines: where they are more, the last has what is left, in short."""
        kinds = [kind for kind in Kind if self.counts[kind]]
        alone = kinds if len(kinds) <= most else kinds[: most - 1]
        lines = [f"left out: {self._counted(kind)}{self._more_of(kind)}" for kind in alone]
        if rest := kinds[len(alone) :]:
            lines.append(f"left out: {', '.join(map(self._counted, rest))}")
        return lines

    def _counted(self, kind: Kind) -> str:
        one, many, _ = kind.value
        return f"1 {one}" if self.counts[kind] == 1 else f"{self.counts[kind]:,} {many}"

    def _more_of(self, kind: Kind) -> str:
        advice = kind.value[2]
        return f", {'' if self.counts[kind] == 1 else 'first '}{self._first[kind]}{advice and f'; {advice}'}"

    def look_at(self, path: str, suffix: str) -> None:
        """Note a file that is no picture by its suffix, where it is one all the same, or a camera's raw file."""
        if suffix in RAW_SUFFIXES:
            self.add(Kind.RAW, path)
        elif not os.path.exists(path):
            self.add(Kind.DEAD, path)
        elif self._in_vain[suffix] < _LOOKS:
            self._in_vain[suffix] += 1
            if found := _format_of(path):
                self._in_vain[suffix] = 0
                self.add(Kind.RAW if found == "raw" else Kind.UNNAMED, path)


@cache
def suffixes() -> frozenset[str]:
    """Suffixes of the formats that are read, in lower case with their dot."""
    known = Image.registered_extensions().items()
    # MPO opens as JPEG
    read = {ext for ext, name in known if (name in Image.OPEN or name == "MPO") and name not in REFUSED}
    return HEIF_SUFFIXES | read


class Search:
    """A search for picture files in a folder and below it, by suffix.

    What is hidden is skipped, and so is what systems leave behind, and run folders. Links to files are followed; those
    to folders too, unless they lead to a place that the search comes to anyway or to one they lie in: no folder is
    taken twice.

    Args:
        root: the folder.
        left_out: told of what is passed over, other than what is hidden or a system's.
    """

    def __init__(self, root: str | os.PathLike[str], left_out: LeftOut | None = None) -> None:
        self.root = os.fspath(root)
        self._real = Path(os.path.realpath(root))
        self._left_out = left_out
        self._linked: set[str] = set()  # paths of folders reached through links
        self._led_to: set[tuple[int, int]] = set()  # the same folders, whatever their paths

    def below(self, folder: str) -> Iterator[str]:
        """Those below one of its folders, sorted. One that cannot be listed is given itself, so reading it says why."""
        pending = [folder]  # a stack, for folders may be nested deeper than calls can be
        folders = set(pending)
        while pending:
            path = pending.pop()
            if path not in folders:
                yield path
                continue
            folders.remove(path)
            try:
                inside, files = self.listed(path)
            except OSError:
                yield path
                continue
            folders.update(inside)
            pending += sorted((*inside, *files), reverse=True)

    def listed(self, folder: str) -> tuple[list[str], list[str]]:
        """The folders in one, and the picture files in it, each sorted.

        Raises:
            OSError: it cannot be listed.
        """
        folders, files = [], []
        with os.scandir(folder) as scanned:
            entries = sorted(scanned, key=lambda entry: entry.name)
        if folder != self.root and {entry.name for entry in entries} >= _OF_RUN:
            if self._left_out is not None:
                self._left_out.add(Kind.RUN, folder)
            return [], []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                if self._enters(entry, folder):
                    folders.append(entry.path)
            elif (suffix := os.path.splitext(entry.name)[1].lower()) in suffixes():
                files.append(entry.path)
            elif self._left_out is not None:
                self._left_out.look_at(entry.path, suffix)
        return folders, files

    def _enters(self, entry: os.DirEntry[str], folder: str) -> bool:
        if entry.name.lower() in _OF_SYSTEMS:
            return False
        is_link = entry.is_symlink()
        if is_link or folder in self._linked:
            status = entry.stat()
            place = status.st_dev, status.st_ino
            if place in self._led_to or (is_link and self._leads_back(entry.path, folder)):
                if self._left_out is not None:
                    self._left_out.add(Kind.LINK, entry.path)
                return False
            self._led_to.add(place)
            self._linked.add(entry.path)
        return True

    def _leads_back(self, link: str, folder: str) -> bool:
        """Whether a link in a folder leads to one that the search comes to anyway, or that itself or the root is in."""
        target = Path(os.path.realpath(link))
        if self._real.is_relative_to(target) or Path(os.path.realpath(folder)).is_relative_to(target):
            return True
        if not target.is_relative_to(self._real):
            return False
        between = target.relative_to(self._real).parts
        return not any(name.startswith(".") or name.lower() in _OF_SYSTEMS for name in between)


def find(root: str | os.PathLike[str], left_out: LeftOut | None = None) -> Iterator[str]:
    """Picture files below a folder, sorted; see `Search`."""
    return Search(root, left_out).below(os.fspath(root))


def expand(paths: Iterable[str], left_out: LeftOut | None = None) -> Iterator[str]:
    """Each file as given, each folder as the pictures below it, or itself if it has none."""
    for path in paths:
        below = find(path, left_out) if os.path.isdir(path) else iter(())
        first = next(below, path)
        yield first
        yield from below


def _format_of(path: str) -> str | None:
    """The format of a picture by how its file begins; None if it is none, or cannot be read."""
    try:
        if not os.stat(path).st_size:  # as what a system makes up as it is read, and may be waited for
            return None
        descriptor = open_regular(path)
        try:
            return looks_like_picture(os.read(descriptor, HEAD))
        finally:
            os.close(descriptor)
    except OSError:
        return None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
