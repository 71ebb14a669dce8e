"""The recipe of the implementation this project starts from, against the default recipe, in one process.

Built from its description: inputs normalised by .1307 and .3081; residual blocks 1 -> 16, 16 -> 16, 16 -> 16 with
stride 2, each of two 3x3 convolutions without bias and with BatchNorm, ReLU between and after the sum, a 3x3
convolution with BatchNorm as shortcut where the shape changes; 3136 -> k; Xavier-normal weights; Adam 3e-4,
batches of 128; each picture of an epoch paired with one other at random; squared distance averaged over bits,
margin 5; each term a batch mean; the last partial batch dropped.

Both are stopped now and then, their clock with them, and measured with BatchNorm in evaluation mode: tie-aware
mAP of 2,000 test pictures against 10,000 training pictures, the same ones for both.

    python benchmarks/reference_recipe.py --limit 900
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator
from statistics import mean
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from _report import append, hold_to_avx2, isa, number_format
from torch import Tensor, nn

from dsh_cli import TrainConfig, load_splits
from dsh_cli.analysis.retrieval import mean_average_precision
from dsh_cli.codes.bits import binarize, pack
from dsh_cli.codes.centers import drawn
from dsh_cli.codes.sets import CodeSet
from dsh_cli.config import ModelConfig, Recipe
from dsh_cli.data.dataset import Dataset
from dsh_cli.data.splits import Splits
from dsh_cli.network.encoding import TorchEncoder
from dsh_cli.network.model import HashNet
from dsh_cli.training.batches import make_batches
from dsh_cli.training.objective import CenterObjective
from dsh_cli.training.optimizer import make_optimizers, make_schedules
from dsh_cli.training.recipe import model_config, settle
from dsh_cli.training.start import starting_network

TARGETS = (0.80, 0.95, 0.98)
EPOCHS = 40  # of the reference, after which it is stopped


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ReferenceNet(nn.Module):
    def __init__(self, bits: int) -> None:
        super().__init__()
        self.config = ModelConfig("small-resnet", bits, 1, 28)  # only its bits are read
        self.register_buffer("mean", torch.tensor(0.1307))
        self.body = nn.Sequential(Block(1, 16, 1), Block(16, 16, 1), Block(16, 16, 2), nn.Flatten())
        self.head = nn.Linear(3136, bits)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        relaxed: Tensor = self.head(self.body((images - 0.1307) / 0.3081))
        return relaxed

    def folded(self) -> ReferenceNet:
        """A copy to encode with, as `dsh_cli.network.encoding` asks a network for; nothing in it is folded."""
        return copy.deepcopy(self).eval()


Net = HashNet | ReferenceNet  # which both have all that encoding asks for


def reference_steps(splits: Splits, seed: int, bits: int) -> Iterator[Net]:
    torch.manual_seed(seed)
    net = ReferenceNet(bits)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-4)
    images = torch.from_numpy(splits.train.images).permute(0, 3, 1, 2)
    labels = torch.from_numpy(splits.train.labels)
    for _ in range(EPOCHS):
        order = torch.randperm(len(labels))
        partners = torch.randperm(len(labels))
        for start in range(0, len(order) - 127, 128):
            one, two = order[start : start + 128], partners[start : start + 128]
            b1, b2 = net(images[one].float() / 255), net(images[two].float() / 255)
            y = (labels[one] != labels[two]).float()
            squared = (b1 - b2).square().mean(dim=1)
            quantization = (b1.abs() - 1).abs().mean() + (b2.abs() - 1).abs().mean()
            pull, push = 0.5 * (1 - y) * squared, 0.5 * y * (5 - squared).clamp_min(0)
            loss = pull.mean() + push.mean() + 0.01 * quantization
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield net


def default_steps(splits: Splits, config: Recipe) -> Iterator[Net]:
    torch.manual_seed(config.seed)
    net, _ = starting_network(config, model_config(config, splits), splits, None)
    net = net.to(memory_format=torch.channels_last)
    batches = make_batches(config, splits.train, torch.device("cpu"))
    optimizers = make_optimizers(net, config)
    schedules = make_schedules(optimizers, config, len(batches) * config.epochs)
    seen = np.unique(splits.train.labels)
    assert config.smoothing is not None
    centers = drawn(config.bits, len(seen), config.seed)
    objective = CenterObjective(seen, centers, config.smoothing, torch.device("cpu"))
    net.train()
    for epoch in range(config.epochs):
        for images, labels in batches.epoch(epoch):
            with torch.autocast("cpu", torch.bfloat16, enabled=config.amp):
                relaxed = net(images).float()
            net.zero_grad(set_to_none=True)
            objective(relaxed, labels).total.backward()  # type: ignore[no-untyped-call]  # PyTorch says no types of it
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
            yield net


def measure(net: Net, queries: Dataset, database: Dataset) -> float:
    sets = []
    for part, n in ((queries, 2000), (database, 10_000)):
        assert isinstance(part.images, np.ndarray)  # MNIST is held in memory
        packed = pack(binarize(TorchEncoder(cast(HashNet, net)).relaxed(part.images[:n])))
        sets.append(CodeSet(net.config.bits, packed, part.labels[:n], part.classes, ()))
    return mean_average_precision(*sets)


def seconds_to(
    steps: Iterator[Net], splits: Splits, every: float, limit: float
) -> tuple[dict[float, float], float, float]:
    """Training seconds until each target is reached, looking about every `every` seconds; all seconds; the last mAP."""
    reached: dict[float, float] = {}
    clock = looked = value = 0.0
    started = time.perf_counter()
    for net in steps:
        now = clock + time.perf_counter() - started
        if now - looked < every and now < limit:
            continue
        clock = looked = now
        value = measure(net, splits.test, splits.train)
        net.train()
        reached |= {target: now for target in TARGETS if target not in reached and value >= target}
        print(f"  {now:6.1f} s  mAP {value:.4f}", flush=True)
        if len(reached) == len(TARGETS) or now >= limit:
            break
        started = time.perf_counter()
    else:
        clock += time.perf_counter() - started
        value = measure(net, splits.test, splits.train)
        reached |= {target: clock for target in TARGETS if target not in reached and value >= target}
    return reached, clock, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--bits", type=int, default=8)
    parser.add_argument(
        "--limit", type=float, default=1800, help="seconds of training after which to give up, if before 40 epochs"
    )
    parser.add_argument("--avx2", action="store_true", help="hold the processor to AVX2, and train in float32")
    arguments = parser.parse_args()
    if arguments.avx2:
        hold_to_avx2()
    ratios: dict[float, list[tuple[float, bool]]] = {target: [] for target in TARGETS}
    for seed in arguments.seeds:
        config = TrainConfig(bits=arguments.bits, seed=seed, device="cpu", amp=False if arguments.avx2 else None)
        splits = load_splits(config)
        recipe = settle(config, splits)
        where = f"isa {isa()}, the default in {number_format(recipe.amp)}"
        ours, *_ = seconds_to(default_steps(splits, recipe), splits, 1.0, arguments.limit)
        theirs, spent, last = seconds_to(reference_steps(splits, seed, arguments.bits), splits, 30.0, arguments.limit)
        for target in TARGETS:
            if target not in ours:
                append(
                    f"mnist, {arguments.bits} bits, seed {seed}, seconds to mAP {target:.2f}", "default: not reached"
                )
                continue
            arrived = target in theirs
            seconds = theirs.get(target, spent)
            ratios[target].append((seconds / ours[target], arrived))
            reference = f"{seconds:.0f} s" if arrived else f"not in {seconds:.0f} s (mAP {last:.3f})"
            append(
                f"mnist, {arguments.bits} bits, seed {seed}, seconds to mAP {target:.2f}",
                f"default {ours[target]:.1f} s, reference {reference}, "
                f"ratio {'' if arrived else '>= '}{seconds / ours[target]:.1f}; {where}",
            )
    for target, values in ratios.items():
        if values:
            bound = "" if all(arrived for _, arrived in values) else ">= "
            append(
                f"mnist, {arguments.bits} bits, mean of seeds {arguments.seeds}, seconds to mAP {target:.2f}",
                f"ratio reference / default {bound}{mean(ratio for ratio, _ in values):.1f}; {where}",
            )


if __name__ == "__main__":
    main()
