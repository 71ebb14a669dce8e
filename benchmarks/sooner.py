"""How much sooner the default recipe comes to an mAP on CIFAR-10 than the one before it: whole trainings, one by one.

    python benchmarks/sooner.py                      # in a folder that holds cifar10-jpeg, with train/ and test/ in it
    python benchmarks/sooner.py --epochs 3 --before-epochs 18

The recipe before is that of an earlier commit, whose code is taken from the history of this repository. Epochs are to
be chosen so that both come to the mAP and no farther: rates fall to 0 over a training, so that none shows on its way
how soon a shorter one would have come. 48 bits, protocol `paper`, one seed. Measure alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path

from _report import append, isa

ROOT = Path(__file__).parent.parent
BEFORE = "abf8e78"  # the last commit with the recipe before
DATA = "cifar10-jpeg"


def trained(code: Path, epochs: int) -> tuple[float, float]:
    """Seconds of a training by the code of a folder, and the mAP it comes to."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--bits", "48", "--protocol", "paper", "--epochs", f"{epochs}", "--device", "cpu"]
        options += ["--out", f"{folder}/run", "--no-tensorboard", "--json", "--quiet"]
        done = subprocess.run(
            # -P: not by the code of the current folder, which may be a clone of this repository
            [sys.executable, "-P", "-m", "dsh_cli", "train", DATA, *options],
            env=os.environ | {"PYTHONPATH": str(code)},
            stdout=subprocess.PIPE,
            check=True,
        )
        said = json.loads(done.stdout)
    return said["seconds"], said["map"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3, help="of the default recipe")
    parser.add_argument("--before-epochs", type=int, default=18)
    given = parser.parse_args()
    if not Path(DATA).is_dir():
        sys.exit(f"there is no folder {DATA} here")
    packed = subprocess.run(["git", "archive", BEFORE, "dsh_cli"], cwd=ROOT, capture_output=True)
    if packed.returncode:
        sys.exit(f"commit {BEFORE} is not in this clone ({packed.stderr.decode().strip()}); fetch its whole history")
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=BytesIO(packed.stdout)) as archive:
            archive.extractall(folder, filter="data")
        before, before_map = trained(Path(folder), given.before_epochs)
    now, now_map = trained(ROOT, given.epochs)
    append(
        "sooner, cifar10-jpeg, 48 bits, paper",
        f"default {now:.0f} s for mAP {now_map:.4f} ({given.epochs} epochs), before {before:.0f} s for "
        f"{before_map:.4f} ({given.before_epochs} epochs), ratio {now / before:.2f}, isa {isa()}",
    )


if __name__ == "__main__":
    main()
