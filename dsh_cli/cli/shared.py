"""What all commands share: the app, options worded once, errors in one line, results in three forms."""

from __future__ import annotations

import errno
import logging
import os
import stat
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, get_args

import typer
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from dsh_cli.config import Device, Rescore
from dsh_cli.errors import DISK_FULL, DshError, UsageError, lacking_memory, lacking_space, reason, worded
from dsh_cli.pictures import guesses
from dsh_cli.show.console import Console, ascii_only, ready
from dsh_cli.show.views.shared import printable
from dsh_cli.speaking import launched, may_speak, telling

if TYPE_CHECKING:
    from rich.console import RenderableType

    from dsh_cli.pictures.find import LeftOut
    from dsh_cli.runs.exported import Exported
    from dsh_cli.runs.run import Run
    from dsh_cli.show.views.shared import View

_live: Console | None = None  # what has a live line on stderr, which others must not write into

Form = Literal["table", "plain", "json"]

_LEARNING = ("torch", "torchvision", "tensorboard", "tqdm", "onnx")  # not in without-torch.txt
_STOPPED = 130  # exit code after Ctrl-C, as shells have it

_WrongUsage: Any = typer.BadParameter.__base__  # of Typer's errors the one that any wrong word or option raises


class DshGroup(TyperGroup):
    """Turns what a user can act on into one line on stderr and an exit code. A bug stays a traceback."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Parse and run, the help included; see the class."""
        # Typer's pydantic would look through every installed package for plugins: a quarter of the time of --help.
        os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")
        closed = [name for name in ("stdin", "stdout", "stderr") if getattr(sys, name) is None]  # by who started us
        for name in closed:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "r" if name == "stdin" else "w"))
        ready()
        if "stdout" in closed:
            complain("cannot write the output: standard output is closed; send it somewhere, such as to a file")
            sys.exit(1)
        try:
            code = super().main(*args, **{**kwargs, "standalone_mode": False})
            if code == _STOPPED:  # what Typer makes of Ctrl-C before a command runs; `invoke` does not return
                complain("stopped by Ctrl-C")
        except _WrongUsage as error:
            if type(error).__name__ != "NoArgsIsHelpError":  # whose help has been shown
                command = error.ctx.command_path if error.ctx else "dsh"
                message = error.format_message().replace("Value error, ", "").rstrip(".")
                complain(f"{message} (see: {command} --help)")
            code = error.exit_code
        except OSError as error:
            if error.errno not in (*DISK_FULL, errno.EBADF):
                raise
            complain(str(_unwritable(error)))  # of the help; what is read or saved has errors of its own
            code = 1
        sys.exit(code)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; see the class."""
        try:
            return super().invoke(ctx)
        except DshError as error:
            complain(str(error))
            sys.exit(error.exit_code)
        except PermissionError as error:
            if error.filename is None:
                raise
            complain(f"{os.fsdecode(error.filename)}: {reason(error)}; run dsh as a user who may, or change who may")
            sys.exit(1)
        except BrokenPipeError:
            _end_quietly()
        except ModuleNotFoundError as error:
            if error.name not in _LEARNING:
                raise
            complain(f"this takes PyTorch and more, and {error.name} is not installed: pip install dsh-cli")
            sys.exit(1)
        except BaseException as error:
            if _is_interrupt(error):
                complain("stopped by Ctrl-C")
                sys.exit(_STOPPED)
            if (asked := lacking_memory(error)) is None:
                raise
            error.__traceback__ = None  # and what its frames hold
            complain(_out_of_memory(asked, ctx.command.commands.get(ctx.invoked_subcommand, ctx.command)))
            sys.exit(1)


class Rescoring(TyperCommand):
    """A command with `--rescore`, which may stand alone and then means the first of its choices.

    Typer knows no options whose value may be left out. A word behind it that is none of the choices is an argument of
    its own, unless it is nearly one and no file; a file that is called as one of them is given as `./asymmetric`.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give it its value before all is parsed; see the class."""
        choices, end = get_args(Rescore), args.index("--") if "--" in args else len(args)
        given: list[str] = []
        for place, word in enumerate(args):
            is_alone = word == "--rescore" and place < end and not _is_meant(args[place + 1 : place + 2], choices)
            given.append(f"{word}={choices[0]}" if is_alone else word)
        return super().parse_args(ctx, given)


def _is_meant(words: Sequence[str], choices: Sequence[str]) -> bool:
    """Whether one of the words is a choice, or a slip of one, which then is refused as such."""
    return any(
        word in choices or (word.isalpha() and get_close_matches(word, choices) and not os.path.lexists(word))
        for word in words
    )


app = typer.Typer(
    cls=DshGroup,
    help="Deep supervised hashing: teach a network to give pictures short binary codes, and use them.",
    epilog="Start with: [bold]dsh train --bits 8[/], then [bold]dsh table[/] and [bold]dsh hash image.png[/]",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def default_note(value: object) -> str:
    """What --help says of a default."""
    return f" [dim]\\[default: {value}][/]"


def option(text: str, default: object, *names: str, panel: str | None = None, **settings: Any) -> Any:
    """An option whose default is None, so that one left out can be told, and chosen later as the help says."""
    return typer.Option(
        *names, help=text + default_note(default), show_default=False, rich_help_panel=panel, **settings
    )


Model = Annotated[
    str | None,
    option("Run folder.", "newest finished under runs/", "--model", "-m", metavar="RUN", envvar="DSH_MODEL"),
]
Coder = Annotated[
    str | None,
    option(
        "Run folder, or an ONNX file that dsh export wrote.",
        "newest finished under runs/",
        "--model",
        "-m",
        metavar="RUN",
        envvar="DSH_MODEL",
    ),
]
Format = Annotated[Form | None, option("How to print the result.", "table on a terminal, plain in a pipe", "--format")]
Json = Annotated[bool, typer.Option("--json", help="Short for --format json.")]


def _tell_guesses(ctx: typer.Context, quiet: bool) -> bool:
    """At the end of a command, say what was guessed of the pictures that it read."""

    def tell() -> None:
        if made := guesses.take():
            more = f" and {len(made) - 3} others" if len(made) > 3 else ""
            notice(
                f"some pictures do not say which of their samples are black and white; taken from the samples: "
                f"{', '.join(made[:3])}{more} (see docs/pictures.md)",
                quiet,
            )

    guesses.take()  # of whatever this process read before
    ctx.call_on_close(tell)
    return quiet or not may_speak()


Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="No progress, no notices; warnings and errors only.", callback=_tell_guesses),
]
Null = Annotated[bool, typer.Option("--null", "-0", help="The list on standard input is NUL-separated.")]
Where = Annotated[Device, typer.Option("--device", help="Where to compute.")]
Rescored = Annotated[
    Rescore | None,
    typer.Option(
        "--rescore",
        metavar="[outputs|asymmetric]",
        help="Order the nearest by Hamming distance anew, by the outputs of the network: those of the query against "
        "those of the others (outputs, which need not be said), or against their codes (asymmetric).",
    ),
]
Workers = Annotated[int | None, option("Threads that decode pictures.", "one a processor", "--workers", min=1)]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"dsh {version('dsh-cli')}")
        raise typer.Exit


@app.callback()
def main(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Set up what all commands share."""
    if launched() and ctx.invoked_subcommand != "train":
        raise UsageError(f"torchrun is for dsh train alone; run dsh {ctx.invoked_subcommand} without it")
    # What Pillow warns of is an error anyway (size), or does not touch the pixels (metadata).
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").addHandler(logging.NullHandler())


def shows_at_once() -> bool:
    """Whether what is written to stdout may show on the terminal at once, in the midst of a live line.

    So it may if it is one, or a pipe, whose other end often is.
    """
    try:
        return sys.stdout.isatty() or stat.S_ISFIFO(os.fstat(sys.stdout.fileno()).st_mode)
    except OSError:  # it has no file
        return False


@contextmanager
def status(quiet: bool, what: str) -> Iterator[Callable[..., None]]:
    """A live line on stderr while it is a terminal; yields what moves it: pictures done, and all if known."""
    with _live_line(quiet, what) as tell:
        yield lambda done, total=None: tell(f"{what}: {done:,}" + (f" of {total:,}" if total else ""))


@contextmanager
def steps(quiet: bool, what: str) -> Iterator[Callable[[str], None]]:
    """Say on stderr what is being done; yields what says the next step. On a terminal it is one live line."""
    with _live_line(quiet, what) as tell:
        yield tell if Console(stderr=True).is_terminal else lambda text: notice(text, quiet)


@contextmanager
def _live_line(quiet: bool, what: str) -> Iterator[Callable[[str], None]]:
    """A live line on stderr while it is a terminal; yields what changes it."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda text: None
        return
    from rich.live import Live
    from rich.spinner import Spinner

    global _live
    line = Spinner(console.spinner, text=Text(console.shown(what)), style="status.spinner")
    # Rich would send stdout along with the live line, and so results to stderr
    with Live(line, console=console, refresh_per_second=12.5, transient=True, redirect_stdout=False):
        _live = console
        try:
            yield lambda text: line.update(text=Text(console.shown(text)))
        finally:
            _live = None


def find_run(model: str | None, quiet: bool) -> Run:
    """The run asked for, or the newest, and then a notice of which."""
    from dsh_cli.runs import folders

    if _is_file(model):
        raise UsageError(f"`model` {model}: an exported model is no run, which is wanted here; name the one it is of")
    run = folders.find_run(model)
    if model is None:
        notice(f"using {run.path}", quiet)
    return run


def _is_file(model: str | None) -> bool:
    """Whether a model is that of a file, and no run folder."""
    return model is not None and model.endswith(".onnx") and not os.path.isdir(model)


def find_model(model: str | None, quiet: bool) -> Run | Exported:
    """What makes codes: the exported model asked for, else as `find_run`."""
    if model is None or not _is_file(model):
        return find_run(model, quiet)

    from dsh_cli.runs.exported import Exported

    return Exported.open(model)


def form_of(form: Form | None, as_json: bool) -> Form:
    """The form of a result: as asked, or what fits the terminal or pipe."""
    if as_json and form not in (None, "json"):
        raise UsageError(f"--json and --format {form} contradict each other; give one of them")
    if as_json:
        return "json"
    return form or ("table" if sys.stdout.isatty() else "plain")


def arguments(paths: list[str], null: bool) -> Iterator[str]:
    """Paths as given, with `-` replaced by those on standard input, as they arrive."""
    for path in paths:
        if path != "-":
            yield path
        elif null:
            yield from (os.fsdecode(name) for name in sys.stdin.buffer.read().split(b"\0") if name)
        else:
            yield from (os.fsdecode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer if line.strip())


def show(view: View, form: Form) -> None:
    """Print a result in one of its forms."""
    match form:
        case "json":
            write(view.json)
        case "plain":
            for line in view.plain(ascii_only(sys.stdout)):
                write(line)
        case "table":
            print_table(view.table)
    flush()


def print_table(table: Callable[[int], RenderableType]) -> None:
    """Print what Rich draws for the width of the terminal."""
    console = Console()
    with console.capture() as captured:  # Rich would end the program itself when a pipe closes
        console.print(table(console.width))
    with _writing():
        sys.stdout.write(captured.get())


def write(line: str) -> None:
    """A line of a result, which is one whatever is in it."""
    with _writing():
        sys.stdout.write("\t".join(map(printable, line.split("\t"))) + "\n" if sys.stdout.isatty() else line + "\n")


def flush() -> None:
    """Let whoever reads have what was written."""
    with _writing():
        sys.stdout.flush()


@contextmanager
def _writing() -> Iterator[None]:
    """Tell apart what goes wrong with stdout from what goes wrong with a file that is open meanwhile."""
    try:
        yield
    except BrokenPipeError:
        _end_quietly()
    except OSError as error:
        raise _unwritable(error) from error


def _unwritable(error: OSError) -> DshError:
    _leave_stdout()
    what_to_do = "free space, or send it elsewhere" if lacking_space(error) else "send it elsewhere"
    return DshError(f"cannot write the output: {error.strerror}; {what_to_do}")


def notice(text: str, quiet: bool, live: Console | None = None) -> None:
    """A line on stderr for whoever watches, by the console of a live line if there is one."""
    if not quiet:
        (live or Console(stderr=True)).print(_said(text), style="dim", soft_wrap=True)


def complain(text: str, kind: Literal["error", "warning"] = "error", live: Console | None = None) -> None:
    """A line on stderr that says what is wrong, by the console of a live line if there is one.

    Of several processes one says it.
    """
    style = "bold red" if kind == "error" else "bold yellow"
    console = live or _live or Console(stderr=True)
    with telling() if kind == "error" else nullcontext(may_speak()) as is_mine, suppress(OSError):
        if is_mine:  # to a terminal that was closed, and nobody reads, maybe
            console.print(Text.assemble((f"{kind}: ", style), console.shown(_said(text))), soft_wrap=True)


def tell(left_out: LeftOut) -> None:
    """Lines on stderr that say what a search for pictures passed over."""
    for line in left_out.lines():
        complain(line, "warning")


def _said(text: str) -> str:
    """A message of the core as the command line says it: its fields as options."""
    return worded(text, _flags()) if "`" in text else text


@cache
def _flags() -> dict[str, str]:
    """What the command line calls each field: `--bits`, `DATA`, and `--no-tensorboard` for `tensorboard=False`."""
    names: dict[str, str] = {}
    pending: list[Any] = [typer.main.get_command(app)]
    while pending:
        command = pending.pop()
        pending += getattr(command, "commands", {}).values()
        for parameter in command.params:
            if parameter.param_type_name == "argument":
                names.setdefault(parameter.name, parameter.metavar or parameter.name.upper())
            else:
                names[parameter.name] = max(parameter.opts, key=len)
                names |= {f"{parameter.name}=False": flag for flag in parameter.secondary_opts}
    return names


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C is what happened: where modules are being read, Python makes other errors of it."""
    return isinstance(error, KeyboardInterrupt) or (error is not None and _is_interrupt(error.__cause__))


def _out_of_memory(asked: str, command: Any) -> str:
    """What to say where there is no memory for what was asked for, and what of the command takes less."""
    commands = [command, *getattr(command, "commands", {}).values()]
    has = {parameter.name for one in commands for parameter in one.params}
    lower = [f"`{name}`" for name in ("batch_size", "memory", "image_size", "workers") if name in has]
    less = f"lower {' or '.join(lower)}, " if lower else ""
    return f"out of memory: there is no room for {asked}; {less}end other programs, or raise the limit (see: ulimit -v)"


def _end_quietly() -> NoReturn:
    """Whoever read our output has left: nothing more to say."""
    _leave_stdout()
    raise typer.Exit(0)


def _leave_stdout() -> None:
    """What is still to be written goes nowhere, for Python to have nothing to complain of at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
