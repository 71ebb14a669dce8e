"""The honest baseline where classes are seen: a plain classifier with the same backbone and recipe.

Its codes come in two ways: the sign of a PCA of what its last layer is given, and the number of the class it predicts,
written as bits (Sablayrolles et al., *How Should We Evaluate Supervised Hashing?*, 2016).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from dsh_cli import CodeSet, TrainConfig, evaluate, evaluate_run, train
from dsh_cli.analysis.protocols import compared
from dsh_cli.codes.bits import pack
from dsh_cli.config import UNSEEN, Among, Recipe
from dsh_cli.data.dataset import Dataset
from dsh_cli.data.splits import Splits
from dsh_cli.network.device import choose_device
from dsh_cli.network.encoding import to_float
from dsh_cli.network.model import HashNet
from dsh_cli.training.batches import make_batches
from dsh_cli.training.optimizer import make_optimizers, make_schedules
from dsh_cli.training.recipe import model_config, settle
from dsh_cli.training.start import deterministic, starting_network

AMONG: tuple[Among, ...] = ("seen", "unseen", "all")


def seen_and_unseen(config: TrainConfig, splits: Splits, out: str) -> dict[str, str]:
    """Train both, and measure each on classes seen, unseen and all: figures by name."""
    run = train(config, splits, out=out).run
    figures = {f"dsh {among}": f"{evaluate_run(run, among=among).map:.4f}" for among in AMONG}
    figures["dsh bits"] = f"{config.bits}"
    recipe = settle(config, splits)
    with deterministic(recipe.seed):
        net = classifier(recipe, splits)
    outputs = {split: _outputs(net, part) for split, part in splits.parts().items()}
    pca = PCA(config.bits, random_state=config.seed).fit(outputs["train"][0])
    number_bits = max(1, (len(np.unique(splits.train.labels)) - 1).bit_length())
    ways: dict[str, Callable[[str], NDArray[np.bool_]]] = {
        "pca": lambda split: pca.transform(outputs[split][0]) > 0,
        "id": lambda split: (outputs[split][1][:, None] >> np.arange(number_bits)) & 1 > 0,
    }
    for way, bits_of in ways.items():
        codes = {split: _coded(bits_of(split), part) for split, part in splits.parts().items()}
        figures[f"{way} bits"] = f"{codes['test'].bits}"
        for among in AMONG:
            parts = compared(config.protocol, codes.__getitem__, UNSEEN in codes, among)
            figures[f"{way} {among}"] = f"{evaluate(*parts).map:.4f}"
    return figures


def classifier(config: Recipe, splits: Splits) -> HashNet:
    """The backbone with a layer of as many outputs as classes are seen, trained by cross-entropy."""
    device = choose_device(config.device)
    seen = torch.from_numpy(np.unique(splits.train.labels)).to(device)
    net, _ = starting_network(config, replace(model_config(config, splits), bits=len(seen)), splits, None)
    net = net.to(device).to(memory_format=torch.channels_last)
    batches = make_batches(config, splits.train, device)
    optimizers = make_optimizers(net, config)
    schedules = make_schedules(optimizers, config, len(batches) * config.epochs)
    for epoch in range(config.epochs):
        for images, labels in batches.epoch(epoch):
            with torch.autocast(device.type, torch.bfloat16, enabled=config.amp):
                logits = net(images).float()
            net.zero_grad(set_to_none=True)
            loss = F.cross_entropy(logits, torch.searchsorted(seen, labels))
            loss.backward()  # type: ignore[no-untyped-call]  # PyTorch says no types of it
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
    return net.eval()


def _outputs(net: HashNet, dataset: Dataset) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """What the last layer is given, (n, outputs), and the number of the class that comes out, (n,)."""
    features, numbers = [], []
    assert isinstance(dataset.images, np.ndarray)  # digits and MNIST are held in memory
    with torch.inference_mode():
        for start in range(0, len(dataset), 500):
            pictures = to_float(torch.tensor(dataset.images[start : start + 500], device=net.mean.device))
            outputs = net.backbone((pictures - net.mean) / net.std)
            features.append(outputs.cpu())
            numbers.append(net.hash_layer(outputs).argmax(dim=1).cpu())
    return torch.cat(features).numpy(), torch.cat(numbers).numpy()


def _coded(bits: NDArray[np.bool_], dataset: Dataset) -> CodeSet:
    return CodeSet(bits.shape[1], pack(bits), dataset.labels, dataset.classes, ())
