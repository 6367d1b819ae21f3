"""Streams that are asked for by tasks: cancelled at the worst moment, and tunnels that are closed by their owner."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio
import trio.lowlevel

from node_agent.relay import Relay, SharedTunnel
from node_agent.relay.stream import Stream
from node_agent.stream_frames import STREAM_HEADER, StreamFrameType
from tests.relay_builder import DEADLINE_S, TlsPairs, reset
from tests.stream_builder import ACCEPTED, open_payload
from tests.stream_peer import frame


@dataclass(slots=True)
class _Asking:
    """A source's shared tunnel in a relay; the peer is the test."""

    relay: Relay
    shared: SharedTunnel
    tls: ssl.SSLSocket
    ended: list[str]

    async def read(self) -> tuple[int, int, bytes]:
        return await trio.to_thread.run_sync(self._read)

    def _read(self) -> tuple[int, int, bytes]:
        word, stream_id = STREAM_HEADER.unpack(self._take(8))
        return word >> 24, stream_id, self._take(word & 0xFFFFFF)

    def _take(self, size: int) -> bytes:
        taken = b""
        while len(taken) < size:
            more = self.tls.recv(size - len(taken))
            assert more, "the tunnel was closed"
            taken += more
        return taken


@asynccontextmanager
async def _asking(pairs: TlsPairs) -> AsyncIterator[_Asking]:
    crashes: list[BaseException] = []
    ended: list[str] = []
    relay = Relay(on_crash=crashes.append)
    ours, tls = pairs.make()
    tls.settimeout(DEADLINE_S)
    shared = relay.share(ours, on_end=lambda: ended.append("over"))
    try:
        yield _Asking(relay, shared, tls, ended)
        shared.close()
        with trio.fail_after(DEADLINE_S):
            await relay.finish()
        await trio.lowlevel.checkpoint()
        assert ended == ["over"]
        assert crashes == []
    finally:
        shared.close()
        relay.close()
        tls.close()


async def test_an_answer_is_awaited(tls_pairs: TlsPairs) -> None:
    got: list[tuple[Stream, bytes | None]] = []
    async with _asking(tls_pairs) as asking, trio.open_nursery() as nursery:

        async def ask() -> None:
            got.append(await asking.shared.ask(open_payload(1), 60.0))

        nursery.start_soon(ask)
        assert await asking.read() == (StreamFrameType.OPEN, 1, open_payload(1))
        asking.tls.sendall(frame(StreamFrameType.VERDICT, 1, ACCEPTED))
    ((stream, answer),) = got
    assert (stream.stream_id, answer) == (1, ACCEPTED)


@pytest.mark.parametrize("verdict", ["on its way", "not yet said"])
async def test_who_stops_waiting_resets_the_stream_and_nothing_else(tls_pairs: TlsPairs, verdict: str) -> None:
    async with _asking(tls_pairs) as asking, trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def ask() -> None:
            with scope:
                await asking.shared.ask(open_payload(1), 60.0)
                raise AssertionError("it was cancelled")

        nursery.start_soon(ask)
        assert await asking.read() == (StreamFrameType.OPEN, 1, open_payload(1))
        if verdict == "on its way":
            asking.tls.sendall(frame(StreamFrameType.VERDICT, 1, ACCEPTED))
        scope.cancel()
        assert await asking.read() == (StreamFrameType.RESET, 1, b"")
        answers: list[bytes | None] = []

        async def ask_again() -> None:
            answers.append((await asking.shared.ask(open_payload(2), 60.0))[1])

        nursery.start_soon(ask_again)
        assert await asking.read() == (StreamFrameType.OPEN, 2, open_payload(2))
        asking.tls.sendall(frame(StreamFrameType.VERDICT, 1, ACCEPTED) + frame(StreamFrameType.VERDICT, 2, ACCEPTED))
        while not answers:
            await trio.sleep(0.001)
        assert answers == [ACCEPTED]
        assert asking.shared.fault is None


async def test_whose_time_is_over_resets_the_stream_and_the_others_wait_on(tls_pairs: TlsPairs) -> None:
    """Times of different lengths, the shorter ones last; the answer of one crosses its end."""
    ended: dict[int, bytes | None] = {}
    async with _asking(tls_pairs) as asking, trio.open_nursery() as nursery:

        async def ask(number: int, timeout_s: float) -> None:
            try:
                ended[number] = (await asking.shared.ask(open_payload(number), timeout_s))[1]
            except trio.TooSlowError:
                ended[number] = b"too slow"

        for number, timeout_s in ((1, 60.0), (2, 0.2), (3, 0.1), (4, 60.0)):
            nursery.start_soon(ask, number, timeout_s)
            assert await asking.read() == (StreamFrameType.OPEN, number, open_payload(number))
        asking.tls.sendall(frame(StreamFrameType.VERDICT, 1, ACCEPTED))
        assert {(await asking.read())[:2] for _ in range(2)} == {(StreamFrameType.RESET, 2), (StreamFrameType.RESET, 3)}
        late = frame(StreamFrameType.VERDICT, 2, ACCEPTED) + frame(StreamFrameType.RESET, 3, b"")
        asking.tls.sendall(late + frame(StreamFrameType.VERDICT, 4, ACCEPTED))
    assert ended == {1: ACCEPTED, 2: b"too slow", 3: b"too slow", 4: ACCEPTED}


@pytest.mark.parametrize("other", ["answer", "cancellation", "end of the tunnel"])
async def test_a_time_that_is_over_in_the_turn_of_something_else_ends_it_once(tls_pairs: TlsPairs, other: str) -> None:
    """Whichever comes first in that turn; what is awaited ends one way, and the tunnel serves the next."""
    ended: list[object] = []
    async with _asking(tls_pairs) as asking, trio.open_nursery() as nursery:
        for number in range(1, 31):
            scope = trio.CancelScope()

            async def ask(number: int = number, scope: trio.CancelScope = scope) -> None:
                with scope:
                    try:
                        ended.append((await asking.shared.ask(open_payload(number), 0.01))[1])
                    except trio.TooSlowError:
                        ended.append("too slow")
                    return
                ended.append("cancelled")

            nursery.start_soon(ask)
            assert await asking.read() == (StreamFrameType.OPEN, number, open_payload(number))
            with trio.CancelScope(shield=True):
                await trio.sleep(0.0002 * number)
            if other == "answer":
                asking.tls.sendall(frame(StreamFrameType.VERDICT, number, ACCEPTED))
            elif other == "cancellation":
                scope.cancel()
            else:
                asking.tls.close()
            while len(ended) < number:
                await trio.sleep(0.001)
            if other == "end of the tunnel":
                break
            if ended[-1] != ACCEPTED:
                assert (await asking.read())[:2] == (StreamFrameType.RESET, number)
            else:
                asking.tls.sendall(frame(StreamFrameType.RESET, number, b""))
        assert asking.shared.fault is None
    assert set(ended) <= {ACCEPTED, "too slow", "cancelled", None}


async def test_a_tunnel_that_ends_is_told_to_who_waits(tls_pairs: TlsPairs) -> None:
    answers: list[bytes | None] = []
    async with _asking(tls_pairs) as asking, trio.open_nursery() as nursery:

        async def ask() -> None:
            answers.append((await asking.shared.ask(open_payload(1), 60.0))[1])

        nursery.start_soon(ask)
        await asking.read()
        asking.tls.close()
    assert answers == [None]


@pytest.mark.parametrize("how", ["in order", "by reset"])
async def test_a_close_that_finds_the_peer_gone_is_one_end_only(tls_pairs: TlsPairs, how: str) -> None:
    async with _asking(tls_pairs) as asking:
        reset(asking.tls)
        stream = asking.shared.open(open_payload(1))  # to be written when the loop comes to it
        asking.shared.close(reset=how == "by reset")
        assert stream.is_over
        assert asking.shared.is_over
