"""The codes of all pictures of a run, and what they are worth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dsh_cli.analysis.classes import class_table
from dsh_cli.analysis.protocols import compared
from dsh_cli.analysis.retrieval import mean_average_precision
from dsh_cli.codes.bits import binarize, pack
from dsh_cli.codes.sets import CodeSet
from dsh_cli.config import UNSEEN
from dsh_cli.data.dataset import Dataset, in_order
from dsh_cli.data.splits import Splits
from dsh_cli.errors import DataError
from dsh_cli.network.encoding import TorchEncoder
from dsh_cli.network.model import HashNet
from dsh_cli.pictures import decode
from dsh_cli.runs.run import Run
from dsh_cli.training.events import TrainResult
from dsh_cli.training.room import room_for

_NAMED = 5  # classes in a warning


def measured(run: Run, net: HashNet, splits: Splits, seconds: float, operations: float) -> TrainResult:
    """Encode all pictures, measure them, and save the run as finished.

    Args:
        run: what was trained.
        net: its network.
        splits: its pictures.
        seconds: that the training took.
        operations: that it took, not a number if that is not known.

    Raises:
        DataError: none of those to train on can be read by now.
        DivergedError: as in `TorchEncoder.relaxed`.
    """
    codes = {split: encode_dataset(net, part) for split, part in splits.parts().items()}
    if not len(codes["train"]):
        raise DataError(
            f"none of the train pictures of {run.config.data} can be read any more; {run.path} keeps what was trained: "
            f"see that they are there, and go on with: dsh train --resume {run.path}"
        )
    split = "test" if len(codes["test"]) else "train"
    table = class_table(codes[split], split)
    queries, database = compared(run.config.protocol, codes.__getitem__, UNSEEN in codes)
    enough = len(queries) > 1 if database is None else len(queries) and len(database)
    value = mean_average_precision(queries, database) if enough and run.classes else None
    tflop = None if math.isnan(operations) else operations / 1e12
    result = TrainResult(run, seconds, tflop, value, table, _lost(splits, codes))
    metrics = {
        "epochs": run.config.epochs,
        "seconds": round(seconds, 3),
        "tflop": result.tflop,
        "map": result.map,
        "min_class_distance": table.min_class_distance,
        "class_distance_bound": table.bound.distance if table.bound else None,
        "device": str(net.mean.device),
    }
    return replace(result, run=run.write_results(net, codes, metrics))


def _lost(splits: Splits, codes: Mapping[str, CodeSet]) -> str:
    """What to tell of pictures that could be read when the training began, and now cannot; nothing where all can."""
    parts = splits.parts()
    missing = {split: len(part) - len(codes[split]) for split, part in parts.items()}
    if not any(missing.values()):
        return ""
    counts = ", ".join(f"{count:,} {split}" for split, count in missing.items() if count)
    gone = np.setdiff1d(parts["train"].labels, codes["train"].labels)
    names = ", ".join(parts["train"].classes[label] for label in gone[:_NAMED]) + (
        ", ..." if len(gone) > _NAMED else ""
    )
    of_them = f"; of {names} none is left, so it is not measured" if len(gone) else ""
    return f"pictures that could not be read any more, and have no codes: {counts}{of_them}"


def encode_dataset(net: HashNet, dataset: Dataset) -> CodeSet:
    """Codes of a dataset, with all that a run keeps of it; pictures that cannot be read are left out.

    Thumbnails of pictures in files are kept in a file of their own while they are needed, so that memory does not
    grow with them; those of pictures in memory are the pictures themselves where these are no larger.
    """
    encoder = TorchEncoder(net)
    if dataset.features is not None:
        return _of_features(encoder, dataset, dataset.features)
    rows, relaxed = [np.zeros(0, np.int64)], [np.zeros((0, net.config.bits), np.float32)]
    images = dataset.images
    thumbnails = decode.thumbnails(images) if isinstance(images, np.ndarray) else room_for(images)
    done = 0
    for batch in dataset.read(in_order(len(dataset), encoder.at_once)):
        rows.append(batch.rows)
        relaxed.append(encoder.relaxed(batch.images))
        if not isinstance(images, np.ndarray):
            thumbnails[done : done + len(batch.rows)] = decode.thumbnails(batch.images)
        done += len(batch.rows)
    encoded, outputs = np.concatenate(rows), np.concatenate(relaxed)
    return CodeSet(
        bits=net.config.bits,
        packed=pack(binarize(outputs)),
        labels=dataset.labels[encoded],
        classes=dataset.classes,
        names=[dataset.names[row] for row in encoded],
        relaxed=outputs.astype(np.float16),
        thumbnails=thumbnails[:done],
    )


def _of_features(encoder: TorchEncoder, dataset: Dataset, features: NDArray[np.float32]) -> CodeSet:
    """The same where the features are known."""
    outputs = encoder.of_features(features if encoder.mirror else features[:, :1])
    return CodeSet(
        bits=encoder.bits,
        packed=pack(binarize(outputs)),
        labels=dataset.labels,
        classes=dataset.classes,
        names=dataset.names,
        relaxed=outputs.astype(np.float16),
        thumbnails=dataset.thumbnails,
    )
