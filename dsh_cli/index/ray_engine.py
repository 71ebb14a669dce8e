"""Picture files to codes on Ray: its workers look at files, read, decode and encode them; whoever asked writes.

The one process that has the lock of the index lists the files, and tells workers what it knows of each, so that what
is unchanged is neither decoded nor encoded. Ray Data hands blocks of files to workers, and gives back what came of them
in the order of the listing. A block whose worker or machine is lost is done again elsewhere; as only whole blocks come
back, each once, and one process commits, no row is lost or doubled.

lance-ray's own writers append in one commit at the end, with neither lock nor the sum of digests, and know no order of
adding and no rows to be replaced; so rows are written here as they always are. See docs/cluster.md.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dsh_cli import errors
from dsh_cli.codes.bits import binarize, pack
from dsh_cli.errors import DshError, EngineError, UsageError, reason
from dsh_cli.index.files import Engine, Files, Found, Listed, Listing, Look, Results, found, look_at
from dsh_cli.index.schema import DIGEST
from dsh_cli.network.encoder import Code, Encoder, at_once, form_of
from dsh_cli.pictures import guesses
from dsh_cli.pictures.decode import INTAKE, Picture
from dsh_cli.runs.parcel import Parcel, encoder_of, packed
from dsh_cli.threads import default_workers
from dsh_cli.words import of_utf8, utf8

if TYPE_CHECKING:
    import pyarrow as pa

    from dsh_cli.runs.exported import Exported
    from dsh_cli.runs.run import Run

INSTALL = "pip install 'dsh-cli[ray]'"
_BLOCK = 1024  # files given to a worker at once, at most: some seconds of work
_BATCHES = 4  # of the network in a block
_BLOCKS = 16  # for each worker in what Ray Data is given at once, so that few wait at its end for the last ones
_AT_ONCE = 1 << 17, 1 << 18  # files in what Ray Data is given at once, at least and at most
_ATTEMPTS = 5  # at a block, whose worker or machine was lost; Ray Data itself would go on for ever
_STORE = 256 << 20  # bytes of shared memory on this machine, and as much again as the model takes
_CONNECTING = 5.0  # seconds
# By which a server of HTTP/2, as Ray's are, is told from others, at which Ray would wait for minutes: RFC 9113, 3.4
_PREFACE, _SETTINGS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", b"\4"
_ENDING = 100  # tenths of a second, at most, until all of it has ended
_STARTS = 3  # of Ray on this machine, which gives up after half a minute where others have the processors
_OTHER = "has another version of dsh, or none; install the same on all of them: pip install 'dsh-cli[ray]'"
_SOCKETS = 24  # bytes of the name of a folder in which Ray can still name its sockets
# What Ray is to do without: telling its makers of us, telling us of GPUs, and giving way to all else.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",
}
_ONCE = {"RAY_NUM_REDIS_GET_RETRIES": "1"}  # it tries to reach a cluster; else twenty times, of half a minute each


def require(address: str | None) -> None:
    """Refuse what cannot be, before anything is begun.

    Raises:
        EngineError: Ray is not installed, or nothing answers at the address.
        UsageError: it is no address.
    """
    if find_spec("ray") is None:
        raise EngineError(f"`engine` ray takes Ray, which is not installed: {INSTALL}")
    if address is None or address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if "://" in address or not (host and colon and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise UsageError(
            f"`ray_address` {address or '(empty)'}: it is HOST:PORT, as ray start --head prints it, or auto on a "
            "machine of the cluster"
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _CONNECTING) as link:
            if os.environ.get("RAY_USE_TLS", "0") == "0":  # else it speaks to those it knows alone
                link.sendall(_PREFACE)
                if link.recv(9)[3:4] != _SETTINGS:
                    raise OSError("something else answers there")
    except (OSError, UnicodeError) as error:
        raise _unreached(address, error) from error


@contextmanager
def opened(run: Run | Exported, device: str, workers: int | None, address: str | None) -> Iterator[Engine]:
    """Ray, started here or connected to; ended, or let go, when the context ends.

    Args:
        run: makes the codes; all that workers need of it is sent to them.
        device: "cuda" for a GPU a worker; else workers compute on CPUs.
        workers: how many at once, with a processor each; None: one for each processor, or GPU, that there is.
        address: of a cluster; None: Ray is started on this machine.

    Raises:
        EngineError: Ray is not installed whole, cannot be started, or nothing answers at the address.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"`device` {device}: `engine` ray computes on cpu, or on cuda with a GPU a worker")
    device = "cpu" if device == "auto" else device  # which it is here says nothing of the machines of a cluster
    parcel = packed(run, device)
    with _connected(address, workers, sum(map(len, parcel.values()))) as ray:
        kind = "GPU" if device == "cuda" else "CPU"
        there = int(ray.cluster_resources().get(kind, 0))
        if not there:
            raise EngineError(f"Ray has no {kind} to compute on; add machines with: ray start, or see to `device`")
        model = ray.put(parcel)
        block = min(_BLOCK, _BATCHES * at_once(form_of(run.model)))
        yield _engine(model, device, workers or there, block)


def _engine(model: Any, device: str, workers: int, block: int) -> Engine:
    def on_ray(files: Files, listing: Listing) -> Results:
        source = iter(files)
        least, most = _AT_ONCE
        some = max(least, min(most, _BLOCKS * workers * block))
        while named := list(islice(source, some)):
            wave = [listing(*one) for one in named]
            done = 0
            for place, look, code in _looks(_blocks(wave, workers, block), model, device, workers):
                assert place >= done, "Ray gave a block twice, or out of its turn"
                yield from _failed(named[done:place], wave[done:place])
                yield named[place][1], found(wave[place], look), code
                done = place + 1
            yield from _failed(named[done:], wave[done:])

    return on_ray


def _failed(named: list[tuple[str, str]], files: list[Listed]) -> Results:
    """What was refused before any worker saw it."""
    for (_, name), file in zip(named, files, strict=True):
        assert file.error, "Ray lost a block"
        yield name, Found(error=file.error), None


def _blocks(files: list[Listed], workers: int, block: int) -> list[pa.Table]:
    """Files as workers are told of them: where they stand in the wave, and what is known of them.

    Few files are divided among all workers, which have folders of their own to which no name is relative.
    """
    import pyarrow as pa

    places = [place for place, file in enumerate(files) if not file.error]
    block = max(1, min(block, -(-len(places) // workers)))
    blocks = []
    for start in range(0, len(places), block):
        some = places[start : start + block]
        names = [_whole(files[place].name) for place in some]
        stamps = [files[place].stamp or (None, None) for place in some]
        blocks.append(
            pa.table(
                {
                    "place": pa.array(some, pa.int64()),
                    "name": pa.array([os.fsencode(name) for name in names], pa.binary()),
                    "size": pa.array([size for size, _ in stamps], pa.int64()),
                    "mtime_ns": pa.array([mtime_ns for _, mtime_ns in stamps], pa.int64()),
                    "digest": pa.array([files[place].digest for place in some], pa.binary(DIGEST)),
                }
            )
        )
    return blocks


def _whole(name: str) -> str:
    """The name of a file from everywhere on this machine: the file that it is, links and all."""
    return os.path.join(Path.cwd(), name) if name and not os.path.isabs(name) else name


def _looks(blocks: list[pa.Table], model: Any, device: str, workers: int) -> Iterator[tuple[int, Look, Code | None]]:
    """What workers say of files, in their order."""
    if not blocks:
        return
    from ray.data import TaskPoolStrategy, from_arrow
    from ray.exceptions import RayError, RayTaskError

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # importing it has set it
    # in a list the model stays where it is until a worker asks for it
    given = {"model": [model], "device": device, "intake": INTAKE, "attempts": _ATTEMPTS}
    try:
        data = from_arrow(blocks)
        data.context.execution_options.preserve_order = True
        data.context.enable_progress_bars = data.context.print_on_execution_start = False
        data = data.map_batches(
            _encoded,
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            fn_kwargs=given,
            compute=TaskPoolStrategy(size=workers),
            num_cpus=1,
            num_gpus=1 if device == "cuda" else None,
        )
        for batch in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
            yield from _read(batch)
    except RayTaskError:  # of what workers do: a bug
        raise
    except RayError as error:
        raise EngineError(
            f"Ray could not go on ({_short(error)}); what was committed is kept, and the same command goes on there"
        ) from error


def _read(batch: pa.Table) -> Iterator[tuple[int, Look, Code | None]]:
    """What a worker has written.

    Raises:
        DshError: what it has refused.
    """
    for text in batch["refusal"].drop_null().to_pylist():
        kind, _, said = of_utf8(text).partition(" ")
        raise getattr(errors, kind)(said)
    for text in batch["guess"].drop_null().to_pylist():
        guesses.note(of_utf8(text))
    codes: Iterator[Code] = iter(())
    if outputs := batch["relaxed"].drop_null().to_pylist():
        relaxed = np.frombuffer(b"".join(outputs), np.float32).reshape(len(outputs), -1)
        codes = map(Code, pack(binarize(relaxed)), relaxed)
    columns = (batch[name].to_pylist() for name in ("place", "size", "mtime_ns", "digest", "error"))
    has_code = batch["relaxed"].is_valid().to_pylist()
    for place, size, mtime_ns, digest, error, coded in zip(*columns, has_code, strict=True):
        stamp = None if size is None else (size, mtime_ns)
        yield place, Look(stamp, digest, "" if error is None else of_utf8(error)), next(codes) if coded else None


# On a worker


def _encoded(block: pa.Table, model: list[Any], device: str, intake: int, attempts: int) -> pa.Table:
    """Look at the files of a block, and encode those that changed.

    What is refused is told in the table, for of an error Ray hands on its text alone.
    """
    try:
        _require_attempt(block, attempts)
        if intake != INTAKE:
            raise EngineError(f"{socket.gethostname()}, a machine of the Ray cluster, {_OTHER}")
        return _table(block, *_coded(block, _encoder(model[0], device)))
    except DshError as error:
        return _table(block, [Look()] * len(block), [None] * len(block), f"{type(error).__name__} {error}")


def _coded(block: pa.Table, encoder: Encoder) -> tuple[list[Look], list[Code | None]]:
    rows = zip(*(block[name].to_pylist() for name in ("name", "size", "mtime_ns", "digest")), strict=True)

    def read(row: tuple[bytes, int | None, int, bytes | None]) -> tuple[Look, Picture | None]:
        name, size, mtime_ns, digest = row
        return look_at(os.fsdecode(name), None if size is None else (size, mtime_ns), digest, encoder.form)

    guesses.take()  # of the block before
    done = [(look, code) for _, look, code in encoder.each(rows, read, 1)]
    return [look for look, _ in done], [code for _, code in done]


def _table(block: pa.Table, looks: list[Look], codes: list[Code | None], refusal: str | None = None) -> pa.Table:
    """What came of a block: a row a file. What is told of the block as a whole stands in its first rows."""
    import pyarrow as pa

    stamps = [look.stamp or (None, None) for look in looks]
    guessed: list[bytes | None] = [utf8(text) for text in guesses.take()]
    rest = [None] * len(looks)
    return pa.table(
        {
            "place": block["place"],
            "size": pa.array([size for size, _ in stamps], pa.int64()),
            "mtime_ns": pa.array([mtime_ns for _, mtime_ns in stamps], pa.int64()),
            "digest": pa.array([look.digest for look in looks], pa.binary(DIGEST)),
            "error": pa.array([utf8(look.error) if look.error else None for look in looks], pa.binary()),
            "relaxed": pa.array([code and code.relaxed.tobytes() for code in codes], pa.binary()),
            "guess": pa.array([*guessed, *rest][: len(looks)], pa.binary()),  # no more than pictures, one each
            "refusal": pa.array([refusal and utf8(refusal), *rest][: len(looks)], pa.binary()),
        }
    )


_opened: dict[str, Encoder] = {}  # the one of this process, by what Ray calls its model


def _encoder(model: Any, device: str) -> Encoder:
    """What makes codes here, opened once in a process."""
    import ray

    name = model.hex()
    if name not in _opened:
        parcel: Parcel = ray.get(model)
        _opened.clear()
        _opened[name] = encoder_of(parcel, device)
    return _opened[name]


def _require_attempt(block: pa.Table, attempts: int) -> None:
    """Refuse a block at which worker after worker was lost.

    Raises:
        EngineError: it is such a one.
    """
    from ray._private.worker import global_worker  # Ray tells it nowhere else

    if global_worker.core_worker.get_current_task_attempt_number() >= attempts:
        first, last = (os.fsdecode(block["name"][at].as_py()) for at in (0, len(block) - 1))
        raise EngineError(
            f"{attempts} Ray workers in a row were lost at the pictures from {first} to {last}; see whether their "
            "machines have enough memory, or leave these pictures out"
        )


# Ray itself


@contextmanager
def _connected(address: str | None, workers: int | None, model_bytes: int) -> Iterator[Any]:
    """Ray's module, while it is connected. Where this process is connected already, that is taken, and stays so."""
    with _quiet(_ENVIRONMENT if address is None else _ENVIRONMENT | _ONCE), ExitStack() as stack:
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise EngineError(f"Ray cannot be loaded ({reason(error)}): {INSTALL}") from error
        if ray.is_initialized():
            _require_machines(ray)
        elif address is None:
            _start(ray, workers or default_workers(), _STORE + 2 * model_bytes, stack)
        else:
            stack.callback(ray.shutdown)
            try:
                with _hushed():
                    ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
            except (ConnectionError, RuntimeError, ValueError, OSError) as error:
                raise _unreached(address, error) from error
            _require_machines(ray)
        told = ray._private.worker
        # to standard output, where results go, it would write that a worker was lost
        before, told._worker_logs_enabled = told._worker_logs_enabled, False
        try:
            yield ray
        finally:
            told._worker_logs_enabled = before


def _start(ray: Any, processors: int, store: int, stack: ExitStack) -> None:
    """Start Ray on this machine, in a folder of its own that is gone with it."""
    above = tempfile.gettempdir()
    above = above if os.name == "nt" or len(os.fsencode(above)) <= _SOCKETS else "/tmp"
    for attempt in range(_STARTS):
        try:
            folder = tempfile.mkdtemp(prefix="dsh-", dir=above)
            stack.callback(_remove, folder)
            stack.callback(ray.shutdown)  # which comes before
            ray.init(
                address="local",
                num_cpus=processors,
                object_store_memory=store,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                _temp_dir=folder,
            )
            return
        except Exception as error:  # of no common kind
            ray.shutdown()
            if attempt == _STARTS - 1 or "timed out" not in str(error):
                raise EngineError(
                    f"Ray cannot be started on this machine ({_short(error)}); see to its memory and to {above}, or "
                    "leave `engine` out"
                ) from error


def _require_machines(ray: Any) -> None:
    """Refuse a cluster of which a machine has no dsh: Ray Data would try there for ever.

    Raises:
        EngineError: it is such a one.
    """
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ask = ray.remote(num_cpus=0, max_retries=_ATTEMPTS)(_intake)
    asked = [
        (
            node["NodeManagerHostname"],
            ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], False)),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    for name, answer in [(name, there.remote()) for name, there in asked]:
        try:
            is_same = ray.get(answer) == INTAKE
        except RayTaskError as error:  # it cannot import what is asked of it
            raise EngineError(f"{name}, a machine of the Ray cluster, {_OTHER} ({_short(error)})") from error
        except RayError as error:
            raise EngineError(
                f"{name}, a machine of the Ray cluster, was lost or lost its workers ({_short(error)}); see to it, and "
                "run the same command again"
            ) from error
        if not is_same:
            raise EngineError(f"{name}, a machine of the Ray cluster, {_OTHER}")


def _intake() -> int:
    """On any machine: how its dsh reads pictures."""
    return INTAKE


def _remove(folder: str) -> None:
    """Remove the folder of a Ray that was ended, in which what it had begun to start may still write."""
    for _ in range(_ENDING):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.lexists(folder):
            return
        time.sleep(0.1)


@contextmanager
def _quiet(settings: Mapping[str, str]) -> Iterator[None]:
    """Keep what Ray says from whoever watches: its errors are raised, and its logs are in its own folder."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update({name: value for name, value in settings.items() if before[name] is None})
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "lance is not fork-safe")  # Ray's processes are other programs
            warnings.filterwarnings("ignore", module=r"ray\.")
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)


@contextmanager
def _hushed() -> Iterator[None]:
    """Let what Ray's libraries write to standard error past Python, before they have a log, go nowhere."""
    try:
        kept = os.dup(2)
    except OSError:  # closed by who started us
        yield
        return
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _unreached(address: str, error: Exception) -> EngineError:
    said = "".join(traceback.format_exception(error))
    if "InvalidAuthToken" in said or "AuthenticationError" in said:
        return EngineError(
            f"the Ray cluster at `ray_address` {address} asks for its token: set RAY_AUTH_MODE=token, with the file "
            "~/.ray/auth_token of its first machine, or give auto on a machine of the cluster that has it"
        )
    return EngineError(
        f"no Ray cluster can be used at `ray_address` {address} ({_short(error)}); start one with: ray start --head"
    )


def _short(error: BaseException) -> str:
    """What an error says, in one line that a terminal takes; of what a worker says the last line, which says what."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
    said = " ".join(lines[-1].split()) if lines and "Error" in lines[-1] else reason(error)
    return said if len(said) <= 300 else said[:297] + "..."
