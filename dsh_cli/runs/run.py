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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dsh_cli.codes.bits import Packed
from dsh_cli.codes.sets import CodeSet
from dsh_cli.config import UNSEEN, ModelConfig, Recipe
from dsh_cli.errors import RunError, UsageError, reason
from dsh_cli.pictures import decode
from dsh_cli.runs.storage import (
    built,
    file_of,
    opened,
    read_json,
    read_tensors,
    require,
    write_arrays,
    write_json,
    write_tensors,
)

if TYPE_CHECKING:
    import torch

    from dsh_cli.network.model import HashNet

LOCK = ".lock"  # in the folder of a run, while a process trains it
FORMAT = 1  # of the run folder; a reader refuses a larger number
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


def require_reachable(folder: Path) -> None:
    """Refuse a folder whose files cannot be reached.

    Raises:
        RunError: this user may not.
    """
    if folder.is_dir() and not os.access(folder, os.X_OK):
        raise RunError(f"{folder}: permission denied; run dsh as a user who may read it, or change who may")


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
        settings = {"model": dataclasses.asdict(self.model), "intake": decode.INTAKE}
        digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8)
        weights = file_of(self.path, "model.safetensors")
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
        require_reachable(folder)
        if not (folder / "config.json").is_file():
            raise RunError(f"{folder} is not a run folder (it has no config.json); make one with: dsh train")
        head = read_json(folder, "config.json")
        if not isinstance(head.get("format"), int):
            raise RunError(f"{folder / 'config.json'} is not that of a run; make one with: dsh train")
        if head["format"] > FORMAT:
            raise RunError(
                f"{folder} has format {head['format']}, newer than {FORMAT}, the newest this dsh reads; "
                "upgrade with: pip install --upgrade dsh-cli"
            )
        metrics = read_json(folder, "metrics.json") if (folder / "metrics.json").is_file() else {}
        try:
            require(head, _HEAD, "config.json", required=_HEAD.keys())
            require(metrics, _METRICS, "metrics.json", required=_METRICS.keys() if metrics.get("finished") else ())
            return cls(
                path=folder,
                config=built(Recipe, head["config"], "config.json, config"),
                model=built(ModelConfig, head["model"], "config.json, model"),
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
            raise UsageError(f"`split` {split}: {self.path} has {', '.join(self.counts)}")
        tensors = read_tensors(self.path, f"codes/{split}.safetensors", ("packed", "labels", *more))
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
        with opened(self.path, f"codes/{split}.safetensors", ("thumbnails",)) as tensors:
            all_of_split = tensors.get_slice("thumbnails")
            if len(shape := all_of_split.get_shape()) != 4 or shape[0] != self.counts.get(split):
                raise RunError(f"{file} does not fit config.json; train again with: dsh train --like {self.path}")
            each = [all_of_split[row : row + 1] for row in rows]
        return np.concatenate(each) if each else np.zeros((0, *shape[1:]), np.uint8)

    def names(self) -> dict[str, tuple[str, ...]]:
        """Names of the pictures of each split, in the order of its codes."""
        return {split: tuple(names) for split, names in read_json(self.path, "splits.json").items()}

    def load_model(self, device: str | torch.device = "cpu") -> HashNet:
        """The network, ready for inference, on a device, or on the fastest there is for `auto`.

        Raises:
            UsageError: there is no such device.
            RunError: the weights are missing, damaged, or not those of this network.
        """
        from dsh_cli.network.device import choose_device
        from dsh_cli.network.model import HashNet

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
        packed = read_tensors(self.path, file.name, ("packed",))["packed"]
        if packed.shape != (len(self.classes), -(-self.model.bits // 8)) or packed.dtype != np.uint8:
            raise RunError(f"{file} does not fit config.json; train again with: dsh train --like {self.path}")
        return packed

    def write_centers(self, packed: Packed) -> None:
        """Save the hash centers of the classes."""
        write_arrays(self.path, "centers.safetensors", {"packed": packed})

    def _tensors(self, name: str) -> dict[str, torch.Tensor]:
        import torch

        # copied, for a buffer of bytes cannot be written to
        return {key: torch.from_numpy(value.copy()) for key, value in read_tensors(self.path, name).items()}

    def require_unfinished(self) -> None:
        """Refuse to be gone on with where there is nothing left to do.

        Raises:
            UsageError: it is finished.
        """
        if self.finished:
            raise UsageError(f"{self.path} is finished; for the same recipe again: dsh train --like {self.path}")

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

        path = file_of(self.path, LOCK)
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
        write_tensors(self.path, "state.safetensors", tensors)
        write_json(self.path, "metrics.json", {"finished": False, "epochs_done": epochs_done})

    def write_results(self, net: HashNet, codes: Mapping[str, CodeSet], metrics: Mapping[str, Any]) -> Run:
        """Save a finished run; `metrics.json` comes last, and only with it the run counts as finished."""
        write_tensors(self.path, "model.safetensors", net.state_dict())
        for split, of_split in codes.items():
            arrays: dict[str, NDArray[Any]] = {"packed": of_split.packed, "labels": of_split.labels.astype(np.int32)}
            optional = {"relaxed": of_split.relaxed, "thumbnails": of_split.thumbnails}
            arrays |= {name: array for name, array in optional.items() if array is not None}
            write_arrays(self.path, f"codes/{split}.safetensors", arrays)
        # pictures that went unreadable on the way have no code
        write_json(self.path, "splits.json", {split: list(of_split.names) for split, of_split in codes.items()})
        counts = {split: len(of_split) for split, of_split in codes.items()}
        results = {"finished": True, **metrics, "counts": counts}
        write_json(self.path, "metrics.json", results)
        (self.path / "state.safetensors").unlink(missing_ok=True)
        return dataclasses.replace(self, metrics=results, counts=counts)
