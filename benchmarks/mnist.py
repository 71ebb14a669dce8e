"""The default recipe on MNIST: mAP and seconds, one row a seed.

python benchmarks/mnist.py            # seeds 0, 1, 2, 8 bits
python benchmarks/mnist.py --bits 48
"""

from __future__ import annotations

import argparse
import tempfile
from statistics import mean

from _report import append

from dsh_cli import TrainConfig, load_splits, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", default="mnist")
    arguments = parser.parse_args()
    results = []
    for seed in arguments.seeds:
        config = TrainConfig(data=arguments.data, bits=arguments.bits, seed=seed, tensorboard=False)
        with tempfile.TemporaryDirectory() as out:
            result = train(config, load_splits(config), out=f"{out}/run")
        results.append(result)
        bound = result.table.bound
        append(
            f"{arguments.data}, {arguments.bits} bits, seed {seed}, default recipe",
            f"mAP {result.map:.4f} (tie-aware, test vs train), {result.seconds:.1f} s, "
            f"smallest class distance {result.table.min_class_distance} of {bound.distance if bound else '-'}",
        )
    append(
        f"{arguments.data}, {arguments.bits} bits, mean of seeds {arguments.seeds}, default recipe",
        f"mAP {mean(r.map for r in results):.4f}, {mean(r.seconds for r in results):.1f} s",
    )


if __name__ == "__main__":
    main()
