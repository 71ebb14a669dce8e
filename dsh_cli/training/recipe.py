"""The recipe of a run: every open choice of a request made."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import torch

from dsh_cli.config import OWN_BACKBONES, ModelConfig, Recipe, TrainConfig
from dsh_cli.data.dataset import Dataset
from dsh_cli.data.splits import Splits, default_augment
from dsh_cli.network.device import choose_device

# By default, of grey and of colour pictures: 4 epochs of MNIST, see benchmarks/quality.py, and 12 of CIFAR-10, whose
# pictures are harder; 60 times over at most.
_STEPS, _EPOCHS, _MOST = {1: 1180, 3: 3000}, {1: 4, 3: 12}, 60
_PER_CLASS = 4  # pictures of a class in a batch, where classes outnumber what a batch can hold (P x K sampling)
# Below, maps of torchvision's networks come to one pixel before their last stride, where PyTorch 2.14 computes a
# wrong gradient in bfloat16: a 3x3 convolution of stride 2, by oneDNN.
_WIDE = 32  # pixels


def settle(config: TrainConfig, splits: Splits) -> Recipe:
    """The same request with every open choice made."""
    seen = len(np.unique(splits.train.labels))
    scarce = config.batch_size < 2 * seen  # fewer than two of a class in a batch, on average
    choices = {
        "per_class": (_PER_CLASS if scarce else 0) if config.per_class is None else config.per_class,
        "amp": _bfloat16_pays(config, splits.train.image_size) if config.amp is None else config.amp,
        "image_size": splits.train.image_size,
        "epochs": config.epochs or _epochs(splits.train, config.batch_size),
        "augment": config.augment or default_augment(config.data),
        "margin": 2.0 * config.bits if config.margin is None else config.margin,  # DSH, section 3
    }
    return Recipe(**{**asdict(config), **choices})


def _bfloat16_pays(config: TrainConfig, image_size: int) -> bool:
    """Whether bfloat16 is known to train sooner: on processors with instructions for it, see `benchmarks/LOG.md`."""
    if choose_device(config.device).type != "cpu":
        return False
    if config.backbone not in OWN_BACKBONES and image_size < _WIDE:
        return False
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def model_config(config: TrainConfig, splits: Splits) -> ModelConfig:
    """What network a request needs for such pictures."""
    return ModelConfig(config.backbone, config.bits, splits.train.channels, splits.train.image_size)


def _epochs(dataset: Dataset, batch_size: int) -> int:
    """So many that a small set gets about as many steps as MNIST or CIFAR-10, within bounds."""
    batches = max(1, len(dataset) // batch_size)
    return min(max(_EPOCHS[dataset.channels], math.ceil(_STEPS[dataset.channels] / batches)), _MOST)
