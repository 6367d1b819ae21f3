"""When to stop asking who does not answer, and when to try again."""

from hypothesis import given
from hypothesis import strategies as st

from ca.authority.attestation.circuit import Circuit


def broken(now: float = 0.0) -> Circuit:
    circuit = Circuit()
    for _ in range(3):
        assert circuit.retry_after_s(now) is None
        circuit.failed(now)
    return circuit


def test_two_failures_are_no_pattern() -> None:
    circuit = Circuit()
    circuit.failed(0.0)
    circuit.failed(0.0)
    assert circuit.retry_after_s(0.0) is None
    circuit.succeeded()
    circuit.failed(0.0)
    circuit.failed(0.0)
    assert circuit.retry_after_s(0.0) is None


def test_after_three_failures_nobody_is_asked_for_two_seconds() -> None:
    circuit = broken(10.0)
    assert circuit.retry_after_s(10.5) == 1.5
    assert circuit.retry_after_s(12.0) is None


def test_one_at_a_time_tries_again() -> None:
    circuit = broken()
    assert circuit.retry_after_s(2.0) is None
    assert circuit.retry_after_s(2.0) == 2.0
    circuit.succeeded()
    assert circuit.retry_after_s(2.0) is None
    assert circuit.retry_after_s(2.0) is None


def test_a_probe_that_fails_doubles_the_pause_up_to_half_a_minute() -> None:
    circuit, now, pauses = broken(), 2.0, []
    for _ in range(6):
        assert circuit.retry_after_s(now) is None
        circuit.failed(now)
        pause = circuit.retry_after_s(now)
        assert pause is not None
        pauses.append(pause)
        now += pause
    assert pauses == [4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_a_probe_that_was_cut_off_leaves_the_place_to_the_next() -> None:
    circuit = broken()
    assert circuit.retry_after_s(2.0) is None
    circuit.abandoned()
    assert circuit.retry_after_s(2.0) is None


def test_failures_of_those_who_were_on_their_way_do_not_prolong_the_pause() -> None:
    circuit = broken()
    circuit.failed(1.9)
    assert circuit.retry_after_s(2.0) is None


@given(st.lists(st.tuples(st.floats(0, 10), st.sampled_from(["succeeded", "failed", "abandoned"])), max_size=60))
def test_it_never_refuses_for_longer_than_the_longest_pause(steps: list[tuple[float, str]]) -> None:
    circuit, now = Circuit(), 0.0
    for elapsed, outcome in steps:
        now += elapsed
        pause = circuit.retry_after_s(now)
        assert pause is None or 0 < pause <= 30
        if pause is not None:
            continue
        match outcome:
            case "succeeded":
                circuit.succeeded()
            case "failed":
                circuit.failed(now)
            case _:
                circuit.abandoned()
