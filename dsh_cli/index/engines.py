"""Where picture files become codes: in this process, or in those of Ray, on this machine or on others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, get_args

from dsh_cli.config import EngineName
from dsh_cli.errors import UsageError
from dsh_cli.index.files import Engine, Files, Found, Listing, Results, found, look_at
from dsh_cli.pictures.decode import Picture

if TYPE_CHECKING:
    from dsh_cli.runs.exported import Exported
    from dsh_cli.runs.run import Run


def require(engine: str, ray_address: str | None) -> None:
    """Refuse what no engine can do, before anything is written.

    Raises:
        UsageError: there is no such engine, or it has no address.
        EngineError: it is not installed.
    """
    if engine not in get_args(EngineName):
        raise UsageError(f"`engine` {engine}: it is {' or '.join(get_args(EngineName))}")
    if engine == "ray":
        from dsh_cli.index import ray_engine

        ray_engine.require(ray_address)
    elif ray_address is not None:
        raise UsageError(f"`ray_address` {ray_address} is of a cluster of Ray, and `engine` is {engine}; give ray")


@contextmanager
def opened(
    engine: str, run: Run | Exported, device: str, workers: int | None, ray_address: str | None
) -> Iterator[Engine]:
    """An engine that is ready; see `Index.add`."""
    if engine == "ray":
        from dsh_cli.index import ray_engine

        with ray_engine.opened(run, device, workers, ray_address) as ray:
            yield ray
        return
    encoder = run.encoder(device)

    def here(files: Files, listing: Listing) -> Results:
        def read(named: tuple[str, str]) -> tuple[Found, Picture | None]:
            file = listing(*named)
            if file.error:
                return Found(error=file.error), None
            look, picture = look_at(file.name, file.stamp, file.digest, encoder.form)
            return found(file, look), picture

        for (_, name), result, code in encoder.each(files, read, workers):
            yield name, result, code

    yield here
