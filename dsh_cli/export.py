"""A run -> one ONNX file, compared with the run."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dsh_cli.analysis.classes import class_table
from dsh_cli.codes.bits import from_hex
from dsh_cli.codes.sets import CodeSet, taken
from dsh_cli.errors import DshError, UsageError
from dsh_cli.files import written
from dsh_cli.runs.exported import SUFFIX, Exported, about
from dsh_cli.runs.run import Run, may_be_run

if TYPE_CHECKING:
    from dsh_cli.network.onnx_export import Compared

_MOST = 10_000  # pictures whose codes are made both ways


@dataclass(frozen=True)
class Export:
    """A file that was written, and how its codes compare with those of torch."""

    file: str
    bits: int
    size: int  # bytes
    compared: Compared
    names: tuple[str, ...]  # of the pictures whose bits differ, in the order of `compared.differing`


def export(run: Run, file: str | os.PathLike[str], tell: Callable[[str], object] = lambda step: None) -> Export:
    """Write normalisation, network, sign and packing of a run into one file, with fingerprint and class codes.

    Its codes are compared with those of torch, of thumbnails of the run, resized to what the network takes (of small
    pictures these are the pictures themselves), or of vectors by lot. It is written only if all outputs are as those of
    torch to `NEAR_ZERO`; bits of smaller ones may differ, and are named.

    Args:
        run: a finished run.
        file: to be written; one of that name is replaced.
        tell: told what is done next.

    Raises:
        UsageError: the name does not end in `.onnx`, or is of a file in a run folder.
        RunError: the run is unfinished or damaged.
        DshError: the network has steps that ONNX has not, or comes to other outputs there; or the file cannot be
            written, or PyTorch or onnxruntime is missing.
    """
    path = os.fspath(file)
    if Path(path).suffix != SUFFIX:
        raise UsageError(
            f"`onnx` {path or repr('')}: name a file that ends in {SUFFIX}, by which it is known as a model"
        )
    folder = Path(os.path.realpath(path)).parent
    if may_be_run(folder) or (folder.name == "codes" and may_be_run(folder.parent)):
        raise UsageError(f"`onnx` {path}: its folder is that of a run, whose files are its own; choose another place")
    tell("reading the run")
    net, split = run.load_model(), run.shown_split

    from dsh_cli.network.onnx_export import compared, inputs_of, onnx_bytes, tried

    tell("writing the graph")
    content = onnx_bytes(net, about(run, _class_codes(run)))
    rows = tried(run.model, _MOST if run.model.of_vectors else run.counts[split], _MOST).tolist()
    inputs = inputs_of(net, None if run.model.of_vectors else run.thumbnails(split, rows), len(rows))
    tell(f"comparing codes of {len(inputs):,} {'vectors' if run.model.of_vectors else 'pictures'}")
    try:
        found = compared(net, content, inputs)
    except ValueError as error:
        raise DshError(f"{run.path} cannot be exported: {error}") from error
    if found.why_unlike:
        raise DshError(f"{run.path} cannot be exported: {found.why_unlike}")
    Exported.read(Path(path), content)
    with written(path, "choose another place with `onnx`") as scratch:
        scratch.write_bytes(content)
    names = run.names()[split] if found.differing and not run.model.of_vectors else ()
    named = tuple(names[rows[one.row]] if names else f"vector {one.row}" for one in found.differing)
    return Export(path, run.model.bits, len(content), found, named)


def _class_codes(run: Run) -> CodeSet:
    """Of the pictures that the run was trained on, those that have the code of their class."""
    codes = run.codes("train")
    if not run.classes:
        return taken(codes, np.zeros(0, np.int64))
    rows = class_table(codes, "train").classes
    wanted = from_hex([row.code or "0" * -(-codes.bits // 4) for row in rows], codes.bits)
    return taken(codes, np.flatnonzero((codes.packed == wanted[codes.labels]).all(axis=1) & (codes.labels >= 0)))
