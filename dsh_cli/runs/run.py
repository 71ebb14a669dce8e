"""A run folder: weights, config, classes, splits, codes; saved whole and loaded without executing anything.

    splits.json                names of the pictures of each split; written first
    config.json                what was asked, the classes, versions; with it the folder is a run
    model.safetensors          weights, and the normalisation
    model.onnx                 the same as a graph for onnxruntime, where that was there when the run was finished
    state-<n>.safetensors      optimizer and epoch, while unfinished: the last two
    centers.safetensors        packed hash centers, one for each class, where the run has them
    codes/<split>.safetensors  packed codes, relaxed codes, labels, thumbnails
    codes/names.json           names of the pictures that have codes, where others went unreadable on the way
    metrics.json               results, and digests of all these; `finished` is true only in a run that came to its end
    tensorboard/               event files, which have checksums of their own

Every file is written beside its place and moved there, so a reader finds it whole or not at all. `metrics.json` comes
last, and what it does not name is not of the run, such as what a writer left who was killed before it came to that.
Runs of format 1 have no digests, one state in `state.safetensors`, and no `metrics.json` before their first epoch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dsh_cli.codes.bits import Packed, is_packed
from dsh_cli.codes.rescoring import scale_of
from dsh_cli.codes.sets import CodeSet
from dsh_cli.config import PROTOCOLS, UNSEEN, ModelConfig, Recipe
from dsh_cli.errors import DISK_FULL, EngineError, RunError, UsageError, reason
from dsh_cli.files import UNLINK
from dsh_cli.network.onnx_encoding import INSTALL, LARGEST, OnnxEncoder, has_engine, is_cpu
from dsh_cli.network.onnx_encoding import opened as opened_graph
from dsh_cli.pictures import decode
from dsh_cli.runs.record import (
    ALL_SPLITS,
    METRICS,
    STATES,
    Record,
    digests_now,
    is_state,
    read_record,
    state_file,
    state_number,
    sweep_states,
    write_record,
)
from dsh_cli.runs.schema import built, model_of, require, shown
from dsh_cli.runs.storage import (
    Digest,
    Kind,
    Tensors,
    check_tensors,
    damage_to,
    digest_file,
    digest_of,
    file_of,
    json_bytes,
    opened,
    read_bytes,
    read_json,
    read_json_and_digest,
    read_tensors,
    require_digest,
    write_arrays,
    write_bytes,
    write_json,
    write_tensors,
)

if TYPE_CHECKING:
    import torch

    from dsh_cli.network.encoder import Encoder
    from dsh_cli.network.model import HashNet

LOCK = ".lock"  # in the folder of a run, while a process trains it
FORMAT = 2  # of the run folder; a reader refuses a larger number
_DIGESTS = 2  # format from which on there are digests
# of a file that is gone, of one of which the disk has lost some, and of what is no file
_LOST = (errno.ENOENT, errno.EIO, errno.EINVAL, errno.EISDIR)
_GONE = ("center_weight",)  # fields of recipes of earlier versions
WEIGHTS, ONNX, CENTERS, NAMES = "model.safetensors", "model.onnx", "centers.safetensors", "codes/names.json"
GRAPH_FORMAT = 1  # of what an ONNX file says of itself; a reader refuses a larger number
_TRIED = 32  # pictures whose codes are made both ways, when a run is finished
_EPOCHS_DONE: dict[str, Kind] = {"epochs_done": ("I64", ())}  # in every state
# what config.json says, and of what type
_HEAD = {
    "created": str,
    "source": str,
    "classes": list[str],
    "config": dict[str, Any],
    "model": dict[str, Any],
    "counts": dict[str, int],
    "versions": dict[str, str],
}


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
    digests: Mapping[str, Digest] | None = None  # of each file, by name; None in a run of format 1 without
    notes: tuple[str, ...] = ()  # what was found when it was opened to be gone on with
    place: os.stat_result | None = dataclasses.field(default=None, repr=False, compare=False)  # of the folder, if held

    @property
    def finished(self) -> bool:
        """Whether the training came to its end."""
        return self.record.finished

    @property
    def record(self) -> Record:
        """What metrics.json said when the run was opened."""
        return Record(self.metrics, self.digests)

    def noting(self, notes: Sequence[str]) -> Run:
        """The same with more to be told of it."""
        return dataclasses.replace(self, notes=(*self.notes, *notes))

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that two runs share only if they give every picture the same code.

        Raises:
            RunError: there are no weights, or they are damaged.
        """
        self._require_finished()
        # Fields with a default came later; where they have it they are left out, so that older indexes stay known.
        fields = {field.name: field.default for field in dataclasses.fields(self.model)}
        model = {name: value for name, value in dataclasses.asdict(self.model).items() if value != fields[name]}
        settings = {"model": model, "intake": decode.INTAKE}
        digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8)
        with opened(self.path, WEIGHTS) as file:
            require_digest(digest_file(file, digest.update), self.record.digest(WEIGHTS))
        return digest.hexdigest()

    @property
    def shown_split(self) -> str:
        """The split that is shown where none is named: test, or train in a run that tests on nothing."""
        return "test" if self.counts.get("test") else "train"

    @property
    def size(self) -> int:
        """Bytes on disk."""
        files = (Path(folder, name) for folder, _, names in os.walk(self.path) for name in names)
        total = 0
        for file in files:
            with contextlib.suppress(OSError):  # of a run that is being written, and what is there changes
                total += file.lstat().st_size
        return total

    @property
    def begun(self) -> bool:
        """Whether there is a state to go on from."""
        return bool(self._now().states(self.path))

    def _now(self) -> Record:
        """What metrics.json says by now."""
        return read_record(self.path, self.digests is not None)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Run:
        """Read a run folder.

        Raises:
            RunError: it is no run, is damaged, or was written in a newer format.
        """
        folder = Path(path)
        if not os.fspath(path) or not os.path.isdir(folder):  # which, unlike pathlib's, is not troubled by any name
            raise RunError(f"no run folder at {os.fspath(path) or repr('')}; list the runs there are with: dsh info")
        if not may_be_run(folder):
            raise RunError(f"{folder} is not a run folder (it has no config.json); make one with: dsh train")
        head, digest = read_json_and_digest(folder, "config.json")
        if type(head.get("format")) is not int or head["format"] < 1:
            raise RunError(f"{folder / 'config.json'} is not that of a run; make one with: dsh train")
        if head["format"] > FORMAT:
            raise RunError(
                f"{folder} has format {shown(head['format'])}, newer than {FORMAT}, the newest this dsh reads; "
                "upgrade with: pip install --upgrade dsh-cli"
            )
        record = read_record(folder, required=head["format"] >= _DIGESTS)
        with damage_to(folder, "config.json"):
            require_digest(digest, record.digest("config.json"))
            require(head, _HEAD, "config.json", _HEAD)
            run = cls(
                path=folder,
                config=built(
                    Recipe, {name: value for name, value in head["config"].items() if name not in _GONE}, "config"
                ),
                model=model_of(head["model"]),
                classes=tuple(head["classes"]),
                created=head["created"],
                source=head["source"],
                counts=dict(record.metrics.get("counts", head["counts"])),
                versions=dict(head["versions"]),
                metrics=record.metrics,
                digests=record.digests,
            )
            if not run.classes and run.config.method == "dsh":
                raise ValueError("classes are missing")
        with damage_to(folder, METRICS if record.finished else "config.json"):
            _require_splits(run.counts, run.config)
        return run

    def codes(self, split: str, *more: Literal["relaxed", "thumbnails"]) -> CodeSet:
        """The codes of one split, without names; relaxed codes and thumbnails where asked for.

        Raises:
            UsageError: the run has no such split.
            RunError: they are missing or damaged.
        """
        self._require_finished()
        if split not in self.counts:
            raise UsageError(f"`split` {split}: {self.path} has {', '.join(self.counts)}")
        name, kinds = codes_file(split), self.kinds(split)
        wanted = {tensor: kinds[tensor] for tensor in ("packed", "labels", *more)}
        tensors = read_tensors(self.path, name, self.record.digest(name), wanted)
        labels = tensors["labels"]
        with damage_to(self.path, name):
            if not -1 <= labels.min(initial=-1) <= labels.max(initial=-1) < len(self.classes):
                raise ValueError("it has labels of no class")
            if not is_packed(tensors["packed"], self.model.bits):
                raise ValueError(f"it has codes of more than {self.model.bits} bits")
            if "relaxed" in more and not np.isfinite(tensors["relaxed"]).all():
                raise ValueError("its relaxed codes are not finite")
        return CodeSet(
            bits=self.model.bits,
            packed=tensors["packed"],
            labels=labels.astype(np.int64),
            classes=self.classes,
            names=(),
            relaxed=tensors.get("relaxed"),
            thumbnails=tensors.get("thumbnails"),
        )

    def kinds(self, split: str) -> dict[str, Kind]:
        """The tensors of the codes of a split."""
        count = self.counts[split]
        return {
            "packed": ("U8", (count, -(-self.model.bits // 8))),
            "labels": ("I32", (count,)),
            "relaxed": ("F16", (count, self.model.bits)),
            "thumbnails": ("U8", (count, None, None, self.model.channels or None)),
        }

    def thumbnails(self, split: str, rows: Sequence[int]) -> NDArray[np.uint8]:
        """Thumbnails of some pictures of one split, (r, h, w, channels); no others are read from the disk.

        Raises:
            RunError: they are missing or damaged, as far as can be told without reading the others.
        """
        self._require_finished()
        with opened(self.path, codes_file(split)) as file:
            tensors = Tensors(file)
            tensors.require({"thumbnails": self.kinds(split)["thumbnails"]})
            return tensors.array("thumbnails", rows)

    @property
    def names_file(self) -> str:
        """The file that has the names of the pictures."""
        return NAMES if NAMES in (self.digests or ()) else "splits.json"

    def names(self) -> dict[str, tuple[str, ...]]:
        """Names of the pictures of each split, in the order of its codes.

        Raises:
            RunError: they are missing or damaged.
        """
        name = self.names_file
        content = read_json(self.path, name, self.record.digest(name))
        with damage_to(self.path, name):
            require(content, dict.fromkeys((*content, *self.counts), list[str]), name, self.counts)
            if {split: len(names) for split, names in content.items()} != self.counts:
                raise ValueError("it has not the pictures that there are")
        return {split: tuple(names) for split, names in content.items()}

    def load_model(self, device: str | torch.device = "cpu") -> HashNet:
        """The network, ready for inference, on a device, or on the fastest there is for `auto`.

        Raises:
            UsageError: there is no such device.
            RunError: the weights are missing, damaged, or not those of this network.
        """
        self._require_finished()
        if find_spec("torch") is None:
            raise EngineError(f"the network takes PyTorch, which is not installed: {INSTALL}; its codes may do without")

        import torch

        from dsh_cli.network.device import choose_device
        from dsh_cli.network.model import HashNet

        place = choose_device(device) if isinstance(device, str) else device
        try:
            shapes = self._shapes()
        except UsageError as error:
            raise RunError(f"{self.path} is damaged (config.json: {error}); train again with: dsh train") from error
        kinds: dict[str, Kind] = {
            name: ("F32" if tensor.is_floating_point() else "I64", tuple(tensor.shape))
            for name, tensor in shapes.items()
        }
        tensors = read_tensors(self.path, WEIGHTS, self.record.digest(WEIGHTS), kinds, all_of_it=True)
        with damage_to(self.path, WEIGHTS):
            if more := sorted(tensors.keys() - kinds.keys()):
                raise ValueError(f"it does not fit config.json: {shown(more[0])} is of no such network")
            if broken := [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]:
                raise ValueError(f"{broken[0]!r} is not finite, and would give no codes")
        net = HashNet(self.model)
        net.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors.items()})
        return net.to(place).eval()

    def encoder(self, device: str = "auto") -> Encoder:
        """What makes the codes of the run: onnxruntime where it computes on the CPU and has the graph, else torch.

        Raises:
            UsageError: there is no such device.
            RunError: the weights or the graph are missing or damaged.
            EngineError: what it takes is not installed.
        """
        self._require_finished()
        has_torch = find_spec("torch") is not None
        if self.has_graph and is_cpu(device):
            try:
                return self.graph_encoder()
            except EngineError:
                if not has_torch:
                    raise
        if not has_torch:
            why = f"{self.path} has no {ONNX}" if is_cpu(device) else f"`device` {device} is asked for"
            raise EngineError(
                f"{why}, so that its codes take PyTorch, which is not installed: {INSTALL}; or, where it is, "
                f"dsh export writes a file that does without"
            )

        from dsh_cli.network.encoding import TorchEncoder

        return TorchEncoder(self.load_model(device))

    @property
    def has_graph(self) -> bool:
        """Whether there is a `model.onnx`."""
        return ONNX in (self.digests or ())

    def graph_encoder(self) -> OnnxEncoder:
        """What makes codes by onnxruntime.

        Raises:
            RunError: `model.onnx` is missing, damaged, or of another model.
            EngineError: onnxruntime is not installed, or cannot be loaded.
        """
        content = read_bytes(self.path, ONNX, self.record.digest(ONNX), LARGEST)
        with damage_to(self.path, ONNX):
            session, about = opened_graph(content)
            require(about, {"model": dict[str, Any]}, "its metadata", ["model"])
            if model_of(about["model"]) != self.model:
                raise ValueError("it is of another model")
            return OnnxEncoder(session, self.model, str(self.path / ONNX))

    @property
    def output_scale(self) -> float:
        """The step in which outputs are kept in a byte, see `codes.rescoring`.

        Raises:
            RunError: the codes are missing or damaged.
        """
        relaxed = self.codes("train", "relaxed").relaxed
        assert relaxed is not None
        return scale_of(relaxed)

    def _shapes(self) -> Mapping[str, torch.Tensor]:
        """The weights that the network has, without values where that can be, so that they take no memory."""
        import torch

        from dsh_cli.network.model import HashNet

        try:
            with torch.device("meta"):
                return HashNet(self.model).state_dict()
        except NotImplementedError:  # RegNets look at values while they are built
            return HashNet(self.model).state_dict()

    def load_state(self) -> dict[str, torch.Tensor]:
        """What `write_state` saved last; empty if nothing was.

        Raises:
            RunError: it is missing or damaged.
        """
        import torch

        record = self._now()
        if not (states := record.states(self.path)):
            return {}
        tensors = read_tensors(self.path, states[-1], record.digest(states[-1]), _EPOCHS_DONE, all_of_it=True)
        self._epochs_done(states[-1], tensors)
        return {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}

    def _epochs_done(self, state: str, tensors: Mapping[str, NDArray[Any]]) -> int:
        """The epochs that were done when a state was saved.

        Raises:
            RunError: there are no so many.
        """
        with damage_to(self.path, state):
            if not 0 <= (done := int(tensors["epochs_done"])) <= self.config.epochs:
                raise ValueError(f"it is after {done:,} of {self.config.epochs:,} epochs")
        return done

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
        if self.digests is not None:
            return CENTERS in self.digests
        return os.path.lexists(self.path / CENTERS)

    def centers(self) -> Packed | None:
        """The hash centers of the classes, (C, ceil(k / 8)), zero for classes held out; None in a run without.

        Raises:
            RunError: they are missing or damaged.
        """
        if not self.has_centers:
            return None
        kinds: dict[str, Kind] = {"packed": ("U8", (len(self.classes), -(-self.model.bits // 8)))}
        return read_tensors(self.path, CENTERS, self.record.digest(CENTERS), kinds)["packed"]

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
    def held(self) -> Iterator[Run]:
        """Keep other processes from training this run; the system frees it when the process ends, however it ends.

        Yields the run as one that can be written to.

        Raises:
            RunError: another one is training it.
        """
        import filelock

        path = file_of(self.path, LOCK, UNLINK)
        lock = filelock.FileLock(path)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise RunError(f"another process is training {self.path}; wait for it") from error
        except OSError as error:
            instead = "free space" if error.errno in DISK_FULL else "make the folder writable, or take a copy that is"
            raise RunError(f"cannot write {path}: {reason(error)}; {instead}") from error
        held = dataclasses.replace(self, place=os.stat(self.path))
        try:
            yield held
        finally:
            with contextlib.suppress(OSError):
                if held.in_place:
                    path.unlink()
            lock.release()

    @property
    def in_place(self) -> bool:
        """Whether the folder that this process holds is there: neither deleted nor moved, and no other in its place."""
        try:
            there = os.stat(self.path)
            return self.place is not None and os.path.samestat(self.place, there)
        except OSError:
            return False

    def require_in_place(self) -> None:
        """Refuse to go on where the folder that this process holds is gone.

        Raises:
            RunError: it was deleted, moved or replaced.
        """
        if not (self.in_place and (self.path / "config.json").is_file()):
            raise RunError(
                f"{self.path} was deleted, moved or replaced while it was trained, and what was not saved by then is "
                "lost; train again with: dsh train; or, where it was moved, go on with: dsh train --resume FOLDER"
            )

    def settled(self) -> Run:
        """The run, held by this process, as it is gone on with: from its newest state that is whole.

        What is left of writers who were killed is taken away, and states that are damaged; `notes` say which.

        Raises:
            RunError: no state that it had is whole, or the newest cannot be reached.
        """
        record = self._now()
        sweep_states(self.path, record)
        states = record.states(self.path)
        for state in reversed(states):
            try:
                check_tensors(self.path, state, record.digest(state))
                done = self._epochs_done(state, read_tensors(self.path, state, None, _EPOCHS_DONE))
            except RunError as error:
                if isinstance(error.__cause__, OSError) and error.__cause__.errno not in _LOST:
                    raise  # it cannot be reached, and may be whole
                damage = error
                continue
            if state == states[-1]:
                return self
            lost = states[states.index(state) + 1 :]
            digests = {name: digest for name, digest in digests_now(self.path, record).items() if name not in lost}
            write_record(self.path, {"finished": False, "epochs_done": done}, digests)
            after = f"after {done} of {self.config.epochs} epochs"
            note = f"{self.path / lost[-1]} is missing or damaged; going on from {state}, {after}"
            return dataclasses.replace(Run.open(self.path), place=self.place, notes=(note,))
        if states:
            raise damage
        return self

    def write_centers(self, packed: Packed) -> None:
        """Save the hash centers of the classes."""
        self.require_in_place()
        record = self._now()
        digests = digests_now(self.path, record)
        digests[CENTERS] = write_arrays(self.path, CENTERS, {"packed": packed})
        write_record(self.path, {"finished": False, "epochs_done": record.metrics.get("epochs_done", 0)}, digests)

    def write_state(self, tensors: Mapping[str, torch.Tensor], epochs_done: int) -> None:
        """Save what it takes to go on after `epochs_done` epochs; the state before it stays too."""
        self.require_in_place()
        record = self._now()
        digests = digests_now(self.path, record)
        states = record.states(self.path)
        name = state_file(state_number(states[-1]) + 1 if states else 1)
        digests[name] = write_tensors(self.path, name, tensors)
        for old in states[: 1 - STATES]:
            del digests[old]
        write_record(self.path, {"finished": False, "epochs_done": epochs_done}, digests)

    def write_results(self, net: HashNet, codes: Mapping[str, CodeSet], metrics: Mapping[str, Any]) -> Run:
        """Save a finished run; `metrics.json` comes last, and only with it the run counts as finished."""
        from dsh_cli.network.model import settled

        self.require_in_place()
        digests = {name: digest for name, digest in digests_now(self.path, self._now()).items() if not is_state(name)}
        digests[WEIGHTS] = write_tensors(self.path, WEIGHTS, settled(net))
        for split, of_split in codes.items():
            arrays: dict[str, NDArray[Any]] = {"packed": of_split.packed, "labels": of_split.labels.astype(np.int32)}
            optional = {"relaxed": of_split.relaxed, "thumbnails": of_split.thumbnails}
            arrays |= {name: array for name, array in optional.items() if array is not None}
            digests[codes_file(split)] = write_arrays(self.path, codes_file(split), arrays, each=True)
        names = {split: list(of_split.names) for split, of_split in codes.items()}
        if digest_of(json_bytes(names)) != digests["splits.json"]:
            # pictures that went unreadable on the way have no code; splits.json stays, for a run that is killed here
            digests[NAMES] = write_json(self.path, NAMES, names)
        counts = {split: len(of_split) for split, of_split in codes.items()}
        record = write_record(self.path, {"finished": True, **metrics, "counts": counts}, digests)
        done = dataclasses.replace(self, metrics=record.metrics, counts=counts, digests=record.digests)
        return done._with_graph(net, codes["train"].thumbnails) if has_engine() else done

    def graph_made_anew(self) -> Run:
        """A finished run, held by this process, with a `model.onnx`, or a note that says why there is none."""
        return self._with_graph(self.load_model(), self.codes("train", "thumbnails").thumbnails)

    def _with_graph(self, net: HashNet, thumbnails: NDArray[np.uint8] | None) -> Run:
        """With a `model.onnx`, if it comes to the same codes; else with a note that says why there is none.

        It is made last, when nothing of the run can be lost any more.
        """
        about = {"format": GRAPH_FORMAT, "model": dataclasses.asdict(self.model), "fingerprint": self.fingerprint}
        try:
            from dsh_cli.network.onnx_export import compared, inputs_of, onnx_bytes, tried

            content = onnx_bytes(net, about)
            chosen = None if thumbnails is None else thumbnails[tried(self.model, len(thumbnails), _TRIED)]
            if not (why := compared(net, content, inputs_of(net, chosen, _TRIED)).why_unlike):
                digests = {**digests_now(self.path, self.record), ONNX: write_bytes(self.path, ONNX, content)}
                return dataclasses.replace(self, digests=write_record(self.path, self.metrics, digests).digests)
        except Exception as error:  # of PyTorch's exporter, of any kind: what was trained is saved, and can do without
            why = reason(error)
        return self.noting([f"no {ONNX} was made, so that codes take PyTorch: {why}"])


def may_be_run(folder: Path) -> bool:
    """Whether a folder has a `config.json`, or does not let it be seen."""
    try:
        (folder / "config.json").lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # reading says what is wrong
    return True


def codes_file(split: str) -> str:
    """The file of a run that has the codes of a split."""
    return f"codes/{split}.safetensors"


def _require_splits(counts: Mapping[str, int], config: Recipe) -> None:
    """Check that there are the splits that a run of such a recipe is measured on, and no others.

    Raises:
        ValueError: there are not.
    """
    for split in ("train", "test", *PROTOCOLS[config.protocol].database):
        if split not in counts:
            raise ValueError(f"counts: {split} is missing")
    if wrong := [split for split, count in counts.items() if split not in ALL_SPLITS or count < 0]:
        raise ValueError(f"counts: {shown(wrong[0])} is {shown(counts[wrong[0]])}")
