"""What a user who is not root may do, also where the tests are run by root."""

import ctypes
import os
import sys

import pytest

_DROP_FROM_BOUND = 24  # prctl(2): PR_CAPBSET_DROP
_OVERRIDES = (1, 2)  # capabilities(7): CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


def drop() -> None:
    """For a process about to become another program: modes of files count for it, though it may be root's."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        for capability in _OVERRIDES:
            if libc.prctl(_DROP_FROM_BOUND, capability, 0, 0, 0):
                raise OSError(ctypes.get_errno(), "a capability cannot be dropped")


def require() -> None:
    """Skip where modes of files would count for nobody."""
    if os.name != "posix" or (os.geteuid() == 0 and sys.platform != "linux"):
        pytest.skip("modes of files do not keep root out")
