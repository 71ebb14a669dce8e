"""A persistent set of codes: pictures added, updated, removed, verified and handed on.

Its table is `table.py`'s, which says what it holds and how it is written; what is known of a path and what is to be
written are `rows.py`'s, picture files `files.py`'s.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from dsh_cli.codes.bits import Packed, binarize, pack, unpack
from dsh_cli.codes.blocks import Block
from dsh_cli.codes.rescoring import Outputs, quantised, scale_of
from dsh_cli.config import MAX_BITS, EngineName, Service
from dsh_cli.data.vectors import NO_PICTURES, Vectors, is_vectors
from dsh_cli.errors import DshError, ImageError, IndexStateError, UsageError, VersionGone
from dsh_cli.files import written
from dsh_cli.index import engines, origins
from dsh_cli.index.export import Layout
from dsh_cli.index.files import Listed, content, gone, key_of, labeller_of, listed, lost, matches, stamp
from dsh_cli.index.place import local
from dsh_cli.index.rows import Counts, Entry, Failure, Fresh, Known, Writer, among
from dsh_cli.index.schema import fixed
from dsh_cli.index.table import Damage, Table
from dsh_cli.network.encoder import NEAR_ZERO
from dsh_cli.pictures.decode import Picture
from dsh_cli.pictures.find import LeftOut, expand
from dsh_cli.words import counted, of_utf8, utf8

if TYPE_CHECKING:
    import pyarrow as pa

    from dsh_cli.runs.exported import Exported
    from dsh_cli.runs.run import Run

_COMMIT_ROWS = 1 << 14  # rows a commit, at most; until then they wait in memory
_READY_ROWS = 1 << 18  # rows a commit where codes are ready, at least

_ROW = ["path", "label", "size", "mtime_ns", "hash"]  # what is known of a row
_LABEL = 64  # bytes of a label and its check, about

T = TypeVar("T")
Value = TypeVar("Value", bound=np.generic)
Progress = Callable[[int, int], None]  # pictures done, pictures in all


@dataclass(frozen=True)
class Row:
    """A picture of an index."""

    path: str
    label: str | None  # None where unknown
    size: int | None  # bytes of the file; None, as the next two, where the code came without it
    mtime_ns: int | None
    hash: str | None  # hex


@dataclass(frozen=True)
class Report:
    """What an index holds, and what was done to it."""

    index: str
    bits: int | None  # None, as the model, of an empty index
    rows: int
    model: str | None  # fingerprint of the run
    version: int  # 0 before the first commit
    versions: int  # kept, this one included
    whole_versions: int | None  # of them; None where nobody knows, as in object storage
    added: int = 0
    updated: int = 0
    skipped: int = 0  # unchanged
    removed: int = 0
    unlabelled: int = 0  # pictures that the labels asked for say nothing of
    checked: int | None = None  # pictures `verify` looked at
    digests: bool = True  # whether each row carries one, by which damage shows
    scale: float | None = None  # step of the outputs that it keeps; None where it keeps none
    failed: tuple[Failure, ...] = ()
    repaired: tuple[Failure, ...] = ()  # what `verify` found, and mended
    left_out: LeftOut = field(default_factory=LeftOut)  # of folders that pictures were added from


@dataclass(frozen=True)
class ReadyCodes:
    """Codes that are there already: n paths, (n, ceil(bits / 8)) packed codes, and n labels where known.

    An index whose first codes come with (n, bits) outputs keeps outputs, and is given them with all later ones.
    """

    paths: Sequence[str]
    packed: Packed
    labels: Sequence[str | None] | None = None
    relaxed: NDArray[np.floating] | None = None


class Index:
    """An index as it was when it was opened, and after each change made through it.

    Its rows are numbered from 0 in the order of adding. A URI is a local path or one of Lance's for object storage.

    `blocks` has all its codes without holding them, and tells of each the place where its row lies in the table, by
    which `rows_at` and `outputs_at` find it at once.

    Versions are kept for an hour after they were replaced. Where that which is read is gone, the first reading
    of `codes`, `labels`, `rows`, `blocks` and the like goes on with the newest, and a later one, which must fit it,
    raises `VersionGone`; see `pin`.
    """

    def __init__(self, table: Table) -> None:
        self.uri, self._table, self._was_read = table.uri, table, False

    @classmethod
    def open(cls, uri: str | os.PathLike[str], salvage: bool = False) -> Index:
        """The last committed version that is whole; where there is none yet, an empty index.

        Args:
            uri: where it is.
            salvage: where no version is whole, the last of which rows may be left, for `verify` to repair.

        Raises:
            IndexStateError: there is something else; it holds links, or names files elsewhere; it cannot be reached; or
                it is damaged or of a newer format.
        """
        return cls(Table.open(os.fspath(uri), salvage))

    def __len__(self) -> int:
        return self._table.rows

    @property
    def bits(self) -> int | None:
        """Length of the codes; None where there are none."""
        return self._table.bits if self._table.rows else None

    @property
    def model(self) -> str | None:
        """Fingerprint of the run that made the codes; None where there are none."""
        return self._table.model if self._table.rows else None

    @property
    def scale(self) -> float | None:
        """The step of its outputs, see `codes.rescoring`; None where it keeps none."""
        return self._table.scale if self._table.rows else None

    @property
    def version(self) -> int:
        """Number of the version; 0 before the first commit."""
        return self._table.version

    @property
    def note(self) -> str | None:
        """That newer versions are damaged, and what to do; None where none are."""
        return self._table.note

    def codes(self) -> Packed:
        """All codes, (n, ceil(bits / 8)), in the order of adding.

        Raises:
            IndexStateError: they are not what was written.
        """
        return self._read(self._codes)

    def labels(self) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """(n,) labels in the order of adding, -1 where unknown, and the classes these are numbers of.

        Raises:
            IndexStateError: they are not what was written.
        """
        return self._read(self._labels)

    def label_counts(self) -> dict[str | None, int]:
        """Labels, None for unknown, and how many rows have each; memory does not grow with the rows.

        Raises:
            IndexStateError: they are not what was written.
        """

        def read() -> Counter[str | None]:
            found = Counter[str | None]()
            for part in self._table.each(["label"], lambda place, part: part["label"].value_counts().to_pylist()):
                for one in part:
                    found[None if one["values"] is None else of_utf8(one["values"])] += one["counts"]
            return found

        return self._read(read)

    def blocks(
        self,
        work: Callable[[Block], T],
        labels: Collection[str | None] | None = None,
        threads: int = 1,
    ) -> Iterator[T]:
        """What `work` makes of all codes, a block at a time in the order in which they lie in the table.

        A block has codes in the order of adding, of rows that lie together; its places say where, and its order which
        of two rows of any blocks was added first. The next are read meanwhile, and memory does not grow with the rows:
        all blocks that are there at once take about 256 MiB. Not before the last has been yielded without an error is
        it sure that all are what was written.

        Args:
            work: called by threads, several at once; what it makes is yielded in order. `lambda block: block` has the
                blocks themselves.
            labels: rows with one of these alone, None for those without; None: all.
            threads: that check blocks and work on them.

        Raises:
            IndexStateError: some are not what was written, or rows are lost.
        """
        wanted = None if labels is None else [None if label is None else utf8(label) for label in labels]
        columns, more = (["code"], 0) if wanted is None else (["code", "label"], _LABEL)

        def made(place: int, part: pa.Table) -> T:
            return work(_block(place, part, wanted))

        return self._read(lambda: self._table.each(columns, made, threads, self._table.block_rows(threads, more)))

    def pin(self) -> None:
        """Stay at this version: where it is gone, whatever is read next raises `VersionGone`, the first too."""
        self._was_read = True

    def numbers(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of rows that lie at these places of the table, their places in the order of adding.

        They are the same but where rows were updated, whose numbers are told by a look at those of all others.

        Raises:
            IndexStateError: another row has the number of one of them.
        """
        return self._read(lambda: self._table.ranks(places))

    def rows_at(self, places: Sequence[int] | NDArray[np.int64]) -> list[Row]:
        """Some rows by where they lie in the table, see `blocks`; no others are read.

        Raises:
            IndexStateError: a row is not what was written.
        """
        return self._read(lambda: _rows(self._table.at(np.asarray(places, np.int64), _ROW)))

    def outputs_at(self, places: Sequence[int] | NDArray[np.int64]) -> Outputs:
        """As `outputs`, by where the rows lie in the table, see `blocks`."""
        return self._read(lambda: self._outputs(np.asarray(places, np.int64)))

    def rows(self, numbers: Sequence[int] | NDArray[np.int64]) -> list[Row]:
        """Some rows by their place in the order of adding.

        Where rows were updated, the order of all of them is read, and kept: 8 bytes a row.

        Raises:
            IndexError: there is no such row.
            IndexStateError: a row is not what was written.
        """
        chosen = np.asarray(numbers, np.int64)
        if (chosen < 0).any():
            raise IndexError("rows are numbered from 0")
        return self._read(lambda: _rows(self._table.at(self._table.where(chosen), _ROW)))

    def outputs(self, numbers: Sequence[int] | NDArray[np.int64]) -> Outputs:
        """Outputs of some rows, (n, bits) int8 in steps of `scale`, by their place in the order of adding.

        No others are read, but as in `rows`.

        Raises:
            IndexError: there is no such row.
            IndexStateError: the index keeps none, or some are not what was written.
        """
        chosen = np.asarray(numbers, np.int64)
        if (chosen < 0).any():
            raise IndexError("rows are numbered from 0")
        return self._read(lambda: self._outputs(self._table.where(chosen)))

    def require_outputs(self) -> None:
        """Refuse to be rescored by outputs that are not kept.

        Raises:
            IndexStateError: the index keeps none.
        """
        if self.scale is None:
            raise IndexStateError(
                f"index {self.uri} keeps no outputs; make one that does with: dsh index add INDEX FOLDER "
                "`keep_outputs`, or do without them: `rescore` asymmetric"
            )

    def require(self, run: Run | Exported) -> None:
        """Refuse the codes of another model; an empty index takes any.

        Raises:
            IndexStateError: the run is not the one that made the codes.
        """
        self._require(run.fingerprint, run.model.bits, str(run.path))

    def require_rows(self) -> None:
        """Refuse to be looked in where nothing is.

        Raises:
            IndexStateError: there is no index, or an empty one.
        """
        self._require_commit()
        if not len(self):
            raise IndexStateError(f"index {self.uri} is empty; add pictures with: dsh index add {self.uri} FOLDER")

    def report(self) -> Report:
        """What the index holds.

        Raises:
            IndexStateError: there is no index.
        """
        self._require_commit()
        return self._again(lambda: self._report(Counts()))

    # Changing

    def add(
        self,
        run: Run | Exported,
        paths: Iterable[str],
        labels: str | None = None,
        relative_to: str | None = None,
        device: str = "auto",
        workers: int | None = None,
        progress: Progress | None = None,
        waiting: Callable[[], None] | None = None,
        commit_rows: int = _COMMIT_ROWS,
        keep_outputs: bool = False,
        engine: EngineName = "local",
        ray_address: str | None = None,
    ) -> Report:
        """Encode picture files, the pictures below folders, and the rows of files of vectors, and keep their codes.

        A row of a file of vectors is kept by the name it has there, with the label it has there unless `labels` is
        "none". Of pictures, what has the size and time of change it had is skipped, and so is what has the same
        content; what changed is encoded again and keeps its place. What cannot be read is reported, and what the index
        knew of it stays.

        Args:
            run: makes the codes.
            paths: files and folders; what is named twice is added once.
            labels: "folder": the first folder below the path given, or below `train/`, `test/` and the like in it, or
                the folder of a file; "none": no labels; else a CSV file of path,label. None: those known stay, and
                new pictures have none.
            relative_to: folder to which the paths kept are relative; None: they are absolute.
            device: where pictures are encoded.
            workers: threads that read and encode them, or processes of Ray; None: one a processor.
            progress: told of the pictures done.
            waiting: called when another process is writing, before waiting for it.
            commit_rows: rows a commit, at most.
            keep_outputs: keep outputs too, in steps told from those of the pictures that the run was trained on. An
                index keeps those of all its pictures or of none: its first ones decide, and later ones follow, asked
                for or not.
            engine: what encodes them: "local", this process; "ray", processes of Ray, which find the pictures by the
                same paths. The rows are the same.
            ray_address: HOST:PORT of a cluster of Ray, or "auto" on a machine of it; None: Ray is started here. Where
                this process is connected to Ray already, that is taken.

        Raises:
            IndexStateError: the index is of another model, damaged, or cannot be written; or it has pictures without
                outputs, and these are to be kept.
            DataError: the label file is malformed, or folders of splits stand beside others.
            EngineError: Ray is not installed, cannot be reached, or cannot go on; what was committed is kept.
        """
        engines.require(engine, ray_address)
        given = list(paths)
        if vectors := [path for path in given if is_vectors(path)]:
            if len(vectors) < len(given):
                raise UsageError(
                    "`paths` has files of vectors beside pictures, which no model takes both of; add what the model "
                    "takes"
                )
            if engine != "local":
                raise UsageError(
                    f"`engine` {engine} is for pictures; files of vectors are encoded here, so leave it out"
                )
            return self._add_vectors(run, vectors, labels, relative_to, device, waiting, keep_outputs)
        if run.model.of_vectors:
            raise UsageError(f"`paths`: {NO_PICTURES.format(width=run.model.width)}")
        labeller = labeller_of(labels, given)
        with self._table.writing(waiting), ExitStack() as stack:
            self.require(run)
            self._require_base(relative_to)
            scale = self._scale(run, keep_outputs)
            ready = stack.enter_context(engines.opened(engine, run, device, workers, ray_address))
            writer = Writer(self._table, run.model.bits, run.fingerprint, commit_rows, scale)
            known, seen = Known(self._table), set[int]()
            total = sum(1 for _ in expand(given)) if progress else 0

            origins.note(self.uri, given, new=not len(self))

            def listing(root: str, name: str) -> Listed:
                return listed(root, name, known, relative_to, labeller)

            left_out = LeftOut()
            files = ((root, name) for root in given for name in expand([root], left_out))
            try:
                for done, (name, found, code) in enumerate(ready(files, listing), 1):
                    if found.entry is None:
                        writer.counts.failed.append(Failure(name, found.error))
                    elif (key := hash(found.entry.path)) not in seen:
                        if len(given) > 1:  # below one path each is found once
                            seen.add(key)
                        writer.counts.unlabelled += labels not in (None, "none") and found.entry.label is None
                        if code is not None:
                            found.entry.packed = code.packed
                            found.entry.outputs = None if scale is None else quantised(code.relaxed[None], scale)[0]
                        if found.changed:
                            writer.put(found.entry)
                        else:
                            writer.counts.skipped += 1
                    if progress:
                        progress(done, total)
            except KeyboardInterrupt:
                writer.commit()
                raise
            writer.commit()
            self._table.tidy()
            return replace(self._report(writer.counts), left_out=left_out)

    def _add_vectors(
        self,
        run: Run | Exported,
        files: Sequence[str],
        labels: str | None,
        relative_to: str | None,
        device: str,
        waiting: Callable[[], None] | None,
        keep_outputs: bool,
    ) -> Report:
        if labels not in (None, "none"):
            raise UsageError("`labels`: files of vectors have labels of their own; leave it out, or give none")
        from dsh_cli.data.inputs import encode_vectors

        encoder = run.encoder(device)

        def batches() -> Iterator[ReadyCodes]:
            self._require_base(relative_to)
            keeps = self._scale(run, keep_outputs) is not None
            for path in files:
                found, outputs = encode_vectors(encoder, path)
                known = found.labels if labels is None else None
                names = [_kept_name(found, name, relative_to) for name in found.names]
                yield ReadyCodes(names, pack(binarize(outputs)), known, outputs if keeps else None)
            origins.note(self.uri, [str(Path(path).absolute().parent) for path in files], new=not len(self))

        return self._add_ready(
            batches(), run.model.bits, run.fingerprint, waiting, lambda: self._scale(run, keep_outputs)
        )

    def add_codes(
        self, batches: Iterable[ReadyCodes], bits: int, model: str, waiting: Callable[[], None] | None = None
    ) -> Report:
        """Keep codes that are ready, of pictures or anything else that has a path; those there already are updated.

        Memory does not grow with the codes but for 8 bytes each. Batches are committed whole, small ones together.

        Args:
            batches: paths are kept as they are.
            bits: length of the codes.
            model: names what made them; for those of a run its fingerprint.
            waiting: as in `add`.

        Raises:
            UsageError: the codes are not of so many bits, a path comes twice, or outputs are given with some alone.
            IndexStateError: as in `add`.
        """
        return self._add_ready(batches, bits, model, waiting)

    def _add_ready(
        self,
        batches: Iterable[ReadyCodes],
        bits: int,
        model: str,
        waiting: Callable[[], None] | None,
        scale: Callable[[], float | None] | None = None,
    ) -> Report:
        """As `add_codes`; the scale of outputs is told from the first of them, or as said."""
        with self._table.writing(waiting):
            if not 1 <= bits <= MAX_BITS:
                raise UsageError(f"{bits} bits: a code has 1 to {MAX_BITS}")
            self._require(model, bits, "the codes given")
            writer = Writer(self._table, bits, model, _READY_ROWS)
            known, fresh = Known(self._table, stamps=False), Fresh()
            writer.scale, is_first = self.scale, not len(self)
            for paths, packed, labels, relaxed in _grouped(batches, bits):
                if is_first and relaxed is not None:
                    writer.scale = scale() if scale else scale_of(relaxed)
                is_first = False
                outputs = self._kept(relaxed, writer.scale)
                keys = np.fromiter(map(hash, paths), np.int64, len(paths))
                if not fresh.take(keys):
                    raise UsageError("a path comes twice among the codes given; each has one code")
                there = among(keys, known.keys)
                new = np.flatnonzero(~there)
                writer.append(
                    [paths[i] for i in new] if there.any() else paths,
                    packed[new] if there.any() else packed,
                    [labels[i] for i in new] if there.any() else labels,
                    None if outputs is None else outputs[new],
                )
                for i in np.flatnonzero(there):
                    entry = Entry(
                        paths[i], known.find(paths[i]), packed[i], label=labels[i], keep_label=labels[i] is None
                    )
                    entry.outputs = None if outputs is None else outputs[i]
                    writer.put(entry)
                writer.commit()
            self._table.tidy()
            return self._report(writer.counts)

    def remove(
        self,
        patterns: Iterable[str] | None = None,
        missing: bool = False,
        relative_to: str | None = None,
        waiting: Callable[[], None] | None = None,
        yes: bool = False,
        ask: Callable[[str], bool] | None = None,
    ) -> Report:
        """Take pictures out of the index; their files are left alone.

        Args:
            patterns: paths of files, of folders for all that is below them, and globs of both; their `*` takes
                slashes too.
            missing: only those whose files are gone; where `patterns` is None, of all.
            relative_to: the folder to which the paths in the index are relative, if they are.
            waiting: as in `add`.
            yes: also where what is missing looks like a disk that is not there: all pictures, or all of a folder that
                has more than a tenth of them, or near which no other picture is there on its disk.
            ask: told what looks so, where `yes` is not given; whether to go on.

        Raises:
            IndexStateError: there is no index, or it is damaged or cannot be written.
            DshError: what is missing looks like a disk that is not there.
        """
        Index.open(self.uri)._require_commit()  # before a lock is made beside it
        with self._table.writing(waiting):
            counts = Counts()
            table = self._table.read(["number", "path"])
            paths: list[bytes] = table["path"].to_pylist()
            chosen = np.full(len(paths), missing and patterns is None)
            for pattern in patterns or ():
                matching = matches(key_of(pattern, relative_to), paths)
                if not matching.any():  # codes that came ready have paths as they were given
                    matching = matches(os.fsencode(pattern), paths)
                if not matching.any():
                    counts.failed.append(Failure(pattern, "not in the index"))
                chosen |= matching
            if missing:
                self._require_base(relative_to)
                if relative_to is None and (loose := next((p for p in paths if not os.path.isabs(p)), None)):
                    raise UsageError(
                        f"`missing`: {os.fsdecode(loose)} in index {self.uri} is not an absolute path; "
                        "name the folder to which it is relative with `relative_to`"
                    )
                names = [os.path.join(os.path.abspath(relative_to or ""), os.fsdecode(path)) for path in paths]
                are_gone = np.fromiter(map(gone, names), bool, len(names))
                if not yes and (are_gone & chosen).any():
                    self._require_disks(names, are_gone, chosen, ask)
                chosen &= are_gone
            self._table.delete(table["number"].to_numpy()[chosen])
            counts.removed = int(chosen.sum())
            self._table.tidy()
            return self._report(counts)

    # Reading

    def verify(
        self,
        run: Run | Exported | None,
        sample: int | None = None,
        seed: int = 0,
        relative_to: str | None = None,
        device: str = "auto",
        workers: int | None = None,
        progress: Progress | None = None,
        repair: bool = False,
        waiting: Callable[[], None] | None = None,
    ) -> Report:
        """Look for rows that are not what was written; read and encode pictures again, and say what differs.

        `failed` has the paths of such rows and pictures, what it is, and what to do about it; and the index itself,
        where its newest version is not whole. What was repaired is in `repaired` instead.

        Args:
            run: the one that made the codes; None with a sample of 0.
            sample: look at so many pictures, chosen by the seed; None: all.
            seed: of the sample.
            relative_to: the folder to which the paths in the index are relative, if they are.
            device: where pictures are encoded.
            workers: threads that read and encode them; None: one a processor.
            progress: told of the pictures done.
            repair: make the last version that is whole the newest, take out rows that are not what was written, and
                give a digest to those that have none.
            waiting: as in `add`, where it repairs.

        Raises:
            UsageError: there are pictures to look at, and no run.
            IndexStateError: there is no index, it is of another model, or nothing of it can be read.
        """
        self._require_commit()
        if run is not None:
            self.require(run)
        elif sample != 0:
            raise UsageError("`model`: pictures are encoded by a run, and none is given; or have a `sample` of 0")
        counts = Counts()
        if repair:
            self._repair(counts, waiting)
        elif self.note:
            counts.failed.append(Failure(self.uri, self.note))
        damage, table = self._again(lambda: self._to_verify(run, sample, seed, relative_to))
        counts.failed += [
            Failure(
                _named(lost, self.uri),
                lost.what,
                f"damaged: dsh index verify {self.uri} `repair` takes out such rows, and dsh index add adds them again",
            )
            for lost in damage
        ]
        if run is None or run.model.of_vectors or not len(table):  # vectors are not in the files they are named after
            return self._again(lambda: self._report(counts, checked=0))
        codes = fixed(table["code"])

        encoder = run.encoder(device)
        base = "" if relative_to is None else f" `relative_to` {relative_to}"

        def listed() -> Iterator[tuple[int, Row]]:
            for start in range(0, len(table), _COMMIT_ROWS):
                yield from enumerate(_rows(table.select(_ROW).slice(start, _COMMIT_ROWS)), start)

        def read(numbered: tuple[int, Row]) -> tuple[tuple[bytes | None, str], Picture | None]:
            try:
                name = os.path.join(relative_to or "", numbered[1].path)
                digest, picture = content(name, None, encoder.form)
                return (digest, ""), picture
            except ImageError as error:
                return (None, str(error)), None

        for done, ((number, row), (digest, error), code) in enumerate(encoder.each(listed(), read, workers), 1):
            name = os.path.join(relative_to or "", row.path)
            packed = None if code is None else code.packed
            if packed is not None and code is not None:
                packed = np.where(_doubtful(packed ^ codes[number], code.relaxed), codes[number], packed)
            if found := _differing(row, name, codes[number], digest, packed, error, self.uri, base):
                counts.failed.append(found)
            if progress:
                progress(done, len(table))
        return self._again(lambda: self._report(counts, checked=len(table)))

    def export(self, file: str | os.PathLike[str], service: Service | None = None) -> Report:
        """Write all rows, in the order of adding, as a Parquet file, whole or not at all.

        Columns: `path` as text, in which bytes that are not UTF-8 are escaped as in `\\xff`; `path_bytes` exactly;
        `label`, likewise text; `code`, `hash`, `size`, `mtime_ns` as in the index, and `outputs` where it keeps them.
        The file's metadata has `dsh.bits`, `dsh.model`, and `dsh.scale` with outputs.

        For a service it has other columns, see `index.export`, and `dsh.for` in its metadata in place of `dsh.scale`.

        Args:
            file: where to.
            service: what will load it; None: whatever reads Parquet.

        Raises:
            UsageError: the file would be among those of the index.
            IndexStateError: there is no index, or it is empty or damaged.
            DshError: it cannot be written, or has a text that the service does not take.
        """
        place = local(self.uri)
        if place is not None and Path(place) in Path(os.path.realpath(file)).parents:
            raise UsageError(f"`parquet` {os.fspath(file)}: that is inside index {self.uri}; choose a file elsewhere")
        return self._again(lambda: self._export(file, service))

    # Inside

    def _read(self, reading: Callable[[], T]) -> T:
        """Read; where the version is gone and nothing of it has been read, the newest."""
        found = reading() if self._was_read else self._again(reading)
        self._was_read = True
        return found

    def _again(self, reading: Callable[[], T]) -> T:
        """Read; where the version is gone, all from the beginning with the newest."""
        while True:
            try:
                return reading()
            except VersionGone:
                self._table, self._was_read = Table.open(self.uri), False

    def _codes(self) -> Packed:
        if not len(self):
            return np.zeros((0, 0), np.uint8)
        codes = np.empty((len(self), -(-self._table.bits // 8)), np.uint8)
        for place, part in self._table.each(["code"], lambda place, part: (place, fixed(part["code"]))):
            codes[place : place + len(part)] = part
        return self._as_added(codes)

    def _labels(self) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        labels, classes = np.empty(len(self), np.int64), dict[bytes, int]()

        def coded(place: int, part: pa.Table) -> tuple[int, NDArray[np.int64], list[bytes]]:
            found = part["label"].combine_chunks().dictionary_encode()
            numbers = found.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
            return place, numbers, found.dictionary.to_pylist()

        for place, numbers, names in self._table.each(["label"], coded):
            ours = np.array([*(classes.setdefault(name, len(classes)) for name in names), -1])
            labels[place : place + len(numbers)] = ours[numbers]
        return self._as_added(labels), tuple(map(of_utf8, classes))

    def _as_added(self, values: NDArray[Value]) -> NDArray[Value]:
        """Values that lie as the rows of the table, in the order of adding."""
        return values if self._table.in_order else values[self._table.places()]

    def _outputs(self, places: NDArray[np.int64]) -> Outputs:
        self.require_outputs()
        return self._table.outputs(places)

    def _scale(self, run: Run | Exported, keep_outputs: bool) -> float | None:
        """The step of outputs to be kept; None where none are.

        Raises:
            IndexStateError: there are pictures without them, and they are to be kept.
        """
        if len(self):
            if keep_outputs and self.scale is None:
                raise IndexStateError(
                    f"index {self.uri} has {len(self):,} pictures without outputs, and keeps those of all or of none; "
                    "make another index with `keep_outputs`"
                )
            return self.scale
        if not keep_outputs:
            return None
        return run.output_scale

    def _kept(self, relaxed: NDArray[np.floating] | None, scale: float | None) -> Outputs | None:
        """Outputs that came ready, as they are kept.

        Raises:
            UsageError: there are some where there are to be none, or none where there are to be some.
        """
        if (relaxed is None) != (scale is None):
            kept, given = ("no outputs", "some") if scale is None else ("the outputs of all its codes", "none")
            raise UsageError(f"index {self.uri} keeps {kept}, and {given} are given; make another index for these")
        return None if relaxed is None or scale is None else quantised(relaxed, scale)

    def _to_verify(
        self, run: Run | Exported | None, sample: int | None, seed: int, relative_to: str | None
    ) -> tuple[list[Damage], pa.Table]:
        """What is not what was written, and what is known of the rows whose pictures to look at, of one version."""
        damage = self._table.damage()
        rows = np.zeros(0, np.int64)
        if run is not None and sample != 0 and all(lost.path is not None or not lost.count for lost in damage):
            self.require(run)
            self._require_base(relative_to)
            whole = np.ones(len(self), bool)
            whole[[lost.place for lost in damage if lost.count]] = False
            rows = np.flatnonzero(self._as_added(whole))
            if sample is not None and sample < len(rows):
                rows = np.sort(np.random.default_rng(seed).choice(rows, sample, replace=False))
        return damage, self._table.at(self._table.where(rows), [*_ROW, "code"])

    def _export(self, file: str | os.PathLike[str], service: Service | None) -> Report:
        import pyarrow.parquet as pq

        self.require_rows()
        layout = Layout(self.uri, self._table.bits, self._table.model, self.scale, service)
        with written(file, "choose another FILE") as scratch, pq.ParquetWriter(scratch, layout.schema) as writer:
            for start in range(0, len(self), _COMMIT_ROWS):
                numbers = np.arange(start, min(start + _COMMIT_ROWS, len(self)))
                writer.write_table(layout.of(self._table.at(self._table.where(numbers), layout.needs), start))
        return self._report(Counts())

    def _repair(self, counts: Counts, waiting: Callable[[], None] | None) -> None:
        """Keep what is whole, and make that the newest version."""
        if self.note:
            counts.repaired.append(Failure(self.uri, "the last whole version is the newest now"))
        with self._table.writing(waiting, salvage=True):
            damage, before = self._table.damage(), len(self)
            if damage:
                self._table.rewrite()
            self._table.tidy()
            counts.removed = before - len(self)
        for rows in damage:
            then = ", taken out" if rows.count else "; what is there now counts as all there is"
            counts.repaired.append(Failure(_named(rows, self.uri), rows.what + then))

    def _require_commit(self) -> None:
        if not self.version:
            raise IndexStateError(f"there is no index {self.uri}; make it with: dsh index add {self.uri} FOLDER")

    def _require_base(self, relative_to: str | None) -> None:
        """Refuse a folder that is not there, and to mix absolute paths with others.

        Raises:
            UsageError: as said.
        """
        if relative_to is not None and not os.path.isdir(relative_to):
            raise UsageError(f"`relative_to` {relative_to}: no such folder")
        first = _rows(self._table.at(self._table.where(np.zeros(1, np.int64)), _ROW))[0] if len(self) else None
        if first is None or first.hash is None:  # codes that came ready have paths of any kind
            return
        if os.path.isabs(first.path) and relative_to is not None:
            raise UsageError(f"the paths in index {self.uri} are absolute; leave `relative_to` out")
        if not os.path.isabs(first.path) and relative_to is None:
            raise UsageError(
                f"the paths in index {self.uri}, such as {first.path}, are relative to a folder that it does not know; "
                "name it with `relative_to`"
            )

    def _require_disks(
        self,
        names: list[str],
        missing: NDArray[np.bool_],
        chosen: NDArray[np.bool_],
        ask: Callable[[str], bool] | None,
    ) -> None:
        """Refuse to take for gone what may be on a disk that is not there.

        Raises:
            DshError: it may, and the answer is no.
        """
        taken = missing & chosen
        above = {folder for i in np.flatnonzero(taken) for folder in Path(names[i]).parents}
        folders = {folder: count for folder, count in lost(names, missing).items() if folder in above}
        if not folders:
            return
        folder, count = max(folders.items(), key=lambda item: item[1])
        what = f"all {count:,} below {folder}" if count < len(names) else "all there are"
        more = f" and those of {len(folders) - 1:,} more" if len(folders) > 1 else ""
        those = "pictures" if chosen.all() else "such pictures"
        said = f"{taken.sum():,} of {chosen.sum():,} {those} in index {self.uri} are missing, {what}{more}"
        if ask is None or not ask(said):
            raise DshError(f"{said}; mount their disk if it is not, or take them out with `yes`")

    def _require(self, model: str, bits: int, what: str) -> None:
        if not len(self) or (model, bits) == (self.model, self.bits):
            return
        raise IndexStateError(
            f"index {self.uri} holds codes of {self.bits} bits of model {self.model}, and {what} is model {model} of "
            f"{bits} bits; choose that run with `model` (dsh info RUN names its fingerprint), or another index"
        )

    def _report(self, counts: Counts, checked: int | None = None) -> Report:
        versions, whole = self._table.versions()
        return Report(
            index=self.uri,
            bits=self.bits,
            rows=len(self),
            model=self.model,
            version=self.version,
            versions=versions,
            whole_versions=whole,
            added=counts.added,
            updated=counts.updated,
            skipped=counts.skipped,
            removed=counts.removed,
            unlabelled=counts.unlabelled,
            checked=checked,
            digests=self._table.has_checks,
            scale=self.scale,
            failed=tuple(counts.failed),
            repaired=tuple(counts.repaired),
        )


def _kept_name(vectors: Vectors, name: str, relative_to: str | None) -> str:
    """What an index calls a row of a file of vectors: as a picture where it is named after one, else as it is there.

    Raises:
        UsageError: it is named after a picture that is not below the folder to which paths are relative.
    """
    path = vectors.path_of(name)
    return name if path is None else os.fsdecode(key_of(path, relative_to))


def _rows(table: pa.Table) -> list[Row]:
    """Rows of a table of the columns `_ROW`."""
    return [
        Row(
            path=os.fsdecode(path),
            label=None if label is None else of_utf8(label),
            size=size,
            mtime_ns=mtime_ns,
            hash=None if digest is None else digest.hex(),
        )
        for path, label, size, mtime_ns, digest in zip(*(column.to_pylist() for column in table.columns), strict=True)
    ]


def _named(damage: Damage, uri: str) -> str:
    """What to call rows that are not what was written."""
    return damage.path or (f"{damage.count:,} rows" if damage.count else uri)


def _block(place: int, part: pa.Table, labels: Sequence[bytes | None] | None) -> Block:
    """Rows that lie together from a place on, or those of them with one of the labels, in the order of adding."""
    numbers, packed, places = part["number"].to_numpy(), fixed(part["code"]), None
    if labels is not None:
        import pyarrow as pa
        import pyarrow.compute as pc

        chosen = np.flatnonzero(pc.is_in(part["label"], pa.array(labels, pa.binary())).to_numpy())
        numbers, packed, places = numbers[chosen], packed[chosen], place + chosen
    if not (numbers[1:] > numbers[:-1]).all():
        first = np.argsort(numbers, kind="stable")
        numbers, packed = numbers[first], packed[first]
        places = place + first if places is None else places[first]
    in_a_row = len(numbers) and int(numbers[-1]) - int(numbers[0]) == len(numbers) - 1
    return Block(packed, int(numbers[0]) if in_a_row else numbers, place if places is None else places)


_Group = tuple[list[bytes], Packed, list[bytes | None], NDArray[np.floating] | None]


def _grouped(batches: Iterable[ReadyCodes], bits: int) -> Iterator[_Group]:
    """Batches as bytes, several together until they are worth a commit; outputs as they came."""
    paths: list[bytes] = []
    labels: list[bytes | None] = []
    packed: list[Packed] = []
    relaxed: list[NDArray[np.floating]] = []
    spare = (1 << (-bits % 8)) - 1

    def group() -> _Group:
        return paths, np.concatenate(packed), labels, np.concatenate(relaxed) if relaxed else None

    for batch in batches:
        count, width = len(batch.paths), -(-bits // 8)
        if batch.packed.shape != (count, width) or len(batch.labels or batch.paths) != count:
            raise UsageError(f"{count} paths with codes of shape {batch.packed.shape}; {bits} bits are {width} bytes")
        if spare and (batch.packed[:, -1] & spare).any():
            raise UsageError(f"codes of {bits} bits with bits set behind them; pack them with numpy.packbits")
        outputs = batch.relaxed
        if outputs is not None and (outputs.shape != (count, bits) or not np.isfinite(outputs).all()):
            raise UsageError(f"{count} codes of {bits} bits with outputs of shape {outputs.shape}, or not finite")
        if (outputs is None) == bool(relaxed) and paths:
            raise UsageError("some of the codes given have outputs, and others have none; give them with all, or none")
        if outputs is not None:
            relaxed.append(outputs)
        paths += map(os.fsencode, batch.paths)
        labels += [None if x is None else utf8(x) for x in batch.labels] if batch.labels else [None] * count
        packed.append(batch.packed)
        if len(paths) >= _READY_ROWS:
            yield group()
            paths, packed, labels, relaxed = [], [], [], []
    if paths:
        yield group()


def _doubtful(differ: Packed, relaxed: NDArray[np.float32]) -> bool:
    """Whether all bits that differ are of outputs so near to zero that another way to compute them may differ."""
    return bool((np.abs(relaxed[unpack(differ[None], len(relaxed))[0]]) < NEAR_ZERO).all())


def _differing(
    row: Row, name: str, code: Packed, digest: bytes | None, packed: Packed | None, error: str, uri: str, base: str
) -> Failure | None:
    """What differs of a picture, in words, and what to do about it; None where all is as it was."""
    add, remove = f"dsh index add {uri} PATH{base}", f"dsh index remove {uri} PATH{base}"
    if error and gone(name):
        return Failure(row.path, "missing", f"missing: dsh index remove {uri} `missing`{base} takes them out")
    if error:
        remedy = f"cannot be read: see to these files, or take them out with: {remove}"
        return Failure(row.path, f"cannot be read: {error}", remedy)
    found, remedy = [], f"changed code: {remove}, and then {add}, encodes them again"
    if row.hash is not None and digest is not None and digest.hex() != row.hash:
        found.append("changed content")
        remedy = f"changed content: {add} encodes them again"
        if stamp(name) == (row.size, row.mtime_ns):  # for which `add` takes it for unchanged
            found[0] += ", but neither size nor time"
            remedy = f"neither size nor time: get these files back from a copy, or {remove}, and then {add}"
    if packed is not None and (packed != code).any():
        bits = int(np.bitwise_count(packed ^ code).sum())
        found.append(f"changed code ({counted(bits, 'bit')})")
    return Failure(row.path, ", ".join(found), remedy) if found else None
