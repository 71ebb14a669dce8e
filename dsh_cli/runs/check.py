"""A whole run, looked at: every file read, and held against its digest and against what the others say."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec

from dsh_cli.errors import RunError
from dsh_cli.network.onnx_encoding import LARGEST, has_engine
from dsh_cli.runs.record import METRICS, digests_now, is_run_file, is_state, sweep_states, write_record
from dsh_cli.runs.run import CENTERS, ONNX, WEIGHTS, Run, codes_file
from dsh_cli.runs.storage import Digest, check_tensors, read_bytes, read_json

_SCRATCH = re.compile(r"\.(.+)\.[0-9a-f]{8}")  # what `files.written` writes to


@dataclass(frozen=True)
class Checked:
    """What came of looking at a run."""

    run: Run
    files: int  # that were read
    damaged: Mapping[str, str]  # what is wrong, by the name of the file; one that is missing is damaged too
    strays: tuple[str, ...]  # files as a run has them that are not of this one: a writer was killed


def check(path: str | os.PathLike[str], repair: bool = False) -> Checked:
    """Read all of a run but its TensorBoard events, which have checksums of their own.

    Args:
        path: the run folder.
        repair: whether to record digests in a run of format 1 that has none and is whole, to take away states that are
            not of the run, and to make `model.onnx` anew where it is damaged or was never made.

    Raises:
        RunError: there is no run, its `config.json` or `metrics.json` is damaged, or it cannot be repaired because
            another process is training it.
    """
    if not repair:
        found = _checked(Run.open(path))
        return replace(found, strays=_unheld(found)) if found.strays else found
    with Run.open(path).held():
        run = Run.open(path)
        sweep_states(run.path, run.record)
        found = _checked(run)
        if run.finished and run.digests is not None and found.damaged.keys() <= {ONNX} and _can_make_graphs():
            if found.damaged or not run.has_graph:
                run.graph_made_anew()
                found = _checked(Run.open(path))
            return found
        if run.digests is not None or found.damaged:
            return found
        write_record(run.path, run.metrics or {"finished": False, "epochs_done": 0}, digests_now(run.path, run.record))
        return _checked(Run.open(path))


def _can_make_graphs() -> bool:
    return has_engine() and find_spec("torch") is not None and find_spec("onnx") is not None


def _checked(run: Run) -> Checked:
    """Read the files of a run; of one that is being trained as it is at the end, for states come and go meanwhile."""
    seen: dict[str, tuple[Digest | None, str | None]] = {}  # the digest it must have, and what is wrong
    now = run
    while True:
        run, names = now, _files(now)
        for name in names:
            digest = run.record.digest(name)
            if name not in seen or seen[name][0] != digest:
                seen[name] = digest, _problem(run, name)
        damaged = {name: problem for name in names if (problem := seen[name][1]) is not None}
        now = Run.open(run.path)
        if now.record == run.record or not damaged:
            break
    whole = [name for name in names if is_state(name) and name not in damaged]
    for name in filter(is_state, damaged):
        if whole:
            damaged[name] += f"; or go on from {whole[-1]} with: dsh train --resume {run.path}"
    return Checked(run, len(names) + 2, damaged, _strays(now))


def _problem(run: Run, name: str) -> str | None:
    """What is wrong with a file, if anything."""
    try:
        _read(run, name)
    except RunError as error:
        return str(error)
    return None


def _files(run: Run) -> list[str]:
    """The files that the run has, or must have, but for the two that were read to open it."""
    names = ["splits.json"]
    if run.finished:
        names += [WEIGHTS, *map(codes_file, run.counts)]
    if run.has_centers:
        names.append(CENTERS)
    more = {*(run.digests or ()), *run.record.states(run.path)} - {*names, "config.json"}
    return [*names, *sorted(more)]


def _read(run: Run, name: str) -> None:
    """Read one file, as it is and as it is used.

    Raises:
        RunError: it is missing or damaged.
    """
    digest = run.record.digest(name)
    if name == ONNX:
        if has_engine():
            run.graph_encoder()
        else:
            read_bytes(run.path, name, digest, LARGEST)
        return
    if name.endswith(".json"):
        read_json(run.path, name, digest)
        if name == run.names_file:
            run.names()
        return
    check_tensors(run.path, name, digest)
    if name == WEIGHTS:
        if find_spec("torch") is not None:  # else their digest must do
            run.load_model()
    elif name == CENTERS:
        run.centers()
    elif name.startswith("codes/"):
        split = name.removeprefix("codes/").removesuffix(".safetensors")
        run.codes(split, "relaxed")
        run.thumbnails(split, [])


def _unheld(found: Checked) -> tuple[str, ...]:
    """The strays of a run: none where a process trains it, for they are what it writes."""
    try:
        with found.run.held():
            return _strays(Run.open(found.run.path))
    except RunError as error:
        return () if isinstance(error.__cause__, TimeoutError) else found.strays


def _strays(run: Run) -> tuple[str, ...]:
    """Files as runs have them, and what they are written to, that are not of this run."""
    found, names = [], {*_files(run), "config.json", METRICS}
    for folder in ("", "codes"):
        there: list[str] = []
        with contextlib.suppress(OSError):  # reading the files has said so
            there = os.listdir(run.path / folder)
        for file in there:
            name = f"{folder}/{file}".lstrip("/")
            scratch = _SCRATCH.fullmatch(file)
            target = f"{folder}/{scratch[1]}".lstrip("/") if scratch else name
            if name not in names and is_run_file(target):
                found.append(name)
    return tuple(sorted(found))
