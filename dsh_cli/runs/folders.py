"""Run folders: made, found, listed."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from dsh_cli.config import ModelConfig, Recipe
from dsh_cli.errors import DshError, Interrupted, RunError, UsageError, reason
from dsh_cli.files import saving
from dsh_cli.runs.record import METRICS, is_state, write_record
from dsh_cli.runs.run import FORMAT, LOCK, Run, may_be_run
from dsh_cli.runs.storage import OR_ELSE, digest_of, json_bytes, write_json
from dsh_cli.words import natural

if TYPE_CHECKING:
    import torch

    from dsh_cli.data.splits import Splits
    from dsh_cli.network.model import HashNet

RUNS = Path("runs")
_PACKAGES = ("dsh-cli", "torch", "torchvision", "numpy")


@contextlib.contextmanager
def created(
    config: Recipe, model: ModelConfig, splits: Splits, out: str | os.PathLike[str] | None = None
) -> Iterator[Run]:
    """The folder of a new run, `out`, or one under `runs/` named after data, bits and time; held while in the context.

    It is made by this process alone, and locked before anything is written. Where the context ends by a `DshError`
    before there is a state to go on from, or by anything before the folder is a run, it is taken back.

    Raises:
        UsageError: `out` is there and holds something.
        RunError: another process is making it.
    """
    require_free(out)
    now = datetime.now().astimezone()
    path = _new_folder(config, now) if out is None else _own_folder(Path(out))
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
        metrics={"finished": False, "epochs_done": 0},
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
    with run.held() as run:
        require_free(path)  # from one that was quicker, and has ended since
        try:
            digests = {"splits.json": write_json(path, "splits.json", splits.names())}
            digests["config.json"] = digest_of(json_bytes(head))
            write_record(path, run.metrics, digests)
            write_json(path, "config.json", head)  # last, for with it the folder is a run
            yield dataclasses.replace(run, digests=digests)
        except BaseException as error:
            # by Ctrl-C a run is left to go on with, from its first epoch if need be
            failed = isinstance(error, DshError) and not isinstance(error, Interrupted)
            lost = failed and not _is_finished(path)
            if run.in_place and not _has_states(path) and (lost or not may_be_run(path)):
                _take_back(path)  # nothing half-written
            raise


@contextlib.contextmanager
def resumed(path: str | os.PathLike[str]) -> Iterator[Run]:
    """An unfinished run as it is now, held while in the context.

    Raises:
        UsageError: it is finished.
        RunError: another process is training it, or it is no run.
    """
    with Run.open(path).held() as held:
        run = dataclasses.replace(Run.open(path), place=held.place)
        run.require_unfinished()
        yield run.settled()


def require_free(out: str | os.PathLike[str] | None) -> None:
    """Refuse a place for a new run that holds something, or that cannot be written to as far as can be told.

    Raises:
        UsageError: it does, or cannot.
    """
    if out is not None and not os.fspath(out):
        raise UsageError("`out` is empty; name a folder, or leave it out")
    if out is None or not os.path.lexists(out) or (os.path.isdir(out) and _is_free(os.listdir(out))):
        above = Path(os.path.abspath(RUNS if out is None else out))
        while not os.path.isdir(above) and above != above.parent:
            above = above.parent
        if not os.access(above, os.W_OK | os.X_OK):
            raise UsageError(
                f"a run cannot be written in {above}; make it writable, or choose another folder with `out`"
            )
        return
    resumable = False
    with contextlib.suppress(RunError):
        resumable = not Run.open(out).finished
    or_resume = f", or go on with: dsh train --resume {out}" if resumable else ""
    raise UsageError(f"`out` {out} is there already; choose another folder{or_resume}")


def _is_free(names: Sequence[str]) -> bool:
    """Whether a folder holds nothing but what a writer left that was killed before the folder was a run."""
    left = (LOCK, "splits.json", METRICS)
    scratch = (".splits.json.", f".{METRICS}.", ".config.json.")
    ours = all(name in left or name.startswith(scratch) for name in names)
    return not names or (ours and LOCK in names)


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
    """The runs under a folder, oldest first; and what is wrong with each folder that looks like one and is none.

    Raises:
        RunError: the folder cannot be read.
    """
    runs, problems = [], []
    try:
        folders = sorted(root.iterdir(), key=lambda folder: natural(folder.name))
    except FileNotFoundError:
        folders = []
    except OSError as error:
        raise RunError(f"{root} cannot be read ({reason(error)}); name a run folder with `model`") from error
    for folder in folders:
        if may_be_run(folder):
            try:
                runs.append(Run.open(folder))
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
    """A folder under `runs/` that was not there before."""
    data = re.sub(r"[^\w.-]+", "-", Path(config.data).name).strip("-.") or "data"
    base = f"{data}-{config.bits}bit-{now:%Y%m%d-%H%M%S}"
    _own_folder(RUNS)
    number = 0
    while True:
        number += 1
        path = RUNS / (base if number == 1 else f"{base}-{number}")
        with saving(path, OR_ELSE):
            try:
                path.mkdir()
            except FileExistsError:  # of another process, begun in the same second
                continue
            return path


def _has_states(path: Path) -> bool:
    """Whether there is, or may be, a state to go on from in a folder."""
    try:
        return any(map(is_state, os.listdir(path)))
    except OSError:
        return True


def _is_finished(path: Path) -> bool:
    """Whether a folder is a run that came to its end; not one that cannot be read, for what ended it is to be told."""
    try:
        return Run.open(path).finished
    except RunError:
        return False


def _take_back(path: Path) -> None:
    """Remove a folder that this process holds: moved aside first, so that none is made in what is going."""
    aside = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}")
    try:
        os.replace(path, aside)
    except OSError:
        aside = path
    shutil.rmtree(aside, ignore_errors=True)


def _own_folder(path: Path) -> Path:
    """That folder, made if it is not there."""
    with saving(path, OR_ELSE):
        path.mkdir(parents=True, exist_ok=True)
    return path
