"""Datasets as arrays: named sets, folders with a folder per class, and their deterministic splits."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dsh_cli import images
from dsh_cli.config import DATASETS, Augment, TrainConfig
from dsh_cli.errors import DataError, ImageError
from dsh_cli.sources import CIFAR_FILES, IDX_FILES, NAMED_SETS, locate

NATIVE_UP_TO = 64  # pixels: pictures no larger keep their size by default
LARGE = 128  # pixels: the default size of all others
VALIDATION = 1000  # training pictures held out, at most; and no more than a tenth
MEMORY = 8 << 30  # bytes of pictures held at once, at most
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
_PROBED = 1000  # headers read to choose size and channels of a folder
_TEST_STREAM, _VALIDATION_STREAM = 1, 2  # of random numbers, so that one seed serves both

Progress = Callable[[int, int], None]  # pictures done, pictures in all


@dataclass(frozen=True)
class Skipped:
    """A picture that could not be read, and why."""

    path: str
    error: str


@dataclass(frozen=True)
class Dataset:
    """Labelled pictures in memory.

    Attributes:
        images: (n, H, W, channels) uint8.
        labels: (n,) int64, index into `classes`.
        classes: class names.
        names: the path of each picture, or a name such as `mnist/test/00012`.
        source: where the pictures came from.
        skipped: pictures of the source that could not be read.
    """

    images: NDArray[np.uint8]
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


@dataclass(frozen=True)
class Splits:
    """Disjoint parts of one dataset. Validation informs; it is never trained on, nor used to choose."""

    train: Dataset
    validation: Dataset
    test: Dataset

    def names(self) -> dict[str, tuple[str, ...]]:
        """Names of the pictures, by split."""
        return {"train": self.train.names, "validation": self.validation.names, "test": self.test.names}


def load_splits(config: TrainConfig, progress: Progress | None = None) -> Splits:
    """Read the data a run asks for and split it by the run's seed.

    Raises:
        DataError: the data is missing, damaged, or cannot be learned from.
    """
    if config.pretrained and config.image_size is None:
        from dsh_cli.model import preset

        config = replace(config, image_size=preset(config.backbone).image_size)
    if config.data in DATASETS:
        train, test = _load_named(config)
    elif Path(config.data).is_dir():
        train, test = _load_folder(Path(config.data), config.image_size, progress)
    elif Path(config.data).exists():
        raise DataError(f"{config.data} is a file; training takes a folder with a folder per class")
    else:
        raise DataError(
            f"no dataset named {config.data!r}, and no such folder. "
            f"Named sets: {', '.join(DATASETS)}; or give a folder with a folder per class"
        )
    _require_learnable(train, test is not None)
    if test is None:
        held_out = _hold_out(train.labels, _test_counts(train.labels), [config.seed, _TEST_STREAM])
        test, train = train.take(held_out), replace(train.take(~held_out), skipped=train.skipped)
    held_out = _hold_out(train.labels, _validation_counts(train.labels), [config.seed, _VALIDATION_STREAM])
    return Splits(
        train=replace(train.take(~held_out), skipped=train.skipped), validation=train.take(held_out), test=test
    )


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
    try:
        data = path.read_bytes() if path.is_file() else gzip.decompress(path.with_name(path.name + ".gz").read_bytes())
        shape = np.frombuffer(data, ">u4", count=data[3], offset=4).astype(int)
        values = np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape))
        if data[:3] != b"\x00\x00\x08" or len(values) != shape.prod():
            raise ValueError("wrong length")
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise DataError(f"{path} is damaged ({error}); delete it and try again") from error
    return values.reshape(shape)


def _read_cifar(folder: Path, files: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Records of one label byte and 3 x 32 x 32 bytes, colour plane by colour plane."""
    parts = []
    for file in files:
        path = folder / file
        data = path.read_bytes() if path.is_file() else gzip.decompress(path.with_name(file + ".gz").read_bytes())
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
    resized = [
        np.asarray(Image.fromarray(p[..., 0] if grey else p).resize((size, size), Image.Resampling.BILINEAR))
        for p in dataset.images
    ]
    return replace(dataset, images=np.stack(resized).reshape(-1, size, size, dataset.channels))


# Folders


def _load_folder(root: Path, size: int | None, progress: Progress | None) -> tuple[Dataset, Dataset | None]:
    root = root.absolute()
    children = {entry.name for entry in _subfolders(root)}
    has_parts = "train" in children and children <= {"train", "test"}
    train_files = _labelled_files(root / "train" if has_parts else root)
    test_files = _labelled_files(root / "test") if has_parts and "test" in children else {}
    classes = tuple(train_files)
    if unknown := [name for name in test_files if name not in classes]:
        raise DataError(f"{root / 'test' / unknown[0]}: there is no such class under {root / 'train'}")
    labelled = [
        (path, classes.index(name))
        for files in (train_files, test_files)
        for name, paths in files.items()
        for path in paths
    ]
    paths = tuple(path for path, _ in labelled)
    shapes = _probe(paths)
    if not shapes:
        raise DataError(f"none of the pictures under {root} can be read; see why with: dsh hash {paths[0]}")
    if size is None:
        side = int(np.median([min(shape.width, shape.height) for shape in shapes]))
        size = side if side <= NATIVE_UP_TO else LARGE
    pixels, errors = _read_pictures(paths, size, 1 if all(shape.grey for shape in shapes) else 3, progress)
    skipped = tuple(Skipped(paths[i], error) for i, error in errors.items())
    labels = np.array([label for _, label in labelled], np.int64)
    everything = Dataset(pixels, labels, classes, paths, str(root), skipped)
    readable = np.isin(np.arange(len(paths)), list(errors), invert=True)
    in_train = np.arange(len(paths)) < sum(map(len, train_files.values()))
    train = replace(everything.take(readable & in_train), skipped=skipped)
    return train, everything.take(readable & ~in_train) if test_files else None


def _subfolders(root: Path) -> list[os.DirEntry[str]]:
    with os.scandir(root) as entries:
        found = [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    numeric = all(entry.name.isdecimal() for entry in found)
    return sorted(found, key=lambda entry: (int(entry.name), entry.name) if numeric else (0, entry.name))


def _labelled_files(root: Path) -> dict[str, list[str]]:
    """Picture files of each class folder, found at any depth below it."""
    files = {entry.name: list(images.find(entry.path)) for entry in _subfolders(root)}
    files = {name: found for name, found in files.items() if found}
    if not files:
        if next(images.find(root), None) is None:
            raise DataError(f"no pictures under {root}; a dataset is a folder with a folder of pictures per class")
        raise DataError(f"{root} holds pictures but no class folders; put those of each class in a folder of its own")
    return files


def _probe(paths: Sequence[str]) -> list[images.Shape]:
    """Headers of pictures spread evenly over `paths`; those that cannot be read are left out."""
    shapes = []
    for path in paths[:: max(1, len(paths) // _PROBED)]:
        try:
            shapes.append(images.probe(path))
        except ImageError:
            continue
    return shapes


def _read_pictures(
    paths: Sequence[str], size: int, channels: int, progress: Progress | None
) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """(n, size, size, channels) pictures, and by number what was wrong with those that could not be read."""

    def read(path: str) -> NDArray[np.uint8] | ImageError:
        try:
            return images.read(path, size, channels)
        except ImageError as error:
            return error

    _require_memory(len(paths), size, channels)
    pixels = np.zeros((len(paths), size, size, channels), np.uint8)
    errors = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the decoders release the interpreter's lock
        for i, result in enumerate(pool.map(read, paths)):
            if isinstance(result, ImageError):
                errors[i] = str(result)
            else:
                pixels[i] = result
            if progress is not None:
                progress(i + 1, len(paths))
    return pixels, errors


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
    """Pictures of each class to validate on, in proportion (largest remainders), and two stay."""
    counts = np.bincount(labels)
    total = min(VALIDATION, len(labels) // 10)
    quotas = counts * total / len(labels)
    shares = np.floor(quotas).astype(np.int64)
    most_cut = np.argsort(shares - quotas, kind="stable")
    shares[most_cut[: total - shares.sum()]] += 1
    return np.minimum(shares, np.maximum(counts - 2, 0))


def _hold_out(labels: NDArray[np.int64], counts: NDArray[np.int64], seed: list[int]) -> NDArray[np.bool_]:
    """A random mask (n,) with `counts[c]` pictures of each class c."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(len(labels), bool)
    for label, count in enumerate(counts):
        mask[rng.permutation(np.flatnonzero(labels == label))[:count]] = True
    return mask
