"""What the authority has in memory stays there: no core dump, no debugger of the same user.

A core dump of a process that signs holds its keys and the passphrase, in clear,
on the very disk on which they are encrypted.  A limit on the size of core files
would not do: it does not hold where they are piped to a program (core(5)), as
systemd-coredump has it.
"""

import ctypes
import os
from typing import Final

_PR_SET_DUMPABLE: Final = 4  # linux/prctl.h


def keep_in_memory() -> None:
    """From now on, until an ``exec``, the kernel writes no core dump of this process, and lets only root trace it.

    Raises:
        OSError: the kernel refuses, which it has no reason to.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_DUMPABLE): {os.strerror(number)}")
