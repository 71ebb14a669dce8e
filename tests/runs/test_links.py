"""Links that a stranger laid into a run lead nowhere: nothing is read or written through them."""

import json
import os
import shutil
from pathlib import Path

import pytest

from dsh_cli import TrainConfig, load_splits, train
from dsh_cli.errors import DshError, Interrupted, RunError
from dsh_cli.files import written
from dsh_cli.runs import storage
from dsh_cli.runs.run import Run
from dsh_cli.show.tensorboard import TensorBoard
from dsh_cli.training.events import Quiet, RunningLoss
from dsh_cli.training.recipe import Request
from tests.support.commands import dsh, one_line_error
from tests.support.runs import edit

CONFIG = TrainConfig(data="digits", epochs=2, batch_size=64, device="cpu", tensorboard=False)


@pytest.fixture
def run(digits_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(digits_run, tmp_path / "copy")


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of the user's that no run may touch."""
    (tmp_path / "secret").write_text("mine")
    return tmp_path / "secret"


class Stop(Quiet):
    """Ctrl-C in the second epoch."""

    def on_batch(self, epoch: int, done: int, loss: RunningLoss) -> None:
        if epoch == 2:
            raise KeyboardInterrupt


def linked(path: Path, target: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    os.symlink(target, path)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("config.json", ["info"]),
        ("metrics.json", ["info"]),
        ("splits.json", ["embed", "--method", "pca", "-m"]),
        ("model.onnx", ["hash", "a.png", "-m"]),
        ("codes/test.safetensors", ["table", "-m"]),
        ("codes", ["table", "-m"]),
    ],
)
def test_a_run_with_a_link_in_it_is_refused_where_the_link_would_be_followed(
    run: Path, tmp_path: Path, name: str, command: list[str]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.move(run / name, elsewhere)  # all that is there is sound: the link alone is what is wrong
    os.symlink(elsewhere, run / name)
    line = one_line_error(dsh(*command, run), 1)
    assert f"{run / name} is a link, and nothing in {run} is reached through one" in line


@pytest.mark.parametrize(
    "name", ["model.safetensors", "metrics.json", "state.safetensors", "centers.safetensors", "codes", ".lock"]
)
def test_going_on_with_a_run_writes_through_no_link(tmp_path: Path, secret: Path, name: str) -> None:
    splits = load_splits(CONFIG)
    with pytest.raises(Interrupted):
        train(CONFIG, splits, str(tmp_path / "run"), listeners=[Stop()])
    part = Run.open(tmp_path / "run")
    folder = tmp_path / "folder"
    folder.mkdir()
    linked(part.path / name, folder if name == "codes" else secret)
    instead = (
        "put what it leads to" if name in ("metrics.json", "centers.safetensors") else "remove the link"
    )  # read before
    with pytest.raises(DshError, match=f"{name} is a link, and nothing in .*run is reached through one; {instead}"):
        train(part.config, splits, resume=part)
    assert secret.read_text() == "mine" and not list(folder.iterdir())


def test_tensorboard_writes_through_no_link(tmp_path: Path) -> None:
    splits = load_splits(CONFIG)
    with pytest.raises(Interrupted):
        train(CONFIG, splits, str(tmp_path / "run"), listeners=[Stop()])
    part = Run.open(tmp_path / "run")
    (tmp_path / "folder").mkdir()
    os.symlink(tmp_path / "folder", part.path / "tensorboard")
    with pytest.raises(DshError, match="tensorboard is a link, .*; remove the link$"):
        train(part.config, splits, resume=part, listeners=[TensorBoard()])
    assert not list((tmp_path / "folder").iterdir())


def test_a_picture_of_the_space_is_not_drawn_through_a_link_in_the_run(run: Path, secret: Path) -> None:
    os.symlink(secret, run / "pca.png")
    line = one_line_error(dsh("embed", "--method", "pca", "-m", run), 1)
    assert line.startswith(f"error: {run / 'pca.png'} is a link, and nothing in {run} is reached through one; ")
    assert line.endswith("; remove the link, or name what it leads to with --out")
    assert secret.read_text() == "mine"
    (secret.parent / "folder").mkdir()
    shutil.rmtree(run / "tensorboard", ignore_errors=True)
    os.symlink(secret.parent / "folder", run / "tensorboard")
    out = ["--method", "pca", "-m", run, "--out", "x.png", "--tensorboard"]
    assert one_line_error(dsh("embed", *out), 1).endswith("is reached through one; remove the link")
    assert not list((secret.parent / "folder").iterdir())


@pytest.mark.parametrize("file", ["tensors.tsv", "metadata.tsv", "sprite.png", "projector_config.pbtxt"])
def test_points_for_tensorboard_are_not_written_through_links(run: Path, secret: Path, file: str) -> None:
    (run / "tensorboard" / "pca").mkdir(parents=True)
    os.symlink(secret, run / "tensorboard" / "pca" / file)
    assert dsh("embed", "--method", "pca", "-m", run, "--out", "x.png", "--tensorboard").exit_code == 0
    assert secret.read_text() == "mine" and not (run / "tensorboard" / "pca" / file).is_symlink()


def test_a_training_does_not_write_its_projector_through_a_link(tmp_path: Path) -> None:
    splits = load_splits(CONFIG)
    with pytest.raises(Interrupted):
        train(CONFIG, splits, str(tmp_path / "run"), listeners=[Stop()])
    part = Run.open(tmp_path / "run")
    (tmp_path / "folder").mkdir()
    (part.path / "tensorboard").mkdir()
    os.symlink(tmp_path / "folder", part.path / "tensorboard" / "projector")
    with pytest.raises(DshError, match="projector is a link, .*; remove the link$"):
        train(part.config, splits, resume=part, listeners=[TensorBoard()])
    assert not list((tmp_path / "folder").iterdir())


def test_a_run_does_not_say_where_another_keeps_pictures(run: Path, tmp_path: Path, photos: Path) -> None:
    config = json.loads((run / "config.json").read_text())["config"]
    edit(run / "config.json", config=config | {"cache": str(tmp_path / "anywhere")})
    request = Request({"data": str(photos), "bits": 4}, None, str(run), None)
    assert request.opened()[0].cache == "auto"
    assert Request({"cache": "mine"}, None, str(run), None).opened()[0].cache == "mine"


def test_a_run_may_itself_be_reached_through_a_link(run: Path, tmp_path: Path) -> None:
    os.symlink(run, tmp_path / "link")
    assert dsh("table", "-m", tmp_path / "link").exit_code == 0


def test_a_place_to_write_to_cannot_be_foretold_and_is_not_shared(tmp_path: Path, secret: Path) -> None:
    names = set()
    for _ in range(20):
        with written(tmp_path / "file", "") as scratch:
            names.add(scratch.name)
            assert scratch.read_bytes() == b"" and not scratch.is_symlink()
    assert len(names) == 20
    with written(tmp_path / "file", "", tmp_path) as one, written(tmp_path / "file", "", tmp_path) as other:
        one.write_text("1")
        other.write_text("2")
    assert (tmp_path / "file").read_text() == "1" and sorted(p.name for p in tmp_path.iterdir()) == ["file", "secret"]


def test_a_file_of_the_users_choosing_is_written_where_its_link_leads(tmp_path: Path, secret: Path) -> None:
    os.symlink(secret, tmp_path / "link")
    with written(tmp_path / "link", "") as scratch:
        scratch.write_text("new")
    assert secret.read_text() == "new" and (tmp_path / "link").is_symlink()


def test_what_a_killed_writer_left_beside_a_file_of_a_run_goes_with_the_next(run: Path) -> None:
    (run / ".metrics.json.0123abcd").write_text("half")
    (run / ".other").write_text("not ours")
    storage.write_json(run, "metrics.json", {})
    assert sorted(path.name for path in run.iterdir() if path.name.startswith(".")) == [".other"]


def test_bytes_then_the_move_then_the_folder_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    def moved(source: Path, target: Path) -> None:
        done.append("move")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", moved)
    with written(tmp_path / "file", "") as scratch:
        scratch.write_text("all")
    assert done == ["file", "move", "folder"]


def test_links_are_refused_as_errors_of_the_run(run: Path, secret: Path) -> None:
    linked(run / "metrics.json", secret)
    with pytest.raises(RunError, match="is a link"):
        Run.open(run)
