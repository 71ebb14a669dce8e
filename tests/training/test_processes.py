"""Trainings in several processes learn what one would, speak once, and end together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dsh_cli.config import ModelConfig, TrainConfig
from dsh_cli.data.splits import load_splits
from dsh_cli.network.model import HashNet
from dsh_cli.network.operations import training_operations
from dsh_cli.runs.run import Run
from dsh_cli.training.batches import Batches
from dsh_cli.training.processes import ALONE, Processes
from tests.support.several import HERE, STEPS, ended, errors, started

DSH = ("-m", "dsh_cli")
TRAIN = (*DSH, "train", "digits", "--bits", "8", "--epochs", "2", "--backbone", "small-resnet", "--no-tensorboard")


@pytest.mark.parametrize("centers", ["none", "auto"])
def test_two_processes_learn_what_one_learns(tmp_path: Path, centers: str) -> None:
    """By steps of SGD in double precision, without BatchNorm: pairs cross processes, and draws are of whole batches."""
    for count in (1, 2):
        code, _, said = ended(count, HERE, "same", tmp_path / str(count), centers)
        assert code == 0, said
    one, two = (np.load(tmp_path / f"{count}.npz") for count in (1, 2))
    assert len(one["losses"]) == STEPS and one["losses"].dtype == np.float64
    np.testing.assert_allclose(two["losses"], one["losses"], rtol=1e-5)
    assert abs(one["losses"][-1] / one["losses"][0] - 1) > 50e-5  # something was learned
    assert one.files == two.files
    for name in one.files:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-5, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("pictures", [7, 20, 129])
def test_shares_are_the_whole_batch_and_as_large_as_each_other(count: int, pictures: int) -> None:
    places = [np.arange(pictures)[Processes(rank, count).share(pictures)] for rank in range(count)]
    assert np.concatenate(places).tolist() == list(range(pictures))
    sizes = list(map(len, places))
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("files", [False, True])
def test_pictures_of_a_share_are_varied_as_those_of_the_whole_batch(
    tmp_path: Path, files: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    for number in range(60):
        path = tmp_path / "set" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    config = TrainConfig(
        data=str(tmp_path / "set"), memory=0.0 if files else 1.0, cache="off", image_size=32, backbone="small-resnet"
    )
    monkeypatch.setattr(Processes, "most", lambda self, *numbers: numbers)  # they are no processes
    dataset = load_splits(config).train

    def epoch(processes: Processes) -> list[tuple[torch.Tensor, torch.Tensor]]:
        batches = Batches(dataset, 10, "photos", 1, torch.device("cpu"), processes=processes)
        return [*batches.epoch(0), *batches.epoch(1)]

    whole = epoch(ALONE)
    shares = [epoch(Processes(rank, 3)) for rank in range(3)]
    for (images, labels), *parts in zip(whole, *shares, strict=True):
        assert torch.equal(torch.cat([part for part, _ in parts]), images)
        assert torch.equal(torch.cat([part for _, part in parts]), labels)


def test_one_result_is_printed_and_one_run_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, said = ended(2, *TRAIN, "--json", "--quiet")
    assert code == 0, said
    result = json.loads(out)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [Path(result["run"]).name]
    assert Run.open(result["run"]).finished and result["map"] > 0.5
    lines = [line for line in said.splitlines() if "torch" not in line]
    assert not lines, said


def waiting(path: Path, process: subprocess.Popen[str]) -> list[int]:
    """The ids of both processes, when each has trained for some batches."""
    files = [Path(f"{path}.{rank}") for rank in (0, 1)]
    while process.poll() is None:
        told = [file.read_text().split() if file.exists() else [] for file in files]
        if all(len(one) == 2 and int(one[1]) >= 3 for one in told):
            return [int(pid) for pid, _ in told]
        time.sleep(0.05)
    raise AssertionError(process.communicate())


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_dies_ends_the_other_with_one_message_and_another_number_goes_on(
    tmp_path: Path, rank: int
) -> None:
    run = tmp_path / "run"
    process = started(2, HERE, "slowly", run)
    pids = waiting(run, process)
    os.kill(pids[rank], signal.SIGKILL)
    began, heard = time.monotonic(), ""
    assert process.stderr is not None
    while not errors(heard):
        heard += process.stderr.readline()
    assert time.monotonic() - began < 10
    _, said = process.communicate(timeout=60)
    said = heard + said
    assert process.returncode != 0
    told = [line for line in errors(said) if str(run) in line]
    assert errors(said) == told and len(told) == 1, said
    assert "another process of the training has ended (" in told[0] and "stopped after 0 of 3 epochs" in told[0]
    assert f"Go on with: dsh train --resume {run}" in told[0]
    with pytest.raises(ProcessLookupError):
        os.kill(pids[1 - rank], 0)
    code, _, said = ended(3 if rank else 1, *DSH, "train", "--resume", run, "--quiet")
    assert code == 0 and Run.open(run).finished, said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_torchrun_saves_after_the_batch_and_the_run_goes_on_there(tmp_path: Path, number: int) -> None:
    run = tmp_path / "run"
    process = started(2, HERE, "slowly", run)
    waiting(run, process)
    process.send_signal(number)  # Ctrl-C too: its workers are in sessions of their own
    _, said = process.communicate(timeout=60)
    (told,) = errors(said)
    assert "batches of epoch 1" in told and f"dsh train --resume {run}" in told
    left = Run.open(run).load_state()
    assert int(left["epoch.batches"]) >= 3
    code, _, said = ended(2, *DSH, "train", "--resume", run)
    assert code == 0 and Run.open(run).finished, said


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("train", "digits", "--bits", "0"), "--bits 0"),
        (("train", "nowhere"), "no dataset named 'nowhere'"),
        (("train", "digits", "--method", "pca"), "--method pca takes no steps that processes could share"),
        (("train", "digits", "--batch-size", "3"), "--batch-size 3: each of 2 processes takes two pictures"),
        (("table",), "torchrun is for dsh train alone; run dsh table without it"),
    ],
    ids=["usage", "data", "method", "batch", "command"],
)
def test_what_is_wrong_for_all_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, said = ended(2, *DSH, *command)
    (told,) = errors(said)
    assert code != 0 and message in told and not out
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_what_processes_tell_each_other_is_the_same_for_all() -> None:
    """Checked in each of three by the program; what is wrong there ends it."""
    code, _, said = ended(3, HERE, "tell")
    assert code == 0, said


def test_operations_are_counted_before_statistics_are_synchronised(monkeypatch: pytest.MonkeyPatch) -> None:
    """For PyTorch counts on tensors of no device, on which synchronised BatchNorm refuses to compute."""
    monkeypatch.setattr(Processes, "alone", False)
    net = HashNet(ModelConfig(backbone="small-resnet", bits=8, channels=1, image_size=16))
    before = training_operations(net, (1, 16, 16))
    ALONE.synchronise(net, torch.device("cuda"))
    assert any(isinstance(layer, torch.nn.SyncBatchNorm) for layer in net.modules()) and before > 0
    assert net.eval()(torch.zeros(2, 1, 16, 16)).shape == (2, 8)  # as codes are made


def test_data_that_is_not_the_same_for_all_is_refused(tmp_path: Path) -> None:
    code, _, said = ended(2, HERE, "other", tmp_path / "run")
    assert code != 0 and "the pictures that process 1 finds are not those of the first" in said
    assert not (tmp_path / "run").exists()


def test_a_picture_that_one_process_cannot_read_is_left_out_for_all_and_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for number in range(80):
        path = tmp_path / "set" / "train" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])  # its head is whole
    for number in range(10):  # which others have in each epoch
        (tmp_path / "set" / "train" / "ab"[number % 2] / f"bad-{number}.png").write_bytes(data[: len(data) // 2])
    options = ("--memory", "0", "--cache", "off", "--backbone", "small-resnet", "--batch-size", "20", "--epochs", "3")
    code, _, said = ended(2, *DSH, "train", tmp_path / "set", *options, "--no-tensorboard", "--out", "run")
    assert code == 0 and Run.open("run").finished, said
    times = [sum(f"bad-{number}.png" in line for line in said.splitlines()) for number in range(10)]
    assert set(times) == {0, 1}, said  # some are in other splits
