"""What the agent asks of the kernel and the C library for its own process."""

import ctypes
import gc
import resource
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import trio

_READY_LOOK_S: Final = 0.2
_MORE_WILL_COME_S: Final = 15.0  # the identities of a node are renewed in the same minutes
_M_ARENA_MAX: Final = -8  # malloc.h: mallopt(3)
_MADV_DONTNEED: Final = 4  # sys/mman.h: madvise(2)
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


class SlimDown:
    """Gives back what only the start needed when that is over, and later what only the issue of certificates needed."""

    def __init__(self) -> None:
        self._issued = trio.Event()

    def issued(self) -> None:
        """A key and a certificate were made."""
        self._issued.set()

    async def run(self, is_ready: Callable[[], bool]) -> None:
        """Do it, until cancelled; each time costs the loop some milliseconds."""
        while not is_ready():  # noqa: ASYNC110  # what it depends on is spread over a dozen parts
            await trio.sleep(_READY_LOOK_S)
        tidy_up()
        while True:
            self._issued = trio.Event()
            let_go_of_libraries()
            await self._issued.wait()
            await trio.sleep(_MORE_WILL_COME_S)


class Mapping(NamedTuple):
    """One mapping of this process, and what proc_pid_smaps(5) says of it."""

    start: int
    end: int
    permissions: str
    path: str
    changed_kb: int  # of pages that are not the file's any more, in memory or in swap


def let_go_of_libraries() -> None:
    """Unmap the pages of libraries.

    To load a library, and to make keys, touches megabytes of code and tables
    that are not touched again, or not for half an hour.  They stay in the kernel's page cache, where it
    can have them back for others; what runs again comes from there by a fault
    each 64 KiB, a few hundred in all.
    """
    libc = ctypes.CDLL(None)
    try:
        smaps = Path("/proc/self/smaps").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return  # no /proc, or a kernel without it: nothing but memory is at stake
    for each in parse_smaps(smaps.splitlines()):
        if is_clean_copy(each):
            # It fails for a mapping that is locked into memory: somebody wanted that.
            libc.madvise(ctypes.c_void_p(each.start), ctypes.c_size_t(each.end - each.start), _MADV_DONTNEED)


def is_clean_copy(mapping: Mapping) -> bool:
    """Whether all that is mapped is in the file, too, and will be: read-only, private, and no page of it changed.

    A table that the dynamic linker has filled in is read-only as well, and lost for ever if it is let go of.
    """
    return (
        "w" not in mapping.permissions
        and mapping.permissions.endswith("p")
        and mapping.path.startswith("/")
        and not mapping.path.startswith(("/dev/", "/memfd:"))
        and mapping.changed_kb == 0
    )


def parse_smaps(lines: Iterable[str]) -> Iterator[Mapping]:
    """Read /proc/PID/smaps; a mapping whose changes are not told is left out."""
    head: list[str] = []
    changed: dict[str, int] = {}
    for line in lines:
        words = line.split(maxsplit=5)
        if not words[0].endswith(":"):
            head, changed = words, {}
        elif words[0] in ("Anonymous:", "Swap:"):
            changed[words[0]] = int(words[1])
            if len(changed) == 2 and len(head) == 6:
                start, end = (int(each, 16) for each in head[0].split("-"))
                yield Mapping(start, end, head[1], head[5], sum(changed.values()))


def _libc_call(name: str, *arguments: int) -> None:
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:  # glibc only
        function(*arguments)
