"""Networks by name, and what their weights expect."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from dsh_cli.config import OWN_BACKBONES
from dsh_cli.errors import UsageError

FROM_TENSORFLOW = ("googlenet", "inception_v3")  # their weights expect -1 to 1; torchvision converts inside the net


def check_backbone(name: str) -> None:
    """Refuse a name that no network has.

    Raises:
        UsageError: the message has the closest names.
    """
    if name in OWN_BACKBONES:
        return
    from torchvision import models  # takes seconds

    names = [*OWN_BACKBONES, *models.list_models(module=models)]
    if name not in names:
        close = difflib.get_close_matches(name, names, n=4, cutoff=0.5)
        raise UsageError(
            f"`backbone` {name}: there is no such network; "
            + (f"did you mean {', '.join(close)}?" if close else f"try {', '.join(names[:3])}, resnet18, vit_b_16")
        )


@dataclass(frozen=True)
class Preset:
    """Torchvision's best weights of a network, and what they expect."""

    url: str
    image_size: int  # pixels, square
    mean: tuple[float, ...]
    std: tuple[float, ...]


def preset(name: str) -> Preset:
    """What torchvision says of the weights of one of its networks; fetches nothing.

    Raises:
        UsageError: there is no such network.
    """
    from torchvision import models

    check_backbone(name)
    weights = models.get_model_weights(name).DEFAULT
    expected = weights.transforms()
    mean, std = tuple(expected.mean), tuple(expected.std)
    if name in FROM_TENSORFLOW:
        mean = std = (0.5, 0.5, 0.5)
    return Preset(weights.url, expected.crop_size[0], mean, std)
