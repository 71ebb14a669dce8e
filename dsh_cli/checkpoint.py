"""A run folder: weights, config, classes, splits, codes; saved whole and loaded without executing anything.

    splits.json                names of the pictures of each split; written first
    config.json                what was asked, the classes, versions; with it the folder is a run
    model.safetensors          weights, and the normalisation
    state.safetensors          optimizer and epoch, while unfinished
    centers.safetensors        packed hash centers, one for each class, where the run has them
    codes/<split>.safetensors  packed codes, relaxed codes, labels, thumbnails
    metrics.json               results; `finished` is true only in a run that came to its end
    tensorboard/               event files

Every file is written beside its place and moved there, so a reader finds it whole or not at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import safetensors
from numpy.typing import NDArray

from dsh_cli import images
from dsh_cli.codes import CodeSet, Packed
from dsh_cli.config import UNSEEN, ModelConfig, Recipe
from dsh_cli.errors import DshError, RunError, UsageError, reason
from dsh_cli.files import written

if TYPE_CHECKING:
    import torch

    from dsh_cli.data import Splits
    from dsh_cli.model import HashNet

_Built = TypeVar("_Built")

FORMAT = 1  # of the run folder; a reader refuses a larger number
RUNS = Path("runs")

# names of NumPy's types in a safetensors header
_DTYPES = {
    "bool": "BOOL", "uint8": "U8", "int32": "I32", "int64": "I64", "float16": "F16", "float32": "F32", "float64": "F64"
}  # fmt: skip
# what the small files say, and of what type
_HEAD = {
    "created": str,
    "source": str,
    "classes": list[str],
    "config": dict[str, Any],
    "model": dict[str, Any],
    "counts": dict[str, int],
    "versions": dict[str, str],
}
_METRICS = {
    "finished": bool,
    "epochs": int,
    "seconds": float,
    "map": float,
    "min_class_distance": int | None,
    "class_distance_bound": int | None,
    "device": str,
    "counts": dict[str, int],
}
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
    counts: Mapping[str, int]  # pictures of each split; of a finished run, those that have a code
    versions: Mapping[str, str]
    metrics: Mapping[str, Any]

    @property
    def finished(self) -> bool:
        """Whether the training came to its end."""
        return bool(self.metrics.get("finished"))

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that two runs share only if they give every picture the same code.

        Raises:
            RunError: there are no weights.
        """
        self._require_finished()
        settings = {"model": dataclasses.asdict(self.model), "intake": images.INTAKE}
        digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8)
        weights = self.path / "model.safetensors"
        try:
            with weights.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            again = f"train again with: dsh train --like {self.path}"
            raise RunError(f"{weights} cannot be read ({reason(error)}); {again}") from error
        return digest.hexdigest()

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
        if not os.fspath(path) or not os.path.isdir(folder):  # which, unlike pathlib's, is not troubled by any name
            raise RunError(f"no run folder at {os.fspath(path) or repr('')}; list the runs there are with: dsh info")
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
            _require(head, _HEAD, "config.json", required=_HEAD.keys())
            _require(metrics, _METRICS, "metrics.json", required=_METRICS.keys() if metrics.get("finished") else ())
            return cls(
                path=folder,
                config=_built(Recipe, head["config"], "config.json, config"),
                model=_built(ModelConfig, head["model"], "config.json, model"),
                classes=tuple(head["classes"]),
                created=head["created"],
                source=head["source"],
                counts=dict(metrics.get("counts", head["counts"])),
                versions=dict(head["versions"]),
                metrics=metrics,
            )
        except (TypeError, ValueError) as error:
            raise RunError(f"{folder} is damaged ({error}); train again with: dsh train") from error

    def codes(self, split: str, *more: Literal["relaxed", "thumbnails"]) -> CodeSet:
        """The codes of one split, without names; relaxed codes and thumbnails where asked for.

        Raises:
            UsageError: the run has no such split.
            RunError: they are missing or damaged.
        """
        file = self.path / "codes" / f"{split}.safetensors"
        self._require_finished()
        if split not in self.counts:
            raise UsageError(f"--split {split}: {self.path} has {', '.join(self.counts)}")
        tensors = _read_tensors(file, self.path, ("packed", "labels", *more))
        count, width = self.counts.get(split), -(-self.model.bits // 8)
        fits = tensors["packed"].shape == (count, width) and all(len(array) == count for array in tensors.values())
        if not fits or not -1 <= tensors["labels"].min(initial=0) <= tensors["labels"].max(initial=0) < len(
            self.classes
        ):
            raise RunError(f"{file} does not fit config.json; train again with: dsh train --like {self.path}")
        return CodeSet(
            bits=self.model.bits,
            packed=tensors["packed"],
            labels=tensors["labels"].astype(np.int64),
            classes=self.classes,
            names=(),
            relaxed=tensors.get("relaxed"),
            thumbnails=tensors.get("thumbnails"),
        )

    def thumbnails(self, split: str, rows: Sequence[int]) -> NDArray[np.uint8]:
        """Thumbnails of some pictures of one split, (r, h, w, channels); no others are read from the disk.

        Raises:
            RunError: they are missing or damaged.
        """
        file = self.path / "codes" / f"{split}.safetensors"
        self._require_finished()
        with _opened(file, ("thumbnails",), self.path) as tensors:
            all_of_split = tensors.get_slice("thumbnails")
            if len(shape := all_of_split.get_shape()) != 4 or shape[0] != self.counts.get(split):
                raise RunError(f"{file} does not fit config.json; train again with: dsh train --like {self.path}")
            each = [all_of_split[row : row + 1] for row in rows]
        return np.concatenate(each) if each else np.zeros((0, *shape[1:]), np.uint8)

    def names(self) -> dict[str, tuple[str, ...]]:
        """Names of the pictures of each split, in the order of its codes."""
        return {split: tuple(names) for split, names in _read_json(self.path / "splits.json").items()}

    def load_model(self, device: str | torch.device = "cpu") -> HashNet:
        """The network, ready for inference, on a device, or on the fastest there is for `auto`.

        Raises:
            UsageError: there is no such device.
            RunError: the weights are missing, damaged, or not those of this network.
        """
        from dsh_cli.model import HashNet
        from dsh_cli.network.device import choose_device

        self._require_finished()
        place = choose_device(device) if isinstance(device, str) else device
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
        return net.to(place).eval()

    def load_state(self) -> dict[str, torch.Tensor]:
        """What `write_state` saved after the last whole epoch; empty if there was none."""
        return self._tensors("state.safetensors") if self.begun else {}

    def held_out(self) -> tuple[str, ...]:
        """The classes that a finished run was not trained on.

        Raises:
            RunError: their codes are missing or damaged.
        """
        numbers = set(self.codes(UNSEEN).labels.tolist()) if UNSEEN in self.counts else set()
        return tuple(self.classes[number] for number in sorted(numbers))

    @property
    def has_centers(self) -> bool:
        """Whether classes were given hash centers."""
        return (self.path / "centers.safetensors").is_file()

    def centers(self) -> Packed | None:
        """The hash centers of the classes, (C, ceil(k / 8)), zero for classes held out; None in a run without.

        Raises:
            RunError: they are damaged.
        """
        file = self.path / "centers.safetensors"
        if not file.is_file():
            return None
        packed = _read_tensors(file, self.path, ("packed",))["packed"]
        if packed.shape != (len(self.classes), -(-self.model.bits // 8)) or packed.dtype != np.uint8:
            raise RunError(f"{file} does not fit config.json; train again with: dsh train --like {self.path}")
        return packed

    def write_centers(self, packed: Packed) -> None:
        """Save the hash centers of the classes."""
        _write_arrays(self.path / "centers.safetensors", {"packed": packed})

    def _tensors(self, name: str) -> dict[str, torch.Tensor]:
        import torch

        # copied, for a buffer of bytes cannot be written to
        return {
            key: torch.from_numpy(value.copy()) for key, value in _read_tensors(self.path / name, self.path).items()
        }

    def _require_finished(self) -> None:
        if not self.finished:
            raise RunError(f"{self.path} is unfinished; go on with: dsh train --resume {self.path}")

    # Writing

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from training this run; the system frees it when the process ends, however it ends.

        Raises:
            RunError: another one is training it.
        """
        import filelock

        path = self.path / ".lock"
        lock = filelock.FileLock(path)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise RunError(f"another process is training {self.path}; wait for it") from error
        except OSError as error:
            raise RunError(f"cannot write {path}: {reason(error)}") from error
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()
            lock.release()

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
        # pictures that went unreadable on the way have no code
        _write_json(self.path / "splits.json", {split: list(of_split.names) for split, of_split in codes.items()})
        counts = {split: len(of_split) for split, of_split in codes.items()}
        results = {"finished": True, **metrics, "counts": counts}
        _write_json(self.path / "metrics.json", results)
        (self.path / "state.safetensors").unlink(missing_ok=True)
        return dataclasses.replace(self, metrics=results, counts=counts)


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
        _write_json(path / "splits.json", splits.names())
        _write_json(path / "config.json", head)  # last, for with it the folder is a run
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
        raise UsageError("--out is empty; name a folder, or leave it out")
    if out is None or not os.path.lexists(out) or (os.path.isdir(out) and not os.listdir(out)):
        return
    resumable = False
    with contextlib.suppress(RunError):
        resumable = not Run.open(out).finished
    or_resume = f", or go on with: dsh train --resume {out}" if resumable else ""
    raise UsageError(f"--out {out} is there already; choose another folder{or_resume}")


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


def damaged_runs(root: Path = RUNS) -> list[str]:
    """What is wrong with each folder under one that looks like a run and cannot be read as one."""
    problems = []
    for config in sorted(root.glob("*/config.json")):
        try:
            Run.open(config.parent)
        except RunError as error:
            problems.append(str(error))
    return problems


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


def _require(values: Mapping[str, Any], kinds: Mapping[str, Any], where: str, required: Collection[str] = ()) -> None:
    """Check what a file says against the type of each field.

    Raises:
        ValueError: a field is of another type, or required and missing.
    """
    for name, kind in kinds.items():
        if name in values and not _is(values[name], kind):
            raise ValueError(f"{where}: {name} is {values[name]!r}")
        if name in required and name not in values:
            raise ValueError(f"{where}: {name} is missing")


def _built(kind: type[_Built], values: Mapping[str, Any], where: str) -> _Built:
    """A dataclass from what a file says of its fields."""
    hints = get_type_hints(kind)
    if unknown := sorted(values.keys() - hints.keys()):
        raise ValueError(f"{where}: {unknown[0]} is unknown")
    _require(values, hints, where)
    return kind(**values)


def _is(value: object, kind: Any) -> bool:
    """Whether a value out of JSON is of the type a field is annotated with."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in arguments
    if origin in (Union, UnionType):
        return any(_is(value, argument) for argument in arguments)
    if origin is list:
        return isinstance(value, list) and all(_is(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_is(item, arguments[1]) for item in value.values())
    if kind is Any:
        return True
    return type(value) is kind or (kind is float and type(value) is int)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}); train again with: dsh train") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} is damaged; train again with: dsh train")
    return content


def _read_tensors(path: Path, run: Path, names: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
    """Tensors of a file of a run, all or those named; no other is read from the disk."""
    with _opened(path, names, run) as file:
        return {name: file.get_tensor(name) for name in names or file.keys()}


@contextlib.contextmanager
def _opened(path: Path, names: Sequence[str], run: Path) -> Iterator[Any]:
    """A safetensors file of a run that has the tensors named."""
    again = f"train again with: dsh train --like {run}"
    if not path.is_file():
        raise RunError(f"{path} is missing; {again}")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            held = set(file.keys())
            if missing := [name for name in names if name not in held]:
                raise RunError(f"{path} lacks {missing[0]!r}; {again}")
            yield file
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise RunError(f"{path} is damaged ({error}); {again}") from error


def _write_json(path: Path, content: object) -> None:
    _write(path, (json.dumps(content, indent=1) + "\n").encode())


def _write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    _write_arrays(path, {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in tensors.items()})


def _write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a safetensors file from arrays that may lie on disk themselves: none is copied into memory.

    The format: the length of a JSON header in 8 bytes, the header, then the arrays end to end.
    """
    header: dict[str, Any] = {}
    end = 0
    # wide types first, so that each array is aligned
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0]))
    for name, array in ordered:
        start, end = end, end + array.nbytes
        header[name] = {"dtype": _DTYPES[array.dtype.name], "shape": array.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    _write(path, len(text).to_bytes(8, "little"), text, *(np.ascontiguousarray(array).data for _, array in ordered))


def _write(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file whole or not at all."""
    with written(path, "choose another --out") as scratch:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("wb") as file:
            for part in parts:
                file.write(part)
