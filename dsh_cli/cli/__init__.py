"""The command line: parse, call one core function, show. A file per family of commands; each adds its own to `app`."""

from dsh_cli.cli import train, hashing, runs, neighbors, index, evaluation, embed  # isort: skip  # in the order --help lists them
from dsh_cli.cli.shared import app

__all__ = ["app", "embed", "evaluation", "hashing", "index", "neighbors", "runs", "train"]
