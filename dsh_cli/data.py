"""Datasets: named sets, folders with a folder per class, label files; and their deterministic splits."""

from __future__ import annotations

import csv
import gzip
import math
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from platformdirs import user_cache_path

from dsh_cli import images
from dsh_cli.config import DATASETS, PROTOCOLS, SPLITS, UNSEEN, Augment, TrainConfig
from dsh_cli.errors import DataError, ImageError, UsageError, reason
from dsh_cli.pictures import Intake, PictureCache, PictureFiles
from dsh_cli.sources import CIFAR_FILES, IDX_FILES, NAMED_SETS, locate
from dsh_cli.threads import default_workers

NATIVE_UP_TO = 64  # pixels: pictures no larger keep their size by default
LARGE = 128  # pixels: the default size of all others
LABEL_FILES = (".csv", ".tsv", ".txt")
VALIDATION = 1000  # training pictures held out, at most; and no more than a tenth
MEMORY = 8 << 30  # bytes of a named set, at most
POOLED_QUERIES, POOLED_TRAIN = 1000, 5000  # pictures drawn from a whole set by cifar10 and cifar10-1
TEST_SHARE = 0.2  # of each class, where a set comes without a test part

_DIGITS = tuple("0123456789")
_FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CLASSES = {"mnist": _DIGITS, "fashion-mnist": _FASHION, "cifar10": _CIFAR, "digits": _DIGITS}
_AUGMENT: dict[str, Augment] = {"mnist": "digits", "digits": "digits"}  # all others: photos
_READ_AT_ONCE = 64  # pictures between two looks at the progress
_PROBED = 1000  # headers read to choose size and channels of a folder
# Streams of random numbers, so that one seed serves all.
_TEST_STREAM, _VALIDATION_STREAM, _POOL_STREAM, _CLASS_STREAM = 1, 2, 3, 4

Progress = Callable[[int, int], None]  # pictures done, pictures in all


@dataclass(frozen=True)
class Skipped:
    """A picture that could not be read, and why."""

    path: str
    error: str


@dataclass(frozen=True)
class Batch:
    """Pictures read at once: (b, H, W, channels) uint8, their (b,) rows in the dataset, and what could not be read."""

    images: NDArray[np.uint8]
    rows: NDArray[np.int64]
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """Labelled pictures, in memory or in their files.

    Attributes:
        images: (n, H, W, channels) uint8, or the files where that would be more than memory should hold.
        labels: (n,) int64, index into `classes`.
        classes: class names.
        names: the path of each picture, or a name such as `mnist/test/00012`.
        source: where the pictures came from.
        skipped: pictures of the source that could not be read; those in files are not known before they are read.
    """

    images: NDArray[np.uint8] | PictureFiles
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    names: tuple[str, ...]
    source: str
    skipped: tuple[Skipped, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_size(self) -> int:
        """Side of the pictures in pixels."""
        return int(self.images.shape[1])

    @property
    def channels(self) -> int:
        """1 for grey pictures, 3 for RGB."""
        return int(self.images.shape[3])

    def take(self, chosen: NDArray[np.bool_]) -> Dataset:
        """The pictures where `chosen` (n,) is true."""
        names = tuple(name for name, keep in zip(self.names, chosen, strict=True) if keep)
        return replace(self, images=self.images[chosen], labels=self.labels[chosen], names=names, skipped=())

    def read(self, batches: Iterable[NDArray[np.int64]]) -> Iterator[Batch]:
        """The pictures of each batch of rows; those in files are read ahead, while the caller is busy."""
        if not isinstance(self.images, PictureFiles):
            for rows in batches:
                yield Batch(self.images[rows], rows)
            return
        files = self.images
        waiting: deque[NDArray[np.int64]] = deque()  # batches whose paths were handed out, for those to come

        def paths() -> Iterator[str]:
            for rows in batches:
                waiting.append(rows)
                yield from (files.paths[row] for row in rows)

        results = files.intake.read(paths())
        for path, first in results:
            rows = waiting.popleft()
            read = [(path, first), *islice(results, len(rows) - 1)]
            pictures = [picture for _, picture in read if not isinstance(picture, ImageError)]
            failed = tuple(Skipped(path, str(error)) for path, error in read if isinstance(error, ImageError))
            fine = np.array([not isinstance(picture, ImageError) for _, picture in read])
            stacked = np.stack(pictures) if pictures else np.zeros((0, *files.shape[1:]), np.uint8)
            yield Batch(stacked, rows[fine], failed)


@dataclass(frozen=True)
class Splits:
    """Disjoint parts of one dataset. Validation informs; it is never trained on, nor used to choose."""

    train: Dataset
    validation: Dataset
    test: Dataset
    database: Dataset | None = None  # what a pooled protocol neither trains on nor looks up
    unseen: Dataset | None = None  # pictures of classes held out, which would have been trained on

    def parts(self) -> dict[str, Dataset]:
        """The splits there are, by name."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        more = {"database": self.database, UNSEEN: self.unseen}
        return {**parts, **{name: part for name, part in more.items() if part is not None}}

    def names(self) -> dict[str, tuple[str, ...]]:
        """Names of the pictures, by split."""
        return {split: part.names for split, part in self.parts().items()}


def load_splits(config: TrainConfig, progress: Progress | None = None) -> Splits:
    """Read the data a run asks for and split it by the run's seed.

    Raises:
        DataError: the data is missing, damaged, or cannot be learned from.
    """
    if config.pretrained and config.image_size is None:
        from dsh_cli.model import preset

        config = replace(config, image_size=preset(config.backbone).image_size)
    validation = None
    if config.data in DATASETS:
        train, test = _load_named(config)
    elif os.path.isdir(config.data):
        train, validation, test = _load_listing(list_folder(Path(config.data)), config, progress)
    elif os.path.lexists(config.data):
        if Path(config.data).suffix.lower() not in LABEL_FILES:
            raise DataError(
                f"{config.data} is a file; training takes a folder with a folder per class, or a CSV file of path,label"
            )
        train, validation, test = _load_listing(list_labels(Path(config.data)), config, progress)
    elif os.path.isabs(config.data):
        raise DataError(
            f"there is no folder or file {config.data} any more; move the pictures back, or train on those at their "
            "new place with: dsh train FOLDER --like RUN"
        )
    else:
        raise DataError(
            f"no dataset named {config.data!r}, and no such folder or file. "
            f"Named sets: {', '.join(DATASETS)}; or give a folder with a folder per class, or a CSV file of path,label"
        )
    _require_learnable(train, test is not None)
    skipped = train.skipped
    database = None
    if PROTOCOLS[config.protocol].pooled:
        pool = _joined([part for part in (train, validation, test) if part is not None])
        train, test, database = _draw(pool, config)
        validation = None
    elif test is None:
        held_out = _hold_out(train.labels, _test_counts(train.labels), [config.seed, _TEST_STREAM])
        test, train = train.take(held_out), train.take(~held_out)
    if validation is None:
        held_out = _hold_out(train.labels, _validation_counts(train.labels), [config.seed, _VALIDATION_STREAM])
        validation, train = train.take(held_out), train.take(~held_out)
    unseen = None
    if config.hold_out_classes:
        classes = _drawn_classes(train, config)
        validation = validation.take(~np.isin(validation.labels, classes))
        of_them = np.isin(train.labels, classes)
        unseen, train = train.take(of_them), train.take(~of_them)
    return Splits(replace(train, skipped=skipped), validation, test, database, unseen)


def default_augment(data: str) -> Augment:
    """The augmentation that fits a set: digits must not be mirrored, pictures of things may."""
    return _AUGMENT.get(data, "photos")


# Named sets


def _load_named(config: TrainConfig) -> tuple[Dataset, Dataset | None]:
    if config.data == "digits":
        return _resized(_load_digits(), config.image_size), None
    folder = locate(config.data, config.data_root)
    named = NAMED_SETS[config.data]
    read = _read_cifar if named.files is CIFAR_FILES else _read_idx_pair
    parts = []
    for split, files in zip(("train", "test"), _split_files(named.files), strict=True):
        pixels, labels = read(folder, files)
        names = tuple(f"{config.data}/{split}/{i:05d}" for i in range(len(labels)))
        part = Dataset(pixels, labels, _CLASSES[config.data], names, str(folder))
        parts.append(_resized(part, config.image_size))
    return parts[0], parts[1]


def _split_files(files: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return (files[:2], files[2:]) if files is IDX_FILES else (files[:-1], files[-1:])


def _load_digits() -> Dataset:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]  # 17 grey levels
    names = tuple(f"digits/{i:04d}" for i in range(len(pixels)))
    return Dataset(pixels, bunch.target.astype(np.int64), _DIGITS, names, "scikit-learn")


def _read_idx_pair(folder: Path, files: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    pixels, labels = (_read_idx(folder / file) for file in files)
    if pixels.ndim != 3 or labels.ndim != 1 or len(pixels) != len(labels) or labels.max(initial=0) > 9:
        raise DataError(f"{folder / files[0]} and {files[1]} do not belong together; delete both and try again")
    return pixels[..., None], labels.astype(np.int64)


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """An idx file of unsigned bytes, plain or gzipped: magic 0, 0, 8, dimensions, then their sizes."""
    data = _read_bytes(path)
    try:
        shape = np.frombuffer(data, ">u4", count=data[3], offset=4).astype(int)
        values = np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape))
        if data[:3] != b"\x00\x00\x08" or len(values) != shape.prod():
            raise ValueError("wrong length")
    except (ValueError, IndexError) as error:
        raise DataError(f"{path} is damaged ({error}); delete it and try again") from error
    return values.reshape(shape)


def _read_bytes(path: Path) -> bytes:
    """A file of a named set, plain or gzipped."""
    file = path if path.is_file() else path.with_name(f"{path.name}.gz")
    try:
        data = file.read_bytes()
        return data if file is path else gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} is damaged ({reason(error)}); delete it and try again") from error


def _read_cifar(folder: Path, files: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Records of one label byte and 3 x 32 x 32 bytes, colour plane by colour plane."""
    parts = []
    for file in files:
        path = folder / file
        data = _read_bytes(path)
        record = 1 + 3 * 32 * 32
        if not data or len(data) % record or max(data[::record]) >= len(_CIFAR):
            raise DataError(f"{path} is damaged; delete it and try again")
        parts.append(np.frombuffer(data, np.uint8).reshape(-1, record))
    records = np.concatenate(parts)
    pixels = np.ascontiguousarray(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return pixels, records[:, 0].astype(np.int64)


def _resized(dataset: Dataset, size: int | None) -> Dataset:
    if size is None or size == dataset.image_size:
        return dataset
    _require_memory(len(dataset), size, dataset.channels)
    grey = dataset.channels == 1
    assert isinstance(dataset.images, np.ndarray)
    resized = [
        np.asarray(Image.fromarray(p[..., 0] if grey else p).resize((size, size), Image.Resampling.BILINEAR))
        for p in dataset.images
    ]
    return replace(dataset, images=np.stack(resized).reshape(-1, size, size, dataset.channels))


# Folders and label files


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
            raise DataError(f"{where}: no label for {path!r}; name its class, or remove the line")
        if split not in ("", *SPLITS):
            raise DataError(f"{where}: split {split!r}; it is one of {', '.join(SPLITS)}, or empty for train")
        path = os.path.normpath(file.parent / path)
        if path in lines:
            raise DataError(f"{where}: {path} stands in line {lines[path]} already; remove one of the two")
        if not os.path.isfile(path):
            raise DataError(f"{where}: no picture at {path}; paths are relative to the folder of the file")
        lines[path] = number
        parts.setdefault(split or "train", []).append((path, label))
    if not parts:
        raise DataError(f"{file} names no pictures; each line is path,label")
    return Listing(str(file), parts)


def _label_rows(file: Path) -> Iterator[tuple[int, str, str, str]]:
    """Line number, path, label and split of each row."""
    try:
        # bytes that are not UTF-8 may be part of a path
        opened = file.open(newline="", encoding="utf-8-sig", errors="surrogateescape")
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
                    raise DataError(f"{file}, line {reader.line_num}: {','.join(cells)!r} is not path,label[,split]")
                yield reader.line_num, fields["path"], fields["label"], fields.get("split", "").lower()
        except (OSError, csv.Error) as error:
            raise DataError(f"{file}, line {reader.line_num}: {error}; each line is path,label") from error


def _load_listing(
    listing: Listing, config: TrainConfig, progress: Progress | None
) -> tuple[Dataset, Dataset | None, Dataset | None]:
    """Training, validation and test part, the latter two where the listing has them."""
    if "train" not in listing.parts:
        raise DataError(
            f"{listing.source} has no pictures to train on; put them under train/, or in a label file leave split empty"
        )
    classes = tuple(sort_classes({label for _, label in listing.parts["train"]}))
    numbers = {label: number for number, label in enumerate(classes)}
    files = [(path, label, part) for part in SPLITS for path, label in listing.parts.get(part, ())]
    for path, label, _ in files:
        if label not in numbers:
            raise DataError(
                f"{path} is of class {label!r}, which has no pictures to train on; rename the class, or leave it out"
            )
    paths = tuple(path for path, _, _ in files)
    pictures = _picture_files(listing.source, paths, config)
    labels = np.array([numbers[label] for _, label, _ in files], np.int64)
    everything = Dataset(pictures, labels, classes, paths, listing.source, listing.skipped)
    readable = np.ones(len(paths), bool)
    if _fits(pictures.shape, config):
        everything, readable = _into_memory(everything, progress)
    part_of = np.array([part for _, _, part in files])

    def part(name: str) -> Dataset:
        return replace(everything.take(readable & (part_of == name)), skipped=everything.skipped)

    validation, test = (part(name) if name in listing.parts else None for name in SPLITS[1:])
    return part("train"), validation, test


def sort_classes(names: Iterable[str]) -> list[str]:
    """Class names in order: as numbers where all of them are, else as text."""
    found = list(names)
    numeric = all(name.isdecimal() for name in found)
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
        found = [(path, folder.name) for path in images.find(folder.path)]
        files += found
        if not found:
            empty.append(Skipped(folder.path, "folder without pictures"))
    if not files:
        if next(images.find(root), None) is None:
            raise DataError(f"no pictures under {root}; a dataset is a folder with a folder of pictures per class")
        raise DataError(f"{root} holds pictures but no class folders; put those of each class in a folder of its own")
    return files, empty


def _picture_files(source: str, paths: tuple[str, ...], config: TrainConfig) -> PictureFiles:
    """The files as pictures of one size and colour, chosen from their headers where the request leaves them open."""
    shapes = _probe(source, paths)
    size = config.image_size
    if size is None:
        side = int(np.median([min(shape.width, shape.height) for shape in shapes]))
        size = side if side <= NATIVE_UP_TO else LARGE
    intake = Intake(size, 1 if all(shape.grey for shape in shapes) else 3, config.workers or default_workers())
    pictures = PictureFiles(paths, intake)
    if config.cache == "off" or (config.cache == "auto" and _fits(pictures.shape, config)):
        return pictures  # what memory holds is decoded only once
    folder = user_cache_path("dsh") / "pictures" if config.cache == "auto" else Path(config.cache).expanduser()
    return replace(pictures, intake=replace(intake, cache=PictureCache(folder, size, intake.channels)))


def _fits(shape: tuple[int, ...], config: TrainConfig) -> bool:
    return math.prod(shape) <= config.memory * 2**30


def _probe(source: str, paths: Sequence[str]) -> list[images.Shape]:
    """Headers of pictures spread evenly over `paths`; those that cannot be read are left out."""
    shapes, reason = [], ""
    for path in paths[:: max(1, len(paths) // _PROBED)]:
        try:
            shapes.append(images.probe(path))
        except ImageError as error:
            reason = reason or f"{path}: {error}"
    if not shapes:
        raise DataError(f"none of the pictures of {source} can be read ({reason})")
    return shapes


def _into_memory(dataset: Dataset, progress: Progress | None) -> tuple[Dataset, NDArray[np.bool_]]:
    """The dataset with its pictures as an array, and which of them (n,) could be read."""
    pixels = np.zeros(dataset.images.shape, np.uint8)
    readable = np.zeros(len(dataset), bool)
    skipped = list(dataset.skipped)
    done = 0
    for batch in dataset.read(in_order(len(dataset), _READ_AT_ONCE)):
        pixels[batch.rows] = batch.images
        readable[batch.rows] = True
        skipped += batch.skipped
        done += len(batch.rows) + len(batch.skipped)
        if progress is not None:
            progress(done, len(dataset))
    return replace(dataset, images=pixels, skipped=tuple(skipped)), readable


def in_order(count: int, size: int) -> Iterator[NDArray[np.int64]]:
    """The rows of a dataset of `count`, `size` at a time."""
    return (np.arange(start, min(start + size, count)) for start in range(0, count, size))


def _require_memory(count: int, size: int, channels: int) -> None:
    if (needed := count * size * size * channels) > MEMORY:
        raise DataError(
            f"{count:,} pictures of {size} x {size} pixels take {needed / 2**30:.0f} GiB of memory, more than the "
            f"{MEMORY >> 30} GiB there may be; choose a smaller --image-size"
        )


# Splits


def _require_learnable(train: Dataset, has_test: bool) -> None:
    if len(train.classes) < 2:
        raise DataError(
            f"{train.source} has one class only, {train.classes[0]!r}; hashing learns from pairs of different classes"
        )
    needed, why = (2, "to train on") if has_test else (3, "2 to train on and 1 to test, for it has no test/ folder")
    counts = np.bincount(train.labels, minlength=len(train.classes))
    few = int(counts.argmin())
    if counts[few] < needed:
        raise DataError(
            f"class {train.classes[few]!r} of {train.source} has {_pictures(int(counts[few]))}; "
            f"each class needs {needed}: {why}"
        )


def _pictures(count: int) -> str:
    return "1 readable picture" if count == 1 else f"{count} readable pictures"


def _test_counts(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pictures of each class to test on: a fifth, at least one, and two stay."""
    counts = np.bincount(labels)
    return np.minimum(np.maximum(1, np.round(counts * TEST_SHARE).astype(np.int64)), counts - 2)


def _validation_counts(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pictures of each class to validate on, in proportion, and two stay."""
    return np.minimum(_shares(labels, min(VALIDATION, len(labels) // 10)), np.maximum(np.bincount(labels) - 2, 0))


def _shares(labels: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """So many pictures of each class that they are `total`, in proportion (largest remainders)."""
    quotas = np.bincount(labels) * total / len(labels)
    shares = np.floor(quotas).astype(np.int64)
    most_cut = np.argsort(shares - quotas, kind="stable")
    shares[most_cut[: total - shares.sum()]] += 1
    return shares


def _draw(pool: Dataset, config: TrainConfig) -> tuple[Dataset, Dataset, Dataset]:
    """Training pictures, queries and database of a pooled protocol: disjoint, and each class in proportion."""
    needed = POOLED_QUERIES + POOLED_TRAIN
    if len(pool) <= needed:
        raise DataError(
            f"--protocol {config.protocol} takes {POOLED_QUERIES:,} queries and {POOLED_TRAIN:,} pictures to train on, "
            f"and the rest as database; {pool.source} has {len(pool):,}, so take another protocol, such as paper"
        )
    held_out = _hold_out(pool.labels, _shares(pool.labels, POOLED_QUERIES), [config.seed, _TEST_STREAM])
    queries, rest = pool.take(held_out), pool.take(~held_out)
    shares = _shares(rest.labels, POOLED_TRAIN)
    if shares.min() < 2:
        raise DataError(
            f"--protocol {config.protocol} leaves class {pool.classes[int(shares.argmin())]!r} of {pool.source} fewer "
            "than 2 of its pictures to train on; take another protocol, such as paper, or leave the class out"
        )
    chosen = _hold_out(rest.labels, shares, [config.seed, _POOL_STREAM])
    return rest.take(chosen), queries, rest.take(~chosen)


def _drawn_classes(dataset: Dataset, config: TrainConfig) -> NDArray[np.int64]:
    """Numbers of the classes to hold out."""
    classes = len(dataset.classes)
    if config.hold_out_classes > classes - 2:
        raise UsageError(
            f"--hold-out-classes {config.hold_out_classes}: {config.data} has {classes} classes, and two must be left "
            f"to train on; hold out {max(0, classes - 2)} at most"
        )
    return np.sort(np.random.default_rng([config.seed, _CLASS_STREAM]).permutation(classes)[: config.hold_out_classes])


def _joined(parts: Sequence[Dataset]) -> Dataset:
    """Parts of one dataset, one after the other."""
    files = [part.images for part in parts if isinstance(part.images, PictureFiles)]
    arrays = [part.images for part in parts if isinstance(part.images, np.ndarray)]
    images = (
        replace(files[0], paths=tuple(path for f in files for path in f.paths)) if files else np.concatenate(arrays)
    )
    names = tuple(name for part in parts for name in part.names)
    return replace(parts[0], images=images, labels=np.concatenate([part.labels for part in parts]), names=names)


def _hold_out(labels: NDArray[np.int64], counts: NDArray[np.int64], seed: list[int]) -> NDArray[np.bool_]:
    """A random mask (n,) with `counts[c]` pictures of each class c."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(len(labels), bool)
    for label, count in enumerate(counts):
        mask[rng.permutation(np.flatnonzero(labels == label))[:count]] = True
    return mask
