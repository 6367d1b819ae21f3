"""Text for a terminal: colours, units, and nothing that the terminal would obey.

Everything shown may come from somebody else (a pod's name, a peer's error
text), so whatever is not printable is shown escaped.
"""

import os
from typing import Final, TextIO

_COLOURS: Final = {"red": "31", "green": "32", "yellow": "33", "bold": "1", "dim": "2"}


def printable(text: str) -> str:
    r"""``text`` with control, format and other invisible characters as ``\x1b`` or ``\u202e``."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


class Paint:
    """Colours on a terminal, plain text elsewhere and where NO_COLOR is set (no-color.org).

    ``width`` is how many columns there are to fill, None where lines may be as
    long as they like: in a file, in a pipe.
    """

    def __init__(self, stream: TextIO) -> None:
        is_terminal = stream.isatty()
        self._on = is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self.width = _columns(stream) if is_terminal else None

    def __call__(self, text: str, colour: str) -> str:
        """``text`` in ``colour``: red, green, yellow, bold or dim; anything else changes nothing."""
        if not self._on or colour not in _COLOURS:
            return text
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"


def _columns(stream: TextIO) -> int | None:
    """COLUMNS, as every program that asks ncurses; else what the terminal says."""
    told = os.environ.get("COLUMNS", "")
    if told.isascii() and told.isdigit() and int(told) > 0:
        return int(told)
    try:
        return os.get_terminal_size(stream.fileno()).columns or None  # 0: a serial line that was never told
    except OSError:
        return None


def duration(seconds: object) -> str:
    """``4.2s``, ``3m12s``, ``5h03m``, ``2d04h``; a dash when it is no number."""
    if not isinstance(seconds, int | float):
        return "-"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours < 24 else f"{hours // 24}d{hours % 24:02d}h"


def size(count: object) -> str:
    """``0 B``, ``1.5 KiB``, ``3.0 GiB``; a dash when it is no number."""
    if not isinstance(count, int | float):
        return "-"
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if count < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} TiB"
