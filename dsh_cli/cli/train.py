"""`dsh train`."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsh_cli.cli.shared import Format, Json, Quiet, app, complain, default_note, form_of, notice, option, show, status
from dsh_cli.config import (
    DATASETS,
    MAX_BITS,
    Augment,
    Centers,
    Device,
    Fit,
    Interpolation,
    Method,
    Optimizer,
    ProtocolName,
    Schedule,
    TrainConfig,
)
from dsh_cli.errors import DshError
from dsh_cli.show.console import Console

if TYPE_CHECKING:
    from dsh_cli.data.splits import Splits
    from dsh_cli.training.events import Listener

_DEFAULT = TrainConfig()
_LEFT_OUT = 4  # lines of what is left out of the data


@app.command(
    epilog="Example: [bold]dsh train --bits 8[/] trains on MNIST; "
    "[bold]dsh train photos/ --bits 48[/] on a folder with a folder per class"
)
def train(
    ctx: typer.Context,
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA",
            help="mnist, fashion-mnist, cifar10, digits (no download), a folder with a folder per class, a CSV of "
            "path,label, or vectors: a .parquet or .npz file of vector, path, label." + default_note(_DEFAULT.data),
            show_default=False,
        ),
    ] = None,
    bits: Annotated[int | None, option(f"Length of the code, 1 to {MAX_BITS}.", _DEFAULT.bits, "--bits", "-b")] = None,
    method: Annotated[
        Method | None,
        option(
            "How codes are learned. dsh: from classes, by a network; without classes from features alone, and without "
            "epochs: itq, pca, rotation (PCA, turned to fit its signs, as it is, or at random).",
            _DEFAULT.method,
        ),
    ] = None,
    out: Annotated[
        str | None,
        option("Run folder to make.", "below runs/, named by data, bits and time", "--out", "-o", metavar="RUN"),
    ] = None,
    epochs: Annotated[
        int | None,
        option("Times to see every picture.", "2 of grey pictures, 8 of colour, 10 of features; more of small sets"),
    ] = None,
    batch_size: Annotated[
        int | None,
        option("Pictures a batch.", "500, 250 of colour, fewer of small sets; 200 without hash centers or with AdamW"),
    ] = None,
    seed: Annotated[int | None, option("Of splits, weights, batches, augmentation.", _DEFAULT.seed)] = None,
    protocol: Annotated[
        ProtocolName | None,
        option(
            "How pictures are split, and the run is measured: test-vs-train; paper: test pictures in themselves; "
            "cifar10, cifar10-1: 1,000 queries, 5,000 to train on, database the rest, or the rest and those 5,000; "
            "cifar10-2: test pictures in all training pictures.",
            _DEFAULT.protocol,
            "--protocol",
            metavar="PROTOCOL",
        ),
    ] = None,
    hold_out_classes: Annotated[
        int | None,
        option("Classes to keep from training, drawn by the seed; see dsh evaluate --classes.", "0", metavar="N"),
    ] = None,
    like: Annotated[
        str | None, typer.Option(metavar="RUN", help="Take the recipe of another run; other options change it.")
    ] = None,
    resume: Annotated[str | None, typer.Option(metavar="RUN", help="Go on with an unfinished run.")] = None,
    checkpoint_every: Annotated[
        float | None,
        option(
            "Save within epochs too, so that --resume goes on at the same batch; give it there again.",
            "at the end of each epoch",
            metavar="MINUTES",
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        option(
            "airbench, resnet9, small-resnet (sooner, less precise), dsh-cnn (the paper's network), pixels, a "
            "classification model of torchvision such as resnet18, or timm:NAME; auto: one for photographs whose "
            "weights are on this machine, frozen, else airbench.",
            f"{_DEFAULT.backbone}; pixels for itq, pca and rotation",
            metavar="NAME",
            panel="Recipe",
        ),
    ] = None,
    pretrained: Annotated[
        bool | None,
        option(
            "Start from the weights that torchvision or timm has, with their normalisation and picture size.",
            "off",
            "--pretrained/--no-pretrained",
            panel="Recipe",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        option(
            "Start from a safetensors file, a state dict of PyTorch, or a run, for the same backbone. A run brings its "
            "normalisation; with others a model of torchvision or timm gets that of theirs.",
            "random weights",
            metavar="FILE",
            panel="Recipe",
        ),
    ] = None,
    freeze: Annotated[
        bool | None,
        option("Train the hash layer alone.", "off", "--freeze/--no-freeze", panel="Recipe"),
    ] = None,
    hidden: Annotated[
        int | None,
        option(
            "Units of a layer between features and hash layer; 0: none.",
            "512 where the features stay as they are, else 0",
            metavar="UNITS",
            panel="Recipe",
        ),
    ] = None,
    dropout: Annotated[
        float | None,
        option(
            "Share of the features left out in training, each time by lot.",
            "0.2 where they stay as they are, else 0",
            panel="Recipe",
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        option(
            "Side of the pictures in pixels.", "of pretrained weights, else native up to 64, else 128", panel="Recipe"
        ),
    ] = None,
    fit: Annotated[
        Fit | None,
        option(
            "How a picture becomes square: crop takes its middle, pad all of it with white beside it, stretch all of "
            "it.",
            "as pretrained weights expect, else crop",
            panel="Recipe",
        ),
    ] = None,
    interpolation: Annotated[
        Interpolation | None,
        option("Where a picture is resized.", "as pretrained weights expect, else bilinear", panel="Recipe"),
    ] = None,
    augment: Annotated[
        Augment | None,
        option(
            "Random variation: digits shifts; photos shifts, mirrors and varies colours; none.",
            "what fits the set",
            panel="Recipe",
            metavar="HOW",
        ),
    ] = None,
    grow: Annotated[
        bool | None,
        option(
            "Show pictures at three quarters of their side for the first half of the epochs: sooner.",
            "with airbench, from 24 pixels on",
            "--grow/--no-grow",
            panel="Recipe",
        ),
    ] = None,
    mirror: Annotated[
        bool | None,
        option(
            "Make codes of a picture and its mirror image together: better, for twice the time.",
            "where the variation mirrors",
            "--mirror/--no-mirror",
            panel="Recipe",
        ),
    ] = None,
    centers: Annotated[
        Centers | None,
        option(
            "Give classes codes that are far apart, which their pictures learn to choose; none: the paper's loss over "
            "pairs.",
            "auto",
            panel="Recipe",
        ),
    ] = None,
    smoothing: Annotated[
        float | None,
        option(
            "Share of other centers, the nearer the more, in the choice of one.", _DEFAULT.smoothing, panel="Recipe"
        ),
    ] = None,
    margin: Annotated[
        float | None,
        option(
            "Squared distance from which classes no longer push apart, in the paper's loss; goes without centers.",
            "2 x bits",
            panel="Recipe",
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        option("Weight of the quantization term in the paper's loss; goes without centers.", "0.01", panel="Recipe"),
    ] = None,
    lr: Annotated[
        float | None,
        option(
            "Peak learning rate.",
            "0.12 of Muon, by the root of the batch less; 0.006 of the others, 0.003 on features",
            panel="Recipe",
        ),
    ] = None,
    weight_decay: Annotated[float | None, option("Weight decay.", "0.005, 0.1 on features", panel="Recipe")] = None,
    per_class: Annotated[
        int | None,
        option(
            "Pictures of a class that come together in a batch; 0 shuffles freely.",
            "4 where classes are many, without centers",
            panel="Recipe",
        ),
    ] = None,
    clip: Annotated[
        float | None, option("Largest norm of the gradient.", "no limit", metavar="NORM", panel="Recipe")
    ] = None,
    optimizer: Annotated[
        Optimizer | None,
        option(
            "Optimizer; Muon (Jordan et al., 2024) is for convolutions with BatchNorm after each.",
            "muon with airbench, else adamw",
            panel="Recipe",
        ),
    ] = None,
    schedule: Annotated[
        Schedule | None,
        option(
            "Course of the learning rate: linear, which ends at 0, one-cycle, step or constant.",
            "linear with muon, else one-cycle",
            panel="Recipe",
            metavar="COURSE",
        ),
    ] = None,
    data_root: Annotated[
        str | None,
        option(
            "Where named sets lie, or are downloaded to.",
            "$DSH_DATA, else the cache folder",
            metavar="FOLDER",
            panel="Machine",
        ),
    ] = None,
    device: Annotated[Device | None, option("Where to compute.", _DEFAULT.device, panel="Machine")] = None,
    workers: Annotated[int | None, option("Threads that decode pictures.", "one a processor", panel="Machine")] = None,
    threads: Annotated[
        int | None,
        option("Threads that compute.", "as many processors as other programs leave free", panel="Machine"),
    ] = None,
    memory: Annotated[
        float | None,
        option(
            "GiB of decoded pictures to hold; a larger set stays in its files.", f"{_DEFAULT.memory:g}", panel="Machine"
        ),
    ] = None,
    cache: Annotated[
        str | None,
        option(
            "Folder to keep resized pictures in, so that none is decoded twice; or off.",
            "the user's cache, for a set larger than --memory",
            metavar="FOLDER",
            panel="Machine",
        ),
    ] = None,
    amp: Annotated[
        bool | None,
        option(
            "Train in bfloat16 where it is safe: sooner on GPUs since Ampere, and on CPUs with AMX.",
            "on these; on a CPU for networks without depthwise convolutions",
            "--amp/--no-amp",
            panel="Machine",
        ),
    ] = None,
    compile: Annotated[
        bool | None,
        option(
            "Train with torch.compile; takes a minute to start, and a C++ compiler.",
            "off",
            "--compile/--no-compile",
            panel="Machine",
        ),
    ] = None,
    tensorboard: Annotated[
        bool | None,
        option("Write event files into the run.", "on", "--tensorboard/--no-tensorboard", panel="Machine"),
    ] = None,
    form: Format = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a network whose outputs are codes, and save the run."""
    form = form_of(form, as_json)

    from dsh_cli.show.views.train import trained
    from dsh_cli.training.processes import joined
    from dsh_cli.training.recipe import Request

    with joined() as processes:
        config, unfinished = processes.by_first(Request(_given(ctx.params), out, like, resume, checkpoint_every).opened)
        processes.by_first(lambda: _require_possible(config, out, resume))

        from dsh_cli.training import loop

        if config.data in DATASETS:  # which may have to be downloaded
            splits = processes.after_first(lambda: _read_data(config, quiet, new=unfinished is None))
        else:
            splits = _read_data(config, quiet, new=unfinished is None)
        listeners = _listeners(config, splits, quiet) if processes.is_first else []
        result = loop.train(config, splits, out, unfinished, listeners, checkpoint_every)
    if not processes.is_first:
        return
    try:
        show(trained(result), form)
    except DshError as error:
        raise DshError(f"{error}; {result.run.path} is finished: dsh info {result.run.path}") from error


def _given(params: dict[str, Any]) -> dict[str, Any]:
    """The options that are fields of the config, where they were given."""
    return {field.name: value for field in fields(TrainConfig) if (value := params[field.name]) is not None}


def _require_possible(config: TrainConfig, out: str | None, resume: str | None) -> None:
    """Refuse a place, a device or a network that is not to be had, before the data is read."""
    if config.tensorboard:
        from dsh_cli.show.projector import require_utf8

        require_utf8(out or resume or "", "add `tensorboard=False`")

    from dsh_cli.network.device import choose_device
    from dsh_cli.network.presets import check_backbone
    from dsh_cli.runs.folders import require_free

    require_free(out)
    choose_device(config.device)
    check_backbone(config.backbone)


def _read_data(config: TrainConfig, quiet: bool, new: bool) -> Splits:
    from dsh_cli.data.splits import load_splits
    from dsh_cli.show.views.train import advice, data_lines

    with status(quiet, "reading pictures") as progress:
        splits = load_splits(config, progress)
    for line in data_lines(config, splits) + (advice(config, splits) if new else []):
        notice(line, quiet)
    for line in splits.left_out.lines(_LEFT_OUT):
        complain(line, "warning")
    return splits


def _listeners(config: TrainConfig, splits: Splits, quiet: bool) -> list[Listener]:
    from dsh_cli.show import alarm, estimate, progress, tensorboard

    console = Console(stderr=True)

    def warn(text: str) -> None:
        complain(text, "warning", console)

    def say(text: str) -> None:
        notice(text, quiet, console)

    chosen: list[Listener] = []  # in this order: an epoch, and then what is to be said of it
    if not quiet:
        chosen += [
            progress.ProgressBar(console) if console.is_terminal else progress.Lines(say),
            estimate.Estimate(say),
        ]
    chosen += [progress.Notes(warn), alarm.CollapseAlarm(warn, splits)]
    if config.tensorboard:
        chosen.append(tensorboard.TensorBoard())
    return chosen
