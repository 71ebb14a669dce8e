"""Files of vectors: read whole, or refused with the row that is wrong."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dsh_cli.data import vectors
from dsh_cli.data.vectors import Vectors, is_vectors, read_vectors
from dsh_cli.errors import DataError

ROWS, WIDTH = 7, 5


def values(kind: str = "f4", rows: int = ROWS) -> Any:
    return np.random.default_rng(0).standard_normal((rows, WIDTH)).astype(kind)


def columns(**changed: Any) -> dict[str, Any]:
    """Those of a sound file."""
    sound = {
        "path": [f"photos/{number}.jpg" for number in range(ROWS)],
        "label": ["cat", "dog", "dog", "cat", "dog", "cat", "cat"],
        "split": ["train", "train", "val", "test", "train", "validation", "test"],
    }
    return {name: value for name, value in {**sound, **changed}.items() if value is not None}


def parquet(file: Path, vector: pa.Array, **changed: Any) -> Path:
    pq.write_table(pa.table({"vector": vector, **columns(**changed)}), file)
    return file


def fixed(array: Any) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), array.shape[1])


def written(file: Path, array: Any, **changed: Any) -> Path:
    """A file of vectors, of the kind that its name says."""
    if file.suffix == ".parquet":
        return parquet(file, fixed(array), **changed)
    arrays: dict[str, Any] = {f"{name}s": np.array(value) for name, value in columns(**changed).items()}
    np.savez(file, vectors=array, **arrays)
    return file


def alike(found: Vectors, array: Any) -> bool:
    return found.values.dtype == np.float32 and np.array_equal(found.values, array.astype("f4"))


@pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
@pytest.mark.parametrize("name", ["v.parquet", "v.npz"])
def test_a_file_is_read_whole(tmp_path: Path, name: str, kind: str) -> None:
    array = values(kind)
    found = read_vectors(written(tmp_path / name, array))
    assert alike(found, array) and len(found) == ROWS and found.source == str(tmp_path / name)
    assert found.names == tuple(columns()["path"]) and found.labels == tuple(columns()["label"])
    assert found.splits == ("train", "train", "validation", "test", "train", "validation", "test")


@pytest.mark.parametrize("name", ["v.parquet", "v.npz"])
def test_names_labels_and_splits_may_be_unknown(tmp_path: Path, name: str) -> None:
    found = read_vectors(written(tmp_path / name, values(), path=None, label=None, split=None))
    assert (found.labels, found.splits) == (None, None)
    assert found.names[0] == f"{name}#1" and found.names[-1] == f"{name}#{ROWS}"


def test_lists_of_one_length_and_large_lists_and_chunks_will_do(tmp_path: Path) -> None:
    array = values()
    for kind in (pa.list_(pa.float32()), pa.large_list(pa.float32())):
        assert alike(read_vectors(parquet(tmp_path / "v.parquet", pa.array(list(array), kind))), array)
    chunks = pa.chunked_array([fixed(array[:3]), fixed(array[3:])])
    assert alike(read_vectors(parquet(tmp_path / "v.parquet", chunks)), array)
    assert alike(read_vectors(parquet(tmp_path / "v.parquet", fixed(np.concatenate([array, array]))[ROWS:])), array)


def test_whole_numbers_are_labels_and_columns_have_other_names_too(tmp_path: Path) -> None:
    array = values()
    pq.write_table(pa.table({"id": list(range(ROWS)), "Embedding": fixed(array), "target": [3] * ROWS}), "v.parquet")
    found = read_vectors("v.parquet")
    assert alike(found, array) and found.labels == ("3",) * ROWS and found.names == tuple("0123456")
    np.savez("v.npz", embeddings=array, labels=np.arange(ROWS, dtype=np.uint8), paths=np.array(list("abcdefg")))
    assert read_vectors("v.npz").labels == tuple("0123456")


def refused(file: Path, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        read_vectors(file)
    assert "\n" not in str(caught.value) and str(file) in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("name", ["v.parquet", "v.npz"])
@pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
def test_a_row_that_is_no_vector_is_named(tmp_path: Path, name: str, kind: str) -> None:
    for number in (np.nan, np.inf, *([1e300] if kind == "f8" else [])):
        array = values(kind)
        array[3, 2] = array[5, 0] = number
        wrong = r"the vector of row 4 \(photos/3\.jpg\) has numbers that are not finite, and those of 1 more; take"
        refused(written(tmp_path / name, array), wrong)
    array = values(kind)
    array[6] = 0
    refused(written(tmp_path / name, array), r"the vector of row 7 \(photos/6\.jpg\) is all zeros; take")
    if kind != "f2":
        array = values(kind)
        array[1, 3] *= 1e9  # as a bit that was flipped makes it
        refused(written(tmp_path / name, array), r"row 2 \(photos/1\.jpg\) has a number more than 1,000,000 times")
        array[1, 3] /= 1e4
        assert read_vectors(written(tmp_path / name, array)).values[1, 3] == np.float32(array[1, 3])


def test_vectors_of_two_lengths_or_none_are_refused(tmp_path: Path) -> None:
    rows: list[Any] = [list(row) for row in values()]
    for changed, said in (
        (rows[2][:3], "the vector of row 3 has 3 numbers, and that of row 1 5"),
        (None, "row 3 has no vector"),
        ([1.0, None, 2.0, 3.0, 4.0], "the vector of row 3 lacks a number"),
    ):
        mixed = [*rows[:2], changed, *rows[3:]]
        refused(parquet(tmp_path / "v.parquet", pa.array(mixed, pa.list_(pa.float32()))), said)
    refused(parquet(tmp_path / "v.parquet", pa.array([[]] * ROWS, pa.list_(pa.float32()))), "have 0 numbers; from 1")


def test_what_holds_no_vectors_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file, said in (
        (written(tmp_path / "empty.npz", values(rows=0), path=[], label=[], split=[]), "holds no vectors"),
        (parquet(tmp_path / "text.parquet", pa.array(["a"] * ROWS)), "its column 'vector' is string, and no list of"),
        (parquet(tmp_path / "int.parquet", fixed(np.ones((ROWS, 2), int))), "and no list of float16"),
        (tmp_path / "none.parquet", "cannot be read"),
    ):
        refused(file, said)
    for name, array, said in (
        ("int", np.ones((ROWS, 2), int), "its array 'vectors' is 7 x 2 of int64, and not rows of floats"),
        ("flat", np.ones(ROWS), "is 7 of float64, and not rows"),
        ("object", np.array([[1.0], [2.0, 3.0]], object), "is 2 of object, and not rows of floats"),
    ):
        np.savez(tmp_path / f"{name}.npz", vectors=array)
        refused(tmp_path / f"{name}.npz", said)
    np.savez(tmp_path / "pandas.npz", vectors=values(), labels=np.array(["a"] * ROWS, object))
    refused(tmp_path / "pandas.npz", r"'labels' is 7 of object, of Python; write it as text, such as with .astype")
    np.savez(tmp_path / "one.npz", vectors=values(), labels=np.array("a"))
    refused(tmp_path / "one.npz", "'labels' is one value of <U1, and not a row of texts")
    np.save(tmp_path / "v.npy", values())
    (tmp_path / "v.npy").rename(tmp_path / "single.npz")
    refused(tmp_path / "single.npz", "cannot be read")
    refused(written(tmp_path / "tiny.npz", values("f8") * 1e-60), "is all zeros")
    np.savez(tmp_path / "other.npz", pictures=values())
    refused(tmp_path / "other.npz", "has no column 'vector', but pictures")
    for name in ("v.parquet", "v.npz"):
        (tmp_path / name).write_bytes(b"PAR1 or so")
        refused(tmp_path / name, "cannot be read")
    monkeypatch.setattr(vectors, "_MEMORY", 100)
    refused(written(tmp_path / "large.parquet", values()), "7 vectors of 35 numbers in all take more than")
    refused(written(tmp_path / "large.npz", values()), "7 vectors of 35 numbers in all take more than")


@pytest.mark.parametrize("name", ["v.parquet", "v.npz"])
def test_a_row_without_its_label_is_named(tmp_path: Path, name: str) -> None:
    labels = columns()["label"]
    refused(written(tmp_path / name, values(), label=["", *labels[1:]]), "row 1 has no 'label'; give each row one")
    refused(written(tmp_path / name, values(), split=["train"] * 6 + ["other"]), "row 7 is of split 'other'")
    refused(
        written(tmp_path / name, values(), label=np.linspace(0, 1, ROWS)), "row 1 has a float in place of a 'label'"
    )


def test_a_label_that_is_missing_and_arrays_of_two_lengths_are_named(tmp_path: Path) -> None:
    labels = columns()["label"]
    refused(parquet(tmp_path / "v.parquet", fixed(values()), label=[*labels[:6], None]), "row 7 has no 'label'")
    refused(written(tmp_path / "v.npz", values(), label=labels[:6]), "6 of 'label', and 7 vectors; give one for each")


def test_files_of_vectors_are_known_by_their_names() -> None:
    assert is_vectors("a/B.PARQUET") and is_vectors(Path("x.npz"))
    assert not any(is_vectors(name) for name in ("x.npy", "parquet", "x.csv", "folder.npz.d"))
