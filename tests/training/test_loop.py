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
from dsh_cli.codes.centers import offsets
from dsh_cli.config import Centers, ModelConfig
from dsh_cli.data.splits import Splits
from dsh_cli.errors import DivergedError, DshError, Interrupted, RunError, UsageError
from dsh_cli.network.encoding import TorchEncoder, to_float
from dsh_cli.network.model import Airbench, HashNet
from dsh_cli.runs.run import Run
from dsh_cli.show.tensorboard import TensorBoard
from dsh_cli.training.events import EpochStats, Plan, Quiet, RunningLoss, TrainResult
from dsh_cli.training.objective import CenterObjective, Terms, make_objective
from dsh_cli.training.recipe import bfloat16_pays, settle
from dsh_cli.training.terms import choice_term
from tests.support.commands import dsh, dsh_json, one_line_error
from tests.support.runs import edit, identical, weights
from tests.support.values import in_memory, there

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
        ({}, 2),
        ({}, 3),
        pytest.param({"device": "cuda"}, 3, marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU")),
        ({"optimizer": "sgd", "schedule": "step", "lr": 1e-3}, 3),
        ({"optimizer": "muon", "schedule": "one-cycle", "backbone": "small-resnet"}, 3),
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
    config = replace(CONFIG, weights=str(source), freeze=True, amp=True, clip=1.0, bits=12, hidden=0)
    whole = train(config, splits, str(tmp_path / "whole")).run
    with pytest.raises(Interrupted):
        train(config, splits, str(tmp_path / "part"), listeners=[Stop()])
    shutil.rmtree(source)
    part = Run.open(tmp_path / "part")
    resumed = train(part.config, splits, resume=part).run
    assert identical(weights(whole), weights(resumed))
    before = safetensors.numpy.load((digits_run / "model.safetensors").read_bytes())
    kept = [name for name in before if not name.startswith("hash_layer")]
    assert {"mean", "std", "backbone.stem.weight", "backbone.groups.0.2.running_mean"} <= set(kept)
    assert all((before[name] == weights(resumed)[name]).all() for name in kept)
    assert weights(resumed)["hash_layer.weight"].shape == (12, 64) and resumed.metrics["map"] > 0.5


def test_bfloat16_trains_other_weights_and_makes_codes_in_float32(splits: Splits, tmp_path: Path) -> None:
    from dsh_cli.training.measuring import encode_dataset

    config = replace(CONFIG, epochs=1, amp=False)
    run = train(replace(config, amp=True), splits, str(tmp_path / "amp")).run
    assert not identical(weights(run), weights(train(config, splits, str(tmp_path / "plain")).run))
    assert (
        there(encode_dataset(load(run.path), splits.test).relaxed) == there(run.codes("test", "relaxed").relaxed)
    ).all()
    assert {str(array.dtype) for array in weights(run).values()} == {"float32", "int64"}


def test_bfloat16_is_the_choice_where_the_processor_has_matrix_units_for_it(
    splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    for has, taken in (({"avx512_bf16": True}, False), ({"amx_bf16": True}, True), ({"amx_bf16": False}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: has)
        assert settle(CONFIG, splits).amp is taken
        assert settle(replace(CONFIG, amp=not taken), splits).amp is not taken
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert not settle(replace(CONFIG, backbone="resnet18"), splits).amp  # whose maps come to a pixel too soon
    for name, taken in (
        ("resnet18", True),
        ("timm:resnet10t", True),
        ("mobilenet_v2", False),
        ("timm:lcnet_050", False),
    ):
        assert bfloat16_pays(replace(CONFIG, backbone=name), 64) is taken, name


@pytest.mark.parametrize("has", [True, False])
def test_bfloat16_is_the_choice_on_a_gpu_that_has_it(monkeypatch: pytest.MonkeyPatch, has: bool) -> None:
    monkeypatch.setattr("dsh_cli.network.device.choose_device", torch.device)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has and not including_emulation)
    assert bfloat16_pays(replace(CONFIG, device="cuda", backbone="mobilenet_v2"), 64) is has
    assert not bfloat16_pays(replace(CONFIG, device="mps"), 64)


def test_clipped_steps_are_no_longer_than_asked(splits: Splits, tmp_path: Path) -> None:
    lr, clip, steps = 0.1, 1e-3, 20
    config = replace(CONFIG, epochs=1, optimizer="sgd", schedule="constant", lr=lr, weight_decay=0.0, clip=clip)
    config = replace(config, backbone="small-resnet")
    run = train(config, splits, str(tmp_path / "run")).run
    torch.manual_seed(CONFIG.seed)
    net = HashNet(run.model)
    make_objective(run, splits.train, torch.device("cpu")).begin(net.hash_layer)
    start = dict(net.named_parameters())
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
    assert (settled.margin, settled.image_size, settled.augment, settled.epochs) == (24.0, 8, "digits", 12)
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
        {"lr": 1e5, "epochs": 16},
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
    TorchEncoder(small).relaxed(pictures)
    for value in (math.nan, math.inf, 1e5):
        torch.nn.init.constant_(small.hash_layer.bias, value)
        with pytest.raises(DivergedError, match="has diverged; train again with a smaller `lr`"):
            TorchEncoder(small).relaxed(pictures)


@pytest.mark.parametrize("spoiled", ["loss", "gradient"])
def test_a_diverged_run_keeps_its_last_good_state(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoiled: str
) -> None:

    calls = []

    def spoil(relaxed: Tensor, *args: Any) -> Tensor:
        calls.append(relaxed)
        last = len(calls) == 40  # of two epochs: with a spoiled gradient, no loss ever shows it
        if last and spoiled == "gradient":
            relaxed.register_hook(lambda gradient: gradient * float("inf"))  # type: ignore[no-untyped-call]
        return choice_term(relaxed, *args) * (float("nan") if last and spoiled == "loss" else 1)

    monkeypatch.setattr("dsh_cli.training.objective.choice_term", spoil)
    out = tmp_path / "run"
    with pytest.raises(DshError, match=r"not finite in epoch 2, by its last step, 20.*as it was after 1 of 3 epochs"):
        train(CONFIG, splits, str(out))
    run = Run.open(out)
    assert not run.finished and run.metrics["epochs_done"] == 1
    assert all(tensor.isfinite().all() for tensor in run.load_state().values())


def test_pictures_that_are_too_small_to_grow_are_refused(tmp_path: Path) -> None:
    config = TrainConfig(data="digits", backbone="resnet9", grow=True, epochs=1, tensorboard=False)
    with pytest.raises(
        UsageError, match="`grow` shows pictures of 8 pixels at 6 first, and resnet9 does not take such"
    ):
        train(config, load_splits(config), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_device_that_is_not_there_is_refused_before_anything_is_written(splits: Splits, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UsageError, match="`device` cuda"):
        train(replace(CONFIG, device="cuda"), splits, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (getattr(signal, "SIGHUP", 1), 143)]
)
def test_a_signal_ends_it_cleanly_and_the_run_can_go_on(tmp_path: Path, number: int, code: int) -> None:
    out = tmp_path / "run"
    # a shell starts background jobs with Ctrl-C ignored, and nohup all with SIGHUP; tests may run in either
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "signal.signal(signal.SIGHUP, signal.SIG_DFL); from dsh_cli.cli import app; app()"
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
    """Keeps what a training says of hash centers, and which terms its loss has."""

    def on_start(self, plan: Plan) -> None:
        self.centers = plan.objective

    def on_epoch(self, stats: EpochStats) -> None:
        self.terms = set(stats.loss.terms)


def test_hash_centers_part_the_classes_as_far_as_can_be(splits: Splits, tmp_path: Path) -> None:
    told = Told()
    result = train(replace(CONFIG, epochs=12), splits, str(tmp_path / "run"), listeners=[told])
    assert result.table.min_class_distance == 4 == there(result.table.bound).distance
    assert told.centers == "hash centers: distance 4 of at most 4 between classes" and told.terms == {"choice"}
    centers = there(result.run.centers())
    assert centers.shape == (10, 1) and class_distance(centers) == 4
    assert [row.code for row in result.table.classes] == to_hex(centers, 8)  # which they learned to choose


@pytest.mark.parametrize("held_out", [0, 3])
def test_the_loss_is_its_formula_over_the_classes_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held_out: int
) -> None:
    calls, call = [], CenterObjective.__call__

    def watched(self: CenterObjective, relaxed: Tensor, labels: Tensor) -> Terms:
        terms = call(self, relaxed, labels)
        calls.append((relaxed.detach().double().numpy(), labels.numpy(), float(terms.total.detach())))
        return terms

    monkeypatch.setattr(CenterObjective, "__call__", watched)
    config = replace(CONFIG, hold_out_classes=held_out, epochs=1)
    splits = load_splits(config)
    centers = 2.0 * unpack(there(train(config, splits, str(tmp_path / "run")).run.centers()), 8) - 1
    classes = np.unique(splits.train.labels)
    assert len(classes) == 10 - held_out
    distance = class_distance(pack(centers[classes] > 0))
    scale = math.log(4 * (len(classes) - 1)) / (2 * distance)  # 0.8 to 0.2
    moved = 0.3 * distance / 12 * offsets((centers[classes] > 0).astype(np.uint8))
    for relaxed, labels, value in (calls[0], calls[-1]):
        costs = []
        for output, label in zip(relaxed, labels, strict=True):
            logits = {number: scale * (output + moved) @ centers[number] for number in classes}
            whole = math.log(sum(map(math.exp, logits.values())))
            wanted = {number: math.exp(scale * centers[label] @ centers[number]) for number in classes}
            cost = sum(share * (whole - logits[number]) for number, share in wanted.items())
            costs.append(cost / sum(wanted.values()))
        assert value == pytest.approx(np.mean(costs), rel=1e-4)


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


@pytest.mark.parametrize(("centers", "named"), [("auto", "`smoothing` is"), ("none", "`margin` and `alpha` are")])
def test_a_diverged_loss_names_what_shapes_it(splits: Splits, tmp_path: Path, centers: Centers, named: str) -> None:
    config = replace(CONFIG, centers=centers, lr=1e30, schedule="constant", epochs=1)
    with pytest.raises(DshError, match=f"not finite in epoch 1, .*see that {named} not extreme"):
        train(config, splits, str(tmp_path / "run"))


def class_distance(packed: NDArray[np.uint8]) -> int:
    between = np.bitwise_count(packed[:, None] ^ packed).sum(axis=2)
    return int(between[~np.eye(len(packed), dtype=bool)].min())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"bits": 3}, "hash centers are off: 10 classes cannot have different codes of 3 bits"),
        ({"margin": 16.0}, "hash centers are off: the loss is over pairs, margin 16, alpha 0.01"),
        ({"alpha": 0.01}, "hash centers are off: the loss is over pairs, margin 16, alpha 0.01"),
    ],
)
def test_where_hash_centers_cannot_apply_they_are_off_and_it_is_said(
    splits: Splits, tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    config = replace(CONFIG, epochs=1, **options)
    with_them = train(config, splits, str(tmp_path / "a"), listeners=[listener := Told()]).run
    assert listener.centers == told and listener.terms == {"pair", "quantization"} and with_them.centers() is None
    without = train(replace(config, centers="none"), splits, str(tmp_path / "b")).run
    assert identical(weights(with_them), weights(without))


# The first layer


def test_the_first_layer_is_whitened_from_training_pictures_and_stays_so(splits: Splits, tmp_path: Path) -> None:
    first, other = (
        train(replace(CONFIG, epochs=1, seed=seed), splits, str(tmp_path / str(seed))).run for seed in (0, 1)
    )
    net = load(first.path)
    assert isinstance(net.backbone, Airbench)
    kept = net.backbone.stem.weight.clone()
    assert np.array_equal(kept.numpy(), weights(first)["backbone.stem.weight"])
    rows = np.sort(np.random.default_rng(0).permutation(len(splits.train))[:1000])
    with torch.no_grad():
        net.backbone.whiten((to_float(torch.from_numpy(in_memory(splits.train)[rows])) - net.mean) / net.std)
    assert torch.equal(net.backbone.stem.weight, kept)
    assert not identical(weights(first), weights(other))


def test_weights_to_start_from_bring_their_first_layer(splits: Splits, digits_run: Path, tmp_path: Path) -> None:
    run = train(replace(CONFIG, weights=str(digits_run), epochs=1, seed=5), splits, str(tmp_path / "run")).run
    theirs = weights(Run.open(digits_run))
    assert (weights(run)["backbone.stem.weight"] == theirs["backbone.stem.weight"]).all()


def test_photos_have_codes_of_both_ways_round(photos: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, data=str(photos), epochs=1, batch_size=6, image_size=16)
    splits = load_splits(config)
    run = train(config, splits, str(tmp_path / "run")).run
    assert run.model.mirror and Run.open(run.path).model == run.model
    pictures = in_memory(splits.test)
    outputs = TorchEncoder(load(run.path)).relaxed(np.concatenate([pictures, pictures[:, :, ::-1]]))
    assert outputs[: len(pictures)] == pytest.approx(outputs[len(pictures) :], abs=1e-4)
    assert there(run.codes("test", "relaxed").relaxed) == pytest.approx(outputs[: len(pictures)], abs=1e-2)
    plain = train(replace(config, augment="none"), splits, str(tmp_path / "plain")).run
    assert not plain.model.mirror


# Runs of earlier versions


def as_of_an_earlier_version(run: Path) -> None:
    head = json.loads((run / "config.json").read_text())
    recipe = {name: value for name, value in head["config"].items() if name != "smoothing"} | {"center_weight": 0.3}
    model = {name: value for name, value in head["model"].items() if name != "mirror"}
    edit(run / "config.json", config=recipe, model=model)


def test_a_finished_run_of_an_earlier_version_opens_and_can_be_trained_like(digits_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(digits_run, tmp_path / "run")
    as_of_an_earlier_version(run)
    assert Run.open(run).config.smoothing is None and not Run.open(run).model.mirror
    assert "DSH, margin 16, alpha 0.01, hash centers" in dsh("info", run, "--format", "table").stdout
    assert dsh_json("evaluate", "--model", run)["map"] == Run.open(digits_run).metrics["map"]
    dsh_json("train", "--like", run, "--epochs", 1, "--out", tmp_path / "anew", "--quiet")
    recipe = Run.open(tmp_path / "anew").config
    assert (recipe.centers, recipe.smoothing) == ("auto", 0.2)


def test_an_unfinished_run_of_an_earlier_version_is_trained_anew(splits: Splits, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(CONFIG, splits, str(run), listeners=[StopIn(2)])
    as_of_an_earlier_version(run)
    said = one_line_error(dsh("train", "--resume", run), 1)
    assert "begun by an earlier version" in said and said.endswith(f"train anew with: dsh train --like {run}")
    dsh_json("train", "--like", run, "--epochs", 1, "--out", tmp_path / "anew", "--quiet")


def test_validation_pictures_of_one_class_are_measured_by_nothing(splits: Splits, tmp_path: Path) -> None:
    of_one = splits.validation.take(splits.validation.labels == 3)
    keep: list[EpochStats] = []

    class Keep(Quiet):
        def on_epoch(self, stats: EpochStats) -> None:
            keep.append(stats)

    train(replace(CONFIG, epochs=1), replace(splits, validation=of_one), str(tmp_path / "run"), listeners=[Keep()])
    assert [stats.validation_map for stats in keep] == [None] and len(keep[0].validation) > 1
