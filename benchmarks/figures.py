"""Make the pictures of img/ from a real run: python benchmarks/figures.py RUN."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from rich.console import Console

from dsh_cli import Run, class_table, views

IMG = Path(__file__).parent.parent / "img"
WIDTH = 84  # columns


def main() -> None:
    run = Run.open(sys.argv[1])
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(views.class_codes(class_table(run.codes("test"), "test"), run).table(WIDTH))
    console.save_svg(str(IMG / "table.svg"), title="dsh table")


if __name__ == "__main__":
    main()
