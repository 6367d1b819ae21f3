"""Big frames in one system call: they arrive whole, wait when they are blocked, and leave the tunnel as it was."""

import gc
import random
import socket
import ssl
import struct
import time

import pytest

from node_agent.relay import gathering
from node_agent.relay.gathering import Gatherer, gatherer
from tests.relay_builder import DEADLINE_S, SMALL_BUFFER_BYTES, TlsPairs

FRAME_BYTES = 256 * 1024
_WANT = (ssl.SSLWantReadError, ssl.SSLWantWriteError)


def _gatherer(sock: ssl.SSLSocket) -> Gatherer:
    made = gatherer(sock._sslobj)  # type: ignore[attr-defined]
    assert made is not None, "this Python's SSL object is not laid out as we think"
    return made


def _read_what_is_there(sock: ssl.SSLSocket) -> bytes:
    data = b""
    while True:
        try:
            data += sock.recv(16384)
        except _WANT:
            return data


def _read(sock: ssl.SSLSocket, size: int) -> bytes:
    data = b""
    deadline = time.monotonic() + DEADLINE_S
    while len(data) < size:
        assert time.monotonic() < deadline, f"{len(data)} of {size} bytes came"
        data += _read_what_is_there(sock)
    return data


def _blocked(writing: Gatherer, frame: bytes) -> None:
    """Write ``frame`` again and again until the kernel takes no more of it."""
    for _ in range(1000):
        if not writing.write(memoryview(frame)):
            return
    raise AssertionError("the kernel took it all")


def test_big_frames_arrive_as_they_were_written_with_small_ones_in_between(tls_pairs: TlsPairs) -> None:
    one, other = tls_pairs.make()
    with one, other:
        writing = _gatherer(one)
        rng = random.Random(7)
        for size in (FRAME_BYTES, 1, 100_000, gathering.BIG_FRAME_BYTES, 16384, FRAME_BYTES):
            frame = rng.randbytes(size)
            got = b""
            while not writing.write(memoryview(frame)):
                assert writing.is_begun
                got += _read_what_is_there(other)
            got += _read(other, size - len(got))
            assert got == frame
            assert not writing.is_begun
            assert one.send(b"by itself") == len(b"by itself")
            assert _read(other, 9) == b"by itself"
            assert other.send(b"answer") == len(b"answer")
            assert _read(one, 6) == b"answer"


def test_a_blocked_frame_waits_and_what_follows_comes_behind_it(tls_pairs: TlsPairs) -> None:
    one, other = tls_pairs.make(buffer_bytes=SMALL_BUFFER_BYTES)
    with one, other:
        writing = _gatherer(one)
        frame = random.Random(8).randbytes(FRAME_BYTES)
        assert not writing.write(memoryview(frame))
        before = writing.unsent_bytes
        assert writing.is_begun
        assert 0 < before < FRAME_BYTES + 17 * 22
        got = b""
        while not writing.write(memoryview(b"")):
            got += _read_what_is_there(other)
            assert writing.unsent_bytes <= before
        assert writing.unsent_bytes == 0
        got += _read(other, FRAME_BYTES - len(got))
        assert got == frame
        one.send(b"behind")
        assert _read(other, 6) == b"behind"


def test_a_connection_cut_within_a_frame_leaves_nothing_behind(tls_pairs: TlsPairs) -> None:
    for _ in range(2 * gathering._SPARE_BUFFERS):
        one, other = tls_pairs.make(buffer_bytes=SMALL_BUFFER_BYTES)
        writing = _gatherer(one)
        _blocked(writing, bytes(FRAME_BYTES))
        one.close()
        other.close()
        del writing
    gc.collect()
    assert len(gathering._spare) <= gathering._SPARE_BUFFERS
    one, other = tls_pairs.make()
    with one, other:
        frame = random.Random(9).randbytes(60_000)
        assert _gatherer(one).write(memoryview(frame))
        assert _read(other, len(frame)) == frame, "nothing of those that were cut may be in it"


def test_a_broken_tunnel_is_told(tls_pairs: TlsPairs) -> None:
    one, other = tls_pairs.make(buffer_bytes=SMALL_BUFFER_BYTES)
    with one:
        writing = _gatherer(one)
        _blocked(writing, bytes(FRAME_BYTES))
        other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        other.close()
        with pytest.raises(OSError, match="broke"):
            writing.write(memoryview(b""))


def test_what_is_not_laid_out_as_we_think_is_left_alone(tls_pairs: TlsPairs, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gatherer(object()) is None
    one, other = tls_pairs.make()
    with one, other:
        inside = one._sslobj  # type: ignore[attr-defined]
        monkeypatch.setattr(gathering, "_SSL_OFFSET", 16)
        assert gatherer(inside) is None
        monkeypatch.undo()
        monkeypatch.setattr(gathering, "_openssl", None)
        assert gatherer(inside) is None
