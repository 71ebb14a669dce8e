"""Outputs that an index keeps: exact through every change, checked, read alone, and of all pictures or of none."""

import json
import os
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from dsh_cli.codes.bits import pack
from dsh_cli.codes.rescoring import quantised, scale_of
from dsh_cli.data.inputs import encode_files
from dsh_cli.errors import IndexStateError, UsageError
from dsh_cli.index import schema, table
from dsh_cli.index.index import Index, ReadyCodes
from dsh_cli.neighbors import Answer, Search
from dsh_cli.runs.run import Run
from tests.support.commands import dsh, dsh_json, one_line_error
from tests.support.values import there

BITS = 12


def relaxed_of(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 1, (count, BITS)).astype(np.float32)


def ready(relaxed: NDArray[np.float32], start: int = 0, outputs: bool = True) -> ReadyCodes:
    paths = [f"/p/{start + i}.png" for i in range(len(relaxed))]
    return ReadyCodes(paths, pack(relaxed >= 0), relaxed=relaxed if outputs else None)


def put(uri: str, *batches: ReadyCodes) -> Index:
    Index.open(uri).add_codes(batches, BITS, "model")
    return Index.open(uri)


def all_outputs(index: Index) -> dict[str, list[int]]:
    rows = np.arange(len(index))
    return {row.path: of for row, of in zip(index.rows(rows), index.outputs(rows).tolist(), strict=True)}


def expected(relaxed: NDArray[np.float32], scale: float, start: int = 0) -> dict[str, list[int]]:
    return {f"/p/{start + i}.png": of for i, of in enumerate(quantised(relaxed, scale).tolist())}


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Nine small grey pictures."""
    rng = np.random.default_rng(0)
    os.makedirs(tmp_path / "in")
    for i in range(9):
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(tmp_path / "in" / f"{i}.png")
    return str(tmp_path / "in")


# Kept, changed, removed


def test_outputs_are_kept_in_steps_told_from_the_first_and_clipped_after(monkeypatch: pytest.MonkeyPatch) -> None:
    first, later = relaxed_of(50), 3 * relaxed_of(40, 1)
    index = put("i", ready(first))
    scale = scale_of(first)
    assert index.scale == scale and all_outputs(index) == expected(first, scale)
    index = put("i", ready(later, 50))
    assert index.scale == scale and np.abs(index.outputs(range(90))).max() == 127
    assert all_outputs(index) == expected(first, scale) | expected(later, scale, 50)
    assert index.outputs([60, 3, 60]).tolist() == index.outputs(np.arange(90))[[60, 3, 60]].tolist()


def test_outputs_stay_with_their_rows_whatever_is_done_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_FRAGMENTS", 3)
    first = relaxed_of(60)
    index = put("i", ready(first))
    scale, wanted = there(index.scale), expected(first, scale_of(first))
    for step in range(1, 6):
        changed = relaxed_of(10, step)
        wanted |= expected(changed, scale, 15 * step)  # some rows are updated, and others new
        put("i", ready(changed, 15 * step))
        gone = f"/p/{7 * step}.png"
        wanted.pop(gone)
        Index.open("i").remove([gone])
        assert all_outputs(Index.open("i")) == wanted
    assert Index.open("i").verify(None, sample=0).failed == ()


def test_an_index_that_keeps_none_is_of_the_format_that_earlier_versions_read() -> None:
    relaxed = relaxed_of(5)
    put("without", ready(relaxed, outputs=False))
    put("with", ready(relaxed))
    without, kept = (lance.dataset(uri).schema for uri in ("without", "with"))
    assert (without.metadata[b"dsh.format"], kept.metadata[b"dsh.format"]) == (b"2", b"3")
    assert without.names == schema.columns(BITS).names and b"dsh.scale" not in without.metadata
    assert set(kept.names) - set(without.names) == {"outputs", "outputs_check"}
    assert kept.field("outputs").type.byte_width == BITS
    assert float(kept.metadata[b"dsh.scale"]) == Index.open("with").scale


def test_no_other_column_and_no_other_row_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    index = put("i", ready(relaxed_of(300)))
    index.codes()
    index.rows([0])
    asked: list[tuple[int, list[str]]] = []
    take = lance.LanceDataset.take

    def watched(self: lance.LanceDataset, indices: Any, columns: Any = None, **more: Any) -> Any:
        asked.append((len(indices), sorted(columns)))
        return take(self, indices, columns, **more)

    monkeypatch.setattr(lance.LanceDataset, "take", watched)
    index.outputs([5, 250])
    assert asked == [(2, ["number", "outputs", "outputs_check"])]


def test_export_has_them_and_their_scale() -> None:
    relaxed = relaxed_of(20)
    index = put("i", ready(relaxed))
    index.export("out.parquet")
    found = pq.read_table("out.parquet")
    outputs = np.frombuffer(b"".join(found["outputs"].to_pylist()), np.int8).reshape(20, BITS)
    scale = float(found.schema.metadata[b"dsh.scale"])
    assert scale == index.scale and (outputs == quantised(relaxed, scale)).all()
    put("j", ready(relaxed, outputs=False)).export("out.parquet")
    assert "outputs" not in pq.read_table("out.parquet").column_names


# Of all pictures, or of none


def test_codes_with_outputs_and_without_do_not_mix() -> None:
    relaxed = relaxed_of(4)
    with_outputs, without = ready(relaxed, 4), ready(relaxed, 8, outputs=False)
    put("with", ready(relaxed))
    put("without", ready(relaxed, outputs=False))
    with pytest.raises(UsageError, match="index with keeps the outputs of all its codes, and none are given"):
        put("with", without)
    with pytest.raises(UsageError, match="index without keeps no outputs, and some are given"):
        put("without", with_outputs)
    for batches in ((with_outputs, without), (without, with_outputs)):
        with pytest.raises(UsageError, match="some of the codes given have outputs, and others have none"):
            put("new", *batches)
    odd = ReadyCodes(["/a"], np.zeros((1, 2), np.uint8), relaxed=np.full((1, BITS), np.nan))
    short = ReadyCodes(["/a"], np.zeros((1, 2), np.uint8), relaxed=np.zeros((1, BITS - 1)))
    for batch in (odd, short):
        with pytest.raises(UsageError, match="not finite|of shape"):
            put("new", batch)
    assert (len(Index.open("with")), len(Index.open("without")), len(Index.open("new"))) == (4, 4, 0)


def test_an_emptied_index_begins_anew_with_outputs_or_without() -> None:
    relaxed = relaxed_of(4)
    put("i", ready(relaxed))
    Index.open("i").remove(["/p"])
    assert Index.open("i").scale is None and Index.open("i").report().scale is None
    assert put("i", ready(relaxed, outputs=False)).scale is None
    Index.open("i").remove(["/p"])
    assert put("i", ready(2 * relaxed)).scale == scale_of(2 * relaxed)


def test_add_keeps_what_the_network_gives_and_goes_on_to(digits_run: Path, folder: str) -> None:
    run = Run.open(digits_run)
    first = dsh_json("index", "add", "i", f"{folder}/0.png", "--model", digits_run, "--keep-outputs")
    scale = scale_of(there(run.codes("train", "relaxed").relaxed))
    assert first["outputs"] is True and first["outputs_scale"] == scale
    again = dsh_json("index", "add", "i", folder, "--model", digits_run)
    assert (again["added"], again["skipped"], again["outputs"], again["outputs_scale"]) == (8, 1, True, scale)
    index = Index.open("i")
    paths = [row.path for row in index.rows(range(9))]
    relaxed = np.stack([there(item.relaxed) for item in encode_files(run.load_model("cpu"), paths)])
    off = index.outputs(range(9)).astype(int) - quantised(relaxed, scale)
    assert np.abs(off).max() <= 1  # by the rounding of a convolution over other pictures beside it
    os.utime(f"{folder}/3.png", (1, 1))  # of another time, with the same content
    before = index.outputs([3]).tolist()
    assert dsh_json("index", "add", "i", folder, "--model", digits_run, "--labels", "folder")["updated"] == 9
    assert Index.open("i").outputs([3]).tolist() == before
    told = dsh("index", "info", "i", "--format", "table").stdout
    assert "outputs  kept, 8 bytes a picture" in told
    assert dsh("index", "verify", "i", "--model", digits_run).exit_code == 0


def test_an_index_that_has_pictures_without_outputs_cannot_begin(digits_run: Path, folder: str) -> None:
    before = dsh_json("index", "add", "i", folder, "--model", digits_run)
    assert before["outputs"] is False and before["outputs_scale"] is None
    said = one_line_error(dsh("index", "add", "i", folder, "--model", digits_run, "--keep-outputs"), 1)
    assert said == (
        "error: index i has 9 pictures without outputs, and keeps those of all or of none; make another index with "
        "--keep-outputs"
    )
    with pytest.raises(IndexStateError, match="index i keeps no outputs; make one that does"):
        Index.open("i").outputs([0])
    assert dsh_json("index", "info", "i")["version"] == before["version"]
    with pytest.raises(IndexError):
        Index.open("i").outputs([-1])


# Indexes of earlier versions


def of_format_1(uri: str) -> None:
    old = put("new", ready(relaxed_of(6), outputs=False))._table
    rows = old.read(schema.columns(BITS, checks=False).names)
    about = {"dsh.format": "1", "dsh.bits": str(BITS), "dsh.model": "model"}
    lance.write_dataset(rows.replace_schema_metadata(about), uri)


def test_an_index_of_format_1_goes_on_without_outputs() -> None:
    of_format_1("i")
    assert Index.open("i").scale is None and len(Index.open("i").codes()) == 6
    index = put("i", ready(relaxed_of(3), 6, outputs=False))
    assert index.report().digests and index.scale is None and len(index.codes()) == 9
    assert lance.dataset("i").schema.metadata[b"dsh.format"] == b"2"


@pytest.mark.parametrize("scale", ["", "0", "-1", "nan", "inf", "x", None])
def test_a_table_that_says_no_scale_of_its_outputs_is_no_index(scale: str | None) -> None:
    rows = lance.dataset(put("i", ready(relaxed_of(3))).uri).to_table()
    about = {name.decode(): value.decode() for name, value in rows.schema.metadata.items()} | {"dsh.scale": scale}
    lance.write_dataset(rows.replace_schema_metadata({k: v for k, v in about.items() if v is not None}), "j")
    with pytest.raises(IndexStateError, match="is a Lance table, but not an index of dsh"):
        Index.open("j")


def test_outputs_under_a_format_that_has_none_are_refused() -> None:
    rows = lance.dataset(put("i", ready(relaxed_of(3))).uri).to_table()
    lance.write_dataset(rows.replace_schema_metadata(rows.schema.metadata | {b"dsh.format": b"2"}), "j")
    with pytest.raises(IndexStateError, match="column outputs: fixed_size_binary"):
        Index.open("j")


# Damage


def test_an_output_that_was_changed_is_found_and_taken_out() -> None:
    whole = all_outputs(put("i", ready(relaxed_of(9))))
    lance.dataset("i").update({"outputs": f"X'{'01' * BITS}'"}, where="number = 3")
    index = Index.open("i")
    assert len(index.codes()) == 9 and index.outputs([2, 4]).shape == (2, BITS)
    with pytest.raises(IndexStateError, match="1 row is not what was written; see which with: dsh index verify i, and"):
        index.outputs([2, 3])
    found = dsh("index", "verify", "i", "--sample", 0, "--json")
    assert found.exit_code == 1
    assert json.loads(found.stdout)["failed"] == [{"path": "/p/3.png", "error": "not what was written"}]
    assert dsh("index", "verify", "i", "--sample", 0, "--repair").exit_code == 0
    whole.pop("/p/3.png")
    repaired = Index.open("i")
    assert all_outputs(repaired) == whole and repaired.scale is not None
    assert repaired.verify(None, sample=0).failed == ()


# Searching


def kept(run: Run, seed: int, count: int = 40) -> NDArray[np.float32]:
    relaxed = np.random.default_rng(seed).normal(0, 1, (count, 8)).astype(np.float32)
    paths = [f"/{i}" for i in range(count)]
    Index.open("i").add_codes([ReadyCodes(paths, pack(relaxed >= 0), relaxed=relaxed)], 8, run.fingerprint)
    return relaxed


def test_a_search_whose_version_is_cleaned_away_goes_on_with_the_newest(
    digits_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "_KEPT", timedelta(0))
    monkeypatch.setattr(table, "_KEPT_ALWAYS", 1)
    run = Run.open(digits_run)
    kept(run, 0)
    search = Search(index="i", k=4, rescore="outputs")
    finder = search.finder(run)
    kept(run, 1)
    (answer,) = finder.find(["0x0f"])
    (fresh,) = search.finder(run).find(["0x0f"])
    assert isinstance(answer, Answer) and isinstance(fresh, Answer)
    assert answer.neighbors == fresh.neighbors and len({n.score for n in answer.neighbors}) == 4


def test_a_search_whose_index_was_made_anew_without_outputs_says_so(digits_run: Path) -> None:
    run = Run.open(digits_run)
    kept(run, 0)
    finder = Search(index="i", rescore="outputs").finder(run)
    shutil.rmtree("i")
    Index.open("i").add_codes([ReadyCodes(["/0"], np.zeros((1, 1), np.uint8))], 8, run.fingerprint)
    with pytest.raises(IndexStateError):
        list(finder.find(["0x0f"]))
