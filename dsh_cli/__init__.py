"""Deep supervised hashing: short binary codes for pictures.

    from dsh_cli import load, encode, hamming

    net = load("runs/mnist-8bit-...")
    codes = encode(net, ["a.png", "b.png"])
    print(codes.hex, hamming(codes.packed[0], codes.packed[1]))

Names are imported when first used, so that `import dsh_cli` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsh_cli.bounds import class_distance_bound
    from dsh_cli.checkpoint import Run, load
    from dsh_cli.codes import CodeSet, from_hex, hamming, to_hex
    from dsh_cli.config import TrainConfig
    from dsh_cli.data import load_splits
    from dsh_cli.embedding import Projection, embed
    from dsh_cli.encoding import encode, encode_files
    from dsh_cli.errors import DshError
    from dsh_cli.index import Index
    from dsh_cli.losses import dsh_loss
    from dsh_cli.metrics import class_table
    from dsh_cli.neighbors import Finder, split_database
    from dsh_cli.protocols import evaluate_run
    from dsh_cli.retrieval import evaluate, mean_average_precision
    from dsh_cli.training import train

_HOMES = {
    "CodeSet": "codes",
    "DshError": "errors",
    "Finder": "neighbors",
    "Index": "index",
    "Projection": "embedding",
    "Run": "checkpoint",
    "TrainConfig": "config",
    "class_distance_bound": "bounds",
    "class_table": "metrics",
    "dsh_loss": "losses",
    "embed": "embedding",
    "encode": "encoding",
    "encode_files": "encoding",
    "evaluate": "retrieval",
    "evaluate_run": "protocols",
    "from_hex": "codes",
    "hamming": "codes",
    "load": "checkpoint",
    "load_splits": "data",
    "mean_average_precision": "retrieval",
    "split_database": "neighbors",
    "to_hex": "codes",
    "train": "training",
}

__all__ = [
    "CodeSet",
    "DshError",
    "Finder",
    "Index",
    "Projection",
    "Run",
    "TrainConfig",
    "class_distance_bound",
    "class_table",
    "dsh_loss",
    "embed",
    "encode",
    "encode_files",
    "evaluate",
    "evaluate_run",
    "from_hex",
    "hamming",
    "load",
    "load_splits",
    "mean_average_precision",
    "split_database",
    "to_hex",
    "train",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(f"dsh_cli.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
