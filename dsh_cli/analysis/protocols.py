"""Protocols by name: which codes of a run are looked up in which, and whether the run may answer at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dsh_cli.analysis.retrieval import MAP_AT, Evaluation, evaluate
from dsh_cli.codes.sets import CodeSet
from dsh_cli.config import PROTOCOLS, UNSEEN, Among, ProtocolName
from dsh_cli.data.dataset import Skipped
from dsh_cli.data.listing import list_folder, sort_classes
from dsh_cli.errors import DataError, UsageError
from dsh_cli.pictures.find import LeftOut
from dsh_cli.runs.run import Run

FOLDERS = "folders"  # the protocol of two folders given


@dataclass(frozen=True)
class Comparison:
    """What is to be looked up in what: the splits of a protocol, or the pictures of one folder in those of another."""

    protocol: ProtocolName | None = None  # None: that of the run
    among: Among | None = None  # of which classes queries and database are; None: all
    query: str | None = None  # folder of pictures to look up, a folder per class
    database: str | None = None  # folder of those to look them up in
    at: tuple[int, ...] = ()  # each K to measure mAP@K for; none: `MAP_AT`

    def check(self) -> None:
        """Refuse what contradicts itself, before any run is opened.

        Raises:
            UsageError: it does; the message names the fields.
        """
        if (self.query is None) != (self.database is None):
            raise UsageError("`query` and `database` go together; for one folder against itself give it for both")
        for name in ("protocol", "among"):
            if self.query is not None and getattr(self, name) is not None:
                raise UsageError(f"`query` and `{name}` contradict each other; give one of them")


@dataclass(frozen=True)
class Measured:
    """A run measured, the pictures of folders that could not be read, and what else was left out there."""

    evaluation: Evaluation
    skipped: tuple[Skipped, ...] = ()
    left_out: LeftOut = field(default_factory=LeftOut)


def measure(
    run: Run,
    comparison: Comparison,
    device: str = "cpu",
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Measured:
    """Measure a run as asked: its saved codes under a protocol, or its network on two folders.

    Args:
        run: a finished run.
        comparison: of what.
        device: where pictures of folders are encoded.
        workers: threads that decode them; None: one a processor.
        progress: told of the pictures of folders done, and of all.

    Raises:
        UsageError: the comparison contradicts itself, or as in `evaluate_run` and `evaluate_folders`.
        RunError: as in `evaluate_run`.
        DataError: as in `evaluate_run` and `evaluate_folders`.
    """
    comparison.check()
    at = tuple(dict.fromkeys(comparison.at)) or MAP_AT
    if comparison.query is None or comparison.database is None:
        return Measured(evaluate_run(run, comparison.protocol, at, comparison.among or "all"))
    return evaluate_folders(run, comparison.query, comparison.database, at, device, workers, progress)


def require_different(runs: Sequence[Run]) -> None:
    """Refuse a run given twice, whose deviation from itself would be 0.

    Raises:
        UsageError: one is.
    """
    seen: dict[str, Run] = {}
    for run in runs:
        if (first := seen.setdefault(os.path.realpath(run.path), run)) is not run:
            raise UsageError(f"`model` {first.path} and `model` {run.path} are one run; give each run once")


def compared(
    protocol: str, codes: Callable[[str], CodeSet], held_out: bool = False, among: Among = "all"
) -> tuple[CodeSet, CodeSet | None]:
    """Queries and database of a protocol; no database where the queries are looked up in themselves.

    Args:
        protocol: a name in `PROTOCOLS`.
        codes: gives those of a split.
        held_out: whether classes were held out from training; their pictures are then of the database too.
        among: which classes queries and database are of.
    """
    splits = _database(protocol, held_out)
    queries, database = codes("test"), _joined([codes(split) for split in splits]) if splits else None
    if among == "all":
        return queries, database
    unseen = np.unique(codes(UNSEEN).labels)
    queries = _of_classes(queries, unseen, among)
    return queries, None if database is None else _of_classes(database, unseen, among)


def sizes(protocol: str, counts: Mapping[str, int]) -> tuple[int, int]:
    """Pictures that are queries, and that are database, of the pictures of each split."""
    splits = _database(protocol, UNSEEN in counts) or ("test",)
    return counts["test"], sum(counts[split] for split in splits)


def _database(protocol: str, held_out: bool) -> tuple[str, ...]:
    """Splits that are the database; none where the queries are."""
    splits = PROTOCOLS[protocol].database
    return (*splits, UNSEEN) if splits and held_out else splits


def evaluate_run(run: Run, protocol: str | None = None, at: Sequence[int] = MAP_AT, among: Among = "all") -> Evaluation:
    """Measure the saved codes of a run under a protocol, by default the one it was trained for.

    Args:
        run: a finished run.
        protocol: a name in `PROTOCOLS`.
        at: each K to measure mAP@K for.
        among: classes of queries and database: all, or those the run was trained on, or those held out.

    Raises:
        UsageError: the run has trained on queries of the protocol, or has no such splits or classes.
        RunError: codes or names of the run are missing or damaged.
        DataError: a split that it takes is empty.
    """
    name = protocol or run.config.protocol
    _require_splits(run, name)
    held_out = UNSEEN in run.counts
    if among != "all" and not held_out:
        raise UsageError(
            f"`among` {among}: {run.path} was trained on all classes; "
            f"keep some from it with dsh train --hold-out-classes"
        )
    queries, database = compared(name, run.codes, held_out, among)
    _require_untrained(run, run.names().get("test", ()), f"protocol {name}")
    return replace(evaluate(queries, database, at=at, protocol=name), among=among)


def evaluate_folders(
    run: Run,
    query: str,
    database: str,
    at: Sequence[int] = MAP_AT,
    device: str = "cpu",
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Measured:
    """Measure the network of a run on two folders with a folder per class; one folder twice leaves self-matches out.

    Classes are matched by name; neither folder needs to have those of the run.

    Raises:
        UsageError: the run has trained on one of the queries, or some pictures but not all are in both folders.
        DataError: a folder has no class folders with pictures.
    """
    left_out = LeftOut()
    parts = [_labelled(folder, left_out) for folder in ((query,) if _same(query, database) else (query, database))]
    _require_untrained(run, [path for path, _ in parts[0]], f"`query` {query}", _file)
    if len(parts) == 2:
        places = [{os.path.realpath(path) for path, _ in part} for part in parts]
        if both := places[0] & places[1]:
            raise UsageError(
                f"{min(both)} and {len(both) - 1:,} more pictures are in both `query` and `database`, and would find "
                "themselves; keep the two apart, or give one folder for both"
            )
    classes = tuple(sort_classes({label for part in parts for _, label in part}))
    numbers = {label: number for number, label in enumerate(classes)}
    net = run.load_model(device)

    from dsh_cli.network.encoding import encode_files

    skipped: list[Skipped] = []
    encoded = []
    done, total = 0, sum(map(len, parts))
    for part in parts:
        labels, packed = [], []
        for (path, label), item in zip(part, encode_files(net, [path for path, _ in part], workers), strict=True):
            done += 1
            if progress is not None:
                progress(done, total)
            if item.packed is None:
                skipped.append(Skipped(path, str(item.error)))
            else:
                labels.append(numbers[label])
                packed.append(item.packed)
        if not packed:
            raise DataError(f"none of the {len(part):,} pictures can be read ({skipped[-1].path}: {skipped[-1].error})")
        encoded.append(CodeSet(net.config.bits, np.stack(packed), np.array(labels, np.int64), classes, ()))
    return Measured(evaluate(encoded[0], *encoded[1:], at=at, protocol=FOLDERS), tuple(skipped), left_out)


def _require_splits(run: Run, protocol: str) -> None:
    wanted, own = PROTOCOLS[protocol], PROTOCOLS[run.config.protocol]
    all_classes = wanted.pooled and run.config.hold_out_classes > 0  # of which it draws too
    again = (
        f"train for it with: dsh train --like {run.path} --protocol {protocol}"
        f"{' --hold-out-classes 0' if all_classes else ''}"
    )
    if wanted.pooled and not own.pooled:
        raise UsageError(
            f"protocol {protocol} draws its queries from all pictures, and {run.path} has trained on most of them; "
            + again
        )
    if own.pooled and not wanted.pooled and wanted.database != ("train",):
        raise UsageError(
            f"protocol {protocol} takes all test pictures of the data as queries, and {run.path} has trained on some "
            f"of them, for `protocol` {run.config.protocol} draws from all pictures; {again}"
        )


def _require_untrained(run: Run, queries: Sequence[str], what: str, place: Callable[[str], str] = str) -> None:
    """Refuse queries the run has trained on. `place` gives what names of one picture have in common."""
    trained = set(map(place, run.names().get("train", ())))
    if leaked := [query for query in queries if place(query) in trained]:
        raise UsageError(
            f"{what}: {run.path} has trained on {len(leaked):,} of the {len(queries):,} queries, such as "
            f"{min(leaked)}; take queries it has not seen"
        )


def _file(name: str) -> str:
    """The file that a run calls so, by its own path; where no file can have the name, the name."""
    try:
        return os.path.realpath(os.fsdecode(name.encode("utf-8", "surrogateescape")))
    except ValueError:
        return name


def _of_classes(codes: CodeSet, unseen: NDArray[np.int64], among: Among) -> CodeSet:
    """Packed codes and labels of the classes held out, or of the others."""
    of = np.isin(codes.labels, unseen) == (among == "unseen")
    return replace(_joined([codes]), packed=codes.packed[of], labels=codes.labels[of])


def _joined(parts: Sequence[CodeSet]) -> CodeSet:
    """Packed codes and labels of several splits, one after the other."""
    return replace(
        parts[0],
        packed=np.concatenate([part.packed for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        names=(),
        relaxed=None,
        thumbnails=None,
    )


def _labelled(folder: str, left_out: LeftOut) -> list[tuple[str, str]]:
    """Pictures below a folder and their classes, those of all splits together."""
    if not os.path.isdir(folder):
        raise UsageError(f"no folder at {folder or repr('')}; give one with a folder of pictures per class")
    return [item for part in list_folder(Path(folder), left_out).parts.values() for item in part]


def _same(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)
