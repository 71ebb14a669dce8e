"""The files of a run: JSON and safetensors, checked when they are read and written whole."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import safetensors
from numpy.typing import NDArray

from dsh_cli.errors import DshError, RunError
from dsh_cli.files import require_no_links, saving, sweep, written

if TYPE_CHECKING:
    import torch

OR_ELSE = "choose another `out`"  # where a file of a run cannot be written

_Built = TypeVar("_Built")


def require(values: Mapping[str, Any], kinds: Mapping[str, Any], where: str, required: Collection[str] = ()) -> None:
    """Check what a file says against the type of each field.

    Raises:
        ValueError: a field is of another type, or required and missing.
    """
    for name, kind in kinds.items():
        if name in values and not _is(values[name], kind):
            raise ValueError(f"{where}: {name} is {values[name]!r}")
        if name in required and name not in values:
            raise ValueError(f"{where}: {name} is missing")


def built(kind: type[_Built], values: Mapping[str, Any], where: str) -> _Built:
    """A dataclass from what a file says of its fields."""
    hints = get_type_hints(kind)
    if unknown := sorted(values.keys() - hints.keys()):
        raise ValueError(f"{where}: {unknown[0]} is unknown")
    require(values, hints, where)
    return kind(**values)


def _is(value: object, kind: Any) -> bool:
    """Whether a value out of JSON is of the type a field is annotated with."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in arguments
    if origin in (Union, UnionType):
        return any(_is(value, argument) for argument in arguments)
    if origin is list:
        return isinstance(value, list) and all(_is(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_is(item, arguments[1]) for item in value.values())
    if kind is Any:
        return True
    return type(value) is kind or (kind is float and type(value) is int)


def file_of(run: Path, name: str) -> Path:
    """The path of a file of a run, such as `codes/test.safetensors`.

    Raises:
        RunError: it, or a folder on the way to it, is a link: a run of a stranger's could lead anywhere.
    """
    path = run / name
    try:
        require_no_links(path, run)
    except DshError as error:
        raise RunError(str(error)) from error
    return path


def read_json(run: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file of a run.

    Raises:
        RunError: it is missing or damaged.
    """
    path = file_of(run, name)
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}); train again with: dsh train") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} is damaged; train again with: dsh train")
    return content


def read_tensors(run: Path, name: str, tensors: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
    """Tensors of a file of a run, all or those named; no other is read from the disk."""
    with opened(run, name, tensors) as file:
        return {tensor: file.get_tensor(tensor) for tensor in tensors or file.keys()}


@contextlib.contextmanager
def opened(run: Path, name: str, tensors: Sequence[str]) -> Iterator[Any]:
    """A safetensors file of a run that has the tensors named."""
    path, again = file_of(run, name), f"train again with: dsh train --like {run}"
    if not path.is_file():
        raise RunError(f"{path} is missing; {again}")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            held = set(file.keys())
            if missing := [tensor for tensor in tensors if tensor not in held]:
                raise RunError(f"{path} lacks {missing[0]!r}; {again}")
            yield file
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise RunError(f"{path} is damaged ({error}); {again}") from error


def write_json(run: Path, name: str, content: object) -> None:
    """Write a JSON file of a run, whole or not at all."""
    with _place(run, name) as scratch:
        scratch.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8", newline="\n")


def write_tensors(run: Path, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file of a run, whole or not at all."""
    write_arrays(run, name, {key: tensor.detach().cpu().contiguous().numpy() for key, tensor in tensors.items()})


def write_arrays(run: Path, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a safetensors file, whole or not at all, from arrays that may lie on disk: none is copied into memory."""
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


@contextlib.contextmanager
def _place(run: Path, name: str) -> Iterator[Path]:
    """Where to write a file of a run, whole or not at all; its folder is made."""
    path = file_of(run, name)
    with saving(path, OR_ELSE):
        if path.parent != run:
            path.parent.mkdir(exist_ok=True)
        sweep(path)  # whoever writes holds the run
        for left in path.parent.glob(".tmp??????"):  # safetensors writes to such a place first
            left.unlink(missing_ok=True)
    with written(path, OR_ELSE, run) as scratch:
        yield scratch
