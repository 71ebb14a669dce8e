"""Points for TensorBoard's projector."""

from __future__ import annotations

import math
import shlex
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dsh_cli.analysis.embedding import Embedding
from dsh_cli.codes.sets import CodeSet, sample, taken
from dsh_cli.errors import UsageError
from dsh_cli.files import UNLINK, require_no_links, saving, written
from dsh_cli.runs.run import Run
from dsh_cli.show.style import class_name
from dsh_cli.show.views.shared import printable

_SPRITE_SIDE = 8192  # pixels: TensorBoard refuses larger sprites
_POINTS = 100_000  # TensorBoard's projector asks for no more
NO_EVENTS = "train with `tensorboard=False`"  # where a training's events cannot be written


def require_utf8(path: str, instead: str) -> None:
    """Refuse a path that TensorBoard, which writes paths as text, has no way to write; and say what to do instead.

    Raises:
        UsageError: it is not UTF-8.
    """
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"TensorBoard cannot write into a path that is not UTF-8; {instead}") from error


def write_projector(folder: Path, codes: CodeSet, epoch: int, seed: int) -> None:
    """Write relaxed codes with their thumbnails, labels, codes and names as TensorBoard's projector reads them.

    Of more pictures than a sprite or the projector takes, a sample with the shares of the classes is written.
    Codes are marked with `#`, for TensorBoard turns texts that look like numbers (`06`, `1e5`) into numbers.

    Args:
        folder: becomes a run of its own in TensorBoard, which finds it also while it is running.
        codes: n > 0 pictures with relaxed codes, thumbnails and names.
        epoch: after which the codes were made.
        seed: of the sample.
    """
    assert codes.relaxed is not None
    rows = _with_room(codes, seed)
    of = "" if len(rows) == len(codes) else f" of {len(codes):,}, a sample with the shares of the classes"
    text = f"relaxed codes of validation pictures: {len(rows):,}{of}"
    shown = taken(codes, rows)
    _write_points(folder, shown, codes.relaxed[rows], "validation_relaxed_codes", text, epoch, NO_EVENTS)


def write_embedding(run: Run, embedding: Embedding, split: str) -> str:
    """Write the points of an embedding beside the run's relaxed codes, for TensorBoard's projector.

    Returns:
        Where to look at them, in words.

    Raises:
        DshError: they cannot be written.
    """
    how = embedding.how
    rows = _with_room(embedding.codes, how.seed)
    of = "" if len(rows) == len(embedding.codes) else f" of {len(embedding.codes):,}"
    text = f"{how.method} of {split} pictures, {embedding.metric}: {len(rows):,}{of} points"
    folder = run.path / "tensorboard" / how.method
    require_no_links(folder, run.path, UNLINK)
    shown = taken(embedding.codes, rows)
    _write_points(folder, shown, embedding.points[rows], f"{split}_{how.method}", text, 0, "leave `tensorboard` out")
    return f"TensorBoard has the points under {how.method}: tensorboard --logdir {shlex.quote(str(run.path))}"


def _with_room(codes: CodeSet, seed: int) -> NDArray[np.int64]:
    """Rows of as many pictures as a sprite and the projector take."""
    assert codes.thumbnails is not None
    side = max(codes.thumbnails.shape[1:3])
    return sample(codes.labels, min((_SPRITE_SIDE // side) ** 2, _POINTS), seed)


def _write_points(
    folder: Path, shown: CodeSet, vectors: NDArray[np.floating[Any]], name: str, text: str, step: int, instead: str
) -> None:
    # Not SummaryWriter.add_embedding: it breaks on tabs in names, and prints to stdout where its folder exists.
    from google.protobuf.text_format import MessageToString
    from tensorboard.plugins.projector import ProjectorConfig
    from torch.utils.tensorboard import SummaryWriter

    def place(file: str) -> AbstractContextManager[Path]:
        return written(folder / file, instead, folder)

    assert shown.thumbnails is not None
    side = max(shown.thumbnails.shape[1:3])
    with saving(folder, instead):
        folder.mkdir(parents=True, exist_ok=True)
        for old in ("tensors.tsv", "metadata.tsv", "sprite.png", "projector_config.pbtxt"):
            (folder / old).unlink(missing_ok=True)  # where it is a link, what it leads to stays
    # Text, for TensorBoard takes a binary file for text where its bytes happen to be UTF-8; 9 digits keep a float32.
    with place("tensors.tsv") as scratch, scratch.open("wb") as file:  # by its name NumPy might take it for a .gz
        np.savetxt(file, np.nan_to_num(vectors), fmt="%.9g", delimiter="\t")
    rows = zip((class_of(shown, i) for i in range(len(shown))), shown.hex, shown.names, strict=True)
    lines = ["label\tcode\tname", *(f"{one_line(label)}\t#{code}\t{one_line(name)}" for label, code, name in rows)]
    with place("metadata.tsv") as scratch:
        scratch.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    with place("sprite.png") as scratch:
        Image.fromarray(sprite(shown.thumbnails)).save(scratch, "png")
    config = ProjectorConfig()
    embedding = config.embeddings.add(
        tensor_name=name,
        tensor_shape=vectors.shape,
        tensor_path="tensors.tsv",
        metadata_path="metadata.tsv",
    )
    embedding.sprite.image_path = "sprite.png"
    embedding.sprite.single_image_dim.extend([side, side])
    with place("projector_config.pbtxt") as scratch:
        scratch.write_text(MessageToString(config), encoding="utf-8", newline="\n")
    # The event file comes last: with it TensorBoard sees the run, and looks for the files above. Its writer goes on to
    # write to it for as long as it is open, in a new file each time.
    with saving(folder, instead):
        writer = SummaryWriter(str(folder))
        writer.add_text("projector/shown", text, step)
        writer.close()


def sprite(thumbnails: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(n, h, w, channels) pictures in a square grid, row by row, each centred on a black square: (S, S, 3).

    The projector draws points as squares, and takes the grid to have as many rows as columns.
    """
    count, height, width, channels = thumbnails.shape
    side, across = max(height, width), math.ceil(math.sqrt(count))
    top, left = (side - height) // 2, (side - width) // 2
    tiles = np.zeros((across * across, side, side, 3), np.uint8)
    tiles[:count, top : top + height, left : left + width] = thumbnails  # grey fills all three channels
    grid = tiles.reshape(across, across, side, side, 3).swapaxes(1, 2)
    return grid.reshape(across * side, across * side, 3)


def class_of(codes: CodeSet, index: int) -> str:
    """The name of a picture's class."""
    return class_name(codes.classes, int(codes.labels[index]))


def one_line(text: str) -> str:
    """A name as one line that can be written: no tabs or line ends, `?` for undecodable bytes, nothing to be obeyed."""
    return printable(" ".join(text.split()).encode("utf-8", "replace").decode("utf-8"))
