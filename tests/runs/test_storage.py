"""JSON and safetensors of a run: whatever the bytes, they are read as the libraries read them, or refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from dsh_cli.runs.schema import require
from dsh_cli.runs.storage import Tensors, digest_file, digest_tensors, parsed

TYPES = (np.uint8, np.int8, np.uint16, np.int16, np.int32, np.int64, np.float16, np.float32, np.float64, np.bool_)
SOUND = safetensors.numpy.save({"a": np.arange(6, dtype=np.int32).reshape(2, 3), "b": np.ones(3, np.float16)})

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_json_is_an_object_or_refused(data: bytes) -> None:
    try:
        content = parsed(data)
    except ValueError:
        return
    assert content == json.loads(data)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), json_values))
def test_what_a_schema_lets_through_is_of_its_types(values: dict[str, Any]) -> None:
    try:
        require(values, {"a": int, "b": float, "c": dict[str, list[str] | int]}, "file", ("a",))
    except ValueError as error:
        assert len(str(error)) < 1000
        return
    assert type(values["a"]) is int and abs(values["a"]) <= 2**63
    assert np.isfinite(np.float64(values.get("b", 0)))


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(TYPES), st.lists(st.integers(0, 3), max_size=4)),
        max_size=4,
    )
)
def test_what_the_library_writes_is_read_whole_and_in_part(kinds: dict[str, Any]) -> None:
    path = Path("tensors")
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(0, 2, shape).astype(kind) for name, (kind, shape) in kinds.items()}
    path.write_bytes(safetensors.numpy.save(arrays))
    with path.open("rb") as file:
        tensors = Tensors(file)
        assert set(tensors.tensors) == set(arrays)
        for name, array in arrays.items():
            read = tensors.array(name)
            assert read.dtype == array.dtype and read.shape == array.shape and (read == array).all()
            if array.ndim and len(array):
                assert (tensors.array(name, [len(array) - 1]) == array[-1:]).all()
        assert digest_tensors(Path(), "tensors", each=False) == digest_file(file)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(SOUND)), st.integers(0, len(SOUND)), st.binary(max_size=20))
def test_other_bytes_are_read_as_the_library_reads_them_or_refused(start: int, stop: int, new: bytes) -> None:
    path = Path("tensors")
    path.write_bytes(SOUND[: min(start, stop)] + new + SOUND[max(start, stop) :])
    with path.open("rb") as file:
        try:
            tensors = Tensors(file)
        except ValueError:
            return
        with safetensors.safe_open(path, "numpy") as theirs:
            assert set(theirs.keys()) == set(tensors.tensors)
            for name in tensors.tensors:
                assert tensors.array(name).tobytes() == theirs.get_tensor(name).tobytes()
