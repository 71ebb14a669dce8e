"""Trainings killed at any moment go on to the very weights an uninterrupted one would have had."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dsh_cli import TrainConfig, load_splits, train
from dsh_cli.runs.run import Run
from tests.support.killed import BATCH, EPOCH, MOMENTS, train_and_die
from tests.support.runs import identical, weights

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
BFLOAT16 = bool(torch.cpu.get_capabilities().get("avx512_bf16"))
# Hash centers, pictures in files, bfloat16: at each moment these and the opposite of all three, so that
# every two of the choices come together.
CHOICES = [
    (False, False, False),
    (False, True, True),
    (True, False, True),
    (True, True, False),
    (False, False, True),
    (False, True, False),
]
CASES = [
    (moment, *(choice != other for choice in choices))
    for moment, choices in zip(MOMENTS, CHOICES, strict=True)
    for other in (False, True)
]


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes that begin with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.killed"])
    return context


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 4 classes with 24 small pictures each, one of which cannot be read."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(96):
        pixels = rng.integers(0, 120, (8, 8), np.uint8) + 30 * (number % 4)
        path = root / str(number % 4) / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    (root / "0" / "0.png").write_bytes(b"no picture")
    return root


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[TrainConfig, Run]]:
    """Trainings that nothing interrupted, as far as they were asked for."""
    yield {}


@pytest.mark.parametrize(("moment", "centers", "files", "amp"), CASES)
def test_a_killed_training_goes_on_as_if_it_had_not_been(
    processes: ForkServerContext,
    pictures: Path,
    whole: dict[TrainConfig, Run],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    moment: str,
    centers: bool,
    files: bool,
    amp: bool,
) -> None:
    if amp and not BFLOAT16:
        pytest.skip("this processor cannot compute in bfloat16")
    options: dict[str, Any] = {"memory": 0.0, "workers": 2, "per_class": 2} if files else {}
    config = TrainConfig(data=str(pictures), epochs=3, batch_size=12, device="cpu", tensorboard=False, cache="off")
    config = replace(config, backbone="small-resnet", centers="auto" if centers else "none", amp=amp, **options)
    process = processes.Process(target=train_and_die, args=(config, str(tmp_path / "run"), moment))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    splits = load_splits(config)
    if config not in whole:
        whole[config] = train(config, splits, str(tmp_path_factory.mktemp("whole") / "run")).run
    part = Run.open(tmp_path / "run")
    state = part.load_state()
    within = int(state["epoch.batches"]) if "epoch.batches" in state else 0
    assert (int(state["epochs_done"]), within) in {
        MOMENTS[0]: [(EPOCH - 1, 0)],
        MOMENTS[3]: [(EPOCH - 1, 0)],
        MOMENTS[4]: [(EPOCH - 1, BATCH), (EPOCH - 1, 0)],  # which of the two is for the run to decide
    }.get(moment, [(EPOCH - 1, BATCH)])
    (part.path / ".tmpA1b2C3").write_bytes(b"of safetensors, where it was killed as it wrote")
    resumed = train(part.config, splits, resume=part).run
    assert identical(weights(whole[config]), weights(resumed))
    assert not [name for name in os.listdir(resumed.path) if name.startswith((".", "state"))]
