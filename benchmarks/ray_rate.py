"""Pictures a second that dsh index add encodes: in one thread of its own, and by one and two workers of Ray.

python benchmarks/ray_rate.py FOLDER RUN             # such as the CIFAR-10 tree
python benchmarks/ray_rate.py FOLDER RUN --rounds 5

Ray and its workers are started before the clock. The processor time of the process that lists and writes, which is one
however many workers there are, says how many of them it keeps busy.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

from _report import append

from dsh_cli.config import EngineName
from dsh_cli.index import ray_engine
from dsh_cli.index.index import Index
from dsh_cli.pictures.find import find
from dsh_cli.runs.run import Run

WAYS: dict[str, tuple[EngineName, int]] = {
    "local, 1 worker": ("local", 1),
    "Ray, 1 worker": ("ray", 1),
    "Ray, 2 workers": ("ray", 2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="of pictures")
    parser.add_argument("run", help="that makes their codes")
    parser.add_argument("--rounds", type=int, default=3, help="of all ways in turn")
    arguments = parser.parse_args()
    run, paths = Run.open(arguments.run), list(find(arguments.folder))
    took: dict[str, list[float]] = {name: [] for name in WAYS}
    ours: dict[str, list[float]] = {name: [] for name in WAYS}
    with ray_engine.opened(run, "cpu", 2, None), tempfile.TemporaryDirectory() as scratch:  # Ray is taken as it is
        for number in range(arguments.rounds + 1):
            for name, (engine, workers) in WAYS.items():
                given = paths if number else paths[:64]  # for workers to start
                before = time.perf_counter(), time.process_time()
                report = Index.open(f"{scratch}/{number}-{name}").add(
                    run, given, device="cpu", workers=workers, engine=engine
                )
                assert report.added == len(given), report.failed[:1]
                if number:
                    took[name].append(time.perf_counter() - before[0])
                    ours[name].append(time.process_time() - before[1])
    rates = {name: len(paths) / median(seconds) for name, seconds in took.items()}
    mine = median(ours["Ray, 2 workers"]) / len(paths)
    append(
        f"dsh index add, {len(paths):,} pictures of {Path(*Path(arguments.folder).parts[-2:])}, {run.model.backbone}",
        f"pictures a second: {', '.join(f'{name} {rate:,.0f}' for name, rate in rates.items())}; of that the process "
        f"that lists and writes takes {mine * 1e6:,.0f} us a picture; medians of {arguments.rounds}, in turn",
    )


if __name__ == "__main__":
    main()
