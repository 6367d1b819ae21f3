"""What each key does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.cli.top.rates import Service
from node_agent.cli.top.state import SORTS, State
from node_agent.cli.top.terminal import keys

SERVICES = [
    Service(name="shop/web", direction="out", connections=5.0, errors=0.0, connect_ms=1.0, open=3),
    Service(name="shop/db", direction="out", connections=1.0, errors=2.0, open=1),
    Service(name="infra/dns", direction="in", connections=9.0, errors=0.5, connect_ms=9.0, open=2),
]
KEYS = [*"cotbelnr/dp ?h+-xq", "up", "down", "pageup", "pagedown", "home", "end", "enter", "escape", "backspace"]


def press(state: State, *pressed: str) -> State:
    for key in pressed:
        state = state.press(key)
    return state


def names(state: State) -> list[str]:
    return [service.name.partition("/")[2] for service in state.choose(SERVICES)]


@pytest.mark.parametrize(
    ("pressed", "shown"),
    [
        ("", ["dns", "web", "db"]),
        ("r", ["db", "web", "dns"]),
        ("e", ["db", "dns", "web"]),
        ("er", ["web", "dns", "db"]),
        ("l", ["dns", "web", "db"]),
        ("o", ["web", "dns", "db"]),
        ("n", ["dns", "db", "web"]),
        ("nr", ["web", "db", "dns"]),
        ("d", ["web", "db"]),
        ("dd", ["dns"]),
        ("ddd", ["dns", "web", "db"]),
        ("/w", ["web"]),
        ("/WQ", []),
    ],
)
def test_keys_sort_and_filter(pressed: str, shown: list[str]) -> None:
    assert names(press(State(), *pressed)) == shown


def test_while_a_filter_is_typed_letters_are_letters() -> None:
    typed = press(State(), "/", "q", "p")
    assert (typed.filter, typed.is_over, typed.is_paused) == ("qp", False, False)
    assert press(typed, "backspace", "enter", "p").filter == "q"
    assert press(typed, "enter", "p").is_paused
    assert press(typed, "escape").filter == ""
    assert press(typed, "enter", "escape").filter == ""
    assert press(typed, "\x1b").filter == "qp"  # what is not printable is no text


def test_a_namespace_that_was_asked_for_is_not_dropped_with_the_filter() -> None:
    state = State(namespace="shop")
    assert names(press(state, "/", "d", "b", "enter")) == ["db"]
    assert names(press(state, "escape")) == ["web", "db"]


def test_help_is_left_by_any_key() -> None:
    shown = press(State(), "?")
    assert shown.shows_help
    assert press(shown, "e") == State()
    assert press(shown, "q").is_over


@given(st.lists(st.sampled_from(KEYS)), st.integers(-5, 100), st.integers(0, 300))
def test_whatever_is_pressed_the_rows_on_the_screen_exist(pressed: list[str], page: int, rows: int) -> None:
    state = State()
    for key in pressed:
        state = state.press(key).of_screen(page, rows)
        assert 0 <= state.offset <= max(0, rows - state.page)
        assert state.sort in SORTS
        assert 0.5 <= state.interval_s <= 30.0


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ("q", ["q"]),
        ("\x1b[A\x1b[B", ["up", "down"]),
        ("\x1bOH\x1b[4~", ["home", "end"]),
        ("\x1b[5~\x1b[6~", ["pageup", "pagedown"]),
        ("\x1b[1;5C", []),
        ("\x1b", ["escape"]),
        ("a\rb\x7f", ["a", "enter", "b", "backspace"]),
    ],
)
def test_what_terminals_send_for_keys_is_understood(sent: str, meant: list[str]) -> None:
    assert list(keys(sent)) == meant
