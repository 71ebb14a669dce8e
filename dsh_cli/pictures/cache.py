"""Resized pictures on disk."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dsh_cli.errors import DshError, ImageError, reason
from dsh_cli.pictures import decode
from dsh_cli.pictures.decode import Picture


class PictureCache:
    """Resized pictures on disk, keyed by the content of their files, so that none is decoded twice.

    A file whose size and time of change are known is not even read. One SQLite database for each size of picture:
    processes may share it, and a crash leaves it whole. A disk that is full stops the storing, not the reading;
    `problem` then says so.
    """

    def __init__(self, folder: Path, size: int, channels: int) -> None:
        self.size, self.channels = size, channels
        self._bytes = size * size * channels  # of a picture; what is stored with another length is damaged
        self.path = folder / f"pictures-{size}x{size}x{channels}-v{decode.INTAKE}.sqlite"
        self.problem: str | None = None
        self._lock = threading.Lock()  # one connection for all workers: what they wait for is decoding
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute("CREATE TABLE IF NOT EXISTS pictures (digest BLOB PRIMARY KEY, pixels BLOB NOT NULL)")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, bytes INTEGER NOT NULL, "
                "mtime_ns INTEGER NOT NULL, digest BLOB NOT NULL) WITHOUT ROWID"
            )
        except (OSError, sqlite3.Error) as error:
            raise DshError(
                f"cannot keep pictures in {self.path} ({error}); choose another `cache` FOLDER, or `cache` off"
            ) from error

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
            "SELECT path, bytes, mtime_ns, pixels FROM files JOIN pictures USING (digest) "
            f"WHERE length(pixels) = {self._bytes} AND path IN"
        )
        rows = self._select(query, names)
        return {names[n]: self._picture(pixels) for n, size, time, pixels in rows if stamps[names[n]] == (size, time)}

    def _decoded(
        self, contents: dict[str, bytes], stamps: dict[str, tuple[int, int]]
    ) -> dict[str, Picture | ImageError]:
        """Pictures of files that are not known: of the same content as a stored one, or decoded and stored now."""
        found: dict[str, Picture | ImageError] = {}
        digests = {path: hashlib.blake2b(data, digest_size=16).digest() for path, data in contents.items()}
        query = f"SELECT digest, pixels FROM pictures WHERE length(pixels) = {self._bytes} AND digest IN"
        stored = {digest: self._picture(pixels) for digest, pixels in self._select(query, set(digests.values()))}
        fresh: dict[bytes, Picture] = {}
        for path, digest in digests.items():
            pixels = stored.get(digest, fresh.get(digest))
            try:
                if pixels is None:
                    pixels = fresh[digest] = decode.decode(contents[path], self.size, self.channels)
                found[path] = pixels
            except ImageError as error:
                found[path] = error
        self._store(fresh, {path: (*stamps[path], digest) for path, digest in digests.items()})
        return found

    def _picture(self, pixels: bytes) -> Picture:
        return np.frombuffer(pixels, np.uint8).reshape(self.size, self.size, self.channels)

    def _select(self, query: str, keys: Iterable[bytes]) -> list[tuple[Any, ...]]:
        values = tuple(keys)
        try:
            with self._lock:
                return self._db.execute(f"{query} ({','.join('?' * len(values))})", values).fetchall()
        except sqlite3.Error as error:
            raise DshError(f"{self.path} is damaged ({error}); delete it and try again") from error

    def _store(self, pictures: dict[bytes, Picture], files: dict[str, tuple[int, int, bytes]]) -> None:
        if self.problem is not None or not (pictures or files):
            return
        known = [(os.fsencode(os.path.abspath(path)), *stamp) for path, stamp in files.items()]
        try:
            with self._lock, self._db:
                self._db.execute("BEGIN IMMEDIATE")
                self._db.executemany(
                    "INSERT OR REPLACE INTO pictures VALUES (?, ?)", [(d, p.tobytes()) for d, p in pictures.items()]
                )
                self._db.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", known)
        except sqlite3.Error as error:
            self.problem = f"{self.path} takes no more pictures ({error}); from now on they are decoded each time"
