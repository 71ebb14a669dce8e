"""Pictures -> a file of their features, which every command takes in their place."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dsh_cli.config import AUTO, OWN_BACKBONES, TIMM, VECTORS, Fit, Interpolation, ModelConfig, TrainConfig
from dsh_cli.data.dataset import Skipped
from dsh_cli.data.listing import UNLABELLED, list_pictures
from dsh_cli.data.vectors import is_vectors
from dsh_cli.errors import DataError, ImageError, UsageError
from dsh_cli.files import written
from dsh_cli.network.device import choose_device
from dsh_cli.network.encoder import form_of
from dsh_cli.network.encoding import TorchEncoder
from dsh_cli.network.model import HashNet
from dsh_cli.network.presets import check_backbone, expecting, preset
from dsh_cli.network.weights import take_file, take_pretrained
from dsh_cli.pictures.find import LeftOut
from dsh_cli.pictures.reading import Intake
from dsh_cli.runs.run import Run, may_be_run
from dsh_cli.threads import default_workers

_OR_ELSE = "choose another `out` FILE"


@dataclass(frozen=True)
class Asked:
    """What features are to be made of, by what.

    Attributes:
        paths: picture files, and folders of them; the folders of classes in these give labels, as in training.
        out: the file, `.parquet`.
        backbone: of torchvision or timm; or that of the run where `weights` is one.
        weights: a file or a run; None: the weights that torchvision or timm has.
        image_size: pixels, square; None, as the next two: as the weights expect.
        fit: how a picture becomes square.
        interpolation: where it is resized.
        relative_to: folder to which the paths kept are relative; None: they are absolute.
    """

    paths: Sequence[str]
    out: str
    backbone: str | None = None
    weights: str | None = None
    image_size: int | None = None
    fit: Fit | None = None
    interpolation: Interpolation | None = None
    relative_to: str | None = None

    def check(self) -> None:
        """Refuse what contradicts itself, before anything is read.

        Raises:
            UsageError: it does; the message names the field.
        """
        if not self.out.lower().endswith(".parquet"):
            raise UsageError(f"`out` {self.out}: features are written as Parquet; name a file that ends in .parquet")
        of_run = self.weights is not None and may_be_run(Path(self.weights))
        if self.backbone is None and not of_run:
            raise UsageError(
                f"`backbone`: features of which network? Name one, such as {TIMM}tf_efficientnet_lite0 or resnet18, or "
                "give a run as `weights`"
            )
        if self.backbone is not None:
            check_backbone(self.backbone)
            if self.backbone in (*OWN_BACKBONES, AUTO, VECTORS) and not of_run:
                raise UsageError(f"`backbone` {self.backbone}: it has no weights of its own; give a run as `weights`")
        if of_run and (self.image_size, self.fit, self.interpolation) != (None, None, None):
            raise UsageError("`image_size`, `fit` and `interpolation` are those of the run; leave them out")
        if self.image_size is not None:
            TrainConfig(image_size=self.image_size).check()


@dataclass(frozen=True)
class Made:
    """A file of features.

    Attributes:
        out: its path.
        backbone: that made them.
        width: numbers in a vector.
        rows: pictures.
        labels: of how many the class is known.
        skipped: pictures that could not be read.
        left_out: what else was left out of folders.
    """

    out: str
    backbone: str
    width: int
    rows: int
    labels: int
    skipped: tuple[Skipped, ...]
    left_out: LeftOut


def make_features(
    asked: Asked,
    device: str = "auto",
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Made:
    """Write the features of pictures as a Parquet file, whole or not at all, in the order of the pictures.

    Columns: `path`, `vector` (float32, of one length), and where known `label` and `split`.

    Args:
        asked: of what, and where to.
        device: where they are computed.
        workers: threads that decode pictures; None: one a processor.
        progress: told of the pictures done, and of all.

    Raises:
        UsageError: it contradicts itself.
        WeightsError: the weights cannot be had, or do not fit.
        DataError: there are no pictures, or none can be read.
        DshError: the file cannot be written.
    """
    asked.check()
    left_out = LeftOut()
    listed = list(_listed(asked.paths, left_out))
    net = _network(asked).to(choose_device(device)).eval()
    encoder = TorchEncoder(net)
    intake = Intake(form_of(net.config), workers or default_workers())
    skipped: list[Skipped] = []
    labels = sum(label != UNLABELLED for _, label, _ in listed)
    with written(asked.out, _OR_ELSE) as scratch, _Writer(scratch, net, listed, asked.relative_to) as writer:
        source = zip(listed, intake.read(path for path, _, _ in listed), strict=True)
        done = 0
        while batch := list(islice(source, encoder.at_once)):
            read = []
            for row, (path, picture) in batch:
                if isinstance(picture, ImageError):
                    skipped.append(Skipped(path, str(picture)))
                    labels -= row[1] != UNLABELLED
                else:
                    read.append((row, picture))
            if read:
                found = encoder.features(np.stack([picture for _, picture in read]))
                if not np.isfinite(found).all():
                    raise DataError("the features are not finite; see that the weights are those of this network")
                writer.add([row for row, _ in read], found)
            done += len(batch)
            if progress is not None:
                progress(done, len(listed))
        if len(skipped) == len(listed):
            raise DataError(
                f"none of {len(listed):,} pictures can be read ({skipped[0].path}: {skipped[0].error}); bring readable "
                "ones in their place"
            )
    rows = len(listed) - len(skipped)
    return Made(asked.out, net.config.backbone, net.outputs, rows, labels, tuple(skipped), left_out)


_Row = tuple[str, str, str]  # path, label, split


def _listed(paths: Iterable[str], left_out: LeftOut) -> Iterator[_Row]:
    for path in paths:
        if os.path.isdir(path):
            for split, files in list_pictures(Path(path), left_out).parts.items():
                yield from ((file, label, split) for file, label in files)
        elif is_vectors(path):
            raise UsageError(f"`paths` {path}: it holds vectors already, which dsh train takes as they are")
        else:
            yield os.path.abspath(path), UNLABELLED, "train"


def _network(asked: Asked) -> HashNet:
    """The network with its weights; its hash layer is as it happens to be."""
    if asked.weights is not None and may_be_run(Path(asked.weights)):
        run = Run.open(asked.weights)
        if asked.backbone not in (None, run.model.backbone):
            raise UsageError(
                f"`backbone` {asked.backbone}: the network of {run.path} is {run.model.backbone}; leave it out"
            )
        if run.model.of_vectors:
            raise UsageError(f"`weights` {run.path}: its network takes vectors, and no pictures; give another run")
        return run.load_model()
    assert asked.backbone is not None  # see `check`
    expected = preset(asked.backbone)
    wanted = expecting(TrainConfig(backbone=asked.backbone, pretrained=True))
    model = ModelConfig(
        asked.backbone,
        1,
        3,
        asked.image_size or expected.image_size,
        fit=asked.fit or wanted.fit or "crop",
        interpolation=asked.interpolation or wanted.interpolation or "bilinear",
    )
    with torch.random.fork_rng(devices=[]):
        net = HashNet(model)
    net.require_size()
    if asked.weights is None:
        take_pretrained(net)
    else:
        take_file(net, asked.weights)
    return net


class _Writer:
    """A Parquet file under way, a row group a batch."""

    def __init__(self, file: Path, net: HashNet, listed: Sequence[_Row], relative_to: str | None) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._pa, self._relative_to = pa, relative_to
        columns = [("path", pa.string()), ("vector", pa.list_(pa.float32(), net.outputs))]
        columns += [("label", pa.string())] * any(label != UNLABELLED for _, label, _ in listed)
        columns += [("split", pa.string())] * any(split != "train" for _, _, split in listed)
        schema = pa.schema(columns, metadata={"dsh.backbone": net.config.backbone})
        self._schema, self._file = schema, pq.ParquetWriter(file, schema)

    def add(self, rows: Sequence[_Row], features: NDArray[np.float32]) -> None:
        pa = self._pa
        arrays: dict[str, Any] = {
            "path": [self._path(path) for path, _, _ in rows],
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), features.shape[1]),
            "label": [label or None for _, label, _ in rows],
            "split": [split for _, _, split in rows],
        }
        self._file.write_table(pa.table({name: arrays[name] for name in self._schema.names}, self._schema))

    def _path(self, path: str) -> str:
        kept = path if self._relative_to is None else os.path.relpath(path, self._relative_to)
        return kept.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
