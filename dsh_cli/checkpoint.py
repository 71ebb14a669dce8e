"""A run folder: weights, config, classes, splits, codes; saved whole and loaded without executing anything.

    config.json                what was asked, the classes, versions; written first
    splits.json                names of the pictures of each split
    model.safetensors          weights, and the normalisation
    state.safetensors          optimizer and epoch, while unfinished
    codes/<split>.safetensors  packed codes, relaxed codes, labels, thumbnails
    metrics.json               results; `finished` is true only in a run that came to its end
    tensorboard/               event files

Every file is written beside its place and moved there, so a reader finds it whole or not at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from dsh_cli.codes import CodeSet
from dsh_cli.config import ModelConfig, Recipe
from dsh_cli.errors import DshError, RunError, UsageError

if TYPE_CHECKING:
    import torch

    from dsh_cli.data import Splits
    from dsh_cli.model import HashNet

FORMAT = 1  # of the run folder; a reader refuses a larger number
SPLITS = ("train", "validation", "test")
RUNS = Path("runs")

_PACKAGES = ("dsh-cli", "torch", "torchvision", "numpy")


@dataclass(frozen=True)
class Run:
    """A run folder, opened: what its small files say. Codes and weights are read when asked for."""

    path: Path
    config: Recipe
    model: ModelConfig
    classes: tuple[str, ...]
    created: str  # ISO 8601, local time
    source: str  # where the pictures came from
    counts: Mapping[str, int]  # pictures of each split
    versions: Mapping[str, str]
    metrics: Mapping[str, Any]

    @property
    def finished(self) -> bool:
        """Whether the training came to its end."""
        return bool(self.metrics.get("finished"))

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())

    @property
    def begun(self) -> bool:
        """Whether there is a state to go on from."""
        return (self.path / "state.safetensors").is_file()

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Run:
        """Read a run folder.

        Raises:
            RunError: it is no run, is damaged, or was written in a newer format.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise RunError(f"no run folder at {folder}; list the runs there are with: dsh info")
        if not (folder / "config.json").is_file():
            raise RunError(f"{folder} is not a run folder (it has no config.json); make one with: dsh train")
        head = _read_json(folder / "config.json")
        if not isinstance(head.get("format"), int):
            raise RunError(f"{folder / 'config.json'} is not that of a run; make one with: dsh train")
        if head["format"] > FORMAT:
            raise RunError(
                f"{folder} has format {head['format']}, newer than {FORMAT}, the newest this dsh reads; "
                "upgrade with: pip install --upgrade dsh-cli"
            )
        metrics = _read_json(folder / "metrics.json") if (folder / "metrics.json").is_file() else {}
        try:
            if metrics.get("finished") and not {"map", "seconds", "min_class_distance"} <= metrics.keys():
                raise ValueError("a finished run without results")
            return cls(
                path=folder,
                config=Recipe(**head["config"]),
                model=ModelConfig(**head["model"]),
                classes=tuple(head["classes"]),
                created=head["created"],
                source=head["source"],
                counts=dict(head["counts"]),
                versions=dict(head["versions"]),
                metrics=metrics,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"{folder} is damaged (config.json or metrics.json: {error}); train again with: dsh train"
            ) from error

    def codes(self, split: str) -> CodeSet:
        """The codes of one split, without names.

        Raises:
            RunError: they are missing or damaged.
        """
        file = self.path / "codes" / f"{split}.safetensors"
        self._require_finished()
        tensors = _read_tensors(file)
        count, width = self.counts.get(split), -(-self.model.bits // 8)
        shapes = {name: array.shape for name, array in tensors.items()}
        if shapes.get("packed") != (count, width) or any(shape[0] != count for shape in shapes.values()):
            raise RunError(f"{file} does not fit config.json; train again with: dsh train --like {self.path}")
        try:
            return CodeSet(
                bits=self.model.bits,
                packed=tensors["packed"],
                labels=tensors["labels"].astype(np.int64),
                classes=self.classes,
                names=(),
                relaxed=tensors["relaxed"],
                thumbnails=tensors["thumbnails"],
            )
        except KeyError as error:
            raise RunError(f"{file} lacks {error}; train again with: dsh train --like {self.path}") from error

    def names(self) -> dict[str, tuple[str, ...]]:
        """Names of the pictures of each split, in the order of its codes."""
        return {split: tuple(names) for split, names in _read_json(self.path / "splits.json").items()}

    def load_model(self, device: str | torch.device = "cpu") -> HashNet:
        """The network, ready for inference.

        Raises:
            RunError: the weights are missing, damaged, or not those of this network.
        """
        from dsh_cli.model import HashNet

        self._require_finished()
        try:
            net = HashNet(self.model)
            net.load_state_dict(self._tensors("model.safetensors"))
        except UsageError as error:
            raise RunError(f"{self.path} is damaged (config.json: {error}); train again with: dsh train") from error
        except RuntimeError as error:
            raise RunError(
                f"{self.path / 'model.safetensors'} does not fit the network of config.json; "
                f"train again with: dsh train --like {self.path}"
            ) from error
        return net.to(device).eval()

    def load_state(self) -> dict[str, torch.Tensor]:
        """What `write_state` saved after the last whole epoch; empty if there was none."""
        return self._tensors("state.safetensors") if self.begun else {}

    def _tensors(self, name: str) -> dict[str, torch.Tensor]:
        import torch

        # copied, for a buffer of bytes cannot be written to
        return {key: torch.from_numpy(value.copy()) for key, value in _read_tensors(self.path / name).items()}

    def _require_finished(self) -> None:
        if not self.finished:
            raise RunError(f"{self.path} is unfinished; go on with: dsh train --resume {self.path}")

    # Writing

    def write_state(self, tensors: Mapping[str, torch.Tensor], epochs_done: int) -> None:
        """Save what it takes to go on after `epochs_done` epochs."""
        _write_tensors(self.path / "state.safetensors", tensors)
        _write_json(self.path / "metrics.json", {"finished": False, "epochs_done": epochs_done})

    def write_results(self, net: HashNet, codes: Mapping[str, CodeSet], metrics: Mapping[str, Any]) -> Run:
        """Save a finished run; `metrics.json` comes last, and only with it the run counts as finished."""
        _write_tensors(self.path / "model.safetensors", net.state_dict())
        for split, of_split in codes.items():
            arrays: dict[str, NDArray[Any]] = {"packed": of_split.packed, "labels": of_split.labels.astype(np.int32)}
            optional = {"relaxed": of_split.relaxed, "thumbnails": of_split.thumbnails}
            arrays |= {name: array for name, array in optional.items() if array is not None}
            _write_arrays(self.path / "codes" / f"{split}.safetensors", arrays)
        results = {"finished": True, **metrics}
        _write_json(self.path / "metrics.json", results)
        (self.path / "state.safetensors").unlink(missing_ok=True)
        return dataclasses.replace(self, metrics=results)


def create(config: Recipe, model: ModelConfig, splits: Splits, out: str | os.PathLike[str] | None) -> Run:
    """Make the folder of a new run: `out`, or one under `runs/` named after data, bits and time.

    Raises:
        UsageError: `out` is there and holds something.
    """
    now = datetime.now().astimezone()
    path = _new_folder(config, now) if out is None else Path(out)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"{path} is there already, and not empty; choose another --out, or go on with --resume {path}")
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
    _write_json(path / "config.json", head)
    _write_json(path / "splits.json", splits.names())
    return run


def find_run(path: str | None = None) -> Run:
    """The run at `path`, else the newest finished one under `runs/`.

    Raises:
        RunError: there is none.
    """
    if path is not None:
        return Run.open(path)
    finished = [run for run in list_runs() if run.finished]
    if not finished:
        raise RunError(f"no finished run under {RUNS}/; train one with: dsh train --bits 8")
    return finished[-1]


def list_runs(root: Path = RUNS) -> list[Run]:
    """The runs under a folder, oldest first; what cannot be read as a run is left out."""
    runs = []
    for config in sorted(root.glob("*/config.json")):
        with contextlib.suppress(RunError):
            runs.append(Run.open(config.parent))
    return sorted(runs, key=lambda run: run.created)


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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}); train again with: dsh train") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} is damaged; train again with: dsh train")
    return content


def _read_tensors(path: Path) -> dict[str, NDArray[Any]]:
    try:
        return safetensors.numpy.load(path.read_bytes())
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing; train again with: dsh train --like {path.parent}") from error
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise RunError(f"{path} is damaged ({error}); train again with: dsh train") from error


def _write_json(path: Path, content: object) -> None:
    _write(path, (json.dumps(content, indent=1) + "\n").encode())


def _write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    _write_arrays(path, {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in tensors.items()})


def _write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    _write(path, safetensors.numpy.save({name: np.asarray(array, order="C") for name, array in arrays.items()}))


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except OSError as error:
        raise DshError(f"cannot write {path}: {error.strerror}; free space, or choose another --out") from error
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink()
