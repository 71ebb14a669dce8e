"""What `metrics.json` of a run records: results or how far it came, and the digests of all other files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsh_cli.config import SPLITS, UNSEEN
from dsh_cli.files import saving
from dsh_cli.runs.schema import require, shown
from dsh_cli.runs.storage import (
    OR_ELSE,
    Digest,
    digest_file,
    digest_of,
    digest_tensors,
    opened,
    parsed,
    read_json_and_digest,
    remove,
    whole,
    write_json,
)

METRICS = "metrics.json"
STATES = 2  # that are kept
ALL_SPLITS = (*SPLITS, "database", UNSEEN)
_STATE = re.compile(r"state(?:-([0-9]{1,15}))?\.safetensors")  # one without a number is of format 1
_FILE = re.compile(
    rf"(config|splits|codes/names)\.json|model\.onnx|(model|centers|codes/({'|'.join(ALL_SPLITS)}))\.safetensors|{_STATE.pattern}"
)

# what it says, and of what type
_RESULTS = {
    "finished": bool,
    "epochs": int,
    "seconds": float,
    "tflop": float | None,
    "map": float | None,
    "min_class_distance": int | None,
    "class_distance_bound": int | None,
    "device": str,
    "counts": dict[str, int],
}
_NEWER = {"tflop"}  # of these, what older versions did not write
_PROGRESS = {"finished": bool, "epochs_done": int}
_GUARDS = {"digest": str, "digests": dict[str, str | dict[str, str]]}


@dataclass(frozen=True)
class Record:
    """What `metrics.json` says.

    Attributes:
        metrics: results, or the epochs done; nothing in a run of format 1 before the end of its first epoch.
        digests: of each file of the run, by name; None in a run of format 1 that was not given any.
    """

    metrics: Mapping[str, Any]
    digests: Mapping[str, Digest] | None

    @property
    def finished(self) -> bool:
        """Whether the training came to its end."""
        return bool(self.metrics.get("finished"))

    def states(self, run: Path) -> list[str]:
        """The files that a run can be gone on from, the newest last."""
        if self.digests is None:
            return [] if self.finished or not os.path.lexists(run / "state.safetensors") else ["state.safetensors"]
        return sorted(filter(is_state, self.digests), key=state_number)

    def digest(self, name: str) -> Digest | None:
        """That of a file; None in a run without digests, and none at all of a file that is not of the run."""
        return None if self.digests is None else self.digests.get(name, "")


def is_state(name: str) -> bool:
    """Whether a file of that name is one to go on from."""
    return _STATE.fullmatch(name) is not None


def is_run_file(name: str) -> bool:
    """Whether a run may have a file of that name, beside `metrics.json`."""
    return _FILE.fullmatch(name) is not None


def state_number(name: str) -> int:
    """The place of a state in the order in which they were written."""
    found = _STATE.fullmatch(name)
    return int(found[1] or 0) if found else 0


def state_file(number: int) -> str:
    """The name of a state."""
    return f"state-{number}.safetensors"


def read_record(run: Path, required: bool) -> Record:
    """What `metrics.json` of a run says.

    Args:
        run: its folder.
        required: whether it must be there, with digests.

    Raises:
        RunError: it is missing and must not be, or is damaged.
    """
    if not required and not os.path.lexists(run / METRICS):
        return Record({}, None)
    with opened(run, METRICS) as file:
        content = parsed(whole(file))
        if required or not content.keys().isdisjoint(_GUARDS):
            require(content, _GUARDS, METRICS, _GUARDS)
            if own_digest(content) != content["digest"]:
                raise ValueError("it has changed since it was written")
            if unknown := [name for name in content["digests"] if not is_run_file(name)]:
                raise ValueError(f"{METRICS}: {shown(unknown[0])} is no file of a run")
        finished = content.get("finished") is True
        kinds = _RESULTS if finished else _PROGRESS
        require(content, kinds, METRICS, kinds.keys() - _NEWER if finished else ("finished",))
        metrics = {name: value for name, value in content.items() if name in kinds}
        if (
            not 0 <= (metrics.get("map") or 0) <= 1
            or metrics.get("seconds", 0) < 0
            or (metrics.get("tflop") or 0) < 0
            or metrics.get("epochs_done", 0) < 0
        ):
            raise ValueError(f"{METRICS}: a figure is out of its range")
    return Record(metrics, content.get("digests"))


def write_record(run: Path, metrics: Mapping[str, Any], digests: Mapping[str, Digest]) -> Record:
    """Write `metrics.json` of a run that this process holds, and take away the states that it no longer names."""
    content = {**metrics, "digests": digests}
    write_json(run, METRICS, {**content, "digest": own_digest(content)})
    record = Record(metrics, digests)
    sweep_states(run, record)
    return record


def sweep_states(run: Path, record: Record) -> None:
    """Take away states that are not of a run: of one that is finished, or left by a writer who was killed."""
    if record.digests is not None or record.finished:
        with saving(run, OR_ELSE):
            there = os.listdir(run)
        remove(run, [name for name in there if is_state(name) and name not in (record.digests or ())])


def digests_now(run: Path, record: Record) -> dict[str, Digest]:
    """The digests of the files of a run: those recorded; where there are none, those of the files as they are.

    Raises:
        RunError: a file is damaged.
    """
    if record.digests is not None:
        return dict(record.digests)
    names = ["config.json", "splits.json", "centers.safetensors", *record.states(run)]
    if record.finished:
        names += ["model.safetensors", *(f"codes/{split}.safetensors" for split in record.metrics["counts"])]
    return {name: file_digest(run, name) for name in names if os.path.lexists(run / name)}


def file_digest(run: Path, name: str) -> Digest:
    """The digest of a file of a run as it is: of the codes, which are read in part, one for each tensor.

    Raises:
        RunError: it is damaged.
    """
    if name.endswith(".json"):
        return read_json_and_digest(run, name)[1]
    if name.endswith(".onnx"):
        with opened(run, name) as file:
            return digest_file(file)
    return digest_tensors(run, name, each=name.startswith("codes/"))


def own_digest(content: Mapping[str, Any]) -> str:
    """The digest of what `metrics.json` says, but for the digest itself."""
    said = {name: value for name, value in content.items() if name != "digest"}
    return digest_of(json.dumps(said, sort_keys=True).encode())
