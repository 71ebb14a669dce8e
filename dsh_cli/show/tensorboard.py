"""What TensorBoard shows of a training: curves, the class table, the hardest pairs."""

from __future__ import annotations

import html
import math
import re
import threading
import unicodedata
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dsh_cli.analysis.classes import HardestPairs, Pair, class_table, hardest_pairs
from dsh_cli.codes.bits import unpack
from dsh_cli.codes.sets import CodeSet, sample, taken
from dsh_cli.files import UNLINK, require_no_links, saving
from dsh_cli.show.projector import NO_EVENTS, class_of, one_line, write_projector
from dsh_cli.training.events import EpochStats, Plan, Quiet, TrainResult

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


_PAIRS = 8  # hardest pairs shown of each kind
_COMPARED = 1000  # pictures among which they are sought: half a million pairs
_PANEL_SIDE = 96  # pixels up to which a picture of a pair is enlarged
_GAP = 8  # pixels between the pictures
_FONT = 16  # pixels
_CAPTION = 32  # characters of a class name in a caption


class TensorBoard(Quiet):
    """Loss, outputs, validation mAP, class table and hardest pairs as event files in the run; codes for the projector.

    The projector gets the codes at the end of the training, under `tensorboard/projector`, as a run of its own:
    TensorBoard reads a projector's configuration when a run appears, keeps the codes it has read, and so would
    show those of an early epoch beside the labels of a later one.
    """

    def __init__(self) -> None:
        self.writer: SummaryWriter | None = None

    def on_start(self, plan: Plan) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.seed = plan.run.config.seed
        self.folder = Path(plan.run.path, "tensorboard")
        require_no_links(self.folder, plan.run.path, UNLINK)
        self.hook_before, threading.excepthook = threading.excepthook, self._hook
        with self._saving():
            self.writer = SummaryWriter(str(self.folder), purge_step=plan.first_epoch + 1 if plan.first_epoch else None)

    def on_epoch(self, stats: EpochStats) -> None:
        with self._saving():
            self._add(stats)

    def _add(self, stats: EpochStats) -> None:
        assert self.writer is not None
        loss = stats.loss
        weighted = {name: weight * loss.terms[name] for name, weight in loss.weights.items() if weight is not None}
        scalars = {
            "loss/total": loss.total,
            **{f"loss/{name}": value for name, value in loss.terms.items()},
            **{f"loss/{name}_weighted": value for name, value in weighted.items()},
            "speed/images_per_second": stats.images_per_second,
            "speed/waited": stats.waited,
        }
        if stats.validation_map is not None:
            scalars["validation/map"] = stats.validation_map
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, stats.epoch)
        if len(stats.validation):
            assert stats.validation.relaxed is not None
            relaxed = np.nan_to_num(stats.validation.relaxed)  # outputs past float16 are infinite, and have no bin
            self.writer.add_histogram("validation/relaxed_outputs", relaxed, stats.epoch)
            balance = unpack(stats.validation.packed, stats.validation.bits).mean(axis=0)
            self.writer.add_histogram("validation/bit_balance", balance, stats.epoch)
            self.writer.add_text("validation/class_table", class_table_markdown(stats), stats.epoch)
            self._show_pairs(self.writer, stats)

    def _show_pairs(self, writer: SummaryWriter, stats: EpochStats) -> None:
        compared = taken(stats.validation, sample(stats.validation.labels, _COMPARED, self.seed))
        pairs = hardest_pairs(compared, _PAIRS)
        kinds = {"hardest_same_class": pairs.same, "hardest_different_class": pairs.different}
        for name, of_kind in kinds.items():
            if of_kind:
                panel = pair_panel(compared, of_kind)
                writer.add_image(f"validation/{name}", panel, stats.epoch, dataformats="HWC")
        writer.add_text("validation/hardest_pairs", pairs_markdown(compared, pairs), stats.epoch)

    def on_end(self, result: TrainResult) -> None:
        assert self.writer is not None
        run = result.run
        validation = replace(run.codes("validation", "relaxed", "thumbnails"), names=run.names()["validation"])
        with self._saving():
            if result.map is not None:
                self.writer.add_scalar("test/map", result.map, run.config.epochs)
            if len(validation):
                require_no_links(self.folder / "projector", run.path, UNLINK)
                write_projector(self.folder / "projector", validation, run.config.epochs, self.seed)

    def close(self) -> None:
        if self.writer is not None:
            try:
                with self._saving():
                    self.writer.close()
            finally:
                threading.excepthook = self.hook_before

    def _hook(self, failure: threading.ExceptHookArgs) -> None:
        """TensorBoard's thread would print a traceback of an error that `saving` is given as well."""
        ours = type(failure.thread).__module__.startswith("tensorboard.")
        if not (ours and isinstance(failure.exc_value, OSError)):
            self.hook_before(failure)

    def _saving(self) -> AbstractContextManager[None]:
        return saving(self.folder, NO_EVENTS)


def class_table_markdown(stats: EpochStats) -> str:
    """The class table of the validation pictures as TensorBoard shows text."""
    table = class_table(stats.validation, "validation")
    lines = ["| class | code | binary | exact |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {_cell(row.label)} | {row.code} | {row.binary} | {row.exact:.1%} |"
        for row in table.classes
        if row.code is not None
    ]
    return "\n".join([*lines, "", f"smallest class distance: {table.min_class_distance}"])


def pairs_markdown(codes: CodeSet, pairs: HardestPairs) -> str:
    """The hardest pairs, by class and picture, as TensorBoard shows text."""
    parts = []
    kinds = {"one class, farthest apart": pairs.same, "different classes, closest": pairs.different}
    for title, of_kind in kinds.items():
        if not of_kind:
            continue
        parts += [f"**{title}**", "", "| | class | picture | class | picture | squared distance |", "|" + " --- |" * 6]
        for number, pair in enumerate(of_kind, 1):
            sides = (f"{_cell(class_of(codes, i))} | {_cell(codes.names[i])}" for i in (pair.first, pair.second))
            parts.append(f"| {number} | {' | '.join(sides)} | {pair.distance:.2f} |")
        parts.append("")
    return "\n".join([*parts, f"among {len(codes):,} validation pictures, by relaxed codes; a picture is shown once"])


def pair_panel(codes: CodeSet, pairs: Sequence[Pair]) -> NDArray[np.uint8]:
    """(H, W, 3) picture of pairs, a row each: the two, enlarged by a whole factor, their classes and distance."""
    assert codes.thumbnails is not None
    pictures = codes.thumbnails if codes.thumbnails.shape[3] == 3 else codes.thumbnails.repeat(3, axis=3)
    factor = max(1, _PANEL_SIDE // max(pictures.shape[1:3]))
    height, width = (side * factor for side in pictures.shape[1:3])
    font = ImageFont.load_default(_FONT)
    captions = [
        f"{number}. {_caption(class_of(codes, pair.first))}\n    and {_caption(class_of(codes, pair.second))}\n"
        f"    squared distance {pair.distance:.2f}"
        for number, pair in enumerate(pairs, 1)
    ]
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    boxes = [measure.multiline_textbbox((0, 0), caption, font) for caption in captions]
    row = max(height, math.ceil(max(box[3] for box in boxes))) + _GAP
    left = 2 * (width + _GAP) + _GAP
    size = (left + math.ceil(max(box[2] for box in boxes)) + _GAP, row * len(pairs) + _GAP)
    panel = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(panel)
    for number, (pair, caption) in enumerate(zip(pairs, captions, strict=True)):
        top = _GAP + number * row
        for place, index in enumerate((pair.first, pair.second)):
            enlarged = pictures[index].repeat(factor, axis=0).repeat(factor, axis=1)
            panel.paste(Image.fromarray(enlarged), (_GAP + place * (width + _GAP), top))
        draw.multiline_text((left, top), caption, "black", font)
    return np.asarray(panel)


def _cell(text: str) -> str:
    """A name as it stands in a Markdown table."""
    return re.sub(r"([\\`*_|\[\]])", r"\\\1", html.escape(one_line(text), quote=False))


def _caption(text: str) -> str:
    """A name in the letters of Pillow's default font, which are those of ASCII, and not too long."""
    base = "".join(c for c in unicodedata.normalize("NFKD", one_line(text)) if not unicodedata.combining(c))
    line = base.encode("ascii", "replace").decode("ascii")
    return line if len(line) <= _CAPTION else line[: _CAPTION - 3] + "..."
