"""Print what is shown: a heading, the commands, and every fact with its evidence.

Plain ASCII either way; colour only adds to it, so that a log reads like the screen.
"""

import textwrap
from collections.abc import Iterable
from typing import Final, TextIO

_BOLD: Final = "1"
_DIM: Final = "2"
_RED: Final = "1;31"
_GREEN: Final = "32"
_WIDTH: Final = 110
_INDENT: Final = 8


class Screen:
    """Counts what held and remembers what did not."""

    def __init__(self, stream: TextIO, *, colour: bool) -> None:
        self._stream = stream
        self._colour = colour
        self._proof = ""
        self.held = 0
        self.broken: list[str] = []

    def proof(self, number: int, title: str, explanation: str) -> None:
        """Begin a numbered proof."""
        self._proof = f"{number}. {title}"
        self._line("")
        self._line(self._painted(self._proof, _BOLD))
        for line in textwrap.wrap(explanation, _WIDTH - 3):
            self._line(f"   {line}")

    def command(self, where: str, text: str) -> None:
        """A command that is about to run, as the user could type it."""
        self._line(self._painted(f"   {where}$ {text}", _DIM))

    def say(self, text: str) -> None:
        """One line without judgement."""
        self._line(f"   {text}" if text else "")

    def table(self, rows: Iterable[str]) -> None:
        """Lines that belong to the fact before them."""
        for row in rows:
            self._line(f"{' ' * _INDENT}{row}")

    def check(self, holds: bool, claim: str, evidence: str = "") -> bool:
        """State a fact with what was measured, or that it did not hold."""
        word = self._painted("ok", _GREEN) if holds else self._painted("FAILED", _RED)
        text = f"{claim}: {evidence}" if evidence else claim
        first, *rest = textwrap.wrap(text, _WIDTH - _INDENT) or [""]
        self._line(f"   {word}{'   ' if holds else ' '}{first}")
        self.table(rest)
        if holds:
            self.held += 1
        else:
            self.broken.append(f"{self._proof} - {text}")
        return holds

    def summary(self, *, seconds: float) -> None:
        """The closing lines."""
        total = self.held + len(self.broken)
        self._line("")
        if self.broken:
            self._line(self._painted(f"{len(self.broken)} of {total} facts did NOT hold ({seconds:.1f} s):", _RED))
            for each in self.broken:
                self._line(f"   {each}")
        else:
            text = f"All {total} facts held, measured in this run, in {seconds:.1f} s."
            self._line(self._painted(text, _GREEN))

    def _painted(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour and text else text

    def _line(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()
