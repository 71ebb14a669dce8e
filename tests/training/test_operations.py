"""What a training cost, in operations: those of every picture that it was trained on, and of no other."""

import json
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from dsh_cli import TrainConfig, load_splits, train
from dsh_cli.errors import Interrupted
from dsh_cli.network.model import HashNet
from dsh_cli.network.operations import training_operations
from dsh_cli.runs.run import Run
from dsh_cli.training.batches import Batches
from dsh_cli.training.events import Plan, Quiet, RunningLoss, TrainResult
from tests.support.commands import dsh, dsh_json
from tests.support.runs import reseal

CONFIG = TrainConfig(data="digits", epochs=2, batch_size=64, device="cpu", tensorboard=False)
STEPS = 20  # an epoch of digits


class Stopping(Quiet):
    """Ctrl-C in one batch of one epoch."""

    def __init__(self, epoch: int, batch: int) -> None:
        self.at = epoch, batch

    def on_start(self, plan: Plan) -> None:
        self.plan = plan

    def on_batch(self, epoch: int, done: int, loss: RunningLoss) -> None:
        if (epoch, done) == self.at:
            signal.raise_signal(signal.SIGINT)


def resumed(config: TrainConfig, run: Path, stop: Stopping) -> TrainResult:
    """A training that was stopped and gone on with."""
    splits = load_splits(config)
    with pytest.raises(Interrupted):
        train(config, splits, str(run), listeners=[stop])
    return train(Run.open(run).config, splits, resume=Run.open(run))


def operations(run: Run, side: int) -> int:
    return training_operations(HashNet(run.model), (1, side, side))


@pytest.fixture
def small_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of 6 pixels for the first 25 steps of a training on digits, and of 8 from then on."""
    epoch = Batches.epoch

    def shape(self: Batches, step: int) -> tuple[int, ...]:
        return (1, 6, 6) if step < 25 else (1, 8, 8)

    def cropped(self: Batches, number: int, part: Any = None) -> Iterator[tuple[Tensor, Tensor]]:
        first = number * len(self) + (part.batches if part else 0)
        for step, (images, labels) in enumerate(epoch(self, number, part), first):
            _, side, _ = shape(self, step)
            yield images[:, :, :side, :side], labels

    monkeypatch.setattr(Batches, "shape", shape)
    monkeypatch.setattr(Batches, "small_steps", 25)
    monkeypatch.setattr(Batches, "epoch", cropped)


@pytest.mark.parametrize("stop", [(1, 4), (1, 20), (2, 3), (2, 11)])
def test_all_pictures_count_by_their_size_however_often_a_training_is_stopped(
    tmp_path: Path, small_first: None, stop: tuple[int, int]
) -> None:
    listener = Stopping(*stop)
    result = resumed(replace(CONFIG, backbone="small-resnet"), tmp_path / "run", listener)
    small, full = (operations(result.run, side) for side in (6, 8))
    assert small < full
    assert result.tflop == 64 * (25 * small + 15 * full) / 1e12 == Run.open(tmp_path / "run").metrics["tflop"]
    plan = listener.plan
    assert plan.operations == [(25, small), (15, full)] and plan.steps == 40
    assert [plan.work(step) for step in (0, 1, 25, 26, 40)] == [
        0,
        small,
        25 * small,
        25 * small + full,
        25 * small + 15 * full,
    ]


def test_pictures_that_cannot_be_read_do_not_count(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, data=str(photos), memory=0.0, cache="off", image_size=16, batch_size=3, workers=1)
    splits = load_splits(config)
    names = splits.train.names
    for name in names[: len(names) // 2]:
        (photos / name).write_bytes(b"no picture")
    epoch, trained_on = Batches.epoch, 0

    def counted(self: Batches, number: int, part: Any = None) -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal trained_on
        for images, labels in epoch(self, number, part):
            trained_on += len(labels)
            yield images, labels

    monkeypatch.setattr(Batches, "epoch", counted)
    result = train(config, splits, str(tmp_path / "run"))
    assert result.tflop == trained_on * operations(result.run, 16) / 1e12
    assert 0 < trained_on < 2 * len(names) / 2  # batches of one picture are left out too


def test_a_training_begun_by_a_version_that_did_not_count_says_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_state = Run.write_state
    with monkeypatch.context() as patch:
        patch.setattr(
            Run,
            "write_state",
            lambda self, tensors, epochs_done: write_state(
                self, {name: value for name, value in tensors.items() if name != "operations"}, epochs_done
            ),
        )
        result = resumed(CONFIG, tmp_path / "run", Stopping(1, 7))
    assert result.tflop is None and Run.open(tmp_path / "run").metrics["tflop"] is None
    assert "TFLOP" not in dsh("info", tmp_path / "run").stdout
    assert dsh_json("info", tmp_path / "run")["tflop"] is None


def test_runs_say_what_they_cost_where_they_know(digits_run: Path, tmp_path: Path) -> None:
    run = Run.open(digits_run)
    tflop = run.config.epochs * STEPS * 64 * operations(run, 8) / 1e12
    answer = dsh_json("info", digits_run)
    assert answer["tflop"] == answer["metrics"]["tflop"] == tflop
    assert f" s on cpu, {tflop:.3g} TFLOP" in dsh("info", digits_run, "--format", "table").stdout
    old = shutil.copytree(digits_run, tmp_path / "old")
    metrics = json.loads((old / "metrics.json").read_text())
    (old / "metrics.json").write_text(json.dumps({name: of for name, of in metrics.items() if name != "tflop"}))
    reseal(old)
    assert dsh_json("info", old)["tflop"] is None
    assert " s on cpu" in (shown := dsh("info", old, "--format", "table").stdout) and "TFLOP" not in shown
