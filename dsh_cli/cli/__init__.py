"""The command line: parse, call one core function, show. A file a command; each adds its own to `app`."""

from dsh_cli.cli import train, features, hash, table, info, neighbors, index, evaluate, embed, export  # isort: skip  # in the order --help lists them
from dsh_cli.cli.shared import app

__all__ = ["app", "embed", "evaluate", "export", "features", "hash", "index", "info", "neighbors", "table", "train"]
