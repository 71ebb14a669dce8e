"""A cluster of Ray of two nodes in one machine, for as long as its standard input is open.

python -m tests.support.ray_cluster prints its address, and then of each node but the first the process that, killed,
is that machine lost.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.support.commands import unmeasured

ROOM = 600  # seconds for what takes ten, where others have the processors
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    # patience of its processes with each other
    "RAY_health_check_timeout_ms": f"{ROOM}000",
    "RAY_raylet_start_wait_time_s": str(ROOM),
    "RAY_worker_register_timeout_seconds": str(ROOM),
    "RAY_agent_register_timeout_ms": f"{ROOM}000",
}


@dataclass(frozen=True)
class Nodes:
    """A cluster that is up."""

    address: str
    process: int
    second: int  # process of its second node

    def busy(self) -> list[psutil.Process]:
        """Its workers that encode just now."""
        found = []
        for process in psutil.Process(self.process).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "MapBatches(_encoded)" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def kill_one(self) -> int:
        """Kill a worker in the midst of its work, and give its process."""
        end = time.monotonic() + ROOM
        while time.monotonic() < end:
            for process in self.busy():
                with contextlib.suppress(psutil.Error):
                    process.suspend()  # so that it can finish nothing while we look at it
                    if process in self.busy():
                        process.kill()
                        return int(process.pid)
                    process.resume()
            time.sleep(0.01)
        raise TimeoutError("no worker encodes")


@contextlib.contextmanager
def nodes() -> Iterator[Nodes]:
    """A cluster, in a process of its own, with all that it starts."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        root = str(Path(__file__).parents[2])  # whose package its workers import
        paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        os.mkdir(f"{folder}/ray")  # where Ray notes the address of the last cluster, and fails if it cannot
        started = subprocess.Popen(
            [sys.executable, "-m", "tests.support.ray_cluster", folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
            env={**unmeasured(), **_ENVIRONMENT, "PYTHONPATH": paths, "TMPDIR": folder},
        )
        assert started.stdin is not None and started.stdout is not None
        try:
            address, second = started.stdout.readline().split()
            yield Nodes(address, started.pid, int(second))
        finally:
            left = psutil.Process(started.pid).children(recursive=True)
            started.stdin.close()
            try:
                started.wait(ROOM)
            finally:
                started.stdout.close()
                for process in left:
                    with contextlib.suppress(psutil.Error):
                        process.kill()


def main() -> None:
    """Be the cluster."""
    from ray._private import services
    from ray.cluster_utils import Cluster

    def patient(call: Any) -> Any:
        def waiting(*arguments: Any) -> Any:
            end = time.monotonic() + ROOM
            while True:
                try:
                    return call(*arguments)
                except (RuntimeError, TimeoutError):  # which Ray has after half a minute
                    if time.monotonic() > end:
                        raise

        return waiting

    services.get_node, services.wait_for_node = patient(services.get_node), patient(services.wait_for_node)
    told, sys.stdout = sys.stdout, sys.stderr
    cluster = Cluster()
    lean: dict[str, Any] = {"num_cpus": 1, "include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
    cluster.add_node(temp_dir=sys.argv[1], **lean)
    second = cluster.add_node(**lean)
    (raylet,) = second.all_processes["raylet"]
    print(cluster.address, raylet.process.pid, file=told, flush=True)
    sys.stdin.read()
    for node in list(cluster.worker_nodes):
        with contextlib.suppress(Exception):  # of one that was killed
            cluster.remove_node(node, allow_graceful=False)
    cluster.remove_node(cluster.head_node, allow_graceful=False)


if __name__ == "__main__":
    main()
