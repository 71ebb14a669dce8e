"""Run folders: made, found, listed."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import re
import shutil
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from dsh_cli.config import ModelConfig, Recipe
from dsh_cli.errors import DshError, RunError, UsageError
from dsh_cli.runs.run import FORMAT, Run
from dsh_cli.runs.storage import write_json

if TYPE_CHECKING:
    import torch

    from dsh_cli.data.splits import Splits
    from dsh_cli.network.model import HashNet

RUNS = Path("runs")
_PACKAGES = ("dsh-cli", "torch", "torchvision", "numpy")


def create(config: Recipe, model: ModelConfig, splits: Splits, out: str | os.PathLike[str] | None) -> Run:
    """Make the folder of a new run: `out`, or one under `runs/` named after data, bits and time.

    Raises:
        UsageError: `out` is there and holds something.
    """
    require_free(out)
    now = datetime.now().astimezone()
    path = _new_folder(config, now) if out is None else Path(out)
    counts = {split: len(names) for split, names in splits.names().items()}
    run = Run(
        path=path,
        config=config,
        model=model,
        classes=splits.train.classes,
        created=now.isoformat(timespec="seconds"),
        source=splits.train.source,
        counts=counts,
        versions={"python": platform.python_version(), **{package: version(package) for package in _PACKAGES}},
        metrics={},
    )
    head = {
        "format": FORMAT,
        "created": run.created,
        "config": dataclasses.asdict(config),
        "model": dataclasses.asdict(model),
        "classes": run.classes,
        "source": run.source,
        "counts": counts,
        "versions": run.versions,
    }
    try:
        write_json(path / "splits.json", splits.names())
        write_json(path / "config.json", head)  # last, for with it the folder is a run
    except DshError:
        with contextlib.suppress(OSError):
            (path / "splits.json").unlink()
        raise
    return run


def require_free(out: str | os.PathLike[str] | None) -> None:
    """Refuse a place for a new run that holds something.

    Raises:
        UsageError: it does.
    """
    if out is not None and not os.fspath(out):
        raise UsageError("`out` is empty; name a folder, or leave it out")
    if out is None or not os.path.lexists(out) or (os.path.isdir(out) and not os.listdir(out)):
        return
    resumable = False
    with contextlib.suppress(RunError):
        resumable = not Run.open(out).finished
    or_resume = f", or go on with: dsh train --resume {out}" if resumable else ""
    raise UsageError(f"`out` {out} is there already; choose another folder{or_resume}")


def discard(run: Run) -> None:
    """Take back a run that came to nothing: one that has no state to go on from."""
    if not (run.path / "state.safetensors").exists():
        shutil.rmtree(run.path, ignore_errors=True)


def find_run(path: str | None = None) -> Run:
    """The run at `path`, else the newest finished one under `runs/`.

    Raises:
        RunError: there is none.
    """
    if path is not None:
        return Run.open(path)
    runs, _ = list_runs()
    finished = [run for run in runs if run.finished]
    if not finished:
        raise RunError(f"no finished run under {RUNS}/; train one with: dsh train --bits 8")
    return finished[-1]


def list_runs(root: Path = RUNS) -> tuple[list[Run], list[str]]:
    """The runs under a folder, oldest first; and what is wrong with each folder that looks like one and is none."""
    runs, problems = [], []
    for config in sorted(root.glob("*/config.json")):
        try:
            runs.append(Run.open(config.parent))
        except RunError as error:
            problems.append(str(error))
    return sorted(runs, key=lambda run: run.created), problems


def load(path: str | os.PathLike[str] | None = None, device: str | torch.device = "cpu") -> HashNet:
    """The network of a run, ready for inference; without a path, of the newest finished run under `runs/`.

    Raises:
        RunError: there is no such run, or it cannot be read.
    """
    return find_run(None if path is None else os.fspath(path)).load_model(device)


def _new_folder(config: Recipe, now: datetime) -> Path:
    data = re.sub(r"[^\w.-]+", "-", Path(config.data).name).strip("-.") or "data"
    base = f"{data}-{config.bits}bit-{now:%Y%m%d-%H%M%S}"
    candidates = (RUNS / (base if n == 1 else f"{base}-{n}") for n in range(1, 1000))
    return next(path for path in candidates if not path.exists())
