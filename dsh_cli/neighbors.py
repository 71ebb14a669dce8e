"""Pictures and codes -> the nearest of a database, with what a run knows of its classes. Torch only for pictures."""

from __future__ import annotations

import math
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dsh_cli.analysis.calibration import Calibration, calibrate
from dsh_cli.analysis.classes import ClassTable, NearestClass, class_table, nearest_classes
from dsh_cli.codes import rescoring
from dsh_cli.codes.bits import Packed, looks_like_code, parse, to_hex
from dsh_cli.codes.blocks import Codes, Held, Near, nearest_in, within_in
from dsh_cli.codes.sets import CodeSet
from dsh_cli.config import Fit, Rescore
from dsh_cli.errors import DshError, UsageError, VersionGone
from dsh_cli.index.origins import Folders, added_from
from dsh_cli.pictures.find import LeftOut, expand
from dsh_cli.runs.exported import Exported
from dsh_cli.runs.run import Run
from dsh_cli.threads import default_workers
from dsh_cli.words import natural, nfc

K = 10  # neighbours of a query, where neither their number nor a radius is asked for
POOL = 100  # times as many are ordered anew, so that for K it is as many as `evaluate` takes; see benchmarks/LOG.md
MEMORY = 2.0  # GiB of codes to hold; those of a larger index stay on its disk

# Queries looked up at once, at most, by one reading of codes that stay on disk. Comparing a code with so many takes
# longer by far than a disk takes to read it, so that more would save little, and the first answer waits for all.
_BATCH = 256
_POOLED = 1 << 20  # pictures of their pools at once, about
_CELLS = 1 << 22  # outputs read at once, at most


@dataclass(frozen=True)
class Query:
    """What to look for: a picture file or a code."""

    name: str  # the path, or the code as given
    picture: bool
    packed: Packed | None = None  # (ceil(k / 8),) uint8; None for a picture before it is encoded, and with an error
    error: str | None = None
    relaxed: NDArray[np.float32] | None = None  # (k,) outputs of the network; None of a code


@dataclass(frozen=True)
class Neighbor:
    """One of the database, as near to the query as its rank says."""

    rank: int  # 1 for the nearest, or the best; of equals in the order in which they were added
    path: str
    label: str | None  # None where unknown
    code: str
    distance: int  # to the query, in bits
    row: int  # place in the database
    score: float | None = None  # cosine of outputs with the query's, -1 to 1; None where nothing was rescored


@dataclass(frozen=True)
class Rescored:
    """How the neighbours of a query were ordered anew, see `codes.rescoring`."""

    by: Rescore  # what the query's outputs were held against: outputs, or codes
    pool: int  # pictures ordered anew: those nearest by Hamming distance
    cut: int | None  # the distance of which the pool has those added first alone; None: it has all


@dataclass(frozen=True)
class Database:
    """Codes to look among; those equally near come in the order in which they were added."""

    name: str  # for people
    run: Path  # whose codes these are
    bits: int
    codes: Codes
    describe: Callable[[Sequence[int]], Sequence[tuple[str, str | None]]]  # path and label, by places in `codes`
    thumbnails: Callable[[Sequence[int]], NDArray[np.uint8]] | None = None  # (r, h, w, channels); None: in their files
    rows: Callable[[NDArray[np.int64]], NDArray[np.int64]] = lambda places: places  # by places; what a `Neighbor` has
    fit: Fit = "crop"  # how its run has made pictures square
    narrowed: bool = False  # whether some were left out for their label
    folder: str = ""  # where files are looked for whose paths are relative
    shown: Folders = Folders()  # where pictures in files may be shown from
    note: str | None = None  # what is to be told of an index, such as damage
    newest: Callable[[], Database] | None = None  # the same in an index as it is now, where that version is gone
    outputs: Callable[[NDArray[np.int64]], rescoring.Outputs] | None = None  # (r, k), by places; None: not asked for
    scale: float | None = None  # of these outputs

    def __len__(self) -> int:
        return len(self.codes)


@dataclass(frozen=True)
class Answer:
    """A query and its neighbours, with all that is known of them."""

    query: Query
    code: str
    predicted: NearestClass | None  # by the codes of the pictures that the run was trained on; None: without classes
    neighbors: tuple[Neighbor, ...]
    database: Database  # where they were looked for
    radius: int | None  # bits from the query within which they were looked for; None: any
    calibration: Calibration | None  # what their distances mean; None where the run has no held-out pictures
    rescored: Rescored | None = None  # None: neighbours are in the order of Hamming distance

    @property
    def bits(self) -> int:
        """Length of the codes."""
        return self.database.bits

    @property
    def sharing(self) -> int:
        """Neighbours of the predicted class."""
        return sum(map(self.is_shared, self.neighbors))

    def is_shared(self, neighbor: Neighbor) -> bool:
        """Whether a neighbour is of the predicted class."""
        return self.predicted is not None and neighbor.label == self.predicted.label

    @property
    def same_class_rate(self) -> float | None:
        """How often a picture as far away as the first neighbour is of the query's class, see `Calibration`.

        Of the pairs of a held-out and a training picture of the run that are as far apart as the query and its first
        neighbour, the share in [0, 1] that are of one class; None without a neighbour, or without such a pair.
        """
        return self.calibration.rate(self.neighbors[0].distance) if self.calibration and self.neighbors else None


def split_database(
    run: Run,
    split: str | None = None,
    labels: Sequence[str] = (),
    not_labels: Sequence[str] = (),
    outputs: bool = False,
) -> Database:
    """A split of a run: by default `database`, or `train` where it has none. Of given labels, or without some.

    With its outputs where asked for, to be rescored by.

    Raises:
        UsageError: the run has no such split, or a label is none of its classes.
        DshError: no picture is left.
    """
    default = "database" if "database" in run.counts else "train"
    chosen = default if split is None else split
    codes = run.codes(chosen, "relaxed") if outputs else run.codes(chosen)
    known_labels = [*run.classes, None]  # the last for -1
    rows = _of_labels(codes.labels, run.classes, labels, not_labels, str(run.path))
    names = run.names().get(chosen, ())
    if len(names) != len(codes):
        raise DshError(f"{run.path / 'splits.json'} does not fit the codes; train again with: dsh train")
    scale = None if codes.relaxed is None else rescoring.scale_of(codes.relaxed)
    database = Database(
        name=f"{chosen} split",
        run=run.path,
        bits=codes.bits,
        codes=Held.of(codes.packed[rows], rows, default_workers()),
        describe=lambda wanted: [(names[row], known_labels[codes.labels[row]]) for row in wanted],
        thumbnails=lambda wanted: run.thumbnails(chosen, wanted),
        fit=run.model.fit,
        narrowed=bool(labels or not_labels),
        outputs=None if codes.relaxed is None or scale is None else _held(codes.relaxed, scale),
        scale=scale,
    )
    return _not_empty(database, f"the {chosen} split of {run.path}", "choose another `split`")


def _held(relaxed: NDArray[np.float16], scale: float) -> Callable[[NDArray[np.int64]], rescoring.Outputs]:
    """What gives outputs of rows, which are in memory as an index would keep them."""
    outputs = rescoring.quantised(relaxed, scale)
    return lambda wanted: outputs[wanted]


def index_database(
    uri: str,
    run: Run | Exported,
    labels: Sequence[str] = (),
    not_labels: Sequence[str] = (),
    relative_to: str = "",
    pictures: Sequence[str] = (),
    outputs: bool = False,
    memory: float = MEMORY,
    threads: int | None = None,
) -> Database:
    """An index of pictures, of given labels, or without some; its relative paths are so to a folder.

    A page may show its pictures in that folder, in others that are named, and where this user added them from. Outputs
    stay on the disk, where asked for, until those of some rows are needed; and so do codes that would take more than so
    many GiB of memory, which each search then reads. Those that are held are read by `threads`, one a processor.

    Raises:
        UsageError: a label is none of its labels.
        DshError: there is no index, it is empty, it is of another model, or no picture is left; or it keeps no outputs.
    """
    from dsh_cli.index.index import Index
    from dsh_cli.index.search import codes_of

    def newest() -> Database:
        return index_database(uri, run, labels, not_labels, relative_to, pictures, outputs, memory, threads)

    index = Index.open(uri)
    index.require_rows()
    index.require(run)
    if outputs:
        index.require_outputs()
    index.pin()
    try:
        kept, count = None, len(index)
        if labels or not_labels:
            counts = index.label_counts()
            kept = _kept(list(counts), labels, not_labels, f"index {uri}")
            count = sum(rows for label, rows in counts.items() if label in kept)
        codes = codes_of(index, kept, count, memory, threads or default_workers())
    except VersionGone:
        return newest()
    database = Database(
        name=f"index {uri}",
        run=run.path,
        bits=run.model.bits,
        codes=codes,
        describe=lambda places: [(row.path, row.label) for row in index.rows_at(places)],
        rows=index.numbers,
        fit=run.model.fit,
        narrowed=bool(labels or not_labels),
        folder=relative_to,
        shown=added_from(uri).and_named([*filter(None, [relative_to]), *pictures]),
        note=index.note,
        newest=newest,
        outputs=index.outputs_at if outputs else None,
        scale=index.scale if outputs else None,
    )
    return _not_empty(database, f"index {uri}", "see: dsh index info " + uri)


def _of_labels(
    numbers: NDArray[np.integer], names: Sequence[str], labels: Sequence[str], not_labels: Sequence[str], where: str
) -> NDArray[np.int64]:
    """The rows of given labels, or without some; their own are places in the names, or -1 for none."""
    kept = _kept(names, labels, not_labels, where)
    return np.flatnonzero(np.array([name in kept for name in (*names, None)])[numbers])


def _kept(
    names: Sequence[str | None], labels: Sequence[str], not_labels: Sequence[str], where: str
) -> frozenset[str | None]:
    """Names, and None for those without, that are asked for, or are left by those that are not."""
    labels, not_labels = [nfc(label) for label in labels], [nfc(label) for label in not_labels]
    known = {nfc(name) for name in names if name is not None}
    for label in (*labels, *not_labels):
        if label not in known:
            told = (", ".join(sorted(known, key=natural)[:10]) + (", ..." if len(known) > 10 else "")) or "none"
            raise UsageError(f"no class {label!r} in {where}; its classes: {told}")

    def is_kept(name: str | None) -> bool:
        return (not labels or name in labels) and name not in not_labels

    return frozenset(name for name in (*names, None) if is_kept(None if name is None else nfc(name)))


def _not_empty(database: Database, where: str, what_to_do: str) -> Database:
    if not len(database):
        kind = "pictures of these labels" if database.narrowed else "pictures"
        raise DshError(f"no {kind} in {where}; {what_to_do}")
    return database


_Ordered = tuple[Near, Sequence[float | None], Rescored | None]  # with scores where rescored, and how


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
    rescore: Rescore | None = None  # order the nearest anew, by outputs or asymmetric; None: leave them
    pool: int | None = None  # times k pictures that are ordered anew; None: `POOL`
    threads: int | None = None  # that search; None: one a processor
    memory: float | None = None  # GiB of codes of an index to hold; None: `MEMORY`

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
        if self.pool is not None and self.rescore is None:
            raise UsageError("`pool` says how many pictures `rescore` orders anew; give both, or leave it")
        if self.pool is not None and self.k is None and self.radius is not None:
            raise UsageError(
                "`pool` is a multiple of `k`, without which all within `radius` are ordered anew; give both"
            )

        if self.threads is not None and self.threads < 1:
            raise UsageError(f"`threads` {self.threads}: 1 or more")
        if self.memory is not None and not 0 <= self.memory < math.inf:
            raise UsageError(f"`memory` {self.memory}: a number of GiB, 0 or more")
        if self.memory is not None and self.index is None:
            raise UsageError("`memory` says how many codes of `index` are held; give both, or leave it")

    def finder(self, run: Run | Exported, queries: Iterable[str] = ()) -> Finder:
        """What answers in this way for a run.

        Args:
            run: whose codes these are; a model that was exported has no pictures, and needs an index.
            queries: those known before; a malformed code among them is refused before anything is looked up.

        Raises:
            UsageError: the search contradicts itself, or the run or index has no such split, class or radius; or a
                query is a malformed code.
            DshError: as in `split_database` and `index_database`.
        """
        self.check()
        outputs = self.rescore == "outputs"
        if self.index is None and isinstance(run, Exported):
            raise UsageError(f"{run.path} has no pictures to look in; name an `index`, or with `model` the run")
        if self.index is None:
            assert isinstance(run, Run)
            database = split_database(run, self.split, self.label, self.not_label, outputs)
        else:
            base = self.relative_to or ""
            memory = MEMORY if self.memory is None else self.memory
            found = (self.label, self.not_label, base, self.pictures, outputs, memory, self.threads)
            database = index_database(self.index, run, *found)
        for text in filter(is_code, queries):
            parse(text, database.bits)
        pool = POOL if self.pool is None else self.pool
        return Finder(run, database, self.k, self.radius, self.rescore, pool, self.threads)


class Finder:
    """Looks up queries in a database, and says what the run knows of them.

    Args:
        run: whose codes these are; it knows the classes, and encodes pictures. Or a model that was exported from it.
        database: what to look among.
        k: neighbours of each query, at most; None: `K`, or with a radius all within it.
        radius: bits from the query, at most; None: any.
        rescore: order the nearest by Hamming distance anew, by the query's outputs against theirs or, `asymmetric`,
            against their codes, see `codes.rescoring`; None: leave them. A query that is a code has outputs 1 and -1.
        pool: times k pictures that are ordered anew; of equally near ones at its edge those added first. With a radius
            and no k, all within it are.
        threads: that search; None: one a processor.

    Raises:
        UsageError: the radius is none for codes of this length, the pool or the threads are none, or the database came
            without outputs.
    """

    def __init__(
        self,
        run: Run | Exported,
        database: Database,
        k: int | None = None,
        radius: int | None = None,
        rescore: Rescore | None = None,
        pool: int = POOL,
        threads: int | None = None,
    ) -> None:
        if radius is not None and not 0 <= radius <= database.bits:
            raise UsageError(f"`radius` {radius}: codes of {database.bits} bits differ in 0 to {database.bits}")
        if pool < 1:
            raise UsageError(f"`pool` {pool}: it is a multiple of k, 1 or more")
        if threads is not None and threads < 1:
            raise UsageError(f"`threads` {threads}: 1 or more")
        if rescore == "outputs" and database.outputs is None:
            raise UsageError(f"`rescore`: the {database.name} came without outputs; ask for them, or take asymmetric")
        self.run, self.database, self.radius = run, database, radius
        self.k = K if k is None and radius is None else k
        self.rescore, self.pool, self.threads = rescore, pool, threads or default_workers()
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
        # for what is found of all of them together, see `within_in`
        most = 1 if self.k is None else max(1, min(len(self.database), self._wanted(self.k)))
        at_once = max(1, min(_BATCH, _POOLED // most))
        if self.k is None and isinstance(self.database.codes, Held):
            at_once = 1  # whose codes need not be read again
        while batch := list(islice(source, at_once)):
            answers = self._answers([query for query in batch if query.packed is not None])
            for query in batch:
                yield query if query.packed is None else next(answers)

    def _answers(self, queries: Sequence[Query]) -> Iterator[Answer]:
        """One for each query, all of which have codes; those of one search are of one version of an index."""
        left = deque(queries)
        while left:
            try:
                found = list(self._looked_up(left))
            except VersionGone:
                if self.database.newest is None:
                    raise
                self.database = self.database.newest()
                continue
            for answer in found:
                left.popleft()
                yield answer

    def _looked_up(self, queries: Sequence[Query]) -> Iterator[Answer]:
        """An answer for each of the first queries, one at least."""
        packed = np.stack([query.packed for query in queries if query.packed is not None])
        pools = self._look_up(packed)
        asked = [query for query, _ in zip(queries, pools, strict=False)]
        codes, predicted = to_hex(packed[: len(asked)], self.database.bits), self.predict(packed[: len(asked)])
        found = list(self._found(asked, pools))
        places = np.concatenate([near.places for near, _, _ in found])
        rows = np.split(self.database.rows(places), np.cumsum([len(near) for near, _, _ in found])[:-1])
        for query, code, of_class, (near, scores, rescored), at in zip(
            asked, codes, predicted, found, rows, strict=True
        ):
            neighbors = self._neighbors(near, at, scores)
            yield Answer(query, code, of_class, neighbors, self.database, self.radius, self.calibration, rescored)

    def _neighbors(self, near: Near, rows: NDArray[np.int64], scores: Sequence[float | None]) -> tuple[Neighbor, ...]:
        about = self.database.describe(near.places.tolist())
        codes = to_hex(near.packed, self.database.bits)
        return tuple(
            Neighbor(rank, path, label, code, distance, row, score)
            for rank, ((path, label), code, distance, row, score) in enumerate(
                zip(about, codes, near.distances.tolist(), rows.tolist(), scores, strict=True), 1
            )
        )

    def _found(self, queries: Sequence[Query], pools: Sequence[Near]) -> Iterator[_Ordered]:
        """What was found for each query, ordered anew where that is asked for."""
        if self.rescore is None:
            for near in pools:
                yield near, [None] * len(near), None
            return
        cuts = [self._cut(near.distances) for near in pools]
        pools = [near[:size] for near, (size, _) in zip(pools, cuts, strict=True)]
        scored = self._scores(queries, pools)
        for near, (size, cut), scores in zip(pools, cuts, scored, strict=True):
            best = rescoring.best_first(scores)[: self.k]
            yield near[best], rescoring.cosines(scores[best]).tolist(), Rescored(self.rescore, size, cut)

    def _cut(self, distances: NDArray[np.int32]) -> tuple[int, int | None]:
        """How many are the pool of what was looked up, and the distance of which it has some and leaves others."""
        size = len(distances) if self.k is None else min(len(distances), self.k * self.pool)
        cut = size < len(distances) and distances[size] == distances[size - 1]
        return size, int(distances[size]) if cut else None

    def _scores(self, queries: Sequence[Query], pools: Sequence[Near]) -> list[rescoring.Steps]:
        """For each query the scores of its pool. Pictures of several pools are read once."""
        scale = self.database.scale if self.rescore == "outputs" else None
        steps = [rescoring.steps_of(self._outputs_of(query), scale) for query in queries]
        places = np.concatenate([pool.places for pool in pools])
        packed = np.concatenate([pool.packed for pool in pools])
        owner = np.repeat(np.arange(len(pools)), [len(pool) for pool in pools])
        scores = np.empty(len(places))
        size = max(1, _CELLS // self.database.bits)
        for start in range(0, len(places), size):
            some = slice(start, start + size)
            wanted, first, at = np.unique(places[some], return_index=True, return_inverse=True)
            against = self._against(wanted, packed[some][first])
            for one in np.unique(owner[some]):
                begin, end = np.searchsorted(owner[some], [one, one + 1])
                scores[start + begin : start + end] = rescoring.scores(steps[one], against[at[begin:end]])
        return np.split(scores, np.cumsum([len(pool) for pool in pools])[:-1])

    def _outputs_of(self, query: Query) -> NDArray[np.float32] | rescoring.Outputs:
        """(k,) outputs of a query; of one that is a code 1 and -1."""
        if query.relaxed is not None:
            return query.relaxed
        assert query.packed is not None
        outputs: rescoring.Outputs = rescoring.signs(query.packed[None], self.database.bits)[0]
        return outputs

    def _against(self, places: NDArray[np.int64], packed: Packed) -> rescoring.Outputs:
        """(r, k) what outputs of queries are held against, of some pictures with their codes."""
        if self.rescore == "asymmetric":
            return rescoring.signs(packed, self.database.bits)
        assert self.database.outputs is not None
        return self.database.outputs(places)

    def _wanted(self, k: int) -> int:
        """How many are looked up for k neighbours: where rescored one more than the pool, which tells of its edge."""
        return k if self.rescore is None else k * self.pool + 1

    def predict(self, packed: Packed) -> tuple[NearestClass | None, ...]:
        """For each of (n, bytes) codes the class whose code is nearest, see `nearest_classes`; None without classes."""
        return nearest_classes(packed, self._classes) if self.run.classes else (None,) * len(packed)

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

    def _look_up(self, packed: Packed) -> list[Near]:
        """What is near to each of the first codes, one at least."""
        codes, bits = self.database.codes, self.database.bits
        if self.k is None:
            assert self.radius is not None
            return within_in(codes, packed, bits, self.radius, _POOLED, self.threads)
        return nearest_in(codes, packed, bits, self._wanted(self.k), self.radius, self.threads)


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


def encoded(
    run: Run | Exported, queries: Iterable[Query], device: str = "auto", workers: int | None = None
) -> Iterator[Query]:
    """Queries with the codes of their pictures, in order; those that cannot be read with an error.

    A file of vectors gives a query for each of its rows.
    """
    encoder = None
    for pending, group in groupby(queries, lambda query: query.packed is None and query.error is None):
        if not pending:
            yield from group
            continue
        from dsh_cli.data.inputs import encode_paths

        encoder = encoder or run.encoder(device)
        for item in encode_paths(encoder, (query.name for query in group), workers):
            query = Query(item.path, not run.model.of_vectors, item.packed, item.error, item.relaxed)
            if item.error is not None and _bare_code(item.path, run.model.bits):
                query = replace(query, error=f"{item.error}; as a code it is written 0x{item.path}")
            yield query


def _bare_code(text: str, bits: int) -> bool:
    """Whether a text that names no file is a code without its prefix."""
    return re.fullmatch(f"[0-9a-fA-F]{{{-(-bits // 4)}}}", text) is not None and not os.path.lexists(text)
