"""Pictures a second of a training in one process and in several, each bound to a processor of its own, in turn.

    python benchmarks/processes.py                      # 1 and 2 processes, three turns, of two networks
    python benchmarks/processes.py --counts 1 2 4 --backbones airbench

Each process computes in one thread. The rate is that of the last epoch of two, by the clock of the first process.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from _report import append, isa

HERE = Path(__file__).parent.parent


def train_bound(backbone: str) -> None:
    """Train on the processor of this process's number, and print the rate of the last epoch."""
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {processors[int(os.environ["LOCAL_RANK"]) % len(processors)]})

    from dsh_cli import TrainConfig, load_splits, train
    from dsh_cli.speaking import may_speak
    from dsh_cli.training.events import EpochStats, Quiet

    rates = []

    class Rates(Quiet):
        def on_epoch(self, stats: EpochStats) -> None:
            rates.append(stats.images_per_second)

    config = TrainConfig(data="mnist", bits=8, backbone=backbone, epochs=2, grow=False, tensorboard=False)
    with tempfile.TemporaryDirectory() as folder:
        train(config, load_splits(config), f"{folder}/run", listeners=[Rates()])
    if may_speak():
        print(rates[-1])


def rate(count: int, backbone: str) -> float:
    """Pictures a second in so many processes."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    done = subprocess.run(
        [*torchrun, __file__, "--within", backbone], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return float(done.stdout)


def main() -> None:
    """Measure, as the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--backbones", nargs="+", default=["small-resnet", "airbench"])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--within", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.within:
        train_bound(options.within)
        return
    for backbone in options.backbones:
        rates: dict[int, list[float]] = {count: [] for count in options.counts}
        for _ in range(options.turns):
            for count, found in rates.items():
                found.append(rate(count, backbone))
        said = ", ".join(
            f"{count} {'process' if count == 1 else 'processes'} {median(of):.0f}" for count, of in rates.items()
        )
        one = median(rates[options.counts[0]])
        ratios = ", ".join(f"{median(of) / one:.2f}" for of in rates.values())
        append(
            f"processes {backbone}, MNIST, pictures a second",
            f"{said}, ratios {ratios}, least {min(map(min, rates.values())):.0f}, turns {options.turns}, isa {isa()}",
        )


if __name__ == "__main__":
    main()
