"""Protocols by name: which codes of a run are looked up in which, and whether the run may answer at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dsh_cli.analysis.rescored import POOL
from dsh_cli.analysis.retrieval import MAP_AT, Evaluation, evaluate
from dsh_cli.codes.sets import CodeSet, taken
from dsh_cli.config import PROTOCOLS, UNSEEN, Among, ProtocolName, Rescore
from dsh_cli.data.dataset import Skipped
from dsh_cli.data.listing import list_folder, sort_classes
from dsh_cli.data.vectors import Vectors, is_vectors, named_file, read_vectors
from dsh_cli.errors import DataError, UsageError
from dsh_cli.pictures.find import LeftOut
from dsh_cli.runs.run import Run

if TYPE_CHECKING:
    from dsh_cli.network.encoder import Encoded, Encoder

FOLDERS = "folders"  # the protocol of two folders given


@dataclass(frozen=True)
class Comparison:
    """What is to be looked up in what: the splits of a protocol, or the pictures of one folder in those of another."""

    protocol: ProtocolName | None = None  # None: that of the run
    among: Among | None = None  # of which classes queries and database are; None: all
    query: str | None = None  # folder of pictures to look up, a folder per class
    database: str | None = None  # folder of those to look them up in
    at: tuple[int, ...] = ()  # each K to measure mAP@K for; none: `MAP_AT`
    rescore: Rescore | None = None  # order the nearest anew, by outputs or asymmetric; None: leave them
    pool: int | None = None  # pictures ordered anew for each query, at least; None: `POOL`

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
        if self.pool is not None and self.rescore is None:
            raise UsageError("`pool` says how many pictures `rescore` orders anew; give both, or leave it")


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
    rescore, pool = comparison.rescore, POOL if comparison.pool is None else comparison.pool
    if comparison.query is None or comparison.database is None:
        return Measured(evaluate_run(run, comparison.protocol, at, comparison.among or "all", rescore, pool))
    return evaluate_folders(run, comparison.query, comparison.database, at, device, workers, progress, rescore, pool)


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


def evaluate_run(
    run: Run,
    protocol: str | None = None,
    at: Sequence[int] = MAP_AT,
    among: Among = "all",
    rescore: Rescore | None = None,
    pool: int = POOL,
) -> Evaluation:
    """Measure the saved codes of a run under a protocol, by default the one it was trained for.

    Args:
        run: a finished run.
        protocol: a name in `PROTOCOLS`.
        at: each K to measure mAP@K for.
        among: classes of queries and database: all, or those the run was trained on, or those held out.
        rescore: as in `evaluate`, and so is the pool; a run has the outputs.
        pool: as said.

    Raises:
        UsageError: the run has trained on queries of the protocol, or has no such splits or classes.
        RunError: codes or names of the run are missing or damaged.
        DataError: a split that it takes is empty.
    """
    name = protocol or run.config.protocol
    _require_splits(run, name)
    if not run.classes:
        raise DataError(
            f"{run.path} was made of pictures without classes, so nothing says which neighbours are right; give "
            "folders with a folder per class as `query` and `database`"
        )
    held_out = UNSEEN in run.counts
    if among != "all" and not held_out:
        raise UsageError(
            f"`among` {among}: {run.path} was trained on all classes; "
            f"keep some from it with dsh train --hold-out-classes"
        )

    def codes(split: str) -> CodeSet:
        with_outputs = rescore == "outputs" or (rescore is not None and split == "test")
        return run.codes(split, "relaxed") if with_outputs else run.codes(split)

    queries, database = compared(name, codes, held_out, among)
    _require_untrained(run, run.names().get("test", ()), f"protocol {name}", set(run.names().get("train", ())))
    evaluation = evaluate(queries, database, at=at, protocol=name, rescore=rescore, pool=pool)
    return replace(evaluation, among=among)


def evaluate_folders(
    run: Run,
    query: str,
    database: str,
    at: Sequence[int] = MAP_AT,
    device: str = "cpu",
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    rescore: Rescore | None = None,
    pool: int = POOL,
) -> Measured:
    """Measure the network of a run on two folders with a folder per class, or files of vectors with their labels.

    One given twice leaves self-matches out. Classes are matched by name; neither needs to have those of the run.

    Raises:
        UsageError: the run has trained on one of the queries, or some pictures but not all are in both folders.
        DataError: a folder has no class folders with pictures, or a file no labels, or other vectors.
    """
    left_out = LeftOut()
    parts = [_labelled(source, left_out) for source in ((query,) if _same(query, database) else (query, database))]
    of_run = _place_in(run.source)
    trained = set(map(of_run, run.names().get("train", ())))
    _require_untrained(run, parts[0].names, f"`query` {query}", trained, _place_in(query))
    if len(parts) == 2:
        places = [set(map(_place_in(part.source), part.names)) for part in parts]
        if both := places[0] & places[1]:
            raise UsageError(
                f"{min(both)} and {len(both) - 1:,} more pictures are in both `query` and `database`, and would find "
                "themselves; keep the two apart, or give one folder for both"
            )
    classes = tuple(sort_classes({label for part in parts for label in part.labels}))
    numbers = {label: number for number, label in enumerate(classes)}
    encoder = run.encoder(device)
    skipped: list[Skipped] = []
    encoded = []
    done, total = 0, sum(len(part.names) for part in parts)
    for part in parts:
        labels, packed, relaxed = [], [], []
        for label, item in zip(part.labels, _encoded(encoder, part, workers), strict=True):
            done += 1
            if progress is not None:
                progress(done, total)
            if item.packed is None:
                skipped.append(Skipped(item.path, str(item.error)))
            else:
                labels.append(numbers[label])
                packed.append(item.packed)
                if rescore is not None and item.relaxed is not None:
                    relaxed.append(item.relaxed.astype(np.float16))
        if not packed:
            raise DataError(
                f"none of the {len(part.names):,} pictures can be read ({skipped[-1].path}: {skipped[-1].error})"
            )
        outputs = np.stack(relaxed) if relaxed else None
        encoded.append(CodeSet(encoder.bits, np.stack(packed), np.array(labels, np.int64), classes, (), outputs))
    evaluation = evaluate(encoded[0], *encoded[1:], at=at, protocol=FOLDERS, rescore=rescore, pool=pool)
    return Measured(evaluation, tuple(skipped), left_out)


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


def _require_untrained(
    run: Run, queries: Sequence[str], what: str, trained: Set[str], place: Callable[[str], str] = str
) -> None:
    """Refuse queries the run has trained on. `place` gives what names of one picture have in common."""
    if leaked := [query for query in queries if place(query) in trained]:
        raise UsageError(
            f"{what}: {run.path} has trained on {len(leaked):,} of the {len(queries):,} queries, such as "
            f"{min(leaked)}; take queries it has not seen"
        )


def _place_in(source: str) -> Callable[[str], str]:
    """What tells where a name of a source is: a file, or, of a row of vectors named after none, the row."""
    if not is_vectors(source):
        return _file
    where = os.path.realpath(source)
    return lambda name: _file(path) if (path := named_file(source, name)) else f"{name} in {where}"


def _file(name: str) -> str:
    """The file that a run calls so, by its own path; where no file can have the name, the name."""
    try:
        return os.path.realpath(os.fsdecode(name.encode("utf-8", "surrogateescape")))
    except ValueError:
        return name


def _of_classes(codes: CodeSet, unseen: NDArray[np.int64], among: Among) -> CodeSet:
    """Codes of the classes held out, or of the others."""
    of = np.isin(codes.labels, unseen) == (among == "unseen")
    return taken(_joined([codes]), np.flatnonzero(of))


def _joined(parts: Sequence[CodeSet]) -> CodeSet:
    """Codes of several splits, one after the other, with their labels, and their outputs where all have them."""
    outputs = [part.relaxed for part in parts if part.relaxed is not None]
    return replace(
        parts[0],
        packed=np.concatenate([part.packed for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        names=(),
        relaxed=np.concatenate(outputs) if len(outputs) == len(parts) else None,
        thumbnails=None,
    )


@dataclass(frozen=True)
class _Part:
    """What is below a folder, or in a file of vectors, of all splits together."""

    source: str  # the folder or the file
    names: Sequence[str]
    labels: Sequence[str]  # a class each
    vectors: Vectors | None = None  # of the file


def _labelled(source: str, left_out: LeftOut) -> _Part:
    if is_vectors(source):
        found = read_vectors(source)
        if found.labels is None:
            raise DataError(f"{source} has no labels, which say what is right; add a column 'label'")
        return _Part(source, found.names, found.labels, found)
    if not os.path.isdir(source):
        raise UsageError(
            f"no folder at {source or repr('')}; give one with a folder of pictures per class, or a file of vectors"
        )
    listed = [item for part in list_folder(Path(source), left_out).parts.values() for item in part]
    return _Part(source, [path for path, _ in listed], [label for _, label in listed])


def _encoded(encoder: Encoder, part: _Part, workers: int | None) -> Iterable[Encoded]:
    from dsh_cli.data.inputs import encode_paths, encode_rows

    if part.vectors is None:
        return encode_paths(encoder, part.names, workers)
    return encode_rows(encoder, part.source, part.vectors)


def _same(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)
