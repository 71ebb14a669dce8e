"""Pictures and codes -> the nearest of a database, with what a run knows of its classes. Torch only for pictures."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dsh_cli.analysis.calibration import Calibration, calibrate
from dsh_cli.analysis.classes import ClassTable, NearestClass, class_table, nearest_classes
from dsh_cli.codes import nearest
from dsh_cli.codes.bits import Packed, looks_like_code, parse, to_hex
from dsh_cli.codes.sets import CodeSet
from dsh_cli.errors import DshError, UsageError, VersionGone
from dsh_cli.index.origins import Folders, added_from
from dsh_cli.pictures.find import LeftOut, expand
from dsh_cli.runs.run import Run
from dsh_cli.words import natural, nfc

K = 10  # neighbours of a query, where neither their number nor a radius is asked for

_BATCH = 256  # queries looked up at once


@dataclass(frozen=True)
class Query:
    """What to look for: a picture file or a code."""

    name: str  # the path, or the code as given
    picture: bool
    packed: Packed | None = None  # (ceil(k / 8),) uint8; None for a picture before it is encoded, and with an error
    error: str | None = None


@dataclass(frozen=True)
class Neighbor:
    """One of the database, as near to the query as its rank says."""

    rank: int  # 1 for the nearest; of one distance in the order in which they were added
    path: str
    label: str | None  # None where unknown
    code: str
    distance: int  # to the query, in bits
    row: int  # place in the database


@dataclass(frozen=True)
class Database:
    """Codes to look among, in the order in which they were added."""

    name: str  # for people
    run: Path  # whose codes these are
    bits: int
    packed: Packed  # (n, ceil(k / 8)) uint8
    rows: NDArray[np.int64]  # (n,) numbers by which `describe` and `thumbnails` know them
    describe: Callable[[Sequence[int]], Sequence[tuple[str, str | None]]]  # path and label
    thumbnails: Callable[[Sequence[int]], NDArray[np.uint8]] | None = None  # (r, h, w, channels); None: in their files
    narrowed: bool = False  # whether some were left out for their label
    folder: str = ""  # where files are looked for whose paths are relative
    shown: Folders = Folders()  # where pictures in files may be shown from
    note: str | None = None  # what is to be told of an index, such as damage
    newest: Callable[[], Database] | None = None  # the same in an index as it is now, where that version is gone

    def __len__(self) -> int:
        return len(self.packed)


@dataclass(frozen=True)
class Answer:
    """A query and its neighbours, with all that is known of them."""

    query: Query
    code: str
    predicted: NearestClass  # by the codes of the pictures that the run was trained on
    neighbors: tuple[Neighbor, ...]
    database: Database  # where they were looked for
    radius: int | None  # bits from the query within which they were looked for; None: any
    calibration: Calibration | None  # what their distances mean; None where the run has no held-out pictures

    @property
    def bits(self) -> int:
        """Length of the codes."""
        return self.database.bits

    @property
    def sharing(self) -> int:
        """Neighbours of the predicted class."""
        return sum(neighbor.label == self.predicted.label for neighbor in self.neighbors)

    @property
    def same_class_rate(self) -> float | None:
        """How often a picture as far away as the nearest neighbour is of the query's class, see `Calibration`.

        Of the pairs of a held-out and a training picture of the run that are as far apart as the query and its nearest
        neighbour, the share in [0, 1] that are of one class; None without a neighbour, or without such a pair.
        """
        return self.calibration.rate(self.neighbors[0].distance) if self.calibration and self.neighbors else None


def split_database(
    run: Run, split: str | None = None, labels: Sequence[str] = (), not_labels: Sequence[str] = ()
) -> Database:
    """A split of a run: by default `database`, or `train` where it has none. Of given labels, or without some.

    Raises:
        UsageError: the run has no such split, or a label is none of its classes.
        DshError: no picture is left.
    """
    default = "database" if "database" in run.counts else "train"
    chosen = default if split is None else split
    codes = run.codes(chosen)
    known_labels = [*run.classes, None]  # the last for -1
    rows = _of_labels(codes.labels, run.classes, labels, not_labels, str(run.path))
    names = run.names().get(chosen, ())
    if len(names) != len(codes):
        raise DshError(f"{run.path / 'splits.json'} does not fit the codes; train again with: dsh train")
    database = Database(
        name=f"{chosen} split",
        run=run.path,
        bits=codes.bits,
        packed=codes.packed[rows],
        rows=rows,
        describe=lambda wanted: [(names[row], known_labels[codes.labels[row]]) for row in wanted],
        thumbnails=lambda wanted: run.thumbnails(chosen, wanted),
        narrowed=bool(labels or not_labels),
    )
    return _not_empty(database, f"the {chosen} split of {run.path}", "choose another `split`")


def index_database(
    uri: str,
    run: Run,
    labels: Sequence[str] = (),
    not_labels: Sequence[str] = (),
    relative_to: str = "",
    pictures: Sequence[str] = (),
) -> Database:
    """An index of pictures, of given labels, or without some; its relative paths are so to a folder.

    A page may show its pictures in that folder, in others that are named, and where this user added them from.

    Raises:
        UsageError: a label is none of its labels.
        DshError: there is no index, it is empty, it is of another model, or no picture is left.
    """
    from dsh_cli.index.index import Index

    def newest() -> Database:
        return index_database(uri, run, labels, not_labels, relative_to, pictures)

    index = Index.open(uri)
    index.require_rows()
    index.require(run)
    packed, rows = index.codes(), np.arange(len(index))
    index.require(run)  # where the codes read are those of a newer version
    if labels or not_labels:
        try:
            rows = _of_labels(*index.labels(), labels, not_labels, f"index {uri}")
        except VersionGone:
            return newest()
        packed = packed[rows]
    database = Database(
        name=f"index {uri}",
        run=run.path,
        bits=run.model.bits,
        packed=packed,
        rows=rows,
        describe=lambda wanted: [(row.path, row.label) for row in index.rows(np.array(wanted, np.int64))],
        narrowed=bool(labels or not_labels),
        folder=relative_to,
        shown=added_from(uri).and_named([*filter(None, [relative_to]), *pictures]),
        note=index.note,
        newest=newest,
    )
    return _not_empty(database, f"index {uri}", "see: dsh index info " + uri)


def _of_labels(
    numbers: NDArray[np.integer], names: Sequence[str], labels: Sequence[str], not_labels: Sequence[str], where: str
) -> NDArray[np.int64]:
    """The rows of given labels, or without some; their own are places in the names, or -1 for none."""
    names = [nfc(name) for name in names]
    labels, not_labels = [nfc(label) for label in labels], [nfc(label) for label in not_labels]
    for label in (*labels, *not_labels):
        if label not in names:
            known = (", ".join(sorted(names, key=natural)[:10]) + (", ..." if len(names) > 10 else "")) or "none"
            raise UsageError(f"no class {label!r} in {where}; its classes: {known}")
    kept = [(not labels or name in labels) and name not in not_labels for name in (*names, None)]
    return np.flatnonzero(np.array(kept)[numbers])


def _not_empty(database: Database, where: str, what_to_do: str) -> Database:
    if not len(database):
        kind = "pictures of these labels" if database.narrowed else "pictures"
        raise DshError(f"no {kind} in {where}; {what_to_do}")
    return database


@dataclass(frozen=True)
class Search:
    """What queries are looked up in, and how near what is found must be."""

    split: str | None = None  # of the run; None: see `split_database`
    index: str | None = None  # URI of an index to look in, in place of the run
    label: tuple[str, ...] = ()  # classes to look in alone; none: all
    not_label: tuple[str, ...] = ()  # classes to leave out
    k: int | None = None  # neighbours of a query, at most; None: see `Finder`
    radius: int | None = None  # bits from a query, at most; None: any
    html: str | None = None  # page to be written
    relative_to: str | None = None  # folder of the paths in the index, where the page finds its pictures
    pictures: tuple[str, ...] = ()  # folders whose pictures the page may show, whoever added them to the index

    def check(self) -> None:
        """Refuse what contradicts itself, before any run is opened.

        Raises:
            UsageError: it does; the message names the fields.
        """
        if self.index is not None and self.split is not None:
            raise UsageError("`index` and `split` contradict each other; give one of them")
        if self.relative_to is not None:
            if self.index is None or self.html is None:
                raise UsageError(
                    "`relative_to` says where `html` finds the pictures of `index`; give both, or leave it"
                )
            if not os.path.isdir(self.relative_to):
                raise UsageError(f"`relative_to` {self.relative_to}: no such folder")
        if self.pictures and (self.index is None or self.html is None):
            raise UsageError("`pictures` says which pictures of `index` are shown by `html`; give both, or leave it")
        for folder in self.pictures:
            if not os.path.isdir(folder):
                raise UsageError(f"`pictures` {folder}: no such folder")
        if self.label and set(self.label) <= set(self.not_label):
            raise UsageError("`not_label` takes away all that `label` names; drop one of them")

    def finder(self, run: Run, queries: Iterable[str] = ()) -> Finder:
        """What answers in this way for a run.

        Args:
            run: whose codes these are.
            queries: those known before; a malformed code among them is refused before anything is looked up.

        Raises:
            UsageError: the search contradicts itself, or the run or index has no such split, class or radius; or a
                query is a malformed code.
            DshError: as in `split_database` and `index_database`.
        """
        self.check()
        if self.index is None:
            database = split_database(run, self.split, self.label, self.not_label)
        else:
            base = self.relative_to or ""
            database = index_database(self.index, run, self.label, self.not_label, base, self.pictures)
        for text in filter(is_code, queries):
            parse(text, database.bits)
        return Finder(run, database, self.k, self.radius)


class Finder:
    """Looks up queries in a database, and says what the run knows of them.

    Args:
        run: whose codes these are; it knows the classes, and encodes pictures.
        database: what to look among.
        k: neighbours of each query, at most; None: `K`, or with a radius all within it.
        radius: bits from the query, at most; None: any.

    Raises:
        UsageError: the radius is none for codes of this length.
    """

    def __init__(self, run: Run, database: Database, k: int | None = None, radius: int | None = None) -> None:
        if radius is not None and not 0 <= radius <= database.bits:
            raise UsageError(f"`radius` {radius}: codes of {database.bits} bits differ in 0 to {database.bits}")
        self.run, self.database, self.radius = run, database, radius
        self.k = K if k is None and radius is None else k
        self.left_out = LeftOut()  # of folders given as queries

    def find(self, texts: Iterable[str], device: str = "auto", workers: int | None = None) -> Iterator[Answer | Query]:
        """Each query with its neighbours, in order; one that cannot be read as a `Query` with an error.

        Args:
            texts: queries as given, see `parse_queries`.
            device: where pictures are encoded.
            workers: threads that decode them; None: one a processor.
        """
        queries = parse_queries(texts, self.database.bits, self.left_out)
        source = encoded(self.run, queries, device, workers)
        # all within a radius may be the whole database, so not for many queries at once
        while batch := list(islice(source, 1 if self.k is None else _BATCH)):
            answers = iter(self._answers([query for query in batch if query.packed is not None]))
            for query in batch:
                yield query if query.packed is None else next(answers)

    def _answers(self, queries: Sequence[Query]) -> list[Answer]:
        """One for each query, all of which have codes; all of one version of an index."""
        while True:
            try:
                return list(self._looked_up(queries))
            except VersionGone:
                if self.database.newest is None:
                    raise
                self.database = self.database.newest()

    def _looked_up(self, queries: Sequence[Query]) -> Iterator[Answer]:
        if not queries:
            return
        packed = np.stack([query.packed for query in queries if query.packed is not None])
        codes, predicted = to_hex(packed, self.database.bits), self.predict(packed)
        for query, code, near, found in zip(queries, codes, predicted, self._look_up(packed), strict=True):
            neighbors = self._neighbors(*found)
            yield Answer(query, code, near, neighbors, self.database, self.radius, self.calibration)

    def _neighbors(self, places: NDArray[np.int64], distances: NDArray[np.int32]) -> tuple[Neighbor, ...]:
        rows = self.database.rows[places].tolist()
        about = self.database.describe(rows)
        codes = to_hex(self.database.packed[places], self.database.bits)
        return tuple(
            Neighbor(rank, path, label, code, distance, row)
            for rank, ((path, label), code, distance, row) in enumerate(
                zip(about, codes, distances.tolist(), rows, strict=True), 1
            )
        )

    def predict(self, packed: Packed) -> tuple[NearestClass, ...]:
        """For each of (n, bytes) codes the class whose code is nearest, see `nearest_classes`."""
        return nearest_classes(packed, self._classes)

    @cached_property
    def calibration(self) -> Calibration | None:
        """What distances mean by the run's held-out pictures; None where it has none with a label."""
        split = "validation" if self.run.counts.get("validation") else "test"
        return calibrate(self.run.codes(split), self._train, split) if self.run.counts.get(split) else None

    @cached_property
    def _train(self) -> CodeSet:
        return self.run.codes("train")

    @cached_property
    def _classes(self) -> ClassTable:
        return class_table(self._train, "train")

    def _look_up(self, packed: Packed) -> Iterable[nearest.Found]:
        codes, bits = self.database.packed, self.database.bits
        if self.k is None:
            assert self.radius is not None
            return nearest.within(codes, packed, bits, self.radius)
        rows, distances = nearest.nearest(codes, packed, bits, self.k)
        limits = (distances <= (bits if self.radius is None else self.radius)).sum(axis=1)
        return [(rows[i, :limit], distances[i, :limit]) for i, limit in enumerate(limits)]


def is_code(text: str) -> bool:
    """Whether a text given as a query is meant as a code: it looks like one, and there is no file of that name."""
    return looks_like_code(text) and not os.path.lexists(text)


def parse_queries(texts: Iterable[str], bits: int, left_out: LeftOut | None = None) -> Iterator[Query]:
    """Queries as given: codes, picture files, and folders as the pictures below them.

    A malformed code comes as a query with an error.
    """
    for text in texts:
        if is_code(text):
            try:
                yield Query(text, False, parse(text, bits))
            except UsageError as error:
                yield Query(text, False, error=str(error))
        else:
            for path in expand([text], left_out):
                yield Query(path, True)


def encoded(run: Run, queries: Iterable[Query], device: str = "auto", workers: int | None = None) -> Iterator[Query]:
    """Queries with the codes of their pictures, in order; those that cannot be read with an error."""
    net = None
    for pending, group in groupby(queries, lambda query: query.packed is None and query.error is None):
        if not pending:
            yield from group
            continue
        from dsh_cli.network.encoding import encode_files

        net = net or run.load_model(device)
        for item in encode_files(net, (query.name for query in group), workers):
            query = Query(item.path, True, item.packed, item.error)
            if item.error is not None and _bare_code(item.path, run.model.bits):
                query = replace(query, error=f"{item.error}; as a code it is written 0x{item.path}")
            yield query


def _bare_code(text: str, bits: int) -> bool:
    """Whether a text that names no file is a code without its prefix."""
    return re.fullmatch(f"[0-9a-fA-F]{{{-(-bits // 4)}}}", text) is not None and not os.path.lexists(text)
