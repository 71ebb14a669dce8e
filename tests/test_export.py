"""A run in a file of its own: the same codes, the same model for an index, and what a file may not be."""

import io
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from rich.console import Console

from dsh_cli import Run, TrainConfig, load_splits, train
from dsh_cli.analysis.classes import class_table, nearest_classes
from dsh_cli.codes.bits import Packed, pack
from dsh_cli.errors import DshError, RunError, UsageError
from dsh_cli.export import Export, export
from dsh_cli.network.onnx_encoding import ABOUT, digest_of
from dsh_cli.network.onnx_export import Compared, Differing
from dsh_cli.runs.check import check
from dsh_cli.runs.exported import Exported
from dsh_cli.show.views.export import exported as exported_view
from dsh_cli.training.events import Quiet, TrainResult
from tests.support.commands import DIGITS, dsh, dsh_json
from tests.support.runs import small_run


@pytest.fixture(scope="module")
def exported(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("exported") / "digits.onnx"
    export(Run.open(digits_run), file)
    return file


def test_the_command_says_how_the_file_compares(digits_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    found = dsh_json("export", "--model", digits_run, "--onnx", file)
    assert (found["out"], found["bits"], found["differ"], found["differing"]) == (str(file), 8, 0, [])
    assert found["compared"] == Run.open(digits_run).counts["test"] and 0 <= found["max_difference"] < 1e-4
    assert found["bytes"] == file.stat().st_size
    shown = dsh("export", "--model", digits_run, "--onnx", file, "--format", "table", env={"COLUMNS": "200"})
    assert (
        f"of {found['compared']} compared, none differs from PyTorch's" in shown.stdout
        and "writing the graph" in shown.stderr
    )


def test_bits_that_differ_are_listed_in_each_form() -> None:
    differing = tuple(Differing(row, 2, 1e-5, -2e-5) for row in range(7))
    made = Export("m.onnx", 8, 1000, Compared(50, 3e-5, differing), tuple(f"p/{row}" for row in range(7)))
    view = exported_view(made)
    assert view.json == json.dumps(json.loads(view.json)) and json.loads(view.json)["differ"] == 7
    assert json.loads(view.json)["differing"][6] == {"name": "p/6", "bit": 2, "torch": 1e-5, "onnx": -2e-5}
    assert "differing\tp/6\t2\t1e-05\t-2e-05" in view.plain(False)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(view.table(200))
    assert "of 50 compared, 7 bits differ: p/0 bit 2 (1e-05, -2e-05), " in (told := console.export_text())
    assert "p/4 bit 2 (1e-05, -2e-05) and 2 more" in told and "p/5" not in told


def test_hash_gives_the_same_codes_by_file_and_by_run(digits_run: Path, exported: Path, digit_png: Path) -> None:
    of_run = dsh_json("hash", digit_png, "--model", digits_run)
    assert dsh_json("hash", digit_png, "--model", exported) == of_run


def test_a_file_knows_the_classes_and_the_model(digits_run: Path, exported: Path) -> None:
    run, there = Run.open(digits_run), Exported.open(exported)
    assert (there.fingerprint, there.model, there.classes) == (run.fingerprint, run.model, run.classes)
    rows = dsh_json("table", "--model", digits_run, "--split", "train")["classes"]
    names, labels = there.classes, there.class_codes.labels.tolist()
    found = Counter(zip((names[label] for label in labels), there.class_codes.hex, strict=True))
    assert found == {(row["label"], row["code"]): round(row["exact"] * row["count"]) for row in rows}
    assert there.output_scale == run.output_scale


def test_an_index_takes_it_for_the_run(digits_run: Path, exported: Path, photos: Path, tmp_path: Path) -> None:
    index = tmp_path / "x.lance"
    dsh_json("index", "add", index, photos, "--model", exported, "--keep-outputs")
    assert dsh_json("index", "info", index)["model"] == Run.open(digits_run).fingerprint
    assert dsh("index", "add", index, photos, "--model", digits_run).exit_code == 0
    assert dsh("index", "verify", index, "--model", exported).exit_code == 0
    picture = next(photos.rglob("*.png"))
    of_file, of_run = (
        dsh_json("neighbors", picture, "--index", index, "--model", model, "--rescore", "outputs")
        for model in (exported, digits_run)
    )
    assert of_file["neighbors"] == of_run["neighbors"] and of_file["neighbors"][0]["distance"] == 0
    assert of_file["predicted_label"] == of_run["predicted_label"]


def test_where_pictures_are_asked_for_it_names_the_run(exported: Path, digit_png: Path) -> None:
    looked = dsh("neighbors", digit_png, "--model", exported)
    assert looked.exit_code == 2 and "has no pictures to look in; name an --index" in looked.stderr
    for command in (["table"], ["evaluate"], ["embed", "--out", "x.png"], ["export", "--onnx", "y.onnx"]):
        told = dsh(*command, "--model", exported)
        assert told.exit_code == 2 and "an exported model is no run, which is wanted here" in told.stderr
    told = dsh("hash", digit_png, "--model", exported, "--device", "cuda")
    assert told.exit_code == 2 and "an exported model computes on the CPU" in told.stderr


def test_what_cannot_be_exported_says_why(digits_run: Path, tmp_path: Path) -> None:
    told = dsh("export", "--model", digits_run, "--onnx", tmp_path / "m.bin")
    assert told.exit_code == 2 and "name a file that ends in .onnx" in told.stderr
    told = dsh("export", "--model", digits_run, "--onnx", tmp_path / "none" / "m.onnx")
    assert told.exit_code == 1 and "no such file or directory" in told.stderr.lower()
    told = dsh("export", "--model", digits_run, "--onnx", digits_run / "model.onnx")
    assert told.exit_code == 2 and "its folder is that of a run" in told.stderr
    with pytest.raises(UsageError, match="`onnx` ''"):
        export(Run.open(digits_run), "")


def changes(content: bytes, **told: Any) -> bytes:
    """The same file with something else said in it."""
    made = onnx.load_model_from_string(content)
    about = json.loads(made.metadata_props[0].value) | told
    about["digest"] = digest_of(content[: about["graph_bytes"]], about)
    onnx.helper.set_model_props(made, {ABOUT: json.dumps(about)})
    found: bytes = made.SerializeToString()
    return found


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"format": 2}, "newer than 1; upgrade dsh"),
        ({"format": "1"}, "format is '1'"),
        ({"model": {}}, "model: "),
        ({"model": {"backbone": "dsh-cnn", "bits": 10**9, "channels": 1, "image_size": 8}}, "no such network"),
        ({"classes": ["a"]}, "is no class"),
        ({"on_class_codes": {}}, "on_class_codes does not fit class_codes"),
        ({"on_class_codes": {str(digit): -1 for digit in range(10)}}, "on_class_codes does not fit class_codes"),
        ({"class_codes": {"0": "xyz"}, "on_class_codes": {"0": 1}}, "a code of 8 bits has 2 hex digits"),
        ({"output_scale": None}, "output_scale"),
        ({"fingerprint": None}, "fingerprint is None"),
        ({"fingerprint": "0"}, "output_scale or fingerprint is none"),
        ({"output_scale": 0.0}, "output_scale or fingerprint is none"),
        ({"output_scale": -1.0}, "output_scale or fingerprint is none"),
    ],
)
def test_a_file_that_says_what_cannot_be_is_refused(exported: Path, tmp_path: Path, told: Any, why: str) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(changes(exported.read_bytes(), **told))
    with pytest.raises(RunError) as raised:
        Exported.open(file)
    assert why in str(raised.value) and str(file) in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"no model", None])
def test_a_file_that_is_none_is_refused(exported: Path, tmp_path: Path, digit_png: Path, content: bytes | None) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(exported.read_bytes()[:5000] if content is None else content)
    told = dsh("hash", digit_png, "--model", file)
    assert told.exit_code == 1 and told.stderr.count("\n") == 1
    assert f"{file} is no exported model, or damaged (" in told.stderr and "; export its run again" in told.stderr
    told = dsh("hash", digit_png, "--model", tmp_path / "gone.onnx")
    assert told.exit_code == 1 and "gone.onnx cannot be read (no such file or directory)" in told.stderr


def test_the_graph_of_a_run_is_no_exported_model(digits_run: Path, digit_png: Path) -> None:
    told = dsh("hash", digit_png, "--model", digits_run / "model.onnx")
    assert told.exit_code == 1 and "is the graph of a run; name the run itself" in told.stderr


def test_a_bit_that_flipped_anywhere_in_a_file_is_told(exported: Path, tmp_path: Path) -> None:
    content, rng, file = exported.read_bytes(), np.random.default_rng(0), tmp_path / "m.onnx"
    for place in rng.integers(8 * len(content), size=60).tolist():
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        file.write_bytes(changed)
        with pytest.raises(RunError, match="is no exported model, or damaged"):
            Exported.open(file)


def test_of_classes_equally_near_both_name_the_same(digits_run: Path, tmp_path: Path) -> None:
    dsh_json(*DIGITS, "--bits", 2, "--epochs", 1, "--out", "few")  # four codes of ten classes
    export(Run.open("few"), "few.onnx")
    codes: Packed = pack([[0, 0], [0, 1], [1, 0], [1, 1]])
    (of_run, of_file) = (
        class_table(model.codes("train"), "train") for model in (Run.open("few"), Exported.open("few.onnx"))
    )
    assert nearest_classes(codes, of_run) == nearest_classes(codes, of_file)
    assert any(found.tied for found in nearest_classes(codes, of_run))


def test_a_run_folder_may_be_called_so(digits_run: Path, digit_png: Path) -> None:
    os.symlink(digits_run, "mine.onnx")
    assert dsh("hash", digit_png, "--model", "mine.onnx").exit_code == 0
    assert dsh("table", "--model", "mine.onnx").exit_code == 0


# In a run


def test_a_finished_run_has_its_graph_and_is_checked_whole(digits_run: Path) -> None:
    run = Run.open(digits_run)
    assert run.has_graph and not run.notes
    assert not check(digits_run).damaged and not check(digits_run).strays
    pictures = np.random.default_rng(0).integers(256, size=(40, 8, 8, 1), dtype=np.uint8)
    here, there = run.encoder("cpu"), run.graph_encoder()
    assert type(here) is type(there)
    assert np.abs(here.relaxed(pictures) - there.relaxed(pictures)).max() == 0


def test_damage_to_it_is_told(digits_run: Path, tmp_path: Path, digit_png: Path) -> None:
    import shutil

    copied = tmp_path / "run"
    shutil.copytree(digits_run, copied)
    data = bytearray((copied / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (copied / "model.onnx").write_bytes(data)
    assert [*check(copied).damaged] == ["model.onnx"]
    told = dsh("hash", digit_png, "--model", copied)
    assert told.exit_code == 1 and "model.onnx is damaged" in told.stderr
    assert f"make it anew with: dsh info {copied} --verify --repair" in told.stderr
    (copied / "model.onnx").unlink()
    assert dsh("info", copied, "--verify").exit_code == 1
    assert dsh("info", copied, "--verify", "--repair").exit_code == 0 and not check(copied).damaged
    assert dsh_json("hash", digit_png, "--model", copied) == dsh_json("hash", digit_png, "--model", digits_run)


def test_a_run_that_has_none_is_given_one(digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        without.setattr("dsh_cli.runs.run.has_engine", lambda: False)
        dsh_json(*DIGITS, "--epochs", 1, "--out", "run")
    assert not Run.open("run").has_graph and not dsh_json("info", "run", "--verify")["verified"]["damaged"]
    assert not Run.open("run").has_graph
    dsh_json("info", "run", "--verify", "--repair")
    assert Run.open("run").has_graph and not check("run").damaged


def test_a_run_without_it_takes_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digit_png: Path) -> None:
    monkeypatch.setattr("dsh_cli.runs.run.has_engine", lambda: False)
    dsh_json(*DIGITS, "--epochs", 1, "--out", "run")
    run = Run.open("run")
    assert not run.has_graph and type(run.encoder()).__name__ == "TorchEncoder"
    assert dsh("hash", digit_png, "--model", "run").exit_code == 0


@pytest.mark.parametrize(
    ("step", "error"),
    [
        ("dsh_cli.network.onnx_export.onnx_bytes", DshError("dsh-cnn cannot be exported to ONNX: no such step")),
        ("torch.onnx.export", KeyError("dsh-cnn cannot be exported to ONNX: no such step")),
        ("dsh_cli.runs.run.write_bytes", DshError("dsh-cnn cannot be exported to ONNX: no space left on device")),
    ],
)
def test_where_no_graph_can_be_made_the_run_is_finished_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: Exception
) -> None:
    def fails(*_: Any, **__: Any) -> bytes:
        raise error

    monkeypatch.setattr(step, fails)
    told = dsh(*DIGITS, "--epochs", 1, "--out", "run")
    assert told.exit_code == 0
    assert "warning: no model.onnx was made, so that codes take PyTorch: " in told.stderr
    assert "dsh-cnn cannot be exported to ONNX" in told.stderr
    assert Run.open("run").finished and not Run.open("run").has_graph


def test_old_runs_take_torch(tmp_path: Path) -> None:
    assert not Run.open(small_run(tmp_path / "run")).has_graph


def test_a_finished_run_is_not_taken_back_whatever_comes_after(tmp_path: Path) -> None:
    class Fails(Quiet):
        def on_end(self, result: TrainResult) -> None:
            raise DshError("no room for what is drawn of it")

    config = TrainConfig(data="digits", epochs=1, device="cpu", tensorboard=False)
    with pytest.raises(DshError, match="no room"):
        train(config, load_splits(config), str(tmp_path / "run"), listeners=[Fails()])
    assert Run.open(tmp_path / "run").finished


def test_an_onnxruntime_that_cannot_be_loaded_leaves_torch(
    digits_run: Path, digit_png: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = dsh_json("hash", digit_png, "--model", digits_run)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert type(Run.open(digits_run).encoder("cpu")).__name__ == "TorchEncoder"
    assert dsh_json("hash", digit_png, "--model", digits_run) == before
