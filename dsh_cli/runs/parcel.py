"""What makes codes, as bytes that another machine can do with: files of a run, or an exported model."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from dsh_cli.errors import RunError, reason
from dsh_cli.files import open_regular
from dsh_cli.network.encoder import Encoder
from dsh_cli.network.onnx_encoding import LARGEST
from dsh_cli.runs.exported import Exported
from dsh_cli.runs.record import METRICS
from dsh_cli.runs.run import ONNX, WEIGHTS, Run
from dsh_cli.runs.storage import read_bytes

Parcel = dict[str, bytes]  # contents of files, by name
_EXPORTED = "exported.onnx"


def packed(run: Run | Exported, device: str) -> Parcel:
    """What an encoder on such a device takes.

    Raises:
        RunError: something of it is missing or damaged.
    """
    if isinstance(run, Exported):
        try:
            with os.fdopen(open_regular(run.path), "rb") as file:
                return {_EXPORTED: file.read()}
        except OSError as error:
            raise RunError(f"{run.path} cannot be read ({reason(error)}); export its run again") from error
    network = ONNX if device == "cpu" and run.has_graph else WEIGHTS
    # what is damaged shows where it is opened, but for what comes from the disk of a moment ago
    return {name: read_bytes(run.path, name, run.record.digest(name), LARGEST) for name in ("config.json", network)} | {
        METRICS: read_bytes(run.path, METRICS, None, LARGEST)
    }


def encoder_of(parcel: Parcel, device: str) -> Encoder:
    """What makes codes of a parcel.

    Raises:
        RunError: it is damaged.
        UsageError: there is no such device.
        EngineError: what it takes is not installed.
    """
    with TemporaryDirectory(prefix="dsh-model-") as folder:
        for name, content in parcel.items():
            Path(folder, name).write_bytes(content)
        if _EXPORTED in parcel:
            return Exported.open(Path(folder, _EXPORTED)).encoder(device)
        return Run.open(folder).encoder(device)
