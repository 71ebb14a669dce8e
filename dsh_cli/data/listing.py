"""Folders and label files: which picture is of which class, before any is read."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dsh_cli.config import SPLITS
from dsh_cli.data.dataset import Skipped
from dsh_cli.errors import DataError, reason
from dsh_cli.files import open_regular
from dsh_cli.pictures import find

LABEL_FILES = (".csv", ".tsv", ".txt")
_DIGITS = 1000  # of a class name that is a number: Python reads no more than 4,300
_SHOWN = 1000  # characters of what a line says, in an error


@dataclass(frozen=True)
class Listing:
    """The files of a dataset, before any is read: path and class of each, by split ("train", "validation", "test")."""

    source: str
    parts: Mapping[str, Sequence[tuple[str, str]]]
    skipped: tuple[Skipped, ...] = ()  # class folders without pictures


def list_folder(root: Path) -> Listing:
    """A folder with a folder per class, with or without `train/` and `test/` above them.

    Raises:
        DataError: there are no pictures, or no class folders.
    """
    root = root.absolute()
    children = {entry.name for entry in _subfolders(root)}
    has_parts = bool(children) and children <= {"train", "test"}
    parts, skipped = {}, []
    for part in SPLITS if has_parts else ("train",):
        if not has_parts or part in children:
            parts[part], empty = _labelled_files(root / part if has_parts else root)
            skipped += empty
    return Listing(str(root), parts, tuple(skipped))


def list_labels(file: Path) -> Listing:
    """A CSV file of `path,label` and optionally `split`: train, validation or test.

    Paths are relative to the file. A first line that names the columns `path` and `label` is a header; columns may
    then stand in any order, and others are ignored. A `.tsv` file has tabs between its columns.

    Raises:
        DataError: a line is malformed, or its picture is missing or named twice; the message gives its number.
    """
    file = file.absolute()
    parts: dict[str, list[tuple[str, str]]] = {}
    lines: dict[str, int] = {}  # where each path stood
    for number, path, label, split in _label_rows(file):
        where = f"{file}, line {number}"
        if not label:
            raise DataError(f"{where}: no label for {path[-_SHOWN:]!r}; name its class, or remove the line")
        if split not in ("", *SPLITS):
            raise DataError(f"{where}: split {split[:_SHOWN]!r}; it is one of {', '.join(SPLITS)}, or empty for train")
        path = os.path.normpath(file.parent / path)
        if path in lines:
            raise DataError(f"{where}: {path} stands in line {lines[path]} already; remove one of the two")
        if not os.path.isfile(path):
            raise DataError(f"{where}: no picture at {path[-_SHOWN:]}; paths are relative to the folder of the file")
        lines[path] = number
        parts.setdefault(split or "train", []).append((path, label))
    if not parts:
        raise DataError(f"{file} names no pictures; each line is path,label")
    return Listing(str(file), parts)


def _label_rows(file: Path) -> Iterator[tuple[int, str, str, str]]:
    """Line number, path, label and split of each row."""
    try:
        # bytes that are not UTF-8 may be part of a path
        opened = os.fdopen(open_regular(file), newline="", encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise DataError(f"{file} cannot be read ({reason(error)}); name another file of path,label") from error
    with opened as text:
        reader = csv.reader(text, "excel-tab" if file.suffix.lower() == ".tsv" else "excel", strict=True)
        columns: dict[str, int] | None = None
        try:
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                if columns is None:
                    head = {cell.strip().lower(): i for i, cell in reversed(list(enumerate(cells)))}
                    columns = {name: head[name] for name in ("path", "label", "split") if name in head}
                    if {"path", "label"} <= columns.keys():
                        continue
                    columns = {"path": 0, "label": 1, "split": 2}
                    if len(cells) > 3:
                        raise DataError(
                            f"{file}, line {reader.line_num}: {len(cells)} columns without a header; "
                            "name them in the first line: path,label[,split]"
                        )
                fields = {name: cells[i].strip() for name, i in columns.items() if i < len(cells)}
                if not fields.get("path") or "label" not in fields:
                    raise DataError(
                        f"{file}, line {reader.line_num}: {','.join(cells)[:_SHOWN]!r} is not path,label[,split]"
                    )
                yield reader.line_num, fields["path"], fields["label"], fields.get("split", "").lower()
        except (OSError, csv.Error) as error:
            raise DataError(f"{file}, line {reader.line_num}: {error}; each line is path,label") from error


def sort_classes(names: Iterable[str]) -> list[str]:
    """Class names in order: as numbers where all of them are, else as text."""
    found = list(names)
    numeric = all(name.isdecimal() and len(name) <= _DIGITS for name in found)
    return sorted(found, key=lambda name: (int(name), name) if numeric else (0, name))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _subfolders(root: Path) -> list[os.DirEntry[str]]:
    real = root.resolve()
    with os.scandir(root) as entries:
        found = [entry for entry in entries if _is_folder(entry) and not entry.name.startswith(".")]
    # a link to what it lies in would give every picture twice
    return [e for e in found if not (e.is_symlink() and real.is_relative_to(Path(e.path).resolve()))]


def _labelled_files(root: Path) -> tuple[list[tuple[str, str]], list[Skipped]]:
    """Picture files below each class folder, at any depth, with their class; and the folders that have none."""
    files: list[tuple[str, str]] = []
    empty = []
    for folder in sorted(_subfolders(root), key=lambda entry: entry.name):
        found = [(path, folder.name) for path in find.find(folder.path)]
        files += found
        if not found:
            empty.append(Skipped(folder.path, "folder without pictures"))
    if not files:
        if next(find.find(root), None) is None:
            raise DataError(f"no pictures under {root}; a dataset is a folder with a folder of pictures per class")
        raise DataError(f"{root} holds pictures but no class folders; put those of each class in a folder of its own")
    return files, empty
