"""The loop on real digits: reproducible, resumable, honest when it fails."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsh_cli import TrainConfig, class_table, load, load_splits, mean_average_precision, train
from dsh_cli.codes.bits import pack, to_hex, unpack
from dsh_cli.config import Centers, ModelConfig
from dsh_cli.data.splits import Splits
from dsh_cli.errors import DivergedError, DshError, Interrupted, RunError, UsageError
from dsh_cli.network.encoding import Encoder
from dsh_cli.network.model import HashNet
from dsh_cli.runs.run import Run
from dsh_cli.show.tensorboard import TensorBoard
from dsh_cli.training.events import EpochStats, Plan, Quiet, RunningLoss, TrainResult
from dsh_cli.training.objective import DshObjective
from dsh_cli.training.recipe import settle
from dsh_cli.training.terms import dsh_loss
from tests.support.commands import dsh_json
from tests.support.runs import edit, identical, weights
from tests.support.values import there

CONFIG = TrainConfig(data="digits", epochs=3, batch_size=64, device="cpu", tensorboard=False)


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load_splits(CONFIG)


def test_ctrl_c_when_all_is_saved_says_that_the_run_is_finished(splits: Splits, tmp_path: Path) -> None:
    class AtTheEnd(Quiet):
        def on_end(self, result: TrainResult) -> None:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="run is finished; what listens") as caught:
        train(replace(CONFIG, epochs=1), splits, str(tmp_path / "run"), listeners=[AtTheEnd()])
    assert "--resume" not in str(caught.value) and Run.open(tmp_path / "run").finished


def test_one_seed_gives_identical_weights_and_another_does_not(splits: Splits, tmp_path: Path) -> None:
    one, same = (train(CONFIG, splits, str(tmp_path / name)).run for name in ("one", "same"))
    other = train(replace(CONFIG, seed=1), splits, str(tmp_path / "other")).run
    assert identical(weights(one), weights(same))
    assert not identical(weights(one), weights(other))


@pytest.fixture
def small() -> HashNet:
    return HashNet(ModelConfig("dsh-cnn", 8, 1, 16))


class StopIn(Quiet):
    """Ctrl-C in the first batch of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_batch(self, epoch: int, done: int, loss: RunningLoss) -> None:
        if epoch == self.epoch:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "options, stopped_in",
    [
        ({}, 1),  # before there is anything to go on from
        ({}, 2),  # when classes are given their centers
        ({}, 3),
        pytest.param({"device": "cuda"}, 3, marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU")),
        ({"optimizer": "sgd", "schedule": "step", "lr": 1e-3}, 3),
        ({"amp": True, "clip": 1.0}, 3),
        ({"centers": "none"}, 3),
        ({"backbone": "mobilenet_v3_small", "batch_size": 200, "lr": 1e-3}, 3),  # has dropout
    ],
)
def test_a_resumed_run_ends_as_one_that_was_never_stopped(
    splits: Splits, tmp_path: Path, options: dict[str, Any], stopped_in: int
) -> None:
    config = replace(CONFIG, **options)
    whole = train(config, splits, str(tmp_path / "whole"))
    with pytest.raises(Interrupted, match=f"stopped after {stopped_in - 1} of 3 epochs") as caught:
        train(config, splits, str(tmp_path / "part"), listeners=[StopIn(stopped_in)])
    assert f"dsh train --resume {tmp_path / 'part'}" in str(caught.value)
    part = Run.open(tmp_path / "part")
    assert not part.finished
    resumed = train(part.config, splits, resume=part)
    assert identical(weights(whole.run), weights(resumed.run))
    assert resumed.map == whole.map
    assert not list((tmp_path / "part").glob("state*"))


def test_a_frozen_run_resumes_without_the_weights_it_started_from(
    splits: Splits, digits_run: Path, tmp_path: Path
) -> None:
    class Stop(Quiet):
        def on_epoch(self, stats: EpochStats) -> None:
            if stats.epoch == 2:
                raise KeyboardInterrupt

    source = shutil.copytree(digits_run, tmp_path / "source")
    config = replace(CONFIG, weights=str(source), freeze=True, amp=True, clip=1.0, bits=12)
    whole = train(config, splits, str(tmp_path / "whole")).run
    with pytest.raises(Interrupted):
        train(config, splits, str(tmp_path / "part"), listeners=[Stop()])
    shutil.rmtree(source)
    part = Run.open(tmp_path / "part")
    resumed = train(part.config, splits, resume=part).run
    assert identical(weights(whole), weights(resumed))
    before = safetensors.numpy.load((digits_run / "model.safetensors").read_bytes())
    kept = [name for name in before if not name.startswith("hash_layer")]
    assert {"mean", "std", "backbone.stem.1.running_mean"} <= set(kept)
    assert all((before[name] == weights(resumed)[name]).all() for name in kept)
    assert weights(resumed)["hash_layer.weight"].shape == (12, 128) and resumed.metrics["map"] > 0.5


def test_bfloat16_trains_other_weights_and_makes_codes_in_float32(splits: Splits, tmp_path: Path) -> None:
    from dsh_cli.training.measuring import encode_dataset

    config = replace(CONFIG, epochs=1, amp=False)
    run = train(replace(config, amp=True), splits, str(tmp_path / "amp")).run
    assert not identical(weights(run), weights(train(config, splits, str(tmp_path / "plain")).run))
    assert (
        there(encode_dataset(load(run.path), splits.test).relaxed) == there(run.codes("test", "relaxed").relaxed)
    ).all()
    assert {str(array.dtype) for array in weights(run).values()} == {"float32", "int64"}


def test_bfloat16_is_the_choice_where_the_processor_has_it(splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    for has, taken in (({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx512_bf16": False}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: has)
        assert settle(CONFIG, splits).amp is taken
        assert settle(replace(CONFIG, amp=not taken), splits).amp is not taken
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert not settle(replace(CONFIG, backbone="resnet18"), splits).amp  # whose maps come to a pixel too soon


def test_clipped_steps_are_no_longer_than_asked(splits: Splits, tmp_path: Path) -> None:
    lr, clip, steps = 0.1, 1e-3, 20
    config = replace(CONFIG, epochs=1, optimizer="sgd", schedule="constant", lr=lr, weight_decay=0.0, clip=clip)
    run = train(config, splits, str(tmp_path / "run")).run
    torch.manual_seed(CONFIG.seed)
    start = dict(HashNet(run.model).named_parameters())
    end = weights(run)
    moved = sum(((end[name] - parameter.detach().numpy()) ** 2).sum() for name, parameter in start.items()) ** 0.5
    assert 0 < moved <= lr * clip * steps / (1 - 0.9)  # momentum adds up


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_a_compiled_run_is_saved_under_plain_names(splits: Splits, tmp_path: Path) -> None:
    run = train(replace(CONFIG, epochs=1, compile=True), splits, str(tmp_path / "run")).run
    assert run.metrics["map"] > 0.15 and load(run.path)
    assert not [name for name in weights(run) if "_orig_mod" in name]


def test_without_a_compiler_one_line_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dsh_cli", "train", "digits", "--compile", "--device", "cpu", "--quiet"]
    environment = {**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: --compile: PyTorch cannot compile on this machine (")
    assert "leave --compile out" in done.stderr and done.stderr.count("\n") == 1


def test_a_stop_between_the_two_files_of_a_state_loses_nothing(splits: Splits, tmp_path: Path) -> None:
    metrics = tmp_path / "part" / "metrics.json"

    class Stop(Quiet):
        def on_epoch(self, stats: EpochStats) -> None:
            if stats.epoch == 2:
                raise KeyboardInterrupt
            self.before = metrics.read_bytes()

    stop = Stop()
    with pytest.raises(Interrupted):
        train(CONFIG, splits, str(tmp_path / "part"), listeners=[stop])
    metrics.write_bytes(stop.before)
    part = Run.open(tmp_path / "part")
    assert part.metrics["epochs_done"] == 1
    assert identical(
        weights(train(part.config, splits, resume=part).run), weights(train(CONFIG, splits, str(tmp_path / "w")).run)
    )


def test_listeners_and_the_callers_random_state_change_nothing(splits: Splits, tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one = train(CONFIG, splits, str(tmp_path / "one")).run
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.are_deterministic_algorithms_enabled()
    torch.rand(3)
    two = train(CONFIG, splits, str(tmp_path / "two"), listeners=[TensorBoard()]).run
    assert identical(weights(one), weights(two))


def test_what_is_reported_is_what_the_saved_codes_give(digits_run: Path) -> None:
    run = Run.open(digits_run)
    test, database = run.codes("test", "relaxed"), run.codes("train")
    assert run.metrics["map"] == mean_average_precision(test, database)
    assert run.metrics["min_class_distance"] == class_table(test, "test").min_class_distance
    assert run.metrics["map"] > 0.5
    assert (pack(there(test.relaxed) >= 0) == test.packed).all()


def test_the_saved_network_gives_the_saved_codes(digits_run: Path) -> None:
    from dsh_cli.training.measuring import encode_dataset

    run = Run.open(digits_run)
    again = encode_dataset(load(digits_run), load_splits(run.config).test)
    assert (again.packed == run.codes("test").packed).all()
    assert (there(again.thumbnails) == there(run.codes("test", "thumbnails").thumbnails)).all()


def test_open_choices_are_made_from_the_data_and_saved(splits: Splits) -> None:
    settled = settle(TrainConfig(data="digits", bits=12), splits)
    assert (settled.margin, settled.image_size, settled.augment, settled.epochs) == (24.0, 8, "digits", 60)
    kept = settle(TrainConfig(data="digits", margin=3.0, augment="none", epochs=2), splits)
    assert (kept.margin, kept.augment, kept.epochs) == (3.0, "none", 2)


def test_a_loss_that_is_not_finite_stops_the_run(splits: Splits, tmp_path: Path) -> None:
    with pytest.raises(DshError, match=r"not finite in epoch 1.*Try `lr`"):
        train(replace(CONFIG, lr=1e30, schedule="constant"), splits, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()  # nothing to go on from, so nothing is left


def test_a_diverged_run_stops_long_before_its_epoch_ends(splits: Splits, tmp_path: Path) -> None:
    with pytest.raises(DshError, match="by step 50 of 161.* `clip` 1,"):
        train(replace(CONFIG, lr=1e30, schedule="constant", batch_size=8), splits, str(tmp_path / "run"))


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 1e5, "epochs": 16},  # the means of classes, by which centers are given out, were no numbers
        {"lr": 1e6, "epochs": 1},  # it finished, with outputs that are kept as infinite
        {"optimizer": "sgd", "lr": 30.0, "epochs": 16},
        {"lr": 1e3, "batch_size": 8, "epochs": 2, "amp": False},
    ],
)
def test_outputs_that_run_away_where_no_loss_shows_it_end_in_the_same_sentence(
    photos: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    """Of few pictures an epoch has one batch, and its loss is that of the weights before."""
    config = TrainConfig(data=str(photos), bits=8, backbone="small-resnet", device="cpu", tensorboard=False)
    config = replace(config, **options)
    with pytest.raises(
        DshError, match=r"not finite, .*in epoch \d+, by its .* step.*: training has diverged. Try `lr`"
    ):
        train(config, load_splits(config), str(tmp_path / "run"))


def test_a_network_whose_outputs_are_no_numbers_gives_no_codes(small: HashNet, tmp_path: Path) -> None:
    pictures = np.zeros((3, 16, 16, 1), np.uint8)
    Encoder(small).relaxed(pictures)
    for value in (math.nan, math.inf, 1e5):
        torch.nn.init.constant_(small.hash_layer.bias, value)
        with pytest.raises(DivergedError, match="has diverged; train again with a smaller `lr`"):
            Encoder(small).relaxed(pictures)


@pytest.mark.parametrize("spoiled", ["loss", "gradient"])
def test_a_diverged_run_keeps_its_last_good_state(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoiled: str
) -> None:

    calls = []

    def spoil(relaxed: Tensor, *args: Any) -> tuple[Tensor, ...]:
        calls.append(relaxed)
        last = len(calls) == 40  # of two epochs: with a spoiled gradient, no loss ever shows it
        if last and spoiled == "gradient":
            relaxed.register_hook(lambda gradient: gradient * float("inf"))  # type: ignore[no-untyped-call]
        terms = dsh_loss(relaxed, *args)
        return tuple(term * float("nan") for term in terms) if last and spoiled == "loss" else terms

    monkeypatch.setattr("dsh_cli.training.objective.dsh_loss", spoil)
    out = tmp_path / "run"
    with pytest.raises(DshError, match=r"not finite in epoch 2, by its last step, 20.*as it was after 1 of 3 epochs"):
        train(CONFIG, splits, str(out))
    run = Run.open(out)
    assert not run.finished and run.metrics["epochs_done"] == 1
    assert all(tensor.isfinite().all() for tensor in run.load_state().values())


def test_a_device_that_is_not_there_is_refused_before_anything_is_written(splits: Splits, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UsageError, match="`device` cuda"):
        train(replace(CONFIG, device="cuda"), splits, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_cleanly_and_the_run_can_go_on(tmp_path: Path, number: int, code: int) -> None:
    out = tmp_path / "run"
    # a shell starts background jobs with Ctrl-C ignored, and tests may run in one
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from dsh_cli.cli import app; app()"
    )
    command = [sys.executable, "-c", script, "train", "digits", "--epochs", "4000", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(out.glob("state-*")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert stdout == "" and "Traceback" not in stderr
    last = stderr.splitlines()[-1]
    assert last.startswith("error: stopped after ") and last.endswith(f"Go on with: dsh train --resume {out}")
    assert dsh_json("info", out)["finished"] is False
    config, done = json.loads((out / "config.json").read_text())["config"], dsh_json("info", out)["epochs_done"] + 1
    edit(out / "config.json", config=config | {"epochs": done})
    assert dsh_json("train", "--resume", out, "--quiet")["epochs"] == done
    assert dsh_json("info", out)["finished"] is True
    assert not [name for name in os.listdir(out) if name.startswith(".")]


def test_two_processes_do_not_train_one_run(splits: Splits, tmp_path: Path) -> None:
    class Second(Quiet):
        """Another process goes on with the run after its first epoch."""

        def on_epoch(self, stats: EpochStats) -> None:
            if stats.epoch == 1:
                command = [sys.executable, "-m", "dsh_cli", "train", "--resume", str(tmp_path / "run"), "--quiet"]
                self.said = subprocess.run(command, capture_output=True, text=True, timeout=300)

    second = Second()
    result = train(CONFIG, splits, str(tmp_path / "run"), listeners=[second])
    assert second.said.returncode == 1 and second.said.stdout == ""
    assert second.said.stderr == f"error: another process is training {tmp_path / 'run'}; wait for it\n"
    assert result.run.finished and not (tmp_path / "run" / ".lock").exists()


class Told(Quiet):
    """Keeps what a training says of hash centers."""

    def on_start(self, plan: Plan) -> None:
        self.centers = plan.objective
        self.terms: list[float] = []

    def on_epoch(self, stats: EpochStats) -> None:
        self.terms.append(stats.loss.terms["centers"])


def test_hash_centers_part_the_classes_as_far_as_can_be(splits: Splits, tmp_path: Path) -> None:
    told = Told()
    config = replace(CONFIG, epochs=32, centers="auto")
    result = train(config, splits, str(tmp_path / "run"), listeners=[told])
    assert result.table.min_class_distance == 4 == there(result.table.bound).distance
    assert told.centers == "hash centers: distance 4 of at most 4 between classes"
    assert set(told.terms[:4]) == {0} and min(told.terms[4:]) > 0  # an eighth of the epochs without
    centers = there(result.run.centers())
    assert centers.shape == (10, 1) and class_distance(centers) == 4
    assert [row.code for row in result.table.classes] == to_hex(centers, 8)  # where they were drawn to


@pytest.mark.parametrize("held_out", [0, 3])
def test_the_terms_of_hash_centers_are_their_formulas_over_the_classes_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held_out: int
) -> None:
    calls, term = [], DshObjective._centers

    def watched(self: DshObjective, relaxed: Tensor, labels: Tensor, epoch: float) -> Tensor:
        value = term(self, relaxed, labels, epoch)
        calls.append((relaxed.detach().double().numpy(), labels.numpy(), epoch, float(value.detach())))
        return value

    monkeypatch.setattr(DshObjective, "_centers", watched)
    config = replace(CONFIG, hold_out_classes=held_out)
    splits = load_splits(config)
    centers = 2.0 * unpack(there(train(config, splits, str(tmp_path / "run")).run.centers()), 8) - 1
    classes = np.unique(splits.train.labels)
    assert len(classes) == 10 - held_out
    scale = math.log(6 * (len(classes) - 1)) / (2 * 4)  # centers are 4 bits apart
    half = next(call for call in calls if call[2] >= 1.5)  # phased in over the second epoch
    for relaxed, labels, epoch, value in (half, calls[-1]):
        pairs, choices = [], []
        for output, label in zip(relaxed, labels, strict=True):
            for present in np.unique(labels):
                distance = ((output - centers[present]) ** 2).sum()
                pairs.append(0.5 * (distance if present == label else max(16 - distance, 0)))
            logits = [scale * output @ centers[number] for number in classes]
            choices.append(math.log(sum(map(math.exp, logits))) - scale * output @ centers[label])
        weight = 0.3 * min(1, epoch - 1)
        assert value == pytest.approx(weight * (np.mean(pairs) + 10 / 3 * np.mean(choices)), rel=1e-4)


def test_a_damaged_file_of_centers_is_named_with_the_run(splits: Splits, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(CONFIG, splits, str(tmp_path / "run"), listeners=[StopIn(3)])
    part = Run.open(tmp_path / "run")
    (part.path / "centers.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match=f"centers.safetensors is damaged .*dsh train --like {part.path}$"):
        train(part.config, splits, resume=part)


def test_a_resumed_run_whose_centers_are_gone_makes_no_others(splits: Splits, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(CONFIG, splits, str(tmp_path / "run"), listeners=[StopIn(3)])
    part = Run.open(tmp_path / "run")
    states = {state: state.read_bytes() for state in part.path.glob("state-*")}
    (part.path / "centers.safetensors").unlink()
    with pytest.raises(RunError, match=f"centers.safetensors is missing.*dsh train --like {part.path}$"):
        train(part.config, splits, resume=part)
    assert {state: state.read_bytes() for state in part.path.glob("state-*")} == states
    assert not (part.path / "centers.safetensors").exists()


@pytest.mark.parametrize(
    ("centers", "named"), [("auto", "`alpha` and `center_weight`"), ("none", "`margin` and `alpha`")]
)
def test_a_diverged_loss_names_the_weight_of_centers_where_they_act(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, centers: Centers, named: str
) -> None:
    def spoil(relaxed: Tensor, *args: Any) -> tuple[Tensor, ...]:
        return tuple(term * float("nan") for term in dsh_loss(relaxed, *args))

    class Spoil(Quiet):
        def on_epoch(self, stats: EpochStats) -> None:
            monkeypatch.setattr("dsh_cli.training.objective.dsh_loss", spoil)

    config = replace(CONFIG, centers=centers)
    with pytest.raises(DshError, match=f"not finite in epoch 2, .*see that .*{named} are not extreme"):
        train(config, splits, str(tmp_path / "run"), listeners=[Spoil()])


def class_distance(packed: NDArray[np.uint8]) -> int:
    between = np.bitwise_count(packed[:, None] ^ packed).sum(axis=2)
    return int(between[~np.eye(len(packed), dtype=bool)].min())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"bits": 3}, "hash centers are off: 10 classes cannot have different codes of 3 bits"),
        ({"epochs": 1}, "hash centers are off: one epoch is too few for them"),
        ({"batch_size": 2000}, "hash centers are off: two epochs of one batch are too few for them"),
        ({"center_weight": 0.0}, ""),
        ({"centers": "none"}, ""),
    ],
)
def test_where_hash_centers_cannot_apply_they_are_off_and_it_is_said(
    splits: Splits, tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    config = replace(CONFIG, **{"epochs": 2, "centers": "auto", **options})
    with_them = train(config, splits, str(tmp_path / "a"), listeners=[listener := Told()]).run
    assert listener.centers == told and set(listener.terms) == {0} and with_them.centers() is None
    without = train(replace(config, centers="none"), splits, str(tmp_path / "b")).run
    assert identical(weights(with_them), weights(without))
