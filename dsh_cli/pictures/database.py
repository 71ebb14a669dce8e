"""Small databases of what can be made again: SQLite files that processes share, whose damage costs time alone."""

from __future__ import annotations

import os
import sqlite3
import threading
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dsh_cli.errors import DshError
from dsh_cli.files import UNLINK, open_regular, require_no_links

# Codes of SQLite for a file that is not as it wrote it; all others are of the disk, or of who may do what.
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_SCHEMA, sqlite3.SQLITE_MISMATCH)


class Database:
    """A SQLite file of what can be made again: a crash leaves it whole, and one that cannot be read is begun anew.

    A disk that is full stops the storing, not the reading; `problem` then says so.

    Args:
        path: of the file; its folder is made.
        tables: statements that make its tables where they are not there.
        what: it keeps, in words.
        instead: what to do where it cannot be used.
        later: what becomes of what it takes no more.

    Raises:
        DshError: it cannot be made or opened.
    """

    def __init__(self, path: Path, tables: Sequence[str], what: str, instead: str, later: str) -> None:
        self.path, self._tables = path, tables
        self._what, self._instead, self._later = what, instead, later
        self.problem: str | None = None
        self._lock = threading.Lock()  # one connection for all workers: what they wait for is making what is stored
        self._renewed = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open()
        except (OSError, sqlite3.Error) as error:
            raise DshError(f"cannot keep {what} in {path} ({error}); {instead}") from error

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
            for statement in self._tables:
                self._db.execute(statement)
        except sqlite3.DatabaseError as error:
            self._begin_anew(error)

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

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

    def select(self, query: str, keys: Iterable[bytes]) -> list[tuple[Any, ...]]:
        """What a query that ends with `IN` finds of these keys.

        Raises:
            DshError: the file cannot be read.
        """
        values = tuple(keys)
        try:
            with self._lock:
                try:
                    return self._db.execute(f"{query} ({','.join('?' * len(values))})", values).fetchall()
                except sqlite3.DatabaseError as error:
                    self._begin_anew(error)
                    return []
        except (OSError, sqlite3.Error) as error:
            raise DshError(f"{self.path} cannot be read ({error}); {self._instead}") from error

    def insert(self, rows: Sequence[tuple[str, Sequence[tuple[Any, ...]]]]) -> None:
        """Put rows into tables, all at once, in place of those of the same keys; nothing after a problem."""
        if self.problem is not None:
            return
        try:
            with self._lock:
                try:
                    self._insert(rows)
                except sqlite3.DatabaseError as error:
                    self._begin_anew(error)
                    self._insert(rows)
        except (OSError, sqlite3.Error) as error:
            self.problem = f"{self.path} takes no more {self._what} ({error}); {self._later}"

    def _insert(self, rows: Sequence[tuple[str, Sequence[tuple[Any, ...]]]]) -> None:
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            for table, of_table in rows:
                if of_table:
                    places = ", ".join("?" * len(of_table[0]))
                    self._db.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({places})", of_table)


def checksum(*parts: object) -> int:
    """A CRC-32 of the parts of a row; a part of another type, which damage can bring about, makes another."""
    found = 0
    for part in parts:
        found = zlib.crc32(part if isinstance(part, bytes) else repr(part).encode(), found)
    return found


def _is_damage(error: sqlite3.Error) -> bool:
    """Whether SQLite means that the file has changed, and not that it cannot be reached or is none of its own."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF  # with none: a value that is no value
    return isinstance(error, sqlite3.DatabaseError) and code in _DAMAGED
