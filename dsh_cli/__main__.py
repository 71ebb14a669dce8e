"""The program: `dsh`, and `python -m dsh_cli` where another program has that name."""

import os
import signal
import sys
from contextlib import suppress


def main() -> None:
    """Run the command line; Ctrl-C ends it at once but while a command runs, which stops in its own way."""
    ignored = signal.getsignal(signal.SIGINT) is not signal.default_int_handler  # by whoever started us
    if not ignored:
        signal.signal(signal.SIGINT, _stop)
    sys.unraisablehook = _unraisable

    from dsh_cli.cli import app

    try:
        if not ignored:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        app(prog_name="dsh")
    except KeyboardInterrupt:
        _stop()
    finally:
        if not ignored:
            signal.signal(signal.SIGINT, _stop)


def _unraisable(lost: "sys.UnraisableHookArgs") -> None:
    """Mind Ctrl-C in a callback too, such as those by which modules are imported: Python says so, and goes on."""
    if lost.exc_type is KeyboardInterrupt:
        _stop()
    sys.__unraisablehook__(lost)


def _stop(*_: object) -> None:
    """End without a word of what was going on: modules were being read, or put away."""
    with suppress(OSError):
        if os.isatty(2) and os.environ.get("TERM", "dumb") != "dumb":
            os.write(2, b"\r\x1b[2K\x1b[?25h")  # a live line may stand there, which hides the cursor
        os.write(2, b"error: stopped by Ctrl-C\n")
    os._exit(130)


if __name__ == "__main__":
    main()
