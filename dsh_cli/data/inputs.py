"""Whatever a network takes -> codes: picture files, or files of vectors, a code a row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from dsh_cli.codes.bits import binarize, pack
from dsh_cli.data.vectors import NO_PICTURES, Vectors, is_vectors, read_vectors
from dsh_cli.errors import DataError, DivergedError
from dsh_cli.network.encoding import Encoded, Encoder, encode_files
from dsh_cli.network.model import HashNet


def encode_paths(net: HashNet, paths: Iterable[str], workers: int | None = None) -> Iterator[Encoded]:
    """Codes of picture files, or of the rows of files of vectors by the names these have, in their order.

    What cannot be read, or is not what the network takes, comes as `Encoded` with an error. Memory grows with the
    largest file of vectors, and not with the number of pictures.
    """
    for vectors, group in groupby(paths, is_vectors):
        if vectors:
            for path in group:
                yield from _of_file(net, path)
        elif net.config.of_vectors:
            error = NO_PICTURES.format(width=net.config.width)
            yield from (Encoded(path, net.config.bits, None, error) for path in group)
        else:
            yield from encode_files(net, group, workers)


def encode_vectors(net: HashNet, path: str, found: Vectors | None = None) -> tuple[Vectors, NDArray[np.float32]]:
    """The rows of a file of vectors, and the outputs of the network for these, (n, k).

    Args:
        net: the network.
        path: the file.
        found: its rows, where they have been read before.

    Raises:
        DataError: the file cannot be read, or the network takes no such vectors.
        DivergedError: as in `Encoder.relaxed`.
    """
    if not net.config.of_vectors:
        raise DataError(
            f"{path} holds vectors, and the model takes pictures; train one on vectors with: dsh train FILE"
        )
    found = read_vectors(path) if found is None else found
    width, wanted = found.values.shape[1], net.config.width
    if width != wanted:
        raise DataError(f"{path} holds vectors of {width:,} numbers, and the model takes {wanted:,}; give such")
    return found, Encoder(net).of_features(found.values[:, None])


def encode_rows(net: HashNet, path: str, found: Vectors | None = None) -> Iterator[Encoded]:
    """Codes of the rows of a file of vectors, in their order; arguments and errors as in `encode_vectors`."""
    rows, outputs = encode_vectors(net, path, found)
    for name, code, relaxed in zip(rows.names, pack(binarize(outputs)), outputs, strict=True):
        yield Encoded(name, net.config.bits, code, relaxed=relaxed)


def _of_file(net: HashNet, path: str) -> Iterator[Encoded]:
    try:
        yield from encode_rows(net, path)
    except (DataError, DivergedError) as error:
        yield Encoded(path, net.config.bits, None, str(error).removeprefix(f"{path} "))
