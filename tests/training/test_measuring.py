"""Room for what is measured: in files that a full disk cannot pull away."""

import errno
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsh_cli import TrainConfig, load_splits, train
from dsh_cli.config import ProtocolName
from dsh_cli.errors import DataError, DshError
from dsh_cli.runs.run import Run
from dsh_cli.show.progress import Notes
from dsh_cli.training import room
from dsh_cli.training.events import EpochStats, Quiet
from tests.support.commands import dsh, dsh_json, dsh_process

SHAPE = (500, 48, 48, 3)  # of thumbnails: 3.5 MB


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if sys.platform != "linux" or os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs to mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def many_photos(tmp_path: Path) -> Path:
    """A folder of 3 classes with 120 pictures each, of one colour: 260 to train on."""
    for number in range(360):
        path = tmp_path / "many" / "rgb"[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shade = [number // 3 + 100 * (number % 3 == channel) for channel in range(3)]
        Image.new("RGB", (48, 48), tuple(shade)).save(path)
    return tmp_path / "many"


def test_thumbnails_without_room_for_a_file_of_their_own_are_told_in_one_line(
    small_disk: Path, tmp_path: Path, many_photos: Path
) -> None:
    options = ["--epochs", "1", "--memory", "0", "--cache", "off", "--image-size", "48", "--batch-size", "50"]
    command = ["train", str(many_photos), *options, "--quiet", "--no-tensorboard", "--out", str(tmp_path / "run")]
    done = dsh_process(*command, env=os.environ | {"TMPDIR": str(small_disk)})
    said = done.stderr.decode()
    assert done.returncode == 1 and done.stdout == b"", said  # a negative code is a signal: SIGBUS
    *_, line = said.splitlines(keepends=True)  # after a warning, for it is trained on in five steps
    assert re.fullmatch(
        f"error: cannot keep 1.8 MB of scratch data in {small_disk}, where [01][.][0-9] MB are free .no space left on "
        "device.; free space there, or name another folder in the environment variable TMPDIR\n",
        line,
    )
    assert not [path for path in small_disk.rglob("*") if path.is_file()]
    assert dsh_json("train", "--resume", tmp_path / "run", "--quiet")["epochs"] == 1


def test_a_limit_of_files_is_told_too() -> None:
    script = f"""
import resource
from dsh_cli import TrainConfig, load_splits, train
from dsh_cli.config import ProtocolName
from dsh_cli.errors import DataError, DshError
from dsh_cli.runs.run import Run
from dsh_cli.training.room import room
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    room({SHAPE})
except DshError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("cannot keep 3.5 MB of scratch data in ") and "(file too large)" in done.stdout


@pytest.mark.parametrize("call", ["there", "refused", "missing"])
def test_room_is_reserved_on_every_file_system(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: int, offset: int, size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    if call == "refused":
        monkeypatch.setattr(os, "posix_fallocate", refuse)
    elif call == "missing":
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    there = room.room(SHAPE)
    assert isinstance(there, np.memmap) and there.shape == SHAPE and not there.any()
    there[-1] = 255
    with tempfile.TemporaryFile() as file:
        room._reserve(file.fileno(), 3 << 20)
        status = os.fstat(file.fileno())
        assert status.st_size == 3 << 20 <= status.st_blocks * 512


def test_where_no_folder_takes_temporary_files_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("tempfile.gettempdir", none)
    monkeypatch.setattr("tempfile._sanitize_params", lambda *args: none())
    with pytest.raises(
        DshError, match="cannot keep 3.5 MB of scratch data in the folder for temporary files .no usable"
    ):
        room.room(SHAPE)


class Losing(Quiet):
    """Takes the pictures of a split away after the last epoch."""

    def __init__(self, paths: tuple[str, ...]) -> None:
        self.paths = paths

    def on_epoch(self, stats: EpochStats) -> None:
        for path in self.paths:
            os.rename(path, f"{path}.away")


@pytest.mark.parametrize("protocol", ["test-vs-train", "paper"])
def test_a_run_whose_test_pictures_are_gone_at_the_end_is_finished_and_of_use(
    many_photos: Path, tmp_path: Path, protocol: ProtocolName
) -> None:
    config = TrainConfig(data=str(many_photos), protocol=protocol, epochs=1, memory=0.0, cache="off", image_size=16)
    config = replace(config, bits=8, backbone="small-resnet", batch_size=50, device="cpu", tensorboard=False)
    splits = load_splits(config)
    result = train(config, splits, "run", listeners=[Losing(splits.test.names)])
    assert result.map is None and result.table.split == "train"
    assert result.lost == f"pictures that could not be read any more, and have no codes: {len(splits.test)} test"
    info = dsh_json("info", "run", "--verify")
    assert info["finished"] and info["map"] is None and info["counts"]["test"] == 0
    assert "not measured" in dsh("info", "run", "--format", "table").stdout
    assert dsh("table", "--model", "run").exit_code == 0
    picture = splits.train.names[0]
    assert len(dsh("hash", picture, "--model", "run").stdout.split()) == 2
    assert len(dsh_json("neighbors", picture, "--model", "run")["neighbors"]) == 10
    told = dsh("evaluate", "--model", "run")
    assert told.exit_code == 1 and "Traceback" not in told.stderr and "nothing to evaluate" in told.stderr


def test_a_class_that_vanishes_while_it_trains_is_told(many_photos: Path) -> None:
    config = TrainConfig(data=str(many_photos), epochs=1, memory=0.0, cache="off", image_size=16, batch_size=50)
    config = replace(config, bits=8, backbone="small-resnet", device="cpu", tensorboard=False)
    splits = load_splits(config)
    gone = tuple(name for names in splits.names().values() for name in names if "/g/" in name)
    said: list[str] = []
    train(config, splits, "run", listeners=[Losing(gone), Notes(said.append)])
    assert said == [
        "pictures that could not be read any more, and have no codes: 87 train, 9 validation, 24 test; "
        "of g none is left, so it is not measured"
    ]


def test_a_training_whose_own_pictures_are_gone_at_the_end_goes_on_once_they_are_back(
    many_photos: Path, tmp_path: Path
) -> None:
    config = TrainConfig(data=str(many_photos), epochs=1, memory=0.0, cache="off", image_size=16, batch_size=50)
    config = replace(config, bits=8, backbone="small-resnet", device="cpu", tensorboard=False)
    splits = load_splits(config)
    with pytest.raises(
        DataError, match="none of the train pictures of .* any more; run keeps .*: dsh train --resume run"
    ):
        train(config, splits, "run", listeners=[Losing(splits.train.names)])
    for path in splits.train.names:
        os.rename(f"{path}.away", path)
    assert train(config, splits, resume=Run.open("run")).map is not None
