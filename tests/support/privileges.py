"""Run a program as a user whom modes and limits bind, also where the tests are root's: privileges.py PROGRAM..."""

import ctypes
import os
import sys
from pathlib import Path

_DROP_FROM_BOUND = 24  # prctl(2): PR_CAPBSET_DROP
_OVERRIDES = (1, 2, 24)  # capabilities(7): CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_SYS_RESOURCE


def kept_out(program: list[str]) -> list[str]:
    """The command that runs a program so; not by a function between fork and exec, which some libraries warn of."""
    return [sys.executable, str(Path(__file__)), *program]


def main() -> None:
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        for capability in _OVERRIDES:
            if libc.prctl(_DROP_FROM_BOUND, capability, 0, 0, 0):
                raise OSError(ctypes.get_errno(), "a capability cannot be dropped")
    os.execv(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
