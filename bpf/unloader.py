"""Take everything away that was loaded, so that the node is as it was before.

One rename takes it out of sight; then links, maps and programs go.  An unload
that was killed is finished by the next one, or by the next load.
"""

import os
from pathlib import Path

from bpf import pins as pinned
from bpf import preconditions
from bpf.errors import BpfError
from bpf.loader import Progress
from bpf.pins import Pins

# Let go of new connections first: what is captured still needs the others.
_FIRST_HOOKS = ("connect4", "connect6")


def unload(root: Path, *, force: bool = False, progress: Progress = lambda _step: None) -> bool:
    """Remove what is loaded in ``root``; False if nothing was.

    Raises:
        BpfError: it is not ours, or an agent uses it and ``force`` is not given.
    """
    preconditions.require_bpf()
    pins = Pins(root)
    if not root.parent.is_dir():
        return False
    with pinned.locked(pins):
        progress("look at what is loaded")
        state = pinned.open_state(pins)
        leftovers = [each for each in (pins.staging, pins.unloading) if each.exists()]
        for each in leftovers:
            _take_apart(Pins(each), progress)
        if state is None:
            return bool(leftovers)
        state.close()
        if not force and pinned.in_use(pins):
            raise BpfError(
                f"an agent uses {root}, and without it its workloads would talk in plaintext; "
                "stop the agent first, or use --force"
            )
        progress("move out of place")
        root.rename(pins.unloading)
        _take_apart(Pins(pins.unloading), progress)
    return True


def _take_apart(pins: Pins, progress: Progress) -> None:
    for hook in _FIRST_HOOKS:
        for link in pins.links.glob(f"*/{hook}"):
            progress(f"detach {link.parent.name}/{hook}")
            os.unlink(link)
    progress("remove the rest")
    pinned.remove_tree(pins.root)
