"""Tables fit the terminal, whatever is in them."""

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.cli.rows import milliseconds
from node_agent.cli.table import cell_width, cut, table
from node_agent.cli.terminal import Paint
from node_agent.cli.top.cells import cells
from node_agent.cli.top.rates import Service


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def paint(columns: int | None) -> Paint:
    found = Paint(io.StringIO())
    found.width = columns
    return found


@given(
    st.lists(st.sampled_from(["NAME", "~ADDRESS", ">~OPEN", "~~IDENTITY", ">COUNT", "~~~X"]), min_size=1, max_size=8),
    st.integers(1, 200),
    st.data(),
)
def test_no_line_is_longer_than_the_terminal_is_wide(headers: list[str], columns: int, data: Any) -> None:
    row = st.lists(st.text(max_size=60), min_size=len(headers), max_size=len(headers))
    rows = data.draw(st.lists(row, max_size=4))
    for line in table(headers, rows, paint(columns)).split("\n"):
        assert cell_width(line) <= columns
        assert not line or line.isprintable()


HEADERS = ["NAME", "~~IDENTITY", "~ADDRESS", ">COUNT"]
ROWS = [["web", "spiffe://cluster.local/ns/shop/sa/web", "10.0.0.1,fd00::1:2", "5"]]


def shown(columns: int | None) -> list[str]:
    return table(HEADERS, ROWS, paint(columns)).split("\n")


def test_in_a_file_nothing_is_cut() -> None:
    assert shown(None)[1] == "web   spiffe://cluster.local/ns/shop/sa/web  10.0.0.1,fd00::1:2      5"
    assert shown(None) == shown(200)


def test_what_matters_least_is_cut_first_and_of_an_identity_the_end_is_kept() -> None:
    assert shown(60)[1] == "web   \u2026uster.local/ns/shop/sa/web  10.0.0.1,fd00::1:2      5"
    assert shown(41)[1] == "web   \u2026/sa/web  10.0.0.1,fd00::1:2      5"
    assert shown(32)[1] == "web   \u2026/sa/web  10.0.0.1\u2026      5"


def test_columns_that_do_not_fit_are_left_out_and_named() -> None:
    assert shown(24) == ["NAME  ADDRESS   COUNT", "web   10.0.0.\u2026      5", "too narrow for IDENTITY\u2026"]
    assert shown(12) == ["NAME  COUNT", "web       5", "too narrow \u2026"]
    assert shown(6)[:2] == ["NAME", "web"]


def test_a_name_out_of_proportion_does_not_displace_the_others() -> None:
    line = table(["NAME", "~ADDRESS", ">COUNT"], [["x" * 300, "10.0.0.1", "5"]], paint(60)).split("\n")[1]
    assert line == "x" * 42 + "\u2026  10.0.0.1      5"


def test_wide_and_combining_characters_keep_the_columns_aligned() -> None:
    assert [cell_width(text) for text in ("ab", "\u6f22\u5b57", "e\u0301", "")] == [2, 4, 1, 0]
    lines = table(["A", "B"], [["\u6f22\u5b57", "x"], ["e\u0301", "y"]], paint(None)).split("\n")
    assert lines == ["A     B", "\u6f22\u5b57  x", "e\u0301     y"]
    assert cut("\u6f22\u5b57\u6f22\u5b57", 4) == "\u6f22\u2026"


def test_the_width_is_what_COLUMNS_or_the_terminal_says(monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: N802
    monkeypatch.setenv("COLUMNS", "77")
    assert Paint(Terminal()).width == 77
    assert Paint(io.StringIO()).width is None
    monkeypatch.setenv("COLUMNS", "wide")
    assert Paint(Terminal()).width is None  # it has no descriptor to ask


@pytest.mark.parametrize(
    ("estimate", "shown"), [(1.24, "1.2 ms"), (0.06, "0.1 ms"), (0.04, "-"), (0.0, "-"), (None, "-")]
)
def test_an_estimate_that_has_faded_is_shown_as_none(estimate: float | None, shown: str) -> None:
    assert milliseconds(estimate) == shown
    service = Service(name="shop/web", direction="out", connect_ms=estimate)
    assert cells(service)[-2] == shown
