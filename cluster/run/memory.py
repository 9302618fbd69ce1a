"""Configures the C allocator of the learner's process."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # glibc, malloc.h


def keep_freed_memory() -> bool:
    """Have glibc keep what torch frees for its next allocation; False where there is no glibc.

    An update frees and allocates the same activations repeatedly. By default the kernel maps and zeroes blocks of that
    size each time: about a fifth of the CPU time of a meta-update on the Nature network. The peak
    stays what it is.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    return bool(
        mallopt(_M_MMAP_THRESHOLD, 2**30) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1) and mallopt(_M_TOP_PAD, 2**26)
    )
