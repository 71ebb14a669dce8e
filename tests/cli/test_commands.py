"""Every command as a user meets it: help, results in three forms, exit codes, and what bad input gets."""

import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dsh_cli.codes.bits import from_hex, hamming, to_hex
from dsh_cli.runs.run import Run
from tests.support.commands import (
    DIGITS,
    dsh,
    dsh_json,
    dsh_process,
    every_command,
    on_terminal,
    one_line_error,
    undone,
)
from tests.support.runs import edit
from tests.support.values import in_memory


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Five digit pictures of the run's test split as files, one with a name hard to handle."""
    from dsh_cli import TrainConfig, load_splits

    test = load_splits(TrainConfig(data="digits")).test
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, name in enumerate(["a.png", "b c.png", "d\ne.png", "é.png", "z.png"]):
        Image.fromarray(in_memory(test)[i, ..., 0]).save(folder / name)
    return folder


# Help


@pytest.mark.parametrize("command", every_command())
def test_help_explains_and_gives_an_example(command: str) -> None:
    result = dsh(*command.split(), "--help")
    assert result.exit_code == 0
    usage, explained, *_, example = (" ".join(part.split()) for part in re.split(r"\n\s*\n", result.stdout.strip()))
    assert usage.startswith(f"Usage: root {command} [OPTIONS]")
    assert explained[0].isupper() and explained.endswith(".")
    assert re.match(rf"(Example|Start with): dsh {command}\b", example)
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_without_arguments_the_commands_are_listed() -> None:
    result = dsh()
    said = result.stdout + result.stderr
    assert all(f"│ {command} " in said for command in every_command() if " " not in command)


def test_version() -> None:
    assert dsh("--version").stdout.startswith("dsh 0.")


def test_python_m_runs_the_same_program() -> None:
    assert b"dsh [OPTIONS] COMMAND" in dsh_process("--help").stdout


# On a terminal


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_on_a_terminal_everything_is_shown_live(photos: Path, tmp_path: Path) -> None:
    """Training and hashing with stdout and stderr on a real pseudo-terminal."""
    train = [*["train", "--epochs", "3", "--bits", "8"], "--out", str(tmp_path / "run"), str(photos)]
    shown = shown_live(train)
    assert "epoch 3/3" in shown and "img/s" in shown and "smallest distance" in shown
    assert "\x1b[2K" in shown  # the bar was drawn, and erased
    hashed = shown_live(["hash", str(photos), "--model", str(tmp_path / "run")])
    assert hashed.count("0x") == 18
    assert "0x" in shown_live(["table", "--model", str(tmp_path / "run")])


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_an_index_shows_how_far_it_is_on_a_terminal(digits_run: Path, pictures: Path) -> None:
    shown = shown_live(["index", "add", "i", str(pictures), "--model", str(digits_run)])
    assert "5/5" in shown and "\x1b[2K" in shown  # the bar was drawn, and erased


def shown_live(arguments: list[str]) -> str:
    code, shown = on_terminal(arguments)
    assert code == 0, shown
    return shown


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("command", ["hash", "neighbors"])
def test_results_go_to_stdout_while_stderr_shows_the_progress(command: str, digits_run: Path, pictures: Path) -> None:
    ours, theirs = os.openpty()
    arguments = [sys.executable, "-m", "dsh_cli", command, str(pictures / "a.png"), "--model", str(digits_run)]
    environment = {**os.environ, "TERM": "xterm"}
    with open("codes.txt", "wb") as file:  # not a pipe, whose other end may write to the terminal
        subprocess.run([*arguments, "--json"], stdout=file, stderr=theirs, env=environment)
    os.close(theirs)
    shown = os.read(ours, 65536)
    os.close(ours)
    assert json.loads(Path("codes.txt").read_text())["code"]
    assert b": 1" in shown and b"code" not in shown


# train, info


def test_train_answers_with_its_contract(tmp_path: Path) -> None:
    answer = dsh_json(*DIGITS, "--bits", 12, "--out", tmp_path / "run", "--seed", 3)
    assert list(answer) == [
        "run", "dataset", "bits", "epochs", "seconds", "tflop", "map", "min_class_distance", "class_distance_bound"
    ]  # fmt: skip
    assert (answer["dataset"], answer["bits"], answer["epochs"]) == ("digits", 12, 12)
    assert answer["class_distance_bound"] == 6 and 0 < answer["map"] <= 1 and answer["tflop"] > 0
    assert answer["run"] == str(tmp_path / "run")


def test_train_writes_under_runs_and_is_line_wise_in_a_pipe() -> None:
    done = dsh_process("train", "digits", "--epochs", "2")
    assert done.returncode == 0
    lines = done.stderr.decode().splitlines()
    assert lines[0].startswith("digits from scikit-learn: 10 classes, 1,295 train, 143 validation, 359 test")
    assert [line.split()[:2] for line in lines[1:] if line.startswith("epoch")] == [["epoch", "1/2"], ["epoch", "2/2"]]
    fields = dict(line.split("\t") for line in done.stdout.decode().splitlines())
    assert fields["run"].startswith(os.path.join("runs", "digits-8bit-"))
    assert Run.open(fields["run"]).path.joinpath("tensorboard").is_dir()
    assert "\x1b" not in done.stderr.decode() + done.stdout.decode()


def test_train_on_a_folder_then_hash_it(photos: Path, tmp_path: Path) -> None:
    answer = dsh_json(
        "train", photos, "--bits", 9, "--epochs", 3, "--out", tmp_path / "run", "--quiet", "--no-tensorboard"
    )
    assert answer["dataset"] == str(photos)
    rows = [json.loads(line) for line in dsh("hash", photos, "--model", tmp_path / "run", "--json").stdout.splitlines()]
    assert len(rows) == 18 and {len(row["code"]) for row in rows} == {3}
    run = Run.open(tmp_path / "run")
    saved = dict(zip(run.names()["test"], to_hex(run.codes("test").packed, 9), strict=True))
    assert saved.items() <= {row["path"]: row["code"] for row in rows}.items()
    grey = tmp_path / "grey.png"
    Image.effect_noise((30, 20), 50).save(grey)
    assert dsh("hash", grey, "--model", tmp_path / "run").exit_code == 0


def test_the_smallest_set_that_can_be_learned_from(tmp_path: Path) -> None:
    """Two classes of three large pictures: two to train on, one to test, none to validate."""
    folder = make_classes(tmp_path / "set", {"a": 3, "b": 3}, size=100)
    dsh_json("train", folder, "--epochs", 2, "--out", tmp_path / "run")
    assert dsh_json("info", tmp_path / "run")["counts"] == {"train": 4, "validation": 0, "test": 2}
    assert dsh("table", "--model", tmp_path / "run", "--split", "validation", "--format", "table").exit_code == 0
    assert dsh_json("table", "--model", tmp_path / "run")["class_distance_bound"] == 8


def test_like_takes_a_recipe_and_changes_what_is_given(digits_run: Path, tmp_path: Path) -> None:
    dsh_json("train", "--like", digits_run, "--bits", 5, "--epochs", 1, "--out", tmp_path / "run", "--quiet")
    mine, theirs = Run.open(tmp_path / "run").config, Run.open(digits_run).config
    assert (mine.data, mine.batch_size, mine.bits, mine.epochs, mine.margin) == ("digits", 64, 5, 1, 10.0)
    assert (theirs.bits, theirs.margin) == (8, 16.0)


def test_resume_refuses_finished_runs_and_other_options(digits_run: Path) -> None:
    assert "--like" in one_line_error(dsh("train", "--resume", digits_run), 2)
    assert "--resume goes on" in one_line_error(dsh("train", "--resume", digits_run, "--bits", 9), 2)


def test_info_of_a_run_and_of_all(digits_run: Path) -> None:
    assert dsh_json("info", digits_run)["counts"] == {"train": 1295, "validation": 143, "test": 359}
    table = dsh("info", digits_run, "--format", "table").stdout
    assert "choice of a hash center, smoothing 0.2" in table and "finished" in table
    assert dsh_json("info") == {"runs": []}
    assert "no runs under runs/" in one_line_error(dsh("info"), 1)
    os.mkdir("runs")
    os.symlink(digits_run, "runs/mine")
    assert [run["run"] for run in dsh_json("info")["runs"]] == [os.path.join("runs", "mine")]


def test_info_of_all_is_a_table_of_runs_with_what_each_came_to(digits_run: Path) -> None:
    for name in ("mine", "stopped"):
        shutil.copytree(digits_run, Path("runs", name))
    edit(Path("runs", "stopped", "metrics.json"), finished=False, epochs_done=3)
    shown = [line.split() for line in dsh("info", "--format", "table").stdout.splitlines()]
    rows = {line[0]: line for line in shown if line and line[0].startswith("runs/")}
    metrics = Run.open(digits_run).metrics
    distance = f"{metrics['min_class_distance']}/{metrics['class_distance_bound']}"
    assert rows["runs/mine"][1:6] == ["digits", "8", f"{metrics['map']:.4f}", distance, "finished"]
    assert rows["runs/stopped"][1:5] == ["digits", "8", "-", "-"] and "3" in " ".join(rows["runs/stopped"][5:])
    assert shown[-1][:2] == ["2", "runs,"]


def test_ctrl_c_stops_any_command_in_one_line(digits_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: str) -> Run:
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "open", interrupted)
    assert one_line_error(dsh("table", "--model", digits_run), 130) == "error: stopped by Ctrl-C"


# hash


def test_hash_keeps_the_order_and_its_plain_form_is_md5sums(digits_run: Path, pictures: Path) -> None:
    rows = [json.loads(line) for line in dsh("hash", pictures, "--model", digits_run, "--json").stdout.splitlines()]
    assert [os.path.basename(row["path"]) for row in rows] == ["a.png", "b c.png", "d\ne.png", "z.png", "é.png"]
    assert all(list(row) == ["path", "code", "bits"] and row["bits"] == 8 for row in rows)
    plain = dsh("hash", pictures, "--model", digits_run).stdout.splitlines()
    assert plain[1] == f"{rows[1]['code']}  {rows[1]['path']}"
    assert plain[2] == "\\" + f"{rows[2]['code']}  {pictures}/d\\ne.png"


def test_hash_gives_the_codes_of_the_run(digits_run: Path, pictures: Path) -> None:
    run = Run.open(digits_run)
    codes = dict(zip(run.names()["test"], to_hex(run.codes("test").packed, 8), strict=True))
    expected = [codes[name] for name in run.names()["test"][:2]]
    rows = [json.loads(line) for line in dsh("hash", pictures, "--model", digits_run, "--json").stdout.splitlines()]
    assert [row["code"] for row in rows[:2]] == expected


def test_hash_reads_lists_from_standard_input(digits_run: Path, pictures: Path) -> None:
    names = ["z.png", "a.png"]
    by_line = dsh("hash", "-", "--model", digits_run, input="".join(f"{pictures / n}\n" for n in names))
    by_null = dsh("hash", "--null", "-", "--model", digits_run, input="".join(f"{pictures / n}\0" for n in names))
    assert by_line.stdout == by_null.stdout
    assert [line.split("  ")[1] for line in by_line.stdout.splitlines()] == [str(pictures / n) for n in names]
    odd = dsh("hash", "-0", "-", "--model", digits_run, "--json", input=f"{pictures / 'd'}\ne.png\0")
    assert json.loads(odd.stdout)["path"].endswith("d\ne.png")


def test_hash_reports_what_it_cannot_read_and_goes_on(digits_run: Path, pictures: Path) -> None:
    (pictures / "b.png").write_text("text, not a picture")
    arguments = [
        pictures / "a.png",
        pictures / "b.png",
        pictures / "none.png",
        pictures / "z.png",
        "--model",
        digits_run,
    ]
    result = dsh("hash", *arguments, "--json")
    assert result.exit_code == 1
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert ["error" in row for row in rows] == [False, True, True, False]
    assert rows[1]["error"] == "not a picture, or of a format Pillow does not know"
    assert rows[2]["error"] == "no such file or directory"
    assert len(result.stderr.splitlines()) == 2
    plain = dsh("hash", *arguments)
    assert plain.exit_code == 1 and len(plain.stdout.splitlines()) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_names_that_are_not_utf8_and_terminal_escapes(digits_run: Path, pictures: Path) -> None:
    raw = os.fsencode(pictures) + b"/\xff\x1b[31m.png"
    os.rename(os.fsencode(pictures / "a.png"), raw)
    as_json = dsh_process("hash", "--model", digits_run, "--json", raw)
    assert os.fsencode(json.loads(as_json.stdout)["path"]) == raw
    plain = dsh_process("hash", "--model", digits_run, raw).stdout.decode()
    assert plain.startswith("\\") and plain.endswith(r"/\xff\x1b[31m.png" + "\n")
    assert os.fsencode(undone(plain.rstrip("\n").split("  ", 1)[1])) == raw
    table = dsh_process("hash", "--model", digits_run, "--format", "table", raw)
    assert table.returncode == 0 and b"\x1b" not in table.stdout
    os.truncate(raw, 0)
    failed = dsh_process("hash", "--model", digits_run, raw)
    assert b"\\x1b[31m" in failed.stderr and b"\x1b[31m.png" not in failed.stderr


def test_hash_as_a_table(digits_run: Path, pictures: Path) -> None:
    shown = dsh("hash", pictures / "a.png", "--model", digits_run, "--format", "table").stdout
    code = json.loads(dsh("hash", pictures / "a.png", "--model", digits_run, "--json").stdout)["code"]
    assert f"0x{code}" in shown and f"{int(code, 16):08b}" in shown


def test_a_closed_pipe_ends_quietly(digits_run: Path, pictures: Path) -> None:
    many = f"yes {pictures / 'a.png'} | head -3000"
    command = f"{many} | {sys.executable} -m dsh_cli hash --model {digits_run} --json - | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert len(done.stdout.splitlines()) == 1 and done.stderr == ""


# table


def test_table_answers_with_its_contract(digits_run: Path) -> None:
    answer = dsh_json("table", "--model", digits_run)
    assert list(answer) == [
        "split", "bits", "classes", "class_distances", "min_class_distance", "class_distance_bound", "bit_balance"
    ]  # fmt: skip
    assert [row["label"] for row in answer["classes"]] == list("0123456789")
    packed = from_hex([row["code"] for row in answer["classes"]], 8)
    assert answer["class_distances"] == hamming(packed, packed).tolist()
    for row in answer["classes"]:
        assert round(row["exact"] * row["count"]) + sum(v["count"] for v in row["variants"]) == row["count"]
    assert sum(row["count"] for row in answer["classes"]) == 359
    assert len(answer["bit_balance"]) == 8
    train = dsh_json("table", "--model", digits_run, "--split", "train")
    assert sum(row["count"] for row in train["classes"]) == 1295


def test_table_in_a_pipe_is_fields(digits_run: Path) -> None:
    lines = dsh("table", "--model", digits_run).stdout.splitlines()
    assert len(lines) == 10 and all(line.count("\t") == 4 for line in lines)


def golden_run(tmp_path: Path, classes: list[str], bits: int, codes: list[tuple[int, str]]) -> str:
    """A run folder whose test codes are given, so that its table is known."""
    from dsh_cli.runs.storage import write_arrays
    from tests.support.runs import edit

    labels = np.array([label for label, _ in codes], np.int32)
    packed = from_hex([code for _, code in codes], bits)
    arrays: dict[str, NDArray[Any]] = {
        "packed": packed,
        "labels": labels,
        "relaxed": np.zeros((len(codes), bits), np.float16),
    }
    folder = tmp_path / "golden"
    (folder / "codes").mkdir(parents=True)
    write_arrays(folder, "codes/test.safetensors", arrays | {"thumbnails": np.zeros((len(codes), 1, 1, 1), np.uint8)})
    model = {"backbone": "small-resnet", "bits": bits, "channels": 1, "image_size": 8}
    (folder / "config.json").write_text("{}")
    edit(
        folder / "config.json",
        format=1,
        created="",
        config={},
        model=model,
        classes=classes,
        source="",
        counts={"train": 0, "test": len(codes)},
        versions={},
    )
    metrics = {"finished": True, "epochs": 1, "map": 1.0, "seconds": 1.0, "device": "cpu"}
    metrics |= {"min_class_distance": 1, "class_distance_bound": 1, "counts": {"train": 0, "test": len(codes)}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return "golden"


def test_golden_table_at_width_80(tmp_path: Path) -> None:
    codes = [(0, "f0")] * 8 + [(0, "f1"), (0, "e0")] + [(1, "0f")] * 10 + [(2, "ff")] * 9 + [(2, "fe")]
    shown = dsh("table", "--model", golden_run(tmp_path, ["cat", "dog", "owl"], 8, codes), "--format", "table").stdout
    expected = """\
golden: test split, 8 bits

 class   code   binary     images    exact   variants (images, distance)
 ───────────────────────────────────────────────────────────────────────
 cat     0xf0   11110000       10    80.0%   0xe0 (1, 1), 0xf1 (1, 1)
 dog     0x0f   00001111       10   100.0%
 owl     0xff   11111111       10    90.0%   0xfe (1, 1)


distance cat dog owl
cat        ·   8   4
dog        8   ·   4
owl        4   4   ·

classes: smallest distance 4; no code does better than 5 (Plotkin bound)
bits: 1 in 63% to 67% of pictures (50% uses a bit best)
"""
    assert [line.rstrip() for line in shown.splitlines()] == expected.splitlines()


def test_tables_of_long_codes_and_many_classes_fit_the_terminal(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    codes = [(label, f"{rng.integers(0, 2**62):016x}" * 4) for label in range(60)]
    model = golden_run(tmp_path, [f"class number {i}" for i in range(60)], 256, codes)
    shown = dsh("table", "--model", model, "--format", "table").stdout
    assert max(map(len, shown.splitlines())) <= 80
    assert "closest classes" in shown and "10 of 1,770 pairs; --json has the whole matrix" in shown


def test_distances_are_coloured_unless_asked_not_to(tmp_path: Path) -> None:
    model = golden_run(tmp_path, ["a", "b"], 8, [(0, "00"), (1, "00")])
    environment = os.environ | {"FORCE_COLOR": "1"}
    assert b"\x1b[" in dsh_process("table", "--model", model, "--format", "table", env=environment).stdout
    plain = dsh_process("table", "--model", model, "--format", "table", env=os.environ | {"NO_COLOR": "1"}).stdout
    assert b"\x1b[3" not in plain and b"\x1b[4" not in plain


# What bad input gets: one clear line, exit code 1 or 2, nothing half-written


def untouched(tmp_path: Path) -> bool:
    return not (tmp_path / "runs").exists() and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bits", 0], "--bits 0: a code has 1 to 1024 bits"),
        (["--bits", 1025], "--bits 1025"),
        (["--epochs", 0], "--epochs 0"),
        (["--batch-size", 1], "--batch-size 1"),
        (["--lr", "nan"], "--lr nan"),
        (["--margin", -1], "--margin -1.0"),
        (["--image-size", 4], "--image-size 4"),
        (["--json", "--format", "table"], "contradict"),
    ],
)
def test_impossible_options(options: list[int | str] | list[str], message: str, tmp_path: Path) -> None:
    assert message in one_line_error(dsh("train", "digits", *options), 2)
    assert untouched(tmp_path)


def test_unknown_options_and_words_exit_2() -> None:
    assert dsh("train", "--bitz", 8).exit_code == 2
    assert dsh("train", "--device", "tpu").exit_code == 2
    assert dsh("tabel").exit_code == 2


def test_data_that_is_not_there(tmp_path: Path) -> None:
    line = one_line_error(dsh("train", "nothing"), 1)
    assert "'nothing'" in line and "mnist, fashion-mnist, cifar10, digits" in line
    (tmp_path / "file").write_text("x")
    assert "is a file" in one_line_error(dsh("train", "file"), 1)
    assert untouched(tmp_path)


def make_classes(root: Path, counts: dict[str, int], size: int = 12) -> Path:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.effect_noise((size, size), 40).save(root / name / f"{i}.png")
    return root


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "no pictures under"),
        ({"a": 0, "b": 0}, "no pictures under"),
        ({"a": 5}, "one class only, 'a'"),
        ({"a": 5, "b": 1}, "of the classes of .*/set 'b' has 1 readable picture; each needs 3: .*take the class away$"),
        ({"train/a": 5, "train/b": 1, "test/a": 1}, "'b' has 1 readable picture; each needs 2"),
    ],
)
def test_folders_that_cannot_be_learned_from(counts: dict[str, int], message: str, tmp_path: Path) -> None:
    import re

    (tmp_path / "set").mkdir()
    assert re.search(message, one_line_error(dsh("train", make_classes(tmp_path / "set", counts)), 1))
    assert untouched(tmp_path)


def test_a_folder_without_class_folders(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    Image.effect_noise((12, 12), 40).save(tmp_path / "set" / "x.png")
    assert "no class folders" in one_line_error(dsh("train", tmp_path / "set"), 1)


def test_a_named_set_is_not_hidden_by_a_folder_of_its_name(tmp_path: Path) -> None:
    make_classes(tmp_path / "digits", {"a": 3, "b": 3})
    options = ["--epochs", 1, "--quiet", "--no-tensorboard"]
    assert dsh_json("train", "digits", *options)["dataset"] == "digits"
    assert dsh_json("train", "./digits", *options)["dataset"] == str(tmp_path / "digits")


def test_an_out_folder_that_is_taken(digits_run: Path) -> None:
    line = one_line_error(dsh(*DIGITS, "--out", digits_run), 2)
    assert "is there already" in line


def bad_pictures() -> dict[str, tuple[bytes, str]]:
    noise = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(noise, "JPEG")
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100_000))), (b"IEND", b"")):
        bomb += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return {
        "text.png": (b"just text", "not a picture"),
        "truncated.jpg": (noise.getvalue()[:-500], "truncated"),
        "bomb.png": (bomb, "decompression bombs"),
        "empty.png": (b"", "empty file"),
    }


@pytest.mark.parametrize("name", bad_pictures())
def test_bad_pictures(name: str, digits_run: Path, tmp_path: Path) -> None:
    data, message = bad_pictures()[name]
    (tmp_path / name).write_bytes(data)
    line = one_line_error(dsh("hash", tmp_path / name, "--model", digits_run), 1)
    assert message in line and name in line


def test_missing_files_and_empty_folders(digits_run: Path, tmp_path: Path) -> None:
    assert "no such file" in one_line_error(dsh("hash", "none.png", "--model", digits_run), 1)
    (tmp_path / "empty").mkdir()
    assert "folder without pictures" in one_line_error(dsh("hash", "empty", "--model", digits_run), 1)


def test_no_run_yet() -> None:
    assert "train one with: dsh train --bits 8" in one_line_error(dsh("table"), 1)
    assert "train one with: dsh train --bits 8" in one_line_error(dsh("hash", "x.png"), 1)
