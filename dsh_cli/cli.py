"""The command line: parse, call one core function, show."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from typer.core import TyperGroup

from dsh_cli.config import DATASETS, MAX_BITS, Augment, Device, Optimizer, Schedule, TrainConfig
from dsh_cli.errors import DISK_FULL, DshError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from dsh_cli.checkpoint import Run
    from dsh_cli.data import Splits
    from dsh_cli.training import Listener
    from dsh_cli.views import View

Form = Literal["table", "plain", "json"]

_DEFAULT = TrainConfig()


_WrongUsage: Any = typer.BadParameter.__base__  # of Typer's errors the one that any wrong word or option raises


class DshGroup(TyperGroup):
    """Turns what a user can act on into one line on stderr and an exit code. A bug stays a traceback."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Parse and run, the help included; see the class."""
        for name in ("stdin", "stdout", "stderr"):
            if getattr(sys, name) is None:  # closed by whoever started us
                setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "r" if name == "stdin" else "w"))
        try:
            code = super().main(*args, **{**kwargs, "standalone_mode": False})
        except _WrongUsage as error:
            if type(error).__name__ != "NoArgsIsHelpError":  # whose help has been shown
                command = error.ctx.command_path if error.ctx else "dsh"
                message = error.format_message().replace("Value error, ", "").rstrip(".")
                _complain(f"{message} (see: {command} --help)")
            code = error.exit_code
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            _leave_stdout()  # what is read or saved has errors of its own
            _complain(f"cannot write the output: {error.strerror}; free space, or send it elsewhere")
            code = 1
        sys.exit(code)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; see the class."""
        try:
            return super().invoke(ctx)
        except DshError as error:
            _complain(str(error))
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as interrupt:
            _complain("stopped by Ctrl-C")
            raise typer.Exit(130) from interrupt
        except BrokenPipeError:
            _end_quietly()


app = typer.Typer(
    cls=DshGroup,
    help="Deep supervised hashing: teach a network to give pictures short binary codes, and use them.",
    epilog="Start with: [bold]dsh train --bits 8[/], then [bold]dsh table[/] and [bold]dsh hash image.png[/]",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _default(value: object) -> str:
    return f" [dim]\\[default: {value}][/]"


def _option(text: str, default: object, *names: str, panel: str | None = None, **settings: Any) -> Any:
    """An option whose default is None, so that one left out can be told, and chosen later as the help says."""
    return typer.Option(*names, help=text + _default(default), show_default=False, rich_help_panel=panel, **settings)


Model = Annotated[
    str | None,
    _option("Run folder.", "newest finished under runs/", "--model", "-m", metavar="RUN", envvar="DSH_MODEL"),
]
Format = Annotated[Form | None, _option("How to print the result.", "table on a terminal, plain in a pipe", "--format")]
Json = Annotated[bool, typer.Option("--json", help="Short for --format json.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notices; errors only.")]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"dsh {version('dsh-cli')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Set up what all commands share."""
    # A path that is not UTF-8 goes out as the bytes it came in.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="surrogateescape" if stream is sys.stdout else "backslashreplace")


@app.command(
    epilog="Example: [bold]dsh train --bits 8[/] trains on MNIST; "
    "[bold]dsh train photos/ --bits 48[/] on a folder with a folder per class"
)
def train(
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA",
            help="mnist, fashion-mnist, cifar10, digits (no download), a folder with a folder per class, or a CSV of "
            "path,label." + _default(_DEFAULT.data),
            show_default=False,
        ),
    ] = None,
    bits: Annotated[int | None, _option(f"Length of the code, 1 to {MAX_BITS}.", _DEFAULT.bits, "--bits", "-b")] = None,
    out: Annotated[
        str | None, _option("Run folder to make.", "runs/<data>-<bits>bit-<time>", "--out", "-o", metavar="RUN")
    ] = None,
    epochs: Annotated[int | None, _option("Times to see every picture.", "6, more for small sets")] = None,
    batch_size: Annotated[int | None, _option("Pictures a batch; each pair counts.", _DEFAULT.batch_size)] = None,
    seed: Annotated[int | None, _option("Of splits, weights, batches, augmentation.", _DEFAULT.seed)] = None,
    like: Annotated[
        str | None, typer.Option(metavar="RUN", help="Take the recipe of another run; other options change it.")
    ] = None,
    resume: Annotated[str | None, typer.Option(metavar="RUN", help="Go on with an unfinished run.")] = None,
    backbone: Annotated[
        str | None,
        _option(
            "small-resnet, dsh-cnn (the paper's network), or a classification model of torchvision such as resnet18.",
            _DEFAULT.backbone,
            metavar="NAME",
            panel="Recipe",
        ),
    ] = None,
    pretrained: Annotated[
        bool | None,
        _option(
            "Start from torchvision's weights, with their normalisation and picture size.",
            "off",
            "--pretrained/--no-pretrained",
            panel="Recipe",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        _option(
            "Start from a safetensors file, a state dict of PyTorch, or a run, for the same backbone. A run brings its "
            "normalisation; with others a torchvision model gets that of torchvision's weights.",
            "random weights",
            metavar="FILE",
            panel="Recipe",
        ),
    ] = None,
    freeze: Annotated[
        bool | None,
        _option("Train the hash layer alone.", "off", "--freeze/--no-freeze", panel="Recipe"),
    ] = None,
    image_size: Annotated[
        int | None,
        _option(
            "Side of the pictures in pixels.", "of pretrained weights, else native up to 64, else 128", panel="Recipe"
        ),
    ] = None,
    augment: Annotated[
        Augment | None,
        _option(
            "Random variation: digits turns, zooms and shifts; photos mirrors and shifts.",
            "what fits the set",
            panel="Recipe",
        ),
    ] = None,
    margin: Annotated[
        float | None,
        _option("Squared distance from which classes no longer push apart.", "2 x bits", panel="Recipe"),
    ] = None,
    alpha: Annotated[float | None, _option("Weight of the quantization term.", _DEFAULT.alpha, panel="Recipe")] = None,
    lr: Annotated[float | None, _option("Peak learning rate.", _DEFAULT.lr, panel="Recipe")] = None,
    weight_decay: Annotated[float | None, _option("Weight decay.", _DEFAULT.weight_decay, panel="Recipe")] = None,
    per_class: Annotated[
        int | None,
        _option(
            "Pictures of a class that come together in a batch; 0 shuffles freely.",
            "4 where classes are many",
            panel="Recipe",
        ),
    ] = None,
    clip: Annotated[
        float | None, _option("Largest norm of the gradient.", "no limit", metavar="NORM", panel="Recipe")
    ] = None,
    optimizer: Annotated[Optimizer | None, _option("Optimizer.", _DEFAULT.optimizer, panel="Recipe")] = None,
    schedule: Annotated[
        Schedule | None, _option("Course of the learning rate.", _DEFAULT.schedule, panel="Recipe")
    ] = None,
    data_root: Annotated[
        str | None,
        _option(
            "Where named sets lie, or are downloaded to.",
            "$DSH_DATA, else the cache folder",
            metavar="FOLDER",
            panel="Machine",
        ),
    ] = None,
    device: Annotated[Device | None, _option("Where to compute.", _DEFAULT.device, panel="Machine")] = None,
    workers: Annotated[int | None, _option("Threads that decode pictures.", "one a processor", panel="Machine")] = None,
    memory: Annotated[
        float | None,
        _option(
            "GiB of decoded pictures to hold; a larger set stays in its files.", f"{_DEFAULT.memory:g}", panel="Machine"
        ),
    ] = None,
    cache: Annotated[
        str | None,
        _option(
            "Folder to keep resized pictures in, so that none is decoded twice; or off.",
            "the user's cache, for a set larger than --memory",
            metavar="FOLDER",
            panel="Machine",
        ),
    ] = None,
    amp: Annotated[
        bool | None,
        _option(
            "Train in bfloat16 where it is safe: sooner on GPUs, and on CPUs that have it.",
            "off",
            "--amp/--no-amp",
            panel="Machine",
        ),
    ] = None,
    compile_net: Annotated[
        bool | None,
        _option(
            "Train with torch.compile; takes a minute to start, and a C++ compiler.",
            "off",
            "--compile/--no-compile",
            panel="Machine",
        ),
    ] = None,
    tensorboard: Annotated[
        bool | None,
        _option("Write event files into the run.", "on", "--tensorboard/--no-tensorboard", panel="Machine"),
    ] = None,
    form: Format = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a network whose outputs are codes, and save the run."""
    asked = {
        "data": data,
        "bits": bits,
        "epochs": epochs,
        "seed": seed,
        "batch_size": batch_size,
        "backbone": backbone,
        "pretrained": pretrained,
        "weights": weights,
        "freeze": freeze,
        "image_size": image_size,
        "augment": augment,
        "margin": margin,
        "alpha": alpha,
        "lr": lr,
        "weight_decay": weight_decay,
        "per_class": per_class,
        "clip": clip,
        "optimizer": optimizer,
        "schedule": schedule,
        "data_root": data_root,
        "device": device,
        "workers": workers,
        "memory": memory,
        "cache": cache,
        "amp": amp,
        "compile": compile_net,
        "tensorboard": tensorboard,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    form = _form(form, as_json)
    config, unfinished = _what_to_train(given, out, like, resume)
    config.check()
    if config.tensorboard and not _is_utf8(out or resume or ""):
        raise UsageError("TensorBoard cannot write into a path that is not UTF-8; add --no-tensorboard")

    from dsh_cli import training, views
    from dsh_cli.checkpoint import require_free
    from dsh_cli.model import check_backbone

    require_free(out)
    training.choose_device(config.device)
    check_backbone(config.backbone)
    splits = _read_data(config, quiet)
    listeners = _listeners(config, quiet)
    _show(views.trained(training.train(config, splits, out, unfinished, listeners)), form)


@app.command(
    "hash",
    epilog="Example: [bold]dsh hash image.png photos/[/], or [bold]find . -name '*.jpg' -print0 | dsh hash --null -[/]",
)
def hash_pictures(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH", help="Picture files, folders of them, or - for a list on standard input."),
    ],
    model: Model = None,
    null: Annotated[bool, typer.Option("--null", "-0", help="The list on standard input is NUL-separated.")] = False,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = "auto",
    workers: Annotated[int | None, _option("Threads that decode pictures.", "one a processor", min=1)] = None,
    form: Format = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Print the codes of pictures. One that cannot be read is reported, and the others go on."""
    form = _form(form, as_json)
    run = _find_run(model, quiet)

    from dsh_cli import images, views
    from dsh_cli.encoding import Encoded, encode_files
    from dsh_cli.training import choose_device

    net = run.load_model(choose_device(device))
    shown: list[Encoded] = []
    failed = False
    on_screen = form != "table" and sys.stdout.isatty()  # the codes themselves show the progress
    with _status(quiet or on_screen, "hashing pictures") as progress:
        for done, item in enumerate(encode_files(net, images.expand(_arguments(paths, null)), workers), 1):
            progress(done)
            if item.error is not None:
                failed = True
                _complain(f"{item.path}: {item.error}")
            if form == "json":
                _write(views.hashed_json(item))
            elif form == "table":
                shown.append(item)
            elif item.error is None:
                _write(views.hashed_line(item))
    if any(item.error is None for item in shown):
        _print(lambda width: views.hashed_table(shown, width))
    sys.stdout.flush()
    if failed:
        raise typer.Exit(1)


@app.command(epilog="Example: [bold]dsh table[/], or [bold]dsh table --model runs/mine --json[/]")
def table(
    model: Model = None,
    split: Annotated[
        Literal["train", "validation", "test"], typer.Option(help="Which pictures of the run to tabulate.")
    ] = "test",
    form: Format = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show the code of each class, its variants, and how far apart the classes are."""
    from dsh_cli import views
    from dsh_cli.metrics import class_table

    form = _form(form, as_json)
    run = _find_run(model, quiet)
    _show(views.class_codes(class_table(run.codes(split), split), run), form)


@app.command(epilog="Example: [bold]dsh info[/] lists the runs, [bold]dsh info runs/mine[/] shows one")
def info(
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="Run folder." + _default("list all"), show_default=False)
    ] = None,
    form: Format = None,
    as_json: Json = False,
) -> None:
    """Show what a run is, or list the runs under runs/."""
    from dsh_cli import views
    from dsh_cli.checkpoint import Run, list_runs

    form = _form(form, as_json)
    if run is not None:
        _show(views.run_info(Run.open(run)), form)
        return
    runs = list_runs()
    if not runs and form != "json":
        raise DshError("no runs under runs/; train one with: dsh train --bits 8")
    _show(views.run_list(runs), form)


def _what_to_train(
    given: dict[str, Any], out: str | None, like: str | None, resume: str | None
) -> tuple[TrainConfig, Run | None]:
    """The request, from defaults, another run or an unfinished one, with what was given on top."""
    from dataclasses import asdict, replace

    from dsh_cli.checkpoint import Run

    if resume is not None:
        if given or out or like:
            raise UsageError("--resume goes on with the run's own recipe; for another one use --like instead")
        run = Run.open(resume)
        if run.finished:
            raise UsageError(f"{resume} is finished; for the same recipe again: dsh train --like {resume}")
        return run.config, run
    if like is not None:
        base = TrainConfig(**asdict(Run.open(like).config))
        if given.get("bits", base.bits) != base.bits:  # its margin was chosen for its bits
            given = {"margin": None, **given}
        if given.get("data", base.data) != base.data:
            given = {"image_size": None, "augment": None, "epochs": None, "per_class": None, **given}
        pretrained = given.get("pretrained", base.pretrained)
        if pretrained != base.pretrained or (pretrained and given.get("backbone", base.backbone) != base.backbone):
            given = {"image_size": None, **given}  # other weights have another size
        if given.get("pretrained"):
            given = {"weights": None, **given}
        elif "weights" in given:
            given = {"pretrained": False, **given}
    else:
        base = TrainConfig()
    config = replace(base, **given)
    if config.data not in DATASETS and os.path.exists(config.data):
        config = replace(config, data=os.path.abspath(config.data))  # to be found again from anywhere
    if config.weights is not None:
        if not os.path.exists(config.weights):
            raise UsageError(f"--weights {config.weights}: there is no such file or run folder")
        config = replace(config, weights=os.path.abspath(config.weights))
    return config, None


def _read_data(config: TrainConfig, quiet: bool) -> Splits:
    from dsh_cli.data import load_splits

    with _status(quiet, "reading pictures") as progress:
        splits = load_splits(config, progress)
    skipped = splits.train.skipped
    for picture in skipped[:5]:
        _complain(f"{picture.path}: {picture.error}; left out", "warning")
    if len(skipped) > 5:
        _complain(f"{len(skipped) - 5} more pictures could not be read and are left out", "warning")
    counts = ", ".join(f"{len(names):,} {split}" for split, names in splits.names().items())
    source = splits.train.source
    where = source if source == config.data else f"{config.data} from {source}"
    _notice(f"{where}: {counts}", quiet)
    return splits


def _listeners(config: TrainConfig, quiet: bool) -> list[Listener]:
    from dsh_cli import board, listeners

    console = Console(stderr=True)

    def warn(text: str) -> None:
        _complain(text, "warning")

    chosen: list[Listener] = [listeners.Notes(warn), listeners.CollapseAlarm(warn)]
    if not quiet:
        on_terminal = console.is_terminal
        chosen.append(
            listeners.ProgressBar(console) if on_terminal else listeners.Lines(lambda text: _notice(text, quiet))
        )
    if config.tensorboard:
        chosen.append(board.TensorBoard())
    return chosen


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _arguments(paths: list[str], null: bool) -> Iterator[str]:
    """Paths as given, with `-` replaced by those on standard input, as they arrive."""
    for path in paths:
        if path != "-":
            yield path
        elif null:
            yield from (os.fsdecode(name) for name in sys.stdin.buffer.read().split(b"\0") if name)
        else:
            yield from (os.fsdecode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer if line.strip())


@contextmanager
def _status(quiet: bool, what: str) -> Iterator[Callable[..., None]]:
    """A live line on stderr while it is a terminal; yields what moves it: pictures done, and all if known."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda done, total=None: None
        return
    with console.status(what) as line:
        yield lambda done, total=None: line.update(f"{what}: {done:,}" + (f" of {total:,}" if total else ""))


def _find_run(model: str | None, quiet: bool) -> Run:
    from dsh_cli.checkpoint import find_run

    run = find_run(model)
    if model is None:
        _notice(f"using {run.path}", quiet)
    return run


def _form(form: Form | None, as_json: bool) -> Form:
    if as_json and form not in (None, "json"):
        raise UsageError(f"--json and --format {form} contradict each other; give one of them")
    if as_json:
        return "json"
    return form or ("table" if sys.stdout.isatty() else "plain")


def _show(view: View, form: Form) -> None:
    match form:
        case "json":
            _write(view.json)
        case "plain":
            for line in view.plain:
                _write(line)
        case "table":
            _print(view.table)
    sys.stdout.flush()


def _print(table: Callable[[int], RenderableType]) -> None:
    console = Console()
    with console.capture() as captured:  # Rich would end the program itself when a pipe closes
        console.print(table(console.width))
    sys.stdout.write(captured.get())


def _write(line: str) -> None:
    """A line of a result: as it is for programs, and for people nothing that a terminal would obey."""
    from dsh_cli.views import printable

    if sys.stdout.isatty():
        line = "\t".join(map(printable, line.split("\t")))
    sys.stdout.write(line + "\n")


def _notice(text: str, quiet: bool) -> None:
    if not quiet:
        from rich.text import Text

        from dsh_cli.views import printable

        Console(stderr=True).print(Text(printable(text), style="dim"), soft_wrap=True)


def _complain(text: str, kind: Literal["error", "warning"] = "error") -> None:
    from rich.text import Text

    from dsh_cli.views import printable

    style = "bold red" if kind == "error" else "bold yellow"
    Console(stderr=True).print(Text.assemble((f"{kind}: ", style), printable(text)), soft_wrap=True)


def _end_quietly() -> NoReturn:
    """Whoever read our output has left: nothing more to say."""
    _leave_stdout()
    raise typer.Exit(0)


def _leave_stdout() -> None:
    """What is still to be written goes nowhere, for Python to have nothing to complain of at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
