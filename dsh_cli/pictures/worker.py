"""A decoder in a process of its own, ended when it takes more time or memory than a picture may.

For files whose cost is not known beforehand: a few bytes can make a decoder work for hours, ask for all memory there
is, or crash. The process imports what decodes and nothing else, is kept for the next such file, and says nothing but
pixels or an error.
"""

from __future__ import annotations

import atexit
import dataclasses
import faulthandler
import json
import os
import signal
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

import numpy as np

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

from dsh_cli.errors import ImageError
from dsh_cli.pictures import decoders
from dsh_cli.pictures.decoders import Picture, Shape

SECONDS, MEMORY = 10, 1 << 30  # that a file may take; bytes, where the system can bound them
_TOO_LONG = f"takes more than {SECONDS} s to decode, the limit against decompression bombs"
_GROWN = 1 << 28  # bytes that decoders may leave behind before another process takes their place
_STATM = Path("/proc/self/statm")
_HAS_TIMERS = hasattr(signal, "setitimer")  # not on Windows
_BY_THE_CLOCK = 6 * SECONDS if _HAS_TIMERS else SECONDS
_SLACK = 1 << 25  # bytes for all but the file and its pixels

_ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MALLOC_ARENA_MAX"), "1"),  # for each has its memory
    "MALLOC_MMAP_THRESHOLD_": str(1 << 25),  # bytes that are kept for the next picture: faults cost as much as decoding
    "MALLOC_TRIM_THRESHOLD_": str(1 << 26),
}

_REQUEST = struct.Struct("<IIQ")  # size (0 for the header alone), channels, bytes to come
_ANSWER = struct.Struct("<c?Q")  # of which kind, whether it is the last of this process, bytes to come
_PIXELS, _SHAPE, _ERROR, _WAITS = b"P", b"S", b"E", b"W"
_GO_ON = b"."


def pixels(data: bytes, size: int, channels: int, room: AbstractContextManager[object]) -> Picture:
    """A picture of any format; see `decode.read`. A large one is in memory only while `room` is held.

    Raises:
        ImageError: it cannot be decoded, or not within the bounds.
    """
    found = _asked(data, size, channels, room)
    return np.frombuffer(found, np.uint8).reshape(size, size, channels).copy()


def shape(data: bytes, room: AbstractContextManager[object]) -> Shape:
    """Size and colour of a picture, from its header.

    Raises:
        ImageError: as `pixels`.
    """
    return Shape(*json.loads(_asked(data, 0, 0, room)))


# The side that asks


class _Ended(Exception):
    """The process ended without an answer."""


class _Process:
    """The other side, waiting for a request."""

    def __init__(self) -> None:
        # -I: it imports from where this process does, whatever folder or variable would put other modules there.
        program = f"import sys; sys.path[:] = {sys.path!r}; from dsh_cli.pictures import worker; worker.serve()"
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-W", "ignore", "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **_ENVIRONMENT},
            start_new_session=True,  # Ctrl-C is for whoever asks
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        if self._answers.read(1) != _GO_ON:
            self.end()
            raise OSError("a process to decode in did not start")

    def ask(
        self, size: int, channels: int, data: bytes, room: AbstractContextManager[object]
    ) -> tuple[bytes, bool, bytes]:
        """Kind of the answer, whether it is the last, and its content."""
        self._say(_REQUEST.pack(size, channels, len(data)), data)
        answer = self._hear()
        if answer[0] == _WAITS:
            with room:
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

    def end(self) -> int:
        """End it, if it has not ended; returns its exit status."""
        with suppress(OSError):
            self._process.kill()
        self._process.communicate()
        return self._process.returncode


_idle: deque[_Process] = deque()  # as many as there were threads that asked at once


def _asked(data: bytes, size: int, channels: int, room: AbstractContextManager[object]) -> bytes:
    try:
        process = _idle.pop() if _idle else _Process()
    except IndexError:  # another thread was quicker
        process = _Process()
    try:
        kind, last, answer = process.ask(size, channels, data, room)
    except _Ended:
        raise ImageError(_why(process.end())) from None
    except BaseException:  # what it says next would be about this picture
        process.end()
        raise
    if last:
        process.end()
    else:
        _idle.append(process)
    if kind == _ERROR:
        raise ImageError(answer.decode())
    return answer


def _why(status: int) -> str:
    """Why a process ended, by its exit status."""
    out_of_time = (-signal.SIGPROF, -signal.SIGALRM) if _HAS_TIMERS else (1,)
    if status in out_of_time:
        return _TOO_LONG
    return f"damaged picture, by which a decoder was ended (exit status {status})"


def _end_idle() -> None:
    while _idle:
        _idle.pop().end()


atexit.register(_end_idle)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)  # they answer the parent


# The side that decodes


def serve() -> None:
    """Decode what is asked for on standard input, until it ends."""
    from PIL import AvifImagePlugin, Image

    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # where libraries may print
    if _HAS_TIMERS:  # whoever started this may have ignored or blocked them
        for number in (signal.SIGPROF, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGPROF, signal.SIGALRM))
    Image.init()
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # each has a stack, which counts as memory

    def say(kind: bytes, content: bytes = b"", last: bool = False) -> None:
        answers.write(_ANSWER.pack(kind, last, len(content)) + content)
        answers.flush()

    def room(count: int) -> AbstractContextManager[object]:
        if count > decoders.LARGE:
            _watch(0)
            say(_WAITS)
            requests.read(len(_GO_ON))
            _watch(_BY_THE_CLOCK)
        return nullcontext()

    at_first = _mapped()
    answers.write(_GO_ON)
    answers.flush()
    while len(head := requests.read(_REQUEST.size)) == _REQUEST.size:
        size, channels, length = _REQUEST.unpack(head)
        data = requests.read(length)
        mapped = _mapped()
        try:
            with _bounds(mapped, MEMORY - _SLACK - 2 * length):  # the side that asks holds the file too
                if size:
                    kind, answer = _PIXELS, decoders.pixels(data, size, channels, room).tobytes()
                else:
                    kind, answer = _SHAPE, json.dumps(dataclasses.astuple(decoders.shape(data))).encode()
        except ImageError as error:
            kind, answer = _ERROR, str(error).encode()
        except MemoryError:
            kind, answer = _ERROR, decoders.TOO_MUCH_MEMORY.encode()
        data = b""
        say(kind, answer, last=mapped > at_first + _GROWN)


@contextmanager
def _bounds(mapped: int, more: int) -> Iterator[None]:
    """End this process after too much time; fail what asks for more memory than it has mapped, by so many bytes."""
    if mapped:
        resource.setrlimit(resource.RLIMIT_AS, (mapped + more, resource.RLIM_INFINITY))
    if _HAS_TIMERS:
        signal.setitimer(signal.ITIMER_PROF, SECONDS - 1)  # of the processor, which others may be using too
    _watch(_BY_THE_CLOCK)
    try:
        yield
    finally:
        _watch(0)
        if _HAS_TIMERS:
            signal.setitimer(signal.ITIMER_PROF, 0)
        if mapped:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _watch(seconds: int) -> None:
    """End this process after so many seconds by the clock, for decoders that wait for ever; 0 lets it be."""
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
