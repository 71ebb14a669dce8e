"""Work in a process of its own, ended when it takes more time or memory than it may.

For files of strangers whose cost is not known beforehand: a few bytes can make a decoder work for hours, ask for all
memory there is, or crash. Such a process imports what the work needs and nothing else, is kept for the next file, and
says nothing but bytes or an error.
"""

from __future__ import annotations

import atexit
import faulthandler
import json
import os
import signal
import struct
import subprocess
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from dsh_cli.errors import DshError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

SECONDS, MEMORY = 10, 1 << 30  # that a file may take; bytes, where the system can bound them
TOO_MUCH_TIME = f"takes more than {SECONDS} s, the limit against decompression bombs"
TOO_MUCH_MEMORY = f"takes more than {MEMORY >> 30} GiB of memory, the limit against decompression bombs"

Wait = Callable[[], None]  # called by the work before it takes a lot of memory: waits until there is room
Work = Callable[[Any, bytes, Wait], bytes]  # request and data -> answer; what it raises as DshError is passed on

_HAS_TIMERS = hasattr(signal, "setitimer")  # not on Windows
_STATM = Path("/proc/self/statm")
_GROWN = 1 << 28  # bytes that libraries may leave behind before another process takes the place of this one
_ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MALLOC_ARENA_MAX"), "1"),  # for each has its memory
    "MALLOC_MMAP_THRESHOLD_": str(1 << 25),  # bytes that are kept for the next file: faults cost as much as decoding
    "MALLOC_TRIM_THRESHOLD_": str(1 << 26),
}
_REQUEST = struct.Struct("<QQQQ")  # memory and time it may take, length of the request, length of the data
_ANSWER = struct.Struct("<c?Q")  # of which kind, whether it is the last of this process, its length
_DONE, _ERROR, _WAITS = b"D", b"E", b"W"
_GO_ON = b"."


class Failed(Exception):
    """The work came to nothing; the message says why, in words for whoever named the file."""


def ask(
    module: str,
    request: object,
    data: bytes,
    memory: int,
    seconds: int,
    room: AbstractContextManager[object] | None = None,
) -> bytes:
    """What the `serve` of a module makes of a request, which goes as JSON, and of data.

    Args:
        module: whose `serve` calls that of this module.
        request: what is wanted.
        data: what it is wanted of.
        memory: bytes it may take beside the data.
        seconds: that it may take.
        room: held from where the work asks for it to its end.

    Raises:
        Failed: an error, too much time or memory, or a crash.
    """
    idle = _idle[module]
    process = _next(idle) or _Process(module)
    head = json.dumps(request).encode()
    try:
        kind, last, answer = process.ask(
            _REQUEST.pack(memory, seconds, len(head), len(data)) + head, data, room or nullcontext()
        )
    except _Ended:
        raise Failed(_why(process.end())) from None
    except BaseException:  # what it says next would be about this file
        process.end()
        raise
    if last:
        process.end()
    else:
        idle.append(process)
    if kind == _ERROR:
        raise Failed(answer.decode())
    return answer


def serve(work: Work) -> None:
    """Do what is asked for on standard input, until it ends."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # where libraries may print
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to all processes of a job: this one ends with who asks
    if _HAS_TIMERS:  # whoever started this may have ignored or blocked them
        for number in (signal.SIGPROF, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGPROF, signal.SIGALRM))

    def say(kind: bytes, content: bytes = b"", last: bool = False) -> None:
        answers.write(_ANSWER.pack(kind, last, len(content)))
        answers.write(content)
        answers.flush()

    def wait() -> None:
        _watch(0)
        say(_WAITS)
        requests.read(len(_GO_ON))
        _watch(_by_the_clock(seconds))

    at_first, seconds = _mapped(), SECONDS
    answers.write(_GO_ON)
    answers.flush()
    while len(head := requests.read(_REQUEST.size)) == _REQUEST.size:
        memory, seconds, *lengths = _REQUEST.unpack(head)
        request, data = (requests.read(length) for length in lengths)
        mapped = _mapped()
        try:
            with _bounds(mapped and mapped + memory, seconds):
                kind, answer = _DONE, work(json.loads(request), data, wait)
        except DshError as error:
            kind, answer = _ERROR, str(error).encode()
        except MemoryError:
            kind, answer = _ERROR, TOO_MUCH_MEMORY.encode()
        data = b""
        say(kind, answer, last=mapped > at_first + _GROWN)
        answer = b""


# The side that asks


class _Ended(Exception):
    """The process ended without an answer."""


class _Process:
    """The other side, waiting for a request."""

    def __init__(self, module: str) -> None:
        # -I: it imports from where this process does, whatever folder or variable would put other modules there.
        program = f"import sys; sys.path[:] = {sys.path!r}; from {module} import serve; serve()"
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-W", "ignore", "-c", program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **_ENVIRONMENT},
                start_new_session=True,  # Ctrl-C is for whoever asks
            )
        except OSError as error:
            raise Failed(f"no process can be started to read it in ({error.strerror})") from error
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        try:
            if self._answers.read(1) != _GO_ON:
                raise Failed("the process to read it in does not start")
        except BaseException:
            self.end()
            raise

    def ask(self, request: bytes, data: bytes, room: AbstractContextManager[object]) -> tuple[bytes, bool, bytes]:
        """Kind of the answer, whether it is the last, and its content."""
        self._say(request, data)
        answer = self._hear()
        if answer[0] == _WAITS:
            with room:
                while answer[0] == _WAITS:
                    self._say(_GO_ON)
                    answer = self._hear()
        return answer

    def _say(self, *parts: bytes) -> None:
        with suppress(BrokenPipeError):  # it has ended, as will be heard
            for part in parts:
                self._requests.write(part)
            self._requests.flush()

    def _hear(self) -> tuple[bytes, bool, bytes]:
        head = self._answers.read(_ANSWER.size)
        if len(head) == _ANSWER.size:
            kind, last, length = _ANSWER.unpack(head)
            if len(answer := self._answers.read(length)) == length:
                return kind, last, answer
        raise _Ended

    def has_ended(self) -> bool:
        """Whether something else has ended it."""
        return self._process.poll() is not None

    def end(self) -> int:
        """End it, if it has not ended; returns its exit status."""
        with suppress(OSError):
            self._process.kill()
        self._process.communicate()
        return self._process.returncode


def _next(idle: deque[_Process]) -> _Process | None:
    """One that waits, if any."""
    with suppress(IndexError):
        while (process := idle.pop()).has_ended():
            process.end()
        return process
    return None


_idle: defaultdict[str, deque[_Process]] = defaultdict(deque)  # by module, as many as threads asked at once


def _why(status: int) -> str:
    """Why a process ended, by its exit status."""
    if status in ((-signal.SIGPROF, -signal.SIGALRM) if _HAS_TIMERS else (1,)):
        return TOO_MUCH_TIME
    return f"is damaged, and ends the process that reads it (exit status {status})"


def _end_idle() -> None:
    for processes in _idle.values():
        while processes:
            processes.pop().end()


atexit.register(_end_idle)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)  # they answer the parent


# The side that works


@contextmanager
def _bounds(memory: int, seconds: int) -> Iterator[None]:
    """End this process after too much time; fail what asks for more than so many bytes of address space; 0: any."""
    if memory:
        before = soft, hard = resource.getrlimit(resource.RLIMIT_AS)  # of the user, which only root may raise
        least = memory if soft == resource.RLIM_INFINITY else min(memory, soft)
        resource.setrlimit(resource.RLIMIT_AS, (least, hard))
    if _HAS_TIMERS:
        signal.setitimer(signal.ITIMER_PROF, 0.7 * seconds)  # of the processor, which others may be using too
    _watch(_by_the_clock(seconds))
    try:
        yield
    finally:
        _watch(0)
        if _HAS_TIMERS:
            signal.setitimer(signal.ITIMER_PROF, 0)
        if memory:
            resource.setrlimit(resource.RLIMIT_AS, before)


def _by_the_clock(seconds: int) -> int:
    return 6 * seconds if _HAS_TIMERS else seconds  # where the time of the processor is bounded, this is for waiting


def _watch(seconds: int) -> None:
    """End this process after so many seconds by the clock, for what waits for ever; 0 lets it be."""
    if _HAS_TIMERS:
        signal.setitimer(signal.ITIMER_REAL, seconds)
    elif seconds:
        faulthandler.dump_traceback_later(seconds, exit=True)
    else:
        faulthandler.cancel_dump_traceback_later()


def _mapped() -> int:
    """Bytes of address space in use; 0 where that is not known."""
    if not _STATM.exists():
        return 0
    return int(_STATM.read_bytes().split()[0]) * resource.getpagesize()
