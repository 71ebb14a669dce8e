"""What the JSON files of a run must say: types of fields, and how large a number may be."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Collection, Mapping
from types import UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from dsh_cli.config import ModelConfig

_Built = TypeVar("_Built")
_LARGEST = 1024  # pixels of the side of a picture, and so the largest network that is built


def require(values: Mapping[str, Any], kinds: Mapping[str, Any], where: str, required: Collection[str] = ()) -> None:
    """Check what a file says against the type of each field.

    Raises:
        ValueError: a field is of another type, or required and missing.
    """
    for name, kind in kinds.items():
        if name in values and not _is(values[name], kind):
            raise ValueError(f"{where}: {name} is {shown(values[name])}")
        if name in required and name not in values:
            raise ValueError(f"{where}: {name} is missing")


def built(kind: type[_Built], values: Mapping[str, Any], where: str) -> _Built:
    """A dataclass from what a file says of its fields.

    Raises:
        ValueError: a field is unknown, or of another type.
    """
    hints = get_type_hints(kind)
    if unknown := sorted(values.keys() - hints.keys()):
        raise ValueError(f"{where}: {shown(unknown[0])} is unknown")
    require(values, hints, where)
    return kind(**values)


def model_of(values: Mapping[str, Any]) -> ModelConfig:
    """The network that a file says.

    Raises:
        ValueError: it is none.
    """
    try:
        model = built(ModelConfig, values, "model")
    except TypeError as error:
        raise ValueError(f"model: {error}") from error
    if model.image_size > _LARGEST:
        raise ValueError(f"model: image_size is {model.image_size}, above {_LARGEST}")
    return model


def shown(value: object) -> str:
    """A value for people, of a large one some."""
    return reprlib.repr(value)


def _is(value: object, kind: Any) -> bool:
    """Whether a value out of JSON is of the type a field is annotated with; numbers are finite and of 64 bits."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in arguments
    if origin in (Union, UnionType):
        return any(_is(value, argument) for argument in arguments)
    if kind == list[str]:  # which may be millions of names
        return isinstance(value, list) and set(map(type, value)) <= {str}
    if origin is list:
        return isinstance(value, list) and all(_is(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_is(item, arguments[1]) for item in value.values())
    if kind is Any:
        return True
    if kind is float:
        return type(value) in (float, int) and abs(cast(float, value)) <= sys.float_info.max  # which NaN is not
    if kind is int:
        return type(value) is int and -(2**63) <= value < 2**63
    return type(value) is kind
