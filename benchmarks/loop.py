"""Where the training loop spends its time: what it has called, looked at every five milliseconds.

python benchmarks/loop.py                       # an epoch of MNIST
python benchmarks/loop.py --data cifar10-jpeg
python benchmarks/loop.py --avx2                # held to AVX2, in float32
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import replace

from _report import append, hold_to_avx2, isa, number_format

from dsh_cli import TrainConfig, load_splits, train
from dsh_cli.training.events import EpochStats, Quiet

EVERY = 0.005  # seconds
LOOP = "_Loop.epoch"
# What the loop calls, by its qualified name; the loop itself, and all else, is other.
PARTS = {
    "Module._wrapped_call_impl": "forward",
    "CenterObjective.__call__": "loss",
    "Tensor.backward": "backward",
    "LRScheduler.__init__.<locals>.patch_track_step_called.<locals>.wrap_step.<locals>.wrapper": "step",
    "Module.zero_grad": "step",
    "Batches.epoch": "batches",
}


class Sampler(threading.Thread):
    """Looks at what another thread is doing."""

    def __init__(self, thread: int) -> None:
        super().__init__(daemon=True)
        self.thread, self.seen, self.ended = thread, Counter[str](), False

    def run(self) -> None:
        while not self.ended:
            frame, called = sys._current_frames().get(self.thread), ""
            while frame is not None and (name := frame.f_code.co_qualname) != LOOP:
                frame, called = frame.f_back, name
            if frame is not None:
                self.seen[PARTS.get(called, "other")] += 1
            time.sleep(EVERY)


class Speed(Quiet):
    """Keeps how fast the last epoch was."""

    def on_epoch(self, stats: EpochStats) -> None:
        self.rate = stats.images_per_second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--avx2", action="store_true", help="hold the processor to AVX2, and train in float32")
    arguments = parser.parse_args()
    config = TrainConfig(data=arguments.data, epochs=2, tensorboard=False)
    if arguments.avx2:
        hold_to_avx2()
        config = replace(config, device="cpu", amp=False)
    splits = load_splits(config)
    speed = Speed()
    sampler = Sampler(threading.get_ident())
    sampler.start()
    with tempfile.TemporaryDirectory() as folder:
        run = train(config, splits, out=f"{folder}/run", listeners=[speed]).run
    sampler.ended = True
    loop = sampler.seen
    total = sum(loop.values())
    shares = ", ".join(f"{part} {count / total:.1%}" for part, count in loop.most_common())
    useful = sum(loop[part] for part in ("forward", "loss", "backward", "step")) / total
    device = run.metrics["device"].partition(":")[0]
    where = f"{speed.rate:,.0f} img/s, isa {isa()}, {number_format(run.config.amp)}"
    append(f"loop, {arguments.data}", f"{useful:.1%} in forward, loss, backward and step: {shares}; {where}", device)


if __name__ == "__main__":
    main()
