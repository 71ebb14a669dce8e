"""Network and pictures -> codes, by torch: the reference for codes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsh_cli.network.encoder import VECTORS_AT_ONCE, Encoder
from dsh_cli.network.model import HashNet

_SETTING = threading.Lock()  # while the number of threads to come is not what it was


class TorchEncoder(Encoder):
    """A copy of a network in evaluation mode, folded for speed, on its device."""

    def __init__(self, net: HashNet) -> None:
        super().__init__(net.config)
        self.mirror, self.device = net.config.mirror, net.mean.device
        self.in_turn = self.device.type != "cpu"
        self._net = net.folded()

    def _computed(self, inputs: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.float32]:
        tensor = torch.tensor(inputs, device=self.device)
        with torch.inference_mode(), self._exactly():
            outputs: Tensor = self._net(tensor if self.model.of_vectors else to_float(tensor))
        found: NDArray[np.float32] = outputs.cpu().numpy()
        return found

    def features(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(n, H, W, channels) uint8 pictures -> (n, d) of what the backbone gives."""
        with torch.inference_mode(), self._exactly():
            parts = [
                self._net.features(to_float(torch.tensor(pictures[start : start + self.at_once], device=self.device)))
                for start in range(0, len(pictures), self.at_once)
            ]
        return torch.cat([part.float().cpu() for part in parts]).numpy()

    def of_features(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, views, d) features, or vectors -> (n, k) outputs, the mean of those of the views.

        Raises:
            DivergedError: as in `relaxed`.
        """
        count, views, width = features.shape
        last = self._net if self.model.of_vectors else self._net.of_features
        with torch.inference_mode():
            parts = [
                last(torch.tensor(features[start : start + VECTORS_AT_ONCE], device=self.device).view(-1, width))
                .view(-1, views, self.bits)
                .mean(dim=1)
                .cpu()
                .numpy()
                for start in range(0, count, VECTORS_AT_ONCE)
            ]
        return self.sound(parts)

    def _exactly(self) -> AbstractContextManager[None]:
        """In float32 on a GPU too, whose convolutions else round to ten bits: codes are those of any processor."""
        on_gpu = self.device.type == "cuda"
        return torch.backends.cudnn.flags(enabled=True, allow_tf32=False) if on_gpu else nullcontext()

    def _made_ready(self, workers: int) -> Callable[[], None]:
        with _SETTING:
            threads = max(1, torch.get_num_threads() // workers)
        return lambda: _compute_with(threads)


def _compute_with(threads: int) -> None:
    """Let this thread compute with so many. Torch takes the number for threads to come too, so they get theirs back."""
    with _SETTING:
        others = torch.get_num_threads()
        torch.set_num_threads(threads)
        restoring = threading.Thread(target=torch.set_num_threads, args=(others,))
        restoring.start()
        restoring.join()


def to_float(images: Tensor) -> Tensor:
    """(B, H, W, channels) uint8 -> (B, channels, H, W) float in [0, 1], a view that is channels last."""
    return images.permute(0, 3, 1, 2).float().div_(255)
