"""Tables that no dsh has written: each refused in one line, whatever is in it, and none of them at any cost."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lance.fragment import FragmentMetadata

from dsh_cli.codes.bits import pack
from dsh_cli.config import MAX_BITS
from dsh_cli.errors import IndexStateError
from dsh_cli.index import schema, storage, table
from dsh_cli.index.index import Index, ReadyCodes
from tests.support.commands import dsh, dsh_process, one_line_error

ABOUT = {"dsh.format": "1", "dsh.bits": "8", "dsh.model": "m"}
ROWS = 4

WIDE = pa.FixedSizeListArray.from_arrays(pa.array(range(2 * ROWS), pa.uint8()), 2)
STRANGE: dict[str, Any] = {
    "text": pa.array(["a"] * ROWS),
    "int32": pa.array([1] * ROWS, pa.int32()),
    "uint64": pa.array([2**63] * ROWS, pa.uint64()),
    "float": pa.array([1.5] * ROWS),
    "bool": pa.array([True] * ROWS),
    "time": pa.array([1] * ROWS, pa.timestamp("us")),
    "large binary": pa.array([b"a"] * ROWS, pa.large_binary()),
    "other width": pa.array([b"abc"] * ROWS, pa.binary(3)),
    "dictionary": pa.array([b"a"] * ROWS, pa.binary()).dictionary_encode(),
    "struct": pa.array([{"a": 1}] * ROWS),
    "list": pa.array([[1, 2]] * ROWS),
    "fixed list": WIDE,
    "nulls": pa.nulls(ROWS),
}


def columns() -> dict[str, Any]:
    """Those of an index of four rows."""
    return {
        "number": pa.array(range(ROWS), pa.int64()),
        "path": pa.array([f"/{i}".encode() for i in range(ROWS)], pa.binary()),
        "label": pa.array([b"x", None] * (ROWS // 2), pa.binary()),
        "code": pa.array([b"\x0f"] * ROWS, pa.binary(1)),
        "hash": pa.array([None] * ROWS, pa.binary(schema.DIGEST)),
        "size": pa.array([None] * ROWS, pa.int64()),
        "mtime_ns": pa.array([None] * ROWS, pa.int64()),
    }


def written(changed: dict[str, Any], about: dict[str, str] = ABOUT, uri: str = "i") -> str:
    """A table with some columns in place of an index's, None for none."""
    kept = {name: column for name, column in (columns() | changed).items() if column is not None}
    needed = ("number", "path", "code")
    fields = [pa.field(name, column.type, name not in needed or bool(column.null_count))
              for name, column in kept.items()]  # fmt: skip
    rows = pa.Table.from_arrays(list(kept.values()), schema=pa.schema(fields, metadata=about))
    shutil.rmtree(uri, ignore_errors=True)
    lance.write_dataset(rows, uri)
    return uri


def every_answer(uri: str) -> tuple[object, ...]:
    """All that can be read of an index."""
    opened = Index.open(uri)
    numbers, names = opened.labels()
    return len(opened), opened.codes().tolist(), [names[n] for n in numbers if n >= 0], opened.rows(range(len(opened)))


def refused(uri: str) -> str:
    """What is said of a table, by whatever looks at it."""
    with pytest.raises(IndexStateError) as caught:
        every_answer(uri)
    with pytest.raises(IndexStateError):
        Index.open(uri).remove(["/1"])
    with pytest.raises(IndexStateError):
        Index.open(uri).add_codes([ReadyCodes(["/1"], np.zeros((1, 1), np.uint8))], 8, "m")
    with pytest.raises(IndexStateError):
        Index.open(uri).export("out")
    return str(caught.value)


def test_what_is_made_here_is_an_index() -> None:
    assert every_answer(written({}))[0] == ROWS


@pytest.mark.parametrize("name", columns())
def test_columns_of_another_kind(name: str) -> None:
    for column in (None, *STRANGE.values()):
        if column is None or column.type != columns()[name].type:
            assert f"column {name}: " in refused(written({name: column}))
    nothing = pa.array([None, *columns()[name].to_pylist()[1:]], columns()[name].type)
    if name in ("number", "path", "code"):
        assert f"column {name}: " in refused(written({name: nothing}))
    else:
        assert every_answer(written({name: nothing}))[0] == ROWS


def test_a_column_more() -> None:
    assert "column more: int64, not none" in refused(written({"more": pa.array(range(ROWS))}))


@pytest.mark.parametrize(
    "numbers",
    [[0, 1, 1, 2], [-1, 0, 1, 2], [0, 1, 2, 2**63 - 1], [3, 2, 1, 3]],
    ids=["two", "below 0", "huge", "apart"],
)
def test_numbers_that_no_row_has(numbers: list[int]) -> None:
    assert "numbers that no row has" in refused(written({"number": pa.array(numbers, pa.int64())}))


def test_codes_of_another_length_than_bits() -> None:
    with pytest.raises(IndexStateError, match="a code of more than 7 bits"):
        Index.open(written({}, ABOUT | {"dsh.bits": "7"})).codes()
    assert "column code: " in refused(written({}, ABOUT | {"dsh.bits": "9"}))


@pytest.mark.parametrize(
    "value", ["", "0", "-8", "1025", "99999999999999999999", "9" * 5000, " 8", "8.0", "1_0", "\uff18"]
)
@pytest.mark.parametrize("name", ["dsh.bits", "dsh.format"])
def test_metadata_that_no_index_has(name: str, value: str) -> None:
    if name != "dsh.format" or value != "1025":  # which is of a newer dsh
        assert "not an index of dsh" in refused(written({}, ABOUT | {name: value}))


def test_the_command_line_says_it_in_one_line(digits_run: Path) -> None:
    written({"path": pa.array(["a"] * ROWS)})
    for line in (["index", "info", "i"], ["neighbors", "0xf0", "--index", "i", "--model", digits_run],
                 ["index", "add", "i", digits_run, "--model", digits_run]):  # fmt: skip
        assert one_line_error(dsh(*line), 1) == (
            "error: i is no index of dsh, or a damaged one (column path: string not null, not binary not null); "
            "choose another name"
        )


def changed(files: str, old: bytes, new: bytes) -> None:
    """Change files of an index."""
    for file in Path("i").glob(files):
        content = file.read_bytes()
        assert old in content
        file.write_bytes(content.replace(old, new))


def test_a_panic_of_lance_is_an_error_in_one_line() -> None:
    written({})
    changed("_versions/*.manifest", b"int64", b"hnt64")
    with pytest.raises(
        IndexStateError, match="its version 1 cannot be opened .*; upgrade dsh, or delete i and make it"
    ):
        Index.open("i")


def test_what_is_said_of_a_version_that_lance_refuses_leads_to_the_one_before() -> None:
    for number in range(2):
        codes = ReadyCodes([f"/{number}"], np.zeros((1, 1), np.uint8))
        Index.open("i").add_codes([codes], 8, "m")
    newest = storage.manifests("i")[0][1].absolute()
    newest.write_bytes(newest.read_bytes().replace(b"int64", b"hnt64"))
    said = one_line_error(dsh("index", "verify", "i", "--sample", 0, "--repair"), 1)
    assert said.endswith(
        f"; upgrade dsh, or move {newest} elsewhere, and go back a version with: dsh index verify i --repair"
    )
    os.rename(newest, "elsewhere")
    assert dsh("index", "verify", "i", "--sample", 0, "--repair").exit_code == 0
    assert every_answer("i")[0] == 1 and Index.open("i").note is None


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_ctrl_c_is_no_error_of_lance(interrupt: type[BaseException]) -> None:
    with pytest.raises(interrupt), table._reaching("i"):
        raise interrupt


def test_a_file_over_which_lance_would_abort() -> None:
    written({})
    changed("data/*.lance", b"PageLayout", b"Pa\0eLayout")
    done = dsh_process("index", "export", "i", "--parquet", "out")
    assert (
        done.returncode == 1 and done.stderr.startswith(b"error: index i is damaged") and done.stderr.count(b"\n") == 1
    )


def test_more_rows_than_files_can_hold_cost_no_memory(digits_run: Path) -> None:
    dataset = lance.dataset(written({}))
    fragment = dataset.get_fragments()[0].metadata.to_json()
    forged = FragmentMetadata.from_json(json.dumps(fragment | {"physical_rows": 10**12}))
    lance.LanceDataset.commit("i", lance.LanceOperation.Overwrite(dataset.schema, [forged]))
    assert "1,000,000,000,000 rows in files too small for them" in refused("i")


def test_a_table_of_very_many_equal_rows_costs_no_memory() -> None:
    def batches() -> Any:
        some = 1 << 20
        kinds = {"number": 5, "path": b"", "label": None, "code": b"\x0f", "hash": None, "size": None, "mtime_ns": None}
        arrays = [pa.array([value], column.type).take(pa.array(np.zeros(some, np.int64)))
                  for (name, column), value in zip(columns().items(), kinds.values(), strict=True)]  # fmt: skip
        for _ in range(4):
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    schema = lance.dataset(written({})).schema
    shutil.rmtree("i")
    lance.write_dataset(batches(), "i", schema=schema)
    assert "4,194,304 rows in files too small for them" in refused("i")


ROW = st.tuples(st.binary(max_size=40), st.none() | st.binary(max_size=40), st.binary(min_size=128, max_size=128))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, MAX_BITS), st.lists(ROW, min_size=1, max_size=8, unique_by=lambda row: row[0]), st.data())
def test_rows_of_any_bytes_come_back_as_they_were(
    bits: int, rows: list[tuple[bytes, bytes | None, bytes]], data: st.DataObject
) -> None:
    shutil.rmtree("any", ignore_errors=True)
    names = [os.fsdecode(path) for path, _, _ in rows]
    labels = [None if label is None else os.fsdecode(label) for _, label, _ in rows]
    all_bits = np.unpackbits(np.array([list(code) for _, _, code in rows], np.uint8), axis=1)[:, :bits]
    packed = pack(all_bits)
    Index.open("any").add_codes([ReadyCodes(names, packed, labels)], bits, "m")
    again = data.draw(st.lists(st.sampled_from(range(len(rows))), unique=True))
    flipped = pack(1 - all_bits)
    Index.open("any").add_codes([ReadyCodes([names[i] for i in again], flipped[again])], bits, "m")
    packed[again] = flipped[again]
    opened = Index.open("any")
    assert (opened.bits, opened.codes().tolist()) == (bits, packed.tolist())
    assert [(row.path, row.label) for row in opened.rows(range(len(rows)))] == list(zip(names, labels, strict=True))
    numbers, classes = opened.labels()
    assert [None if number < 0 else classes[number] for number in numbers] == labels


SIMPLE = st.sampled_from([pa.int8(), pa.int64(), pa.uint64(), pa.float64(), pa.bool_(), pa.string(), pa.binary(),
                          pa.large_binary(), pa.binary(1), pa.binary(16), pa.date32(), pa.timestamp("ns")])  # fmt: skip
KIND = st.recursive(SIMPLE, lambda kind: st.builds(pa.list_, kind) | st.builds(lambda k: pa.struct([("a", k)]), kind))
FIELD = st.builds(pa.field, st.sampled_from([*columns(), "more"]), KIND, st.booleans())


@settings(max_examples=60, deadline=None)
@given(st.lists(FIELD, min_size=1, max_size=8, unique_by=lambda field: field.name))
def test_any_columns_are_those_of_an_index_or_refused(fields: list[pa.Field]) -> None:
    shutil.rmtree("any", ignore_errors=True)
    lance.write_dataset(pa.schema(fields, metadata=ABOUT).empty_table(), "any")
    if set(fields) == set(lance.dataset(written({})).schema):
        assert len(Index.open("any")) == 0
    else:
        with pytest.raises(IndexStateError, match="column"):
            Index.open("any")
