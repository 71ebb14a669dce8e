"""What TensorBoard's own readers find of a training: events, images, and the files of the projector."""

import io
import json
import random
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dsh_cli import TrainConfig, load_splits, train
from dsh_cli.analysis.classes import HardestPairs, Pair, hardest_pairs
from dsh_cli.codes.bits import pack
from dsh_cli.codes.sets import CodeSet
from dsh_cli.data.splits import Splits
from dsh_cli.errors import Interrupted
from dsh_cli.runs.run import Run
from dsh_cli.show.projector import sprite, write_projector
from dsh_cli.show.tensorboard import TensorBoard, pair_panel, pairs_markdown
from dsh_cli.training.events import EpochStats, Plan, Quiet, RunningLoss, TrainResult
from tests.support.projector import Projector
from tests.support.runs import LOSS
from tests.support.values import there

CONFIG = TrainConfig(data="digits", epochs=2, batch_size=64, device="cpu")
PAIR_TAGS = ["validation/hardest_same_class", "validation/hardest_different_class"]


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load_splits(CONFIG)


@pytest.fixture(scope="module")
def run(splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two epochs of digits, watched."""
    return train(CONFIG, splits, str(tmp_path_factory.mktemp("runs") / "run"), listeners=[TensorBoard()]).run


def events_of(folder: Path) -> Any:
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    return events


def picture(event: Any) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))


def text(events: Any, tag: str) -> str:
    return str(events.Tensors(f"{tag}/text_summary")[-1].tensor_proto.string_val[0], "utf-8")


def codes_of(
    labels: ArrayLike,
    shape: tuple[int, int, int] = (8, 8, 1),
    bits: int = 8,
    classes: tuple[str, ...] | None = None,
    seed: int = 0,
    **changes: Any,
) -> CodeSet:
    """Random codes and thumbnails of pictures with these labels."""
    rng = np.random.default_rng(seed)
    labels = np.asarray(labels, np.int64)
    relaxed = rng.normal(size=(len(labels), bits)).astype(np.float16)
    thumbnails = rng.integers(1, 255, (len(labels), *shape), np.uint8)
    classes = classes or tuple(f"class {i}" for i in range(labels.max(initial=0) + 1))
    names = tuple(f"{i}.png" for i in range(len(labels)))
    return replace(CodeSet(bits, pack(relaxed >= 0), labels, classes, names, relaxed, thumbnails), **changes)


def watch(codes: CodeSet, folder: Path, epochs: int = 1) -> Any:
    """The events of a listener that is told of these validation codes."""
    listener = TensorBoard()
    config = SimpleNamespace(alpha=0.01, seed=0, epochs=epochs)
    run = cast(Run, SimpleNamespace(path=folder, config=config))  # all that the listener asks of it
    listener.on_start(Plan(run, "cpu", 10, 64, 0))
    for epoch in range(1, epochs + 1):
        listener.on_epoch(EpochStats(epoch, LOSS, 100.0, codes, 0.5))
    listener.close()
    return events_of(folder / "tensorboard")


# Events


def test_tensorboards_own_reader_finds_everything(run: Run) -> None:
    events = events_of(run.path / "tensorboard")
    tags = events.Tags()
    assert {"loss/total", "loss/choice", "validation/map", "test/map"} <= set(tags["scalars"])
    assert "validation/relaxed_outputs" in tags["histograms"]
    assert sorted(tags["images"]) == sorted(PAIR_TAGS)
    total, choice = (events.Scalars(f"loss/{name}") for name in ("total", "choice"))
    assert [event.step for event in total] == [1, 2]
    assert total[-1].value == pytest.approx(choice[-1].value, rel=1e-4)
    assert "| class | code |" in text(events, "validation/class_table")
    assert text(events, "validation/class_table").count("\n| ") >= 10
    for tag in PAIR_TAGS:
        assert [event.step for event in events.Images(tag)] == [1, 2]


def test_the_hardest_pairs_shown_are_those_of_the_saved_codes(run: Run) -> None:
    validation = replace(run.codes("validation", "relaxed", "thumbnails"), names=run.names()["validation"])
    pairs = hardest_pairs(validation, 8)
    events = events_of(run.path / "tensorboard")
    for tag, of_kind in zip(PAIR_TAGS, (pairs.same, pairs.different), strict=True):
        assert len(of_kind) == 8
        shown = picture(events.Images(tag)[-1])
        for row, pair in enumerate(of_kind):
            top = 8 + row * (96 + 8)
            for place, index in enumerate((pair.first, pair.second)):
                left = 8 + place * (96 + 8)
                enlarged = shown[top : top + 96, left : left + 96]
                assert (enlarged[6::12, 6::12] == there(validation.thumbnails)[index]).all()  # 8 pixels, 12 times over
            assert validation.names[pair.first] in text(events, "validation/hardest_pairs")
        assert (shown[:, 216:] < 128).any()  # the caption


@pytest.fixture
def small_sprites(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 pictures of 8 x 8 fill a sprite."""
    monkeypatch.setattr("dsh_cli.show.projector._SPRITE_SIDE", 64)


def test_the_listener_leaves_every_random_state_alone(small_sprites: None, tmp_path: Path) -> None:
    before = torch.random.get_rng_state(), np.random.get_state(legacy=False), random.getstate()
    codes = codes_of(np.arange(1500) % 10)  # so many that a sample is drawn
    watch(codes, tmp_path)
    write_projector(tmp_path / "projector", codes, 1, 0)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert str(np.random.get_state(legacy=False)) == str(before[1]) and random.getstate() == before[2]


def test_one_epoch_seen_twice_looks_the_same(tmp_path: Path) -> None:
    codes = codes_of(np.arange(1500) % 10, bits=12)
    one, two = (watch(codes, tmp_path / name) for name in ("one", "two"))
    for tag in PAIR_TAGS:
        assert one.Images(tag)[0].encoded_image_string == two.Images(tag)[0].encoded_image_string
    assert "among 1,000 validation pictures" in text(one, "validation/hardest_pairs")
    assert text(one, "validation/hardest_pairs") == text(two, "validation/hardest_pairs")


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ([], []),
        ([0], []),
        ([0, 0], PAIR_TAGS[:1]),
        ([0, 1, 2], PAIR_TAGS[1:]),  # classes of one picture
        ([0, 0, 1], PAIR_TAGS),
    ],
)
def test_few_validation_pictures_show_what_there_is(labels: list[int], found: list[str], tmp_path: Path) -> None:
    tags = watch(codes_of(labels), tmp_path).Tags()
    assert sorted(tags["images"]) == sorted(found)
    assert "loss/total" in tags["scalars"]


def test_outputs_past_float16_do_not_stop_a_training(tmp_path: Path) -> None:
    codes = codes_of([0, 0, 1, 1])
    there(codes.relaxed)[0] = np.inf
    there(codes.relaxed)[1, 0] = np.nan
    assert sorted(watch(codes, tmp_path).Tags()["images"]) == sorted(PAIR_TAGS)
    write_projector(tmp_path / "projector", codes, 1, 0)
    assert np.isfinite(Projector(tmp_path / "projector").read(".")[0]).all()


# The hardest pairs' picture and text


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 48, 3), (48, 5, 3), (96, 96, 3), (200, 100, 1)])
def test_a_panel_enlarges_by_a_whole_factor_and_keeps_the_colours(shape: tuple[int, int, int]) -> None:
    codes = codes_of([0, 0, 1], shape)
    panel = pair_panel(codes, [Pair(0, 2, 1.5), Pair(0, 1, 0.25)])
    factor = max(1, 96 // max(shape[:2]))
    height, width = shape[0] * factor, shape[1] * factor
    for place, index in enumerate((0, 2)):
        left = 8 + place * (width + 8)
        expected = there(codes.thumbnails)[index].repeat(factor, 0).repeat(factor, 1)
        assert (panel[8 : 8 + height, left : left + width] == expected).all()
    assert panel.shape[0] >= 2 * height


def test_names_of_any_kind_can_be_captions_and_cells() -> None:
    from tensorboard.plugin_util import markdown_to_safe_html

    classes = ("a|b\tc\n*d*", "梨 <b>\udcff" + "x" * 500)
    codes = codes_of([0, 1], classes=classes, names=("under_score_d.png", "[x](y)`z`.png"))
    panel = pair_panel(codes, [Pair(0, 1, 1.0)])
    assert panel.shape[1] < 900
    accents, plain = (replace(codes, classes=names) for names in (("Émeu", "梨"), ("Emeu", "?")))
    assert (pair_panel(accents, [Pair(0, 1, 1.0)]) == pair_panel(plain, [Pair(0, 1, 1.0)])).all()
    shown = markdown_to_safe_html(pairs_markdown(codes, HardestPairs((), (Pair(0, 1, 1.0),))))
    cells = re.findall(r"<td>(.*?)</td>", shown)
    assert cells[:2] == ["1", "a|b c *d*"]
    assert cells[2] == "under_score_d.png"
    assert cells[3].startswith("梨 &lt;b&gt;?xxx") and cells[4] == "[x](y)`z`.png" and cells[5] == "1.00"
    obeyed = replace(codes, classes=("\x1b[31m", "\u202e"), names=("\x9b", "\x07\ttab"))
    told = pairs_markdown(obeyed, HardestPairs((), (Pair(0, 1, 1.0),)))
    assert told.replace("\n", "").isprintable() and r"\\u202e | \\x07 tab" in told


# The projector


def test_the_projector_gets_the_validation_pictures_of_the_run(run: Run) -> None:
    projector = Projector(run.path)
    assert projector.get("runs").json == ["tensorboard/projector"]
    tensor, header, rows, atlas, dim = projector.read("tensorboard/projector")
    validation = run.codes("validation", "relaxed", "thumbnails")
    assert (tensor == there(validation.relaxed).astype(np.float32)).all()
    assert header == ["label", "code", "name"]
    names = run.names()["validation"]
    labels = [run.classes[i] for i in validation.labels]
    assert rows == [[c, f"#{x}", n] for c, x, n in zip(labels, validation.hex, names, strict=True)]
    assert dim == [8, 8]
    across = atlas.shape[1] // 8
    for i, thumbnail in enumerate(there(validation.thumbnails)):
        y, x = i // across * 8, i % across * 8  # as the projector finds a point's picture
        assert (atlas[y : y + 8, x : x + 8] == thumbnail).all()


def test_a_tensorboard_that_is_running_sees_the_projector_when_the_training_ends(
    splits: Splits, tmp_path: Path
) -> None:
    seen = []

    class Look(Quiet):
        def on_epoch(self, stats: EpochStats) -> None:
            self.projector = Projector(tmp_path)
            seen.append(self.projector.get("runs").json)

        def on_end(self, result: TrainResult) -> None:
            self.projector.look_again()
            seen.append(self.projector.get("runs").json)

    train(replace(CONFIG, epochs=1), splits, str(tmp_path / "run"), listeners=[TensorBoard(), Look()])
    assert seen == [[], ["run/tensorboard/projector"]]


def test_a_resumed_run_has_each_epoch_once_and_the_projector(splits: Splits, tmp_path: Path) -> None:
    class Stop(Quiet):
        def on_batch(self, epoch: int, done: int, loss: RunningLoss) -> None:
            if epoch == 2:
                raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        train(CONFIG, splits, str(tmp_path / "run"), listeners=[TensorBoard(), Stop()])
    assert not (tmp_path / "run" / "tensorboard" / "projector").exists()
    part = Run.open(tmp_path / "run")
    resumed = train(part.config, splits, resume=part, listeners=[TensorBoard()]).run
    events = events_of(tmp_path / "run" / "tensorboard")
    for tag in PAIR_TAGS:
        assert [event.step for event in events.Images(tag)] == [1, 2]
    tensor = Projector(tmp_path).read("run/tensorboard/projector")[0]
    assert (tensor == there(resumed.codes("validation", "relaxed").relaxed).astype(np.float32)).all()


def test_a_run_without_validation_pictures_has_no_projector(splits: Splits, tmp_path: Path) -> None:
    none = splits.validation.take(np.zeros(len(splits.validation), bool))
    run = train(
        replace(CONFIG, epochs=1), replace(splits, validation=none), str(tmp_path / "run"), listeners=[TensorBoard()]
    ).run
    assert not (run.path / "tensorboard" / "projector").exists()
    assert events_of(run.path / "tensorboard").Scalars("test/map")[0].value == pytest.approx(run.metrics["map"])
    assert Projector(tmp_path).get("runs").json == []


def test_names_cannot_break_the_table_of_the_projector(tmp_path: Path) -> None:
    classes = ("tab\there", "line\nend\r\n", "\u2028 梨 \x85", "\udcff")
    codes = codes_of([0, 1, 2, 3], classes=classes, names=("a\tb", "c\nd", "e\udcff", ""))
    write_projector(tmp_path, codes, 1, 0)
    _, _, rows, _, _ = Projector(tmp_path).read(".")
    assert [row[0] for row in rows] == ["tab here", "line end", "梨", "?"]
    assert [row[2] for row in rows] == ["a b", "c d", "e?", ""]


@pytest.mark.parametrize("bits", [1, 8, 12, 1024])
def test_codes_of_any_length_come_back_as_they_were(bits: int, tmp_path: Path) -> None:
    codes = codes_of(np.arange(20) % 3, bits=bits)
    write_projector(tmp_path, codes, 1, 0)
    tensor, _, rows, _, _ = Projector(tmp_path).read(".")
    assert (tensor == there(codes.relaxed).astype(np.float32)).all()
    assert [row[1] for row in rows] == [f"#{code}" for code in codes.hex]


@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 8, 3), (30, 48, 3), (48, 7, 1)])
@pytest.mark.parametrize("count", [1, 2, 5, 9, 10])
def test_a_sprite_is_a_square_of_squares(count: int, shape: tuple[int, int, int]) -> None:
    thumbnails = there(codes_of(np.zeros(count), shape).thumbnails)
    atlas, side = sprite(thumbnails), max(shape[:2])
    across = atlas.shape[1] // side
    assert atlas.shape == (across * side, across * side, 3)
    assert (across - 1) ** 2 < count <= across**2
    top, left = (side - shape[0]) // 2, (side - shape[1]) // 2
    for i, thumbnail in enumerate(thumbnails):
        y, x = i // across * side + top, i % across * side + left
        assert (atlas[y : y + shape[0], x : x + shape[1]] == thumbnail).all()
    assert np.count_nonzero(atlas) == count * shape[0] * shape[1] * 3  # black everywhere else


def test_of_more_pictures_than_a_sprite_holds_each_class_keeps_its_share(small_sprites: None, tmp_path: Path) -> None:
    labels = np.repeat([0, 1, 2], [200, 90, 10])
    codes = codes_of(labels)
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        write_projector(tmp_path / name, codes, 1, seed)
    tensor, _, rows, atlas, _ = Projector(tmp_path / "one").read(".")
    assert atlas.shape == (64, 64, 3) and tensor.shape == (64, 8)
    counts = [sum(row[0] == f"class {i}" for row in rows) for i in range(3)]
    assert sum(counts) == 64 and np.abs(counts - 64 * np.array([200, 90, 10]) / 300).max() <= 1
    for row, outputs in zip(rows, tensor, strict=True):
        i = int(Path(row[2]).stem)
        assert row[1] == f"#{codes.hex[i]}" and (outputs == there(codes.relaxed)[i].astype(np.float32)).all()
    assert "64 of 300, a sample" in text(events_of(tmp_path / "one"), "projector/shown")
    one, same, other = ((tmp_path / name / "metadata.tsv").read_bytes() for name in ("one", "same", "other"))
    assert one == same != other


def test_the_projector_is_written_without_a_word(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # the second time over the first
        write_projector(tmp_path, codes_of([0, 1]), 1, 0)
    assert capfd.readouterr() == ("", "")
    assert json.loads(Projector(tmp_path).get("runs").text) == ["."]
