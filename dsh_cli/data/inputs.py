"""Whatever a network takes -> codes: picture files, or files of vectors, a code a row."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dsh_cli.codes.bits import binarize, pack
from dsh_cli.codes.sets import CodeSet
from dsh_cli.data.vectors import NO_PICTURES, Vectors, is_vectors, read_vectors
from dsh_cli.errors import DataError, DivergedError, ImageError
from dsh_cli.network.encoder import Encoded, Encoder
from dsh_cli.pictures import find

if TYPE_CHECKING:
    from dsh_cli.network.model import HashNet


def encoder_of(net: HashNet | Encoder) -> Encoder:
    """What makes the codes of a network: itself, or by torch."""
    if isinstance(net, Encoder):
        return net

    from dsh_cli.network.encoding import TorchEncoder

    return TorchEncoder(net)


def encode_files(net: HashNet | Encoder, paths: Iterable[str], workers: int | None = None) -> Iterator[Encoded]:
    """Codes of picture files, in their order, by `workers` threads: one a processor where none are named.

    Pictures that cannot be read come as `Encoded` with an error. Memory does not grow with their number.
    """
    return encoder_of(net).encode_files(paths, workers)


def encode(net: HashNet | Encoder, paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> CodeSet:
    """Codes and outputs of picture files, and of the pictures below folders, as a `CodeSet` in their order.

    Raises:
        ImageError: one of them cannot be read; `encode_files` goes on instead.
    """
    given = [paths] if isinstance(paths, (str, os.PathLike)) else paths
    encoder = encoder_of(net)
    found = list(encoder.encode_files(find.expand(os.fspath(path) for path in given)))
    for item in found:
        if item.error is not None:
            raise ImageError(f"{item.path}: {item.error}")
    width = -(-encoder.bits // 8)
    packed = [item.packed for item in found if item.packed is not None]
    relaxed = [item.relaxed for item in found if item.relaxed is not None]
    return CodeSet(
        bits=encoder.bits,
        packed=np.stack(packed) if packed else np.zeros((0, width), np.uint8),
        labels=np.full(len(found), -1, np.int64),
        classes=(),
        names=tuple(item.path for item in found),
        relaxed=np.stack(relaxed).astype(np.float16) if relaxed else np.zeros((0, encoder.bits), np.float16),
    )


def encode_paths(encoder: Encoder, paths: Iterable[str], workers: int | None = None) -> Iterator[Encoded]:
    """Codes of picture files, or of the rows of files of vectors by the names these have, in their order.

    What cannot be read, or is not what the network takes, comes as `Encoded` with an error. Memory grows with the
    largest file of vectors, and not with the number of pictures.
    """
    for vectors, group in groupby(paths, is_vectors):
        if vectors:
            for path in group:
                yield from _of_file(encoder, path)
        elif encoder.model.of_vectors:
            error = NO_PICTURES.format(width=encoder.model.width)
            yield from (Encoded(path, encoder.bits, None, error) for path in group)
        else:
            yield from encoder.encode_files(group, workers)


def encode_vectors(encoder: Encoder, path: str, found: Vectors | None = None) -> tuple[Vectors, NDArray[np.float32]]:
    """The rows of a file of vectors, and the outputs of the network for these, (n, k).

    Args:
        encoder: of the network.
        path: the file.
        found: its rows, where they have been read before.

    Raises:
        DataError: the file cannot be read, or the network takes no such vectors.
        DivergedError: as in `Encoder.relaxed`.
    """
    if not encoder.model.of_vectors:
        raise DataError(
            f"{path} holds vectors, and the model takes pictures; train one on vectors with: dsh train FILE"
        )
    found = read_vectors(path) if found is None else found
    width, wanted = found.values.shape[1], encoder.model.width
    if width != wanted:
        raise DataError(f"{path} holds vectors of {width:,} numbers, and the model takes {wanted:,}; give such")
    return found, encoder.relaxed(found.values)


def encode_rows(encoder: Encoder, path: str, found: Vectors | None = None) -> Iterator[Encoded]:
    """Codes of the rows of a file of vectors, in their order; arguments and errors as in `encode_vectors`."""
    rows, outputs = encode_vectors(encoder, path, found)
    for name, code, relaxed in zip(rows.names, pack(binarize(outputs)), outputs, strict=True):
        yield Encoded(name, encoder.bits, code, relaxed=relaxed)


def _of_file(encoder: Encoder, path: str) -> Iterator[Encoded]:
    try:
        yield from encode_rows(encoder, path)
    except (DataError, DivergedError) as error:
        yield Encoded(path, encoder.bits, None, str(error).removeprefix(f"{path} "))
