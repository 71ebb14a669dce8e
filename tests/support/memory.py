"""What a program has taken of memory."""

import resource
import sys
from pathlib import Path


def peak() -> int:
    """The most that this program has had in memory so far, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # what `resource` tells begins with what the process that started this one had
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line) >> 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (20 if sys.platform == "darwin" else 10)


def peak_of_children() -> int:
    """The most that one of its programs that have ended had, in MiB."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> (20 if sys.platform == "darwin" else 10)
