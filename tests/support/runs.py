"""Run folders: small ones of given codes, and what others hold."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from dsh_cli.codes.bits import from_hex
from dsh_cli.runs.record import file_digest, own_digest
from dsh_cli.runs.run import Run
from dsh_cli.runs.storage import write_arrays
from dsh_cli.training.events import Loss

Rows = Sequence[tuple[str | None, str]]  # class and code of each picture

LOSS = Loss(1.0, {"pair": 0.9, "quantization": 10.0}, {"pair": None, "quantization": 0.01})

TRAIN = [("cat", "f0"), ("cat", "f0"), ("dog", "0f"), ("cat", "f1"), ("owl", "ff"), ("dog", "1f"), ("owl", "ff")]
TEST = [("cat", "f0"), ("dog", "0f"), ("owl", "fe")]


def small_run(
    folder: Path,
    train: Rows = TRAIN,
    bits: int = 8,
    validation: Rows = TEST,
    test: Rows = TEST,
    classes: Sequence[str] = ("cat", "dog", "owl"),
    names: Sequence[str] | None = None,
) -> Path:
    """A finished run whose codes are given, with a picture of its row number as each thumbnail."""
    (folder / "codes").mkdir(parents=True)
    splits = {"train": train, "validation": validation, "test": test}
    for split, rows in splits.items():
        arrays: dict[str, NDArray[Any]] = {
            "packed": from_hex([code for _, code in rows], bits),
            "labels": np.array([classes.index(label) if label else -1 for label, _ in rows], np.int32),
            "thumbnails": np.arange(len(rows), dtype=np.uint8)[:, None, None, None].repeat(9, 1).reshape(-1, 3, 3, 1),
        }
        write_arrays(folder, f"codes/{split}.safetensors", arrays)
    counts = {split: len(rows) for split, rows in splits.items()}
    listed = {split: [f"{split}/{i}" for i in range(count)] for split, count in counts.items()}
    (folder / "splits.json").write_text(json.dumps(listed | {"train": list(names or listed["train"])}))
    head = {"format": 1, "created": "", "config": {}, "classes": classes, "source": "", "counts": counts}
    model = {"backbone": "small-resnet", "bits": bits, "channels": 1, "image_size": 8}
    (folder / "config.json").write_text(json.dumps(head | {"model": model, "versions": {}}))
    metrics = {"finished": True, "epochs": 1, "map": 1.0, "seconds": 1.0, "device": "cpu", "counts": counts}
    (folder / "metrics.json").write_text(json.dumps(metrics | {"min_class_distance": 1, "class_distance_bound": 1}))
    return folder


def edit(path: Path, **changes: object) -> None:
    """Change what a JSON file of a run says, so that only what it says can be found wrong."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    reseal(path.parent)


def reseal(run: Path) -> None:
    """Record the digests of the files of a run as they are by now."""
    metrics = run / "metrics.json"
    if metrics.is_file() and "digests" in (content := json.loads(metrics.read_text())):
        content["digests"] = {name: file_digest(run, name) for name in content["digests"] if (run / name).is_file()}
        content["digest"] = own_digest(content)
        metrics.write_text(json.dumps(content))


def older(run: Path) -> Path:
    """A run made one of format 1, which has no digests."""
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({k: v for k, v in metrics.items() if k not in ("digest", "digests")}))
    edit(run / "config.json", format=1)
    return run


def weights(run: Run) -> dict[str, NDArray[Any]]:
    return safetensors.numpy.load((run.path / "model.safetensors").read_bytes())


def identical(a: dict[str, NDArray[Any]], b: dict[str, NDArray[Any]]) -> bool:
    return a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)
