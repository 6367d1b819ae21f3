"""What the kernel and the interpreter say of this process's memory; cheap: no object is looked at."""

import gc
import os
import sys
import threading
from pathlib import Path

_KERNEL = {
    "Rss": "resident_bytes",
    "Pss": "proportional_bytes",
    "Private_Dirty": "private_dirty_bytes",
    "Swap": "swap_bytes",
}


def describe() -> dict[str, object]:
    """Bytes by the kernel's account (proc(5), smaps_rollup), and the interpreter's counts."""
    found: dict[str, object] = {}
    try:
        for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in _KERNEL:
                found[_KERNEL[name]] = int(rest.split()[0]) * 1024
    except OSError as error:
        found["error"] = f"/proc/self/smaps_rollup: {error.strerror}"
    return {
        **found,
        "allocated_blocks": sys.getallocatedblocks(),
        "collections": [generation["collections"] for generation in gc.get_stats()],
        "uncollectable": len(gc.garbage),
        "threads": threading.active_count(),
        "open_files": len(os.listdir("/proc/self/fd")),
        "modules": len(sys.modules),
    }
