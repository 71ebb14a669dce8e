"""Results as Rich tables, plain lines or JSON. Knows nothing of who asks. A file per family of commands."""

from dsh_cli.views.classes import class_codes
from dsh_cli.views.embedding import embedded
from dsh_cli.views.evaluation import evaluated, evaluated_runs
from dsh_cli.views.hashing import hashed_json, hashed_line, hashed_table
from dsh_cli.views.index import index_report
from dsh_cli.views.neighbors import neighbors, unread
from dsh_cli.views.runs import run_info, run_list, trained
from dsh_cli.views.shared import View, listed, printable

__all__ = [
    "View",
    "class_codes",
    "embedded",
    "evaluated",
    "evaluated_runs",
    "hashed_json",
    "hashed_line",
    "hashed_table",
    "index_report",
    "listed",
    "neighbors",
    "printable",
    "run_info",
    "run_list",
    "trained",
    "unread",
]
