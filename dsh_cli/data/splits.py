"""Data as a run asks for it: read, and split by a seed."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_path

from dsh_cli.config import DATASETS, PROTOCOLS, SPLITS, UNSEEN, Augment, TrainConfig
from dsh_cli.data.dataset import Dataset, Progress, Skipped, in_order
from dsh_cli.data.listing import (
    LABEL_FILES,
    UNLABELLED,
    Listing,
    list_folder,
    list_labels,
    list_pictures,
    sort_classes,
)
from dsh_cli.data.named import load_named
from dsh_cli.data.vectors import is_vectors, read_vectors
from dsh_cli.errors import DataError, ImageError, UsageError
from dsh_cli.files import expanded
from dsh_cli.network.presets import chosen, expecting
from dsh_cli.pictures import decode
from dsh_cli.pictures.cache import PictureCache
from dsh_cli.pictures.find import Kind, LeftOut
from dsh_cli.pictures.reading import Intake, PictureFiles
from dsh_cli.threads import default_workers

NATIVE_UP_TO = 64  # pixels: pictures no larger keep their size by default
LARGE = 128  # pixels: the default size of all others
VALIDATION = 1000  # training pictures held out, at most; and no more than a tenth
POOLED_QUERIES, POOLED_TRAIN = 1000, 5000  # pictures drawn from a whole set by cifar10 and cifar10-1
TEST_SHARE = 0.2  # of each class, where a set comes without a test part
_AUGMENT: dict[str, Augment] = {"mnist": "digits", "digits": "digits"}  # all others: photos
_READ_AT_ONCE = 64  # pictures between two looks at the progress
_MEND = "bring readable ones in their place, or leave them out"
_NAMED = 5  # classes in an error
_PROBED = 1000  # headers read to choose size and channels of a folder
# Streams of random numbers, so that one seed serves all.
_TEST_STREAM, _VALIDATION_STREAM, _POOL_STREAM, _CLASS_STREAM = 1, 2, 3, 4


@dataclass(frozen=True)
class Splits:
    """Disjoint parts of one dataset. Validation informs; it is never trained on, nor used to choose."""

    train: Dataset
    validation: Dataset
    test: Dataset
    database: Dataset | None = None  # what a pooled protocol neither trains on nor looks up
    unseen: Dataset | None = None  # pictures of classes held out, which would have been trained on
    given: tuple[str, ...] = ()  # splits that the data came with; the others were drawn from "train"
    left_out: LeftOut = field(default_factory=LeftOut)  # of folders and label files

    def parts(self) -> dict[str, Dataset]:
        """The splits there are, by name."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        more = {"database": self.database, UNSEEN: self.unseen}
        return {**parts, **{name: part for name, part in more.items() if part is not None}}

    def each(self, change: Callable[[Dataset], Dataset]) -> Splits:
        """The same, with every split changed."""
        database, unseen = (None if part is None else change(part) for part in (self.database, self.unseen))
        train, validation, test = (change(part) for part in (self.train, self.validation, self.test))
        return Splits(train, validation, test, database, unseen, self.given, self.left_out)

    def names(self) -> dict[str, tuple[str, ...]]:
        """Names of the pictures, by split."""
        return {split: part.names for split, part in self.parts().items()}


def load_splits(config: TrainConfig, progress: Progress | None = None) -> Splits:
    """Read the data a run asks for and split it by the run's seed.

    Raises:
        DataError: the data is missing, damaged, or cannot be learned from.
        UsageError: there are too few classes for `hold_out_classes`, or a path begins with an unknown `~user`.
    """
    config = expecting(config if is_vectors(config.data) else chosen(config))
    validation, left_out = None, LeftOut(os.path.abspath(config.data))
    if config.data in DATASETS:
        train, test = load_named(config)
    elif os.path.isdir(config.data):
        listed = list_folder if config.method == "dsh" else list_pictures
        train, validation, test = _load_listing(listed(Path(config.data), left_out), config, progress)
    elif os.path.lexists(config.data):
        if is_vectors(config.data):
            train, validation, test = _load_vectors(config)
        elif Path(config.data).suffix.lower() in LABEL_FILES:
            listing = replace(list_labels(Path(config.data), config.method == "dsh"), left_out=left_out)
            train, validation, test = _load_listing(listing, config, progress)
        else:
            raise DataError(
                f"{config.data} is a file; training takes a folder with a folder per class, a CSV file of path,label, "
                "or vectors in a .parquet or .npz file"
            )
    elif os.path.isabs(config.data):
        raise DataError(
            f"there is no folder or file {config.data} any more; move the pictures back, or train on those at their "
            "new place with: dsh train FOLDER --like RUN"
        )
    else:
        raise DataError(
            f"no dataset named {config.data!r}, and no such folder or file. "
            f"Named sets: {', '.join(DATASETS)}; or give a folder with a folder per class, a CSV file of path,label, "
            "or a file of vectors"
        )
    if not train.classes:
        return _unlabelled(config, train, validation, test, left_out)
    _require_learnable(train, test is not None, left_out)
    given = tuple(name for name, part in zip(SPLITS, (train, validation, test), strict=True) if part is not None)
    skipped = train.skipped
    database = None
    if PROTOCOLS[config.protocol].pooled:
        pool = _joined([part for part in (train, validation, test) if part is not None])
        train, test, database = _draw(pool, config)
        validation, given = None, ()
    elif test is None:
        held_out = _hold_out(train.labels, _test_counts(train.labels), [config.seed, _TEST_STREAM])
        test, train = train.take(held_out), train.take(~held_out)
    if validation is None:
        held_out = _hold_out(train.labels, _validation_counts(train.labels), [config.seed, _VALIDATION_STREAM])
        validation, train = train.take(held_out), train.take(~held_out)
    unseen = None
    if config.hold_out_classes:
        drawn = _drawn_labels(train, config)
        validation = validation.take(~np.isin(validation.labels, drawn))
        of_them = np.isin(train.labels, drawn)
        unseen, train = train.take(of_them), train.take(~of_them)
    return Splits(replace(train, skipped=skipped), validation, test, database, unseen, given, left_out)


def _unlabelled(
    config: TrainConfig, train: Dataset, validation: Dataset | None, test: Dataset | None, left_out: LeftOut
) -> Splits:
    """The splits of pictures of no class: all are to train on, where the data does not say otherwise.

    Raises:
        UsageError: the request needs classes.
    """
    if PROTOCOLS[config.protocol].pooled or config.hold_out_classes:
        name = "hold_out_classes" if config.hold_out_classes else "protocol"
        raise UsageError(f"`{name}` is of classes, and {train.source} has none; leave it out")
    given = tuple(name for name, part in zip(SPLITS, (train, validation, test), strict=True) if part is not None)
    none = train.take(np.zeros(len(train), bool))
    return Splits(train, validation or none, test or none, given=given, left_out=left_out)


def default_augment(data: str) -> Augment:
    """The augmentation that fits a set: digits must not be mirrored, pictures of things may."""
    return _AUGMENT.get(data, "photos")


def _load_vectors(config: TrainConfig) -> tuple[Dataset, Dataset | None, Dataset | None]:
    """Training, validation and test part of a file of vectors, the latter two where it has them."""
    found = read_vectors(config.data)
    if found.labels is None and config.method == "dsh":
        raise DataError(
            f"{found.source} has no labels; add a column 'label' with the class of each vector, or learn without "
            "classes by `method` itq"
        )
    part_of = np.array(found.splits or ["train"] * len(found))
    labels = np.array(found.labels or [UNLABELLED] * len(found), object)
    of_training = part_of == "train"
    if not of_training.any():
        raise DataError(f"{found.source} has no vectors to train on; let the split of some be train")
    classes = _classes(set(labels[of_training].tolist()))
    numbers = _numbers(classes)
    for row, label in enumerate(labels.tolist(), 1):
        if label not in numbers:
            raise DataError(
                f"{found.source}: row {row:,} is of class {label!r}, which has no vectors to train on; rename the "
                "class, or leave the row out"
            )
    everything = Dataset(
        np.zeros((len(found), 0, 0, 0), np.uint8),
        np.array([numbers[label] for label in labels.tolist()], np.int64),
        classes,
        found.names,
        found.source,
        features=found.values[:, None],  # one view
    )
    there = set(found.splits or ())
    validation, test = (everything.take(part_of == name) if name in there else None for name in SPLITS[1:])
    return everything.take(of_training), validation, test


def _load_listing(
    listing: Listing, config: TrainConfig, progress: Progress | None
) -> tuple[Dataset, Dataset | None, Dataset | None]:
    """Training, validation and test part, the latter two where the listing has them."""
    if "train" not in listing.parts:
        raise DataError(
            f"{listing.source} has no pictures to train on; put them under train/, or in a label file leave split empty"
        )
    classes = _classes({label for _, label in listing.parts["train"]})
    numbers = _numbers(classes)
    files = [(path, label, part) for part in SPLITS for path, label in listing.parts.get(part, ())]
    for path, label, _ in files:
        if label not in numbers:
            raise DataError(
                f"{path} is of class {label!r}, which has no pictures to train on; rename the class, or leave it out"
            )
    paths = tuple(path for path, _, _ in files)
    part_of = np.array([part for _, _, part in files])
    pictures = _picture_files(listing.source, paths, config)
    for name, of_part in listing.parts.items():
        _probe(f"the {name} pictures of {listing.source}", [path for path, _ in of_part], enough=1)
    labels = np.array([numbers[label] for _, label, _ in files], np.int64)
    everything = Dataset(pictures, labels, classes, paths, listing.source)
    readable = np.ones(len(paths), bool)
    if _fits(pictures.shape, config):
        everything, readable = _into_memory(everything, progress)
        for picture in everything.skipped:
            listing.left_out.add(Kind.UNREADABLE, picture.path, picture.error)
        for name in listing.parts:  # of which the headers could be read
            if not readable[part_of == name].any():
                why = "; ".join(listing.left_out.lines(1))
                raise DataError(f"none of the {name} pictures of {listing.source} can be read ({why}); {_MEND}")

    def part(name: str) -> Dataset:
        return replace(everything.take(readable & (part_of == name)), skipped=everything.skipped)

    validation, test = (part(name) if name in listing.parts else None for name in SPLITS[1:])
    return part("train"), validation, test


def _classes(labels: set[str]) -> tuple[str, ...]:
    """Their names in order; none where there are no labels."""
    return () if labels == {UNLABELLED} else tuple(sort_classes(labels))


def _numbers(classes: Sequence[str]) -> dict[str, int]:
    """The number of each class, and -1 of no class where there are none."""
    return {label: number for number, label in enumerate(classes)} or {UNLABELLED: -1}


def _picture_files(source: str, paths: tuple[str, ...], config: TrainConfig) -> PictureFiles:
    """The files as pictures of one size and colour, chosen from their headers where the request leaves them open."""
    shapes = _probe(f"the pictures of {source}", paths)
    size = config.image_size
    if size is None:
        side = int(np.median([min(shape.width, shape.height) for shape in shapes]))
        size = side if side <= NATIVE_UP_TO else LARGE
    assert config.fit is not None and config.interpolation is not None  # see `expecting`
    form = decode.Form(size, 1 if all(shape.grey for shape in shapes) else 3, config.fit, config.interpolation)
    intake = Intake(form, config.workers or default_workers())
    pictures = PictureFiles(paths, intake)
    if config.cache == "off" or (config.cache == "auto" and _fits(pictures.shape, config)):
        return pictures  # what memory holds is decoded only once
    folder = user_cache_path("dsh") / "pictures" if config.cache == "auto" else expanded(config.cache, "`cache`")
    return replace(pictures, intake=replace(intake, cache=PictureCache(folder, form)))


def _fits(shape: tuple[int, ...], config: TrainConfig) -> bool:
    return math.prod(shape) <= config.memory * 2**30


def _probe(what: str, paths: Sequence[str], enough: int | None = None) -> list[decode.Shape]:
    """Headers of pictures spread evenly over `paths`, of all or of `enough`; those that cannot be read are left out."""
    shapes: list[decode.Shape] = []
    reason = ""
    for path in paths[:: max(1, len(paths) // _PROBED)]:
        if len(shapes) == enough:
            break
        try:
            shapes.append(decode.probe(path))
        except ImageError as error:
            reason = reason or f"{path}: {error}"
    if not shapes:
        raise DataError(f"none of {what} can be read ({reason}); {_MEND}")
    return shapes


def _into_memory(dataset: Dataset, progress: Progress | None) -> tuple[Dataset, NDArray[np.bool_]]:
    """The dataset with its pictures as an array, and which of them (n,) could be read."""
    pixels = np.zeros(dataset.images.shape, np.uint8)
    readable = np.zeros(len(dataset), bool)
    skipped: list[Skipped] = []
    done = 0
    for batch in dataset.read(in_order(len(dataset), _READ_AT_ONCE)):
        pixels[batch.rows] = batch.images
        readable[batch.rows] = True
        skipped += batch.skipped
        done += len(batch.rows) + len(batch.skipped)
        if progress is not None:
            progress(done, len(dataset))
    return replace(dataset, images=pixels, skipped=tuple(skipped)), readable


def _require_learnable(train: Dataset, has_test: bool, left_out: LeftOut) -> None:
    if len(train.classes) < 2:
        raise DataError(
            f"{train.source} has one class only, {train.classes[0]!r}; hashing learns from pairs of different classes"
        )
    needed, why = (2, "to train on") if has_test else (3, "2 to train on and 1 to test, for it has no test/ folder")
    counts = np.bincount(train.labels, minlength=len(train.classes))
    few = np.flatnonzero(counts < needed)
    if len(few):
        each = ", ".join(f"{train.classes[label]!r} has {_pictures(int(counts[label]))}" for label in few[:_NAMED])
        more = f" and {len(few) - _NAMED:,} more have too few" if len(few) > _NAMED else ""
        said = "; ".join(["", *left_out.lines(1)])
        raise DataError(
            f"of the classes of {train.source} {each}{more}; each needs {needed}: {why}; add pictures, or take the "
            f"class away{said}"
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
            f"`protocol` {config.protocol} takes {POOLED_QUERIES:,} queries and {POOLED_TRAIN:,} pictures to train on, "
            f"and the rest as database; {pool.source} has {len(pool):,}, so take another protocol, such as paper"
        )
    held_out = _hold_out(pool.labels, _shares(pool.labels, POOLED_QUERIES), [config.seed, _TEST_STREAM])
    queries, rest = pool.take(held_out), pool.take(~held_out)
    shares = _shares(rest.labels, POOLED_TRAIN)
    if shares.min() < 2:
        raise DataError(
            f"`protocol` {config.protocol} leaves class {pool.classes[int(shares.argmin())]!r} of {pool.source} fewer "
            "than 2 of its pictures to train on; take another protocol, such as paper, or leave the class out"
        )
    chosen = _hold_out(rest.labels, shares, [config.seed, _POOL_STREAM])
    return rest.take(chosen), queries, rest.take(~chosen)


def _drawn_labels(dataset: Dataset, config: TrainConfig) -> NDArray[np.int64]:
    """Labels of the classes to hold out."""
    class_count = len(dataset.classes)
    if config.hold_out_classes > class_count - 2:
        raise UsageError(
            f"`hold_out_classes` {config.hold_out_classes}: {config.data} has {class_count} classes, and two must be "
            f"left to train on; hold out {max(0, class_count - 2)} at most"
        )
    return np.sort(
        np.random.default_rng([config.seed, _CLASS_STREAM]).permutation(class_count)[: config.hold_out_classes]
    )


def _joined(parts: Sequence[Dataset]) -> Dataset:
    """Parts of one dataset, one after the other."""
    files = [part.images for part in parts if isinstance(part.images, PictureFiles)]
    arrays = [part.images for part in parts if isinstance(part.images, np.ndarray)]
    images = (
        replace(files[0], paths=tuple(path for f in files for path in f.paths)) if files else np.concatenate(arrays)
    )
    names = tuple(name for part in parts for name in part.names)
    features = [part.features for part in parts if part.features is not None]
    return replace(
        parts[0],
        images=images,
        labels=np.concatenate([part.labels for part in parts]),
        names=names,
        features=np.concatenate(features) if features else None,
    )


def _hold_out(labels: NDArray[np.int64], counts: NDArray[np.int64], seed: list[int]) -> NDArray[np.bool_]:
    """A random mask (n,) with `counts[c]` pictures of each class c."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(len(labels), bool)
    by_class = np.argsort(labels, kind="stable")  # rows, those of a class side by side and in order
    places = np.searchsorted(labels[by_class], np.arange(len(counts) + 1))
    for begin, end, count in zip(places[:-1], places[1:], counts, strict=True):
        mask[rng.permutation(by_class[begin:end])[:count]] = True
    return mask
