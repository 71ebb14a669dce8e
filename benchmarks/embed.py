"""Seconds that t-SNE and UMAP take for the saved codes of a run, after import.

python benchmarks/embed.py runs/mnist
"""

from __future__ import annotations

import argparse

from _report import append

from dsh_cli import Projection, Run, embed
from dsh_cli.analysis.embedding import Method, of_run

CASES: tuple[tuple[Method, int, int], ...] = (
    ("tsne", 2000, 15),
    ("umap", 10_000, 45),
)  # points, and seconds they may take


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    run = Run.open(parser.parse_args().run)
    codes = of_run(run, "test")
    for method, count, limit in CASES:
        embed(codes, Projection(method), 100)  # imports, and compiles what compiles itself
        one = embed(codes, Projection(method), count)
        append(
            f"embed, {method} of {len(one.points):,} relaxed codes of {run.model.bits} bits, {run.config.data}",
            f"{one.seconds:.1f} s with its figures, of {limit} allowed; trustworthiness {one.trustworthiness:.3f}, "
            f"silhouette {one.silhouette:.3f}",
        )


if __name__ == "__main__":
    main()
