"""Folders and label files: which picture is of which class, before any is read."""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TextIO

from dsh_cli.config import SPLITS
from dsh_cli.errors import DataError, reason
from dsh_cli.files import open_regular
from dsh_cli.pictures.find import Kind, LeftOut, Search
from dsh_cli.words import natural, nfc, utf8

LABEL_FILES = (".csv", ".tsv", ".txt")
# Folders of splits, and what a label file may call them, in small letters.
_SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("validation", "val", "valid", "dev"), "validation"
)
# What a header may call each column, in small letters.
_COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "image_name")
    + ("img", "img_path", "picture"),
    "label": ("label", "class", "category", "class_name", "label_name", "target"),
    "split": ("split", "set", "subset", "partition"),
}
_ESCAPED = re.compile("[\udc80-\udcff]")  # bytes that are no UTF-8
_HEAD = 512  # bytes by which the encoding of a label file is known
_NAMED = 5  # folders in an error
UNLABELLED = ""  # the class of pictures that have none
_SHOWN = 1000  # characters of what a line says, in an error


@dataclass(frozen=True)
class Listing:
    """The files of a dataset, before any is read: path and class of each, by split ("train", "validation", "test")."""

    source: str
    parts: Mapping[str, Sequence[tuple[str, str]]]
    left_out: LeftOut = field(default_factory=LeftOut)


def split_called(name: str) -> str | None:
    """The split that a name means, such as `val`; None if it is none."""
    return _SPLIT_NAMES.get(name.strip().lower())


def list_folder(root: Path, left_out: LeftOut | None = None) -> Listing:
    """A folder with a folder per class, at any depth, with or without such as `train/` and `test/` above these.

    Args:
        root: the folder.
        left_out: told of what is left out; None: one of the listing's own.

    Raises:
        DataError: there are no pictures, no class folders, or folders of splits beside others.
    """
    left_out = left_out or LeftOut()
    search = Search(root.absolute(), left_out)
    folders, loose = search.listed(search.root)
    by_split = _by_split(search.root, folders)
    if not by_split:
        return Listing(search.root, {"train": _labelled(search, search.root, folders, loose, left_out)}, left_out)
    for path in loose:
        left_out.add(Kind.LOOSE, path)
    parts = {
        split: _labelled(search, by_split[split], *search.listed(by_split[split]), left_out)
        for split in SPLITS
        if split in by_split
    }
    return Listing(search.root, parts, left_out)


def list_pictures(root: Path, left_out: LeftOut | None = None) -> Listing:
    """As `list_folder`, of a folder that needs no classes.

    Where pictures lie beside its folders, or in fewer than two, these are no classes, and all below is `UNLABELLED`.

    Raises:
        DataError: there are no pictures.
    """
    first = Search(root.absolute())
    folders, loose = first.listed(first.root)
    by_split = _by_split(first.root, folders)
    inside = [first.listed(folder) for folder in by_split.values()] or [(folders, loose)]
    if not any(beside for _, beside in inside) and all(len(classes) > 1 for classes, _ in inside):
        return list_folder(root, left_out)
    left_out = left_out or LeftOut()
    search = Search(root.absolute(), left_out)
    parts = {
        split: [(path, UNLABELLED) for path in search.below(folder)]
        for split, folder in (by_split or {"train": search.root}).items()
    }
    if not any(parts.values()):
        raise DataError("; ".join([f"no pictures under {search.root}", *left_out.lines()]))
    return Listing(search.root, parts, left_out)


def split_folders(root: Path) -> dict[str, str]:
    """The folder of each split in a folder, as `list_folder` takes it; none where its folders are of classes.

    Raises:
        DataError: there are folders of splits beside others.
        OSError: it cannot be listed.
    """
    search = Search(root.absolute())
    return _by_split(search.root, search.listed(search.root)[0])


def _by_split(root: str, folders: Sequence[str]) -> dict[str, str]:
    """The folder of each split; none where folders are of classes."""
    splits = [(split, path) for path in folders if (split := _SPLIT_NAMES.get(_name(path).lower()))]
    others = [_name(path) for path in folders if _name(path).lower() not in _SPLIT_NAMES]
    if len(splits) == 1 and others and not _has_folders(splits[0][1]):
        return {}  # a class, such as that of trains
    by_split = dict(splits)
    names = ", ".join(_name(path) for _, path in splits)
    if len(by_split) < len(splits):
        raise DataError(f"{root} has a split under two names, of {names}; move the pictures of one to the other")
    if by_split and others:
        seen = ", ".join(others[:_NAMED]) + (f" and {len(others) - _NAMED:,} more" if len(others) > _NAMED else "")
        raise DataError(
            f"{root} has folders of splits ({names}) beside others ({seen}), so which are classes? "
            f"Rename the others or move them elsewhere, or give {by_split.get('train', splits[0][1])} alone"
        )
    return by_split


def _has_folders(path: str) -> bool:
    return bool(Search(path).listed(path)[0])


def _name(path: str) -> str:
    return nfc(os.path.basename(path))


def _labelled(
    search: Search, folder: str, folders: Sequence[str], loose: Sequence[str], left_out: LeftOut
) -> list[tuple[str, str]]:
    """Picture files below each class folder, at any depth, with their class."""
    files: list[tuple[str, str]] = []
    for path in folders:
        found = [(file, _name(path)) for file in search.below(path)]
        files += found
        if not found:
            left_out.add(Kind.EMPTY, path)
    if not files:
        if loose:
            raise DataError(
                f"{folder} holds pictures but no class folders; put those of each class in a folder of its own"
            )
        raise DataError(
            "; ".join(
                [f"no pictures under {folder}; a dataset is a folder with a folder of pictures per class"]
                + left_out.lines()
            )
        )
    for path in loose:
        left_out.add(Kind.LOOSE, path)
    return files


def list_labels(file: Path, needed: bool = True) -> Listing:
    """A CSV file of `path,label` and optionally `split`: train, validation or test.

    Where labels are not needed it may have none, and be of paths alone: all are `UNLABELLED` then.

    Paths are relative to the file. A first line that names the columns is a header, see `_COLUMNS`; columns may then
    stand in any order, and others are ignored. Between columns may be commas, semicolons or tabs.

    Raises:
        DataError: a line is malformed, or its picture is missing or named twice; the message gives its number.
    """
    file = file.absolute()
    parts: dict[str, list[tuple[str, str]]] = {}
    lines: dict[str, int] = {}  # where each path stood
    for number, path, label, split in _label_rows(file, needed):
        where = f"{file}, line {number}"
        if not label and needed:
            raise DataError(f"{where}: no label for {path[-_SHOWN:]!r}; name its class, or remove the line")
        if not label.isascii() and _ESCAPED.search(label):
            raise DataError(f"{where}: the label {label[:_SHOWN]!r} is not UTF-8; save the file as UTF-8")
        if split and split not in _SPLIT_NAMES:
            raise DataError(f"{where}: split {split[:_SHOWN]!r}; it is one of {', '.join(SPLITS)}, or empty for train")
        there = _there(file.parent, path)
        if there is None:
            header = "" if number > 1 else "; where this line is a header, it names the columns path and label"
            raise DataError(
                f"{where}: no picture at {os.path.join(file.parent, path)[-_SHOWN:]}; "
                f"paths are relative to the folder of the file{header}"
            )
        if there in lines:
            raise DataError(f"{where}: {there} stands in line {lines[there]} already; remove one of the two")
        lines[there] = number
        parts.setdefault(_SPLIT_NAMES[split] if split else "train", []).append((there, nfc(label)))
    if not parts:
        raise DataError(f"{file} names no pictures; each line is path,label")
    lacking = [there for part in parts.values() for there, label in part if label == UNLABELLED]
    if 0 < len(lacking) < len(lines):
        first = lacking[0]
        raise DataError(f"{file}, line {lines[first]}: no label for {first}, and others have one; name all or none")
    return Listing(str(file), parts)


def _there(folder: Path, path: str) -> str | None:
    """The file that a label file means: as it is written, as Windows writes it, or with letters in another form."""
    for written in (path, path.replace("\\", "/")):
        for form in (written, nfc(written), unicodedata.normalize("NFD", written)):
            with suppress(UnicodeEncodeError):  # of half a character
                file = os.path.normpath(folder / os.fsdecode(utf8(form)))
                if os.path.isfile(file):
                    return file
    return None


def _label_rows(file: Path, needed: bool) -> Iterator[tuple[int, str, str, str]]:
    """Line number, path, label and split of each row; what it lacks is empty."""
    try:
        opened = os.fdopen(open_regular(file), "rb")
    except OSError as error:
        raise DataError(f"{file} cannot be read ({reason(error)}); name another file of path,label") from error
    with opened, _decoded(file, opened) as text:
        number = 0
        columns: dict[str, int] | None = None
        try:
            first = next((line for line in text if line.strip()), "")
            named = re.fullmatch(r"\s*sep=(.)\s*", first)  # how Excel is told of it
            if named is None:
                text.seek(0)
            reader = csv.reader(text, delimiter=named[1] if named else _delimiter(file, first, needed), strict=True)
            for cells in reader:
                number = reader.line_num + (named is not None)
                if not any(cell.strip() for cell in cells):
                    continue
                if columns is None:
                    columns = _header(file, cells, needed)
                    if columns is not None:
                        continue
                    columns = {"path": 0, "label": 1, "split": 2}
                    if len(cells) > 3:
                        raise DataError(
                            f"{file}, line {number}: {len(cells)} columns without a header; "
                            "name them in the first line: path,label[,split]"
                        )
                fields = {name: cells[i].strip() for name, i in columns.items() if i < len(cells)}
                if not fields.get("path") or (needed and "label" not in fields):
                    raise DataError(
                        f"{file}, line {number}: {','.join(cells)[:_SHOWN]!r} is not path,label[,split]; "
                        "between columns are commas, semicolons or tabs"
                    )
                yield number, fields["path"], fields.get("label", UNLABELLED), fields.get("split", "").lower()
        except (OSError, csv.Error, UnicodeError) as error:
            raise DataError(f"{file}, line {number + 1}: {error}; each line is path,label") from error


def _decoded(file: Path, opened: BinaryIO) -> TextIO:
    """The text of a file: UTF-8, with bytes that are not, for they may be of a path; or UTF-16, where it says so."""
    head = opened.read(_HEAD)
    opened.seek(0)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return io.TextIOWrapper(opened, "utf-16", newline="")
    if len(head) > 1 and (not any(head[1::2]) or not any(head[::2])):
        raise DataError(f"{file} is UTF-16 without the mark that says so; save it as UTF-8")
    return io.TextIOWrapper(opened, "utf-8-sig", "surrogateescape", newline="")


def _delimiter(file: Path, line: str, needed: bool) -> str:
    """What stands between columns: by which the first line is a header, or names a file that is there.

    Else the first by which it has columns.
    """
    usual = "\t,; " if file.suffix.lower() == ".tsv" else ",;\t "
    if not needed and _there(file.parent, line.strip()):
        return "\x1f"  # it is a list of paths, whatever stands in them
    parted = []
    for delimiter in usual:
        try:
            cells = next(csv.reader([line], delimiter=delimiter), [])
        except csv.Error:  # that the first line says to whoever reads it
            break
        if _header(file, cells, needed) or (len(cells) > 1 and _there(file.parent, cells[0].strip())):
            return delimiter
        parted += [delimiter] * (1 < len(cells) < 4 and delimiter != " ")
    return parted[0] if parted else usual[0]


def _header(file: Path, cells: Sequence[str], needed: bool) -> dict[str, int] | None:
    """Where each column stands, if these name them; of two names for one, that which is first in `_COLUMNS`.

    Where labels are not needed they may have no column; but then these name none where the first names a picture.
    """
    places = {cell.strip().lower(): i for i, cell in reversed(list(enumerate(cells)))}
    columns = {}
    for column, names in _COLUMNS.items():
        place = next((places[name] for name in names if name in places), None)
        if place is not None:
            columns[column] = place
    if "path" not in columns or ("label" not in columns and (needed or _there(file.parent, cells[0].strip()))):
        return None
    return columns


def sort_classes(names: Iterable[str]) -> list[str]:
    """Class names in the order in which people count: 2 before 10, "item 2" before "item 10"."""
    return sorted(names, key=natural)
