"""The source decides which connection is traced; what it says travels as a W3C traceparent."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.model import EndpointAddress
from node_agent.telemetry.tracing import TraceParent, Tracer

# https://www.w3.org/TR/trace-context-2/#examples-of-http-traceparent-headers
EXAMPLE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACE_ID, SPAN_ID = 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7


def tracer(ratio: float, *, seed: int = 1) -> Tracer:
    return Tracer(sample_ratio=ratio, rng=random.Random(seed), now=lambda: 5.0)


def test_the_example_of_the_specification_is_read_and_written() -> None:
    parent = TraceParent.parse(EXAMPLE)
    assert parent == TraceParent(TRACE_ID, SPAN_ID, True)
    assert str(parent) == EXAMPLE
    assert TraceParent.parse(EXAMPLE[:-2] + "00") == TraceParent(TRACE_ID, SPAN_ID, False)


@pytest.mark.parametrize(
    ("text", "is_sampled"),
    [
        (EXAMPLE.replace("00-4", "cc-4", 1) + "-what-the-future-will-bring", True),
        (EXAMPLE.replace("00-4", "01-4", 1), True),
        (EXAMPLE[:-2] + "03", True),  # "random trace id", of level 2
        (EXAMPLE[:-2] + "fe", False),
    ],
)
def test_a_later_version_is_read_by_what_is_known_of_it(text: str, is_sampled: bool) -> None:
    assert TraceParent.parse(text) == TraceParent(TRACE_ID, SPAN_ID, is_sampled)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "garbage",
        EXAMPLE.replace("00-4", "ff-4", 1),
        EXAMPLE + "-more",
        EXAMPLE + "x",
        EXAMPLE + "\n",
        EXAMPLE.upper(),
        " " + EXAMPLE,
        EXAMPLE.replace("-", "_"),
        EXAMPLE.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32),
        EXAMPLE.replace("00f067aa0ba902b7", "0" * 16),
        EXAMPLE.replace("4bf9", "\uff14bf9"),
    ],
)
def test_what_is_no_traceparent_starts_a_new_trace(text: str) -> None:
    assert TraceParent.parse(text) is None
    trace, _ = tracer(1.0).begin(text)
    assert trace is not None
    assert trace.parent_id == 0
    assert trace.trace_id != TRACE_ID


@given(text=st.text(max_size=130))
def test_any_text_is_a_context_or_none(text: str) -> None:
    parent = TraceParent.parse(text)
    assert parent is None or TraceParent.parse(str(parent)) == parent


def test_the_sources_decision_binds_whatever_our_own_ratio_is() -> None:
    for ratio in (0.0, 1.0):
        trace, onward = tracer(ratio).begin(EXAMPLE)
        assert trace is not None
        assert (trace.trace_id, trace.parent_id) == (TRACE_ID, SPAN_ID)
        assert trace.span_id not in {0, SPAN_ID}
        assert TraceParent.parse(onward) == TraceParent(TRACE_ID, trace.span_id, True)

        none, onward = tracer(ratio).begin(EXAMPLE[:-2] + "00")
        assert none is None
        told = TraceParent.parse(onward)
        assert told is not None
        assert not told.sampled


def test_with_ratio_zero_nothing_is_traced_and_the_next_agent_is_told_so() -> None:
    none = tracer(0.0)
    for _ in range(1000):
        trace, onward = none.begin("")
        assert trace is None
        told = TraceParent.parse(onward)
        assert told is not None
        assert not told.sampled
        assert tracer(1.0).begin(onward)[0] is None


def test_with_ratio_one_everything_is_and_no_id_comes_twice() -> None:
    every = tracer(1.0)
    traces = [every.begin("")[0] for _ in range(1000)]
    assert len({trace.trace_id for trace in traces if trace}) == 1000
    assert len({trace.span_id for trace in traces if trace}) == 1000


def test_in_between_it_is_about_that_part() -> None:
    some = tracer(0.1)
    assert 850 < sum(some.begin("")[0] is not None for _ in range(10_000)) < 1150


def test_of_very_many_tries_only_the_first_ones_are_told() -> None:
    trace, _ = tracer(1.0).begin("")
    assert trace is not None
    for number in range(1000):
        trace.reached("ringfence.endpoint.chosen", EndpointAddress("10.0.0.1", number + 1))
    assert [event.endpoint.port for event in trace.events if event.endpoint] == list(range(1, 33))
