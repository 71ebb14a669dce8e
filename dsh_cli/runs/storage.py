"""The files of a run: JSON and safetensors, checked when they are read and written whole."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from dsh_cli.errors import DshError, RunError, reason
from dsh_cli.files import UNLINK, open_regular, require_no_links, saving, sweep, written
from dsh_cli.runs.schema import shown

if TYPE_CHECKING:
    import torch

OR_ELSE = "choose another `out`"  # where a file of a run cannot be written

# Of all bytes of a file; or of each tensor, over the head of the file and the bytes of the tensor, where some are read
# without the others.
Digest = str | Mapping[str, str]
Kind = tuple[str, tuple[int | None, ...]]  # of a tensor: type as safetensors names it, and shape; None: any length

# What one file may cost, whoever wrote it: names of four million pictures.
_MOST_BYTES, _MOST_VALUES = 256 << 20, 4_000_000  # of a JSON file
_MOST_FOREIGN = 64 << 20  # bytes where they are not all ASCII, which we write alone: Python takes four for each
_MOST_HEAD = 16 << 20  # bytes of the head of a safetensors file

_BLOCK = 1 << 20  # bytes read at once
_TYPES = {
    "BOOL": np.dtype(np.bool_),
    **{f"{name[0].upper()}{8 * size}": np.dtype(f"<{name}{size}") for name in "iu" for size in (1, 2, 4, 8)},
    **{f"F{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
}


def digest_of(data: bytes) -> str:
    """32 hex digits that change with any bit."""
    return _hash(data).hexdigest()


def _hash(data: bytes) -> hashlib.blake2b:
    return hashlib.blake2b(data, digest_size=16)


def file_of(run: Path, name: str, *or_else: str) -> Path:
    """The path of a file of a run, such as `codes/test.safetensors`; what to do instead, if it is not to be read.

    Raises:
        RunError: it, or a folder on the way to it, is a link: a run of a stranger's could lead anywhere.
    """
    path = run / name
    try:
        require_no_links(path, run, *or_else)
    except DshError as error:
        raise RunError(str(error)) from error
    return path


@contextlib.contextmanager
def opened(run: Path, name: str) -> Iterator[BufferedReader]:
    """A file of a run; a `ValueError` that ends the context says how it is damaged.

    Raises:
        RunError: it is missing, cannot be read, or is damaged.
    """
    path = file_of(run, name)
    with damage_to(run, name):
        try:
            file = os.fdopen(open_regular(path, follow=False), "rb")
        except FileNotFoundError as error:
            raise RunError(f"{path} is missing; {_or_again(run, name)}") from error
        except OSError as error:
            raise _unreadable(path, error) from error
        with file:
            yield file


@contextlib.contextmanager
def damage_to(run: Path, name: str) -> Iterator[None]:
    """Make a `RunError` of a `ValueError`, which says how a file of a run is damaged, and of one of the system's."""
    path = run / name
    try:
        yield
    except OSError as error:
        raise _unreadable(path, error) from error
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); {_or_again(run, name)}") from error


def _unreadable(path: Path, error: OSError) -> RunError:
    return RunError(f"{path} cannot be read ({reason(error)}); see to that, or train again with: dsh train")


def _or_again(run: Path, name: str) -> str:
    if name in ("config.json", "metrics.json"):  # without which no other can be like it
        return "bring it back from a copy, or train again with: dsh train"
    if name.endswith(".onnx"):
        return f"make it anew with: dsh info {run} `verify` `repair`"
    return f"bring it back from a copy, or train again with: dsh train --like {run}"


def require_digest(found: str, recorded: Digest | None) -> None:
    """Check a digest against that in metrics.json; where there is none, nothing can be told.

    Raises:
        ValueError: it is another.
    """
    if recorded not in (None, found):
        raise ValueError("it is not as metrics.json has it, or of another run")


# JSON


def read_json(run: Path, name: str, digest: Digest | None = None) -> dict[str, Any]:
    """The object in a JSON file of a run.

    Raises:
        RunError: it is missing or damaged, or its digest is another.
    """
    with opened(run, name) as file:
        data = whole(file)
        require_digest(digest_of(data), digest)
        return parsed(data)


def read_json_and_digest(run: Path, name: str) -> tuple[dict[str, Any], str]:
    """The object in a JSON file of a run, and the digest of its bytes.

    Raises:
        RunError: it is missing or damaged.
    """
    with opened(run, name) as file:
        data = whole(file)
        return parsed(data), digest_of(data)


def whole(file: BufferedReader) -> bytes:
    """All of a file that is no larger than JSON of a run may be."""
    data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES or (len(data) > _MOST_FOREIGN and not data.isascii()):
        raise ValueError("it is larger than any of a run")
    return data


def parsed(data: bytes) -> dict[str, Any]:
    """The object that JSON says.

    Raises:
        ValueError: it says something else, or is more than a run may have.
    """
    if _values(data) > _MOST_VALUES:  # before memory is taken for them
        raise ValueError(f"it has more than {_MOST_VALUES:,} values")
    try:
        content = json.loads(data, parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    return content


def _values(data: bytes) -> int:
    """How many values JSON has, at most."""
    return sum(map(data.count, (b",", b"[", b"{")))


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def json_bytes(content: object) -> bytes:
    """What `write_json` writes."""
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode("ascii")


def write_json(run: Path, name: str, content: object) -> str:
    """Write a JSON file of a run, whole or not at all; returns its digest.

    Raises:
        DshError: it cannot be written, or is more than would be read.
    """
    data = json_bytes(content)
    if len(data) > _MOST_BYTES or _values(data) > _MOST_VALUES:
        raise DshError(
            f"cannot write {run / name}: it would have {len(data):,} bytes and {_values(data):,} values, and may have "
            f"{_MOST_BYTES:,} and {_MOST_VALUES:,}; take fewer pictures, or shorter paths"
        )
    with _place(run, name) as scratch:
        scratch.write_bytes(data)
    return digest_of(data)


# ONNX


def read_bytes(run: Path, name: str, digest: Digest | None, most: int) -> bytes:
    """All of a file of a run.

    Raises:
        RunError: it is missing or damaged, or its digest is another.
    """
    with opened(run, name) as file:
        if (size := os.fstat(file.fileno()).st_size) > most:
            raise ValueError("it is larger than any of a run")
        data = file.read(size)
        require_digest(digest_of(data), digest if isinstance(digest, str) else None)
        return data


def write_bytes(run: Path, name: str, data: bytes) -> str:
    """Write a file of a run, whole or not at all; returns its digest."""
    with _place(run, name) as scratch:
        scratch.write_bytes(data)
    return digest_of(data)


# Safetensors


class Tensors:
    """A safetensors file, opened: what its head says, checked against its size; tensors when they are asked for.

    The library's own reader maps a file, so that one cut short ends the process; opens it by name, so that it waits
    for a pipe; and has no digests.

    Raises:
        ValueError: it is none, or has tensors that NumPy has no type for.
    """

    def __init__(self, file: BufferedReader) -> None:
        self.file = file
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MOST_HEAD):
            raise ValueError("it is cut short")
        text = file.read(length)
        self.head = length.to_bytes(8, "little") + text
        if len(text) != length:
            raise ValueError("it is cut short")
        entries = parsed(text)
        entries.pop("__metadata__", None)
        found = {name: _entry(name, entry) for name, entry in entries.items()}
        # name -> type, shape, and where its bytes begin, in the order of the file
        self.tensors: dict[str, tuple[str, tuple[int, ...], int]] = {}
        at = len(self.head)
        for name, (kind, shape, begin, end) in sorted(found.items(), key=lambda item: item[1][2:]):
            if begin + len(self.head) != at:
                raise ValueError("its tensors do not lie one after the other")
            self.tensors[name] = kind, shape, at
            at = end + len(self.head)
        if at != size:
            raise ValueError(f"it has {size:,} bytes in place of {at:,}")

    def require(self, kinds: Mapping[str, Kind]) -> None:
        """Check tensors by type and shape, before memory is taken for them.

        Raises:
            ValueError: one is missing or another.
        """
        for name, (kind, shape) in kinds.items():
            if name not in self.tensors:
                raise ValueError(f"it lacks {name!r}")
            has, lengths, _ = self.tensors[name]
            fits = len(lengths) == len(shape) and all(b in (None, a) for a, b in zip(lengths, shape, strict=True))
            if has != kind or not fits:
                raise ValueError(
                    f"it does not fit config.json: {name!r} is {has} {list(lengths)}, in place of {kind} "
                    f"{['any' if length is None else length for length in shape]}"
                )

    def array(self, name: str, rows: Sequence[int] | None = None) -> NDArray[Any]:
        """One tensor, or some of its rows; no other is read from the disk."""
        kind, shape, at = self.tensors[name]
        array = np.empty(shape if rows is None else (len(rows), *shape[1:]), _TYPES[kind])
        if rows is None:
            self._read(at, array)
        else:
            stride = math.prod(shape[1:]) * _TYPES[kind].itemsize
            for place, row in enumerate(rows):
                self._read(at + row * stride, array[place : place + 1])
        return array

    def _read(self, at: int, array: NDArray[Any]) -> None:
        self.file.seek(at)
        if self.file.readinto(_bytes(array)) != array.nbytes:
            raise ValueError("it is cut short")

    def digest(self, name: str) -> str:
        """The digest of one tensor, of which a block at a time is in memory."""
        kind, shape, at = self.tensors[name]
        self.file.seek(at)
        digest = _hash(self.head)
        for block in _blocks(self.file, math.prod(shape) * _TYPES[kind].itemsize):
            digest.update(block)
        return digest.hexdigest()


def _blocks(file: BufferedReader, size: int) -> Iterator[bytes]:
    """So many bytes of a file from where it stands, a block at a time."""
    for done in range(0, size, _BLOCK):
        block = file.read(min(_BLOCK, size - done))
        if not block:
            raise ValueError("it is cut short")
        yield block


def digest_file(file: BufferedReader, tell: Callable[[bytes], object] = lambda block: None) -> str:
    """The digest of all of a file, of which a block at a time is in memory; each block is handed on."""
    digest = _hash(b"")
    file.seek(0)
    for block in _blocks(file, os.fstat(file.fileno()).st_size):
        digest.update(block)
        tell(block)
    return digest.hexdigest()


def _entry(name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Type, shape and place of a tensor, as the head of a file says.

    Raises:
        ValueError: that cannot be.
    """
    said: list[Any] = [
        entry.get(key) if isinstance(entry, dict) else None for key in ("dtype", "shape", "data_offsets")
    ]
    kind, shape, place = said
    if not isinstance(kind, str) or kind not in _TYPES:
        raise ValueError(f"{shown(name)} is of type {shown(kind)}")
    if not _sizes(shape) or not _sizes(place) or len(place) != 2 or len(shape) > 8:
        raise ValueError(f"{shown(name)} has no place")
    if place[1] - place[0] != math.prod(shape) * _TYPES[kind].itemsize:
        raise ValueError(f"{shown(name)} has not as many bytes as its shape takes")
    return kind, tuple(shape), place[0], place[1]


def _sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**48 for value in values)


def _bytes(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def read_tensors(
    run: Path, name: str, digest: Digest | None, kinds: Mapping[str, Kind], all_of_it: bool = False
) -> dict[str, NDArray[Any]]:
    """Tensors of a file of a run: those of which types and shapes are given, or all; no others are read from the disk.

    Args:
        run: its folder.
        name: of the file.
        digest: as it must be; None: not known.
        kinds: type and shape of tensors that must be there.
        all_of_it: whether those not among them are wanted too.

    Raises:
        RunError: it is missing or damaged, has other tensors in their place, or its digest is another.
    """
    with opened(run, name) as file:
        tensors = Tensors(file)
        tensors.require(kinds)
        arrays = {tensor: tensors.array(tensor) for tensor in (tensors.tensors if all_of_it else kinds)}
        if isinstance(digest, str):
            whole = _hash(tensors.head)
            for array in arrays.values():
                whole.update(_bytes(array))
            require_digest(whole.hexdigest(), digest)
        elif digest is not None:
            for tensor, array in arrays.items():
                one = _hash(tensors.head)
                one.update(_bytes(array))
                require_digest(one.hexdigest(), digest.get(tensor, ""))
        return arrays


def check_tensors(run: Path, name: str, digest: Digest | None) -> None:
    """Read a whole file of a run, a block at a time.

    Raises:
        RunError: it is missing or damaged, or its digest is another.
    """
    with opened(run, name) as file:
        tensors = Tensors(file)
        if isinstance(digest, str):
            require_digest(digest_file(file), digest)
        elif digest is not None:
            for tensor in tensors.tensors:
                require_digest(tensors.digest(tensor), digest.get(tensor, ""))


def digest_tensors(run: Path, name: str, each: bool) -> Digest:
    """The digest of a file of a run, or that of each of its tensors.

    Raises:
        RunError: it is missing or damaged.
    """
    with opened(run, name) as file:
        tensors = Tensors(file)
        return {tensor: tensors.digest(tensor) for tensor in tensors.tensors} if each else digest_file(file)


def write_tensors(run: Path, name: str, tensors: Mapping[str, torch.Tensor]) -> Digest:
    """Write a safetensors file of a run, whole or not at all; returns its digest."""
    return write_arrays(run, name, {key: tensor.detach().cpu().contiguous().numpy() for key, tensor in tensors.items()})


def write_arrays(run: Path, name: str, arrays: Mapping[str, NDArray[Any]], each: bool = False) -> Digest:
    """Write a safetensors file, whole or not at all, from arrays that may lie on disk: none is copied into memory.

    Returns:
        Its digest, or that of each of its tensors.
    """
    import safetensors
    import safetensors.numpy

    with _place(run, name) as scratch:
        mode = scratch.stat().st_mode  # what it is given there is for its owner alone
        try:
            safetensors.numpy.save_file({key: np.asarray(array, order="C") for key, array in arrays.items()}, scratch)
        except safetensors.SafetensorError as error:
            if said := re.search(r"\(os error (\d+)\)", str(error)):
                raise OSError(int(said[1]), os.strerror(int(said[1]))) from error
            raise
        scratch.chmod(mode)
        return digest_tensors(scratch.parent, scratch.name, each)


@contextlib.contextmanager
def _place(run: Path, name: str) -> Iterator[Path]:
    """Where to write a file of a run, whole or not at all; its folder is made."""
    path = file_of(run, name, UNLINK)
    with saving(path, OR_ELSE):
        if path.parent != run:
            path.parent.mkdir(exist_ok=True)
        sweep(path)  # whoever writes holds the run
        for left in path.parent.glob(".tmp??????"):  # safetensors writes to such a place first
            left.unlink(missing_ok=True)
    with written(path, OR_ELSE, run) as scratch:
        yield scratch


def remove(run: Path, names: Iterable[str]) -> None:
    """Take files of a run away, where they are there."""
    for name in names:
        with saving(run / name, OR_ELSE):
            file_of(run, name, UNLINK).unlink(missing_ok=True)
