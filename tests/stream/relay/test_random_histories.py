"""Whatever two applications do, in whatever order: what arrives was sent, and an end is clean only if it was meant.

The oracle is TCP's own promise, kept over two relays and a tunnel (or one plain
relay): a reader sees a prefix of what was written, EOF only behind all of it,
and a reset of a stream that was not ended is never seen as EOF.
"""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node_agent.relay import Ending
from tests.histories import App, Step, assert_faithful, read_to_the_end
from tests.relay_builder import Finish, RelayBench, TlsPairs
from tests.stream_builder import JoinedStream, Own, StreamPaths

_SMALL_BUFFER_BYTES = 16 * 1024

_sides = st.sampled_from([0, 1])
_sizes = st.one_of(st.integers(1, 10), st.integers(1, 20_000), st.integers(1, 1_000_000))
_steps = st.one_of(
    st.tuples(st.just("send"), _sides, _sizes),
    st.tuples(st.just("read"), _sides, _sizes),
    st.tuples(st.just("shut"), _sides, st.just(0)),
    st.tuples(st.just("reset"), _sides, st.just(0)),
    st.tuples(st.just("settle"), st.just(0), st.just(0)),
)


@pytest.fixture
def fresh_bench(tls_pairs: TlsPairs) -> Iterator[RelayBench]:
    made = RelayBench(tls_pairs)
    yield made
    made.close()


@pytest.mark.parametrize("way", ["tunnel", "plain"])
@given(steps=st.lists(_steps, max_size=25), small=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_any_history(fresh_bench: RelayBench, way: str, steps: list[Step], small: bool) -> None:
    buffer_bytes = _SMALL_BUFFER_BYTES if small else None
    finishes: list[Finish]
    if way == "tunnel":
        one, other = fresh_bench.path(buffer_bytes=buffer_bytes)
        apps, finishes = [App(one.app), App(other.app)], [one.finish, other.finish]
    else:
        joined = fresh_bench.plain(buffer_bytes=buffer_bytes)
        apps, finishes = [App(joined.first), App(joined.second)], [joined.finish]

    for step, side, size in [*steps, ("shut", 0, 0), ("shut", 1, 0)]:
        apps[side].do(step, size)
    read_to_the_end(apps)
    endings = [finish.wait().ending for finish in finishes]

    assert_faithful(*apps)
    if not any(app.resets for app in apps):
        assert [app.end for app in apps] == ["eof", "eof"]
        assert endings == [Ending.COMPLETE] * len(endings)
    assert fresh_bench.crashes == []
    for app in apps:
        app.sock.close()


_STREAMS = 3
_MOVES = ("never", "attach-first", "moved-first", "failing")
_ends = st.integers(0, 2 * _STREAMS - 1)
_stream_steps = st.one_of(
    st.tuples(st.sampled_from(["send", "send", "read"]), _ends, _sizes),
    st.tuples(st.sampled_from(["shut", "move", "settle"]), _ends, st.just(0)),
    st.tuples(st.sampled_from(["reset", "cut", "lose own"]), _ends, st.just(0)),
)


@pytest.mark.parametrize("own", _MOVES)
@given(steps=st.lists(_stream_steps, max_size=40), small=st.booleans(), loses_at=st.none() | st.integers(0, 40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_any_history_of_streams(
    fresh_bench: RelayBench, own: Own, steps: list[Step], small: bool, loses_at: int | None
) -> None:
    """Several in one tunnel, which is lost before the step ``loses_at``; with moves, cuts and lost own tunnels."""
    paths = StreamPaths(fresh_bench, buffer_bytes=_SMALL_BUFFER_BYTES if small else None)
    joined = [end for _ in range(_STREAMS) for end in paths.path(own=own)]
    apps = [App(end.app) for end in joined]
    troubled: set[int] = set()

    for number, (step, side, size) in enumerate([*steps, *(("shut", side, 0) for side in range(2 * _STREAMS))]):
        if number == loses_at:
            paths.lose()
            troubled.update(range(_STREAMS))
        if step in ("cut", "lose own"):
            troubled.add(side // 2)
        _do(paths, joined[side], apps[side], step, size)
    read_to_the_end(apps)

    for stream in range(_STREAMS):
        one, other = apps[2 * stream : 2 * stream + 2]
        ends = joined[2 * stream : 2 * stream + 2]
        endings = [end.finish.wait().ending for end in ends]
        assert_faithful(one, other)
        if not (one.resets or other.resets or stream in troubled):
            assert (one.end, other.end) == ("eof", "eof")
            assert endings == [Ending.COMPLETE, Ending.COMPLETE]
            up, down = len(one.sent), len(other.sent)
            assert [(end.pair.up_bytes, end.pair.down_bytes) for end in ends] == [(up, down), (down, up)]
        assert [end.finish.is_empty for end in ends] == [True, True]
    assert fresh_bench.crashes == []
    paths.close()
    assert (paths.source.fault, paths.destination.fault) == (None, None)
    assert not paths.source.streams
    assert not paths.destination.streams
    for app in apps:
        app.sock.close()


def _do(paths: StreamPaths, joined: JoinedStream, app: App, step: str, size: int) -> None:
    match step:
        case "move":
            paths.move(joined)
        case "cut":
            joined.pair.cut(None)
        case "lose own":
            paths.lose_own(joined)
        case _:
            app.do(step, size)
