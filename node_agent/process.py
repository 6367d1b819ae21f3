"""What the agent asks of the kernel and the C library for its own process."""

import ctypes
import gc
import resource
from typing import Final

_M_ARENA_MAX: Final = -8  # malloc.h: mallopt(3)
_GC_THRESHOLDS: Final = (20_000, 20, 50)  # a connection leaves ~40 objects; the default collects every 17 connections


def settle() -> None:
    """Take all descriptors that we may have, one malloc arena, and a collector that runs seldom; once, at start."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)  # a connection needs two
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    _libc_call("mallopt", _M_ARENA_MAX, 1)  # a second arena costs megabytes and serves threads that sleep
    gc.set_threshold(*_GC_THRESHOLDS)


def tidy_up() -> None:
    """After a big load: what is alive now is not looked at again, what was freed goes back to the kernel."""
    gc.collect()
    gc.freeze()
    _libc_call("malloc_trim", 0)


def _libc_call(name: str, *arguments: int) -> None:
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:  # glibc only
        function(*arguments)
