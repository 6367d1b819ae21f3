"""What is shown is aligned, and harmless to the terminal."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.cli.table import Cell, table
from node_agent.cli.terminal import Paint, duration, printable, size


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


@given(st.text(st.characters()))
def test_whatever_the_text_only_printable_characters_are_shown(text: str) -> None:
    assert printable(text).isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [("caf\xe9 web-1", "caf\xe9 web-1"), ("\x1b[2J", r"\x1b[2J"), ("a\nb", r"a\nb"), ("\u202eevil", r"\u202eevil")],
)
def test_control_and_direction_characters_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_colours_only_on_a_terminal_that_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert Paint(Tty())("ok", "green") == "\x1b[32mok\x1b[0m"
    assert Paint(io.StringIO())("ok", "green") == "ok"
    monkeypatch.setenv("NO_COLOR", "1")
    assert Paint(Tty())("ok", "green") == "ok"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert Paint(Tty())("ok", "green") == "ok"


def test_colours_do_not_move_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    rows: list[list[Cell]] = [[("ready", "green"), "1"], [("no", "red"), "22"]]
    plain = table(["STATE", ">COUNT"], rows, Paint(io.StringIO()))
    coloured = table(["STATE", ">COUNT"], rows, Paint(Tty()))
    assert plain == "STATE  COUNT\nready      1\nno        22"
    assert coloured != plain
    for code in ("\x1b[0m", "\x1b[1m", "\x1b[31m", "\x1b[32m"):
        coloured = coloured.replace(code, "")
    assert coloured == plain


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0s"), (59.9, "59.9s"), (192, "3m12s"), (18_180, "5h03m"), (187_200, "2d04h"), (None, "-")],
)
def test_durations_are_short(seconds: object, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 2**30, "3.0 GiB"), (2**41, "2.0 TiB"), (None, "-")],
)
def test_sizes_use_binary_units(count: object, text: str) -> None:
    assert size(count) == text
