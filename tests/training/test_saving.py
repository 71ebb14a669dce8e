"""What a training saves as it goes: where its folder is gone, in the middle of an epoch, and at Ctrl-C."""

import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dsh_cli import TrainConfig, load_splits, train
from dsh_cli.codes.sets import CodeSet
from dsh_cli.data.splits import Splits
from dsh_cli.errors import DshError, Interrupted, RunError, Terminated, UsageError
from dsh_cli.network.model import HashNet
from dsh_cli.runs import folders, storage
from dsh_cli.runs.run import Run
from dsh_cli.training import loop, measuring
from dsh_cli.training.batches import Batches
from dsh_cli.training.events import EpochStats, Plan, Quiet, RunningLoss, TrainResult
from dsh_cli.training.optimizer import make_optimizers
from dsh_cli.training.start import Part, restore, state_of
from dsh_cli.training.terms import choice_term
from tests.support.commands import DIGITS, dsh, dsh_json, one_line_error
from tests.support.runs import identical, reseal, weights

CONFIG = TrainConfig(data="digits", epochs=2, batch_size=64, device="cpu", tensorboard=False)


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load_splits(CONFIG)


@pytest.fixture(scope="module")
def uninterrupted(splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(CONFIG, splits, str(tmp_path_factory.mktemp("runs") / "whole")).run


def deleted(run: Path) -> None:
    shutil.rmtree(run)


def moved(run: Path) -> None:
    run.rename(run.with_name("elsewhere"))


def replaced(run: Path) -> None:
    run.rename(run.with_name("elsewhere"))
    run.mkdir()
    (run / ".lock").write_bytes(b"of another")


def emptied(run: Path) -> None:
    for path in run.iterdir():
        path.unlink()


class AfterFirst(Quiet):
    """Does something to the folder of a run once its first epoch is saved."""

    def __init__(self, run: Path, harm: Callable[[Path], None]) -> None:
        self.run, self.harm = run, harm

    def on_epoch(self, stats: EpochStats) -> None:
        if stats.epoch == 1:
            self.harm(self.run)


@pytest.mark.parametrize("harm", [deleted, moved, replaced, emptied])
def test_a_run_whose_folder_is_gone_ends_at_the_next_saving(
    splits: Splits, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    run = tmp_path / "run"
    config = replace(CONFIG, centers="none")
    with pytest.raises(RunError, match=f"^{run} was deleted, moved or replaced while it was trained"):
        train(config, splits, str(run), listeners=[AfterFirst(run, harm)])
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    saved = [f"elsewhere/{name}" for name in (".lock", "config.json", "metrics.json", "splits.json")]
    # the lock in a folder that took its place is not ours to take away
    expected = {"moved": saved, "replaced": [*saved, "run/.lock"]}.get(harm.__name__, [])
    assert [name for name in left if "state" not in name] == expected
    if harm is moved:
        with folders.resumed(tmp_path / "elsewhere") as part:
            assert part.begun


def test_that_its_folder_is_gone_is_told_and_not_what_could_not_be_written_there(
    splits: Splits, tmp_path: Path
) -> None:
    class Writer(Quiet):
        def on_epoch(self, stats: EpochStats) -> None:
            raise DshError("cannot write run/tensorboard: no such file or directory")

    run = tmp_path / "run"
    with pytest.raises(RunError, match=f"^{run} was deleted, moved or replaced while it was trained"):
        train(CONFIG, splits, str(run), listeners=[AfterFirst(run, deleted), Writer()])
    with pytest.raises(DshError, match="^cannot write run/tensorboard"):
        train(CONFIG, splits, str(run), listeners=[Writer()])


@pytest.mark.parametrize("tensorboard", ["--tensorboard", "--no-tensorboard"])
@pytest.mark.parametrize("harm", [deleted, replaced])
def test_a_run_whose_folder_is_gone_at_the_end_has_no_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: Callable[[Path], None], tensorboard: str
) -> None:
    measured, run = measuring.measured, tmp_path / "run"

    def then_measured(*args: Any) -> TrainResult:
        harm(run)
        return measured(*args)

    monkeypatch.setattr(loop, "measured", then_measured)
    result = dsh(*DIGITS, "--epochs", 1, tensorboard, "--out", run)
    assert "run was deleted, moved or replaced while it was trained" in one_line_error(result, 1)
    assert sorted(path.name for path in run.rglob("*")) == ([".lock"] if harm is replaced else [])


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What was saved so far: whole epochs, and batches of the next."""
    seen: list[tuple[int, int]] = []
    write_state = Run.write_state

    def watched(self: Run, tensors: Mapping[str, Tensor], epochs_done: int) -> None:
        seen.append((epochs_done, int(tensors.get("epoch.batches", torch.tensor(0)))))
        write_state(self, tensors, epochs_done)

    monkeypatch.setattr(Run, "write_state", watched)
    return seen


class Watched(Quiet):
    """Keeps what an epoch came to, but for its seconds; Ctrl-C, or another signal, in one batch of one epoch."""

    def __init__(self, stop: tuple[int, int] | None = None, signals: Sequence[int] = (signal.SIGINT,)) -> None:
        self.stop, self.signals = stop, signals
        self.epochs: list[EpochStats] = []
        self.batches: list[tuple[int, int]] = []

    def on_start(self, plan: Plan) -> None:
        self.plan = plan

    def on_batch(self, epoch: int, done: int, loss: RunningLoss) -> None:
        self.batches.append((epoch, done))
        if (epoch, done) == self.stop:
            for number in self.signals:
                signal.raise_signal(number)

    def on_epoch(self, stats: EpochStats) -> None:
        self.epochs.append(stats)


@pytest.fixture
def some_photos(photos: Path) -> Path:
    """A folder of 3 classes whose pictures, all but one, can be read."""
    (photos / "apple" / "broken.png").write_bytes(b"no picture")
    return photos


FILES = {"data": "photos", "memory": 0.0, "cache": "off", "image_size": 16, "batch_size": 3, "workers": 2}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"amp": True, "clip": 1.0, "per_class": 4},
        {"optimizer": "sgd", "schedule": "step", "lr": 1e-3, "centers": "none", "amp": False},
        FILES,
        FILES | {"backbone": "mobilenet_v3_small", "image_size": 32, "lr": 1e-3},  # has dropout
        pytest.param({"device": "cuda"}, marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU")),
    ],
)
def test_ctrl_c_within_an_epoch_loses_none_of_its_batches(
    tmp_path: Path, some_photos: Path, options: dict[str, Any], saved: list[tuple[int, int]]
) -> None:
    config = replace(CONFIG, epochs=3, **options)
    splits = load_splits(config)
    whole, first, second = Watched(), Watched(stop=(2, 3)), Watched()
    uninterrupted = train(config, splits, str(tmp_path / "whole"), listeners=[whole])
    with pytest.raises(Interrupted, match=f"^stopped after 3 batches of epoch 2; {tmp_path}/part is marked unfin"):
        train(config, splits, str(tmp_path / "part"), listeners=[first])
    assert saved[-1] == (1, 3)
    part = Run.open(tmp_path / "part")
    resumed = train(part.config, splits, resume=part, listeners=[second])
    assert identical(weights(uninterrupted.run), weights(resumed.run)) and resumed.map == uninterrupted.map
    assert first.batches + second.batches == whole.batches
    assert (second.plan.first_epoch, second.plan.first_batch) == (1, 3)
    for one, other in zip(whole.epochs, first.epochs + second.epochs, strict=True):
        assert one.loss == other.loss and one.validation_map == other.validation_map
        assert 0 < other.images_per_second < 1e6 and 0 <= other.waited <= 1
    notes = [[note for stats in epochs for note in stats.notes] for epochs in (whole.epochs, second.epochs)]
    assert notes[0] == notes[1] and len(notes[0]) == ("data" in options)


def test_a_second_ctrl_c_ends_at_once(splits: Splits, tmp_path: Path, saved: list[tuple[int, int]]) -> None:
    with pytest.raises(Interrupted, match="^stopped after 1 of 2 epochs; "):
        train(CONFIG, splits, str(tmp_path / "run"), listeners=[Watched((2, 3), [signal.SIGINT] * 2)])
    assert saved == [(1, 0)]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("times", [1, 2])
def test_a_training_that_is_terminated_stops_as_by_ctrl_c(
    splits: Splits, uninterrupted: Run, tmp_path: Path, saved: list[tuple[int, int]], times: int
) -> None:
    with pytest.raises(Terminated, match="^stopped after 3 batches of epoch 2; "):
        train(CONFIG, splits, str(tmp_path / "run"), listeners=[Watched((2, 3), [signal.SIGTERM] * times)])
    assert saved == [(1, 0), (1, 3)]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    part = Run.open(tmp_path / "run")
    assert identical(weights(uninterrupted), weights(train(part.config, splits, resume=part).run))


def test_a_signal_that_someone_else_minds_is_left_to_them(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    minded = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: minded.append(number))
    try:
        train(CONFIG, splits, str(tmp_path / "run"), listeners=[Watched((2, 3), [signal.SIGTERM])])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert minded == [signal.SIGTERM] and Run.open(tmp_path / "run").finished


def test_ctrl_c_in_the_first_epoch_saves_it_too(splits: Splits, tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="^stopped after 7 batches of epoch 1; "):
        train(CONFIG, splits, str(tmp_path / "run"), listeners=[Watched(stop=(1, 7))])
    result = dsh("train", "--resume", tmp_path / "run")
    assert result.exit_code == 0 and "\ngoing on in epoch 1, after 7 of 20 batches\nepoch 1/2 " in result.stderr
    whole = train(CONFIG, splits, str(tmp_path / "whole")).run
    assert identical(weights(whole), weights(Run.open(tmp_path / "run")))


def press(*_: Any) -> None:
    signal.raise_signal(signal.SIGINT)


def after_the_last_look(monkeypatch: pytest.MonkeyPatch, stop: Callable[[], None]) -> None:
    epoch = Batches.epoch

    def then_stop(self: Batches, number: int, part: Part | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        yield from epoch(self, number, part)
        stop()

    monkeypatch.setattr(Batches, "epoch", then_stop)


def while_it_is_validated(monkeypatch: pytest.MonkeyPatch, stop: Callable[[], None]) -> None:
    encode = measuring.encode_dataset

    def stopping(*args: Any) -> CodeSet:
        stop()
        return encode(*args)

    monkeypatch.setattr(loop, "encode_dataset", stopping)


def before_the_next(monkeypatch: pytest.MonkeyPatch, stop: Callable[[], None]) -> None:
    epoch = Batches.epoch

    def stopping(self: Batches, number: int, part: Part | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        if number:
            stop()
        yield from epoch(self, number, part)

    monkeypatch.setattr(Batches, "epoch", stopping)


@pytest.mark.parametrize(
    ("moment", "left"),
    [(after_the_last_look, (1, 0)), (while_it_is_validated, (1, 0)), (before_the_next, (1, 1))],
)
def test_ctrl_c_between_epochs_loses_neither_the_epoch_nor_itself(
    splits: Splits,
    uninterrupted: Run,
    tmp_path: Path,
    saved: list[tuple[int, int]],
    moment: Callable[[pytest.MonkeyPatch, Callable[[], None]], None],
    left: tuple[int, int],
) -> None:
    watched = Watched()
    with pytest.MonkeyPatch.context() as patch:
        moment(patch, press)
        with pytest.raises(Interrupted, match="^stopped after 1 (of 2 epochs|batches of epoch 2); "):
            train(CONFIG, splits, str(tmp_path / "part"), listeners=[watched])
    assert saved[-1] == left and len(watched.epochs) == 1
    part = Run.open(tmp_path / "part")
    resumed = train(part.config, splits, resume=part).run
    assert identical(weights(uninterrupted), weights(resumed))


def test_elsewhere_than_in_the_main_thread_ctrl_c_is_left_to_others(splits: Splits, tmp_path: Path) -> None:
    done: list[TrainResult] = []
    thread = threading.Thread(target=lambda: done.append(train(CONFIG, splits, str(tmp_path / "run"))))
    thread.start()
    thread.join()
    assert done[0].run.finished


def test_checkpoints_within_epochs_change_nothing(splits: Splits, tmp_path: Path, saved: list[tuple[int, int]]) -> None:
    plain = train(CONFIG, splits, str(tmp_path / "plain"))
    assert saved == [(1, 0), (2, 0)]
    saved.clear()
    often = train(CONFIG, splits, str(tmp_path / "often"), checkpoint_every=1e-9)
    each_batch = [(epoch, batch) for epoch in range(2) for batch in range(1, 21)]
    assert saved == [*each_batch[:20], (1, 0), *each_batch[20:], (2, 0)]
    assert identical(weights(plain.run), weights(often.run)) and often.run.config == plain.run.config
    assert sorted(path.name for path in (tmp_path / "often").iterdir()) == sorted(
        path.name for path in (tmp_path / "plain").iterdir()
    )


def test_checkpoints_come_after_so_many_minutes(
    splits: Splits, tmp_path: Path, saved: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(Quiet):
        """A second for each batch, and a minute between epochs."""

        now = 0.0

        def on_batch(self, epoch: int, done: int, loss: RunningLoss) -> None:
            self.now += 1

        def on_epoch(self, stats: EpochStats) -> None:
            self.now += 60

    clock = Clock()
    monkeypatch.setattr("dsh_cli.training.loop.time.perf_counter", lambda: clock.now)
    train(CONFIG, splits, str(tmp_path / "run"), listeners=[clock], checkpoint_every=8 / 60)
    assert saved == [(0, 8), (0, 16), (1, 0), (1, 1), (1, 9), (1, 17), (2, 0)]


def test_what_has_diverged_is_not_saved(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: list[tuple[int, int]]
) -> None:
    calls = []

    def spoil(relaxed: Tensor, *args: Any) -> Tensor:
        calls.append(relaxed)
        if len(calls) == 27:  # in the second epoch: the loss is sound, and the weights are not after it
            relaxed.register_hook(lambda gradient: gradient * float("inf"))  # type: ignore[no-untyped-call]
        return choice_term(relaxed, *args)

    monkeypatch.setattr("dsh_cli.training.objective.choice_term", spoil)
    run = tmp_path / "run"
    with pytest.raises(
        DshError, match=f"in epoch 2, by step 7 of 20.*; {run} stays as it was after 6 batches of epoch 2"
    ):
        train(CONFIG, splits, str(run), checkpoint_every=1e-9)
    assert saved[-1] == (1, 6)
    assert all(tensor.isfinite().all() for tensor in Run.open(run).load_state().values())


def test_a_state_of_an_older_version_has_no_steps_and_goes_on(splits: Splits, tmp_path: Path) -> None:
    whole = train(CONFIG, splits, str(tmp_path / "whole")).run
    write_state = Run.write_state

    def as_it_was(self: Run, tensors: Mapping[str, Tensor], epochs_done: int) -> None:
        write_state(self, {name: value for name, value in tensors.items() if name != "steps"}, epochs_done)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Run, "write_state", as_it_was)
        train(CONFIG, splits, str(tmp_path / "part"))
    part = Run.open(tmp_path / "part")
    assert identical(weights(whole), weights(train(part.config, splits, resume=part).run))


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan"), float("inf")])
def test_minutes_that_do_not_pass_are_refused(splits: Splits, tmp_path: Path, minutes: float) -> None:
    with pytest.raises(UsageError, match="`checkpoint_every`"):
        train(CONFIG, splits, str(tmp_path / "run"), checkpoint_every=minutes)
    assert not (tmp_path / "run").exists()


def test_the_command_takes_minutes_for_new_runs_and_for_resumed_ones(
    tmp_path: Path, saved: list[tuple[int, int]]
) -> None:
    run, options = tmp_path / "run", ["--epochs", 2, "--checkpoint-every", 1e-9]
    assert dsh_json(*DIGITS, *options, "--out", run)["epochs"] == 2
    assert (1, 7) in saved and Run.open(run).finished
    assert "checkpoint_every" not in (run / "config.json").read_text()
    with pytest.raises(Interrupted):
        train(CONFIG, load_splits(CONFIG), str(tmp_path / "part"), listeners=[Watched(stop=(2, 3))])
    saved.clear()
    assert dsh_json("train", "--resume", tmp_path / "part", "--checkpoint-every", 1e-9, "--quiet")["epochs"] == 2
    assert saved[0] == (1, 4)


@pytest.fixture(scope="module")
def part(splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped within its second epoch."""
    out = tmp_path_factory.mktemp("runs") / "part"
    with pytest.raises(Interrupted):
        train(CONFIG, splits, str(out), listeners=[Watched(stop=(2, 3))])
    return out


def generator(left: int, seeded: int = 1) -> Tensor:
    """The state of a generator with other counts."""
    return torch.cat(
        [
            torch.Generator().get_state()[:8],
            torch.tensor([left, seeded], dtype=torch.int32).view(torch.uint8),
            torch.Generator().get_state()[16:],
        ]
    )


BIAS, FILTERS = "hash_layer.bias", "backbone.groups.0.0.weight"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs_done", torch.tensor(-1)),
        ("epochs_done", torch.tensor(2)),
        ("epochs_done", torch.tensor(1.0)),
        ("steps", torch.tensor(-1)),
        ("steps", torch.tensor(41)),
        ("steps", torch.tensor(2**62)),
        ("steps", torch.zeros(2, dtype=torch.int64)),
        ("steps", torch.tensor(float("inf"))),
        ("seconds", torch.tensor(float("nan"), dtype=torch.float64)),
        ("seconds", torch.tensor(-1.0, dtype=torch.float64)),
        ("operations", torch.tensor(float("nan"), dtype=torch.float64)),
        ("operations", torch.tensor(-1.0, dtype=torch.float64)),
        ("epoch.batches", torch.tensor(0)),
        ("epoch.batches", torch.tensor(4)),
        ("epoch.batches", torch.tensor(float("inf"))),
        ("epoch.read", torch.zeros(2)),
        ("epoch.read", torch.tensor(2)),
        ("epoch.read", torch.tensor(21)),
        ("epoch.losses", None),
        ("epoch.losses", torch.zeros(1)),
        ("epoch.losses", torch.zeros(3)),
        ("epoch.losses", torch.zeros(())),
        ("epoch.losses", torch.zeros(1, 2)),
        ("epoch.losses", torch.zeros(2, dtype=torch.int64)),
        ("epoch.losses", torch.zeros(2, dtype=torch.float64)),
        ("epoch.losses", torch.full((2,), float("nan"))),
        ("epoch.seconds", torch.tensor(float("inf"), dtype=torch.float64)),
        ("epoch.waited", torch.zeros(0)),
        ("epoch.notes", torch.ones(3)),
        ("epoch.notes", torch.tensor(list(b"5"), dtype=torch.uint8)),
        ("epoch.notes", torch.tensor(list(b'{"a": 1}'), dtype=torch.uint8)),
        ("epoch.notes", torch.tensor(list(b"[" * 100_000), dtype=torch.uint8)),
        ("epoch.shuffle", None),
        ("epoch.shuffle", torch.zeros(3, dtype=torch.uint8)),
        ("epoch.shuffle", generator(left=0)),
        ("epoch.shuffle", generator(left=1, seeded=0)),
        ("epoch.random.cpu", torch.zeros(5056)),
        ("epoch.random.cpu", torch.full((5056,), 255, dtype=torch.uint8)),
        ("epoch.random.cpu", torch.zeros(632, dtype=torch.int64)),
        (f"net.{BIAS}", None),
        (f"net.{BIAS}", torch.zeros(8, dtype=torch.float64)),
        (f"net.{BIAS}", torch.zeros(9)),
        (f"net.{BIAS}", torch.full((8,), float("nan"))),
        (f"optimizer.{BIAS}.step", torch.tensor(-1.0)),
        (f"optimizer.{BIAS}.step", torch.zeros(1)),
        (f"optimizer.{BIAS}.step", torch.tensor(1)),
        (f"optimizer.{BIAS}.exp_avg", None),
        (f"optimizer.{BIAS}.exp_avg", torch.zeros(8, dtype=torch.float16)),
        (f"optimizer.{BIAS}.exp_avg", torch.zeros(1)),
        (f"optimizer.{BIAS}.exp_avg", torch.zeros(())),
        (f"optimizer.{BIAS}.exp_avg_sq", torch.zeros(8, dtype=torch.int64)),
        (f"optimizer.{BIAS}.exp_avg_sq", torch.full((8,), float("inf"))),
        (f"optimizer.{FILTERS}.momentum_buffer", torch.zeros(16, 18, 3)),
        (f"optimizer.{FILTERS}.momentum_buffer", torch.zeros(16, 18, 3, 3, dtype=torch.float64)),
        (f"optimizer.{FILTERS}.momentum_buffer", torch.full((16, 18, 3, 3), float("nan"))),
    ],
)
def test_a_state_that_no_training_saves_is_one_line(
    part: Path, splits: Splits, tmp_path: Path, name: str, value: Tensor | None
) -> None:
    run = shutil.copytree(part, tmp_path / "run")
    state = Run.open(run).load_state()
    assert name in state
    crafted = {key: tensor for key, tensor in (state | {name: value}).items() if tensor is not None}
    for file in Run.open(run).record.states(run):
        storage.write_tensors(run, file, crafted)
    reseal(run)
    with pytest.raises(RunError) as told:
        train(Run.open(run).config, splits, resume=Run.open(run))
    line = str(told.value)
    assert "damaged" in line, line
    assert f"dsh train --like {run}" in line and "\n" not in line


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "sgd"])
def test_what_optimizers_keep_comes_back_bit_for_bit(tmp_path: Path, splits: Splits, optimizer: Any) -> None:
    config = replace(CONFIG, optimizer=optimizer, backbone="small-resnet", lr=1e-3)
    with pytest.raises(Interrupted):
        train(config, splits, str(tmp_path / "run"), listeners=[Watched(stop=(1, 3))])
    run = Run.open(tmp_path / "run")
    state, net = run.load_state(), HashNet(run.model)
    optimizers = make_optimizers(net, run.config)
    standing = restore(run, net, optimizers, 20, 2)
    again = state_of(net, optimizers, standing)
    assert again.keys() == state.keys() and all(torch.equal(again[name], state[name]) for name in state)
    of_optimizers = {name for name in state if name.startswith("optimizer.")}
    learning = [name for name, parameter in net.named_parameters() if parameter.requires_grad]
    assert len(of_optimizers) >= len(learning)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU")
@pytest.mark.parametrize("value", [torch.zeros(3, dtype=torch.uint8), torch.zeros(16), torch.ones(16).byte()])
def test_a_state_of_a_gpus_generator_that_is_none_is_refused(value: Tensor) -> None:
    random, device = torch.Generator().get_state(), torch.device("cuda")
    kinds = {"cpu": random, "cuda": torch.Generator("cuda").get_state()}
    state = Part(1, 1, torch.zeros(2), 1.0, 0.0, ("note",), random, kinds).tensors()
    assert Part.of(state, 1, 2, device).notes == ("note",)
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        Part.of(state | {"epoch.random.cuda": value}, 1, 2, device)
