"""Errors a user can act on. Each message says what went wrong, where, and what to do next."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of an OSError: there is room for no more


_FIELD = re.compile(r"`(\w+)(=\w+)?`")


class DshError(Exception):
    """Something the user can mend; the command line prints it in one line and exits with `exit_code`.

    What a message says of a field or parameter names it in backticks, such as "`bits` 0: a code has 1 to 1024 bits".
    """

    exit_code = 1

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields and parameters that the message names."""
        return tuple(name for name, _ in _FIELD.findall(str(self)))


class UsageError(DshError):
    """The request itself is wrong: an impossible option or combination of options."""

    exit_code = 2


class ImageError(DshError):
    """A picture cannot be read. The message does not repeat the path; who asked knows it."""


class DataError(DshError):
    """A dataset is missing, damaged or unfit for training."""


class WeightsError(DshError):
    """Weights to start from cannot be fetched or read, or are those of another network."""


class DivergedError(DshError):
    """The outputs of a network are not finite, or far too large, so that its codes would mean nothing."""


class RunError(DshError):
    """A run folder is missing, incomplete, damaged or of a newer format."""


class IndexStateError(DshError):
    """An index is of another model, damaged, or cannot be written."""


class VersionGone(IndexStateError):
    """The version of an index that was read is gone, for it was replaced; the newest can be read."""


class EngineError(DshError):
    """What computes codes is not installed, or cannot be loaded."""


class Interrupted(DshError):
    """Ctrl-C during what can be gone on with; the message says how."""

    exit_code = 130


class Terminated(Interrupted):
    """SIGTERM or SIGHUP during a training, as by a batch system, or a terminal that closes; the message says how to go
    on.
    """

    exit_code = 143


class LostProcess(Interrupted):
    """Another of several processes that train together has ended; the message says how to go on."""

    exit_code = 1


_NO_MEMORY = re.compile(
    r"(?:can't|unable to|cannot|tried to) allocate|bad_alloc|out of memory|start new thread|failed to map segment", re.I
)
_ASKED = re.compile(r"allocate ([\d.]+) (bytes|[KMGTP]iB)")


def lacking_memory(error: BaseException) -> str | None:
    """What was asked for, as far as an error says it, where it says that there is no memory for it; None elsewhere.

    Libraries say so in errors of many kinds. No room for another thread's stack is one of them.
    """
    said = str(error)
    lacks = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    if not lacks and not (isinstance(error, (RuntimeError, ImportError)) and _NO_MEMORY.search(said)):
        return None
    if asked := _ASKED.search(said):
        number, unit = asked.groups()
        return f"{float(number) / 1e6:,.1f} MB" if unit == "bytes" else f"{number} {unit}"
    return "another thread" if "thread" in said else "more"


_SYSTEM = re.compile(r"os error (\d+)")  # as Rust's libraries say it


def lacking_space(error: BaseException) -> bool:
    """Whether an error says that there is room for no more, by its number or by what a library says of it."""
    said = _SYSTEM.search(str(error))
    number = error.errno if isinstance(error, OSError) and error.errno else int(said[1]) if said else None
    return number in DISK_FULL


def worded(message: str, names: Mapping[str, str]) -> str:
    """A message with other names for the fields it names, such as "`bits`" or "`compile=False`"; unknown ones stay."""
    return _FIELD.sub(lambda found: names.get(found[0].strip("`"), found[0]), message)


def reason(error: BaseException) -> str:
    """What an error says, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return " ".join(str(error).split()) or type(error).__name__
