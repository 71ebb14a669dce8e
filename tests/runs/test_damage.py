"""A damaged run: each bit that changed is told, or changes no answer; no file makes more than one clear line."""

import contextlib
import errno
import json
import os
import random
import shutil
import socket
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from numpy.typing import NDArray

from dsh_cli import TrainConfig, load_splits, train
from dsh_cli.data.splits import Splits
from dsh_cli.errors import DshError, Interrupted, RunError
from dsh_cli.files import open_regular
from dsh_cli.runs import storage
from dsh_cli.runs.check import check
from dsh_cli.runs.folders import list_runs, resumed
from dsh_cli.runs.run import Run
from dsh_cli.training.events import EpochStats, Quiet
from tests.support.commands import dsh, dsh_json, one_line_error
from tests.support.runs import edit, identical, older, reseal, small_run, weights
from tests.support.values import there

PLACES, LENGTHS = 250, 100
CONFIG = TrainConfig(data="digits", epochs=4, batch_size=64, device="cpu", tensorboard=False)


@pytest.fixture
def run(digits_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(digits_run, tmp_path / "copy")


def answers(path: Path) -> dict[str, object]:
    """All that a run is asked for."""
    run = Run.open(path)
    said: dict[str, object] = {"run": (run.config, run.model, run.classes, run.created, run.source, run.versions)}
    said |= {"metrics": run.metrics, "names": run.names(), "fingerprint": run.fingerprint}
    for split in run.counts:
        codes = run.codes(split, "relaxed", "thumbnails")
        arrays = (codes.packed, codes.labels, codes.relaxed, codes.thumbnails)
        said[split] = [array.tobytes() for array in arrays if array is not None]
    centers = run.centers()
    said["centers"] = None if centers is None else centers.tobytes()
    pictures = np.zeros((2, run.model.image_size, run.model.image_size, 1), np.uint8)
    said["graph"] = run.graph_encoder().relaxed(pictures).tobytes() if run.has_graph else None
    said["weights"] = [tensor.numpy().tobytes() for tensor in run.load_model().state_dict().values()]
    return said


def told_or_without_effect(run: Path, places: int, harm: Callable[[bytes, random.Random], bytes]) -> list[str]:
    """The places where harm done to a file was neither told nor without effect."""
    rng, before = random.Random(0), answers(run)
    files = sorted(path for path in run.rglob("*") if path.is_file())
    silent, told = [], 0
    for place in range(places):
        file = files[place % len(files)]
        content = file.read_bytes()
        file.write_bytes(harm(content, rng))
        try:
            if answers(run) != before:
                silent.append(f"{file} {place}")
        except RunError as error:
            told += 1
            assert str(file) in str(error) or file.name == "metrics.json", error
        file.write_bytes(content)
    assert told > 0.9 * places and answers(run) == before
    return silent


def flipped(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(8 * len(content))
    changed = bytearray(content)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def test_a_bit_that_flipped_anywhere_is_told_or_changes_no_answer(run: Path) -> None:
    assert told_or_without_effect(run, PLACES, flipped) == []


def test_a_file_cut_short_anywhere_is_told_or_changes_no_answer(run: Path) -> None:
    assert told_or_without_effect(run, LENGTHS, lambda content, rng: content[: rng.randrange(len(content))]) == []


def test_files_of_another_run_are_told(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert dsh("train", "digits", "--epochs", 2, "--seed", 1, "-q", "--no-tensorboard", "--out", other).exit_code == 0
    before = answers(run)
    for file in sorted(path for path in run.rglob("*") if path.is_file()):
        content = file.read_bytes()
        shutil.copy(other / file.relative_to(run), file)
        assert file.read_bytes() != content
        with pytest.raises(RunError, match="is damaged .*of another run"):
            answers(run)
        file.write_bytes(content)
    assert answers(run) == before


def test_thumbnails_that_are_read_alone_are_checked_with_the_whole(run: Path) -> None:
    file = run / "codes" / "test.safetensors"
    with file.open("r+b") as opened:
        tensors = storage.Tensors(opened)  # type: ignore[arg-type]  # it seeks and reads
        opened.seek(tensors.tensors["thumbnails"][2])
        opened.write(b"\x01")
    Run.open(run).thumbnails("test", [0])  # small reads stay small
    assert dsh("table", "--model", run).exit_code == 0
    line = one_line_error(dsh("embed", "--method", "pca", "--split", "test", "--model", run), 1)
    assert f"{file} is damaged" in line
    result = dsh("info", run, "--verify", "--json")
    assert result.exit_code == 1 and list(json.loads(result.stdout)["verified"]["damaged"]) == [
        "codes/test.safetensors"
    ]


# States


class Stop(Quiet):
    """Ctrl-C after an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_epoch(self, stats: EpochStats) -> None:
        if stats.epoch == self.epoch:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load_splits(CONFIG)


@pytest.fixture(scope="module")
def stopped(splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after three of four epochs, with hash centers."""
    out = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.raises(Interrupted):
        train(CONFIG, splits, str(out), listeners=[Stop(3)])
    return out


@pytest.fixture(scope="module")
def whole(splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(CONFIG, splits, str(tmp_path_factory.mktemp("runs") / "whole")).run


@pytest.mark.parametrize("harm", ["flipped", "missing", "empty"])
def test_a_damaged_state_falls_back_to_the_one_before(stopped: Path, whole: Run, tmp_path: Path, harm: str) -> None:
    part = shutil.copytree(stopped, tmp_path / "part")
    assert sorted(path.name for path in part.glob("state*")) == ["state-2.safetensors", "state-3.safetensors"]
    newest = part / "state-3.safetensors"
    content = newest.read_bytes()
    newest.unlink()
    if harm != "missing":
        newest.write_bytes(flipped(content, random.Random(0)) if harm == "flipped" else b"")
    assert dsh_json("info", part)["epochs_done"] == 3
    result = dsh("train", "--resume", part, "-q")
    assert result.exit_code == 0
    said = [line for line in result.stderr.splitlines() if "state" in line]
    assert said == [f"warning: {newest} is missing or damaged; going on from state-2.safetensors, after 2 of 4 epochs"]
    assert identical(weights(Run.open(part)), weights(whole))
    assert not list(part.glob("*state*"))


def test_a_state_that_cannot_be_reached_is_not_taken_for_damaged(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = shutil.copytree(stopped, tmp_path / "part")
    opened = open_regular

    def failing(path: Path, follow: bool = True) -> int:
        if path.name == "state-3.safetensors":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, follow)

    monkeypatch.setattr("dsh_cli.runs.storage.open_regular", failing)
    with pytest.raises(RunError, match=r"state-3.safetensors cannot be read \(permission denied\)"), resumed(part):
        pass
    assert (part / "state-3.safetensors").is_file() and dsh_json("info", part)["epochs_done"] == 3


def test_two_damaged_states_say_what_to_do(stopped: Path, tmp_path: Path) -> None:
    part = shutil.copytree(stopped, tmp_path / "part")
    for state in part.glob("state*"):
        state.write_bytes(flipped(state.read_bytes(), random.Random(1)))
    before = {file: file.read_bytes() for file in part.iterdir() if file.is_file()}
    line = one_line_error(dsh("train", "--resume", part, "-q"), 1)
    assert "state-2.safetensors is damaged" in line and f"dsh train --like {part}" in line
    assert {file: file.read_bytes() for file in part.iterdir() if file.is_file()} == before


def test_states_that_are_not_of_a_run_are_taken_away_by_who_goes_on(stopped: Path, tmp_path: Path) -> None:
    part = shutil.copytree(stopped, tmp_path / "part")
    shutil.copy(part / "state-3.safetensors", part / "state-4.safetensors")  # killed before metrics.json
    assert dsh_json("info", part, "--verify")["verified"]["strays"] == ["state-4.safetensors"]
    told = " ".join(dsh("info", part, "--verify", "--format", "table").stdout.split())
    assert "state-4.safetensors: left by a killed training; take away with: dsh info" in told
    assert "--verify --repair" in told
    assert Run.open(part).load_state()["epochs_done"] == 3
    with resumed(part) as run:
        assert not (part / "state-4.safetensors").exists() and run.notes == ()


def test_a_state_of_the_older_format_is_gone_on_from(stopped: Path, whole: Run, tmp_path: Path) -> None:
    part = older(shutil.copytree(stopped, tmp_path / "part"))
    (part / "state-2.safetensors").unlink()
    (part / "state-3.safetensors").rename(part / "state.safetensors")
    assert Run.open(part).begun and Run.open(part).digests is None
    assert dsh("train", "--resume", part, "-q").exit_code == 0
    assert identical(weights(Run.open(part)), weights(whole))
    assert Run.open(part).digests is not None and not list(part.glob("*state*"))
    assert check(part).damaged == {}


# Without digests, and with


def test_a_run_without_digests_opens_says_so_and_is_given_some(run: Path) -> None:
    (run / "model.onnx").unlink()  # which no run had then
    reseal(run)
    before = answers(run)
    fingerprint = Run.open(run).fingerprint
    older(run)
    assert answers(run) == before and dsh_json("info", run)["digests"] is False
    table = " ".join(dsh("info", run, "--format", "table", env={"COLUMNS": "300"}).stdout.split())
    assert f"digests none, so damage may not be seen; record them with: dsh info {run} --verify --repair" in table
    verified = dsh_json("info", run, "--verify")
    assert verified["verified"] == {"files": 8, "damaged": {}, "strays": []} and verified["digests"] is False
    assert dsh_json("info", run, "--verify", "--repair")["digests"] is True
    assert answers(run) == before and Run.open(run).fingerprint == fingerprint
    assert told_or_without_effect(run, 40, flipped) == []


def test_a_damaged_run_is_given_no_digests(run: Path) -> None:
    older(run)
    (run / "codes" / "train.safetensors").unlink()
    result = dsh("info", run, "--verify", "--repair", "--json")
    assert result.exit_code == 1 and json.loads(result.stdout)["digests"] is False
    assert "train.safetensors is missing" in result.stderr and Run.open(run).digests is None


def test_verify_names_each_damaged_file_in_one_line(run: Path) -> None:
    for name in ("splits.json", "model.safetensors", "centers.safetensors"):
        (run / name).write_bytes(flipped((run / name).read_bytes(), random.Random(2)))
    (run / "codes" / "validation.safetensors").unlink()
    result = dsh("info", run, "--verify", "--json")
    assert result.exit_code == 1
    damaged = json.loads(result.stdout)["verified"]["damaged"]
    assert sorted(damaged) == [
        "centers.safetensors",
        "codes/validation.safetensors",
        "model.safetensors",
        "splits.json",
    ]
    assert result.stderr.splitlines() == [f"error: {problem}" for problem in damaged.values()]
    table = dsh("info", run, "--verify", "--format", "table")
    assert "9 files, 4 damaged" in table.stdout and table.exit_code == 1


def test_plain_lines_of_a_whole_run_have_a_dash_where_nothing_is_wrong(run: Path) -> None:
    lines = dsh("info", run, "--verify").stdout.splitlines()
    assert [line for line in lines if line.startswith("verified")] == ["verified.files\t9", "verified.strays\t-"]


def test_a_changed_record_is_not_held_against_itself(run: Path) -> None:
    said = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(said | {"seconds": 1.0}))
    line = one_line_error(dsh("info", run, "--verify"), 1)
    assert f"{run / 'metrics.json'} is damaged (it has changed since it was written); bring it back from a copy" in line


@pytest.mark.parametrize(
    ("name", "harm", "next_step"),
    [
        ("config.json", "flipped", "bring it back from a copy, or train again with: dsh train"),
        ("metrics.json", "missing", "bring it back from a copy, or train again with: dsh train"),
        ("splits.json", "flipped", "bring it back from a copy, or train again with: dsh train --like {run}"),
        ("model.safetensors", "missing", "bring it back from a copy, or train again with: dsh train --like {run}"),
        ("codes/test.safetensors", "empty", "bring it back from a copy, or train again with: dsh train --like {run}"),
        ("centers.safetensors", "link", "put what it leads to in its place, if you trust it"),
        ("centers.safetensors", "folder", "see to that, or train again with: dsh train"),
    ],
)
def test_verify_says_what_to_do_next(run: Path, name: str, harm: str, next_step: str) -> None:
    content = (run / name).read_bytes()
    (run / name).unlink()
    match harm:
        case "flipped":
            (run / name).write_bytes(flipped(content, random.Random(0)))
        case "empty":
            (run / name).touch()
        case "link":
            (run / name).symlink_to("elsewhere")
        case "folder":
            (run / name).mkdir()
    result = dsh("info", run, "--verify")
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(f"error: {run / name} ")
    assert result.stderr.rstrip().endswith(f"; {next_step.format(run=run)}"), result.stderr


def test_verify_says_which_state_an_unfinished_run_goes_on_from(stopped: Path, tmp_path: Path) -> None:
    part = shutil.copytree(stopped, tmp_path / "part")
    (part / "state-3.safetensors").unlink()
    result = dsh("info", part, "--verify")
    assert result.exit_code == 1
    assert result.stderr.rstrip().endswith(f"; or go on from state-2.safetensors with: dsh train --resume {part}")
    (part / "state-2.safetensors").unlink()
    assert "--resume" not in dsh("info", part, "--verify").stderr


def test_a_run_that_cannot_be_written_to_is_not_repaired(digits_run: Path, nobody: Path) -> None:
    run = shutil.copytree(digits_run, nobody / "runs" / "run")
    os.chmod(run, 0o555)
    with unprivileged():
        line = one_line_error(dsh("info", run, "--verify", "--repair"), 1)
        assert dsh("info", run, "--verify").exit_code == 0
    os.chmod(run, 0o755)
    said = f"cannot write {run / '.lock'}: permission denied; make the folder writable, or take a copy that is"
    assert line == f"error: {said}"


def test_what_verify_needs(run: Path) -> None:
    for options in (["--verify"], [run, "--repair"]):
        assert "dsh info RUN --verify --repair" in one_line_error(dsh("info", *options), 2)


def test_a_run_that_is_being_trained_has_lost_nothing(stopped: Path, tmp_path: Path) -> None:
    part, done = shutil.copytree(stopped, tmp_path / "part"), threading.Event()

    def go_on() -> None:
        with resumed(part) as run:
            while not done.is_set():
                run.write_state({"epochs_done": torch.tensor(3)}, epochs_done=3)

    training = threading.Thread(target=go_on)
    training.start()
    try:
        found = [check(part) for _ in range(200)]
    finally:
        done.set()
        training.join()
    assert [said for one in found for said in (*one.damaged.items(), *one.strays)] == []
    assert len({tuple(one.run.digests or ()) for one in found}) > 20  # states were replaced meanwhile
    (part / sorted(there(Run.open(part).digests))[-1]).unlink()
    assert len(check(part).damaged) == 1


def test_a_run_that_is_being_trained_is_not_repaired(run: Path) -> None:
    with Run.open(run).held():
        assert "another process is training" in one_line_error(dsh("info", run, "--verify", "--repair"), 1)


# Files that no run has


def huge_head(shape: list[int], kind: str = "U8") -> bytes:
    sizes = {"packed": {"dtype": kind, "shape": shape, "data_offsets": [0, shape[0]]}}
    head = json.dumps(sizes).encode()
    return struct.pack("<Q", len(head)) + head


JSON_FILES = {
    "nested": b"[" * 10_000_000,
    "nested objects": b'{"a":' * 100_000,
    "a number too long": b'{"format": 1' + b"0" * 10_000 + b"}",
    "10^400": b'{"format": 1' + b"0" * 400 + b"}",
    "no object": b"[1]",
    "numbers": b'{"train": [1, 2], "test": [3]}',
    "one number": b'{"train": 5, "test": 5, "validation": 5}',
    "not finite": b'{"format": NaN}',
    "infinite": b'{"format": 1, "config": {"lr": 1e999}}',
    "no text": b"\xff\xfe\x00",
    "many values": b"[" + b"[]," * 5_000_000,
    "empty": b"",
}


@pytest.mark.parametrize("file", ["config.json", "metrics.json", "splits.json"])
@pytest.mark.parametrize("content", JSON_FILES)
def test_json_that_no_run_has_is_one_line(run: Path, tmp_path: Path, file: str, content: str) -> None:
    older(run)
    (run / file).write_bytes(JSON_FILES[content])
    for command in (["neighbors", "0xff", "--model"], ["evaluate", "-q", "--model"], ["train", "--resume"]):
        result = dsh(*command, run)
        assert result.exit_code and isinstance(result.exception, SystemExit), result.exception
        assert len(result.stderr.splitlines()) == 1
    if file != "splits.json":
        shutil.move(run, tmp_path / "runs" / "bad")
        assert dsh("table").exit_code == 1 and dsh("info", "--json").exit_code == 0  # with a warning
        assert len(list_runs()[1]) == 1


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("metrics.json", {"map": 10**400}),
        ("metrics.json", {"map": -0.1}),
        ("metrics.json", {"seconds": -1}),
        ("metrics.json", {"tflop": -1}),
        ("metrics.json", {"epochs": 2**70}),
        ("metrics.json", {"min_class_distance": 10**30}),
        ("metrics.json", {"counts": {"train": 1}}),
        ("metrics.json", {"counts": {"train": 1079, "validation": 359, "test": -359}}),
        ("metrics.json", {"counts": {"train": 1, "test": 1, "../../x": 1}}),
        ("metrics.json", {"counts": {}}),
        ("config.json", {"counts": {}}),
        ("config.json", {"format": True}),
        ("config.json", {"format": 0}),
        ("config.json", {"classes": []}),
        ("config.json", {"versions": {"torch": 2}}),
        ("config.json", {"config": {"margin": 10**400}}),
        ("config.json", {"config": {"seed": 2**64}}),
        ("config.json", {"model": {"backbone": "dsh-cnn", "bits": 8, "channels": 1, "image_size": 10**6}}),
    ],
)
def test_values_that_no_run_has_are_one_line(run: Path, file: str, changes: dict[str, Any]) -> None:
    older(run)
    if set(changes) == {"counts"} and file == "config.json":
        edit(run / "metrics.json", finished=False)
    edit(run / file, **changes)
    for command in (["info"], ["hash", "x.png", "--model"]):
        line = one_line_error(dsh(*command, run), 1)
        assert str(run) in line and ("dsh info" if file == "model.onnx" else "dsh train") in line


def test_names_that_are_not_of_the_pictures_are_damage(run: Path) -> None:
    older(run)
    for names in ('["a"]', "{}", "5", "[5]"):
        (run / "splits.json").write_text(f'{{"train": {names}, "validation": [], "test": []}}')
        with pytest.raises(RunError, match="splits.json is damaged"):
            Run.open(run).names()


CODES: dict[str, NDArray[Any]] = {
    "packed": np.zeros((3, 1), np.uint8),
    "labels": np.zeros(3, np.int32),
    "relaxed": np.zeros((3, 8), np.float16),
    "thumbnails": np.zeros((3, 3, 3, 1), np.uint8),
}


@pytest.mark.parametrize(
    ("tensor", "array"),
    [
        ("packed", np.zeros((3, 1), np.int64)),
        ("packed", np.zeros((3, 2), np.uint8)),
        ("packed", np.zeros(3, np.uint8)),
        ("labels", np.zeros(3, np.float32)),
        ("labels", np.zeros((3, 1), np.int32)),
        ("labels", np.full(3, 3, np.int32)),
        ("labels", np.full(3, -2, np.int32)),
        ("relaxed", np.zeros((3, 7), np.float16)),
        ("relaxed", np.zeros((3, 8), np.float32)),
        ("relaxed", np.full((3, 8), np.nan, np.float16)),
        ("thumbnails", np.zeros((3, 3, 3), np.uint8)),
        ("thumbnails", np.zeros((3, 3, 3, 3), np.uint8)),
        ("thumbnails", np.zeros((3, 3, 3, 1), np.float32)),
        ("thumbnails", np.zeros((2, 3, 3, 1), np.uint8)),
    ],
)
def test_codes_of_another_kind_are_damage(tmp_path: Path, tensor: str, array: NDArray[Any]) -> None:
    run = Run.open(small_run(tmp_path / "run"))
    storage.write_arrays(run.path, "codes/test.safetensors", CODES)
    run.codes("test", "relaxed", "thumbnails")
    storage.write_arrays(run.path, "codes/test.safetensors", CODES | {tensor: array})
    with pytest.raises(RunError, match=r"test\.safetensors is damaged"):
        run.codes("test", "relaxed", "thumbnails")
    if tensor == "thumbnails":
        with pytest.raises(RunError, match=r"test\.safetensors is damaged"):
            run.thumbnails("test", [0])


def test_codes_have_no_more_bits_than_the_run(tmp_path: Path) -> None:
    run = Run.open(small_run(tmp_path / "run", [("cat", "f")], 4, [], [("cat", "f")]))
    assert run.codes("test").hex == ["f"]
    arrays: dict[str, NDArray[Any]] = {"packed": np.full((1, 1), 0xF1, np.uint8), "labels": np.zeros(1, np.int32)}
    storage.write_arrays(run.path, "codes/test.safetensors", arrays)
    with pytest.raises(RunError, match="more than 4 bits"):
        run.codes("test")


@pytest.mark.parametrize(
    "content",
    [
        huge_head([2**40]),
        huge_head([2**62]),
        huge_head([-1]),
        huge_head([3], "BF16"),
        huge_head([3], "F8_E4M3") + bytes(3),
        huge_head([3]) + bytes(4),
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 8) + b"[" * 8,
        struct.pack("<Q", 15) + b'{"packed": "x"}',
        b"\x00",
        b"",
    ],
)
def test_heads_that_ask_for_more_than_there_is_are_damage(tmp_path: Path, content: bytes) -> None:
    run = Run.open(small_run(tmp_path / "run"))
    for name in ("codes/test.safetensors", "model.safetensors", "centers.safetensors"):
        (run.path / name).write_bytes(content)
    for ask in (lambda: run.codes("test"), run.load_model, run.centers):
        with pytest.raises(RunError, match=r"is damaged .*dsh train --like"):
            ask()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_give_no_code(run: Path, value: float) -> None:
    tensors = weights(Run.open(run))
    tensors["hash_layer.bias"][0] = value
    safetensors.numpy.save_file(tensors, run / "model.safetensors")
    reseal(run)
    with pytest.raises(RunError, match="'hash_layer.bias' is not finite, and would give no codes"):
        Run.open(run).load_model()


ASKED = {
    "config.json": ["info"],
    "metrics.json": ["info"],
    "splits.json": ["neighbors", "0xff", "--model"],
    "model.safetensors": ["export", "--quiet", "--onnx", "../m.onnx", "--model"],
    "model.onnx": ["hash", "x.png", "--model"],
    "codes/test.safetensors": ["table", "--model"],
    "codes": ["table", "--model"],
}


@pytest.mark.parametrize("file", ASKED)
@pytest.mark.parametrize("kind", ["pipe", "folder", "socket", "device"])
def test_what_is_no_file_is_neither_waited_for_nor_read(
    run: Path, monkeypatch: pytest.MonkeyPatch, file: str, kind: str
) -> None:
    path = run / file
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    monkeypatch.chdir(path.parent)  # for names of sockets are short
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "socket":
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind(path.name)  # what it made stays
        case "device":
            try:
                os.mknod(path, 0o20666, os.makedev(1, 5))  # /dev/zero, without end
            except PermissionError:
                pytest.skip("only root makes devices")
    line = one_line_error(dsh(*ASKED[file], run), 1)
    assert str(path) in line and "dsh train" in line


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder that others may look into, and a process of a user who may not read all."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """As a user who may not read and write all."""
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(was)


@pytest.mark.parametrize("file", [*ASKED, "."])
def test_what_may_not_be_read_is_one_line(digits_run: Path, nobody: Path, file: str) -> None:
    run = shutil.copytree(digits_run, nobody / "runs" / "run")
    os.chmod(run / file, 0)
    with unprivileged():
        with pytest.raises(RunError, match="permission denied"):
            answers(run)
        if file in ("config.json", "metrics.json", "."):
            found, problems = list_runs(nobody / "runs")
            assert not found and len(problems) == 1
        else:
            assert any("permission denied" in problem for problem in check(run).damaged.values())
    os.chmod(run / file, 0o755)


def test_more_than_would_be_read_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_MOST_VALUES", 10)
    with pytest.raises(DshError, match="take fewer pictures"):
        storage.write_json(tmp_path, "splits.json", {"train": ["x"] * 20})
    assert not list(tmp_path.iterdir())


def test_damaged_weights_are_not_started_from(run: Path) -> None:
    file = run / "model.safetensors"
    file.write_bytes(flipped(file.read_bytes(), random.Random(3)))
    line = one_line_error(dsh("train", "digits", "--weights", run, "--out", "new", "-q"), 1)
    assert f"{file} is damaged" in line and not Path("new").exists()
