"""What a backbone that stays as it is gives of pictures: computed once, and kept on disk for the next training."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from platformdirs import user_cache_path

from dsh_cli.config import PIXELS, Recipe
from dsh_cli.data.dataset import Dataset, in_order
from dsh_cli.data.splits import Splits
from dsh_cli.errors import DataError, ImageError
from dsh_cli.files import expanded
from dsh_cli.network.encoding import TorchEncoder
from dsh_cli.network.model import HashNet, Standardised
from dsh_cli.network.operations import encoding_operations
from dsh_cli.pictures import decode
from dsh_cli.pictures.database import Database, checksum
from dsh_cli.pictures.reading import Intake
from dsh_cli.threads import default_workers
from dsh_cli.training.events import Featured, Listener
from dsh_cli.training.room import room, room_for
from dsh_cli.training.start import moments_of

_TABLE = (
    "CREATE TABLE IF NOT EXISTS checked_features "
    "(digest BLOB PRIMARY KEY, features BLOB NOT NULL, checksum INTEGER NOT NULL)"
)
_KEPT_AS = "<f4"
_GREY, _WHITE = 128, 255  # of thumbnails of what is no picture


class FeatureCache:
    """Features on disk, by the pixels that they are of. One file for each backbone with its weights.

    Args:
        folder: that has the files.
        net: has the backbone.

    Raises:
        DshError: the file cannot be made or opened.
    """

    def __init__(self, folder: Path, net: HashNet) -> None:
        self.width = net.outputs
        self._db = Database(
            folder / f"features-{digest_of(net)}.sqlite",
            (_TABLE,),
            "features",
            "choose another `cache` FOLDER, or `cache` off",
            "from now on they are computed each time",
        )

    @property
    def problem(self) -> str | None:
        """Why it takes no more features, if it does not."""
        return self._db.problem

    def get(self, keys: Sequence[bytes]) -> dict[bytes, NDArray[np.float32]]:
        """Those that are there, and as they were stored: (d,) each."""
        rows = self._db.select("SELECT digest, features, checksum FROM checked_features WHERE digest IN", set(keys))
        return {
            key: np.frombuffer(data, _KEPT_AS).astype(np.float32)
            for key, data, stored in rows
            if checksum(key, data) == stored and len(data) == 4 * self.width
        }

    def put(self, found: dict[bytes, NDArray[np.float32]]) -> None:
        """Store some."""
        rows = [(key, data := value.astype(_KEPT_AS).tobytes(), checksum(key, data)) for key, value in found.items()]
        self._db.insert([("checked_features", rows)])

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()


def digest_of(net: HashNet) -> str:
    """16 hex digits that change with whatever changes features: backbone, weights, normalisation, picture size."""
    shown = ("bits", "hidden", "mirror", "fit", "interpolation")  # which the pixels, or what comes after, have in them
    settings = {name: value for name, value in asdict(net.config).items() if name not in shown}
    settings["device"] = net.mean.device.type
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8)
    for name, tensor in sorted(net.state_dict().items()):
        if not name.startswith(("hash_layer.", "hidden.")):
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def with_features(
    config: Recipe, net: HashNet, splits: Splits, listeners: Sequence[Listener]
) -> tuple[Splits, int, tuple[str, ...]]:
    """The splits as they are to be learned from, the operations that this took, and what there is to report.

    A backbone that stays as it is has the same features in every epoch, so they are made once.

    Raises:
        DataError: none of the training pictures can be read.
        DshError: there is no place to keep features or thumbnails.
    """
    if net.config.of_vectors:
        return splits.each(lambda dataset: replace(dataset, thumbnails=_thumbnails_of(dataset))), 0, ()
    if not config.freeze:
        return splits, 0, ()

    def told(featured: Featured) -> None:
        for listener in listeners:
            listener.on_features(featured)

    features = Features(net, config, told)
    found, notes = features.of(splits)
    if config.method == "dsh":  # the others take them as they are
        assert found.train.features is not None
        mean, deviation = moments_of(found.train.features)
        net.dropout = Standardised(net.dropout.p, torch.from_numpy(mean).float(), deviation).to(net.mean.device)
    side, channels = splits.train.image_size, splits.train.channels
    return found, features.made * encoding_operations(net, (channels, side, side)) // net.views, notes


class Features:
    """Gives splits the features of a network's backbone, which is to stay as it is.

    Args:
        net: has the backbone.
        config: says whether mirror images count too, and where features are kept.
        told: called now and then.

    Raises:
        DshError: there is no place to keep them.
    """

    def __init__(self, net: HashNet, config: Recipe, told: Callable[[Featured], None]) -> None:
        self.views = 2 if config.augment == "photos" or net.config.mirror else 1
        self.made = 0  # pictures that went through the backbone, mirror images among them
        self._own: set[bytes] = set()  # by which these are known: a copy of one is not known from before
        self._memory = config.memory * 2**30
        self._encoder, self._width, self._told = TorchEncoder(net), net.outputs, told
        self._cache = None
        if config.cache != "off" and config.backbone != PIXELS:  # which are there already
            own = user_cache_path("dsh") / "features"
            self._cache = FeatureCache(own if config.cache == "auto" else expanded(config.cache, "`cache`"), net)

    def of(self, splits: Splits) -> tuple[Splits, tuple[str, ...]]:
        """The same with features and thumbnails; and what there is to report. Pictures that are unreadable are gone.

        Raises:
            DataError: none of the training pictures can be read.
        """
        self._done, self._kept, self._total = 0, 0, sum(map(len, splits.parts().values()))
        notes: list[str] = []
        with closing(self._cache) if self._cache is not None else nullcontext():
            featured = splits.each(lambda dataset: self._featured(dataset, notes))
        if not len(featured.train):
            raise DataError(
                f"none of {len(splits.train):,} pictures of {splits.train.source} can be read; are they still there?"
            )
        if self._cache is not None:
            notes += [self._cache.problem] if self._cache.problem else []
        return featured, tuple(notes)

    def _featured(self, dataset: Dataset, notes: list[str]) -> Dataset:
        shape = (len(dataset), self.views, self._width)
        fits = 4 * math.prod(shape) <= self._memory
        features = np.empty(shape, np.float32) if fits else room(shape, np.float32)
        images = dataset.images
        thumbnails = decode.thumbnails(images) if isinstance(images, np.ndarray) else room_for(images)
        readable = np.zeros(len(dataset), bool)
        for batch in dataset.read(in_order(len(dataset), self._encoder.at_once)):
            features[batch.rows] = self._of_pictures(batch.images)
            if not isinstance(images, np.ndarray):
                thumbnails[batch.rows] = decode.thumbnails(batch.images)
            readable[batch.rows] = True
            notes += [f"{skip.path}: {skip.error}; left out" for skip in batch.skipped]
            self._done += len(batch.rows) + len(batch.skipped)
            self._told(Featured(self._done, self._total, self._kept))
        found = replace(dataset, features=features, thumbnails=thumbnails)
        return found if readable.all() else found.take(readable)

    def _of_pictures(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(n, views, d) of (n, H, W, channels) pictures, and of their mirror images."""
        pictures = [np.ascontiguousarray(view) for view in (images, images[:, :, ::-1])[: self.views]]
        keys = [[hashlib.blake2b(picture, digest_size=16).digest() for picture in view] for view in pictures]
        found = self._cache.get([key for view in keys for key in view]) if self._cache is not None else {}
        before = found.keys() - self._own
        self._kept += sum(all(key in before for key in of_one) for of_one in zip(*keys, strict=True))
        missing = {
            key: (view, row) for view, of_view in enumerate(keys) for row, key in enumerate(of_view) if key not in found
        }
        if missing:
            values = self._encoder.features(np.stack([pictures[view][row] for view, row in missing.values()]))
            made = dict(zip(missing, values, strict=True))
            self.made += len(made)
            self._own |= made.keys()
            if self._cache is not None:
                self._cache.put(made)
            found |= made
        return np.array([[found[key] for key in of_one] for of_one in zip(*keys, strict=True)], np.float32).reshape(
            len(images), self.views, self._width
        )


def _thumbnails_of(dataset: Dataset) -> NDArray[np.uint8]:
    """Of the pictures that rows are named after; white where one is missing, and a grey point each where all are.

    Of pictures below the folder of the file alone: a stranger's file shall not bring others into a run.
    """
    folder = os.path.realpath(Path(dataset.source).parent)
    paths = [os.path.realpath(os.path.join(folder, name)) for name in dataset.names]
    there = [row for row, path in enumerate(paths) if path.startswith(folder + os.sep) and os.path.isfile(path)]
    if not there:
        return np.full((len(dataset), 1, 1, 1), _GREY, np.uint8)
    found = room((len(dataset), decode.THUMBNAIL, decode.THUMBNAIL, 3))
    found[:] = _WHITE
    intake = Intake(decode.Form(decode.THUMBNAIL, 3), default_workers())
    for row, (_, picture) in zip(there, intake.read([paths[row] for row in there]), strict=True):
        if not isinstance(picture, ImageError):
            found[row] = picture
    return found
