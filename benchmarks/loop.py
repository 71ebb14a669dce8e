"""Where the training loop spends its time: the line of the loop it is at, looked at every five milliseconds.

python benchmarks/loop.py                       # an epoch of MNIST
python benchmarks/loop.py --data cifar10-jpeg
"""

from __future__ import annotations

import argparse
import linecache
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from _report import append

from dsh_cli import TrainConfig, load_splits, train
from dsh_cli.training import loop

EVERY = 0.005  # seconds
# The first of these that a line of the loop contains is what it is at.
PARTS = {
    "forward(images)": "forward",
    "with precision": "forward",
    "dsh_loss(": "loss",
    "centers.term(": "loss",
    "loss.backward()": "backward",
    "optimizer.step()": "step",
    "zero_grad": "step",
    "batches.epoch(epoch)": "batches",
}
SOURCE = Path(loop.__file__).read_text().splitlines()
FIRST = next(number for number, line in enumerate(SOURCE, 1) if "in enumerate(batches.epoch(epoch), 1)" in line)
LAST = next(number for number, line in enumerate(SOURCE, 1) if line == "        if not done:")
INSIDE = range(FIRST, LAST)  # lines of the loop over batches


class Sampler(threading.Thread):
    """Looks at what another thread is doing."""

    def __init__(self, thread: int) -> None:
        super().__init__(daemon=True)
        self.thread, self.seen, self.ended = thread, Counter[str](), False

    def run(self) -> None:
        while not self.ended:
            frame = sys._current_frames().get(self.thread)
            while frame is not None and frame.f_code.co_name != "_train":
                frame = frame.f_back
            if frame is not None and frame.f_lineno in INSIDE:
                line = linecache.getline(loop.__file__, frame.f_lineno)
                self.seen[next((part for text, part in PARTS.items() if text in line), "other")] += 1
            time.sleep(EVERY)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist")
    arguments = parser.parse_args()
    config = TrainConfig(data=arguments.data, epochs=2, tensorboard=False)
    splits = load_splits(config)
    sampler = Sampler(threading.get_ident())
    sampler.start()
    with tempfile.TemporaryDirectory() as folder:
        train(config, splits, out=f"{folder}/run")
    sampler.ended = True
    loop = sampler.seen
    total = sum(loop.values())
    shares = ", ".join(f"{part} {count / total:.1%}" for part, count in loop.most_common())
    useful = sum(loop[part] for part in ("forward", "loss", "backward", "step")) / total
    append(f"loop, {arguments.data}", f"{useful:.1%} in forward, loss, backward and step: {shares}")


if __name__ == "__main__":
    main()
