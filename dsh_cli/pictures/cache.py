"""Resized pictures on disk."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dsh_cli.errors import DshError, ImageError, reason
from dsh_cli.files import UNLINK, open_regular, require_no_links
from dsh_cli.pictures import decode
from dsh_cli.pictures.decode import Picture

# Codes of SQLite for a file that is not as it wrote it; all others are of the disk, or of who may do what.
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_SCHEMA, sqlite3.SQLITE_MISMATCH)


class PictureCache:
    """Resized pictures on disk, keyed by the content of their files, so that none is decoded twice.

    A file whose size and time of change are known is not even read. One SQLite database for each size of picture:
    processes may share it, and a crash leaves it whole. Every row has a checksum: one that has changed on the disk is
    not used, and replaced; a database that cannot be read is begun anew. A disk that is full stops the storing, not
    the reading; `problem` then says so.
    """

    def __init__(self, folder: Path, size: int, channels: int) -> None:
        self.size, self.channels = size, channels
        self.path = folder / f"pictures-{size}x{size}x{channels}-v{decode.INTAKE}.sqlite"
        self.problem: str | None = None
        self._lock = threading.Lock()  # one connection for all workers: what they wait for is decoding
        self._renewed = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._open()
        except (OSError, sqlite3.Error) as error:
            raise DshError(
                f"cannot keep pictures in {self.path} ({error}); choose another `cache` FOLDER, or `cache` off"
            ) from error

    def _open(self) -> None:
        try:
            for path in self._files():
                require_no_links(path, self.path.parent, UNLINK)
            if os.path.lexists(self.path):
                os.close(open_regular(self.path))  # SQLite would wait for whoever writes to a pipe
            self._db = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
            self._db.text_factory = bytes
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            for old in ("files", "pictures"):  # of a format without checksums
                self._db.execute(f"DROP TABLE IF EXISTS {old}")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS checked_pictures "
                "(digest BLOB PRIMARY KEY, pixels BLOB NOT NULL, checksum INTEGER NOT NULL)"
            )
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS checked_files (path BLOB PRIMARY KEY, bytes INTEGER NOT NULL, "
                "mtime_ns INTEGER NOT NULL, digest BLOB NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID"
            )
        except sqlite3.DatabaseError as error:
            self._begin_anew(error)

    def _files(self) -> list[Path]:
        """The database and what SQLite keeps beside it."""
        return [self.path.with_name(self.path.name + suffix) for suffix in ("", "-wal", "-shm", "-journal")]

    def _begin_anew(self, error: sqlite3.Error) -> None:
        """An empty database in the place of a damaged one, once; all that it held can be made again.

        Raises:
            sqlite3.Error: it is not that, or not ours.
        """
        if self._renewed or not _is_damage(error):
            raise error
        self._renewed = True
        self._db.close()
        for path in self._files():
            path.unlink(missing_ok=True)
        self._open()

    def read(self, paths: Sequence[str]) -> list[Picture | ImageError]:
        """The picture of each file, or why there is none; decoded only where it is not stored yet."""
        found: dict[str, Picture | ImageError] = {}
        stamps: dict[str, tuple[int, int]] = {}
        for path in paths:
            try:
                status = os.stat(path)
                stamps[path] = status.st_size, status.st_mtime_ns
            except (OSError, ValueError) as error:
                found[path] = ImageError(reason(error))
        found |= self._known(stamps)
        contents: dict[str, bytes] = {}
        for path in stamps.keys() - found.keys():
            try:
                contents[path] = decode.read_bytes(path)
            except ImageError as error:
                found[path] = error
        if contents:
            found |= self._decoded(contents, stamps)
        return [found[path] for path in paths]

    def _known(self, stamps: dict[str, tuple[int, int]]) -> dict[str, Picture]:
        """Pictures of the files that have not changed since they were stored."""
        names = {os.fsencode(os.path.abspath(path)): path for path in stamps}
        query = (
            "SELECT path, bytes, mtime_ns, digest, f.checksum, pixels, p.checksum "
            "FROM checked_files f JOIN checked_pictures p USING (digest) WHERE path IN"
        )
        found = {}
        for name, size, time, digest, of_file, pixels, of_pixels in self._select(query, names):
            path = names.get(name)
            if path is not None and stamps[path] == (size, time) and _checksum(name, size, time, digest) == of_file:
                picture = self._picture(digest, pixels, of_pixels)
                if picture is not None:
                    found[path] = picture
        return found

    def _decoded(
        self, contents: dict[str, bytes], stamps: dict[str, tuple[int, int]]
    ) -> dict[str, Picture | ImageError]:
        """Pictures of files that are not known: of the same content as a stored one, or decoded and stored now."""
        found: dict[str, Picture | ImageError] = {}
        digests = {path: hashlib.blake2b(data, digest_size=16).digest() for path, data in contents.items()}
        rows = self._select(
            "SELECT digest, pixels, checksum FROM checked_pictures WHERE digest IN", set(digests.values())
        )
        stored = {digest: self._picture(digest, pixels, checksum) for digest, pixels, checksum in rows}
        fresh: dict[bytes, Picture] = {}
        for path, digest in digests.items():
            pixels = stored.get(digest)
            if pixels is None:
                pixels = fresh.get(digest)
            try:
                if pixels is None:
                    pixels = fresh[digest] = decode.decode(contents[path], self.size, self.channels)
                found[path] = pixels
            except ImageError as error:
                found[path] = error
        self._store(fresh, {path: (*stamps[path], digest) for path, digest in digests.items()})
        return found

    def _picture(self, digest: bytes, pixels: bytes, checksum: int) -> Picture | None:
        """A stored picture; None if it is not as it was stored."""
        if _checksum(digest, self.size, self.channels, pixels) != checksum:
            return None
        return np.frombuffer(pixels, np.uint8).reshape(self.size, self.size, self.channels)

    def _select(self, query: str, keys: Iterable[bytes]) -> list[tuple[Any, ...]]:
        values = tuple(keys)
        try:
            with self._lock:
                try:
                    return self._db.execute(f"{query} ({','.join('?' * len(values))})", values).fetchall()
                except sqlite3.DatabaseError as error:
                    self._begin_anew(error)
                    return []
        except (OSError, sqlite3.Error) as error:
            raise DshError(
                f"{self.path} cannot be read ({error}); choose another `cache` FOLDER, or `cache` off"
            ) from error

    def _store(self, pictures: dict[bytes, Picture], files: dict[str, tuple[int, int, bytes]]) -> None:
        if self.problem is not None or not (pictures or files):
            return
        of_pictures = [
            (digest, pixels := picture.tobytes(), _checksum(digest, self.size, self.channels, pixels))
            for digest, picture in pictures.items()
        ]
        known = [(os.fsencode(os.path.abspath(path)), *stamp) for path, stamp in files.items()]
        of_files = [(*row, _checksum(*row)) for row in known]
        try:
            with self._lock:
                try:
                    self._insert(of_pictures, of_files)
                except sqlite3.DatabaseError as error:
                    self._begin_anew(error)
                    self._insert(of_pictures, of_files)
        except (OSError, sqlite3.Error) as error:
            self.problem = f"{self.path} takes no more pictures ({error}); from now on they are decoded each time"

    def _insert(self, pictures: list[tuple[bytes, bytes, int]], files: list[tuple[Any, ...]]) -> None:
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT OR REPLACE INTO checked_pictures VALUES (?, ?, ?)", pictures)
            self._db.executemany("INSERT OR REPLACE INTO checked_files VALUES (?, ?, ?, ?, ?)", files)


def holds_pictures(folder: str) -> bool:
    """Whether there is a cache in a folder."""
    try:
        return any(Path(folder).expanduser().glob("pictures-*.sqlite"))
    except (OSError, RuntimeError, ValueError):  # RuntimeError: of a user whom this machine does not know
        return False


def _is_damage(error: sqlite3.Error) -> bool:
    """Whether SQLite means that the file has changed, and not that it cannot be reached or is none of its own."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF  # with none: a value that is no value
    return isinstance(error, sqlite3.DatabaseError) and code in _DAMAGED


def _checksum(*parts: object) -> int:
    """A CRC-32 of the parts of a row; a part of another type, which damage can bring about, makes another."""
    found = 0
    for part in parts:
        found = zlib.crc32(part if isinstance(part, bytes) else repr(part).encode(), found)
    return found
