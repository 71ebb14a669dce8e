"""Keep rows of quality.py valid where changed code trains the same weights, bit by bit, and makes the same codes.

    python benchmarks/renumber.py COMMIT   # by whose code the rows are; in a folder that holds cifar10-jpeg

Each kind of training is done by both, in two epochs of a part of its pictures, on one thread. Rows of which it comes to
the same get the digits of the code of now, the others stay as they are.
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
from typing import Any, cast

ROOT = Path(__file__).parent.parent
TRAINED, TESTED = 3000, 500  # pictures


def trained_by(code: Path) -> dict[str, list[str]]:
    """What a tree's own code makes of each cell, by name: the cell's digits, and a digest of weights and codes."""
    done = subprocess.run(
        [sys.executable, "-P", __file__, "--own"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(code), str(code / "benchmarks")))},
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return found


def own() -> dict[str, list[str]]:
    """The same, by the code that is imported here."""
    import hashlib
    from dataclasses import replace
    from types import SimpleNamespace

    import numpy as np
    from baseline import seen_and_unseen
    from quality import CIFAR, cells, without_mirror

    from dsh_cli import load_splits, train
    from dsh_cli.data.dataset import Dataset
    from dsh_cli.data.splits import Splits

    def part(dataset: Dataset, count: int) -> Dataset:
        chosen = np.random.default_rng(0).permutation(len(dataset))[:count]
        return dataset.take(np.isin(np.arange(len(dataset)), chosen))

    seen: dict[object, str] = {}
    found = {}
    for cell in cells():
        config = replace(cell.config, seed=0, epochs=2, threads=1, device="cpu")
        if config.data == CIFAR and not Path(CIFAR).is_dir():
            continue
        for amp in (None, False):
            kind = replace(config, amp=amp)
            if kind in seen:
                continue
            whole = load_splits(kind)
            unseen = None if whole.unseen is None else part(whole.unseen, TESTED)
            splits = Splits(
                part(whole.train, TRAINED), part(whole.validation, TESTED), part(whole.test, TESTED), unseen=unseen
            )
            said = hashlib.blake2b()
            with tempfile.TemporaryDirectory() as folder:
                run = train(kind, splits, out=f"{folder}/run").run
                for name, tensor in sorted(run.load_model().state_dict().items()):
                    said.update(name.encode() + tensor.numpy().tobytes())
                plain = without_mirror(cast(Any, SimpleNamespace(run=run)), splits)
                for split in ("train", "test"):
                    said.update(run.codes(split).packed.tobytes() + (plain(split).packed.tobytes() if plain else b""))
                if kind.hold_out_classes:
                    said.update(repr(seen_and_unseen(kind, splits, f"{folder}/again")).encode())
            seen[kind] = said.hexdigest()
            print(cell.name, amp, seen[kind][:8], file=sys.stderr)
        found[cell.name + str(cell.protocol)] = [cell.code, *(seen[replace(config, amp=amp)] for amp in (None, False))]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", nargs="?")
    parser.add_argument("--own", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.own:
        print(json.dumps(own()))
        return
    packed = subprocess.run(["git", "archive", arguments.commit], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=BytesIO(packed.stdout)) as archive:
            archive.extractall(folder, filter="data")
        before = trained_by(Path(folder))
    now, results = trained_by(ROOT), ROOT / "benchmarks" / "RESULTS.md"
    text, rows = results.read_text(), 0
    for name, (code, *made) in now.items():
        (code_before, *made_before) = before.get(name, ("",))
        same = made == made_before
        print(f"{name}: {'the same' if same else 'not the same'}")
        if same and code != code_before:
            old, new = (f"code {digits} |" for digits in (code_before, code))
            rows += text.count(old)
            text = text.replace(old, new)
    results.write_text(text)
    print(f"{rows} rows have other digits now")


if __name__ == "__main__":
    main()
