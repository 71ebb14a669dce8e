"""Networks by name, and what their weights expect."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from dsh_cli.config import AUTO, DATASETS, OWN_BACKBONES, TIMM, VECTORS, Fit, Interpolation, TrainConfig
from dsh_cli.errors import UsageError

FROM_TENSORFLOW = ("googlenet", "inception_v3")  # their weights expect -1 to 1; torchvision converts inside the net
FOR_PHOTOS = (f"{TIMM}tf_efficientnet_lite0", "resnet18")  # whose features a processor makes in no time
_NAMED = 4  # names that are close to one, in an error
_FITS: dict[str, Fit] = {"center": "crop", "squash": "stretch", "border": "pad"}  # as timm calls them


def check_backbone(name: str) -> None:
    """Refuse a name that no network has.

    Raises:
        UsageError: the message has the closest names, or how to install timm.
    """
    if name in OWN_BACKBONES or name in (AUTO, VECTORS):
        return
    if name.startswith(TIMM):
        _check_timm(name.removeprefix(TIMM))
        return
    from torchvision import models  # takes seconds

    names = [*OWN_BACKBONES, *models.list_models(module=models)]
    if name not in names:
        close = difflib.get_close_matches(name, names, n=_NAMED, cutoff=0.5)
        raise UsageError(
            f"`backbone` {name}: there is no such network; "
            + (f"did you mean {', '.join(close)}?" if close else f"try {', '.join(names[:3])}, resnet18, vit_b_16")
        )


def _check_timm(name: str) -> None:
    timm = timm_module()
    known = _timm_names()
    if timm.is_model(name) and ("." not in name or name in known):
        return
    close = [one for one, hub in known.items() if name and name.lower() in hub.lower()][:_NAMED]
    close = close or difflib.get_close_matches(name, known, n=_NAMED, cutoff=0.5)
    instead = [f"{TIMM}{one}" for one in close or ("tf_efficientnet_lite0", "vit_small_patch14_dinov2", "resnet18")]
    raise UsageError(
        f"`backbone` {TIMM}{name}: timm has no such network; {'did you mean' if close else 'try'} {', '.join(instead)}"
        + "?" * bool(close)
    )


def timm_module() -> ModuleType:
    """The package, which takes a second to import.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise UsageError(
            f"`backbone` {TIMM}...: timm is not installed; install it with: pip install 'dsh-cli[timm]'"
        ) from error
    module: ModuleType = timm
    return module


@cache
def _timm_names() -> dict[str, str]:
    """Timm's networks, those with weights by the name of these too, and where on its hub they lie."""
    timm = timm_module()
    found = {name: str(timm.get_pretrained_cfg(name).hf_hub_id or "") for name in timm.list_pretrained()}
    return {**dict.fromkeys(timm.list_models(), ""), **found}


@dataclass(frozen=True)
class Preset:
    """The weights that torchvision or timm has of a network, and what they expect."""

    url: str | None  # None: timm fetches them
    image_size: int  # pixels, square
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: Fit
    interpolation: Interpolation


def preset(name: str) -> Preset:
    """What torchvision or timm says of the weights of one of its networks; fetches nothing.

    Raises:
        UsageError: there is no such network.
    """
    check_backbone(name)
    if name.startswith(TIMM):
        return _timm_preset(name.removeprefix(TIMM))
    from torchvision import models

    weights = models.get_model_weights(name).DEFAULT
    expected = weights.transforms()
    mean, std = tuple(expected.mean), tuple(expected.std)
    if name in FROM_TENSORFLOW:
        mean = std = (0.5, 0.5, 0.5)
    interpolation = _interpolation(expected.interpolation.value)
    return Preset(weights.url, expected.crop_size[0], mean, std, "crop", interpolation)


def _timm_preset(name: str) -> Preset:
    timm = timm_module()
    found: dict[str, Any] = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    mean, std = tuple(found["mean"]), tuple(found["std"])
    fit = _FITS.get(found["crop_mode"], "crop")
    return Preset(None, found["input_size"][-1], mean, std, fit, _interpolation(found["interpolation"]))


def _interpolation(name: str) -> Interpolation:
    return "bicubic" if name == "bicubic" else "bilinear"


def chosen(config: TrainConfig) -> TrainConfig:
    """A request whose backbone is named: `auto` is one of `FOR_PHOTOS` that stays as it is, where weights are at hand.

    Where none are, or they are not wanted, it is the default, trained from nothing.
    """
    if config.backbone != AUTO:
        return config
    found = None if config.weights is not None or config.data in DATASETS else _at_hand()
    if found is None:
        return replace(
            config, backbone=TrainConfig.backbone, pretrained=False, freeze=config.freeze and config.weights is not None
        )
    return replace(config, backbone=found, pretrained=True, freeze=True)


def _at_hand() -> str | None:
    """The first of `FOR_PHOTOS` whose weights are on this machine."""
    if find_spec("timm") is not None:
        from huggingface_hub import try_to_load_from_cache

        for name in (name for name in FOR_PHOTOS if name.startswith(TIMM)):
            hub = timm_module().get_pretrained_cfg(name.removeprefix(TIMM)).hf_hub_id
            if hub and isinstance(try_to_load_from_cache(hub, "model.safetensors"), str):
                return name
    return next((name for name in FOR_PHOTOS if not name.startswith(TIMM) and file_of(preset(name)).is_file()), None)


def file_of(weights: Preset) -> Path:
    """Where the file of weights of torchvision is, or comes to."""
    import torch

    assert weights.url is not None
    return Path(torch.hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2])


def expecting(config: TrainConfig) -> TrainConfig:
    """A request that asks for the pictures which its weights expect, where it leaves them open.

    The size stays open where there are no such weights, for then it is that of the data; those of timm expect one size
    with weights of a file or none, too.

    Raises:
        UsageError: there is no such network.
    """
    designed = config.pretrained or config.backbone.startswith(TIMM)
    if not designed or None not in (config.image_size, config.fit, config.interpolation):
        return replace(config, fit=config.fit or "crop", interpolation=config.interpolation or "bilinear")
    weights = preset(config.backbone)
    return replace(
        config,
        image_size=config.image_size or weights.image_size,
        fit=config.fit or weights.fit,
        interpolation=config.interpolation or weights.interpolation,
    )
